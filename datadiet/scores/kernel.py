"""The empirical neural tangent kernel of a network on a few examples, and how far it moves while training."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from datadiet.models.networks import Network, Variables

BLOCK_BYTES = 2**28  # of gradients on the device at once


@partial(jax.jit, static_argnums=0)
def _block(network: Network, variables: Variables, one: jax.Array, other: jax.Array) -> jax.Array:
    """Products of the gradients of the logits of two blocks of examples, float32 [B, C, B, C]."""

    def logits(params, image):
        return network.apply({**variables, "params": params}, image[None])[0]

    gradients = jax.vmap(jax.jacrev(logits), (None, 0))  # leaves [B, C, …]
    pairs = zip(*(jax.tree.leaves(gradients(variables["params"], images)) for images in (one, other)))
    flat = ((a.reshape(*a.shape[:2], -1), b.reshape(*b.shape[:2], -1)) for a, b in pairs)
    return sum((jnp.einsum("icp,jdp->icjd", a, b, precision="highest") for a, b in flat), jnp.float32(0))


def tangent_kernel(
    network: Network, variables: Variables, images: jax.Array, progress: Callable[[int], object] = lambda done: None
) -> np.ndarray:
    """K[(i, c), (j, d)] = <gradient of logit c of x_i, gradient of logit d of x_j> over all parameters.

    Evaluation mode, so that the examples of a batch do not mix. It is computed in blocks: as many gradients are held
    as fit into BLOCK_BYTES, at least those of two examples.

    Args:
        images: [m, H, W, D], normalised float32.
        progress: Called with the number of examples whose rows are done.
    Returns:
        float64 [m C, m C], symmetric and positive semidefinite.
    Source: Jacot et al. 2018.
    """
    count, classes = len(images), network.num_classes
    size = sum(leaf.size for leaf in jax.tree.leaves(variables["params"]))
    rows = int(np.clip(BLOCK_BYTES // (8 * classes * size), 1, count))
    kernel = np.empty((count, classes, count, classes))
    for start in range(0, count, rows):
        first = min(start, count - rows)  # the last block reaches back, so that all have one shape
        for other in range(0, start + 1, rows):
            second = min(other, count - rows)
            found = np.asarray(_block(network, variables, images[first : first + rows], images[second : second + rows]))
            kernel[first : first + rows, :, second : second + rows] = found
            kernel[second : second + rows, :, first : first + rows] = found.transpose(2, 3, 0, 1)
        progress(min(start + rows, count) - start)
    return kernel.reshape(count * classes, count * classes)


def kernel_distance(one: np.ndarray, other: np.ndarray) -> float:
    """1 - <K, K'> / (|K| |K'|), by Frobenius; in [0, 1] for kernels: 0 where one is a multiple of the other.

    Source: Fort et al. 2020. NaN where a kernel is zero.
    """
    norms = np.linalg.norm(one) * np.linalg.norm(other)
    return float(1 - (one * other).sum() / norms) if norms else float("nan")
