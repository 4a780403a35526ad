"""What MLflow has to know of a run, kept in the mirror first: MLflow can be rebuilt from it alone.

A run's reports stay in metrics.jsonl, its options in args.json; all else that is told to MLflow lies in one small
record per run: mlflow_run.json in a run's folder, ckpt_<step>.mlflow_run.json beside a score file.
"""

from __future__ import annotations

import dataclasses
import time
import uuid
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from types import NoneType
from typing import Any, ClassVar, Self

from datadiet.config import FIELDS, LOCATION_FIELDS
from datadiet.errors import UserError
from datadiet.printable import masked
from datadiet.storage.claims import lock_run
from datadiet.storage.files import read_lines
from datadiet.storage.layout import check_place, is_within
from datadiet.storage.records import MirrorRecord, Summary

NAME = "mlflow_run.json"
STATES = ("RUNNING", "FINISHED", "FAILED", "KILLED")
PLAIN = (str, int, float, bool, list, NoneType)
# of a decision: metrics, and a tag that of a study tells what it answers, of its trainings the verdict of their subset
KEPT_FRACTION, ACCURACY, ACCURACY_FULL = METRICS = (
    "decision/kept_fraction",
    "decision/accuracy",
    "decision/accuracy_full",
)
ANSWER = "datadiet.decision.answer"
Artifact = tuple[Path, str | None]  # a file of the mirror, and its folder in MLflow


@dataclass
class Record(MirrorRecord):
    """One MLflow run, as the mirror knows it; every change is on disk before MLflow is told."""

    HELD: ClassVar[tuple[str, ...]] = ("path",)

    path: Path | None  # of the file; None: a run without a mirror
    kind: str
    name: str  # path below exps
    params: dict[str, Any]
    tags: dict[str, str]
    parent: str | None = None  # uid of the run that this one is nested under
    uid: str = field(default_factory=lambda: uuid.uuid4().hex)  # finds the run in MLflow where its id was not noted
    id: str | None = None  # of the MLflow run; None: MLflow has not heard of it
    status: str = "RUNNING"
    error: str | None = None  # what ended it
    diverged: bool = False  # it would end so again
    begun: int = field(default_factory=lambda: now())  # ms since 1970
    ended: int | None = None
    synced: bool = False  # MLflow has all of it
    lost: bool = False  # its MLflow run was deleted while it was written
    inputs: list[dict[str, Any]] = field(default_factory=list)
    artifacts: list[list[Any]] = field(default_factory=list)  # [path, folder in MLflow]
    model: dict[str, Any] | None = None  # as `runs.products.model_facts` tells it; None: MLflow is given none
    metrics: list[list[Any]] = field(default_factory=list)  # [step, ms, {name: value}], without those of metrics.jsonl

    def save(self) -> None:
        """Raises UserError where it cannot be written."""
        if self.path:
            self.write(self.path)

    @classmethod
    def from_json(cls, path: Path, values: dict[str, Any]) -> Self:
        record = super().from_json(path, values)
        record.path = path
        whole = (
            record.status in STATES
            and all(isinstance(v, str) for v in record.tags.values())
            and all(isinstance(i.get("name"), str) for i in record.inputs)
            and all(list(map(type, a)) in ([str, str], [str, NoneType]) for a in record.artifacts)
            and all(map(_is_point, record.metrics))
        )
        if not whole:
            raise UserError(f"{path}: not what was written there; it is damaged.")
        return record

    def lock(self) -> AbstractContextManager[None]:
        """Held while the run is written; that of a training run is its folder's, which `pipeline` holds."""
        return lock_run(self.path) if self.path and self.kind != "train" else nullcontext()

    def points(self) -> Iterator[tuple[int, int, dict[str, float]]]:
        """All metrics: step, ms since 1970, values by name.

        Raises:
            UserError: the reports of a training run are damaged, or one that is finished lacks its last.
        """
        yield from ((step, at, values) for step, at, values in self.metrics)
        reports = self.path.with_name("metrics.jsonl") if self.path and self.kind == "train" else None
        last = self.params.get("cfg.num_steps") if self.status == "FINISHED" else None
        for line in read_lines(reports, last) if reports else ():
            values = {name: value for name, value in line.items() if name != "step"}
            yield line["step"], self.moment(values), values

    def files(self) -> Iterator[Artifact]:
        """Its artifacts that are there, with their folder in MLflow.

        Raises:
            UserError: one does not lie in the folder of the record, or is a link that leaves it.
        """
        home = self.path.parent if self.path else None
        for path, folder in self.artifacts:
            file = home / path if home else Path(path)
            if home and (".." in Path(path).parts or not is_within(file, home)):
                raise UserError(
                    f"{self.path}: its artifact {path!r} does not lie in {home}, and is not given away. Expected a "
                    "file of the run itself; such a record was changed, or a link was put in its place."
                )
            if file.is_file():
                yield file, folder

    def moment(self, values: dict[str, float]) -> int:
        """ms since 1970 of a report: the same whenever it is told, so that MLflow takes it once."""
        return self.begun + int(1000 * values.get("time/total_seconds", 0))

    def same_run(self, other: Record, reopens: bool = False) -> bool:
        """Whether a run that was begun as `self` is the one that would begin as `other`: it did not finish, or MLflow
        did not hear of its end, or it `reopens`."""
        theirs = {k: v for k, v in other.params.items() if k.removeprefix("cfg.") not in LOCATION_FIELDS}
        new = as_json({f"cfg.{name}": option.default for name, option in FIELDS.items()})  # of what an older one lacks
        mine = {name: self.params.get(name, new.get(name)) for name in theirs}
        ended = self.status == "FINISHED" and self.synced and not reopens
        return (self.kind, self.name, mine) == (other.kind, other.name, theirs) and not ended

    def identify(self, run_id: str) -> None:
        """Note the MLflow run; a summary written before it was known names it as well."""
        if self.id == run_id:
            return
        self.id = run_id
        self.save()
        summary = self.path.with_name("summary.json") if self.path and self.kind == "train" else None
        if summary and summary.exists():
            dataclasses.replace(Summary.read(summary), mlflow_run_id=run_id).write(summary)

    def end(self, status: str, error: str | None = None, diverged: bool = False) -> None:
        """Note how it ended."""
        self.status, self.error, self.diverged, self.ended = status, error and masked(error), diverged, now()
        self.synced = False
        self.save()

    def settle(self) -> None:
        """Note how a run ended whose process could not: the caller holds its lock, so that there is none."""
        if self.kind == "train" and self.path and self.path.with_name("summary.json").exists():
            if self.status != "FINISHED":
                self.end("FINISHED")
        elif self.status == "RUNNING":
            self.end("KILLED", "Its process ended without a word.")


def now() -> int:
    """Milliseconds since 1970."""
    return int(time.time() * 1000)


def as_json(values: dict[str, Any]) -> dict[str, Any]:
    """Values as they come back from a JSON file."""
    return {k: list(v) if isinstance(v, tuple) else v if isinstance(v, PLAIN) else str(v) for k, v in values.items()}


def load(path: Path, name: str | None = None) -> Record:
    """A record that was saved.

    Args:
        name: Path of the file below exps, where that is known.
    Raises:
        UserError: missing or damaged.
        Misplaced: it was made for another place.
    """
    record = Record.read(path)
    if name is not None:
        check_place(path, f"{record.name}{'/' if path.name == NAME else '.'}{NAME}", name)
    return record


def is_timing(metric: str) -> bool:
    """Whether a metric tells how long the work took; all others are the same in every repetition."""
    return metric.startswith("time/") or metric == "examples_per_second"


def _is_point(value: Any) -> bool:
    return (
        len(value) == 3
        and isinstance(value[0], int)
        and isinstance(value[1], int)
        and isinstance(value[2], dict)
        and all(isinstance(v, int | float) for v in value[2].values())
    )


def begin(new: Record, reopens: bool = False) -> Record:
    """The record of a run that begins: the one that an earlier process left unfinished, or `new`.

    Args:
        reopens: A finished one is continued too, as by a study that adds nothing.
    """
    if new.path and new.path.exists():
        earlier = load(new.path)
        if earlier.same_run(new, reopens):
            earlier.status, earlier.error, earlier.ended, earlier.synced = "RUNNING", None, None, False
            earlier.parent = new.parent or earlier.parent
            earlier.save()
            return earlier
    new.save()
    return new
