"""Whichever way a training ends: no save goes on behind its back, none is left half done, and nothing is printed but
what the user has to know."""

from __future__ import annotations

import asyncio
import errno
import json
import logging
import os
import resource
import signal
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
from conftest import PATIENCE, QUICK, datadiet, environment

from datadiet.config import TrainConfig, resolve
from datadiet.errors import UserError
from datadiet.models.registry import build_model
from datadiet.runs import saving, train
from datadiet.runs.background import Background
from datadiet.runs.signals import EXIT_CODE
from datadiet.storage import checkpoints, files
from datadiet.tracking import mlflow_store
from datadiet.tracking.run import TrackedRun
from datadiet.training.state import TrainState, initial_state

FAST = QUICK | {"width": 8, "save_steps": 11, "log_steps": 11}
RUN = "exps/full_data/run_0"


def at_rest(run: Path) -> list[int]:
    """The checkpoints of a run, which are all whole; no thread that saved is at work."""
    for thread in threading.enumerate():
        if type(thread).__module__.startswith("orbax.") or thread.name.startswith(("asyncio", "datadiet-checkpoint")):
            thread.join(1)  # one that has nothing left to do may be about to end
            assert not thread.is_alive(), thread
    for path in (run / "ckpts").iterdir():
        assert path.name.isdigit(), f"{path} was left"
        checkpoints._check_files(path)
    return checkpoints.checkpoint_steps(run)


def fail_at(monkeypatch, owner: object, name: str, times: int, error: BaseException) -> None:
    """The so-manieth call of a function raises."""
    real, calls = getattr(owner, name), []

    def called(*arguments, **options):
        calls.append(name)
        if len(calls) == times:
            raise error
        return real(*arguments, **options)

    monkeypatch.setattr(owner, name, called)


@pytest.fixture(scope="module")
def state():
    config = resolve(TrainConfig(model="mlp", width=8), 1438)
    return initial_state(build_model("mlp", 10, (8, 8, 1), width=8), config, 1438)


@pytest.mark.parametrize("size", [0, 60, 150, 300, 700, 2000, 4000, 20000])
def test_a_save_that_cannot_be_written_says_so_once(tmp_path, state, capfd, size):
    """No file may grow beyond so many bytes: another of Orbax's files and ours fails for each of them."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        with pytest.raises(UserError, match="ckpts/0 cannot be written: File too large"):
            checkpoints.save_checkpoint(tmp_path, state)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert at_rest(tmp_path) == []
    assert capfd.readouterr().err == ""
    checkpoints.save_checkpoint(tmp_path, state)
    assert at_rest(tmp_path) == [0]
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize(
    ("owner", "name", "times"),
    [
        *((os, "fsync", k) for k in range(1, 10)), *((os, "mkdir", k) for k in (1, 2)), (os, "rename", 1),
        (os, "replace", 1), (np, "savez", 1), (files, "json_text", 1),
    ],
)  # fmt: skip
def test_a_disk_full_at_any_moment_of_a_save_is_one_message(tmp_path, state, capfd, monkeypatch, owner, name, times):
    with monkeypatch.context() as patch:
        fail_at(patch, owner, name, times, OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)))
        with pytest.raises(
            UserError, match=r"ckpts(/0(/files\.json)?)? cannot be written: No space left on device\. Nothing"
        ):
            checkpoints.save_checkpoint(tmp_path, state)
    assert not (tmp_path / "ckpts").exists() or at_rest(tmp_path) == []
    checkpoints.save_checkpoint(tmp_path, state)
    assert at_rest(tmp_path) == [0]
    assert capfd.readouterr().err == ""


def test_a_save_that_is_interrupted_leaves_nothing(tmp_path, state, capfd, monkeypatch):
    fail_at(monkeypatch, checkpoints, "_seal", 1, KeyboardInterrupt())
    with pytest.raises(KeyboardInterrupt):
        checkpoints.save_checkpoint(tmp_path, state)
    assert at_rest(tmp_path) == []
    assert capfd.readouterr().err == ""


def saved_and_spoilt(folder: Path, state: TrainState) -> None:
    """A save that is loaded again, and one of which a file cannot be written."""
    for name in ("good", "spoilt"):
        (folder / name).mkdir()
    checkpoints.save_checkpoint(folder / "good", state)
    checkpoints.load_state(folder / "good", 0, like=state)
    with pytest.MonkeyPatch.context() as patch:
        fail_at(patch, files, "json_text", 1, OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)))
        with pytest.raises(UserError, match="No space left"):
            checkpoints.save_checkpoint(folder / "spoilt", state)


@pytest.mark.parametrize("where", ["here", "in another thread", "in a running loop"])
def test_a_save_leaves_loops_threads_and_logging_as_they_were(tmp_path, state, capfd, where):
    async def running() -> None:
        saved_and_spoilt(tmp_path, state)

    def facts() -> tuple:
        told = logging.getLogger("absl")
        policy = asyncio.get_event_loop_policy()
        return policy, policy.get_event_loop(), told.level, told.handlers, logging.root.handlers, threading.enumerate()

    asyncio.set_event_loop(loop := asyncio.new_event_loop())
    try:
        import orbax.checkpoint  # noqa: F401  # has a logger once it is imported

        before = facts()
        if where == "here":
            saved_and_spoilt(tmp_path, state)
        elif where == "in another thread":
            with Background() as work:
                work.submit(saved_and_spoilt, tmp_path, state)
        else:
            loop.run_until_complete(running())
        assert (at_rest(tmp_path / "good"), at_rest(tmp_path / "spoilt")) == ([0], [])
        assert facts() == before
    finally:
        asyncio.set_event_loop(None)
        loop.close()
    assert capfd.readouterr().err == ""


def test_saves_without_the_command_line_print_nothing(tmp_path):
    """Nor do those that fail, nor what ends with the process."""
    code = """
import resource, threading
from pathlib import Path
from datadiet.config import TrainConfig, resolve
from datadiet.errors import UserError
from datadiet.models.registry import build_model
from datadiet.storage import checkpoints, files
from datadiet.training.state import initial_state
config = resolve(TrainConfig(model="mlp", width=8), 1438)
state = initial_state(build_model("mlp", 10, (8, 8, 1), width=8), config, 1438)
def save(name):
    Path(name).mkdir()
    try:
        checkpoints.save_checkpoint(Path(name), state)
        checkpoints.load_state(Path(name), 0, like=state)
    except UserError as error:
        print("told:", error)
for limit in (-1, 0, 150, 4000):
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, -1))
    save(f"main{limit}")
    thread = threading.Thread(target=save, args=(f"thread{limit}",))
    thread.start()
    thread.join()
"""
    done = subprocess.run(
        [sys.executable, "-X", "dev", "-W", "ignore::DeprecationWarning", "-c", code], cwd=tmp_path,
        env=environment(tmp_path), capture_output=True, text=True, timeout=PATIENCE,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.count("told: ") == done.stdout.count("cannot be written: File too large") == 6
    assert done.stdout.count("\n") == 6


@pytest.mark.parametrize(
    ("owner", "name", "times", "error", "code", "steps"),
    [
        (train, "append_line", 2, UserError("no room"), 2, [0, 11]),
        (train, "save_step", 3, KeyboardInterrupt(), 1, [0, 11]),
        (train, "summarize", 1, UserError("no summary"), 2, [0, 11, 22, 33, 44]),
        (mlflow_store, "log_values", 3, ConnectionError("away"), 0, [0, 11, 22, 33, 44]),
        (TrackedRun, "end", 1, UserError("MLflow refuses"), 2, [0, 11, 22, 33, 44]),
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
    real = saving.save_checkpoint

    def save(run_dir, state, seconds):
        if int(state.step) == 22:
            os.kill(os.getpid(), signal.SIGTERM)
        real(run_dir, state, seconds)

    monkeypatch.setattr(saving, "save_checkpoint", save)
    done = datadiet("full_data", tmp_path, expect=EXIT_CODE, offline="true", **FAST)
    assert "all saved" in done.stderr
    found = at_rest(tmp_path / RUN)
    assert found[:3] == [0, 11, 22]
