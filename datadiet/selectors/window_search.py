"""Window search: which parameters of a selector are best, found without a look at the test set."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from datadiet.errors import UserError
from datadiet.selectors import selection


class Trial(NamedTuple):
    """What one setting of a selector came to."""

    setting: Mapping[str, Any]
    accuracy: float  # on the part held out, 0 to 1


def window_search(
    selector: str,
    values: np.ndarray,
    grid: Sequence[Mapping[str, Any]],
    evaluate: Callable[[np.ndarray, np.ndarray], float],
    *,
    fraction: float,
    held_out: float = 0.1,
    seed: int = 0,
    labels: np.ndarray | None = None,
    features: np.ndarray | None = None,
) -> list[Trial]:
    """Try settings of a selector on a part of the training set, judged by the rest of it.

    The part held out is drawn by chance from `seed`, and no setting keeps an example of it. Scores that were made by
    networks that trained on it do know it a little; all settings share that.

    Args:
        selector: A key of selection.SELECTORS.
        values: Scores [N] of the training examples.
        grid: Parameters of the selector to try, as for `selection.select`: [{"cutoff": 0.1}, {"cutoff": 0.3}].
        evaluate: (ids to train on, ids held out), sorted int32 each -> accuracy on those held out. It alone trains.
        fraction: Of the examples not held out, above 0 and below 1, to keep.
        held_out: Fraction of the training set that judges, above 0 and below 1.
        labels, features: Of all N examples, for a selector that needs them.
    Returns:
        All trials, best first, those without an accuracy (NaN) last; among equals the one that comes first in the grid.
    Raises:
        UserError: an empty grid, a fraction out of range, or what `select` refuses.
    """
    _check(selector, grid, fraction, held_out)
    rest, held = divide(len(values), held_out, seed)
    size = max(1, round(fraction * len(rest)))
    part = {k: array[rest] for k, array in (("labels", labels), ("features", features)) if array is not None}
    trials = []
    for setting in grid:
        kept = rest[selection.select(selector, values[rest], size=size, seed=seed, **part, **setting)]
        trials.append(Trial(setting, float(evaluate(kept, held))))
    return sorted(trials, key=lambda trial: (np.isnan(trial.accuracy), -trial.accuracy))


def divide(count: int, held_out: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Ids of `count` examples divided by chance: those to train on and those held out, sorted int32 each.

    Args:
        held_out: Fraction, of which at least one example comes.
    """
    order = np.random.RandomState(seed).permutation(count).astype(np.int32)
    taken = max(1, round(held_out * count))
    return np.sort(order[taken:]), np.sort(order[:taken])


def _check(selector: str, grid: Sequence[Mapping[str, Any]], fraction: float, held_out: float) -> None:
    """Refuse a search that nothing can come of."""
    for name, value in (("fraction", fraction), ("held_out", held_out)):
        if not 0 < value < 1:
            raise UserError(f"{name}={value}: expected a fraction above 0 and below 1.")
    if not grid:
        raise UserError(f"grid={grid!r}: expected at least one setting of selector={selector}.")
