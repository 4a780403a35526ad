"""Whether values of one dataset's examples may be used with another: ids and fingerprints decide."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np

from datadiet.data.dataset import Dataset, fingerprint
from datadiet.data.sources.delimited import named, windows
from datadiet.errors import UserError
from datadiet.printable import original, visible

CONTAINS = {"cinic10": ("cifar10",)}  # training and test images of the latter are among the former's


def describe(name: str | None, num_examples: int, print_: str | None) -> str:
    """A dataset in a few words, for messages."""
    return f"{name or 'an unnamed dataset'} ({num_examples} examples, fingerprint {(print_ or 'unknown')[:12]})"


def align(values: np.ndarray, ids: np.ndarray, print_: str, dataset: Dataset, name: str | None = None) -> np.ndarray:
    """Values, such as scores, in the canonical order of `dataset`.

    The same fingerprint is accepted. The same ids in another order are realigned, with a
    warning, where labels and pixels in that order have that fingerprint.

    Args:
        values: [N, …], one per training example.
        ids: str [N], names of the examples they belong to, in their order.
        print_: Fingerprint of the dataset they were computed on.
        dataset: As `data.load` returns it, before `fit_images` or a change of labels; of a changed
            one only the ids can be compared when the order differs.
        name: Of the dataset they were computed on, for messages.
    Raises:
        UserError: they belong to other data; both datasets are named.
    """
    have = describe(dataset.name, dataset.num_examples, dataset.fingerprint)
    both = f"{describe(name, len(ids), print_)}, but the dataset is {have}"
    ids = np.asarray(ids)
    if len(values) != len(ids):
        raise UserError(f"{len(values)} values for {len(ids)} examples of {both}; expected one value per example.")
    if print_ == dataset.fingerprint and len(values) == dataset.num_examples:
        return values
    position = _positions(ids, dataset.example_ids)
    if position is None:
        raise UserError(
            f"The values belong to {both}; {overlap(name, dataset.name)}expected values of the same dataset: "
            "score this one."
        )
    if not _same_content(dataset, ids, position, print_):
        raise UserError(
            f"The values belong to {both}; the ids are the same but labels or pixels differ. Expected values of the "
            "same dataset: score this one."
        )
    warnings.warn(f"Values of {both}: the same examples in another order; the values were realigned.", stacklevel=2)
    return values[position]


def _positions(ids: np.ndarray, example_ids: np.ndarray) -> np.ndarray | None:
    """Position of each of a dataset's examples among `ids`, int64 [N]; None where those name others."""
    order, canonical = np.argsort(ids, kind="stable"), np.argsort(example_ids, kind="stable")
    if not np.array_equal(ids[order], example_ids[canonical]):
        return None
    position = np.empty(len(ids), np.int64)
    position[canonical] = order
    return position


def _same_content(dataset: Dataset, ids: np.ndarray, position: np.ndarray, print_: str) -> bool:
    """Whether labels and pixels in the order of `ids` have that fingerprint; not asked of a changed one."""
    theirs = np.argsort(position)  # the dataset's examples in the order of the ids
    arrays = dataset.train_labels, dataset.train_images
    changed = fingerprint(dataset.example_ids, *arrays) != dataset.fingerprint
    return changed or fingerprint(ids, *(array[theirs] for array in arrays)) == print_


def rows_of(
    ids: Sequence[Any] | np.ndarray, dataset: Dataset, lacking: str = "are missing", *, positions: bool = False
) -> tuple[np.ndarray, list[str]]:
    """Which training example each row of a table or array is of, and what stands in the way of taking each for one.

    Args:
        ids: Names of examples, also as our own tables write them or in another encoding; or whole numbers, which are
            names, where examples are called so, or positions in canonical order.
        lacking: What is to be said of examples that have no row.
        positions: Whole numbers are nothing else, as those of a column `index`.
    Returns:
        int64, of those rows whose id is known; obstacles in words.
    """
    ids, places = np.asarray(ids), {str(one): i for i, one in enumerate(dataset.example_ids)}
    whole, readings, obstacles = ids.dtype.kind in "iu", [], []
    if not (whole and positions):
        readings.append([_place(str(one), places) for one in ids])
    if whole:
        readings.append([int(one) if 0 <= one < dataset.num_examples else None for one in ids])
    if len(readings) == 2 and readings[0] != readings[1] and not any(None in reading for reading in readings):
        obstacles.append(
            f"its ids are whole numbers, each the name of one example of {dataset.name} and the position of another: "
            "expected positions under the name index, or names as text"
        )
    found = max(readings, key=lambda reading: len(reading) - reading.count(None))
    unknown = [str(one) for one, i in zip(ids, found) if i is None]
    known = np.array([i for i in found if i is not None], np.int64)
    counts = np.bincount(known, minlength=dataset.num_examples)
    for those, what in (
        (unknown, f"of {len(ids)} ids are not of {dataset.name}"),
        (dataset.example_ids[counts == 0].tolist(), f"of {dataset.num_examples} training examples {lacking}"),
        (dataset.example_ids[counts > 1].tolist(), "training examples are named several times"),
    ):
        if those:
            obstacles.append(f"{len(those)} {what}: {named(those)}")
    return known, obstacles


def _place(cell: str, places: dict[str, int]) -> int | None:
    """An id as it is, as our own tables write it, or in another encoding."""
    tries = (cell, original(cell), visible(cell), windows(cell), cell.strip())
    return next((places[one] for one in tries if one in places), None)


def accept_bare(values: np.ndarray, path: object, dataset: Dataset) -> np.ndarray:
    """Values of a file without a record of its data: only their number can be checked.

    Raises:
        UserError: not one value per training example.
    """
    if values.shape != (dataset.num_examples,):
        raise UserError(
            f"{path}: values of shape {list(values.shape)}, but {dataset.name} has {dataset.num_examples} training "
            f"examples; expected [{dataset.num_examples}]."
        )
    warnings.warn(
        f"{path}: no .json beside it says which data it belongs to, so its order cannot be checked against "
        f"{dataset.name}'s.",
        stacklevel=2,
    )
    return values


def overlap(one: str | None, other: str | None) -> str:
    """A sentence where one of two datasets contains the other, else ''."""
    for outer, inner in ((one, other), (other, one)):
        if inner in CONTAINS.get(outer or "", ()):
            return f"{outer} contains the images of {inner}, its test images too; "
    return ""
