"""What more runs or a larger test set would tell, and what looking again costs, in words."""

from __future__ import annotations

import math

from datadiet.report.comparison import ALPHA, Comparison, most_variance, unseen
from datadiet.report.decision import Decision
from datadiet.report.evidence import RANDOM
from datadiet.report.words import loss


def reachable(near: Comparison) -> str:
    """The smallest margin that a test set can show where nothing is lost, and how many runs the one asked for takes."""
    needed = near.runs_needed and f"; to show {loss(100 * near.margin)} takes about {near.runs_needed:,} runs a subset"
    return (
        f"Where nothing is lost, this test set can show margins of {100 * near.smallest_margin:.2f} points or more, "
        f"with any number of runs{needed or ''}."
    )


def bound(num_test: int, margin: float, arms: int) -> str:
    """What the size of a test set alone tells before anything is trained.

    That two trainings differ in what they get right, run for run, on a share q of the test examples gives a difference
    a variance of q / M that no number of runs takes away, and q is taken for at least 1 / M. Where they never differ in
    M test examples, they may still do so in others.

    Args:
        num_test: M.
        margin: In percentage points.
        arms: Ways to choose that share the chance of error.
    """
    least = 100 * unseen(ALPHA / arms, num_test)
    share = num_test * max(most_variance(margin / 100, num_test, ALPHA / arms), num_test**-2)
    told = f"A bound from the size of the test set alone, {num_test:,} examples, with any number of runs: "
    if margin < least:
        return (
            f"{told}where nothing is lost, no margin below {least:.2f} points can be shown, and {margin:g} was asked "
            "for. It takes a larger test set, or a larger margin."
        )
    return (
        f"{told}{loss(margin)} can be decided only where, run for run, all of the data and a subset differ on at "
        f"most {100 * min(share, 1.0):.2g} % of the test examples; no margin below {least:.2f} points can be."
    )


def looked(decision: Decision) -> list[str]:
    """How looks at more and more runs are paid for; [] where there was the planned one alone."""
    seen = decision.looks
    runs, planned = seen.runs, seen.planned
    if len(runs) == 1 and runs[0] >= planned:
        return []
    level, arms = 100 * seen.level(ALPHA / len(decision.study.arms)), len(decision.study.arms)
    each = f", an arm at {level:.2g} % here" if arms > 1 else f", at {level:.2g} % here"
    found = [
        f"It was looked at with {_listed(runs)} runs a subset, of {planned} planned, and paid for it: each look spends "
        f"a part of that chance (Lan and DeMets, in Pocock's manner, by the number of runs){each}."
    ]
    if runs[-1] > planned:
        found.append(
            f"Looks beyond the {planned} planned runs spend a second 2.5 %: so far the chance is at most "
            f"{100 * ALPHA * seen.spent:.2g} %, and below 5 % however often it is looked at again."
        )
    before = {tuple(look.cells) for look in decision.study.record.looks}
    if len(before) > 1:
        found.append("Earlier looks compared other arms or fractions: what they could have said is not counted.")
    return found


def asked(decision: Decision) -> list[str]:
    """Whether this is the question that the study planned to ask."""
    planned = decision.study.planned_margin
    if planned is None or planned == decision.margin:
        return []
    return [
        f"Another question than was planned: the study asked for a margin of {loss(planned)}, this is an answer for "
        f"{decision.margin:g}. Whoever chooses the margin after the results may be wrong more often than is said here."
    ]


def freed_from_choice(decision: Decision) -> list[str]:
    """The gain of the chosen arm where it was not chosen; [] where there was no choice."""
    verdicts, best = decision.verdicts, decision.best
    if best is None or best.cell.arm == RANDOM or len(decision.study.arms) < 3:
        return []
    parts = ((verdicts.gain, "a random subset"), (verdicts.change, "all of the data"))
    told = " and ".join(
        f"{100 * gain:+.2f} points against {opponent}" for gain, opponent in parts if math.isfinite(gain)
    )
    if not told:
        return []
    return [
        f"The best of several looks better than it is. Estimated on runs and test examples other than those by which "
        f"an arm is chosen: {told}."
    ]


def _listed(runs: tuple[int, ...]) -> str:
    """3, 5 and 8."""
    return " and ".join(part for part in (", ".join(map(str, runs[:-1])), str(runs[-1])) if part)
