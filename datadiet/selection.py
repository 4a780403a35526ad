"""Selectors: from scores to the ids of the examples to keep.

A selector returns ids in the order in which it would keep them. To add one: write the
function and name it in SELECTORS.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from datadiet.config import UserError, check_size


def ascending(keys: np.ndarray, seed: int) -> np.ndarray:
    """Ids by ascending key, int [N]; equal keys in an order drawn from `seed`, never by position."""
    shuffled = np.random.RandomState(seed).permutation(len(keys))
    return shuffled[np.argsort(keys[shuffled], kind="stable")]


def keep_max(values: np.ndarray, size: int, offset: int, seed: int) -> np.ndarray:
    """The `size` largest, largest first."""
    return ascending(-values, seed)[:size]


def keep_min(values: np.ndarray, size: int, offset: int, seed: int) -> np.ndarray:
    """The `size` smallest, smallest first."""
    return ascending(values, seed)[:size]


def keep_max_abs(values: np.ndarray, size: int, offset: int, seed: int) -> np.ndarray:
    """The `size` largest in absolute value."""
    return ascending(-np.abs(values), seed)[:size]


def keep_min_abs(values: np.ndarray, size: int, offset: int, seed: int) -> np.ndarray:
    """The `size` smallest in absolute value."""
    return ascending(np.abs(values), seed)[:size]


def offset(values: np.ndarray, size: int, offset: int, seed: int) -> np.ndarray:
    """The `size` smallest after skipping the `offset` smallest."""
    return ascending(values, seed)[offset : offset + size]


def random(values: np.ndarray, size: int, offset: int, seed: int) -> np.ndarray:
    """`size` examples without regard to their values, each subset of that size equally likely."""
    return np.random.RandomState(seed).permutation(len(values))[:size]


SELECTORS: dict[str, Callable[[np.ndarray, int, int, int], np.ndarray]] = {
    "keep_max": keep_max,
    "keep_min": keep_min,
    "keep_max_abs": keep_max_abs,
    "keep_min_abs": keep_min_abs,
    "offset": offset,
    "random": random,
}
WITHOUT_SCORES = frozenset({"random"})


def check_selector(name: str) -> None:
    """Raises UserError, listing the known names, where `name` is not in SELECTORS."""
    if name not in SELECTORS:
        raise UserError(f"selector={name!r}: expected one of {', '.join(SELECTORS)}.")


def check_values(values: np.ndarray, name: str = "scores") -> np.ndarray:
    """Scores as a 1-D array of numbers.

    Raises:
        UserError: not 1-D, not real numbers, or NaN among them.
    """
    values = np.asarray(values)
    if values.ndim != 1 or values.dtype.kind not in "fiu":
        raise UserError(f"{name}: expected one real number per example, got {values.dtype} of shape {values.shape}.")
    if missing := int(np.isnan(values).sum()):
        raise UserError(
            f"{name}: {missing} of {len(values)} values are NaN, so they cannot be ordered. Forgetting is NaN for "
            "examples that were never trained on: score a run on the full training set."
        )
    return values


def kept_order(name: str, values: np.ndarray, *, size: int, offset: int = 0, seed: int = 0) -> np.ndarray:
    """Ids to keep, int32 [size], in the order in which the selector keeps them; see `select`."""
    check_selector(name)
    values = np.asarray(values) if name in WITHOUT_SCORES else check_values(values)
    check_size(size, offset, len(values))
    return SELECTORS[name](values, size, offset, seed).astype(np.int32)


def select(name: str, values: np.ndarray, *, size: int, offset: int = 0, seed: int = 0) -> np.ndarray:
    """Ids of the examples to keep.

    Args:
        name: A key of SELECTORS.
        values: Scores [N] in canonical order; 'random' uses their number alone.
        size: M, how many to keep, 1 to N - offset.
        offset: How many of the smallest to skip first ('offset' only).
        seed: Of random subsets and of the order among equal scores.
    Returns:
        Sorted int32 [M].
    Raises:
        UserError: unknown selector, impossible size, NaN scores.
    """
    return np.sort(kept_order(name, values, size=size, offset=offset, seed=seed))
