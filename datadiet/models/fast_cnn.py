"""fast_cnn: a few wide convolutions behind a first layer that whitens patches of the training data."""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from datadiet.models.conv import NHWC, conv_general_dilated
from datadiet.models.networks import BatchNorm, Conv, Variables

PATCH = 2  # pixels, height and width, of what the first layer sees
CHUNK = 500  # images whose patches are held at once
LEAST_VARIANCE = 5e-4  # added to that of every direction, so that none is blown up that the data hardly has
POOLED = 9.0  # the features are divided by it, so that the last layer learns at the pace of the others

gelu = partial(nn.gelu, approximate=False)
draw = nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform")  # ±1/sqrt(fan_in)


def whitening_kernel(images: np.ndarray, mean: np.ndarray, std: np.ndarray) -> np.ndarray:
    """Directions in which patches of normalised images are uncorrelated with variance 1, those of largest variance
    first, and then their negatives.

    Args:
        images: uint8 [K, H, W, D].
        mean, std: float [D], those that images are normalised by, as fractions of 255.
    Returns:
        float32 [2, 2, D, 8 D].

    Sums are of whole numbers below 2^53, so that no order of adding and no number of threads changes a bit of them.
    """
    depth = images.shape[3]
    length, count = PATCH * PATCH * depth, 0
    sums, products = np.zeros(length), np.zeros((length, length))
    for first in range(0, len(images), CHUNK):
        some = np.asarray(images[first : first + CHUNK]).astype(np.float64)
        height, width = (side - PATCH + 1 for side in some.shape[1:3])
        shifts = [(row, column) for row in range(PATCH) for column in range(PATCH)]
        seen = np.concatenate([some[:, r : r + height, c : c + width] for r, c in shifts], axis=-1).reshape(-1, length)
        sums, products, count = sums + seen.sum(0), products + seen.T @ seen, count + len(seen)
    scale = np.tile(1 / (255 * np.asarray(std, np.float64)), PATCH * PATCH)
    covariance = np.outer(scale, scale) * (products / count - np.outer(sums, sums) / count**2)
    variances, directions = np.linalg.eigh(covariance)
    directions = directions[:, ::-1] / np.sqrt(np.maximum(variances[::-1], 0) + LEAST_VARIANCE)
    largest = directions[np.abs(directions).argmax(0), np.arange(length)]
    directions = directions * np.sign(largest)  # which of both signs comes first is no matter of the solver
    kernel = np.concatenate([directions, -directions], axis=1)
    return kernel.reshape(PATCH, PATCH, depth, 2 * length).astype(np.float32)


def _unwhitened(depth: int) -> jax.Array:
    """The kernel before data is known: every pixel of a patch, and its negative."""
    directions = jnp.eye(PATCH * PATCH * depth)
    return jnp.concatenate([directions, -directions], axis=1).reshape(PATCH, PATCH, depth, -1)


def partial_identity(key: jax.Array, shape: tuple[int, ...], dtype: Any = jnp.float32) -> jax.Array:
    """Kernel [k, l, I, O] whose first min(I, O) filters pass their input on; the others are drawn, ±1/sqrt(fan_in)."""
    same = min(shape[2:])
    kernel = draw(key, shape, dtype).at[..., :same].set(0)
    return kernel.at[shape[0] // 2, shape[1] // 2, :same, :same].set(jnp.eye(same, dtype=dtype))


class Shift(nn.Module):
    """Adds one learned number to each channel, which begins at 0."""

    dtype: Any

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        shift = self.param("shift", nn.initializers.zeros, x.shape[-1:])
        return x + shift.astype(self.dtype)


class Whitening(nn.Module):
    """Patches by `whitening_kernel`. It is no parameter: nothing trains it, and GraNd does not count it."""

    dtype: Any

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        kernel = self.variable("batch_stats", "kernel", _unwhitened, x.shape[-1]).value.astype(self.dtype)
        return conv_general_dilated(x.astype(self.dtype), kernel, (1, 1), "VALID", dimension_numbers=NHWC)


def halve(x: jax.Array) -> jax.Array:
    """The largest of each two by two positions; a last odd row or column is left out: [B, H, W, C] -> [B, h, w, C].

    By slices: XLA's own window takes several times as long on a CPU, its gradient above all.
    """
    height, width = (side // 2 * 2 for side in x.shape[1:3])
    corners = [x[:, row:height:2, column:width:2] for row in (0, 1) for column in (0, 1)]
    return jnp.maximum(jnp.maximum(corners[0], corners[1]), jnp.maximum(corners[2], corners[3]))


class FastCNN(nn.Module):
    """Whitened patches; three times two 3x3 convolutions, each with batch norm and GELU; the largest of all positions.

    Source: Jordan 2024 (94 % on CIFAR-10 in 3.29 seconds, arXiv 2404.00498) and what it builds on: batch norm without
    scales, which forgets 0.4 of its averages in a step; convolutions that begin as identities; pooling before the
    batch norm. Otherwise than there, the shift of the whitened patches is trained to the end, batch norm's epsilon is
    that of the other models, and the last layer has a bias.
    """

    num_classes: int
    width: int
    dtype: Any

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        norm = partial(BatchNorm, momentum=0.6, use_scale=False, use_running_average=not train, dtype=self.dtype)
        conv = partial(Conv, kernel_size=(3, 3), kernel_init=partial_identity, dtype=self.dtype)
        x = gelu(Shift(self.dtype, name="shift")(Whitening(self.dtype, name="whitening")(x)))
        for channels in (self.width, 4 * self.width, 4 * self.width):
            x = gelu(norm()(halve(conv(channels)(x))))
            x = gelu(norm()(conv(channels)(x)))
        features = x.astype(jnp.float32).max((1, 2)) / POOLED
        return nn.Dense(self.num_classes, kernel_init=draw)(features)

    def begun(self, stats: Variables, images: np.ndarray, mean: np.ndarray, std: np.ndarray) -> Variables:
        """batch_stats with the whitening of training images; see `Network.begun`."""
        kernel = jnp.asarray(whitening_kernel(images, mean, std))
        return {**stats, "whitening": {"kernel": kernel}}
