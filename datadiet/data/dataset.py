"""Datasets in one canonical order, and the operations on batches of them.

A dataset is one array that never moves or re-sorts; batches are ids into it.
"""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from datadiet import commands, notebook
from datadiet.errors import UserError

CHUNK = 1000  # examples taken at once, where a statistic would otherwise need a larger copy of them
VALUES = 2**22  # and at most so many pixels
SHOWN, EACH = 10, 3  # classes that a notebook shows, and images of each


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
    notes: What was decided or found when it was read, in sentences.
    skipped: Names of images that cannot be read and were left out.
    test_ids: str [M], names of the test examples by the source, else their numbers; None: kept by an earlier version.
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
    notes: tuple[str, ...] = ()
    skipped: tuple[str, ...] = ()
    test_ids: np.ndarray | None = None

    def __repr__(self) -> str:
        """One line, without the arrays."""
        return f"Dataset({', '.join(f'{name}: {value}' for name, value in self._facts().items())})"

    def _repr_html_(self) -> str:
        """In a notebook, with some images of each class."""
        images = self.train_images
        if images.dtype != np.uint8 or images.ndim != 4:
            return notebook.facts(self.name, self._facts())
        ids = [i for c in range(min(self.num_classes, SHOWN)) for i in np.flatnonzero(self.train_labels == c)[:EACH]]
        words = [f"{self.example_ids[i]}: {self.classes[self.train_labels[i]]}" for i in ids]
        return notebook.facts(self.name, self._facts(), notebook.thumbnails(np.asarray(images[ids]), words))

    def _facts(self) -> dict[str, object]:
        more = ", …" if self.num_classes > SHOWN else ""
        return {
            "name": self.name, "training": f"{self.num_examples:,}", "test": f"{len(self.test_labels):,}",
            "shape": "x".join(map(str, self.image_shape)),
            "classes": f"{self.num_classes} ({', '.join(self.classes[:SHOWN])}{more})",
            "fingerprint": self.fingerprint[:12],
        }  # fmt: skip

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

    @property
    def test_names(self) -> np.ndarray:
        """Names of the test examples, else their numbers, str [M]."""
        return numbered("test", len(self.test_labels)) if self.test_ids is None else self.test_ids

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes, else their numbers."""
        return self.class_names or tuple(map(str, range(self.num_classes)))

    def subset_digest(self, ids: np.ndarray) -> str:
        """sha256 (hex) of a subset of the training examples, whatever the order of `ids` [M]."""
        return hashlib.sha256(self.fingerprint.encode() + np.sort(ids).astype("<i4").tobytes()).hexdigest()


def numbered(split: str, count: int) -> np.ndarray:
    """Names of examples that have none, str [count]: test_000000, …"""
    return np.array([f"{split}_{i:06d}" for i in range(count)])


def fingerprint(example_ids: np.ndarray, labels: np.ndarray, images: np.ndarray) -> str:
    """sha256 (hex) over ids (str [N]), labels (int32 [N]) and pixels (uint8 [N, …]; or float32 vectors)."""
    digest = hashlib.sha256()
    digest.update("\n".join(map(str, example_ids)).encode())
    digest.update(np.ascontiguousarray(labels, "<i4").tobytes())
    digest.update(repr(images.shape).encode())
    digest.update(np.ascontiguousarray(images).data)
    return digest.hexdigest()


def pixel_statistics(images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard deviation per channel of uint8 images scaled to [0, 1], float32 [D].

    Exact, from the histogram of values, without a float copy of the images.
    """
    values = np.arange(256) / 255.0
    channels = images.shape[-1]
    counts = np.zeros((channels, 256), np.int64)
    step = max(1, min(CHUNK, VALUES // max(1, math.prod(images.shape[1:]))))
    for start in range(0, len(images), step):
        for d in range(channels):
            counts[d] += np.bincount(images[start : start + step, ..., d].ravel(), minlength=256)
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


class Splits(NamedTuple):
    """What a source returns: arrays as published, and the names of the training examples.

    train_images, test_images: uint8 [N, H, W, D], or float32 [N, D] for vectors.
    train_labels, test_labels: int32 [N]. example_ids: str [N]. class_names: C names, or ().
    test_ids: str [M], or None where the source has no names for them. skipped: Names of what could not be read.
    """

    train_images: np.ndarray
    train_labels: np.ndarray
    test_images: np.ndarray
    test_labels: np.ndarray
    example_ids: np.ndarray
    class_names: tuple[str, ...] = ()
    test_ids: np.ndarray | None = None
    skipped: tuple[str, ...] = ()


def check_splits(name: str, splits: Splits) -> int:
    """Refuse data that nothing sensible can be learned from.

    Returns:
        C, the number of classes.
    Raises:
        UserError: no examples or no test split, unequal lengths, images of different sizes, or of one colour alone,
            NaN or infinite features, one class, labels other than 0..C-1, a class only in test.
    """
    for which, images, labels, ids in (
        ("train", splits.train_images, splits.train_labels, splits.example_ids),
        ("test", splits.test_images, splits.test_labels, splits.test_ids),
    ):
        check_lengths(name, which, images, labels, ids)
        if not len(images):
            raise UserError(f"{name}: the {which} split is empty; a data diet needs a training and a test split.")
        if not images[0].size:
            raise UserError(f"{name}: {which} examples of shape {images.shape[1:]}; expected some numbers in each.")
        if images.dtype == np.uint8 and np.ptp(images[0]) == 0 and images.min() == images.max():
            raise UserError(
                f"{name}: every pixel of the {len(images)} {which} images is {images.flat[0]}; expected images that "
                "differ. Were they drawn in a channel that is not read?"
            )
        if images.dtype == np.float32 and not np.isfinite(images).all():
            rows = np.flatnonzero(~np.isfinite(images).all(axis=tuple(range(1, images.ndim))))
            raise UserError(
                f"{name}: NaN or infinite features in {len(rows)} {which} examples (the first: {rows[0]}); "
                "expected finite numbers in every row."
            )
    _check_shapes(name, splits.train_images.shape[1:], splits.test_images.shape[1:])
    if len(np.unique(splits.example_ids)) != len(splits.example_ids):
        raise UserError(f"{name}: the ids of the training examples repeat; expected one name per example.")
    return _check_classes(name, splits.train_labels, splits.test_labels)


def _check_shapes(name: str, *shapes: tuple[int, ...]) -> None:
    if shapes[0] == shapes[1]:
        return
    sides = [min(shape[:2]) for shape in shapes if len(shape) == 3 and shape[2] == shapes[0][-1] and shape[2] in (1, 3)]
    repair = f" Add {commands.option('image_size', min(sides))}." if len(sides) == 2 else ""
    raise UserError(
        f"{name}: train examples of shape {shapes[0]} but test examples of shape {shapes[1]}; expected one.{repair}"
    )


def check_lengths(name: str, which: str, images: np.ndarray, labels: np.ndarray, ids: np.ndarray | None) -> None:
    """Refuse examples of a split that have not a label, and a name, each."""
    if len(images) != len(labels):
        raise UserError(f"{name}: {len(images)} {which} examples but {len(labels)} labels; expected equal lengths.")
    if ids is not None and len(ids) != len(labels):
        raise UserError(f"{name}: {len(ids)} ids for {len(labels)} {which}{'ing' * (which == 'train')} examples.")


def _check_classes(name: str, train_labels: np.ndarray, test_labels: np.ndarray) -> int:
    present = np.unique(train_labels)
    if len(present) == 1:
        raise UserError(f"{name}: every training example has label {present[0]}; expected at least two classes.")
    if present[0] != 0 or present[-1] != len(present) - 1:
        shown = ", ".join(map(str, present[:8])) + (" …" if len(present) > 8 else "")
        raise UserError(
            f"{name}: {len(present)} different training labels, {shown} (largest {present[-1]}); expected 0 to "
            f"{len(present) - 1} without gaps (renumber them: np.unique(labels, return_inverse=True)[1])."
        )
    unknown = np.setdiff1d(test_labels, present)
    if len(unknown):
        raise UserError(
            f"{name}: label {unknown[0]} is present only in the test split; expected test labels from 0 to "
            f"{len(present) - 1}, each of a class that is trained on."
        )
    return len(present)


Statistics = tuple[tuple[float, ...], tuple[float, ...]]  # mean and standard deviation of each channel


def assembled(name: str, splits: Splits, statistics: Statistics | None = None) -> Dataset:
    """A dataset of what a source returns, checked.

    Args:
        statistics: For normalisation; None: those of the training set.
    Raises:
        UserError: data that cannot be learned from; see `check_splits`.
    """
    num_classes = check_splits(name, splits)
    if statistics:
        mean, std = (np.asarray(values, np.float32) for values in statistics)
    else:
        computed = pixel_statistics if splits.train_images.dtype == np.uint8 else vector_statistics
        mean, std = computed(splits.train_images)
    digest = fingerprint(splits.example_ids, splits.train_labels, splits.train_images)
    test_ids = numbered("test", len(splits.test_labels)) if splits.test_ids is None else splits.test_ids
    return Dataset(
        name, *splits[:5], num_classes, mean, std, digest, splits.class_names, skipped=splits.skipped, test_ids=test_ids
    )  # fmt: skip
