"""What logits [B, C] and labels [B] tell of each example, float32 [B]; larger means harder. Of JAX, or of NumPy."""

from __future__ import annotations

from collections.abc import Callable

from datadiet.scores.arrays import Array, largest_two, log_softmax, module_of, one_hot, other_and_own, softmax


def _errors(logits: Array, labels: Array) -> Array:
    """softmax(z) - one_hot(y), float32 [B, C]."""
    return softmax(logits) - one_hot(logits, labels)


def l2_error(logits: Array, labels: Array) -> Array:
    """EL2N, ||p - y||_2 in [0, sqrt(2)]. Source: Paul et al. 2021, definition 2.3."""
    return module_of(logits).linalg.norm(_errors(logits, labels), axis=-1)


def l1_error(logits: Array, labels: Array) -> Array:
    """||p - y||_1 in [0, 2]. Source: the code of Paul et al. 2021."""
    return abs(_errors(logits, labels)).sum(-1)


def max_margin(logits: Array, labels: Array) -> Array:
    """max over c != y of p_c, minus p_y, in [-1, 1]. Source: the code of Paul et al. 2021."""
    return lacking_margin(softmax(logits), labels)


def sum_margin(logits: Array, labels: Array) -> Array:
    """Sum over c != y of (p_c - p_y), in [-(C - 1), 1]. Source: the code of Paul et al. 2021."""
    true = module_of(logits).take_along_axis(softmax(logits), labels[:, None], axis=-1)[:, 0]
    return 1 - logits.shape[-1] * true


def entropy(logits: Array, labels: Array) -> Array:
    """-sum over c of p_c log p_c in [0, log C]; the label is not used. Source: Coleman et al. 2020."""
    logs = log_softmax(logits)
    return -(module_of(logits).exp(logs) * logs).sum(-1)


def least_confidence(logits: Array, labels: Array) -> Array:
    """1 - the largest p_c in [0, 1 - 1/C]; the label is not used. Source: Coleman et al. 2020."""
    return 1 - softmax(logits).max(-1)


def margin(logits: Array, labels: Array) -> Array:
    """1 - (the largest p_c - the second largest) in [0, 1]; the label is not used.

    The literature's margin is the difference itself, small where uncertain (Scheffer et al. 2001). The margin of
    the label is max_margin.
    """
    first, second = largest_two(softmax(logits))
    return 1 - (first - second)


def loss(logits: Array, labels: Array) -> Array:
    """Cross-entropy, -log p_y in nats."""
    return -module_of(logits).take_along_axis(log_softmax(logits), labels[:, None], axis=-1)[:, 0]


def of_last_layer(logits: Array, labels: Array, features: Array) -> Array:
    """GraNd of the last layer's kernel and bias alone: ||p - y||_2 sqrt(1 + ||h||_2^2) for its input h [B, F]."""
    return l2_error(logits, labels) * module_of(logits).sqrt(1 + (features**2).sum(-1))


def lacking_margin(outputs: Array, labels: Array) -> Array:
    """The largest output of another class minus the label's; outputs: logits or probabilities [B, C]."""
    other, own = other_and_own(outputs, labels)
    return other - own


LOGIT_SCORES: dict[str, Callable[[Array, Array], Array]] = {
    "l2_error": l2_error,
    "l1_error": l1_error,
    "max_margin": max_margin,
    "sum_margin": sum_margin,
    "entropy": entropy,
    "least_confidence": least_confidence,
    "margin": margin,
    "loss": loss,
}
