"""What is doubtful in data that can be read: it is said, and kept with it."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from datadiet.data.dataset import Dataset
from datadiet.data.reading import remark

SHOWN = 3  # of each kind, by name


class Repeats(NamedTuple):
    """Examples that are the same to the last bit, by their places."""

    train: list[tuple[int, int]]  # a training example, and a later one
    test: list[tuple[int, int]]  # a test example, and the first such training example


def repeats(train: np.ndarray, test: np.ndarray) -> Repeats:
    """Examples [N, …] and [M, …] that are there more than once."""
    first: dict[bytes, int] = {}
    again = [(at, i) for i, digest in enumerate(_digests(train)) if (at := first.setdefault(digest, i)) != i]
    return Repeats(again, [(i, first[digest]) for i, digest in enumerate(_digests(test)) if digest in first])


def _digests(examples: np.ndarray) -> Iterator[bytes]:
    """A hash of each example."""
    for example in examples:
        yield hashlib.blake2b(np.ascontiguousarray(example).data, digest_size=16).digest()


def blank(images: np.ndarray) -> list[int]:
    """Places of images that have one colour and no more; [] of vectors."""
    return [i for i, image in enumerate(images) if (image == image[0, 0]).all()] if images.ndim == 4 else []


def tell_doubts(dataset: Dataset) -> None:
    """Say which test examples are training examples too, which training examples are the same but for their labels,
    and which images have one colour."""
    name, ids, labels = dataset.name, dataset.example_ids, dataset.train_labels
    found = repeats(dataset.train_images, dataset.test_images)
    others: dict[int, list[int]] = {}  # by the first of them, those whose label differs from its own
    for before, i in found.train:
        if labels[before] != labels[i]:
            others.setdefault(before, []).append(i)
    if others:
        pairs = [f"{ids[before]} and {ids[i]}" for before, (i, *_) in others.items()]
        count = sum(map(len, others.values())) + len(others)
        remark(
            f"{name}: {count:,} training examples of {len(labels):,} are the same as others with another label: "
            f"{_some(pairs)}."
        )
    tests = dataset.test_names
    leaks = [f"{called('test', tests[i])} is {called('train', ids[before])}" for i, before in found.test]
    if leaks:
        remark(
            f"{name}: {len(leaks):,} test examples of {len(tests):,} are training examples too, so that "
            f"accuracy is too high: {_some(leaks)}."
        )
    train, test = len(blank(dataset.train_images)), len(blank(dataset.test_images))
    if train or test:
        remark(f"{name}: {train:,} training images and {test:,} test images have one colour and no more.")


def called(split: str, name: object) -> str:
    """An example of a split by its name, with that of its split before it where it does not say so itself."""
    return str(name) if str(name).startswith((f"{split}_", f"{split}/")) else f"{split} {name}"


def _some(texts: Sequence[str]) -> str:
    return ", ".join(texts[:SHOWN]) + (" …" if len(texts) > SHOWN else "")
