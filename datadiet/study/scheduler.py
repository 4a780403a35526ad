"""Does the jobs of a study in their order, wherever an engine does each."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from datadiet import commands
from datadiet.errors import Interrupted, UserError
from datadiet.progress import Advance, Standing
from datadiet.runs.context import Reporter
from datadiet.runs.signals import listen
from datadiet.study.engine import Engine, Event
from datadiet.study.spec import Job, MeanJob, ScoreJob, TrainJob

More = Callable[[], Sequence[Job]]
Done = Callable[[Job], Any]


def words(job: Job) -> str:
    """What a job does."""
    match job:
        case TrainJob(tags={"arm": arm, "fraction": fraction}):
            return f"{arm} at {float(fraction):.0%}, run {job.config.run}"
        case TrainJob():
            return f"all of the data, run {job.config.run} (scored)"
        case ScoreJob():
            return f"{job.type} of run {job.run}"
        case MeanJob():
            return f"mean of {job.type} over {job.n_runs} runs"
    return job.name


@dataclass
class Board:
    """Which jobs wait and which are being done, and what there is to show of it."""

    waiting: list[Job]
    engine: Engine
    progress: Reporter
    done: Done
    advance: Advance = lambda units: None
    doing: dict[str, Job] = field(default_factory=dict)
    begun: dict[str, int] = field(default_factory=dict)  # how often, by name
    shown: dict[str, float] = field(default_factory=dict)  # part of a job's cost that `advance` was told
    stopping: bool = False
    ending: Exception | None = None  # why no further job starts

    def __post_init__(self) -> None:
        self.trainings = sum(isinstance(job, TrainJob) for job in self.waiting)

    def standing(self) -> Standing:
        """How many trainings are done, and what is being done."""
        left = sum(isinstance(job, TrainJob) for job in (*self.waiting, *self.doing.values()))
        return Standing(
            f"trainings {self.trainings - left} of {self.trainings}", ", ".join(map(words, self.doing.values()))
        )

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
        elif event.kind == "detailed":
            self.progress.detail(event.text)
        elif event.kind == "advanced":
            self._show(job, self.shown.get(job.name, 0.0) + event.part)
        else:
            del self.doing[job.name]
            if event.kind == "done":
                self._show(job, 1.0)
                self.done(job)
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
            f"once with {commands.option('workers', 1)}. What is done is kept: the same command goes on."
        )

    def _show(self, job: Job, part: float) -> None:
        part, before = min(part, 1.0), self.shown.get(job.name, 0.0)
        self.shown[job.name] = part
        self.advance(round(job.cost * part) - round(job.cost * before))


def run_jobs(
    jobs: Sequence[Job], engine: Engine, progress: Reporter, label: str, command: str, more: More = lambda: (),
    done: Done = lambda job: None,
) -> None:  # fmt: skip
    """Do every job after those it waits for, and then what there is more, on the same engine.

    Args:
        jobs: In an order in which they could be done one by one; earlier ones start first.
        progress: Shows how much is done, weighted by cost.
        label: Names that.
        command: Goes on where this is stopped.
        more: Asked for further jobs when all are done, until there are none.
        done: Told of each job that is done.
    Raises:
        UserError: a job was refused, or its process died as often as it may; the other jobs have saved.
        Interrupted: SIGTERM or Ctrl-C came; the jobs being done have saved.
    """
    with listen(progress.say, again=f"Continue: {command}") as stopping:
        try:
            while jobs:
                board = Board(list(jobs), engine, progress, done)
                with progress.counter(round(sum(job.cost for job in jobs)), label, board.standing) as board.advance:
                    _empty(board, stopping)
                if board.ending:
                    raise board.ending
                if board.waiting:
                    finished = len(jobs) - len(board.waiting)
                    raise Interrupted(f"Stopped after {finished} of {len(jobs)} jobs, all saved. Continue: {command}")
                jobs = more()
        finally:
            engine.close()


def _empty(board: Board, stopping: Callable[[], bool]) -> None:
    """Do what waits, until all is done or no further job may start."""
    while board.waiting or board.doing:
        board.stopping = board.stopping or stopping() or board.ending is not None
        if board.stopping:
            board.engine.stop()
            if not board.doing:
                return
        elif board.start():
            continue
        board.engine.watch(board.note)
