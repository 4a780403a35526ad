"""Whether training on a subset loses accuracy, for new runs and new test examples: two sources of chance, crossed.

d[r, m] is the difference of two networks of a pair of runs r on test example m: 1, 0 or -1. It is taken apart as

    d[r, m] = mean + run[r] + example[m] + rest[r, m],

all three random, with the mean squares of the two-way table. Source: Scheffé 1959, The Analysis of Variance, chapter 7;
degrees of freedom by Satterthwaite 1946.

Where few examples decide, as the 5 of 1,000 that a subset always loses, the mean is skewed: whoever happens to see few
of them sees a small difference and a small variance at once. Bounds lie further out for that, by Johnson 1978, Modified
t Tests and Confidence Intervals for Asymmetrical Populations, with the skewness that there would be at the bound, and
by half an example for the steps of a count. Of a mere count, however rare, they are nearly the exact ones.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from scipy import special

from datadiet.errors import UserError
from datadiet.report.statistics import LEVEL, NOT_WORSE, UNDECIDED, WORSE

ALPHA = (1 - LEVEL) / 2  # chance that a verdict, or one of all verdicts of a study, is wrong
POWER = 0.9
# One run does not tell how much whole runs shift. Its examples' variance is taken for 1.25 times what it is: intervals
# then hold at 94 to 98 % where the shift adds up to a third of it.
SHIFT_OF_ONE_RUN = 0.25


@dataclass(frozen=True)
class Comparison:
    """A paired difference of test accuracies, one - full, judged at a margin; see `compare`."""

    runs: int  # S
    examples: int  # M
    difference: float  # -1 to 1; positive: `one` is more accurate
    margin: float  # loss of accuracy that would not matter, 0 to 1
    of_runs: float  # mean squares: expected M var(run) + var(rest); NaN for one run
    of_examples: float  # S var(example) + var(rest)
    of_rest: float  # var(rest); NaN for one run
    disagreements: int  # of all S * M
    squares: float  # sums over examples of their mean difference less `difference`, squared and to the third power
    cubes: float
    level: float = ALPHA  # chance of error that a verdict may have; lower where there are others beside it

    @cached_property
    def _chance(self) -> tuple[float, float]:
        """Variance of `difference` over new runs and new examples, and its degrees of freedom.

        A component that comes out negative counts as none, which is the conservative form.
        """
        if self.runs == 1:
            return (1 + SHIFT_OF_ONE_RUN) * self.of_examples / self.examples, self.examples - 1
        runs, examples, rest = max(self.of_runs, self.of_rest), max(self.of_examples, self.of_rest), self.of_rest
        if runs == rest:  # no shift of whole runs is seen
            return examples / (self.runs * self.examples), self.examples - 1
        total = runs + examples - rest
        free = np.array([self.runs - 1, self.examples - 1, (self.runs - 1) * (self.examples - 1)])
        freedom = total**2 / float((np.square([runs, examples, rest]) / free).sum())
        return total / (self.runs * self.examples), freedom

    @cached_property
    def _least_freedom(self) -> float:
        """Degrees of freedom of `_chance` as though a shift of whole runs were seen: few runs do not show one that is
        there."""
        if self.runs == 1:
            return self.examples - 1
        runs, examples = max(self.of_runs, self.of_rest), max(self.of_examples, self.of_rest)
        total = runs + examples - self.of_rest
        return total**2 / (runs**2 / (self.runs - 1) + examples**2 / (self.examples - 1))

    def bounds(self, alpha: float = ALPHA) -> tuple[float, float]:
        """Two one-sided bounds of the difference, each missed with chance `alpha`: for new runs and new examples."""
        variance, freedom = self._chance
        if alpha < 0.999 * ALPHA:  # one of several: there an error of the variance counts more
            freedom = min(freedom, self._least_freedom)
        half = float(special.stdtrit(freedom, 1 - alpha)) * math.sqrt(variance)
        if not self.disagreements:  # none in M examples: that they are rarer than so is known exactly
            half = max(half, unseen(alpha, self.examples))
            return -half, half
        low, high = (skew(alpha, self.squares, side * self.cubes, self.examples) for side in (-1, 1))
        return max(-1.0, self.difference - half - low), min(1.0, self.difference + half + high)

    @property
    def low(self) -> float:
        """Lower end of the 95 % interval."""
        return self.bounds()[0]

    @property
    def high(self) -> float:
        """Upper end of the 95 % interval."""
        return self.bounds()[1]

    @property
    def this_test_set(self) -> tuple[float, float]:
        """The 95 % interval for new runs on these very test examples; NaN for one run, or for runs that all differ
        by the same."""
        if self.runs == 1 or not self.of_runs:
            return math.nan, math.nan
        spread = math.sqrt(self.of_runs / (self.runs * self.examples))
        half = float(special.stdtrit(self.runs - 1, 1 - ALPHA)) * spread
        return self.difference - half, self.difference + half

    def verdict_at(self, alpha: float) -> str:
        """NOT_WORSE where the lower bound is above -margin, WORSE where the upper one is below, else UNDECIDED."""
        low, high = self.bounds(alpha)
        if low > -self.margin:
            return NOT_WORSE
        return WORSE if high < -self.margin else UNDECIDED

    @property
    def verdict(self) -> str:
        """Each answer wrong with a chance of `level`: of 2.5 %, unless it is one of several."""
        return self.verdict_at(self.level)

    @property
    def smallest_margin(self) -> float:
        """The smallest margin, 0 to 1, at which this many test examples can show that nothing is lost, however many
        runs there are: where nothing is lost, with a chance of 90 %."""
        least = least_margin(self._of_test_set, self.examples, self.level)
        return least if self.disagreements else min(least, unseen(self.level, self.examples))

    @property
    def runs_needed(self) -> int | None:
        """About how many runs show at the margin that nothing is lost, where nothing is, with a chance of 90 %.

        None: no number of runs does, because the margin is below `smallest_margin`.
        """
        left = most_variance(self.margin, self.examples, self.level) - self._of_test_set
        if left <= 0:
            return None if self.margin <= self.smallest_margin else 1
        of_a_run = self.runs * self._chance[0] - self.runs * self._of_test_set
        return max(1, math.ceil(of_a_run / left))

    @property
    def _of_test_set(self) -> float:
        """Variance that stays with any number of runs. Of one run, all of its examples' variance may be that."""
        rest = 0.0 if self.runs == 1 else self.of_rest
        return max(self.of_examples - rest, self.runs / (self.examples - 1)) / (self.runs * self.examples)


def unseen(alpha: float, examples: int) -> float:
    """The largest share of all examples of which `examples` that were drawn may contain none, with that chance."""
    return 1 - alpha ** (1 / examples)


def skew(alpha: float, squares: float, cubes: float, examples: int) -> float:
    """By how much a bound lies further out because what would move it is rare: as many unseen examples as take it there
    count with those that were seen.

    Args:
        squares, cubes: Sums over examples of their mean differences, less the mean of all, squared, and to the third
            power, above 0 where they lean to the side of the bound.
        examples: M.
    """
    z = -float(special.ndtri(alpha))
    more = z * math.sqrt(squares + 1)
    lean = max(0.0, more + cubes) / (more + squares)  # third moment by second: 1 where all is won or lost entirely
    return (z**2 + 2) / 3 * lean / examples


def least_margin(variance: float, examples: int, level: float) -> float:
    """The smallest margin that can be shown at `level`, where nothing is lost, with a chance of 90 %.

    Args:
        variance: Of the difference, over what is drawn anew: at least 1 / M**2.
        examples: M.
    """
    errors = float(special.ndtri(1 - level) + special.ndtri(POWER))  # standard ones that the margin has to be wide
    return errors * math.sqrt(variance) + skew(level, variance * examples**2 - 1, 0.0, examples)


def most_variance(margin: float, examples: int, level: float) -> float:
    """The largest variance with which that margin can be shown, `least_margin` turned round; 0: with none."""
    low, high = 1 / examples**2, 1.0
    if least_margin(low, examples, level) > margin:
        return 0.0
    for _ in range(60):
        middle = math.sqrt(low * high)
        low, high = (middle, high) if least_margin(middle, examples, level) <= margin else (low, middle)
    return low


def compare(one: Any, full: Any, margin: float = 0.005) -> Comparison:
    """Compare two ways to train by the test examples that each run gets right.

    Args:
        one, full: bool [S, M], whether each of S runs is right about each of M test examples; runs at equal positions
            are pairs, as those that share their seeds. One run may be [M].
        margin: Loss of accuracy that would not matter, above 0 and below 1.
    Returns:
        `difference`, and the 95 % interval `low` to `high` for new runs and new test examples; `verdict`,
        `smallest_margin`, `runs_needed`.
    Raises:
        UserError: other shapes, values that are not right or wrong, or fewer than 2 test examples.
    """
    right, other = _answers("one", one), _answers("full", full)
    if right.shape != other.shape:
        raise UserError(
            f"one has {_shape(right)}, full {_shape(other)}: expected runs in pairs, on the same test examples."
        )
    check_margin(margin)
    runs, examples = right.shape
    if not runs or examples < 2:
        raise UserError(f"{_shape(right)}: expected at least one run and two test examples.")
    differences = right.astype(np.int8) - other.astype(np.int8)
    rows, columns = differences.sum(axis=1, dtype=np.int64), differences.sum(axis=0, dtype=np.int64)
    mean, disagreements = int(rows.sum()) / differences.size, np.count_nonzero(differences)
    by_runs = float(np.square(rows).sum()) / examples - differences.size * mean**2
    by_examples = float(np.square(columns).sum()) / runs - differences.size * mean**2
    rest = disagreements - differences.size * mean**2 - by_runs - by_examples
    # Two half examples more, one in favour of either, so that few disagreements do not look certain: Agresti, Min 2005.
    by_examples += runs
    centred = columns / runs - mean
    free = max(1, runs - 1)
    return Comparison(
        runs, examples, mean, float(margin),
        of_runs=max(0.0, by_runs) / free if runs > 1 else math.nan,
        of_examples=by_examples / (examples - 1),
        of_rest=max(0.0, rest) / (free * (examples - 1)) if runs > 1 else math.nan,
        disagreements=int(disagreements),
        squares=float((centred**2).sum()), cubes=float((centred**3).sum()),
    )  # fmt: skip


def compare_accuracies(one: np.ndarray, full: np.ndarray, examples: int, margin: float) -> Comparison:
    """`compare` where only the accuracies [S] of runs are known, in pairs: as wide as the test set's chance may be.

    Two networks disagree at most where either is wrong, so the variance of a difference over examples is at most the
    sum of their errors.

    Args:
        examples: M.
    """
    runs, differences = len(one), np.asarray(one, float) - np.asarray(full, float)
    errors = float(np.mean(1 - np.asarray(one)) + np.mean(1 - np.asarray(full)))
    spread = float(np.var(differences, ddof=1)) if runs > 1 else math.nan
    return Comparison(
        runs, examples, float(differences.mean()), margin, of_runs=examples * spread,
        of_examples=runs * (errors + 1 / examples), of_rest=0.0 if runs > 1 else math.nan, disagreements=1,
        squares=0.0, cubes=0.0,
    )  # fmt: skip


def check_margin(margin: float) -> None:
    """Raises UserError where it is no part of 1."""
    if not 0 < margin < 1:  # NaN is neither
        raise UserError(f"margin={margin}: expected a part of 1, above 0, as 0.005 for half a percentage point.")


def _answers(name: str, given: Any) -> np.ndarray:
    """bool [S, M]."""
    values = np.asarray(given)
    values = values[None] if values.ndim == 1 else values
    binary = values.dtype == bool or (values.dtype.kind in "iuf" and np.isin(values, (0, 1)).all())
    if values.ndim != 2 or not binary:
        got = f"{values.dtype} {list(values.shape)}{'' if binary else ' with other values than 0 and 1'}"
        raise UserError(f"{name}: expected right or wrong of runs and test examples, bool [S, M]; got {got}.")
    return values.astype(bool)


def _shape(answers: np.ndarray) -> str:
    return f"{answers.shape[0]} runs of {answers.shape[1]} test examples"
