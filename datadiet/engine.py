"""Does the jobs of a study in their order; an engine says where: in this process, in workers (workers.py), …"""

from __future__ import annotations

import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from datadiet import remote, resume, tracking
from datadiet.config import Interrupted, UserError
from datadiet.graph import Job
from datadiet.pipeline import train_run
from datadiet.place import Place, Progress
from datadiet.scoring import mean_run, score_run
from datadiet.store import ExperimentLayout

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
            place.layout.root, place.command, place.overwrite, place.offline, remote.absolute_store(), mirror,
            parent.experiment_id,
        )  # fmt: skip

    def place(self, progress: Progress) -> Place:
        """The place, in the process that this was sent to."""
        remote.use_store(self.store)
        parent = replace(tracking.attach(self.mirror, self.offline, progress.say), experiment_id=self.experiment_id)
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


class Here:
    """One job after the other in this process; what a job raises comes through as it is."""

    attempts = 1

    def __init__(self, place: Place) -> None:
        self.place = place

    def free(self) -> int:
        return 1

    def start(self, job: Job, note: Note) -> None:
        perform(job, replace(self.place, progress=Telling(job, note, self.place.progress)))
        note(Event(job, "done"))

    def watch(self, note: Note) -> None:
        pass

    def stop(self) -> None:
        pass

    def close(self) -> None:
        pass


@dataclass
class Board:
    """Which jobs wait and which are being done, and what there is to show of it."""

    waiting: list[Job]
    engine: Engine
    progress: Progress
    advance: Callable[[int], Any]
    doing: dict[str, Job] = field(default_factory=dict)
    begun: dict[str, int] = field(default_factory=dict)  # how often, by name
    shown: dict[str, float] = field(default_factory=dict)  # part of a job's cost that `advance` was told
    stopping: bool = False
    ending: Exception | None = None  # why no further job starts

    def start(self) -> bool:
        """Start the first job that can be started, if there is room; whether one was."""
        unmade = {job.name for job in self.waiting} | self.doing.keys()
        job = next((job for job in self.waiting if not unmade.intersection(job.after)), None)
        if job is None or not self.engine.free():
            return False
        self.waiting.remove(job)
        self.doing[job.name] = job
        self.begun[job.name] = self.begun.get(job.name, 0) + 1
        self.engine.start(job, self.note)
        return True

    def note(self, event: Event) -> None:
        """Take notice of what happened."""
        job = event.job
        if event.kind == "said":
            self.progress.say(event.text)
        elif event.kind == "advanced":
            self._show(job, self.shown.get(job.name, 0.0) + event.part)
        else:
            del self.doing[job.name]
            if event.kind == "done":
                self._show(job, 1.0)
                return
            self.waiting.insert(0, job)
            cause = self._cause(event)
            if self.ending is None or isinstance(self.ending, Interrupted):
                self.ending = cause or self.ending

    def _cause(self, event: Event) -> Exception | None:
        """What a job that is not done means for the study; None: it is begun again, or has been stopped."""
        name, begun = event.job.name, self.begun[event.job.name]
        if event.kind == "refused":
            return UserError(event.text)
        if event.kind == "interrupted":
            return Interrupted(event.text)
        if event.kind == "failed":
            return RuntimeError(f"{name} failed:\n{event.text}")
        if self.stopping:
            return None
        if begun < self.engine.attempts:
            self.progress.say(f"{name}: its process died ({event.text}); it is begun again")
            return None
        return UserError(
            f"{name}: its process died {begun} times ({event.text}). Was there too little memory? Do fewer jobs at "
            "once with -P workers=1. What is done is kept: the same command goes on."
        )

    def _show(self, job: Job, part: float) -> None:
        part, before = min(part, 1.0), self.shown.get(job.name, 0.0)
        self.shown[job.name] = part
        self.advance(round(job.cost * part) - round(job.cost * before))


def run_jobs(jobs: Sequence[Job], engine: Engine, progress: Progress, label: str, command: str) -> None:
    """Do every job after those it waits for.

    Args:
        jobs: In an order in which they could be done one by one; earlier ones start first.
        progress: Shows how much is done, weighted by cost.
        label: Names that.
        command: Goes on where this is stopped.
    Raises:
        UserError: a job was refused, or its process died as often as it may; the other jobs have saved.
        Interrupted: SIGTERM or Ctrl-C came; the jobs being done have saved.
    """
    with resume.listen() as stopping, progress.counter(round(sum(job.cost for job in jobs)), label) as advance:
        board = Board(list(jobs), engine, progress, advance)
        try:
            while board.waiting or board.doing:
                board.stopping = board.stopping or stopping() or board.ending is not None
                if board.stopping:
                    engine.stop()
                    if not board.doing:
                        break
                elif board.start():
                    continue
                engine.watch(board.note)
        finally:
            engine.close()
    if board.ending:
        raise board.ending
    if board.waiting:
        done = len(jobs) - len(board.waiting)
        raise Interrupted(f"Stopped after {done} of {len(jobs)} jobs, all saved. Continue: {command}")
