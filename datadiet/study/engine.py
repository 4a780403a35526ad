"""Does the jobs of a study in their order; an engine says where: in this process, in workers (workers.py), …"""

from __future__ import annotations

import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from datadiet.errors import Interrupted, UserError
from datadiet.plugins import load_plugins
from datadiet.runs.context import Place, Progress
from datadiet.runs.score import mean_run, score_run
from datadiet.runs.train import train_run
from datadiet.storage.layout import ExperimentLayout
from datadiet.study.spec import Job
from datadiet.tracking import mlflow_store
from datadiet.tracking.run import attach

BATCH_SIZE = 512  # of scoring; no value depends on it


class Event(NamedTuple):
    """How a job ended (done, refused, interrupted, failed, died), or a word from one being done (said, advanced)."""

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


def perform(job: Job, place: Place) -> None:
    """Do one job in this process; what it waits for is there."""
    load_plugins()  # in a process of its own
    given, place = job.arguments, replace(place, tags=job.tags)
    if job.kind == "train":
        train_run(given["config"], given["exp"], place)
    elif job.kind == "score":
        score_run(given["kind"], given["run"], given["step"], BATCH_SIZE, given["exp"], given["exp"], place)
    else:
        mean_run(given["kind"], given["n_runs"], given["step"], given["exp"], given["exp"], place)


def attempt(job: Job, place: Place) -> Event:
    """Do one job; how it ended, so that it can be told to another process."""
    try:
        perform(job, place)
    except UserError as error:
        return Event(job, "refused", str(error))
    except (Interrupted, KeyboardInterrupt) as error:
        return Event(job, "interrupted", str(error))
    except Exception:
        return Event(job, "failed", traceback.format_exc())
    return Event(job, "done")


@dataclass(frozen=True)
class Setting:
    """A study's place, as it can be sent to another process."""

    root: Path
    command: str
    overwrite: bool
    offline: bool
    store: str  # MLflow's, by its URI
    mirror: Path  # record of the study's run
    experiment_id: str | None

    @classmethod
    def of(cls, place: Place) -> Setting:
        assert place.parent is not None, "the jobs of a study are children of its run"
        parent = place.parent
        mirror = parent.record.path
        assert mirror is not None, "a study has a record"
        return cls(
            place.layout.root, place.command, place.overwrite, place.offline, mlflow_store.absolute_store(), mirror,
            parent.experiment_id,
        )  # fmt: skip

    def place(self, progress: Progress) -> Place:
        """The place, in the process that this was sent to."""
        mlflow_store.use_store(self.store)
        parent = replace(attach(self.mirror, self.offline, progress.say), experiment_id=self.experiment_id)
        layout = ExperimentLayout(self.root)
        return Place(layout, progress, self.command, self.overwrite, not self.overwrite, parent, self.offline)


@dataclass(frozen=True)
class Telling:
    """Progress of a job, told as events, beside what `shown` shows."""

    job: Job
    note: Note
    shown: Progress | None = None

    @contextmanager
    def counter(self, total: int, label: str) -> Iterator[Callable[[int], Any]]:
        def tell(units: int) -> None:
            self.note(Event(self.job, "advanced", part=units / max(total, 1)))

        if self.shown is None:
            yield tell
            return
        with self.shown.counter(total, label) as show:
            yield lambda units: (tell(units), show(units))

    def say(self, text: str) -> None:
        self.note(Event(self.job, "said", text))
