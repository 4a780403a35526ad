"""A run that is being written: in its record first, and in MLflow where that can be reached."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from datadiet.errors import Diverged, Interrupted, UserError
from datadiet.printable import printable
from datadiet.tracking import mlflow_store
from datadiet.tracking.link import Link
from datadiet.tracking.logged_model import log_model
from datadiet.tracking.mlflow_store import AWAY, NOTE
from datadiet.tracking.push import Home, end_quietly, push
from datadiet.tracking.record import Artifact, Record, as_json, begin, is_timing, load, now

SEND_SECONDS = 5.0  # so long may what the mirror has wait, to be told in few calls: one costs as much as 30 reports


@dataclass
class TrackedRun:
    """One run that is being written: in its record, and in MLflow where that can be reached.

    A part of a larger run, of which MLflow cannot have heard, is told as a whole: when it has lasted SEND_SECONDS, or
    at its end.
    """

    record: Record
    link: Link
    experiment_id: str | None = None
    held: dict[tuple[str, int], float] = field(default_factory=dict)  # (metric, step) -> value, that MLflow has
    parent: TrackedRun | None = None
    behind: bool = True  # MLflow lacks something that the record has
    fresh: bool = False  # MLflow cannot have heard of it
    closed: bool = False  # MLflow refuses it: no more attempts
    earlier: dict[tuple[str, int], float] = field(default_factory=dict)  # as `held`, that the mirror had at first
    waiting: dict[tuple[str, int], tuple[str, float, int, int]] = field(default_factory=dict)  # points to be sent
    sent: float = field(default_factory=time.monotonic)  # when they last were
    begun: float = field(default_factory=time.monotonic)
    untold: bool = True  # this process has not told MLflow anything of it
    ended: bool = False

    @property
    def id(self) -> str | None:
        """Of the MLflow run; None where MLflow has not heard of it yet."""
        return self.record.id

    def log_metrics(self, metrics: dict[str, float], step: int = 0, mirrored: bool = False) -> None:
        """The metrics of one report, without those held: logging a step again doubles the point.

        Args:
            mirrored: They are in the run's metrics.jsonl already, so that MLflow may hear of them later, with those of
                other reports.
        """
        values = {mlflow_store.key(k): float(v) for k, v in metrics.items()}
        at = self.record.moment(values) if mirrored else now()
        if not mirrored:
            values |= {k: v for k, v in self.timings(step).items() if k in values}
            if [step, values] not in [[s, v] for s, _, v in self.record.metrics]:
                self.record.metrics.append([step, at, values])
                self.record.save()
        known = self.held.keys() | self.waiting.keys()
        self.waiting |= {(k, step): (k, v, at, step) for k, v in values.items() if (k, step) not in known}
        if not mirrored or time.monotonic() - self.sent >= SEND_SECONDS:
            self._send()

    def _send(self) -> None:
        """Tell MLflow the metrics that wait."""
        points = {key: point for key, point in self.waiting.items() if key not in self.held}  # since told by catch_up
        self.waiting, self.sent = {}, time.monotonic()
        if points:
            self._tell(lambda client: mlflow_store.log_values(client, str(self.id), points.values()))
            if not self.behind:
                self.held |= {key: value for key, (_, value, _, _) in points.items()}

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
        self._tell(lambda client: mlflow_store.log_values(client, str(self.id), (), params))

    def log_input(self, name: str, digest: str, context: str, **profile: Any) -> None:
        """The data of this run, as an MLflow dataset. MLflow keeps 36 characters of a digest."""
        told = {"name": name, "digest": digest, "context": context, "profile": profile}
        if told not in self.record.inputs:
            self.record.inputs.append(told)
            self.record.save()
        self._tell(lambda client: mlflow_store.log_inputs(client, str(self.id), [told]))

    def note_artifacts(self, files: Sequence[Artifact]) -> None:
        """Have the record name files of the mirror, each with its folder in MLflow, which need not be there yet."""
        home = self.record.path.parent if self.record.path else Path()
        told = [[os.path.relpath(path, home), folder] for path, folder in files]
        if new := [one for one in told if one not in self.record.artifacts]:
            self.record.artifacts += new
            self.record.save()

    def log_artifacts(self, files: Sequence[Artifact]) -> None:
        """Files of the mirror, also to MLflow."""
        self.note_artifacts(files)
        self._tell(lambda client: mlflow_store.log_files(client, str(self.id), files))

    def note_model(self, told: dict[str, Any]) -> None:
        """Have the record say that MLflow is given the network as a model, once the run is finished.

        Args:
            told: As `Record.model` has it.
        """
        self.record.model = told
        self.record.save()

    def log_artifact(self, path: Path, folder: str | None = None) -> None:
        """One of them."""
        self.log_artifacts([(path, folder)])

    def set_tag(self, key: str, value: str) -> None:
        if self.record.tags.get(key) != value:
            self.record.tags[key] = value
            self.record.save()
        self._tell(lambda client: mlflow_store.set_tags(client, str(self.id), {key: value}))

    def describe(self, note: str) -> None:
        """In markdown, which the UI shows above all else of a run."""
        self.set_tag(NOTE, note)

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
        if self.closed or self.link.offline or not (self.link.open or self.parent is None):
            return
        self._send()
        if self.behind:
            self.catch_up()
        else:
            self._tell(lambda client: self._told_end(client, status))
        if not self.behind and (self.parent is None or self.parent.id):
            self.record.synced = True
            with suppress(UserError):
                self.record.save()

    def _told_end(self, client: Any, status: str) -> None:
        """The status comes last: a run that is FINISHED lacks nothing."""
        if status == "FINISHED":
            log_model(client, str(self.id), self.record)
        end = client.set_terminated if self.parent is None else partial(end_quietly, client)
        end(str(self.id), status, self.record.ended)

    def tell(self) -> None:
        """Have MLflow know the run, if it can be reached, so that it has an id."""
        if self.behind and self.link.open and not self.closed:
            self.catch_up()

    def _tell(self, call: Callable[[Any], Any]) -> None:
        """Tell MLflow what the record says already; where MLflow is away, that is left to a later moment."""
        if self.closed or not self.link.open:
            self.behind = True
        elif self.behind:
            if not self._may_wait():
                self.catch_up()
        else:
            try:
                call(self.link.client)
            except AWAY as error:
                self._lose(error)

    def _may_wait(self) -> bool:
        """Whether MLflow may hear of it later, of all at once."""
        return self.parent is not None and self.fresh and time.monotonic() - self.begun < SEND_SECONDS

    def catch_up(self) -> None:
        """Bring all that the record says to MLflow, if it can be reached. A run that was deleted before this process
        told anything of it is made anew."""
        parent, fresh, begins = self.parent, self.fresh, self.untold
        self.fresh = self.untold = False
        home = Home(
            parent and parent.id, parent and parent.experiment_id, adopts=parent is None, fresh=fresh, replaces=begins,
            say=self.link.say,
        )  # fmt: skip
        try:
            told = push(self.link.client, self.record, home)
            self.experiment_id, self.held, self.behind = told.experiment_id, told.held, False
        except AWAY as error:
            self._lose(error)

    def _lose(self, error: Exception) -> None:
        """What MLflow did not take is left to a later moment; where it would never take it, to `sync`."""
        self.behind = True
        if not mlflow_store.refused(error):
            return self.link.lose(error)
        self.closed = True
        with suppress(UserError):
            self.record.lost = self.link.refuse(
                self.record, self.experiment_id or (self.parent and self.parent.experiment_id), error
            )
            self.record.save()


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
    reopens: bool = False,
    say: Callable[[str], Any] = print,
    **tags: str,
) -> Iterator[TrackedRun]:
    """A run for the length of a `with` block: FINISHED at its end, FAILED or KILLED where it raises.

    Where MLflow is away at the beginning, that is an error, unless the run belongs to one that has begun; where it
    goes away later, the block does not notice.

    Args:
        kind: train, score, mean_score, results or study.
        exp, name: Experiment folder and path below exps/.
        params: Resolved options, logged as cfg.<option>.
        note: Markdown description, shown by the UI.
        parent: Run to nest under.
        mirror: The record's file; the run that is unfinished there is continued, with `reopens` a finished one too.
        offline: Do not call MLflow: the record is all that is written.
        say: Told once when MLflow goes away.
        tags: More tags, logged as datadiet.<tag>.
    """
    named = {f"datadiet.{k}": v for k, v in {"kind": kind, "exp": exp, "path": name, **tags}.items()}
    told = as_json({f"cfg.{k}": v for k, v in params.items()})
    named[NOTE] = note
    new = Record(mirror, kind, name, told, named, parent=parent.record.uid if parent else None)
    if parent is None:
        check_store(offline)
    with new.lock():
        link = parent.link if parent else Link(offline, lambda text: say(printable(text)))
        with _ended(run := _begun(new, parent, link, reopens)):
            yield run


def _begun(new: Record, parent: TrackedRun | None, link: Link, reopens: bool) -> TrackedRun:
    """A run that this process writes: `new`, or the one that is to be continued in its place."""
    record = begin(new, reopens)
    run = TrackedRun(record, link, parent=parent, fresh=record is new)
    run.earlier = {(k, step): value for step, _, values in record.points() for k, value in values.items()}
    if link.open and not run._may_wait():
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
    return TrackedRun(load(mirror), Link(offline, say), behind=False, untold=False)
