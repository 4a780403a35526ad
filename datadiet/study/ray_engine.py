"""An engine that gives each job to Ray as a task; Ray tries a task again whose process or machine dies.

Every machine needs this package, the data, the folder the study was begun in (a file system that all share)
and a way to the MLflow store: a server, or a sqlite file on the one machine of a local cluster.
"""

from __future__ import annotations

import os
import sys
from contextlib import contextmanager
from typing import Any

from datadiet import commands
from datadiet.errors import UserError
from datadiet.runs.context import Context
from datadiet.study.engine import Engine, EngineOptions, Event, Note, Setting, attempt
from datadiet.study.spec import Job

POLL_SECONDS = 0.2
RETRIES = 1  # by Ray, of a task whose process died
PASSED_ON = ("JAX_", "XLA_", "MLFLOW_", "DATADIET_", "TF_")  # environment that a task needs too


class Lines:
    """Progress of a task: the lines that stay are brought back with its result."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    @contextmanager
    def counter(self, total: int, label: str):
        yield lambda units: None

    def say(self, text: str) -> None:
        self.lines.append(text)


def do(job: Job, setting: Setting, folder: str) -> tuple[Event, list[str]]:
    """One job, in a process of Ray's; `folder` is what relative paths begin at."""
    os.chdir(folder)
    said = Lines()
    return attempt(job, setting.context(said)), said.lines


class Cluster:
    """Jobs as Ray tasks.

    Args:
        address: Of a running cluster; None: one is begun on this machine, and ended with the study.
        count: Jobs at once; None: as many as the cluster has processors (or GPUs).
    Raises:
        UserError: Ray is not installed, or there is no cluster at that address.
    """

    attempts = 1

    def __init__(self, setting: Setting, address: str | None, count: int | None) -> None:
        self.ray = ray = load_ray()
        environment = {k: v for k, v in os.environ.items() if k.startswith(PASSED_ON)}
        if address is None:
            environment["PYTHONPATH"] = os.pathsep.join(path or os.getcwd() for path in sys.path)
        os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
        try:
            ray.init(
                address or "local", runtime_env={"env_vars": environment}, log_to_driver=False, logging_level="error",
                **({} if address else {"include_dashboard": False}),
            )  # fmt: skip
        except (ConnectionError, ValueError, RuntimeError) as error:
            raise UserError(f"ray_address={address}: no Ray cluster can be reached there ({error}).") from error
        resources = ray.cluster_resources()
        gpus = int(resources.get("GPU", 0))
        self.count = count or gpus or max(1, int(resources.get("CPU", 1)))
        self.task = ray.remote(num_cpus=1, num_gpus=1 if gpus else 0, max_retries=RETRIES)(do)
        self.setting, self.folder = setting, os.getcwd()
        self.doing: dict[Any, Job] = {}
        self.asked: set[str] = set()

    def free(self) -> int:
        return self.count - len(self.doing)

    def start(self, job: Job, note: Note) -> None:
        self.doing[self.task.remote(job, self.setting, self.folder)] = job

    def watch(self, note: Note) -> None:
        ready, _ = self.ray.wait(list(self.doing), timeout=POLL_SECONDS) if self.doing else ([], [])
        for reference in ready:
            job = self.doing.pop(reference)
            for event in self._events(reference, job):
                note(event)

    def _events(self, reference: Any, job: Job) -> list[Event]:
        errors = self.ray.exceptions
        try:
            event, lines = self.ray.get(reference)
        except errors.TaskCancelledError:
            return [Event(job, "interrupted", f"{job.name} was stopped.")]
        except errors.RayTaskError as error:
            return [Event(job, "failed", str(error))]
        except errors.RayError as error:  # WorkerCrashedError, OutOfMemoryError, NodeDiedError …
            return [Event(job, "died", f"{RETRIES + 1} times: {type(error).__name__}")]
        return [*(Event(job, "said", line) for line in lines), event._replace(job=job)]

    def stop(self) -> None:
        """Ray makes it a Ctrl-C in the task's process, which training hears."""
        for reference, job in self.doing.items():
            if job.name not in self.asked:
                self.asked.add(job.name)
                self.ray.cancel(reference, force=False)

    def close(self) -> None:
        self.stop()
        self.ray.shutdown()


def load_ray() -> Any:
    """The library.

    Raises:
        UserError: it is not installed.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    try:
        import ray  # pyright: ignore[reportMissingImports]  an extra: not everywhere installed
    except ImportError as error:
        raise UserError(
            "engine=ray needs Ray, which is not installed: pip install 'datadiet[ray]'. "
            f"Without it: {commands.option('engine', 'local')}."
        ) from error
    return ray


def check_ray(options: EngineOptions) -> None:
    """Raises UserError where Ray is not installed."""
    load_ray()


def begin_ray(options: EngineOptions, context: Context, count: int) -> Engine:
    """Jobs as tasks of a cluster, or of one that is begun here."""
    return Cluster(Setting.of(context), options.ray_address, options.workers)
