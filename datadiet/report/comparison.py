"""Whether training on a subset loses accuracy, for new runs and new test examples: two sources of chance, crossed.

d[r, m] is the difference of two networks of a pair of runs r on test example m: 1, 0 or -1. It is taken apart as

    d[r, m] = mean + run[r] + example[m] + rest[r, m],

all three random, with the mean squares of the two-way table. Source: Scheffé 1959, The Analysis of Variance, chapter 7;
degrees of freedom by Satterthwaite 1946.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Container, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from scipy import stats

from datadiet.errors import UserError
from datadiet.report.statistics import LEVEL, NOT_WORSE, UNDECIDED, WORSE

ALPHA = (1 - LEVEL) / 2  # chance that a verdict, or one of all verdicts of a study, is wrong
POWER = 0.9
# One run does not tell how much whole runs shift. Its examples' variance is taken for 1.25 times what it is: intervals
# then hold at 94 to 97.5 % where the shift adds up to a third of it.
SHIFT_OF_ONE_RUN = 0.25
FULL = "full data"


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

    def bounds(self, alpha: float = ALPHA) -> tuple[float, float]:
        """Two one-sided bounds of the difference, each missed with chance `alpha`: for new runs and new examples."""
        variance, freedom = self._chance
        half = float(stats.t.ppf(1 - alpha, freedom)) * math.sqrt(variance)
        if not self.disagreements:  # none in M examples: that they are rarer than so is known exactly
            half = max(half, 1 - alpha ** (1 / self.examples))
        return max(-1.0, self.difference - half), min(1.0, self.difference + half)

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
        half = float(stats.t.ppf(1 - ALPHA, self.runs - 1)) * spread
        return self.difference - half, self.difference + half

    def verdict_at(self, alpha: float) -> str:
        """NOT_WORSE where the lower bound is above -margin, WORSE where the upper one is below, else UNDECIDED."""
        low, high = self.bounds(alpha)
        if low > -self.margin:
            return NOT_WORSE
        return WORSE if high < -self.margin else UNDECIDED

    @property
    def verdict(self) -> str:
        """Of this comparison alone, each answer wrong with a chance of 2.5 %."""
        return self.verdict_at(ALPHA)

    @property
    def smallest_margin(self) -> float:
        """The smallest margin, 0 to 1, at which this many test examples can show that nothing is lost, however many
        runs there are: where nothing is lost, with a chance of 90 %."""
        return self._reach * math.sqrt(self._of_test_set)

    @property
    def runs_needed(self) -> int | None:
        """About how many runs show at the margin that nothing is lost, where nothing is, with a chance of 90 %.

        None: no number of runs does, because the margin is below `smallest_margin`.
        """
        left = (self.margin / self._reach) ** 2 - self._of_test_set
        if left <= 0:
            return None
        of_a_run = self.runs * self._chance[0] - self.runs * self._of_test_set
        return max(1, math.ceil(of_a_run / left))

    @property
    def _reach(self) -> float:
        return float(stats.norm.ppf(1 - ALPHA) + stats.norm.ppf(POWER))

    @property
    def _of_test_set(self) -> float:
        """Variance that stays with any number of runs. Of one run, all of its examples' variance may be that."""
        rest = 0.0 if self.runs == 1 else self.of_rest
        return max(self.of_examples - rest, self.runs / (self.examples - 1)) / (self.runs * self.examples)


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
    free = max(1, runs - 1)
    return Comparison(
        runs, examples, mean, float(margin),
        of_runs=max(0.0, by_runs) / free if runs > 1 else math.nan,
        of_examples=by_examples / (examples - 1),
        of_rest=max(0.0, rest) / (free * (examples - 1)) if runs > 1 else math.nan,
        disagreements=int(disagreements),
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


# --- a whole study ----------------------------------------------------------------------------


Key = tuple[str, float]  # an arm and the fraction that it keeps


@dataclass(frozen=True)
class Verdicts:
    """What a study decides, corrected for all that it compared; see `decide`."""

    margin: float
    kept_fraction: float  # the smallest that may be kept; 1.0: nothing can be dropped
    arm: str | None  # by which; None: nothing can be dropped
    answer: str  # CAN, CANNOT or NOT_DECIDED
    comparisons: Mapping[Key, Comparison]  # with full data
    passed: Mapping[str, tuple[float, ...]]  # fractions shown to be not worse, by arm, the largest first

    def of(self, arm: str, fraction: float) -> str:
        """NOT_WORSE, WORSE or UNDECIDED of one subset, at the level of all that was compared."""
        if fraction in self.passed[arm]:
            return NOT_WORSE
        lost = self.comparisons[arm, fraction].verdict_at(ALPHA / len(self.passed)) == WORSE
        return WORSE if lost else UNDECIDED


CAN, CANNOT, NOT_DECIDED = "can", "cannot", "not decided"


def decide(cells: Mapping[Key, Any], margin: float = 0.005, random: str = "random") -> Verdicts:
    """What may be dropped, with a chance of at most 2.5 % that any fraction named so truly loses more than the margin.

    Down the fractions of an arm, from the largest on, each is tested at the level of its arm and the first that fails
    ends the arm (fixed sequence). Arms share 2.5 % equally, and what ends without a failure leaves its share to the
    others (Holm 1979; as a graph: Bretz et al. 2009). Of arms that reach the smallest fraction, random is named unless
    another is shown to be better than it.

    Args:
        cells: bool [S, M] as `compare` takes them, by (arm, kept fraction); ("full data", 1.0) is one of them.
        margin: Loss of accuracy that would not matter, above 0 and below 1.
        random: The arm that chooses without a score.
    Raises:
        UserError: no full data, no subset, a fraction out of range, or other runs or test examples in a cell.
    """
    found = _against_full(cells, margin)
    return conclude(found, lambda one, other: compare(cells[one], cells[other]), margin, random)


def conclude(
    found: Mapping[Key, Comparison], comparing: Callable[[Key, Key], Comparison], margin: float, random: str,
    keeping: Container[str] = (),
) -> Verdicts:  # fmt: skip
    """`decide` of subsets that have been compared with full data.

    Args:
        comparing: Compares two of them.
        keeping: Arms that drop nothing: they are judged like the others, and never what may be dropped.
    """
    by_arm: dict[str, dict[float, Comparison]] = {arm: {} for arm, _ in found}
    for (arm, fraction), one in sorted(found.items(), key=lambda item: -item[0][1]):
        by_arm[arm][fraction] = one
    passed = _passed(by_arm)
    reached = {arm: fractions[-1] for arm, fractions in passed.items() if fractions and arm not in keeping}
    if not reached:
        first = [next(iter(sequence.values())) for arm, sequence in by_arm.items() if arm not in keeping]
        lost = all(one.verdict_at(ALPHA / len(by_arm)) == WORSE for one in first)
        return Verdicts(margin, 1.0, None, CANNOT if lost else NOT_DECIDED, found, passed)
    fraction = min(reached.values())
    able = [arm for arm, least in reached.items() if least == fraction]
    if random in able:
        level = ALPHA / max(1, len(by_arm) - 1)
        others = [(arm, comparing((arm, fraction), (random, fraction))) for arm in able if arm != random]
        able = [arm for arm, one in others if one.bounds(level)[0] > 0] or [random]
    best = max(able, key=lambda arm: found[arm, fraction].difference)
    return Verdicts(margin, fraction, best, CAN, found, passed)


def _against_full(cells: Mapping[Key, Any], margin: float) -> dict[Key, Comparison]:
    """Every subset compared with full data; raises as `decide` does."""
    subsets = [key for key in cells if key[0] != FULL]
    if (FULL, 1.0) not in cells or not subsets:
        raise UserError(f"cells: expected ({FULL!r}, 1.0) and subsets; got {', '.join(map(str, cells)) or 'none'}.")
    found = {}
    for arm, fraction in subsets:
        if not 0 < fraction < 1:
            raise UserError(f"cells: {arm} keeps a fraction of {fraction}; expected one above 0 and below 1.")
        try:
            found[arm, fraction] = compare(cells[arm, fraction], cells[FULL, 1.0], margin)
        except UserError as error:
            raise UserError(f"cells: {arm} at {fraction}: {error}") from None
    return found


def _passed(by_arm: Mapping[str, Mapping[float, Comparison]]) -> dict[str, tuple[float, ...]]:
    """Fractions of every arm that are shown to be not worse; see `decide`."""
    passed, ended = dict.fromkeys(by_arm, 0), 0
    while True:
        left = [arm for arm, sequence in by_arm.items() if passed[arm] < len(sequence)]
        for arm in left:
            level = ALPHA / len(left)
            sequence = list(by_arm[arm].values())
            while passed[arm] < len(sequence) and sequence[passed[arm]].verdict_at(level) == NOT_WORSE:
                passed[arm] += 1
        before, ended = ended, sum(passed[arm] == len(sequence) for arm, sequence in by_arm.items())
        if ended in (before, len(by_arm)):
            return {arm: tuple(by_arm[arm])[: passed[arm]] for arm in by_arm}


# --- where an arm breaks down -----------------------------------------------------------------


@dataclass(frozen=True)
class Cliff:
    """The largest fraction at which an arm is shown to break down."""

    fraction: float
    below_random: Comparison | None  # with random there, if that is the reason
    fall: Comparison  # with the next larger fraction


def cliff(
    falls: Mapping[float, Comparison], below: Mapping[float, Comparison], level: float, least: float, drop: float = 0.05
) -> Cliff | None:
    """Where an arm falls below random by `least` or more, or by `drop` or more in one step, and that is no chance.

    Args:
        falls: Of every fraction, with the next larger one; of the largest, with full data.
        below: Of fractions at which there is a random subset, with that.
        level: Chance of error of each comparison.
    """

    def shown(one: Comparison | None, size: float) -> bool:
        return one is not None and one.difference <= -size and one.bounds(level)[1] < 0

    for fraction in sorted(falls, reverse=True):
        random = below.get(fraction)
        if shown(random, least) or shown(falls[fraction], drop):
            return Cliff(fraction, random if shown(random, least) else None, falls[fraction])
    return None
