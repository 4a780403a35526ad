"""What logits [B, C] and labels [B] tell of each example, float32 [B]; larger means harder."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp


def _errors(logits: jax.Array, labels: jax.Array) -> jax.Array:
    """softmax(z) - one_hot(y), float32 [B, C]."""
    return jax.nn.softmax(logits) - jax.nn.one_hot(labels, logits.shape[-1])


def l2_error(logits: jax.Array, labels: jax.Array) -> jax.Array:
    """EL2N, ||p - y||_2 in [0, sqrt(2)]. Source: Paul et al. 2021, definition 2.3."""
    return jnp.linalg.norm(_errors(logits, labels), axis=-1)


def l1_error(logits: jax.Array, labels: jax.Array) -> jax.Array:
    """||p - y||_1 in [0, 2]. Source: the code of Paul et al. 2021."""
    return jnp.abs(_errors(logits, labels)).sum(-1)


def max_margin(logits: jax.Array, labels: jax.Array) -> jax.Array:
    """max over c != y of p_c, minus p_y, in [-1, 1]. Source: the code of Paul et al. 2021."""
    return lacking_margin(jax.nn.softmax(logits), labels)


def sum_margin(logits: jax.Array, labels: jax.Array) -> jax.Array:
    """Sum over c != y of (p_c - p_y), in [-(C - 1), 1]. Source: the code of Paul et al. 2021."""
    true = jnp.take_along_axis(jax.nn.softmax(logits), labels[:, None], axis=-1)[:, 0]
    return 1 - logits.shape[-1] * true


def entropy(logits: jax.Array, labels: jax.Array) -> jax.Array:
    """-sum over c of p_c log p_c in [0, log C]; the label is not used. Source: Coleman et al. 2020."""
    logs = jax.nn.log_softmax(logits)
    return -(jnp.exp(logs) * logs).sum(-1)


def least_confidence(logits: jax.Array, labels: jax.Array) -> jax.Array:
    """1 - the largest p_c in [0, 1 - 1/C]; the label is not used. Source: Coleman et al. 2020."""
    return 1 - jax.nn.softmax(logits).max(-1)


def margin(logits: jax.Array, labels: jax.Array) -> jax.Array:
    """1 - (the largest p_c - the second largest) in [0, 1]; the label is not used.

    The literature's margin is the difference itself, small where uncertain (Scheffer et al. 2001). The margin of
    the label is max_margin.
    """
    first, second = jnp.moveaxis(jax.lax.top_k(jax.nn.softmax(logits), 2)[0], -1, 0)
    return 1 - (first - second)


def loss(logits: jax.Array, labels: jax.Array) -> jax.Array:
    """Cross-entropy, -log p_y in nats."""
    return -jnp.take_along_axis(jax.nn.log_softmax(logits), labels[:, None], axis=-1)[:, 0]


def lacking_margin(outputs: jax.Array, labels: jax.Array) -> jax.Array:
    """The largest output of another class minus the label's; outputs: logits or probabilities [B, C]."""
    true = jax.nn.one_hot(labels, outputs.shape[-1], dtype=bool)
    return jnp.where(true, -jnp.inf, outputs).max(-1) - jnp.where(true, outputs, 0).sum(-1)


LOGIT_SCORES: dict[str, Callable[[jax.Array, jax.Array], jax.Array]] = {
    "l2_error": l2_error,
    "l1_error": l1_error,
    "max_margin": max_margin,
    "sum_margin": sum_margin,
    "entropy": entropy,
    "least_confidence": least_confidence,
    "margin": margin,
    "loss": loss,
}
