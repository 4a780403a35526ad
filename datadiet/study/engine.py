"""What an engine is, and how one job is done, in whichever process."""

from __future__ import annotations

import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from datadiet import commands
from datadiet.errors import Interrupted, UserError
from datadiet.plugins import load_plugins
from datadiet.progress import Advance, Standing
from datadiet.runs.context import Context, Output, Reporter, Tracker
from datadiet.runs.mean import mean_run
from datadiet.runs.score import score_run
from datadiet.runs.train import train_resolved
from datadiet.study.spec import Job, MeanJob, ScoreJob, TrainJob
from datadiet.tracking import mlflow_store
from datadiet.tracking.run import attach

BATCH_SIZE = 512  # of scoring; no value depends on it


WORDS = ("said", "detailed", "advanced")  # kinds of events from a job that goes on


class Event(NamedTuple):
    """How a job ended (done, refused, interrupted, failed, died), or a word from one being done (see WORDS)."""

    job: Job
    kind: str
    text: str = ""
    part: float = 0.0  # of the job's work, where it advanced


Note = Callable[[Event], Any]


class Engine(Protocol):
    """Starts jobs and tells how they end."""

    attempts: int  # how often a job is begun whose process dies

    def free(self) -> int:
        """How many more jobs can be started now."""
        ...

    def start(self, job: Job, note: Note) -> None: ...

    def watch(self, note: Note) -> None:
        """Tell what happened; waits a fraction of a second where nothing did."""
        ...

    def stop(self) -> None:
        """Ask the jobs being done to save and end; asking again changes nothing."""
        ...

    def close(self) -> None:
        """End all that the engine began."""
        ...


def perform(job: Job, context: Context) -> None:
    """Do one job in this process; what it waits for is there."""
    load_plugins()  # in a process of its own
    context = replace(context, tracker=replace(context.tracker, tags=job.tags))
    match job:
        case TrainJob():
            train_resolved([job.config], job.exp, context)
        case ScoreJob():
            score_run(job.type, job.run, job.step, BATCH_SIZE, job.exp, job.exp, context)
        case MeanJob():
            mean_run(job.type, job.n_runs, job.step, job.exp, job.exp, context)


def attempt(job: Job, context: Context) -> Event:
    """Do one job; how it ended, so that it can be told to another process."""
    try:
        perform(job, context)
    except UserError as error:
        return Event(job, "refused", str(error))
    except (Interrupted, KeyboardInterrupt) as error:
        return Event(job, "interrupted", str(error))
    except Exception:
        return Event(job, "failed", traceback.format_exc())
    return Event(job, "done")


@dataclass(frozen=True)
class Setting:
    """A study's context, as it can be sent to another process."""

    output: Output
    command: str
    offline: bool
    store: str  # MLflow's, by its URI
    mirror: Path  # record of the study's run
    experiment_id: str | None
    caller: commands.Caller  # of the study: its workers print commands in the same form
    data_on: str = "auto"
    devices: str = "1"

    @classmethod
    def of(cls, context: Context) -> Setting:
        tracker = context.tracker
        assert tracker.parent is not None, "the jobs of a study are children of its run"
        mirror = tracker.parent.record.path
        assert mirror is not None, "a study has a record"
        return cls(
            context.output, tracker.command, tracker.offline, mlflow_store.absolute_store(), mirror,
            tracker.parent.experiment_id, commands.caller(), context.data_on, context.devices,
        )  # fmt: skip

    def context(self, reporter: Reporter) -> Context:
        """The same, in the process that this was sent to."""
        commands.become(self.caller)
        mlflow_store.use_store(self.store)
        parent = replace(attach(self.mirror, self.offline, reporter.say), experiment_id=self.experiment_id)
        tracker = Tracker(self.output.layout.root, self.command, reporter.say, parent, self.offline)
        return Context(self.output, reporter, tracker, self.data_on, self.devices)


@dataclass(frozen=True)
class Telling:
    """Progress of a job, told as events: the study shows it."""

    job: Job
    note: Note

    @contextmanager
    def counter(self, total: int, label: str, told: Callable[[], Standing] | None = None) -> Iterator[Advance]:
        yield lambda units: self.note(Event(self.job, "advanced", part=units / max(total, 1)))

    def detail(self, text: str) -> None:
        self.note(Event(self.job, "detailed", text))

    def say(self, text: str) -> None:
        self.note(Event(self.job, "said", text))

    def answer(self, text: str) -> None:
        self.detail(text)
