"""A finished study given once more, its report made again, its decision read: processor seconds of each command."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator

from benchmarks.startup import processor_seconds
from benchmarks.timing import Row, row, within

MOST = 5.0  # seconds
STUDY, REPORT, DECISION = "finished study given again", "report alone", "its decision alone (format json)"
CLIENT = "a client of MLflow that opens its database"
OPENING = "from mlflow import MlflowClient; MlflowClient('sqlite:///mlflow.db').search_experiments()"


def measure(rounds: int, quick: bool) -> Iterator[Row]:
    """One row: the study that `main` makes, in an empty folder and then again, and `report`, beside the
    client that both need; quick: one round."""
    with tempfile.TemporaryDirectory() as root:
        report = ("-m", "entrypoints", "report", "--exp", "main", "--root", root)
        commands = {
            STUDY: ("-m", "entrypoints", "main", "--root", root),
            REPORT: report,
            DECISION: (*report, "--format", "json"),
            CLIENT: ("-c", OPENING),
        }
        first = processor_seconds(commands[STUDY], root)
        seconds: dict[str, list[float]] = {name: [] for name in commands}
        for _ in range(1 if quick else rounds):
            for name, words in commands.items():
                seconds[name].append(processor_seconds(words, root))
    goals = [within(f"processor seconds of {name}", seconds[name], MOST) for name in (STUDY, REPORT, DECISION)]
    yield row(f"main again (processor time; {first:.0f} s at first)", 1, seconds, CLIENT, goals=goals)
