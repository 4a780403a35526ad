"""What a study may conclude: intervals, verdicts, reliability of scores, noise found, cost. NumPy, SciPy, scikit-learn.

Accuracies are 0 to 1 and one per run; equal positions of two arrays are runs that share their seeds.
An interval here says how much the seeds of the evaluation runs move a mean; comparison.py has those that hold for new
test examples too.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import combinations_with_replacement
from typing import Any, NamedTuple

import numpy as np
from scipy import special

from datadiet.selectors.selection import descending

LEVEL = 0.95  # of every interval
# Spreads below this are rounding: accuracies are kept as float32, so a difference of two is off by up to 2**-24, and
# the spread of several differences by sqrt(2) times that. One of a million test examples in 30 runs is above it.
EQUAL = 2.0**-23

NOT_WORSE, WORSE, UNDECIDED = "not worse", "worse", "undecided"


# --- means and differences --------------------------------------------------------------------


class Estimate(NamedTuple):
    """A mean over runs with its t interval."""

    mean: float
    std: float  # n - 1 in the denominator; NaN for one run
    n: int
    low: float  # NaN where there is no interval
    high: float

    @property
    def known(self) -> bool:
        """Whether there is an interval."""
        return not math.isnan(self.low)


def estimate(values: np.ndarray | Sequence[float], level: float = LEVEL) -> Estimate:
    """Mean, spread and two-sided Student t interval of values [n].

    One value has no interval, and neither have values that are all equal: zero width would claim
    a certainty that few runs on a finite test set cannot give.
    """
    values = np.asarray(values, float)
    n = len(values)
    mean, std = float(np.mean(values)), float(np.std(values, ddof=1)) if n > 1 else math.nan
    if n < 2 or std < EQUAL:
        return Estimate(mean, std, n, math.nan, math.nan)
    half = float(special.stdtrit(n - 1, (1 + level) / 2)) * std / math.sqrt(n)
    return Estimate(mean, std, n, mean - half, mean + half)


def paired(one: np.ndarray, other: np.ndarray, level: float = LEVEL) -> Estimate:
    """Estimate of one - other from runs that share their seeds.

    Raises:
        ValueError: the numbers of runs differ.
    """
    one, other = np.asarray(one, float), np.asarray(other, float)
    if one.shape != other.shape:
        raise ValueError(f"pairs need equal numbers of runs, got {len(one)} and {len(other)}")
    return estimate(one - other, level)


def pair_correlation(one: np.ndarray, other: np.ndarray) -> float:
    """Correlation of accuracies [n] of runs in pairs, -1 to 1: how far a pair goes up and down together, which its
    difference does without; NaN for fewer than 3 pairs, or where all runs of either are equal."""
    one, other = np.asarray(one, float), np.asarray(other, float)
    if len(one) < 3 or min(np.std(one, ddof=1), np.std(other, ddof=1)) < EQUAL:
        return math.nan
    return float(np.corrcoef(one, other)[0, 1])


# --- kept sets --------------------------------------------------------------------------------


def emptied(kept: np.ndarray, total: np.ndarray, share: float = 0.2) -> np.ndarray:
    """Classes that keep less than `share` of what a random subset of that size would leave them.

    Args:
        kept, total: Examples per class [C], kept and in all.
    Returns:
        Sorted ids of the classes.
    """
    expected = np.asarray(total) * (np.sum(kept) / np.sum(total))
    return np.flatnonzero(np.asarray(kept) < share * expected)


def stability(scores: np.ndarray, size: int, draws: int = 10, seed: int = 0) -> np.ndarray:
    """How much of the kept set fewer runs would have found: overlap of their top `size` with that of all runs.

    For each r the mean over random choices of r of the R runs. The runs chosen are among all, so the curve
    ends at 1 by construction: read how early it flattens; chance is size / N. Ties are drawn by one seed, as in
    keep_max.

    Args:
        scores: [R, N], higher is kept first.
    Returns:
        float [R]: the overlap, 0 to 1, with 1, 2, …, R runs.
    """
    runs, count = scores.shape
    random = np.random.RandomState(seed)

    def top(chosen: np.ndarray) -> np.ndarray:
        member = np.zeros(count, bool)
        member[descending(scores[chosen].mean(axis=0), seed)[:size]] = True
        return member

    final = top(np.arange(runs))
    overlaps = np.ones(runs)
    for r in range(1, runs):
        chosen = [np.sort(random.permutation(runs)[:r]) for _ in range(draws)]
        overlaps[r - 1] = np.mean([(top(c) & final).sum() / size for c in chosen])
    return overlaps


# --- scores -----------------------------------------------------------------------------------


def spearman_matrix(scores: np.ndarray) -> np.ndarray:
    """Spearman correlations [K, K] of scores [K, N]; ties share their mean rank; NaN for a constant score."""
    # scipy.stats.spearmanr gives one NaN instead of a matrix where the first or second of the scores is constant.
    from scipy.stats import rankdata  # takes long to import

    with np.errstate(invalid="ignore", divide="ignore"):
        return np.atleast_2d(np.corrcoef(rankdata(scores, axis=1)))


def kendall_matrix(scores: np.ndarray) -> np.ndarray:
    """Kendall's tau-b [K, K] of scores [K, N]: of pairs of examples, the share in one order minus that in opposite
    ones, corrected for ties; NaN for a constant score."""
    from scipy.stats import kendalltau  # takes long to import

    return _of_pairs(lambda one, other: float(np.asarray(kendalltau(one, other))[0]), scores)


def top_overlap_matrix(scores: np.ndarray, size: int) -> np.ndarray:
    """Share [K, K] of the `size` examples of largest score that two scores [K, N] have in common; by chance size / N.

    Ties are drawn by one seed, as in keep_max.
    """
    tops = [set(descending(row, 0)[:size].tolist()) for row in scores]
    return _of_pairs(lambda one, other: len(one & other) / size, tops)


def _of_pairs(measure: Callable[[Any, Any], float], parts: Sequence[Any] | np.ndarray) -> np.ndarray:
    """A symmetric measure of all pairs, [K, K]."""
    found = np.empty((len(parts), len(parts)))
    for i, j in combinations_with_replacement(range(len(parts)), 2):
        found[i, j] = found[j, i] = measure(parts[i], parts[j])
    return found


class Reliability(NamedTuple):
    """Agreement of scores with what other runs would give."""

    half: float  # Spearman correlation of the means of two disjoint halves of the runs
    whole: float  # Spearman-Brown: the same, stepped up to the mean of all runs; NaN for fewer than 2 runs
    runs: int


def split_half(scores: np.ndarray, splits: int = 20, seed: int = 0) -> Reliability:
    """Reliability of the mean of scores [R, N] over runs, from random splits into disjoint halves.

    Spearman-Brown with k = R / floor(R / 2): whole = k * half / (1 + (k - 1) * half), averaged over the
    splits. 1: other runs would rank alike; 0: the ranking is noise. Where R is odd, a split leaves one run out.
    """
    runs = len(scores)
    if runs < 2:
        return Reliability(math.nan, math.nan, runs)
    half_size, random = runs // 2, np.random.RandomState(seed)
    halves = []
    for _ in range(splits if runs > 2 else 1):
        order = random.permutation(runs)
        means = [scores[order[:half_size]].mean(axis=0), scores[order[half_size : 2 * half_size]].mean(axis=0)]
        halves.append(spearman_matrix(np.stack(means))[0, 1])
    half, k = np.array(halves), runs / half_size
    with np.errstate(divide="ignore"):
        whole = np.maximum(k * half / (1 + (k - 1) * half), -1.0)  # below 0 it leaves the range
    return Reliability(float(half.mean()), float(np.mean(whole)), runs)


# --- label noise ------------------------------------------------------------------------------


def auroc(values: np.ndarray, positive: np.ndarray) -> float:
    """Chance that a positive example scores above another one, ties half: 0.5 finds nothing, 1 all.

    Args:
        values: [N].
        positive: bool [N].
    Returns:
        NaN where all or none are positive, or a value is NaN.
    """
    from sklearn.metrics import roc_auc_score

    if positive.all() or not positive.any() or np.isnan(values).any():
        return math.nan
    return float(roc_auc_score(positive, values))


def precision_at(values: np.ndarray, positive: np.ndarray, k: int) -> float:
    """Share of positives among the k largest values; expected, where ties at the border leave it to chance."""
    border = np.partition(values, len(values) - k)[len(values) - k]
    above, tied = values > border, values == border
    return float((positive[above].sum() + (k - above.sum()) * positive[tied].mean()) / k)


class Skip(NamedTuple):
    """What leaving out the hardest examples does to the positives."""

    skipped: int  # the hardest examples left out
    removed: float  # share of all positives among them
    clean: int  # other examples lost with them


def skip_for(values: np.ndarray, positive: np.ndarray, share: float) -> Skip:
    """The fewest hardest examples (those tied with the last one too) that hold `share` of the positives."""
    found = np.sort(values[positive])[::-1]
    border = found[max(1, math.ceil(share * len(found) - 1e-9)) - 1]
    return _skip(values, positive, border)


def best_skip(values: np.ndarray, positive: np.ndarray) -> Skip:
    """The skip that removes the most positives for the clean lost: Youden's index, removed share minus clean share."""
    order = np.argsort(values, kind="stable")[::-1]  # which of equals comes first does not matter
    hits = np.cumsum(positive[order])
    clean = np.arange(1, len(values) + 1) - hits
    gain = hits / max(1, hits[-1]) - clean / max(1, clean[-1])
    last = np.append(np.diff(values[order]) != 0, True)  # ends of runs of equal values
    return _skip(values, positive, float(values[order[np.argmax(np.where(last, gain, -np.inf))]]))


def _skip(values: np.ndarray, positive: np.ndarray, border: float) -> Skip:
    skipped = values >= border
    hits = int(positive[skipped].sum())
    return Skip(int(skipped.sum()), hits / int(positive.sum()), int(skipped.sum()) - hits)


# --- cost -------------------------------------------------------------------------------------


def break_even(cost: float, saving: Estimate) -> int | None:
    """Trainings on the subset after which `cost` seconds are paid back; None: never, as far as was measured.

    Args:
        saving: Seconds saved per training. Without an interval above 0 nothing is known to be saved.
    """
    if not saving.known or saving.low <= 0:
        return None
    return max(1, math.ceil(cost / saving.mean))
