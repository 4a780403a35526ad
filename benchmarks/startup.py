"""Processor seconds until the command line answers, and until a command can begin its work."""

from __future__ import annotations

import os
import resource
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from benchmarks.timing import Row, goal, row, within

PROJECT = Path(__file__).parents[1]
STORE = "from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore"  # as a client of a database imports it
HELP = {"python": ("-c", ""), "--help": ("-m", "entrypoints", "--help")} | {
    f"{name} --help": ("-m", "entrypoints", name, "--help") for name in ("study", "score")
}
SCORING = "datadiet.runs.score, datadiet.tracking.run, datadiet.data.sources.embedded"
IMPORTS = {
    "jax and mlflow": ("-c", f"import jax, mlflow; {STORE}"),
    "what score imports": ("-c", f"import {SCORING}; {STORE}"),
}


def processor_seconds(words: tuple[str, ...], folder: str | Path = PROJECT) -> float:
    """Of a Python with these arguments, in a folder; it finds this project."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    environment = os.environ | {"PYTHONPATH": str(PROJECT)}
    subprocess.run([sys.executable, *words], cwd=folder, env=environment, check=True, stdout=subprocess.DEVNULL)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def measured(candidates: dict[str, tuple[str, ...]], rounds: int) -> dict[str, list[float]]:
    """Processor seconds of every round by candidate, after one call each, which fills caches."""
    rows = [[processor_seconds(words) for words in candidates.values()] for _ in range(rounds + 1)]
    return {name: list(column) for name, column in zip(candidates, zip(*rows[1:]))}


def measure(rounds: int, quick: bool) -> Iterator[Row]:
    """Two rows: help beside a Python that does nothing, and the imports of `score` beside those of JAX and MLflow."""
    seconds = measured(HELP, rounds)
    goals = [within(f"processor seconds of {name}", seconds[name], 0.5) for name in HELP if name != "python"]
    yield row("start-up (processor time)", 1, seconds, "python", goals=goals)
    seconds = measured(IMPORTS, rounds)
    goals = [goal("imports of score ≤ 1.1 jax and mlflow", seconds, "what score imports", "jax and mlflow", 1.1)]
    yield row("imports (processor time)", 1, seconds, "jax and mlflow", goals=goals)
