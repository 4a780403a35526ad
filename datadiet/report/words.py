"""Numbers in words."""

from __future__ import annotations

import math

from datadiet.progress import duration
from datadiet.report.statistics import Estimate


def percent(value: float, digits: int = 2) -> str:
    """0.9012 -> '90.12 %'."""
    return f"{100 * value:.{digits}f} %"


def kept(fraction: float) -> str:
    """A fraction of the examples: 0.7 -> '70 %'."""
    return f"{100 * fraction:.3g} %"


def seconds(value: float) -> str:
    """A duration; NaN is one that was not recorded."""
    return "not recorded" if math.isnan(value) else duration(value)


def size(count: int) -> str:
    """Bytes: 1536 -> '1.54 kB'."""
    power = min(3, max(0, len(str(count)) - 1) // 3)
    return f"{count / 1000**power:,.3g} {('B', 'kB', 'MB', 'GB')[power]}"


def loss(margin: float) -> str:
    """A margin in percentage points: 0.5 -> '0.5 points', 1 -> '1 point'."""
    return f"{margin:g} point{'' if margin == 1 else 's'}"


def points(difference: Estimate) -> str:
    """A difference of accuracies in percentage points with its interval."""
    text = f"{100 * difference.mean:+.2f} points"
    if difference.known:
        return f"{text} (95 % interval {100 * difference.low:+.2f} to {100 * difference.high:+.2f})"
    return f"{text} (no interval: {'one run' if difference.n < 2 else 'all pairs differ by the same'})"
