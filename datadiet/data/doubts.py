"""What is doubtful in data that can be read: it is said, and kept with it."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence

import numpy as np

from datadiet.data.dataset import Splits
from datadiet.data.reading import remark

SHOWN = 3  # of each kind, by name


def tell_doubts(name: str, splits: Splits) -> None:
    """Say which test examples are training examples too, which training examples are the same but for their labels,
    and which images have one colour. The same: to the last bit."""
    ids, labels = splits.example_ids, splits.train_labels
    first: dict[bytes, int] = {}  # where a training example is there for the first time
    others: dict[bytes, list[int]] = {}  # all places of those whose labels differ
    for i, digest in enumerate(_digests(splits.train_images)):
        if labels[i] != labels[first.setdefault(digest, i)]:
            others.setdefault(digest, []).append(i)
    if others:
        pairs = [f"{ids[first[digest]]} and {ids[i]}" for digest, (i, *_) in others.items()]
        count = sum(map(len, others.values())) + len(others)
        remark(
            f"{name}: {count:,} training examples of {len(labels):,} are the same as others with another label: "
            f"{_some(pairs)}."
        )
    tests = splits.test_ids if splits.test_ids is not None else range(len(splits.test_labels))
    leaks = [f"{_called('test', tests[i])} is {_called('train', ids[first[digest]])}"
             for i, digest in enumerate(_digests(splits.test_images)) if digest in first]  # fmt: skip
    if leaks:
        remark(
            f"{name}: {len(leaks):,} test examples of {len(splits.test_labels):,} are training examples too, so that "
            f"accuracy is too high: {_some(leaks)}."
        )
    if splits.train_images.dtype == np.uint8:
        _tell_blank(name, splits)


def _digests(examples: np.ndarray) -> Iterator[bytes]:
    """A hash of each example."""
    for example in examples:
        yield hashlib.blake2b(np.ascontiguousarray(example).data, digest_size=16).digest()


def _tell_blank(name: str, splits: Splits) -> None:
    counts = [sum(1 for image in images if (image == image[0, 0]).all())
              for images in (splits.train_images, splits.test_images)]  # fmt: skip
    if any(counts):
        remark(f"{name}: {counts[0]:,} training images and {counts[1]:,} test images have one colour and no more.")


def _called(split: str, name: object) -> str:
    return str(name) if str(name).startswith(split) else f"{split} {name}"


def _some(texts: Sequence[str]) -> str:
    return ", ".join(texts[:SHOWN]) + (" …" if len(texts) > SHOWN else "")
