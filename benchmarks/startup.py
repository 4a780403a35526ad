"""Seconds until the command line answers."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from benchmarks.timing import Goal, Row, interleaved_seconds, row

PROJECT = Path(__file__).parents[1]


def measure(rounds: int, quick: bool) -> Iterator[Row]:
    """One row: `datadiet --help` beside a Python that does nothing."""

    def call(*words: str) -> None:
        subprocess.run([sys.executable, *words], cwd=PROJECT, check=True, stdout=subprocess.DEVNULL)

    runs = {"python": lambda: call("-c", ""), "--help": lambda: call("-m", "entrypoints", "--help")}
    seconds = interleaved_seconds(runs, rounds)
    yield row("start-up", 1, seconds, "python", goals=[Goal("seconds of --help", min(seconds["--help"]), 0.5)])
