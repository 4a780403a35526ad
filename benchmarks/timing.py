"""Interleaved timing: every round runs each candidate once, so that a busy machine slows all of them alike."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from typing import Any

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


def row(label: str, batch_size: int, seconds: Mapping[str, list[float]], base: str) -> str:
    """One Markdown row: milliseconds per example of `base`, then the median of each other's ratio to it."""
    cells = [f"{1e3 * statistics.median(seconds[base]) / batch_size:.3f}"]
    for name, values in seconds.items():
        if name != base:
            ratios = [value / one for value, one in zip(values, seconds[base])]
            cells.append(f"{name} {statistics.median(ratios):.2f}x ({min(ratios):.2f}–{max(ratios):.2f})")
    return f"| {label} | {batch_size} | " + " | ".join(cells) + " |"
