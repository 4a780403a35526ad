"""From the evidence of a study to a decision: what may be dropped, how sure that is, what it costs, when it pays."""

from __future__ import annotations

from functools import cached_property
from itertools import pairwise
from typing import NamedTuple

import numpy as np

from datadiet.errors import UserError
from datadiet.report import statistics as st
from datadiet.report.comparison import ALPHA, Comparison, compare, compare_accuracies
from datadiet.report.cost import Cost, cost_of
from datadiet.report.evidence import CellResult, Study
from datadiet.report.sequential import Looks, looks
from datadiet.report.statistics import Estimate
from datadiet.report.verdicts import Cliff, Verdicts, cliff, conclude
from datadiet.selectors.options import LIKE, RANDOM


def check_margin(margin: float) -> None:
    """Raises UserError where it is no number of percentage points above 0 and below 100."""
    if not 0 < margin < 100:  # NaN is neither
        raise UserError(f"margin={margin}: expected percentage points above 0 and below 100, such as 0.5.")


class Line(NamedTuple):
    """A cell, compared."""

    cell: CellResult
    accuracy: Estimate
    minus_random: Estimate | None  # None for random itself, all of the data, and where no random subset is as large
    minus_full: Estimate | None  # None for all of the data
    verdict: str | None


class ClassWarning(NamedTuple):
    """Classes of which a subset keeps much less than its share."""

    cell: CellResult
    classes: list[int]


class Decision:
    """All that a study says at a margin.

    Args:
        margin: The loss of test accuracy that would not matter, in percentage points.
    """

    def __init__(self, study: Study, margin: float) -> None:
        self.study, self.margin = study, margin

    @cached_property
    def looks(self) -> Looks:
        """Numbers of runs at which this study was looked at, this time included."""
        record = self.study.record
        return looks([look.runs for look in record.looks], len(self.study.full.paths), self.study.planned_runs)

    def level(self, alpha: float) -> float:
        """Of a test at this look, for a chance of error over all looks."""
        return self.looks.level(alpha)

    @cached_property
    def lines(self) -> list[Line]:
        """Every cell, all of the data first, then by arm from the largest size to the smallest."""
        study = self.study
        cells = [study.full, *(cell for arm in study.arms for cell in study.of_arm(arm))]
        return [self._line(cell) for cell in cells]

    def _line(self, cell: CellResult) -> Line:
        full = self.study.full
        accuracy = st.estimate(cell.accuracies)
        if cell is full:
            return Line(cell, accuracy, None, None, None)
        random = self.study.cell(RANDOM, cell.size) if cell.arm != RANDOM else None
        minus_random = _estimate(cell, random, self._compared(cell, random)) if random else None
        minus_full = _estimate(cell, full, self.verdicts.comparisons[cell.arm, cell.fraction])
        return Line(cell, accuracy, minus_random, minus_full, self.verdicts.of(cell.arm, cell.fraction))

    def minus_like(self, line: Line) -> Estimate | None:
        """The difference to a random subset with as many of each class; None where there is none."""
        like = self.study.cell(f"{RANDOM} {LIKE} {line.cell.arm}", line.cell.size)
        return _estimate(line.cell, like, self._compared(line.cell, like)) if like else None

    @cached_property
    def verdicts(self) -> Verdicts:
        """Of all subsets, corrected for all that was compared."""
        cells, full = {(cell.arm, cell.fraction): cell for cell in self.study.cells}, self.study.full
        found = {key: self._compared(cell, full) for key, cell in cells.items() if cell is not full}
        told = all(cell.correct is not None for cell in cells.values())
        answers = {key: cell.correct if told else cell.accuracies[:, None] for key, cell in cells.items()}
        keeping = {arm for (arm, _), cell in cells.items() if not cell.drops}
        return conclude(
            found, lambda one, other: self._compared(cells[one], cells[other]), answers, self.margin / 100, RANDOM,
            self.looks, keeping,
        )  # fmt: skip

    def _compared(self, one: CellResult, other: CellResult) -> Comparison:
        if one.correct is not None and other.correct is not None:
            return compare(one.correct, other.correct, self.margin / 100)
        # Of 2 examples nothing follows: the size of the test set may not be known either.
        return compare_accuracies(one.accuracies, other.accuracies, self.study.num_test or 2, self.margin / 100)

    @cached_property
    def best(self) -> Line | None:
        """What to keep; None where nothing may be dropped."""
        key = self.verdicts.arm, self.verdicts.kept_fraction
        return next((line for line in self.lines if (line.cell.arm, line.cell.fraction) == key), None)

    def smallest(self, arm: str) -> float | None:
        """The smallest fraction that an arm may keep."""
        return min(self.verdicts.passed[arm], default=None)

    @property
    def nearest(self) -> Comparison:
        """Of the subset shown, with all of the data."""
        return self.verdicts.comparisons[self.shown.cell.arm, self.shown.cell.fraction]

    @cached_property
    def shown(self) -> Line:
        """The subset that pictures and prices are about: what to keep, else the one closest to all of the data."""
        subsets = [line for line in self.lines if line.minus_full and line.cell.drops]
        return self.best or max(subsets, key=lambda line: line.accuracy.mean)

    def pair_correlation(self, cell: CellResult) -> float:
        """Of a subset's runs with those on all of the data; nothing is chosen by it, since the plan makes the pairs."""
        return st.pair_correlation(cell.accuracies, self.study.full.accuracies)

    @cached_property
    def cliffs(self) -> dict[str, Cliff]:
        """By arm, where it breaks down; all that could be called one are wrong together with a chance of 2.5 %."""
        level, found = self.level(ALPHA / (2 * (len(self.study.cells) - 1))), {}
        for arm in self.study.arms:
            cells = self.study.of_arm(arm)
            falls = {low.fraction: self._compared(low, high) for high, low in pairwise([self.study.full, *cells])}
            random = {cell.fraction: self.study.cell(RANDOM, cell.size) for cell in cells if arm != RANDOM}
            below = {cell.fraction: self._compared(cell, r) for cell in cells if (r := random.get(cell.fraction))}
            if one := cliff(falls, below, level, self.margin / 100):
                found[arm] = one
        return found

    @cached_property
    def worst_run(self) -> float:
        """How far the subset shown is below all of the data in the worst pair of runs, as a difference, -1 to 1."""
        return float((self.shown.cell.accuracies - self.study.full.accuracies).min())

    @cached_property
    def worst_class(self) -> tuple[str, Comparison] | None:
        """Of the subset shown, the class that loses most; None where test labels or answers cannot be had."""
        one, full, labels = self.shown.cell.correct, self.study.full.correct, self.study.test_labels
        if one is None or full is None or labels is None or one.shape[1] != len(labels):
            return None
        tested = {c: labels == c for c in range(len(self.study.class_names))}
        found = {c: compare(one[:, own], full[:, own], self.margin / 100) for c, own in tested.items() if own.sum() > 1}
        if not found:
            return None
        worst = min(found, key=lambda c: found[c].difference)
        return self.study.class_names[worst], found[worst]

    @cached_property
    def emptied(self) -> list[ClassWarning]:
        """Subsets that keep less than a fifth of a class's share."""
        total = self.study.full.kept_per_class
        cells = [line.cell for line in self.lines[1:]]
        found = [ClassWarning(cell, st.emptied(cell.kept_per_class, total).tolist()) for cell in cells]
        return [warning for warning in found if warning.classes]

    @cached_property
    def reliability(self) -> dict[str, st.Reliability]:
        """By name of the score."""
        return {score.name: st.split_half(score.runs) for score in self.study.scores}

    @cached_property
    def stability(self) -> dict[str, np.ndarray]:
        """By name of the score, the overlap of the kept set with 1, 2, … runs, at the size shown."""
        return {s.name: st.stability(s.runs, self.shown.cell.size) for s in self.study.scores if len(s.runs) > 1}

    @cached_property
    def agreement(self) -> tuple[list[str], dict[str, np.ndarray]]:
        """Names of the scores and of the control, and how they agree with each other, [K, K], in several manners."""
        columns = {score.name: score.mean for score in self.study.scores}
        if self.study.input_norm is not None:
            columns["input norm"] = self.study.input_norm
        values = np.stack(list(columns.values()))
        return list(columns), {
            "spearman": st.spearman_matrix(values),
            "kendall": st.kendall_matrix(values),
            "top": st.top_overlap_matrix(values, self.shown.cell.size),
        }

    def cost(self, line: Line) -> Cost:
        """What choosing this subset cost, and what a training on it saves."""
        return cost_of(self.study, line.cell)


def _estimate(one: CellResult, other: CellResult, compared: Comparison) -> Estimate:
    """Their difference with its interval for new runs and new test examples."""
    return st.paired(one.accuracies, other.accuracies)._replace(low=compared.low, high=compared.high)


def noise_audit(study: Study) -> list[dict[str, float | int | str]]:
    """How well each score, and the control, finds labels that were randomised or given; [] where none is another than
    the data's own."""
    if study.noise is None or not study.noise.changed.any():
        return []
    changed, k = study.noise.changed, int(study.noise.changed.sum())
    columns = {score.name: score.mean for score in study.scores}
    if study.input_norm is not None:
        columns["input norm"] = study.input_norm
    found: list[dict[str, float | int | str]] = []
    for name, values in columns.items():
        best, most = st.best_skip(values, changed), st.skip_for(values, changed, 0.9)
        found.append({
            "score": name, "auroc": st.auroc(values, changed), "k": k, "precision": st.precision_at(values, changed, k),
            "best_skip": best.skipped, "best_removed": best.removed, "best_clean": best.clean,
            "skip_90": most.skipped, "clean_90": most.clean,
        })  # fmt: skip
    return found
