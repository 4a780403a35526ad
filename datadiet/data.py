"""Datasets in one canonical order, and the operations on batches of them.

A dataset is one uint8 array that never moves or re-sorts; batches are ids into it.
"""

from __future__ import annotations

import gzip
import hashlib
import struct
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from datadiet.config import UserError

PAD = 4  # pixels reflected at each border before a random crop


@dataclass(frozen=True, eq=False)
class Dataset:
    """A training and a test set.

    train_images, test_images: uint8 [N, H, W, D]; train_labels, test_labels: int32 [N] in 0..C-1.
    example_ids: str [N], the source's own names of the training examples, in canonical order.
    mean, std: float32 [D], of pixels scaled to [0, 1], for normalisation.
    fingerprint: sha256 (hex) over ids, labels and pixels of the training set *as published*,
        so that it stays the same when images are padded for a network.
    """

    name: str
    train_images: np.ndarray
    train_labels: np.ndarray
    test_images: np.ndarray
    test_labels: np.ndarray
    example_ids: np.ndarray
    num_classes: int
    mean: np.ndarray
    std: np.ndarray
    fingerprint: str

    @property
    def num_examples(self) -> int:
        return len(self.train_labels)

    @property
    def image_shape(self) -> tuple[int, ...]:
        return self.train_images.shape[1:]

    def identity(self) -> dict[str, object]:
        """What a score file says of its data."""
        ids = [str(i) for i in self.example_ids]
        return {"dataset": self.name, "fingerprint": self.fingerprint, "example_ids": ids}

    def subset_digest(self, ids: np.ndarray) -> str:
        """sha256 (hex) of a subset of the training examples, whatever the order of `ids` [M]."""
        return hashlib.sha256(self.fingerprint.encode() + np.sort(ids).astype("<i4").tobytes()).hexdigest()


class Splits(NamedTuple):
    """What a loader returns: arrays as published, and the names of the training examples."""

    train_images: np.ndarray
    train_labels: np.ndarray
    test_images: np.ndarray
    test_labels: np.ndarray
    example_ids: np.ndarray


def fingerprint(example_ids: np.ndarray, labels: np.ndarray, images: np.ndarray) -> str:
    """sha256 (hex) over ids (str [N]), labels (int32 [N]) and pixels (uint8 [N, …])."""
    digest = hashlib.sha256()
    digest.update("\n".join(map(str, example_ids)).encode())
    digest.update(np.ascontiguousarray(labels, "<i4").tobytes())
    digest.update(repr(images.shape).encode())
    digest.update(np.ascontiguousarray(images))
    return digest.hexdigest()


def pixel_statistics(images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard deviation per channel of uint8 images scaled to [0, 1], float32 [D].

    Exact, from the histogram of values, without a float copy of the images.
    """
    values = np.arange(256) / 255.0
    channels = images.shape[-1]
    counts = np.stack([np.bincount(images[..., d].ravel(), minlength=256) for d in range(channels)])
    weights = counts / counts.sum(axis=1, keepdims=True)
    mean = weights @ values
    variance = weights @ values**2 - mean**2
    return mean.astype(np.float32), np.sqrt(np.maximum(variance, 1e-12)).astype(np.float32)


# --- sources ----------------------------------------------------------------------------------


def load_digits(data_dir: Path | None) -> Splits:
    """scikit-learn's 1,797 8x8 digits; every fifth example is the test set."""
    from sklearn.datasets import load_digits as sklearn_digits

    bunch = sklearn_digits()
    images = np.round(bunch.images * (255 / 16)).astype(np.uint8)[..., None]
    labels = bunch.target.astype(np.int32)
    ids = np.array([f"digits_{i:04d}" for i in range(len(labels))])
    test = np.arange(len(labels)) % 5 == 4
    return Splits(images[~test], labels[~test], images[test], labels[test], ids[~test])


DEBIAN_FASHION_MNIST = Path("/usr/share/datasets/fashion-mnist")
IDX_FILES = ("train-images-idx3-ubyte", "train-labels-idx1-ubyte", "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte")


def _idx_file(data_dir: Path | None, name: str) -> Path:
    folder = data_dir or DEBIAN_FASHION_MNIST
    for path in (folder / name, folder / f"{name}.gz"):
        if path.is_file():
            return path
    raise UserError(
        f"fashion_mnist: no file {folder / name}[.gz]. Expected a folder with the four idx files of Fashion-MNIST: "
        "pass -P data_dir=FOLDER, or install them with: apt-get install dataset-fashion-mnist"
    )


def read_idx(path: Path, *, header_only: bool = False) -> np.ndarray | tuple[int, ...]:
    """A uint8 array from an idx file (http://yann.lecun.com/exdb/mnist), gzipped or not.

    With header_only, its shape.

    Raises:
        UserError: not an idx file of unsigned bytes, or its length belies its header.
    """
    try:
        with (gzip.open if path.suffix == ".gz" else open)(path, "rb") as file:
            zero, kind, rank = struct.unpack(">HBB", file.read(4))
            shape = struct.unpack(f">{rank}I", file.read(4 * rank))
            if (zero, kind) != (0, 8):
                raise UserError(
                    f"{path}: not an idx file of unsigned bytes (its magic number is {zero:#x}, {kind:#x})."
                )
            if header_only:
                return shape
            values = np.frombuffer(file.read(), np.uint8)
    except (struct.error, EOFError, gzip.BadGzipFile, OSError) as error:
        raise UserError(f"{path}: cannot be read as an idx file ({error}); fetch the file again.") from error
    if values.size != np.prod(shape):
        raise UserError(f"{path}: {values.size} bytes of data where its header says {shape}; fetch the file again.")
    return values.reshape(shape)


def load_fashion_mnist(data_dir: Path | None) -> Splits:
    """Fashion-MNIST (Xiao et al. 2017) from its four idx files, in file order."""
    arrays = [read_idx(_idx_file(data_dir, name)) for name in IDX_FILES]
    train_images, train_labels, test_images, test_labels = arrays
    for images, labels, which in ((train_images, train_labels, "train"), (test_images, test_labels, "test")):
        if len(images) != len(labels):
            raise UserError(f"fashion_mnist: {len(images)} {which} images but {len(labels)} labels.")
    ids = np.array([f"train_{i:05d}" for i in range(len(train_labels))])
    return Splits(
        train_images[..., None], train_labels.astype(np.int32),
        test_images[..., None], test_labels.astype(np.int32), ids,
    )  # fmt: skip


class Source(NamedTuple):
    """One entry of DATASETS."""

    load: Callable[[Path | None], Splits]
    num_classes: int
    num_examples: Callable[[Path | None], int]  # of the training set, found without loading it
    statistics: tuple[tuple[float, ...], tuple[float, ...]] | None = None  # None: computed


DATASETS: dict[str, Source] = {
    "digits": Source(load_digits, 10, lambda data_dir: 1438),
    "fashion_mnist": Source(
        load_fashion_mnist, 10, lambda data_dir: read_idx(_idx_file(data_dir, IDX_FILES[1]), header_only=True)[0]
    ),
}


# --- loading ----------------------------------------------------------------------------------


def source(name: str) -> Source:
    """Raises UserError, listing the known names, where `name` is not in DATASETS."""
    if name not in DATASETS:
        raise UserError(f"dataset={name!r}: expected one of {', '.join(DATASETS)}.")
    return DATASETS[name]


def count_examples(name: str, data_dir: str | Path | None = None) -> int:
    """Size N of the training set, found without loading it."""
    return source(name).num_examples(Path(data_dir) if data_dir else None)


def load(name: str, data_dir: str | Path | None = None) -> Dataset:
    """A dataset by name, in canonical order. Nothing is downloaded.

    Args:
        name: A key of DATASETS.
        data_dir: Folder that holds its files; None: where they are usually found.
    Raises:
        UserError: unknown name, missing or damaged files (with the command that repairs it).
    """
    entry = source(name)
    splits = entry.load(Path(data_dir) if data_dir else None)
    if entry.statistics:
        mean, std = (np.asarray(values, np.float32) for values in entry.statistics)
    else:
        mean, std = pixel_statistics(splits.train_images)
    digest = fingerprint(splits.example_ids, splits.train_labels, splits.train_images)
    return Dataset(name, *splits, entry.num_classes, mean, std, digest)


load_dataset = load  # its name in the package's namespace, where `load` would say too little


def fit_images(dataset: Dataset, shape: tuple[int, ...]) -> Dataset:
    """The same dataset with images zero-padded (centred) and channels repeated to `shape`."""
    if tuple(shape) == dataset.image_shape:
        return dataset
    got = dataset.image_shape
    repeats = shape[2] // got[2]
    if repeats * got[2] != shape[2]:
        raise UserError(
            f"{dataset.name}: images of {got[2]} channels cannot be repeated to the {shape[2]} the model takes."
        )
    margins = [(0, 0)] + [((want - have) // 2, -((have - want) // 2)) for have, want in zip(got[:2], shape[:2])]

    def fit(images: np.ndarray) -> np.ndarray:
        return np.repeat(np.pad(images, [*margins, (0, 0)]), repeats, axis=-1)

    return replace(
        dataset,
        train_images=fit(dataset.train_images),
        test_images=fit(dataset.test_images),
        mean=np.repeat(dataset.mean, repeats),
        std=np.repeat(dataset.std, repeats),
    )


# --- batches, on device -----------------------------------------------------------------------


def normalize(images: jax.Array, mean: jax.Array, std: jax.Array) -> jax.Array:
    """uint8 [..., D] -> float32 [..., D]: (x / 255 - mean) / std."""
    return (images.astype(jnp.float32) / 255.0 - mean) / std


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


def augment(key: jax.Array, images: jax.Array, ids: jax.Array) -> jax.Array:
    """Reflect-pad by 4, random crop and horizontal flip, drawn per image.

    Written as one gather from the whole dataset: a crop of a reflect-padded image is the
    image at reflected row and column indices, a flip is the reversed column index.

    Args:
        key: JAX random key of this step.
        images: The dataset, uint8 [N, H, W, D].
        ids: int32 [B].
    Returns:
        uint8 [B, H, W, D].
    """
    height, width = images.shape[1:3]
    size = ids.shape[0]
    key_row, key_column, key_flip = jax.random.split(key, 3)
    rows = jnp.arange(height) + jax.random.randint(key_row, (size, 1), -PAD, PAD + 1)
    columns = jnp.arange(width) + jax.random.randint(key_column, (size, 1), -PAD, PAD + 1)
    columns = jnp.where(jax.random.bernoulli(key_flip, shape=(size, 1)), columns[:, ::-1], columns)

    def reflect(index: jax.Array, length: int) -> jax.Array:
        index = jnp.abs(index)
        return jnp.where(index >= length, 2 * (length - 1) - index, index)

    return images[ids[:, None, None], reflect(rows, height)[:, :, None], reflect(columns, width)[:, None, :]]


def epoch_order(seed: int, epoch: int, num_kept: int) -> np.ndarray:
    """Permutation of 0..M-1 for one epoch, int64 [M]: a function of (seed, epoch) alone.

    RandomState, because NumPy has frozen its stream.
    """
    return np.random.RandomState([seed, epoch]).permutation(num_kept)


def batch_ids(kept: np.ndarray, batch_size: int, seed: int, first_step: int, num_steps: int) -> np.ndarray:
    """Ids of the batches of steps first_step … first_step + num_steps - 1 (counted from 1).

    Each epoch of the kept set is freshly shuffled and its last incomplete batch dropped, as
    in the original; a kept set smaller than a batch is one batch. Batch t depends on t alone.

    Args:
        kept: ids of the training examples, int32 [M].
    Returns:
        int32 [num_steps, min(batch_size, M)].
    """
    size = min(batch_size, len(kept))
    per_epoch = len(kept) // size
    begin, end = first_step - 1, first_step - 1 + num_steps
    epochs = range(begin // per_epoch, -(-end // per_epoch))
    orders = [epoch_order(seed, e, len(kept))[: per_epoch * size].reshape(per_epoch, size) for e in epochs]
    skip = begin - epochs.start * per_epoch
    return kept[np.concatenate(orders)[skip : skip + num_steps]].astype(np.int32)


def randomize_labels(labels: np.ndarray, fraction: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Permute the labels of a random fraction of the examples among themselves.

    Args:
        labels: int32 [N].
        fraction: Of N, 0 to 1; int(N * fraction) examples are drawn.
        seed: Of NumPy's RandomState, as in the original.
    Returns:
        Labels int32 [N] in unchanged order, and the ids whose label may differ, sorted int32.
    """
    if not 0 <= fraction <= 1:
        raise UserError(f"random_label_fraction={fraction}: expected a fraction from 0 to 1.")
    random = np.random.RandomState(seed)
    chosen = random.choice(len(labels), int(len(labels) * fraction), replace=False)
    noisy = np.array(labels)
    noisy[chosen] = noisy[random.permutation(chosen)]
    return noisy, np.sort(chosen).astype(np.int32)
