"""Processors that this process may use, which on a shared machine are fewer than it has."""

from __future__ import annotations

import os


def processors() -> list[int]:
    """Their numbers, at least one."""
    if hasattr(os, "sched_getaffinity"):
        return sorted(os.sched_getaffinity(0))
    return list(range(os.cpu_count() or 1))
