"""What a study decides: how much may be dropped, by which arm, corrected for all that it compared and looked at."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from datadiet import notebook
from datadiet.errors import UserError
from datadiet.report.comparison import ALPHA, Comparison, compare
from datadiet.report.gain import regained
from datadiet.report.sequential import Looks, looks
from datadiet.report.statistics import NOT_WORSE, UNDECIDED, WORSE
from datadiet.report.words import loss

FULL = "full data"
CAN, CANNOT, NOT_DECIDED = "can", "cannot", "not decided"

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
    looks: Looks
    worth: bool = False  # whether `arm` is shown to be better than random at that fraction
    gain: float = math.nan  # of the arm over random there, on what it was not chosen on; NaN: there is no such
    change: float = math.nan  # the same over full data

    def __repr__(self) -> str:
        """One line, without what was compared."""
        return f"Verdicts({', '.join(f'{name}: {value}' for name, value in self._facts().items())})"

    def _repr_html_(self) -> str:
        """In a notebook, with the verdict of each subset."""
        told = {f"{arm} at {fraction:.4g}": self.of(arm, fraction) for arm, fraction in self.comparisons}
        return notebook.facts("What can be dropped", self._facts() | told)

    def _facts(self) -> dict[str, object]:
        keep = f"{self.kept_fraction:.0%} by {self.arm}" if self.arm else "all of the data"
        return {"answer": self.answer, "keep": keep, "margin": loss(100 * self.margin)}

    def of(self, arm: str, fraction: float) -> str:
        """NOT_WORSE, WORSE or UNDECIDED of one subset, at the level of all that was compared."""
        if fraction in self.passed[arm]:
            return NOT_WORSE
        lost = self.comparisons[arm, fraction].verdict == WORSE
        return WORSE if lost else UNDECIDED

    @property
    def open(self) -> list[Key]:
        """Subsets of which more runs might change the answer: of every arm the largest that has not passed, where it is
        undecided. With an answer, those alone that keep less and do not look worse than the margin."""
        found = []
        for arm, passed in self.passed.items():
            left = sorted((f for name, f in self.comparisons if name == arm and f not in passed), reverse=True)
            if not left or self.of(arm, left[0]) != UNDECIDED:
                continue
            promising = self.comparisons[arm, left[0]].difference > -self.margin
            if self.answer == NOT_DECIDED or (promising and left[0] < self.kept_fraction):
                found.append((arm, left[0]))
        return found


def decide(
    cells: Mapping[Key, Any],
    margin: float = 0.005,
    random: str = "random",
    looked: Sequence[int] = (),
    planned: int | None = None,
) -> Verdicts:
    """What may be dropped, with a chance of at most 2.5 % that any fraction named so truly loses more than the margin.

    Down the fractions of an arm, from the largest on, each is tested at the level of its arm and the first that fails
    ends the arm (fixed sequence). Arms share 2.5 % equally, and what ends without a failure leaves its share to the
    others (Holm 1979; as a graph: Bretz et al. 2009). Of arms that reach the smallest fraction, random is named unless
    another is shown to be better than it, which errs with a chance of at most 2.5 % too.

    Whoever looks again after more runs says so by `looked`: levels are then lower, so that all looks up to the planned
    number of runs err with a chance of at most 2.5 %, and all that ever follow of 5 %; see `sequential.py`.

    Args:
        cells: bool [S, M] as `compare` takes them, by (arm, kept fraction); ("full data", 1.0) is one of them.
        margin: Loss of accuracy that would not matter, above 0 and below 1.
        random: The arm that chooses without a score.
        looked: Numbers of runs of the looks before this one; empty: there was none.
        planned: Number of runs that was planned before the first look; None: that of the first look.
    Raises:
        UserError: no full data, no subset, a fraction out of range, other runs or test examples in a cell, fewer
            runs than were looked at, or `random` in another case.
    """
    arms = {arm: None for arm, _ in cells}
    if random not in arms and (alike := [arm for arm in arms if arm.lower() == random.lower()]):
        raise UserError(f"cells: got an arm {alike[0]!r}, expected {random!r} for chance: pass random={alike[0]!r}.")
    found = _against_full(cells, margin)
    runs = next(iter(found.values())).runs
    return conclude(found, lambda one, other: compare(cells[one], cells[other]), cells, margin, random,
                    looks(looked, runs, planned))  # fmt: skip


def conclude(
    found: Mapping[Key, Comparison],
    comparing: Callable[[Key, Key], Comparison],
    answers: Mapping[Key, Any],
    margin: float,
    random: str,
    seen: Looks,
    keeping: Collection[str] = (),
) -> Verdicts:
    """`decide` of subsets that have been compared with full data.

    Args:
        comparing: Compares two of them.
        answers: Of subsets and full data, right or wrong [S, M], or accuracies [S, 1]; empty: gains are not estimated.
        keeping: Arms that drop nothing: they are judged like the others, and never what may be dropped.
    """
    by_arm: dict[str, dict[float, Comparison]] = {arm: {} for arm, _ in found}
    level = seen.level(ALPHA / len(by_arm))
    found = {key: replace(one, level=level) for key, one in found.items()}
    for (arm, fraction), one in sorted(found.items(), key=lambda item: -item[0][1]):
        by_arm[arm][fraction] = one
    passed = _passed(by_arm, seen)
    reached = {arm: fractions[-1] for arm, fractions in passed.items() if fractions and arm not in keeping}
    if not reached:
        first = [next(iter(sequence.values())) for arm, sequence in by_arm.items() if arm not in keeping]
        lost = all(one.verdict == WORSE for one in first)
        return Verdicts(margin, 1.0, None, CANNOT if lost else NOT_DECIDED, found, passed, seen)
    fraction = min(reached.values())
    able = [arm for arm, least in reached.items() if least == fraction and arm != random]
    better = _better(able, fraction, random, found, comparing, seen)
    if random in by_arm and reached.get(random) == fraction:
        able = better or [random]
    best = max(able, key=lambda arm: found[arm, fraction].difference)
    told = Verdicts(margin, fraction, best, CAN, found, passed, seen, best in better)
    if best == random or (best, fraction) not in answers:
        return told
    rivals = [answers[key] for key in found if key[0] not in (random, *keeping) and key[1] == fraction]
    over = [regained(rivals, answers[key]) if key in answers else math.nan for key in ((random, fraction), (FULL, 1.0))]
    return replace(told, gain=over[0], change=over[1])


def _better(
    arms: Sequence[str], fraction: float, random: str, found: Mapping[Key, Comparison],
    comparing: Callable[[Key, Key], Comparison], seen: Looks,
) -> list[str]:  # fmt: skip
    """Those shown to be better than random at a fraction, at the level of all at which that could have been asked:
    which fraction it is was chosen by the data."""
    if (random, fraction) not in found:
        return []
    asked = sum(arm != random and (random, f) in found for arm, f in found)
    level = seen.level(ALPHA / max(1, asked))
    return [arm for arm in arms if comparing((arm, fraction), (random, fraction)).bounds(level)[0] > 0]


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


def _passed(by_arm: Mapping[str, Mapping[float, Comparison]], seen: Looks) -> dict[str, tuple[float, ...]]:
    """Fractions of every arm that are shown to be not worse; see `decide`."""
    passed, ended = dict.fromkeys(by_arm, 0), 0
    while True:
        left = [arm for arm, sequence in by_arm.items() if passed[arm] < len(sequence)]
        for arm in left:
            level = seen.level(ALPHA / len(left))
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
