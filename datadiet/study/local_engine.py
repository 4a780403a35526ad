"""Engines on this machine: this process, or worker processes, each of which keeps JAX, the data and its programs."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field, replace
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from datadiet import commands
from datadiet.devices import ALL
from datadiet.errors import Interrupted
from datadiet.option import refuse
from datadiet.processors import processors
from datadiet.progress import hush
from datadiet.runs.context import Context
from datadiet.runs.signals import listen
from datadiet.study.engine import WORDS, Engine, Event, Note, Setting, Telling, attempt, perform
from datadiet.study.options import EngineOptions
from datadiet.study.spec import Job
from datadiet.training.compiled import is_any_left
from datadiet.training.device import check_device, look_apart, tell

CLOSE_SECONDS = 3.0  # for workers to end when there is nothing left to do
POLL_SECONDS = 0.2  # between two looks at whether to stop
TELL_SECONDS = 0.2  # at least, between two words about how far a job is


def count_gpus() -> int:
    """NVIDIA GPUs that JAX may use, found without starting JAX, which would take their memory."""
    if os.environ.get("JAX_PLATFORMS", "cuda").split(",")[0] not in ("cuda", "gpu"):
        return 0
    chosen = os.environ.get("CUDA_VISIBLE_DEVICES")
    if chosen is not None:
        return len([name for name in chosen.split(",") if name.strip()])
    return len(list(Path("/proc/driver/nvidia/gpus").glob("*")))


def jobs_at_once(options: EngineOptions, left: int) -> tuple[int, str]:
    """How many of the jobs that are left are done at once, and on how many devices each.

    By default one on each GPU; without GPUs one for each processor, each with as many threads as it has processors.

    Raises:
        UserError: there are not as many GPUs.
    """
    gpus, left = count_gpus(), max(left, 1)
    if not gpus:
        return min(options.workers or len(processors()), left), options.devices
    if options.devices == ALL:
        count = min(options.workers or gpus, left)
        return count, str(max(1, gpus // count))
    each = int(options.devices)
    if each > gpus:
        raise refuse("devices", each, f"all, or at most {gpus}, the GPUs there are")
    if each > 1 and each * (options.workers or 1) > gpus:
        told = f"at most {gpus // each} with {commands.option('devices', each)}, for there are {gpus} GPUs"
        raise refuse("workers", options.workers, told)
    return min(options.workers or gpus // each, left), options.devices


@dataclass(frozen=True)
class Share:
    """What one of several workers has of the machine; JAX reads it when it is first used."""

    index: int
    count: int
    devices: int = 1  # GPUs, where there are any

    def take(self) -> None:
        """GPUs of its own where there are any, else an equal share of the processors: XLA begins as many threads."""
        if count_gpus():
            names = os.environ.get("CUDA_VISIBLE_DEVICES", ",".join(map(str, range(count_gpus())))).split(",")
            own = range(self.index * self.devices, (self.index + 1) * self.devices)
            os.environ["CUDA_VISIBLE_DEVICES"] = ",".join(names[position % len(names)] for position in own)
        elif hasattr(os, "sched_setaffinity") and (each := len(processors()) // self.count):
            first = self.index * each
            os.sched_setaffinity(0, processors()[first : first + each])


def _end_with_parent() -> None:
    """Where the parent is killed no one would read what is done here: end at once. Runs are continued."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def work(connection: Connection, setting: Setting, share: Share) -> None:
    """The life of a worker: do the jobs that come through `connection`, and tell of them."""
    threading.Thread(target=_end_with_parent, daemon=True).start()
    share.take()
    hush()
    told, sending = time.monotonic(), threading.Lock()
    pending = 0.0

    def send(event: Event) -> None:  # scoring tells from a thread of its own
        with sending:
            connection.send(event)

    def note(event: Event) -> None:
        nonlocal told, pending
        if event.kind == "advanced":
            pending += event.part
            if time.monotonic() - told < TELL_SECONDS:
                return
            event, pending, told = event._replace(part=pending), 0.0, time.monotonic()
        send(event)

    with suppress(Interrupted, EOFError, BrokenPipeError), listen():
        while (job := connection.recv()) is not None:
            pending = 0.0
            send(attempt(job, setting.context(Telling(job, note))))
    if is_any_left():
        os._exit(0)


@dataclass
class _Worker:
    """A worker process as its parent sees it."""

    process: BaseProcess
    connection: Connection
    job: Job | None = None
    asked: bool = False  # to stop

    def ask(self) -> None:
        """Ask it to save and end, also where it is halted."""
        self.asked = True
        with suppress(ProcessLookupError):
            os.kill(self._pid, signal.SIGTERM)
            os.kill(self._pid, signal.SIGCONT)

    def was_halted(self) -> bool:
        """Whether it has been halted, as by SIGSTOP, since this was last asked."""
        if not hasattr(os, "waitid") or self.process.exitcode is not None:
            return False
        with suppress(ChildProcessError):
            return os.waitid(os.P_PID, self._pid, os.WSTOPPED | os.WNOHANG) is not None
        return False

    @property
    def _pid(self) -> int:
        assert self.process.pid is not None, "it was begun"
        return self.process.pid


@dataclass
class Workers:
    """Up to `count` jobs at once, each in a process that is begun when it is first needed."""

    setting: Setting
    count: int
    attempts: int = 2
    pool: dict[int, _Worker] = field(default_factory=dict)  # by index

    def free(self) -> int:
        return self.count - sum(worker.job is not None for worker in self.pool.values())

    def start(self, job: Job, note: Note) -> None:
        idle = [worker for worker in self.pool.values() if worker.job is None]
        worker = idle[0] if idle else self._begin()
        worker.job = job
        with suppress(OSError):  # it died while idle: `watch` finds that out
            worker.connection.send(job)

    def _begin(self) -> _Worker:
        context = multiprocessing.get_context("spawn")  # JAX cannot be forked
        index = next(i for i in range(self.count) if i not in self.pool)
        ours, theirs = context.Pipe()
        share = Share(index, self.count, int(self.setting.devices) if count_gpus() else 1)
        process = context.Process(target=work, args=(theirs, self.setting, share), name=f"worker {index}", daemon=True)
        before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})  # and so in the process begun: whoever
        process.start()  # presses Ctrl-C means all of them, and this one asks them
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
        theirs.close()
        self.pool[index] = _Worker(process, ours)
        return self.pool[index]

    def watch(self, note: Note) -> None:
        ready = wait([worker.connection for worker in self.pool.values()], POLL_SECONDS)
        for worker in self.pool.values() if not ready else ():
            if worker.job is not None and worker.was_halted():
                told = f"its process {worker.process.pid} is halted; `kill -CONT {worker.process.pid}` lets it go on"
                note(Event(worker.job, "said", f"{worker.job.name}: {told}"))
        for index, worker in [item for item in self.pool.items() if item[1].connection in ready]:
            try:
                event = worker.connection.recv()
            except (EOFError, OSError):
                del self.pool[index]
                worker.process.join()
                if worker.job is not None:
                    note(Event(worker.job, "died", _ended(worker.process.exitcode)))
                continue
            if event.kind not in WORDS:
                worker.job = None
            note(event)

    def stop(self) -> None:
        for worker in self.pool.values():
            if worker.job is not None and not worker.asked:
                worker.ask()

    def close(self) -> None:
        """End them; one that does not end soon is killed, which loses nothing that it has saved."""
        for worker in self.pool.values():
            if worker.job is None:
                with suppress(OSError):
                    worker.connection.send(None)
            else:
                worker.ask()
        end = time.monotonic() + CLOSE_SECONDS
        for worker in self.pool.values():
            worker.process.join(max(0.0, end - time.monotonic()))
            worker.process.kill()
            worker.process.join()
            worker.connection.close()
        self.pool.clear()


def _ended(code: int | None) -> str:
    """How a process ended, in words."""
    if code is not None and code < 0:
        return signal.Signals(-code).name
    return f"exit code {code}"


class Here:
    """One job after the other in this process; what a job raises comes through as it is."""

    attempts = 1

    def __init__(self, context: Context) -> None:
        self.context = context

    def free(self) -> int:
        return 1

    def start(self, job: Job, note: Note) -> None:
        perform(job, replace(self.context, reporter=Telling(job, note)))
        note(Event(job, "done"))

    def watch(self, note: Note) -> None:
        pass

    def stop(self) -> None:
        pass

    def close(self) -> None:
        pass


def check_local(options: EngineOptions, say: Callable[[str], Any]) -> None:
    """Look at the device, without taking memory of a GPU that workers are to have.

    Raises:
        UserError: there is none to compute on, or there are not as many.
    """
    if count_gpus() and options.workers != 1:
        jobs_at_once(options, 1)
        tell(look_apart(), say)
    else:
        check_device(say, options.devices)


def begin_local(options: EngineOptions, context: Context, count: int) -> Engine:
    """In this process where one job at a time is enough, else in workers."""
    at_once, devices = jobs_at_once(options, count)
    context = replace(context, devices=devices)
    if devices != "1" and count:
        context.reporter.say(f"Devices of each job: {devices}; jobs at once: {at_once}.")
    return Here(context) if at_once == 1 else Workers(Setting.of(context), at_once)
