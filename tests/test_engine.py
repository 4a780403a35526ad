"""Jobs: their order, what they wait for, and how a study ends where one does not."""

from __future__ import annotations

import os
import signal
from contextlib import contextmanager

import pytest

from datadiet.errors import Interrupted, UserError
from datadiet.study.engine import Event
from datadiet.study.scheduler import run_jobs
from datadiet.study.spec import Job

JOBS = [
    Job(name="a", exp="s", cost=2),
    Job(name="b", exp="s", cost=2),
    Job(name="mean", exp="s", after=("a", "b"), cost=0),
    Job(name="c", exp="s", after=("mean",), cost=4),
    Job(name="d", exp="s", cost=1),
]


class Shown:
    """Progress that remembers."""

    def __init__(self) -> None:
        self.total = self.units = 0
        self.lines: list[str] = []

    @contextmanager
    def counter(self, total: int, label: str, told=None):
        self.total = total

        def advance(units: int) -> None:
            self.units += units

        yield advance

    def say(self, text: str) -> None:
        self.lines.append(text)

    detail = answer = say


class Pretend:
    """An engine without work: up to `room` jobs at once; the one begun last ends first, as `ends` says."""

    def __init__(self, room: int = 2, attempts: int = 2, **ends: list[str]) -> None:
        self.room, self.attempts, self.ends = room, attempts, ends
        self.doing: list[Job] = []
        self.begun: list[str] = []
        self.ended: list[str] = []
        self.stopped = self.closed = False

    def free(self) -> int:
        return self.room - len(self.doing)

    def start(self, job, note) -> None:
        assert set(job.after) <= set(self.ended), "what it waits for is not there"
        self.doing.append(job)
        self.begun.append(job.name)
        note(Event(job, "advanced", part=0.75))

    def watch(self, note) -> None:
        if self.doing:
            job = self.doing.pop()
            kind = self.ends.get(job.name, ["done"])
            kind = kind.pop(0) if len(kind) > 1 else kind[0]
            if self.stopped and kind == "done":
                kind = "interrupted"
            if kind == "signal":
                os.kill(os.getpid(), signal.SIGTERM)
                kind = "done"
            self.ended += [job.name] if kind == "done" else []
            note(Event(job, kind, f"{job.name} {kind}"))

    def stop(self) -> None:
        self.stopped = True

    def close(self) -> None:
        self.closed = True


def run(engine: Pretend) -> Shown:
    shown = Shown()
    run_jobs(JOBS, engine, shown, "label", "the command")
    return shown


@pytest.mark.parametrize("room", [1, 2, 5])
def test_every_job_is_done_once_after_those_it_waits_for(room):
    engine = Pretend(room)
    shown = run(engine)
    assert sorted(engine.begun) == sorted(job.name for job in JOBS)
    assert engine.closed
    assert (shown.units, shown.total) == (9, 9)


def test_earlier_jobs_begin_first():
    engine = Pretend(1)
    run(engine)
    assert engine.begun == ["a", "b", "mean", "c", "d"]


def test_a_job_whose_process_dies_is_begun_again():
    engine = Pretend(b=["died", "done"])
    shown = run(engine)
    assert engine.begun.count("b") == 2
    assert shown.lines == ["b: its process died (b died); it is begun again"]
    assert shown.units == 9


def test_a_job_whose_process_dies_again_is_named():
    engine = Pretend(b=["died"])
    with pytest.raises(UserError, match="^b: its process died 2 times"):
        run(engine)
    assert engine.stopped, "other jobs were to save"
    assert engine.closed
    assert "c" not in engine.begun


def test_what_a_job_refuses_stops_the_others_and_is_told():
    engine = Pretend(b=["refused"])
    with pytest.raises(UserError, match="^b refused$"):
        run(engine)
    assert engine.begun == ["a", "b"]
    assert not engine.ended, "a was asked to save and stop"


def test_an_error_of_a_job_comes_with_its_name():
    with pytest.raises(RuntimeError, match="^b failed:\nb failed"):
        run(Pretend(b=["failed"]))


def test_a_signal_stops_the_jobs_and_says_how_to_go_on():
    engine = Pretend(1, b=["signal"])
    with pytest.raises(Interrupted, match=r"Stopped after 2 of 5 jobs, all saved\. Continue: the command"):
        run(engine)
    assert engine.begun == ["a", "b"]
    assert engine.closed


@pytest.mark.parametrize("room", [1, 3])
def test_rounds_of_jobs_are_done_one_after_the_other_on_one_engine(room):
    engine, shown = Pretend(room), Shown()
    rounds = [[Job(name="e", exp="s", after=("mean",), cost=3), Job(name="f", exp="s", cost=1)], []]
    ended = []

    def more() -> list[Job]:
        assert not engine.closed
        ended.append(len(engine.ended))
        return rounds.pop(0)

    run_jobs(JOBS, engine, shown, "label", "the command", more)
    assert ended == [5, 7], "asked when all were done"
    assert sorted(engine.begun[5:]) == ["e", "f"]
    assert engine.closed
    assert shown.units == 9 + 4
    with pytest.raises(Interrupted, match="Stopped after 1 of 2 jobs"):
        run_jobs(JOBS, Pretend(1, e=["signal"]), Shown(), "label", "the command", lambda: [
            Job(name="e", exp="s", cost=3), Job(name="f", exp="s", cost=1)])  # fmt: skip
