"""Datasets in one canonical order, and the operations on batches of them.

A dataset is one array that never moves or re-sorts; batches are ids into it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from datadiet import cache
from datadiet.config import UserError
from datadiet.sources import Splits, check

PAD = 4  # pixels reflected at each border before a random crop
CHUNK = 1000  # examples taken at once, where a statistic would otherwise need a larger copy of them


@dataclass(frozen=True, eq=False)
class Dataset:
    """A training and a test set. Its arrays may be memory-mapped and read-only.

    train_images, test_images: uint8 [N, H, W, D], or float32 [N, D] for vectors.
    train_labels, test_labels: int32 [N] in 0..C-1.
    example_ids: str [N], the source's own names of the training examples, in canonical order.
    mean, std: float32 [D], of pixels scaled to [0, 1] or of vectors as they are, for normalisation.
    fingerprint: sha256 (hex) over ids, labels and pixels of the training set *as published*,
        so that it stays the same when images are padded for a network.
    class_names: C names, or () where the source has none.
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
    class_names: tuple[str, ...] = ()

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


def fingerprint(example_ids: np.ndarray, labels: np.ndarray, images: np.ndarray) -> str:
    """sha256 (hex) over ids (str [N]), labels (int32 [N]) and pixels (uint8 [N, …]; or float32 vectors)."""
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
    counts = np.zeros((channels, 256), np.int64)
    for start in range(0, len(images), CHUNK):
        for d in range(channels):
            counts[d] += np.bincount(images[start : start + CHUNK, ..., d].ravel(), minlength=256)
    weights = counts / counts.sum(axis=1, keepdims=True)
    mean = weights @ values
    variance = weights @ values**2 - mean**2
    return mean.astype(np.float32), np.sqrt(np.maximum(variance, 1e-12)).astype(np.float32)


def vector_statistics(vectors: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard deviation per feature of float32 [N, D], float32 [D]; 1 for a constant feature."""
    mean = vectors.mean(axis=0, dtype=np.float64)
    variance = np.zeros_like(mean)
    for start in range(0, len(vectors), CHUNK):
        variance += ((vectors[start : start + CHUNK] - mean) ** 2).sum(axis=0)
    std = np.sqrt(variance / len(vectors))
    constant = std <= 1e-6 * np.maximum(1e-30, np.abs(mean))
    return mean.astype(np.float32), np.where(constant, 1.0, std).astype(np.float32)


# --- sources ----------------------------------------------------------------------------------


class Source(NamedTuple):
    """One entry of DATASETS. Each function takes data_dir."""

    load: Callable[[Path | None], Splits]
    num_classes: int | None  # None: found from the labels
    num_examples: Callable[[Path | None], int]  # of the training set, found without loading it
    statistics: tuple[tuple[float, ...], tuple[float, ...]] | None = None  # None: computed
    files: Callable[[Path | None], Sequence[str | Path]] | None = None  # that the content depends on; None: no cache


def lazily(module: str, function: str, *first: str) -> Callable[[Path | None], Any]:
    """A function of datadiet.sources that is imported when it is called."""

    def call(data_dir: Path | None) -> Any:
        return getattr(import_module(f"datadiet.sources.{module}"), function)(*first, data_dir)

    return call


def _tfds(statistics: Any, num_classes: int | None, tfds_name: str, name: str) -> Source:
    load_, count, files = (
        lazily("tfds_folder", function, tfds_name, name)
        for function in ("load_prepared", "count_prepared", "prepared_files")
    )
    return Source(load_, num_classes, count, statistics, files)


def _own(kind: str, module: str, path: str) -> Source:
    load_, count, files = (
        lazily(module, function, path) for function in (f"load_{kind}", f"count_{kind}", f"{kind}_files")
    )
    return Source(load_, None, count, None, files)


# Means and standard deviations as in the original, which takes CIFAR-10's for CIFAR-100 too.
CIFAR_STATISTICS = ((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616))
CINIC_STATISTICS = ((0.47889522, 0.47227842, 0.43047404), (0.24205776, 0.23828046, 0.25874835))

DATASETS: dict[str, Source] = {
    "digits": Source(lazily("embedded", "load_digits"), 10, lambda data_dir: 1438),
    "fashion_mnist": Source(
        lazily("embedded", "load_fashion_mnist"), 10, lazily("embedded", "count_fashion_mnist"),
        None, lazily("embedded", "fashion_mnist_files"),
    ),
    "cifar10": _tfds(CIFAR_STATISTICS, 10, "cifar10", "cifar10"),
    "cifar100": _tfds(CIFAR_STATISTICS, 100, "cifar100", "cifar100"),
    "cinic10": Source(
        lazily("cinic10", "load"), 10, lazily("cinic10", "count"), CINIC_STATISTICS, lazily("cinic10", "files")
    ),
}  # fmt: skip

# What may stand before a name or a path of the user's own.
PREFIXES: dict[str, Callable[[str], Source]] = {
    "tfds/": lambda name: _tfds(None, None, name, f"tfds/{name}"),
    "folder:": partial(_own, "folder", "own"),
    "npz:": partial(_own, "npz", "own"),
    "parquet:": partial(_own, "parquet", "parquet"),
}
KNOWN = (*DATASETS, "tfds/NAME", "folder:PATH", "npz:PATH", "parquet:PATH")


# --- loading ----------------------------------------------------------------------------------


def source(name: str) -> Source:
    """Raises UserError, listing the known names, where `name` is none of KNOWN."""
    if name in DATASETS:
        return DATASETS[name]
    for prefix, make in PREFIXES.items():
        if name.startswith(prefix) and len(name) > len(prefix):
            return make(name[len(prefix) :])
    raise UserError(f"dataset={name!r}: expected one of {', '.join(KNOWN)}.")


def folder(data_dir: str | Path | None) -> Path | None:
    """data_dir as a path, with ~ expanded; None stays None.

    Raises:
        UserError: the home of a user that there is not.
    """
    try:
        return Path(data_dir).expanduser() if data_dir else None
    except RuntimeError as error:
        raise UserError(f"data_dir={data_dir}: expected a folder ({error}).") from None


def count_examples(name: str, data_dir: str | Path | None = None) -> int:
    """Size N of the training set, found without loading it.

    Raises:
        UserError: unknown name, or the data is not there (with the command that repairs it).
    """
    return source(name).num_examples(folder(data_dir))


def build(name: str, data_dir: str | Path | None = None) -> Dataset:
    """A dataset read from its source, past the cache, and checked."""
    entry = source(name)
    splits = entry.load(folder(data_dir))
    num_classes = check(name, splits)
    if entry.num_classes not in (None, num_classes):
        raise UserError(f"{name}: its training labels are of {num_classes} classes; expected {entry.num_classes}.")
    if entry.statistics:
        mean, std = (np.asarray(values, np.float32) for values in entry.statistics)
    else:
        statistics = pixel_statistics if splits.train_images.dtype == np.uint8 else vector_statistics
        mean, std = statistics(splits.train_images)
    digest = fingerprint(splits.example_ids, splits.train_labels, splits.train_images)
    return Dataset(name, *splits[:5], num_classes, mean, std, digest, splits.class_names)


def load(name: str, data_dir: str | Path | None = None) -> Dataset:
    """A dataset by name, in canonical order. Nothing is downloaded.

    The first load of given files writes a cache; later ones memory-map it.

    Args:
        name: A key of DATASETS, tfds/NAME, folder:PATH, npz:PATH or parquet:PATH.
        data_dir: Folder that holds its files; None: where they are usually found. A relative
            PATH is taken from it.
    Raises:
        UserError: unknown name, missing or damaged files (with the command that repairs it),
            or data that cannot be learned from.
    """
    files = source(name).files
    if files is None:
        return build(name, data_dir)
    return Dataset(name, **cache.through(name, partial(files, folder(data_dir)), partial(_record, name, data_dir)))


def _record(name: str, data_dir: str | Path | None) -> dict[str, Any]:
    """A freshly built dataset as the values that the cache keeps."""
    record = dict(vars(build(name, data_dir)))
    del record["name"]
    return record


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
    """uint8 [..., D] -> float32 [..., D]: (x / 255 - mean) / std; floats (vectors) are not divided by 255."""
    values = images.astype(jnp.float32)
    return ((values / 255.0 if images.dtype == jnp.uint8 else values) - mean) / std


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
