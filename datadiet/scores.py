"""Scores of training examples: one value each; larger means harder, kept first by keep_max.

A score of logits is a function of logits and labels; a score of gradients needs the network.
To add one: write the function, name it in LOGIT_SCORES or GRADIENT_SCORES.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from datadiet.config import UserError
from datadiet.models import Network, Variables
from datadiet.per_example import grad_norms
from datadiet.trajectory import TRAJECTORIES


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
    errors = _errors(logits, labels)
    true = jax.nn.one_hot(labels, logits.shape[-1], dtype=bool)
    others = jnp.where(true, -jnp.inf, errors).max(-1)
    return others - jnp.where(true, errors + 1, 0).sum(-1)


def sum_margin(logits: jax.Array, labels: jax.Array) -> jax.Array:
    """Sum over c != y of (p_c - p_y), in [-(C - 1), 1]. Source: the code of Paul et al. 2021."""
    true = jnp.take_along_axis(jax.nn.softmax(logits), labels[:, None], axis=-1)[:, 0]
    return 1 - logits.shape[-1] * true


def grad_norm(network: Network, variables: Variables, images: jax.Array, labels: jax.Array) -> jax.Array:
    """GraNd, the norm of the loss gradient over all parameters. Source: Paul et al. 2021, definition 2.1."""
    return grad_norms(network, variables, images, labels)


LOGIT_SCORES: dict[str, Callable[[jax.Array, jax.Array], jax.Array]] = {
    "l2_error": l2_error,
    "l1_error": l1_error,
    "max_margin": max_margin,
    "sum_margin": sum_margin,
}
GRADIENT_SCORES: dict[str, Callable[[Network, Variables, jax.Array, jax.Array], jax.Array]] = {
    "grad_norm": grad_norm,
}
SCORES = (*LOGIT_SCORES, *GRADIENT_SCORES)  # of a checkpoint
TRAINING_SCORES = tuple(TRAJECTORIES)  # gathered while training


def check_score(kind: str, known: Sequence[str] = SCORES) -> None:
    """Raises UserError, listing `known`, where `kind` is not among them."""
    if kind not in known:
        hint = " It is gathered while training: use mean_score." if kind in TRAINING_SCORES else ""
        raise UserError(f"type={kind!r}: expected one of {', '.join(known)}.{hint}")


def _as_given(images: jax.Array) -> jax.Array:
    return images


def _rows(array: np.ndarray | jax.Array, first: int, size: int) -> np.ndarray | jax.Array:
    """Rows of an array where it lies: a view on the host, one compiled slice on a device."""
    if isinstance(array, jax.Array):
        return jax.lax.dynamic_slice_in_dim(array, first, size)
    return array[first : first + size]


@lru_cache(maxsize=8)
def _batch_scorer(kinds: tuple[str, ...], network: Network, prepare: Callable) -> Callable:
    """Jitted (variables, images [B, …], labels [B]) -> scores [B] by kind."""

    def score(variables: Variables, images: jax.Array, labels: jax.Array) -> dict[str, jax.Array]:
        images = prepare(images)
        gradient_kinds = [kind for kind in kinds if kind in GRADIENT_SCORES]
        values = {kind: GRADIENT_SCORES[kind](network, variables, images, labels) for kind in gradient_kinds}
        if len(values) < len(kinds):
            logits = network.apply(variables, images)
            values |= {kind: LOGIT_SCORES[kind](logits, labels) for kind in kinds if kind in LOGIT_SCORES}
        return values

    return jax.jit(score)


def compute_many(
    kinds: Sequence[str],
    network: Network,
    variables: Variables,
    images: np.ndarray | jax.Array,
    labels: np.ndarray | jax.Array,
    batch_size: int = 512,
    *,
    prepare: Callable[[jax.Array], jax.Array] = _as_given,
    progress: Callable[[int], Any] = lambda done: None,
) -> dict[str, np.ndarray]:
    """Several scores of the same examples; the logit scores share one forward pass.

    Args:
        kinds: Names in SCORES.
        network, variables: What is scored, in evaluation mode.
        images: [N, H, W, D], what `prepare` maps to normalised float32.
        labels: int [N].
        batch_size: Examples on the device at once; any, for any N. No value depends on it.
        prepare: Applied to each batch inside jit; hashable.
        progress: Called with the number of examples just scored.
    Returns:
        float32 [N] for each kind.
    Raises:
        UserError: unknown kind, batch_size below 1, unequal lengths, or a value that is not finite.
    """
    for kind in kinds:
        check_score(kind)
    if batch_size < 1:
        raise UserError(f"batch_size={batch_size}: expected at least 1.")
    labels = np.asarray(labels, np.int32)
    count = len(labels)
    if len(images) != count:
        raise UserError(f"{len(images)} images but {count} labels.")
    size = min(batch_size, count)
    joined = {kind: np.empty(count, np.float32) for kind in kinds}
    score = _batch_scorer(tuple(kinds), network, prepare)
    waiting: list[tuple[int, int, dict[str, jax.Array]]] = []

    def fetch() -> None:
        start, first, found = waiting.pop()
        for kind, values in found.items():
            joined[kind][first : first + size] = values
        progress(first + size - start)

    for start in range(0, count, size or 1):
        first = min(start, count - size)  # the last batch reaches back, so that all have one shape
        found = score(variables, _rows(images, first, size), _rows(labels, first, size))
        if waiting:  # one batch behind, so that the device computes meanwhile
            fetch()
        waiting.append((start, first, found))
    if waiting:
        fetch()
    for kind, values in joined.items():
        if bad := int((~np.isfinite(values)).sum()):
            raise UserError(f"{kind}: {bad} of {count} values are not finite; the network has diverged at this step.")
    return joined


def compute_scores(
    kind: str, network: Network, variables: Variables, images, labels, batch_size: int = 512
) -> np.ndarray:
    """One score of normalised float32 images, float32 [N]; see `compute_many`."""
    return compute_many([kind], network, variables, images, labels, batch_size)[kind]


def mean_over_runs(values: np.ndarray) -> np.ndarray:
    """Mean of scores [R, N] over runs, float64 [N].

    A NaN (an example that a run did not measure) is left out of its mean; it stays NaN where
    no run measured the example.
    """
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Mean of empty slice", RuntimeWarning)
        return np.nanmean(np.asarray(values, np.float64), axis=0)
