"""Whoever asks work to stop is heard at once, whatever it is at, and it ends so that it can go on."""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
from conftest import PATIENCE, PROJECT, QUICK, datadiet, end_of

from datadiet.errors import Interrupted
from datadiet.runs import signals
from datadiet.runs.signals import EXIT_CODE, listen
from datadiet.storage.checkpoints import checkpoint_steps
from datadiet.study import local_engine, study
from datadiet.training import compiled
from datadiet.training.compiled import never, unless


def test_a_signal_is_told_while_the_main_thread_is_at_something_else():
    told, gate = [], threading.Event()
    with listen(lambda text: (told.append(text), gate.set())) as stopping:
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})  # as where a compiled program has this thread
        try:
            os.kill(os.getpid(), signal.SIGTERM)
            assert gate.wait(PATIENCE)
            assert stopping()
        finally:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})
        os.kill(os.getpid(), signal.SIGTERM)
        with listen() as within:
            assert within()
    assert told == ["SIGTERM: stopping after this step, which is saved. A second Ctrl-C ends at once."]


def test_handlers_and_threads_are_afterwards_as_they_were():
    def facts() -> list:
        return [*map(signal.getsignal, signals.SIGNALS), threading.enumerate(), len(os.listdir("/proc/self/fd"))]

    before = facts()
    with listen() as stopping:
        os.kill(os.getpid(), signal.SIGINT)
        assert stopping()
    assert facts() == before
    with listen() as stopping:
        assert not stopping(), "that one was heard by the block before"


def press_ctrl_c_twice(blocked: set[signal.Signals]) -> None:
    heard = threading.Event()
    with listen(lambda text: heard.set(), again="Continue: so"):
        signal.pthread_sigmask(signal.SIG_BLOCK, blocked)
        os.kill(os.getpid(), signal.SIGINT)
        assert heard.wait(PATIENCE)
        os.kill(os.getpid(), signal.SIGINT)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, blocked)
        threading.Event().wait(PATIENCE)


@pytest.mark.parametrize("blocked", [set(), {signal.SIGINT}])
def test_a_second_ctrl_c_ends_the_block_with_how_to_go_on(monkeypatch, blocked):
    """Also where both came while Python could call no handler: it calls it once."""
    monkeypatch.setattr(signals, "GRACE_SECONDS", PATIENCE)
    with pytest.raises(Interrupted, match=r"^Ended at once; what was saved before is there\. Continue: so$"):
        press_ctrl_c_twice(blocked)


def test_a_main_thread_that_misses_the_first_call_is_called_again(monkeypatch):
    """As where it looks for signals just before it begins to wait."""
    listener, calls = signals._Listener(None, "", ""), []

    def raise_at_the_second(thread: int, number: int) -> None:
        assert (thread, number) == (threading.main_thread().ident, signal.SIGINT)
        calls.append(number)
        listener.raised = len(calls) > 1

    monkeypatch.setattr(signals.signal, "pthread_kill", raise_at_the_second)
    monkeypatch.setattr(signals, "GRACE_SECONDS", PATIENCE)
    insisting = threading.Thread(target=listener._insist)
    insisting.start()
    while not listener.raised:
        time.sleep(0.001)
    listener.over.set()
    insisting.join(PATIENCE)
    assert (len(calls), insisting.is_alive()) == (2, False)


def test_a_ctrl_c_without_a_listener_is_one():
    with pytest.raises(KeyboardInterrupt), listen():
        raise KeyboardInterrupt


HELD = """
import threading
from datadiet.runs import signals
signals.GRACE_SECONDS = 0.1
signals._Listener.__call__ = lambda *_: None  # the main thread never comes back, so Python calls no handler
with signals.listen(lambda text: print(text, flush=True), again="Continue: so"):
    print("begun", flush=True)
    threading.Event().wait()
"""


def test_a_second_ctrl_c_ends_a_process_whose_main_thread_never_comes_back():
    process = subprocess.Popen(
        [sys.executable, "-c", HELD], cwd=PROJECT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "begun\n"
    process.send_signal(signal.SIGINT)
    assert process.stdout.readline().startswith("SIGINT: stopping after this step")
    process.send_signal(signal.SIGINT)
    _, errors = end_of(process)
    assert process.returncode == EXIT_CODE
    assert errors == "\nError: Ended at once; what was saved before is there. Continue: so\n"


# --- what takes long without coming back to Python ----------------------------------------------


def test_what_is_done_in_time_comes_back_as_it_is():
    assert unless(never, lambda: threading.current_thread()) is threading.current_thread()
    assert unless(lambda: False, divmod, 7, 2) == (3, 1)
    with pytest.raises(ZeroDivisionError):
        unless(lambda: False, divmod, 7, 0)
    with pytest.raises(Interrupted):
        unless(lambda: True, pytest.fail, "it was begun")


def test_what_came_back_is_not_left_while_its_thread_ends(monkeypatch):
    gate, ended = threading.Event(), []

    class Slow(threading.Thread):
        def run(self):
            super().run()
            gate.wait(PATIENCE)
            ended.append(self)

    monkeypatch.setattr(compiled.threading, "Thread", Slow)
    with pytest.raises(ZeroDivisionError):
        unless(lambda: False, divmod, 7, 0)
    assert (compiled.is_any_left(), ended) == (False, [])
    gate.set()


def held(monkeypatch, module, name: str, number: signal.Signals = signal.SIGTERM) -> threading.Event:
    """A function stands still until the event that this gives, and the signal comes meanwhile."""
    gate = threading.Event()

    def stand_still(*arguments, **options):
        os.kill(os.getpid(), number)
        gate.wait(PATIENCE)

    monkeypatch.setattr(module, name, stand_still)
    return gate


@pytest.fixture
def left(monkeypatch) -> list:
    """With what code the process would have been ended: this one is to go on."""
    codes: list[object] = []
    monkeypatch.setattr("entrypoints.__main__.leave", lambda code: codes.append((code, compiled.is_any_left())))
    return codes


FAST = QUICK | {"width": 8, "num_steps": 6, "offline": "true"}


def test_a_signal_while_a_program_is_compiled_ends_the_training_that_goes_on_later(tmp_path, monkeypatch, left):
    with monkeypatch.context() as patch:
        gate = held(patch, compiled, "_compiled")
        done = datadiet("full_data", tmp_path, expect=EXIT_CODE, **FAST)
        assert left == [(EXIT_CODE, True)], "Python would wait for what was left"
        gate.set()
    assert "SIGTERM: stopping after this step" in done.stdout
    assert "Stopped after step 0 of 6, all saved. Continue: datadiet full_data " in done.stderr
    datadiet("full_data", tmp_path, resume="true", **FAST)
    assert checkpoint_steps(tmp_path / "exps/full_data/run_0")[-1] == 6


def test_what_goes_on_where_something_was_to_be_replaced_replaces_nothing(tmp_path, monkeypatch, left):
    with monkeypatch.context() as patch:
        gate = held(patch, compiled, "_compiled")
        told = datadiet("full_data", tmp_path, expect=EXIT_CODE, overwrite="true", **FAST).stderr
        gate.set()
    typed = shlex.split(told.partition("Continue: datadiet full_data ")[2])
    given = dict(zip((name.removeprefix("--") for name in typed[::2]), typed[1::2]))
    assert given == {name: str(value) for name, value in FAST.items()} | {"resume": "true"}
    datadiet("full_data", tmp_path, **given)
    assert checkpoint_steps(tmp_path / "exps/full_data/run_0")[-1] == 6
    monkeypatch.setattr(study, "run_jobs", lambda *arguments: os.kill(os.getpid(), signal.SIGINT))
    for plan in ({}, {"plan": tmp_path / "plan.json"}):
        (tmp_path / "plan.json").write_text('{"overwrite": true}')
        told = datadiet("main", tmp_path, expect=EXIT_CODE, offline="true", overwrite="true", **plan).stderr
        assert ("--overwrite" in told, "--overwrite false" in told) == (bool(plan), bool(plan))


def test_a_signal_while_scores_are_computed_ends_that_and_leaves_nothing(tmp_path, monkeypatch, left):
    datadiet("full_data", tmp_path, **FAST)
    before = sorted(tmp_path.rglob("*"))
    with monkeypatch.context() as patch:
        gate = held(patch, sys.modules["datadiet.runs.score"], "compute_many")
        done = datadiet("score", tmp_path, expect=EXIT_CODE, offline="true", step=6)
        gate.set()
    assert "ckpt_6.npy is not written. Continue: datadiet score --step 6" in done.stderr
    assert before == sorted(tmp_path.rglob("*"))


def test_a_signal_after_the_last_job_of_a_study_is_not_lost(tmp_path, monkeypatch):
    monkeypatch.setattr(study, "run_jobs", lambda *arguments: os.kill(os.getpid(), signal.SIGINT))
    done = datadiet("main", tmp_path, expect=EXIT_CODE, offline="true")
    assert "Stopped before the report; all 54 jobs are done. Continue: datadiet main --offline true" in done.stderr


# --- workers ------------------------------------------------------------------------------------


def toil(connection, setting, share) -> None:
    """The life of a worker that is at one thing until it is asked to stop."""
    job = connection.recv()
    with listen() as stopping:
        connection.send(SimpleNamespace(job=job, kind="said", text="begun"))
        while not stopping():
            time.sleep(0.01)
    connection.send(SimpleNamespace(job=job, kind="interrupted", text=""))
    connection.recv()


@pytest.mark.skipif(not hasattr(os, "waitid"), reason="no way to learn of it")
def test_a_worker_that_is_halted_is_told_and_ends_when_it_is_asked(monkeypatch):
    monkeypatch.setattr(local_engine, "work", toil)
    engine, told = local_engine.Workers(None, 1), []  # pyright: ignore[reportArgumentType]  toil needs no setting

    def watch(until: str) -> None:
        while not any(until in f"{event.kind} {event.text}" for event in told):
            engine.watch(told.append)

    engine.start(SimpleNamespace(name="a"), told.append)  # pyright: ignore[reportArgumentType]
    watch("begun")
    (worker,) = engine.pool.values()
    os.kill(worker.process.pid, signal.SIGSTOP)
    watch(f"said a: its process {worker.process.pid} is halted; `kill -CONT {worker.process.pid}` lets it go on")
    engine.stop()
    watch("interrupted")
    os.kill(worker.process.pid, signal.SIGSTOP)
    engine.close()
    assert worker.process.exitcode == -signal.SIGKILL
    assert Path(f"/proc/{worker.process.pid}").exists() is False
