"""An engine that gives each job to Ray as a task; Ray tries a task again whose process or machine dies.

Every machine needs this package, the data, the folder the study was begun in (a file system that all share)
and a way to the MLflow store: a server, or a sqlite file on the one machine of a local cluster. All but the data is
looked at on each machine before the first job, and again by each job, whose machine may have come later.
"""

from __future__ import annotations

import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import datadiet
from datadiet import commands
from datadiet.devices import ALL
from datadiet.errors import Interrupted, UserError
from datadiet.option import refuse
from datadiet.runs.context import Context
from datadiet.runs.signals import listen
from datadiet.study.engine import Engine, Event, Note, Setting, Telling, attempt
from datadiet.study.options import EngineOptions
from datadiet.study.spec import Job
from datadiet.tracking import record

POLL_SECONDS = 0.2
ANSWER_SECONDS = 180.0  # within which every machine has to say what it sees; a process of Ray's has to begin there
RETRIES = 1  # by Ray, of a task whose process died
PASSED_ON = ("JAX_", "XLA_", "MLFLOW_", "DATADIET_", "TF_")  # environment that a task needs too


@dataclass(frozen=True)
class Place:
    """Where a study is done, as every machine of a cluster has to see it."""

    folder: str  # what relative paths begin at
    record: str  # of the study's run, below it or absolute
    uid: str  # that the record holds
    store: str | None  # MLflow's; None: it is not called
    version: str  # of this package

    @classmethod
    def of(cls, setting: Setting) -> Place:
        made = record.load(setting.mirror)
        store = None if setting.offline else setting.store
        return cls(os.getcwd(), str(setting.mirror), made.uid, store, datadiet.__version__)

    def lacking(self) -> str | None:
        """What this machine lacks of it, in words; None: nothing."""
        if datadiet.__version__ != self.version:
            return f"has datadiet {datadiet.__version__}, the study {self.version}"
        path = Path(self.folder, self.record)
        try:
            seen = record.load(path).uid
        except UserError:
            return f"does not see {path.parent}"
        if seen != self.uid:
            return f"sees another study in {path.parent}"
        if not os.access(path.parent, os.W_OK):
            return f"may not write to {path.parent}"
        file = (self.store or "").partition("sqlite:///")[2]
        if file and not Path(file).exists():
            return f"does not see the MLflow store in {file}; a server, named by MLFLOW_TRACKING_URI, all of them can"
        return None


def do(job: Job, setting: Setting, place: Place) -> list[Event]:
    """One job, in a process of Ray's: what it said, and how it ended."""
    told: list[Event] = []
    telling = Telling(job, lambda event: told.append(event) if event.kind != "advanced" else None)
    try:
        with listen():
            if lacking := place.lacking():
                return [Event(job, "refused", unfit({socket.gethostname(): lacking}))]
            os.chdir(place.folder)
            ended = attempt(job, setting.context(telling))
    except (Interrupted, KeyboardInterrupt) as error:
        ended = Event(job, "interrupted", str(error))
    return [*told, ended]


def unfit(lacking: Mapping[str, str]) -> str:
    """What machines lack, by their names, as one message."""
    machines = "\n".join(f"  {machine}: {what}" for machine, what in sorted(lacking.items()))
    return (
        f"Machines of the Ray cluster that cannot do the jobs of this study:\n{machines}\nEvery machine needs the "
        f"study's folder at the same path (name one that all share with {commands.option('root', 'FOLDER')}), this "
        "version of datadiet, and a way to the MLflow store. On this machine alone: "
        f"{commands.option('engine', 'local')}."
    )


class Cluster:
    """Jobs as Ray tasks.

    Args:
        address: Of a running cluster; None: one is begun on this machine, and ended with the study.
        count: Jobs at once; None: as many as the cluster has processors (or GPUs for).
    Raises:
        UserError: Ray is not installed, or there is no cluster at that address.
    """

    attempts = 1

    def __init__(self, setting: Setting, address: str | None, count: int | None) -> None:
        self.setting, self.place = setting, Place.of(setting)
        self.doing: dict[Any, Job] = {}
        self.asked: set[str] = set()
        self.ray = ray = load_ray()
        self._join(address)
        try:
            resources = ray.cluster_resources()
            gpus, each = int(resources.get("GPU", 0)), int(setting.devices)
            most = int(max((node["Resources"].get("GPU", 0) for node in ray.nodes() if node["Alive"]), default=0))
            if gpus and each > most:  # Ray would wait for such a machine for ever
                raise refuse("devices", each, f"at most {most}, the GPUs of one machine")
            self.count = count or gpus // each or max(1, int(resources.get("CPU", 1)))
            self.task = ray.remote(num_cpus=1, num_gpus=each if gpus else 0, max_retries=RETRIES)(do)
            self._check_machines()
        except BaseException:
            ray.shutdown()
            raise

    def _join(self, address: str | None) -> None:
        """Raises UserError where there is no cluster, Interrupted where SIGTERM came, which Ray takes for itself."""
        ray = self.ray
        environment = {k: v for k, v in os.environ.items() if k.startswith(PASSED_ON)}
        if address is None:
            environment["PYTHONPATH"] = os.pathsep.join(path or os.getcwd() for path in sys.path)
        os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
        before = signal.getsignal(signal.SIGTERM)
        try:
            ray.init(
                address or "local", runtime_env={"env_vars": environment}, log_to_driver=False, logging_level="error",
                **({} if address else {"include_dashboard": False}),
            )  # fmt: skip
        except (ConnectionError, ValueError, RuntimeError) as error:
            raise UserError(f"ray_address={address}: no Ray cluster can be reached there ({error}).") from error
        except SystemExit:
            raise Interrupted(f"Stopped before the first job. Continue: {self.setting.command}") from None
        finally:
            if threading.current_thread() is threading.main_thread():
                signal.signal(signal.SIGTERM, before)

    def _check_machines(self) -> None:
        """Refuse to begin where a machine lacks what jobs need.

        Raises:
            UserError: names the machines, and what each lacks.
        """
        machines = [node for node in self.ray.nodes() if node["Alive"] and node["Resources"].get("CPU")]
        on = self.ray.util.scheduling_strategies.NodeAffinitySchedulingStrategy
        looking = self.ray.remote(num_cpus=0, max_retries=RETRIES)(Place.lacking)
        asked = {
            looking.options(scheduling_strategy=on(node["NodeID"], soft=False)).remote(self.place): _name(node)
            for node in machines
        }
        answered, silent = self._answers(list(asked))
        lacking = {asked[reference]: f"did not answer within {ANSWER_SECONDS:.0f} seconds" for reference in silent}
        for reference in answered:
            try:
                found = self.ray.get(reference)
            except self.ray.exceptions.RayError as error:  # without this package a task cannot even begin
                found = f"cannot look ({str(error).strip().splitlines()[-1][:200]})"
            if found:
                lacking[asked[reference]] = found
        if lacking:
            raise UserError(unfit(lacking))

    def _answers(self, asked: list[Any]) -> tuple[list[Any], list[Any]]:
        """Those that are there, and those that did not come in time; raises Interrupted where it was stopped."""
        answered: list[Any] = []
        end = time.monotonic() + ANSWER_SECONDS
        with listen() as stopping:
            while len(answered) < len(asked) and time.monotonic() < end:
                if stopping():
                    raise Interrupted(f"Stopped before the first job. Continue: {self.setting.command}")
                answered, _ = self.ray.wait(asked, num_returns=len(asked), timeout=POLL_SECONDS)
        return answered, [reference for reference in asked if reference not in answered]

    def free(self) -> int:
        return self.count - len(self.doing)

    def start(self, job: Job, note: Note) -> None:
        self.doing[self.task.remote(job, self.setting, self.place)] = job

    def watch(self, note: Note) -> None:
        ready, _ = self.ray.wait(list(self.doing), timeout=POLL_SECONDS) if self.doing else ([], [])
        for reference in ready:
            job = self.doing.pop(reference)
            for event in self._events(reference, job):
                note(event)

    def _events(self, reference: Any, job: Job) -> list[Event]:
        errors = self.ray.exceptions
        try:
            told = self.ray.get(reference)
        except errors.TaskCancelledError:
            return [Event(job, "interrupted", f"{job.name} was stopped.")]
        except errors.RayTaskError as error:  # beside what `do` tells: a Ctrl-C that came as it ended, or a mistake
            return [Event(job, "interrupted" if job.name in self.asked else "failed", str(error))]
        except errors.RayError as error:  # WorkerCrashedError, OutOfMemoryError, NodeDiedError …
            return [Event(job, "died", f"{RETRIES + 1} times: {type(error).__name__}")]
        return [event._replace(job=job) for event in told]

    def stop(self) -> None:
        """Ray makes it a Ctrl-C in the task's process, which training hears."""
        for reference, job in self.doing.items():
            if job.name not in self.asked:
                self.asked.add(job.name)
                self.ray.cancel(reference, force=False)

    def close(self) -> None:
        self.stop()
        self.ray.shutdown()


def _name(node: Mapping[str, Any]) -> str:
    """Of a machine, as its user knows it."""
    return f"{node['NodeManagerHostname']} ({node['NodeManagerAddress']})"


def load_ray() -> Any:
    """The library.

    Raises:
        UserError: it is not installed.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    try:
        import ray  # pyright: ignore[reportMissingImports]  an extra: not everywhere installed
        import ray.util.scheduling_strategies  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise UserError(
            "engine=ray needs Ray, which is not installed: pip install 'datadiet[ray]'. "
            f"Without it: {commands.option('engine', 'local')}."
        ) from error
    return ray


def check_ray(options: EngineOptions) -> None:
    """Raises UserError where Ray is not installed, or what is asked of it cannot be."""
    if options.devices == ALL:
        raise refuse("devices", ALL, "a whole number with engine=ray: the GPUs of each job")
    load_ray()


def begin_ray(options: EngineOptions, context: Context, count: int) -> Engine:
    """Jobs as tasks of a cluster, or of one that is begun here."""
    setting = Setting.of(replace(context, devices=options.devices))
    return Cluster(setting, options.ray_address, options.workers)
