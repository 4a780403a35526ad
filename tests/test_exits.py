"""Whichever way a training ends: no save goes on behind its back, none is left half done, and nothing is printed but
what the user has to know."""

from __future__ import annotations

import asyncio
import json
import os
import resource
import signal
import threading
import time
from pathlib import Path

import pytest
from conftest import QUICK, datadiet

from datadiet.config import TrainConfig, resolve
from datadiet.errors import UserError
from datadiet.models.registry import build_model
from datadiet.runs import train
from datadiet.runs.signals import EXIT_CODE
from datadiet.storage import checkpoints, loops
from datadiet.storage.checkpoints import _check_files, checkpoint_steps, save_checkpoint
from datadiet.tracking import mlflow_store, run
from datadiet.training.state import initial_state

FAST = QUICK | {"width": 8, "save_steps": 11, "log_steps": 11}
RUN = "exps/full_data/run_0"


def at_rest(run: Path) -> list[int]:
    """The checkpoints of a run, which are all whole; none of Orbax's threads is at work."""
    assert [t for t in threading.enumerate() if type(t).__module__.startswith("orbax.")] == []
    for path in (run / "ckpts").iterdir():
        assert path.name.isdigit(), f"{path} was left"
        _check_files(path)
    return checkpoint_steps(run)


@pytest.fixture(scope="module")
def state():
    config = resolve(TrainConfig(model="mlp", width=8), 1438)
    return initial_state(build_model("mlp", 10, (8, 8, 1), width=8), config, 1438)


@pytest.mark.parametrize("size", [0, 300, 700, 1100, 1500, 1900, 2300])
def test_a_save_that_cannot_be_written_says_so_once(tmp_path, state, capfd, size):
    """No file may grow beyond so many bytes: another of Orbax's files and threads fails for each of them."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        with pytest.raises(UserError, match="ckpts/0 cannot be written: File too large"):
            save_checkpoint(tmp_path, state)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert at_rest(tmp_path) == []
    assert capfd.readouterr().err == ""
    save_checkpoint(tmp_path, state)
    assert at_rest(tmp_path) == [0]


def test_a_save_that_is_interrupted_leaves_nothing(tmp_path, state, capfd, monkeypatch):
    fail_at(monkeypatch, checkpoints, "_seal", 1, KeyboardInterrupt())
    with pytest.raises(KeyboardInterrupt):
        save_checkpoint(tmp_path, state)
    assert at_rest(tmp_path) == []
    assert capfd.readouterr().err == ""


def test_a_loop_is_closed_when_its_tasks_and_threads_are_done(capfd):
    ended = []

    async def slow(name: str) -> None:
        await asyncio.to_thread(time.sleep, 0.05)
        ended.append(name)
        raise OSError(name)

    async def work() -> None:
        tasks = [asyncio.create_task(slow(name)) for name in "ab"]
        await asyncio.sleep(0)
        raise ValueError(f"before {len(tasks)} tasks are done")

    def run() -> None:
        loop = asyncio.new_event_loop()
        try:
            loop.run_until_complete(work())
        finally:
            loop.close()

    with pytest.raises(ValueError, match="before 2 tasks"), loops.patient():
        run()
    assert sorted(ended) == ["a", "b"]
    assert capfd.readouterr().err == ""


def fail_at(monkeypatch, owner: object, name: str, times: int, error: BaseException) -> None:
    """The so-manieth call of a function raises."""
    real, calls = getattr(owner, name), []

    def called(*arguments, **options):
        calls.append(name)
        if len(calls) == times:
            raise error
        return real(*arguments, **options)

    monkeypatch.setattr(owner, name, called)


@pytest.mark.parametrize(
    ("owner", "name", "times", "error", "code", "steps"),
    [
        (train, "append_line", 2, UserError("no room"), 2, [0, 11]),
        (train, "save_step", 3, KeyboardInterrupt(), 1, [0, 11]),
        (train, "summarize", 1, UserError("no summary"), 2, [0, 11, 22, 33, 44]),
        (mlflow_store, "log_metrics", 2, ConnectionError("away"), 0, [0, 11, 22, 33, 44]),
        (run, "_end", 1, UserError("MLflow refuses"), 2, [0, 11, 22, 33, 44]),
    ],
)
def test_what_fails_beside_the_saves_leaves_them_whole(tmp_path, monkeypatch, owner, name, times, error, code, steps):
    with monkeypatch.context() as patch:
        fail_at(patch, owner, name, times, error)
        done = datadiet("full_data", tmp_path, expect=code, **FAST)
    assert "Traceback" not in done.output
    assert at_rest(tmp_path / RUN) == steps
    datadiet("full_data", tmp_path, resume="true", **FAST)
    assert at_rest(tmp_path / RUN) == [0, 11, 22, 33, 44]


def test_a_run_that_diverges_has_whole_checkpoints(tmp_path):
    done = datadiet("full_data", tmp_path, expect=2, offline="true", lr=1e30, **FAST)
    assert "Error" in done.stderr
    assert at_rest(tmp_path / RUN) == [0]
    assert json.loads((tmp_path / RUN / "mlflow_run.json").read_text())["diverged"]


def test_sigterm_waits_for_the_save_under_way(tmp_path, monkeypatch):
    real = save_checkpoint

    def save(run_dir, state, seconds):
        if int(state.step) == 22:
            os.kill(os.getpid(), signal.SIGTERM)
        real(run_dir, state, seconds)

    monkeypatch.setattr(train, "save_checkpoint", save)
    done = datadiet("full_data", tmp_path, expect=EXIT_CODE, offline="true", **FAST)
    assert "all saved" in done.stderr
    found = at_rest(tmp_path / RUN)
    assert found[:3] == [0, 11, 22]
