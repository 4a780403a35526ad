"""Arrays as people have them: what has one meaning is read, and said where it is changed; the rest is refused."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np

from datadiet.data.cache import filled
from datadiet.data.dataset import CHUNK
from datadiet.data.reading import remark
from datadiet.data.sources.splits import TEST, TRAIN, spelled_alike
from datadiet.errors import UserError
from datadiet.printable import from_bytes, visible

_CHANNELS = (1, 3)
# How the arrays of a split are called, in lower case: in keras and scikit-learn's examples, and in MedMNIST …
_EXAMPLES = ("x_{0}", "{0}_images", "{0}_x")
_LABELS = ("y_{0}", "{0}_labels", "{0}_y")
_IDS = ("ids_{0}", "{0}_ids")
WHOLE = ""  # name of all examples, where there are no splits
# … and, where no array is called so, otherwise: by such a word beside the split's name, whatever stands between them.
_WORDS = (("x", "images", "data"), ("y", "labels", "label", "targets", "target"), ("ids",))


class Arrays(NamedTuple):
    """Names of the arrays of one split."""

    name: str  # of the split
    examples: str
    labels: str | None
    ids: str | None


def find_splits(name: str, there: Iterable[str]) -> dict[str, Arrays]:
    """The splits whose examples there are, by their names in lower case.

    Args:
        name: Of the data, for errors.
        there: Names of all arrays.
    Raises:
        UserError: an array that is there twice.
    """
    names, found = list(there), {}
    for split in (*TRAIN, *TEST, WHOLE):
        forms = (_EXAMPLES, _LABELS, _IDS)
        kinds = _WORDS if split == WHOLE else [[form.format(split) for form in kind] for kind in forms]
        arrays = [
            [key for key in names if key.lower() in kind]
            or [key for key in names if split and _is_of(key, split, words)]
            for kind, words in zip(kinds, _WORDS)
        ]
        if split == WHOLE and any(train in found for train in TRAIN):
            continue
        if twice := next((same for same in arrays if len(same) > 1), None):
            both = " and ".join(sorted(twice, reverse=True))
            raise UserError(f"{name}: {both} may both be meant; expected one of them.")
        if arrays[0]:
            found[split] = Arrays(split, arrays[0][0], *(same[0] if same else None for same in arrays[1:]))
    return found


def _is_of(key: str, split: str, words: Iterable[str]) -> bool:
    """Whether an array is called by one of these words and its split: trainX, train/images, data-train, …"""
    return re.sub(r"[\W_]+", "", key).lower() in {
        name for word in words for name in (f"{split}{word}", f"{word}{split}")
    }


def has_labels(values: np.ndarray) -> bool:
    """Whether they tell classes: where all are below 0, as of test sets that are kept secret, they do not."""
    return not (values.size and values.dtype.kind in "if" and (values < 0).all())


# --- examples -----------------------------------------------------------------------------------


def as_examples(name: str, given: dict[str, np.ndarray]) -> list[np.ndarray]:
    """Images as uint8 [N, H, W, D] or vectors as float32 [N, D].

    Images may be [N, H, W]; have their channels first, where that cannot be meant otherwise; and be numbers of any
    type from 0 to 255, or floats from 0 to 1, as both of the arrays are.

    Args:
        given: Of the training and of the test set, by name.
    Raises:
        UserError: another shape, or numbers outside these ranges.
    """
    if all(values.ndim == 2 and values.dtype.kind in "biuf" for values in given.values()):
        with np.errstate(over="ignore"):  # beyond float32: infinite, and refused as such
            return [_as_vectors(values) for values in given.values()]
    odd = [key for key, values in given.items() if values.ndim not in (3, 4) or values.dtype.kind not in "biuf"]
    if odd:
        told = {key: f"{key} is {values.dtype} {list(values.shape)}" for key, values in given.items()}
        got = ", ".join(told.pop(key) for key in odd)
        also = "".join(f", and both alike; {fine}" for fine in told.values())
        raise UserError(f"{name}: {got}; expected images [N, H, W] or [N, H, W, D], or vectors [N, D]{also}.")
    factor = _scale(name, given)
    found = [_as_bytes(f"{name}: {key}", values, factor) for key, values in given.items()]
    found = [values if values.ndim == 4 else values[..., None] for values in found]
    if all(_has_channels_first(values.shape) for values in found):
        shape = list(found[0].shape)
        remark(f"{name}: {shape} has its channels first; they are put last.")
        found = [_channels_last(f"{name}: {key}", values) for key, values in zip(given, found)]
    if {values.shape[3] for values in found} == {1, 3}:
        grey = next(key for key, values in zip(given, found) if values.shape[3] == 1)
        remark(f"{name}: {grey} is grey and the other is not; it is given three channels.")
        found = [_of_three_channels(f"{name}: {key}", values) for key, values in zip(given, found)]
    return found


def _has_channels_first(shape: Sequence[int]) -> bool:
    """Whether images [N, …] of four dimensions are hardly meant otherwise: they have as many channels as columns."""
    _, channels, height, width = shape
    return width not in (*_CHANNELS, 4) and (channels in _CHANNELS or channels < height == width)


def _scale(name: str, given: dict[str, np.ndarray]) -> int:
    """By what images are multiplied to be 0 to 255: 1, or 255."""
    ranges = {key: (values.min(), values.max()) for key, values in given.items() if values.size}
    low, high = (
        min((low for low, _ in ranges.values()), default=0),
        max((high for _, high in ranges.values()), default=0),
    )
    kinds = {values.dtype.kind for values in given.values()}
    if not (low >= 0 and high <= 255):  # NaN is neither
        deep = "Divide those of 16 bits by 257." if low >= 0 else ""
        raise UserError(
            f"{name}: {' and '.join(given)} range from {low} to {high}; expected images from 0 to 255, or from 0 to 1. "
            f"{deep or 'Normalised images are not: give them as they were before that.'}"
        )
    small = [key for key, (_, most) in ranges.items() if most <= 1 and not _may_reach_255(given[key])]
    if high > 1 and small:
        told = " and ".join(f"{key} from {low:g} to {high:g}" for key, (low, high) in ranges.items())
        raise UserError(f"{name}: images range in {told}; expected both from 0 to 255, or both from 0 to 1.")
    if kinds == {"b"} or (kinds == {"f"} and high <= 1):
        remark(f"{name}: images from 0 to 1 are read as 0 to 255.")
        return 255
    whole = all(values.dtype.kind != "f" or _are_whole(values) for values in given.values())
    if not whole:
        remark(f"{name}: images from {low:g} to {high:g} are rounded to whole numbers.")
    return 1


def _may_reach_255(values: np.ndarray) -> bool:
    """Whether numbers up to 1 may be of images from 0 to 255, as black ones are."""
    return values.dtype.kind != "b" and (values.dtype.kind != "f" or _are_whole(values))


def _are_whole(values: np.ndarray) -> bool:
    pieces = (values[first : first + CHUNK] for first in range(0, len(values), CHUNK))
    return all((piece == np.round(piece)).all() for piece in pieces)


def _as_bytes(what: str, values: np.ndarray, factor: int) -> np.ndarray:
    if values.dtype == np.uint8 and factor == 1:
        return values
    return filled(what, values.shape, lambda part: np.round(values[part].astype(np.float32) * factor).astype(np.uint8))


def _channels_last(what: str, values: np.ndarray) -> np.ndarray:
    count, channels, *sides = values.shape
    return filled(what, (count, *sides, channels), lambda part: np.moveaxis(values[part], 1, 3))


def _of_three_channels(what: str, values: np.ndarray) -> np.ndarray:
    if values.shape[3] == 3:
        return values
    return filled(what, (*values.shape[:3], 3), lambda part: np.repeat(values[part], 3, axis=3))


def _as_vectors(values: np.ndarray) -> np.ndarray:
    return values if isinstance(values, np.memmap) and values.dtype == np.float32 else values.astype(np.float32)


# --- labels -------------------------------------------------------------------------------------


def as_labels(name: str, given: dict[str, np.ndarray]) -> tuple[list[np.ndarray], tuple[str, ...]]:
    """Labels as int32 [N] from 0 to C-1, and the names of the classes, () where they are these numbers.

    Labels may be [N, 1], one-hot rows [N, C], texts (in sorted order), true or false, or whole numbers of any type;
    numbers with gaps are renumbered, which is said.

    Args:
        given: Of the training and of the test set, by name.
    Raises:
        UserError: none of these, below 0, or a class only in the test set.
    """
    train, test = (_plain(name, key, values) for key, values in given.items())
    if not train.size:  # which is told later
        return [np.empty(0, np.int32), np.zeros(len(test), np.int32)], ()
    if train.dtype.kind == test.dtype.kind == "U":
        same = spelled_alike(name, train.tolist(), test.tolist())
        train, test = (np.array([same[one] for one in values.tolist()], dtype=str) for values in (train, test))
    if (train.dtype.kind == "U") != (test.dtype.kind == "U"):
        raise UserError(f"{name}: {' and '.join(given)} labels are {train.dtype} and {test.dtype}; expected one type.")
    classes = np.unique(train)
    numbered = train.dtype.kind != "U"
    unknown = np.setdiff1d(test, classes)
    known = np.array_equal(classes, np.arange(len(classes))) and not unknown.size
    if numbered and (known or len(classes) == 1):  # of one class nothing can be learned, which is told later
        return [train.astype(np.int32), test.astype(np.int32)], ()
    shown = ", ".join(map(str, classes[:8].tolist())) + (" …" if len(classes) > 8 else "")
    if numbered and classes.size and classes[0] < 0:
        raise UserError(
            f"{name}: training labels {shown}; expected 0 to C-1. Where {classes[0]} stands for no label, leave these "
            "examples out."
        )
    if unknown.size:
        raise UserError(
            f"{name}: label {unknown[0]} is present only in the test split; the training labels are {shown}."
        )
    if numbered:
        remark(f"{name}: labels {shown} are renumbered 0 to {len(classes) - 1}.")
    found = [np.searchsorted(classes, values).astype(np.int32) for values in (train, test)]
    return found, tuple(str(one) for one in classes)


def named_classes(name: str, given: tuple[str, ...], found: tuple[str, ...], count: int) -> tuple[str, ...]:
    """Names of C classes: those that were found in the labels, or those given, by the numbers that were found.

    Args:
        given: A name for each number that a label may have, or ().
        found: As `as_labels` gives them.
        count: C.
    Raises:
        UserError: names that are neither for each number nor for each class.
    """
    if not given or not all(one.isdecimal() for one in found):
        return found
    numbers = [int(one) for one in found] or range(count)
    if max(numbers, default=0) < len(given):
        return tuple(given[number] for number in numbers)
    if len(given) != count:
        raise UserError(f"{name}: {len(given)} class names for {count} classes; expected a name for each.")
    return given


def _plain(name: str, key: str, values: np.ndarray) -> np.ndarray:
    """Integers or texts [N]."""
    labels = values[:, 0] if values.ndim == 2 and values.shape[1] == 1 else values
    if labels.ndim == 2 and labels.dtype.kind in "biuf" and _is_one_hot(labels):
        return labels.argmax(axis=1)
    if labels.ndim == 1:
        if labels.dtype.kind == "b":
            return labels.astype(np.int64)
        if labels.dtype.kind in "iu":
            return labels
        if labels.dtype.kind == "f" and ((labels == np.round(labels)) & (np.abs(labels) < 2**31)).all():
            return labels.astype(np.int64)
        if labels.dtype.kind in "SU" or all(isinstance(one, str | bytes) for one in labels.tolist()):
            return texts(labels)
    raise UserError(
        f"{name}: {key} labels are {values.dtype} {list(values.shape)}; expected one class for each example: whole "
        f"numbers [N] or [N, 1], texts [N], or one-hot rows [N, C]{_broken(labels)}."
    )


def _broken(labels: np.ndarray) -> str:
    """How many of some numbers [N] are no whole ones, in words; '' of anything else."""
    if labels.ndim != 1 or labels.dtype.kind != "f":
        return ""
    found = labels[labels != np.round(labels)]
    return f"; {len(found)} of these are no whole numbers, as {found[0]}" if len(found) else ""


def texts(values: np.ndarray) -> np.ndarray:
    """Texts or bytes [N] as texts that all can show; see `visible`."""
    return np.array([from_bytes(v) if isinstance(v, bytes) else visible(v) for v in values.tolist()], dtype=str)


def _is_one_hot(rows: np.ndarray) -> bool:
    return rows.shape[1] > 1 and bool(np.isin(rows, (0, 1)).all() and (rows.sum(axis=1) == 1).all())
