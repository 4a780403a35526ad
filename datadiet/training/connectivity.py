"""Networks on the line between two, and the error barrier there."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial

import jax
import numpy as np

from datadiet.models.networks import Network, Variables


def between(one: Variables, other: Variables, alpha: float) -> Variables:
    """(1 - alpha) one + alpha other, of every parameter and statistic."""
    return jax.tree.map(lambda a, b: (1 - alpha) * a + alpha * b, one, other)


@partial(jax.jit, static_argnums=(0, 1))
def _statistics(network: Network, prepare: Callable, variables: Variables, images: jax.Array) -> Variables:
    return network.apply_training(variables, prepare(images))[1]


def with_own_statistics(
    network: Network, variables: Variables, batches: Iterable[np.ndarray], prepare: Callable
) -> Variables:
    """The same weights with the statistics of batch norm that training keeps of these batches, images uint8 [B, …].

    Between two networks the activations vary less than in either, so that statistics between theirs are wrong (Jordan
    et al. 2023). Networks without batch norm stay as they are.
    """
    if not jax.tree.leaves(variables["batch_stats"]):
        return variables
    for images in batches:
        variables = {**variables, "batch_stats": _statistics(network, prepare, variables, images)}
    return variables


@partial(jax.jit, static_argnums=(0, 1))
def _wrong(network: Network, prepare: Callable, variables: Variables, images: jax.Array, labels: jax.Array):
    return network.apply(variables, prepare(images)).argmax(-1) != labels


def wrong(
    network: Network, variables: Variables, images: np.ndarray, labels: np.ndarray, prepare: Callable, size: int = 512
) -> np.ndarray:
    """Whether each example is classified wrongly in evaluation mode, bool [n]; images uint8 [n, H, W, D]."""
    count = len(labels)
    size, found = min(size, count), np.empty(count, bool)
    for start in range(0, count, size):
        part = slice(min(start, count - size), min(start, count - size) + size)  # all of one shape
        found[part] = _wrong(network, prepare, variables, images[part], labels[part])
    return found


def barrier(errors: np.ndarray) -> np.ndarray:
    """The largest error on the line less the mean of the errors at its ends.

    Args:
        errors: [A, …], at A points from one end to the other.
    Returns:
        [...], 0 or more where an end is the largest; negative where all between is better than that mean.
    Source: Frankle et al. 2020.
    """
    return errors.max(0) - (errors[0] + errors[-1]) / 2
