"""Interleaved timing: every round runs each candidate once, so that a busy machine slows all of them alike."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax


def interleaved_seconds(candidates: Mapping[str, Callable[[], Any]], rounds: int) -> dict[str, list[float]]:
    """Seconds of every round by candidate, after one call each for compilation."""
    for run in candidates.values():
        jax.block_until_ready(run())
    seconds: dict[str, list[float]] = {name: [] for name in candidates}
    for _ in range(rounds):
        for name, run in candidates.items():
            start = time.perf_counter()
            jax.block_until_ready(run())
            seconds[name].append(time.perf_counter() - start)
    return seconds


class Row(NamedTuple):
    """One measured case."""

    case: str
    batch_size: int
    base: str  # the candidate that the others are compared with
    milliseconds: float  # per example, median over the rounds, of the base
    ratios: dict[str, tuple[float, float, float]]  # of each other candidate: median, least, most of time / base's time


def row(case: str, batch_size: int, seconds: Mapping[str, list[float]], base: str, examples: int | None = None) -> Row:
    """Ratios within each round, so that what slows a whole round cancels.

    Args:
        examples: Handled by one call; None: batch_size.
    """
    ratios = {}
    for name, values in seconds.items():
        if name != base:
            each = [value / one for value, one in zip(values, seconds[base])]
            ratios[name] = (statistics.median(each), min(each), max(each))
    milliseconds = 1e3 * statistics.median(seconds[base]) / (examples or batch_size)
    return Row(case, batch_size, base, milliseconds, ratios)


HEADER = "| case | batch | base, ms/example | time relative to it: median (least–most) |\n|---|---|---|---|"


def markdown(row: Row) -> str:
    """One line of a table under HEADER."""
    cells = ", ".join(f"{name} {mid:.2f} ({low:.2f}–{high:.2f})" for name, (mid, low, high) in row.ratios.items())
    return f"| {row.case} | {row.batch_size} | {row.base}, {row.milliseconds:.3f} | {cells} |"
