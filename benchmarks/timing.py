"""Interleaved timing: every round runs each candidate once, so that a busy machine slows all of them alike."""

from __future__ import annotations

import re
import statistics
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import jax

Seconds = Mapping[str, list[float]]  # of every round, by candidate


def interleaved_seconds(
    candidates: Mapping[str, Callable[[], Any]], rounds: int, clock: Callable[[], float] = time.perf_counter
) -> dict[str, list[float]]:
    """Seconds of every round by candidate, after one call each for compilation."""
    for run in candidates.values():
        jax.block_until_ready(run())
    seconds: dict[str, list[float]] = {name: [] for name in candidates}
    for _ in range(rounds):
        for name, run in candidates.items():
            start = clock()
            jax.block_until_ready(run())
            seconds[name].append(clock() - start)
    return seconds


class Goal(NamedTuple):
    """A promise beside what was measured."""

    text: str
    measured: float
    most: float  # it is met up to here

    @property
    def met(self) -> bool:
        return self.measured <= self.most


class Row(NamedTuple):
    """One measured case."""

    case: str
    batch_size: int
    base: str  # the candidate that the others are compared with
    milliseconds: float  # per example, median over the rounds, of the base
    ratios: dict[str, tuple[float, float, float]]  # of each other candidate: median, least, most of time / base's time
    goals: tuple[Goal, ...] = ()


def ratios(seconds: Seconds, name: str, base: str) -> list[float]:
    """Time of one candidate over that of another in each round, so that what slows a whole round cancels."""
    return [value / one for value, one in zip(seconds[name], seconds[base])]


def goal(text: str, seconds: Seconds, name: str, base: str, most: float) -> Goal:
    """That a candidate takes at most `most` times as long as another, in the median."""
    return Goal(text, statistics.median(ratios(seconds, name, base)), most)


def within(text: str, seconds: list[float], most: float) -> Goal:
    """That a candidate takes at most `most` seconds, in the median."""
    return Goal(text, statistics.median(seconds), most)


def row(
    case: str,
    batch_size: int,
    seconds: Seconds,
    base: str,
    examples: int | None = None,
    goals: Iterable[Goal] = (),
) -> Row:
    """A case from the seconds of its candidates.

    Args:
        examples: Handled by one call; None: batch_size.
    """
    found = {name: ratios(seconds, name, base) for name in seconds if name != base}
    summary = {name: (statistics.median(each), min(each), max(each)) for name, each in found.items()}
    milliseconds = 1e3 * statistics.median(seconds[base]) / (examples or batch_size)
    return Row(case, batch_size, base, milliseconds, summary, tuple(goals))


def file_stem(*names: str) -> str:
    """Name of a file after a device, and what else it is of."""
    return re.sub(r"\W+", "_", " ".join(names).lower()).strip("_")


HEADER = "| case | batch | base, ms/example | time relative to it: median (least–most) |\n|---|---|---|---|"
GOALS_HEADER = "| goal | case | measured | at most | |\n|---|---|---|---|---|"


def markdown(row: Row) -> str:
    """One line of a table under HEADER."""
    cells = ", ".join(f"{name} {mid:.2f} ({low:.2f}–{high:.2f})" for name, (mid, low, high) in row.ratios.items())
    return f"| {row.case} | {row.batch_size} | {row.base}, {row.milliseconds:.3f} | {cells} |"


def goals_markdown(rows: Iterable[Row]) -> list[str]:
    """Lines of a table under GOALS_HEADER."""
    return [
        f"| {goal.text} | {row.case}, batch {row.batch_size} | {goal.measured:.3g} | {goal.most:.3g} | "
        f"{'met' if goal.met else '**missed**'} |"
        for row in rows
        for goal in row.goals
    ]
