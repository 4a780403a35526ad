"""Selectors: from scores, labels or features to the ids of the examples to keep.

A selector takes a pool, a size and parameters, the values of its own options, and returns ids in the order in which it
would keep them. To add one: write the function (here, or in coresets.py) and name it in SELECTORS, with the options it
has; those that are no fields of TrainConfig are described there by `option`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple

import numpy as np

from datadiet.config import FIELDS, check_size, find_option, number_kept
from datadiet.errors import UserError
from datadiet.option import Parameters, option
from datadiet.progress import Advance
from datadiet.registries import REGISTRIES
from datadiet.selectors import coresets, epochs
from datadiet.selectors.coresets import Pool, ascending, descending
from datadiet.selectors.epochs import Choice


def keep_max(pool: Pool, size: int, parameters: Parameters) -> np.ndarray:
    """The `size` largest, largest first."""
    return descending(pool.values, pool.seed)[:size]


def keep_min(pool: Pool, size: int, parameters: Parameters) -> np.ndarray:
    """The `size` smallest, smallest first."""
    return ascending(pool.values, pool.seed)[:size]


def magnitudes(values: np.ndarray) -> np.ndarray:
    """Absolute values; of integers unsigned, since the smallest of a signed type has no positive counterpart."""
    sizes = np.abs(values)
    return sizes.view(f"u{sizes.itemsize}") if sizes.dtype.kind == "i" else sizes


def keep_max_abs(pool: Pool, size: int, parameters: Parameters) -> np.ndarray:
    """The `size` largest in absolute value."""
    return descending(magnitudes(pool.values), pool.seed)[:size]


def keep_min_abs(pool: Pool, size: int, parameters: Parameters) -> np.ndarray:
    """The `size` smallest in absolute value."""
    return ascending(magnitudes(pool.values), pool.seed)[:size]


def offset(pool: Pool, size: int, parameters: Parameters) -> np.ndarray:
    """The `size` smallest after skipping the `offset` smallest."""
    return ascending(pool.values, pool.seed)[parameters.offset : parameters.offset + size]


def random(pool: Pool, size: int, parameters: Parameters) -> np.ndarray:
    """`size` examples without regard to their values, each subset of that size equally likely."""
    return pool.shuffled()[:size]


Keep = Callable[[Pool, int, Parameters], np.ndarray]


class Selector(NamedTuple):
    """One entry of SELECTORS."""

    keep: Keep | None  # None: each epoch chooses anew, by `epochs`
    scores: bool = True  # whether it needs them
    labels: bool = False
    features: bool = False
    options: tuple[str, ...] | Mapping[str, Any] = ()  # used beside balance; what `option` made where it brings them
    balance: str = "none"  # where none is asked for; see BALANCES
    entry_point: str | None = None  # its own, whose folders and tables need not name it
    words: str | None = None  # what it keeps, with {count} and {score}
    epochs: Choice | None = None  # then it needs all examples, and has no balance


SELECTORS: dict[str, Selector] = {
    "keep_max": Selector(keep_max, entry_point="keep_max", words="the {count} examples of largest {score}"),
    "keep_min": Selector(keep_min, words="the {count} examples of smallest {score}"),
    "keep_max_abs": Selector(keep_max_abs, words="the {count} examples of largest absolute {score}"),
    "keep_min_abs": Selector(keep_min_abs, words="the {count} examples of smallest absolute {score}"),
    "offset": Selector(offset, options=("offset",), entry_point="offset_subset"),
    "random": Selector(
        random, scores=False, entry_point="random_subset", words="a random {count} of the training examples"
    ),
    "ccs": Selector(coresets.ccs, options=("cutoff", "strata")),
    "moderate": Selector(coresets.moderate, scores=False, labels=True, features=True, options=("center",)),
    "k_center": Selector(coresets.k_center, scores=False, features=True),
    "herding": Selector(coresets.herding, scores=False, features=True, balance="proportional"),
    "d2": Selector(coresets.d2, features=True, options=("cutoff", "neighbors", "gamma"), balance="proportional"),
    "rs2": Selector(
        None, scores=False, epochs=Choice(epochs.rs2),
        words="in each epoch another random {count} of the training examples",
        options={
            "replacement": option(
                False, "Each epoch draws from all examples, not from those left (rs2).", group="subset"
            )
        },
    ),
    "infobatch": Selector(
        None, scores=False, epochs=Choice(epochs.infobatch, epochs.infobatch_weights),
        words="in each epoch the training examples of large loss and a share of the others, as {count} is of all",
        options={
            "full_from": option(
                0.875, "Part of the steps; after it none is left out (infobatch).", min=0, max=1, group="subset"
            )
        },
    ),
}  # fmt: skip
REGISTRIES["selector"] = SELECTORS

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
    offsets = None
    if "offset" in parameters:
        offsets = np.minimum(share(counts, parameters.offset, pool.seed), counts - quotas)
    ids, turns = [], []
    for c in np.flatnonzero(quotas):
        members = np.flatnonzero(own == c)
        given = parameters if offsets is None else Parameters.of(parameters.as_dict(), offset=int(offsets[c]))
        kept = keep(pool.part(members, int(classes[c])), int(quotas[c]), given)
        ids.append(members[kept])
        turns.append((np.arange(len(kept)) + 0.5) / len(kept))
    return np.concatenate(ids)[ascending(np.concatenate(turns), pool.seed)]


def check_selector(name: str) -> None:
    """Raises UserError, listing the known names, where `name` is not in SELECTORS."""
    if name not in SELECTORS:
        raise UserError(f"selector={name!r}: expected one of {', '.join(SELECTORS)}.")


def without_scores() -> list[str]:
    """Names of the selectors that need no scores."""
    return [name for name, selector in SELECTORS.items() if not selector.scores]


def options_of(selector: str) -> tuple[str, ...]:
    """Names of the options that a selector uses."""
    chosen = SELECTORS.get(selector)
    return (*chosen.options, *([] if chosen.epochs else ["balance"])) if chosen else ()


def chooses_anew(selector: str) -> bool:
    """Whether a selector keeps no subset, but takes another one in each epoch, and needs all examples for that."""
    return selector in SELECTORS and SELECTORS[selector].epochs is not None


def option_names() -> list[str]:
    """Names of the options of all selectors: fields of TrainConfig in their order, then those brought by entries."""
    used = dict.fromkeys(name for selector in SELECTORS for name in options_of(selector))
    return [*(name for name in FIELDS if name in used), *(name for name in used if name not in FIELDS)]


def parameters_of(selector: str, given: Mapping[str, Any]) -> Parameters:
    """The options that a selector uses, with the values given and else their defaults.

    Raises:
        UserError: an option that there is not, or that the selector does not use, or a value that it does not take.
    """
    used = options_of(selector)
    for name, value in given.items():
        find_option(name).check(value)
        if name not in used and value != find_option(name).default:
            users = [other for other in SELECTORS if name in options_of(other)]
            raise UserError(f"{name}={value} is used by selector={','.join(users)} only.")
    return Parameters.of({name: given.get(name, find_option(name).default) for name in used})


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
    check_size(size, parameters.offset if "offset" in parameters else 0, num_examples)
    check_balance(parameters)
    if "cutoff" in parameters and int(parameters.cutoff * num_examples) + size > num_examples:
        raise UserError(
            f"cutoff={parameters.cutoff} leaves {num_examples - int(parameters.cutoff * num_examples)} of "
            f"{num_examples} examples, fewer than size={size}: expected a cutoff of at most "
            f"{1 - size / num_examples:.4g}."
        )


def check_balance(parameters: Parameters) -> None:
    """Raises UserError, listing the known names, where there is no such balance."""
    if "balance" in parameters and parameters.balance not in (None, *BALANCES):
        raise UserError(f"balance={parameters.balance}: expected one of {', '.join(BALANCES)}.")


def _quotas(like: np.ndarray, parameters: Parameters, labels: np.ndarray, size: int) -> Callable[..., np.ndarray]:
    """What BALANCES has, so that each class gets as many as `like` has of it.

    Raises:
        UserError: it keeps another number of examples, or another balance is asked for.
    """
    if len(like) != size or parameters.balance is not None:
        got = f"size={size}" if len(like) != size else f"balance={parameters.balance}"
        raise UserError(f"{got}: like keeps {len(like)} examples, and says how many of each class; expected no other.")
    classes, own = np.unique(labels, return_inverse=True)
    quotas = np.bincount(own[like], minlength=len(classes))
    return lambda counts, size, seed: quotas


def _checked(name: str, array: Any, what: str, count: int, ndim: int) -> np.ndarray:
    if array is None:
        raise UserError(f"selector={name} needs {what}.")
    array = np.asarray(array)
    if array.ndim != ndim or len(array) != count:
        raise UserError(f"{what}: expected {ndim}-dimensional, of {count} examples; got shape {array.shape}.")
    return array


def kept_order(
    name: str, values: np.ndarray, *, size: float | str, offset: int = 0, seed: int = 0,
    labels: np.ndarray | None = None, features: np.ndarray | None = None, like: np.ndarray | None = None,
    progress: Advance = lambda units: None, **parameters: Any,
) -> np.ndarray:  # fmt: skip
    """Ids to keep, int32 [M], in the order in which the selector keeps them; see `select`.

    Args:
        progress: Told of examples just kept where choosing takes long, `size` in all.
    """
    check_selector(name)
    size = number_kept(size, len(values))
    check_size(size, offset, len(values))
    chosen, given = SELECTORS[name], parameters_of(name, {"offset": offset, **parameters})
    if chosen.keep is None:
        raise UserError(f"selector={name} keeps no subset: each epoch of a training takes another one. Train with it.")
    values = check_values(values) if chosen.scores else np.asarray(values)
    check_parameters(name, given, size, len(values))
    pool = Pool(values, seed, progress=progress)
    if needs_labels(name, given.balance) or like is not None:
        pool = replace(pool, labels=_checked(name, labels, "labels", len(values), 1))
    if chosen.features:
        pool = replace(pool, features=_checked(name, features, "features", len(values), 2))
    share = BALANCES[manner_of_balance(name, given.balance)]
    share = share if like is None else _quotas(like, given, pool.labels, size)
    keep = partial(balanced, chosen.keep, share) if share else chosen.keep
    return keep(pool, size, given).astype(np.int32)


def select(
    name: str, values: np.ndarray, *, size: float | str, offset: int = 0, seed: int = 0,
    labels: np.ndarray | None = None, features: np.ndarray | None = None, like: np.ndarray | None = None,
    **parameters: Any,
) -> np.ndarray:  # fmt: skip
    """Ids of the examples to keep.

    Args:
        name: A key of SELECTORS.
        values: Scores [N] in canonical order; of those `without_scores` their number alone counts.
        size: M, how many to keep, 1 to N - offset; or a float, the fraction of N (above 0 and below 1), rounded; or
            text, as in '50%'.
        offset: How many of the smallest to skip first ('offset' only).
        seed: Of draws and of the order among equals.
        labels: int [N], for moderate, herding, d2, any `balance`, and `like`.
        features: float [N, F], for moderate, k_center, herding and d2.
        like: ids [M] of another selection: as many of each class are kept.
        **parameters: Other options of the selector, as in `option_names`.
    Returns:
        Sorted int32 [M].
    Raises:
        UserError: unknown selector, impossible size or parameter, NaN scores, missing labels or features.
    """
    given = {"size": size, "offset": offset, "seed": seed, "labels": labels, "features": features,
             "like": like}  # fmt: skip
    return np.sort(kept_order(name, values, **given, **parameters))
