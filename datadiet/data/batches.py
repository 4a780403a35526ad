"""Images on device: fitted to a network, normalised, augmented; and labels permuted among themselves."""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass, replace
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np

from datadiet.data.dataset import Dataset
from datadiet.errors import UserError

USUAL = 20  # normalised pixels seldom reach 3, those of 0 to 255 nearly always more


class Fitted:
    """Images zero-padded (centred) and their channels repeated when they are taken: never all of them, unless all are
    asked for. As an array [N, H, W, D] of NumPy, as far as it goes.

    Args:
        images: [N, H', W', D'].
        shape: (H, W, D).
    """

    def __init__(self, images: np.ndarray, shape: tuple[int, ...]) -> None:
        self.base, self.dtype, self.shape = images, images.dtype, (len(images), *shape)

    @property
    def ndim(self) -> int:
        return len(self.shape)

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize

    def __len__(self) -> int:
        return len(self.base)

    def __getitem__(self, which: slice | np.ndarray) -> np.ndarray:
        return _fitted(self.base[which], self.shape[1:], np)

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return np.asarray(self[:], dtype)


def as_read(images: Any) -> np.ndarray:
    """Images as they were before `fit_images`."""
    return images.base if isinstance(images, Fitted) else images


def fitted(images: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """A batch [B, H', W', D'] as `Fitted` has it, [B, H, W, D]; as it is where it has that shape."""
    return images if images.shape[1:] == tuple(shape) else _fitted(images, shape, jnp)


def _fitted(images: Any, shape: tuple[int, ...], numpy: Any) -> Any:
    """Images [B, H', W', D'], centred in zeros and their channels repeated, by NumPy or JAX: [B, H, W, D]."""
    got = images.shape[1:]
    if len(got) != len(shape) or any(have > want for have, want in zip(got, shape)) or shape[2] % got[2]:
        raise UserError(f"images are {list(got)}; the network takes {list(shape)}, and they are only padded.")
    margins = [((want - have) // 2, -((have - want) // 2)) for have, want in zip(images.shape[1:3], shape[:2])]
    padded = numpy.pad(images, [(0, 0), *margins, (0, 0)])
    return numpy.repeat(padded, shape[2] // images.shape[3], axis=-1)


def fit_images(dataset: Dataset, shape: tuple[int, ...]) -> Dataset:
    """The same dataset with images zero-padded (centred) and channels repeated to `shape`, when they are taken."""
    if tuple(shape) == dataset.image_shape:
        return dataset
    got = dataset.image_shape
    repeats = shape[2] // got[2]
    if repeats * got[2] != shape[2]:
        raise UserError(
            f"{dataset.name}: images of {got[2]} channels cannot be repeated to the {shape[2]} the model takes."
        )

    def fit(images: np.ndarray) -> np.ndarray:
        return cast(np.ndarray, Fitted(images, tuple(shape)))

    return replace(
        dataset,
        train_images=fit(dataset.train_images),
        test_images=fit(dataset.test_images),
        mean=np.repeat(dataset.mean, repeats),
        std=np.repeat(dataset.std, repeats),
    )


def normalize(images: jax.Array, mean: jax.Array, std: jax.Array) -> jax.Array:
    """uint8 [..., D] -> float32 [..., D]: (x / 255 - mean) / std; floats (vectors) are not divided by 255."""
    values = images.astype(jnp.float32)
    return ((values / 255.0 if images.dtype == jnp.uint8 else values) - mean) / std


def expect_normalised(images: np.ndarray | jax.Array, shape: tuple[int, ...]) -> None:
    """Refuse images that are whole numbers, and warn of such as no normalisation gives, or of another shape than in
    training: networks take neither.

    Args:
        shape: That of the network's images.

    Raises:
        UserError: they are not of a floating type.
    """
    images = images if isinstance(images, jax.Array) else np.asarray(images)
    expected = "normalised float32, (x / 255 - mean) / std as in training, mostly from -3 to 3"
    if not jnp.issubdtype(images.dtype, jnp.floating):
        raise UserError(f"images are {images.dtype} {list(images.shape)}; expected {expected}.")
    if images.shape[1:] != tuple(shape):
        warnings.warn(
            f"images are {list(images.shape[1:])}; the network takes {list(shape)}. In training they are centred in "
            "zeros, and their channels repeated, before they are normalised.", stacklevel=3,
        )  # fmt: skip
    if images.ndim > 2 and images.size:  # vectors may have any range
        low, high = float(images.min()), float(images.max())
        if max(-low, high) > USUAL:
            warnings.warn(f"images are from {low:g} to {high:g}; expected {expected}.", stacklevel=3)


@dataclass(frozen=True)
class Normalizer:
    """`normalize` with the constants of a dataset; hashable, so that it can be a static argument of jit."""

    mean: tuple[float, ...]
    std: tuple[float, ...]

    @classmethod
    def of(cls, dataset: Dataset) -> Normalizer:
        return cls(tuple(dataset.mean.tolist()), tuple(dataset.std.tolist()))

    def __call__(self, images: jax.Array) -> jax.Array:
        return normalize(images, jnp.array(self.mean), jnp.array(self.std))


def augment(
    key: jax.Array, images: jax.Array, ids: jax.Array, pad: int = 4, flipped: jax.Array | None = None
) -> jax.Array:
    """Reflect-pad, random crop and horizontal flip, drawn per image.

    Written as one gather from the whole dataset: a crop of a reflect-padded image is the
    image at reflected row and column indices, a flip is the reversed column index.

    Args:
        key: JAX random key of this step.
        images: The dataset, uint8 [N, H, W, D].
        ids: int32 [B].
        pad: Pixels reflected at each border before the crop, fewer than the image has.
        flipped: Which of them are flipped, bool [B]; None: each with probability 1/2.
    Returns:
        uint8 [B, H, W, D].
    """
    height, width = images.shape[1:3]
    size = ids.shape[0]
    key_row, key_column, key_flip = jax.random.split(key, 3)
    rows = jnp.arange(height) + jax.random.randint(key_row, (size, 1), -pad, pad + 1)
    columns = jnp.arange(width) + jax.random.randint(key_column, (size, 1), -pad, pad + 1)
    flips = jax.random.bernoulli(key_flip, shape=(size, 1)) if flipped is None else flipped[:, None]
    columns = jnp.where(flips, columns[:, ::-1], columns)

    def reflect(index: jax.Array, length: int) -> jax.Array:
        index = jnp.abs(index)
        return jnp.where(index >= length, 2 * (length - 1) - index, index)

    return images[ids[:, None, None], reflect(rows, height)[:, :, None], reflect(columns, width)[:, None, :]]


def alternating_flips(key: jax.Array, ids: jax.Array, epoch: jax.Array) -> jax.Array:
    """Whether examples are flipped in an epoch, bool [B]: a function of key, id and epoch, drawn for epoch 0 and turned
    about in each that follows.

    Args:
        key: JAX random key of the run.
        ids: int32 [B].
        epoch: int32 [], from 0.

    Source: Jordan 2024 (arXiv 2404.00498), alternating flip.
    """
    first = jax.vmap(lambda one: jax.random.bernoulli(jax.random.fold_in(key, one)))(ids)
    return first ^ (epoch % 2 == 1)
