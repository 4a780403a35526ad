"""Scores of several runs to one."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from functools import partial

import numpy as np

PIECE = 2**13  # examples taken at once: NumPy copies what it combines, in float64


def _over_measured(function: Callable, values: np.ndarray) -> np.ndarray:
    """function(values [R, N], axis=0), without NumPy's warnings about examples that no run measured."""
    values = np.asarray(values)
    found = np.empty(values.shape[1])
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Mean of empty slice|All-NaN slice|Degrees of freedom", RuntimeWarning)
        for first in range(0, len(found), PIECE):
            part = values[:, first : first + PIECE]
            found[first : first + PIECE] = function(part.astype(np.float64), axis=0)
    return found


def mean_over_runs(values: np.ndarray) -> np.ndarray:
    """Mean of scores [R, N] over runs, float64 [N].

    A NaN (an example that a run did not measure) is left out of its mean; it stays NaN where
    no run measured the example.
    """
    return _over_measured(np.nanmean, values)


def median_over_runs(values: np.ndarray) -> np.ndarray:
    """Median of scores [R, N] over runs, float64 [N]; NaN as in `mean_over_runs`."""
    return _over_measured(np.nanmedian, values)


def rank_mean_over_runs(values: np.ndarray) -> np.ndarray:
    """Mean over runs of relative ranks, float64 [N] in (0, 1]: robust where the scale of a score differs between runs.

    In each run an example has its rank among those measured (1 is the smallest, equal scores share the mean of their
    ranks) divided by their number; NaN as in `mean_over_runs`.
    """
    from scipy.stats import rankdata  # takes long to import

    total, runs = np.zeros(np.shape(values)[1]), np.zeros(np.shape(values)[1], np.int32)
    for found in np.asarray(values):
        measured = ~np.isnan(found)
        whole = measured.all()  # then without copies of what is measured
        ranks = rankdata(found if whole else found[measured])
        ranks /= len(ranks)
        total[... if whole else measured] += ranks
        runs += measured
    return np.divide(total, runs, out=np.full(len(total), np.nan), where=runs > 0)


def standard_error(values: np.ndarray) -> np.ndarray:
    """Standard error of the mean over runs of scores [R, N], float64 [N]; NaN where fewer than two runs measured."""
    measured = np.maximum(sum(~np.isnan(run) for run in values), 1)
    found = _over_measured(partial(np.nanstd, ddof=1), values)
    found /= np.sqrt(measured)  # in place: a quotient of its own is a third array [N] from Python 3.14 on
    return found


COMBINATIONS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "mean": mean_over_runs,
    "median": median_over_runs,
    "rank_mean": rank_mean_over_runs,
}
