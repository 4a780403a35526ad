"""A run that is being written: in its record first, and in MLflow where that can be reached."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from datadiet import commands
from datadiet.errors import Diverged, Interrupted, UserError
from datadiet.tracking import mlflow_store
from datadiet.tracking.mlflow_store import AWAY
from datadiet.tracking.record import Record, as_json, begin, load, now
from datadiet.training.loop import is_timing

RETRY_SECONDS = 30.0  # between two attempts to reach a store that went away


@dataclass
class Link:
    """Whether MLflow is there. A call to a dead server costs seconds, so after one none is made for a while."""

    offline: bool = False  # never call it
    say: Callable[[str], Any] = print
    retry_at: float = 0.0
    lost: bool = False  # it went away at least once
    _client: Any = None

    @property
    def client(self) -> Any:
        """An MlflowClient."""
        if self._client is None:
            self._client = mlflow_store.connect()
        return self._client

    def lose(self, error: Exception) -> None:
        """Note that a call failed; said once."""
        if not self.lost:
            self.say(
                f"Warning: MLflow ({mlflow_store.store_name()}) is away ({_first_line(error)}). The work goes on; what "
                f"it lacks stays in exps/, and `{commands.command('sync')}` brings it there."
            )
        self.lost, self.retry_at = True, time.monotonic() + RETRY_SECONDS

    @property
    def open(self) -> bool:
        """Whether a call is worth an attempt."""
        return not self.offline and time.monotonic() >= self.retry_at


@dataclass
class TrackedRun:
    """One run that is being written: in its record, and in MLflow where that can be reached."""

    record: Record
    link: Link
    experiment_id: str | None = None
    held: dict[tuple[str, int], float] = field(default_factory=dict)  # (metric, step) -> value, that MLflow has
    parent: TrackedRun | None = None
    behind: bool = True  # MLflow lacks something that the record has
    fresh: bool = False  # MLflow cannot have heard of it
    earlier: dict[tuple[str, int], float] = field(default_factory=dict)  # as `held`, that the mirror had at first
    ended: bool = False

    @property
    def id(self) -> str | None:
        """Of the MLflow run; None where MLflow has not heard of it yet."""
        return self.record.id

    def log_metrics(self, metrics: dict[str, float], step: int = 0, mirrored: bool = False) -> None:
        """All metrics of one report in one call, without those held: logging a step again doubles the point.

        Args:
            mirrored: They are in the run's metrics.jsonl already.
        """
        values = {k: float(v) for k, v in metrics.items()}
        at = self.record.moment(values) if mirrored else now()
        if not mirrored:
            values |= {k: v for k, v in self.timings(step).items() if k in values}
            if [step, values] not in [[s, v] for s, _, v in self.record.metrics]:
                self.record.metrics.append([step, at, values])
                self.record.save()
        new = [(k, v, at, step) for k, v in values.items() if (k, step) not in self.held]
        if new:
            self._tell(lambda client: mlflow_store.log_metrics(client, str(self.id), new))
            if not self.behind:
                self.held |= {(k, step): v for k, v, _, _ in new}

    def timings(self, step: int) -> dict[str, float]:
        """Timings noted earlier at a step, so that a continued run says the same in the mirror and in MLflow."""
        return {k: v for (k, at), v in (self.earlier | self.held).items() if at == step and is_timing(k)}

    def spent(self, name: str) -> float:
        """The most seconds noted under time/<name>_seconds: work that is lost was done all the same."""
        noted = (self.earlier | self.held).items()
        return max((value for (key, _), value in noted if key == f"time/{name}_seconds"), default=0.0)

    def log_params(self, params: dict[str, Any]) -> None:
        """Under keys that `mlflow run` does not use: it logs the text of its own -P options itself."""
        known = self.record.params | as_json(params)
        if known != self.record.params:
            self.record.params = known
            self.record.save()
        self._tell(lambda client: mlflow_store.log_params(client, str(self.id), params))

    def log_input(self, name: str, digest: str, context: str, **profile: Any) -> None:
        """The data of this run, as an MLflow dataset. MLflow keeps 36 characters of a digest."""
        told = {"name": name, "digest": digest, "context": context, "profile": profile}
        if told not in self.record.inputs:
            self.record.inputs.append(told)
            self.record.save()
        self._tell(lambda client: mlflow_store.log_inputs(client, str(self.id), [told]))

    def log_artifact(self, path: Path, folder: str | None = None) -> None:
        """A file of the mirror, also to MLflow."""
        home = self.record.path.parent if self.record.path else Path()
        told = [os.path.relpath(path, home), folder]
        if told not in self.record.artifacts:
            self.record.artifacts.append(told)
            self.record.save()
        self._tell(lambda client: client.log_artifact(str(self.id), str(path), folder))

    def set_tag(self, key: str, value: str) -> None:
        if self.record.tags.get(key) != value:
            self.record.tags[key] = value
            self.record.save()
        self._tell(lambda client: client.set_tag(str(self.id), key, value))

    def end(self, status: str, error: BaseException | None = None) -> None:
        """Note the end in the mirror, then in MLflow; of several, the first counts.

        Args:
            error: What ended it.
        """
        if self.ended:
            return
        self.ended = True
        text = None if error is None else str(error) or type(error).__name__
        with suppress(UserError) if error else nullcontext():  # the folder may be what failed
            self.record.end(status, text, isinstance(error, Diverged))
        if self.link.offline or not (self.link.open or self.parent is None):
            return
        if self.behind:
            self.catch_up()
        else:
            self._tell(lambda client: client.set_terminated(self.id, status, self.record.ended))
        if not self.behind and (self.parent is None or self.parent.id):
            self.record.synced = True
            with suppress(UserError):
                self.record.save()

    def _tell(self, call: Callable[[Any], Any]) -> None:
        """Tell MLflow what the record says already; where MLflow is away, that is left to a later moment."""
        if not self.link.open:
            self.behind = True
        elif self.behind:
            self.catch_up()
        else:
            try:
                call(self.link.client)
            except AWAY as error:
                mlflow_store.reraise_mistakes(error)
                self.behind = True
                self.link.lose(error)

    def catch_up(self) -> None:
        """Bring all that the record says to MLflow, if it can be reached."""
        try:
            told = mlflow_store.push(
                self.link.client, self.record, fresh=self.fresh, say=self.link.say,
                parent_id=self.parent and self.parent.id, experiment_id=self.parent and self.parent.experiment_id,
            )  # fmt: skip
            self.experiment_id, self.held = told.experiment_id, told.held
            self.behind = self.fresh = False
        except AWAY as error:
            mlflow_store.reraise_mistakes(error)
            self.link.lose(error)


def _first_line(error: Exception) -> str:
    return str(error).strip().split("\n")[0][:200]


def check_store(offline: bool = False) -> None:
    """Refuse to begin where MLflow cannot be reached, before any work is done.

    Raises:
        UserError: with what to do.
    """
    if not offline:
        mlflow_store.connected()


@contextmanager
def track_run(
    kind: str,
    exp: str,
    name: str,
    *,
    params: dict[str, Any],
    note: str,
    parent: TrackedRun | None = None,
    mirror: Path | None = None,
    offline: bool = False,
    say: Callable[[str], Any] = print,
    **tags: str,
) -> Iterator[TrackedRun]:
    """A run for the length of a `with` block: FINISHED at its end, FAILED or KILLED where it raises.

    Where MLflow is away at the beginning, that is an error, unless the run belongs to one that has begun; where it
    goes away later, the block does not notice.

    Args:
        kind: train, score, mean_score, results or study.
        exp: Experiment folder below exps/.
        name: Path below exps/.
        params: Resolved options, logged as cfg.<option>.
        note: Markdown description, shown by the UI.
        parent: Run to nest under.
        mirror: The record's file; the run that an earlier process left unfinished there is continued.
        offline: Do not call MLflow: the record is all that is written.
        say: Told once when MLflow goes away.
        tags: More tags, logged as datadiet.<tag>.
    """
    named = {f"datadiet.{k}": v for k, v in {"kind": kind, "exp": exp, "path": name, **tags}.items()}
    told = as_json({f"cfg.{k}": v for k, v in params.items()})
    new = Record(
        mirror, kind, name, told, named | {"mlflow.note.content": note}, parent=parent.record.uid if parent else None
    )
    with new.lock():
        run = _begun(new, parent, parent.link if parent else Link(offline, say))
        with _ended(run):
            yield run


def _begun(new: Record, parent: TrackedRun | None, link: Link) -> TrackedRun:
    """A run that this process writes: `new`, or the one that an earlier process left unfinished in its place."""
    if parent is None:
        check_store(link.offline)
    record = begin(new)
    run = TrackedRun(record, link, parent=parent, fresh=record is new)
    run.earlier = {(k, step): value for step, _, values in record.points() for k, value in values.items()}
    if link.open:
        run.catch_up()
    return run


@contextmanager
def _ended(run: TrackedRun) -> Iterator[None]:
    """Ends a run with the `with` block, as that ends."""
    try:
        yield
    except (KeyboardInterrupt, Interrupted) as error:
        run.end("KILLED", error)
        raise
    except BaseException as error:
        run.end("FAILED", error)
        raise
    run.end("FINISHED")


def attach(mirror: Path, offline: bool = False, say: Callable[[str], Any] = print) -> TrackedRun:
    """A run that another process writes, to nest runs of this process under it.

    Args:
        mirror: Its record.
    """
    return TrackedRun(load(mirror), Link(offline, say), behind=False)


def bring(record: Record, parent: Record | None, say: Callable[[str], Any]) -> bool:
    """Write into MLflow what a record that no process holds has and MLflow lacks.

    Returns:
        Whether anything was lacking.
    Raises:
        UserError: MLflow cannot be reached, or refuses.
    """
    client = mlflow_store.connected()
    try:
        found = mlflow_store.find(client, record)
        names = {name for _, _, values in record.points() for name in values}
        if (
            record.synced
            and found
            and found.info.status == record.status
            and names <= found.data.metrics.keys()
            and record.tags.items() <= found.data.tags.items()
        ):
            return False
        mlflow_store.push(client, record, parent_id=parent.id if parent else None, say=say)
    except AWAY as error:
        raise UserError(f"MLflow ({mlflow_store.store_name()}) does not take {record.name}: {error}") from error
    if not record.synced:
        record.synced = True
        record.save()
    return True


def settle(mirror: Path, parent: TrackedRun | None = None, offline: bool = False) -> None:
    """Make sure that a run whose mirror is finished is FINISHED in MLflow: its process may have been killed between.

    Args:
        mirror: Its record; the caller holds its lock.
    Raises:
        UserError: the record or the run's reports are damaged.
    """
    link = parent.link if parent else Link(offline)
    if not mirror.exists() or not link.open:
        return
    record = load(mirror)
    record.settle()
    list(record.points())  # damage is told as such, not as MLflow's absence
    try:
        bring(record, parent.record if parent else None, link.say)
    except UserError as error:
        link.lose(error)
        return
    if parent is None and record.id:
        mlflow_store.point_launcher(link.client, record.name, record.id)
