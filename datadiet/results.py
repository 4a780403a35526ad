"""Finished training runs -> one table -> results.csv, from MLflow or from the mirror alike."""

from __future__ import annotations

import csv
import io
import re
from pathlib import Path
from typing import Any, NamedTuple

from datadiet import store
from datadiet.config import UserError

HEADER = (
    "Dataset", "Neural network", "Scored by", "No.of train datasamples", "fraction of data trained on",
    "Train acc", "Test acc", "Execution time (in secs)",
)  # fmt: skip


class Result(NamedTuple):
    """One finished training run."""

    path: str  # below exps
    dataset: str
    model: str
    scored_by: str  # what the examples were kept by
    num_kept: int
    num_examples: int
    train_acc: float  # 0 to 1, over the last report's training batches
    test_acc: float  # 0 to 1, on the whole test set after the last step
    seconds: float  # training and evaluation, without compilation

    def cells(self) -> tuple[str, ...]:
        return (
            self.dataset, self.model, self.scored_by, str(self.num_kept), f"{self.num_kept / self.num_examples:.6g}",
            f"{self.train_acc:.6f}", f"{self.test_acc:.6f}", f"{self.seconds:.2f}",
        )  # fmt: skip


def scored_by(config: dict[str, Any], score_type: str | None) -> str:
    """How the training examples of a run were chosen, in words for the table."""
    selector = config["selector"]
    if selector in ("all", "random"):
        return {"all": "full data", "random": "random"}[selector]
    name = score_type or Path(config["scores"]).stem
    if selector == "offset":
        return f"{name} (offset {config['offset']})"
    return name if selector == "keep_max" else f"{name} ({selector})"


def from_mirror(exps_path: Path) -> list[Result]:
    """Every finished training run below a folder.

    Raises:
        UserError: no such folder.
    """
    if not exps_path.is_dir():
        raise UserError(f"exps_path={exps_path}: no such folder; expected the exps/ folder of a root.")
    records = (store.read_json(path) for path in exps_path.rglob("summary.json"))
    return [Result(*(record[name] for name in Result._fields)) for record in records]


def from_mlflow(root: Path | None) -> list[Result]:
    """Every finished training run of the MLflow experiment, the newest for each folder.

    Args:
        root: Only runs whose mirror lies in this root; None: all.
    """
    from datadiet import tracking

    newest: dict[tuple[str, str], Result] = {}
    for run in tracking.finished_training_runs():
        tags, params, metrics = run.data.tags, run.data.params, run.data.metrics
        home = tags["datadiet.root"]
        if root is not None and home != str(root.resolve()):
            continue
        result = Result(
            path=tags["datadiet.path"],
            dataset=params["cfg.dataset"],
            model=params["cfg.model"],
            scored_by=tags["datadiet.scored_by"],
            num_kept=int(params["data.num_kept"]),
            num_examples=int(params["data.num_examples"]),
            train_acc=metrics["train_acc"],
            test_acc=metrics["test_acc"],
            seconds=metrics["time/train_seconds"] + metrics["time/eval_seconds"],
        )
        newest.setdefault((home, result.path), result)
    return list(newest.values())


def _natural(text: str) -> list[tuple[int, str]]:
    """Sort key in which run_10 comes after run_9."""
    return [(int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"(\d+)", text)]


def to_csv(results: list[Result]) -> str:
    """The table, ordered by path."""
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(HEADER)
    writer.writerows(r.cells() for r in sorted(results, key=lambda r: (_natural(r.path), r)))
    return buffer.getvalue()
