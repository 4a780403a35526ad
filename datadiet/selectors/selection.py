"""Selectors: from scores, labels or features to the ids of the examples to keep.

A selector takes a pool, a size and parameters, and returns ids in the order in which it would keep them. To add one:
write the function (here, or in coresets.py) and name it in SELECTORS.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple

import numpy as np

from datadiet.config import check_size
from datadiet.errors import UserError
from datadiet.selectors import coresets
from datadiet.selectors.coresets import Parameters, Pool, ascending


def keep_max(pool: Pool, size: int, parameters: Parameters) -> np.ndarray:
    """The `size` largest, largest first."""
    return ascending(-pool.values, pool.seed)[:size]


def keep_min(pool: Pool, size: int, parameters: Parameters) -> np.ndarray:
    """The `size` smallest, smallest first."""
    return ascending(pool.values, pool.seed)[:size]


def keep_max_abs(pool: Pool, size: int, parameters: Parameters) -> np.ndarray:
    """The `size` largest in absolute value."""
    return ascending(-np.abs(pool.values), pool.seed)[:size]


def keep_min_abs(pool: Pool, size: int, parameters: Parameters) -> np.ndarray:
    """The `size` smallest in absolute value."""
    return ascending(np.abs(pool.values), pool.seed)[:size]


def offset(pool: Pool, size: int, parameters: Parameters) -> np.ndarray:
    """The `size` smallest after skipping the `offset` smallest."""
    return ascending(pool.values, pool.seed)[parameters.offset : parameters.offset + size]


def random(pool: Pool, size: int, parameters: Parameters) -> np.ndarray:
    """`size` examples without regard to their values, each subset of that size equally likely."""
    return pool.shuffled()[:size]


Keep = Callable[[Pool, int, Parameters], np.ndarray]


class Selector(NamedTuple):
    """One entry of SELECTORS."""

    keep: Keep
    scores: bool = True  # whether it needs them
    labels: bool = False
    features: bool = False
    options: tuple[str, ...] = ()  # fields of Parameters that it uses, beside balance
    balance: str = "none"  # where none is asked for; see BALANCES


SELECTORS: dict[str, Selector] = {
    "keep_max": Selector(keep_max),
    "keep_min": Selector(keep_min),
    "keep_max_abs": Selector(keep_max_abs),
    "keep_min_abs": Selector(keep_min_abs),
    "offset": Selector(offset, options=("offset",)),
    "random": Selector(random, scores=False),
    "ccs": Selector(coresets.ccs, options=("cutoff", "strata")),
    "moderate": Selector(coresets.moderate, scores=False, labels=True, features=True, options=("center",)),
    "k_center": Selector(coresets.k_center, scores=False, features=True),
    "herding": Selector(coresets.herding, scores=False, features=True, balance="proportional"),
    "d2": Selector(coresets.d2, features=True, options=("cutoff", "neighbors", "gamma"), balance="proportional"),
}
WITHOUT_SCORES = frozenset(name for name, selector in SELECTORS.items() if not selector.scores)

# How many of each class to keep: (counts [C], size, seed) -> int [C].
BALANCES: dict[str, Callable[[np.ndarray, int, Any], np.ndarray] | None] = {
    "none": None,  # as they come
    "proportional": coresets.in_proportion,
    "equal": coresets.evenly,
}


def balanced(keep: Keep, share: Callable, pool: Pool, size: int, parameters: Parameters) -> np.ndarray:
    """A selector applied within each class of a pool, so that the classes keep their shares of `size`, exactly.

    The classes take turns in the order of what is kept, as often as their shares are large. An offset is shared out
    like the size, as far as a class has as many.
    """
    classes, own = np.unique(pool.labels, return_inverse=True)
    counts = np.bincount(own)
    quotas = share(counts, size, pool.seed)
    offsets = np.minimum(share(counts, parameters.offset, pool.seed), counts - quotas)
    ids, turns = [], []
    for c in np.flatnonzero(quotas):
        members = np.flatnonzero(own == c)
        kept = keep(pool.part(members, int(classes[c])), int(quotas[c]), parameters._replace(offset=int(offsets[c])))
        ids.append(members[kept])
        turns.append((np.arange(len(kept)) + 0.5) / len(kept))
    return np.concatenate(ids)[ascending(np.concatenate(turns), pool.seed)]


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
            f"{name}: {missing} of {len(values)} values are NaN, so they cannot be ordered. Scores gathered while "
            "training are NaN for examples that were never trained on: score a run on the full training set, after "
            "some epochs."
        )
    return values


def manner_of_balance(name: str, balance: str | None) -> str:
    """A key of BALANCES: the one asked for, else the selector's own."""
    return balance or SELECTORS[name].balance


def needs_labels(name: str, balance: str | None = None) -> bool:
    """Whether a selector looks at labels."""
    return SELECTORS[name].labels or manner_of_balance(name, balance) != "none"


def check_parameters(name: str, parameters: Parameters, size: int, num_examples: int) -> None:
    """Refuse parameters that a selector cannot work with.

    Raises:
        UserError: names the parameter, its value and what was expected.
    """
    check_size(size, parameters.offset, num_examples)
    check_words(parameters)
    if "cutoff" in SELECTORS[name].options and int(parameters.cutoff * num_examples) + size > num_examples:
        raise UserError(
            f"cutoff={parameters.cutoff} leaves {num_examples - int(parameters.cutoff * num_examples)} of "
            f"{num_examples} examples, fewer than size={size}: expected a cutoff of at most "
            f"{1 - size / num_examples:.4g}."
        )


def check_words(parameters: Parameters) -> None:
    """Refuse a balance or a center that there is not.

    Raises:
        UserError: names the parameter, its value and what was expected.
    """
    if parameters.balance not in (None, *BALANCES):
        raise UserError(f"balance={parameters.balance}: expected one of {', '.join(BALANCES)}.")
    if parameters.center not in ("mean", "median"):
        raise UserError(f"center={parameters.center}: expected mean or median.")


def _checked(name: str, array: Any, what: str, count: int, ndim: int) -> np.ndarray:
    if array is None:
        raise UserError(f"selector={name} needs {what}.")
    array = np.asarray(array)
    if array.ndim != ndim or len(array) != count:
        raise UserError(f"{what}: expected {ndim}-dimensional, of {count} examples; got shape {array.shape}.")
    return array


def kept_order(
    name: str, values: np.ndarray, *, size: int, offset: int = 0, seed: int = 0, labels: np.ndarray | None = None,
    features: np.ndarray | None = None, **parameters: Any,
) -> np.ndarray:  # fmt: skip
    """Ids to keep, int32 [size], in the order in which the selector keeps them; see `select`."""
    check_selector(name)
    chosen, given = SELECTORS[name], Parameters(offset=offset, **parameters)
    values = check_values(values) if chosen.scores else np.asarray(values)
    check_parameters(name, given, size, len(values))
    pool = Pool(values, seed)
    if needs_labels(name, given.balance):
        pool = replace(pool, labels=_checked(name, labels, "labels", len(values), 1))
    if chosen.features:
        pool = replace(pool, features=_checked(name, features, "features", len(values), 2))
    share = BALANCES[manner_of_balance(name, given.balance)]
    keep = partial(balanced, chosen.keep, share) if share else chosen.keep
    return keep(pool, size, given).astype(np.int32)


def select(
    name: str, values: np.ndarray, *, size: int, offset: int = 0, seed: int = 0, labels: np.ndarray | None = None,
    features: np.ndarray | None = None, **parameters: Any,
) -> np.ndarray:  # fmt: skip
    """Ids of the examples to keep.

    Args:
        name: A key of SELECTORS.
        values: Scores [N] in canonical order; of those in WITHOUT_SCORES their number alone counts.
        size: M, how many to keep, 1 to N - offset.
        offset: How many of the smallest to skip first ('offset' only).
        seed: Of draws and of the order among equals.
        labels: int [N], for moderate, herding, d2 and any `balance`.
        features: float [N, F], for moderate, k_center, herding and d2.
        **parameters: balance, cutoff, strata, center, neighbors, gamma: see the options of the same names.
    Returns:
        Sorted int32 [M].
    Raises:
        UserError: unknown selector, impossible size or parameter, NaN scores, missing labels or features.
    """
    given = {"size": size, "offset": offset, "seed": seed, "labels": labels, "features": features}
    return np.sort(kept_order(name, values, **given, **parameters))
