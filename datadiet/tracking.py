"""MLflow: open a run, log to it, find runs. The only module that imports it."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")  # a dead server costs seconds, not minutes
os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "10")

import mlflow
from filelock import FileLock
from mlflow.entities import Dataset as DatasetEntity
from mlflow.entities import DatasetInput, InputTag, LifecycleStage, Metric, Param, Run, RunStatus, RunTag
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import RESOURCE_DOES_NOT_EXIST, ErrorCode
from mlflow.tracking.context.registry import resolve_tags

from datadiet.config import Interrupted, UserError
from datadiet.train import is_timing

EXPERIMENT = "datadiet"
EXPERIMENT_TAGS = {"mlflow.experimentKind": "custom_model_development"}  # the UI then shows training runs first
DEFAULT_EXPERIMENT_ID = "0"  # where `mlflow run` puts a run when no experiment is named


@dataclass(frozen=True)
class TrackedRun:
    """One MLflow run that is being written."""

    client: mlflow.MlflowClient
    id: str
    experiment_id: str
    held: dict[tuple[str, int], float] = field(default_factory=dict)  # (metric, step) -> value, of a continued run

    def log_metrics(self, metrics: dict[str, float], step: int = 0) -> None:
        """All metrics of one report in one call, without those held: logging a step again doubles the point."""
        now = int(time.time() * 1000)
        new = [Metric(k, float(v), now, step) for k, v in metrics.items() if (k, step) not in self.held]
        if new:
            self.client.log_batch(self.id, metrics=new)

    def timings(self, step: int) -> dict[str, float]:
        """Timings held at a step, so that the mirror of a continued run says the same."""
        return {key: value for (key, at), value in self.held.items() if at == step and is_timing(key)}

    def spent(self, name: str) -> float:
        """The most seconds held under time/<name>_seconds: work that is lost was done all the same."""
        return max((value for (key, _), value in self.held.items() if key == f"time/{name}_seconds"), default=0.0)

    def log_params(self, params: dict[str, Any]) -> None:
        """Under keys that `mlflow run` does not use: it logs the text of its own -P options itself."""
        self.client.log_batch(self.id, params=[Param(k, _text(v)) for k, v in params.items()])

    def log_input(self, name: str, digest: str, context: str, **profile: Any) -> None:
        """The data of this run, as an MLflow dataset. MLflow keeps 36 characters of a digest."""
        source = json.dumps({"dataset": name})
        entity = DatasetEntity(name, digest[:36], "datadiet", source, profile=json.dumps(profile))
        self.client.log_inputs(self.id, [DatasetInput(entity, [InputTag("mlflow.data.context", context)])])

    def log_artifact(self, path: Path, folder: str | None = None) -> None:
        self.client.log_artifact(self.id, str(path), folder)

    def set_tag(self, key: str, value: str) -> None:
        self.client.set_tag(self.id, key, value)


def _text(value: Any) -> str:
    return ",".join(map(str, value)) if isinstance(value, list | tuple) else str(value)


def _client() -> mlflow.MlflowClient:
    """A client whose store exists: processes that create one sqlite database at once would break it."""
    uri = mlflow.get_tracking_uri()
    local = uri.startswith("sqlite:///")
    try:
        with FileLock(uri.removeprefix("sqlite:///") + ".lock") if local else nullcontext():
            client = mlflow.MlflowClient()  # makes the database, or brings it up to date
            client.search_experiments(max_results=1)
            return client
    except (MlflowException, OSError) as error:
        raise UserError(
            f"MLflow store {uri} cannot be used: {error}\nStart its server, or name another store with "
            "MLFLOW_TRACKING_URI (sqlite:///mlflow.db keeps it in a file here)."
        ) from error


def _experiment_id(client: mlflow.MlflowClient) -> str:
    """The named experiment, else EXPERIMENT, which is made where it does not exist."""
    given = os.environ.get("MLFLOW_EXPERIMENT_ID")
    if given and given != DEFAULT_EXPERIMENT_ID:
        return given
    name = os.environ.get("MLFLOW_EXPERIMENT_NAME") or EXPERIMENT
    for _ in range(2):
        if found := client.get_experiment_by_name(name):
            return found.experiment_id
        try:
            return client.create_experiment(name, tags=EXPERIMENT_TAGS)
        except MlflowException:  # another process was faster
            continue
    raise UserError(f"MLflow experiment {name!r} cannot be made or found; was it deleted? mlflow experiments restore")


def _project_run(client: mlflow.MlflowClient) -> Run | None:
    """The run that `mlflow run` made for this process; it is given out once."""
    run_id = os.environ.pop("MLFLOW_RUN_ID", None)
    return client.get_run(run_id) if run_id else None


def _begin(client: mlflow.MlflowClient, name: str, parent: TrackedRun | None) -> TrackedRun:
    """The project's run where it lies in a named experiment, else a new one.

    Without --experiment-name MLflow puts the project's run into its Default experiment, from
    which no run can be moved: that one stays there as the launcher, and points to the real one.
    """
    launcher = _project_run(client) if parent is None else None
    if launcher and launcher.info.experiment_id != DEFAULT_EXPERIMENT_ID:
        client.set_tag(launcher.info.run_id, "mlflow.runName", name)
        return TrackedRun(client, launcher.info.run_id, launcher.info.experiment_id)
    experiment_id = parent.experiment_id if parent else _experiment_id(client)
    tags = resolve_tags({"mlflow.parentRunId": parent.id} if parent else {})
    if launcher:
        tags |= {k: v for k, v in launcher.data.tags.items() if k not in ("mlflow.runName", "mlflow.user")}
    run = client.create_run(experiment_id, tags=tags, run_name=name)
    if launcher:
        client.log_batch(run.info.run_id, params=[Param(k, v) for k, v in launcher.data.params.items()])
        client.set_tag(launcher.info.run_id, "mlflow.runName", f"launcher of {name}")
        client.set_tag(
            launcher.info.run_id,
            "mlflow.note.content",
            f"Launched run {run.info.run_id} in experiment `{EXPERIMENT}`. "
            "With `--experiment-name` (or MLFLOW_EXPERIMENT_NAME) there is one run instead of two.",
        )
    return TrackedRun(client, run.info.run_id, experiment_id)


def _point_to(client: mlflow.MlflowClient, launcher: Run, name: str, run_id: str) -> None:
    """Make a project's run the launcher of another one."""
    if launcher.info.run_id == run_id:
        return
    client.set_tag(launcher.info.run_id, "mlflow.runName", f"launcher of {name}")
    client.set_tag(launcher.info.run_id, "mlflow.note.content", f"Launched run {run_id}, which already existed.")


def _continue(client: mlflow.MlflowClient, run_id: str, name: str, parent: TrackedRun | None) -> TrackedRun | None:
    """A run begun by an earlier process, RUNNING again; None where this store does not have it.

    The project's new run, if any, becomes its launcher.
    """
    if (found := _find(client, run_id)) is None:
        return None
    client.update_run(run_id, status=RunStatus.to_string(RunStatus.RUNNING))
    if parent:
        client.set_tag(run_id, "mlflow.parentRunId", parent.id)
    elif launcher := _project_run(client):
        _point_to(client, launcher, name, run_id)
    histories = (client.get_metric_history(run_id, key) for key in found.data.metrics)
    held = {(point.key, point.step): point.value for history in histories for point in history}
    return TrackedRun(client, run_id, found.info.experiment_id, held)


def _find(client: mlflow.MlflowClient, run_id: str) -> Run | None:
    """A run that can be written to; None where there is none in this store, or it was deleted."""
    try:
        found = client.get_run(run_id)
    except MlflowException as error:
        if error.error_code != ErrorCode.Name(RESOURCE_DOES_NOT_EXIST):
            raise
        return None
    return found if found.info.lifecycle_stage == LifecycleStage.ACTIVE else None


def settle(run_id: str, name: str) -> None:
    """Make sure that a run whose mirror is finished is FINISHED here: its process may have been killed in between."""
    client = _client()
    found = _find(client, run_id)
    if found and found.info.status != RunStatus.to_string(RunStatus.FINISHED):
        client.set_terminated(run_id)
    if launcher := _project_run(client):
        _point_to(client, launcher, name, run_id)


@contextmanager
def open_run(
    kind: str,
    exp: str,
    name: str,
    *,
    params: dict[str, Any],
    note: str,
    parent: TrackedRun | None = None,
    continues: str | None = None,
    **tags: str,
) -> Iterator[TrackedRun]:
    """A run for the length of a `with` block: FINISHED at its end, FAILED or KILLED where it raises.

    Args:
        kind: train, score, mean_score, results or study.
        exp: Experiment folder below exps/.
        name: Path below exps/.
        params: Resolved options, logged as cfg.<option>.
        note: Markdown description, shown by the UI.
        parent: Run to nest under.
        continues: Id of the run to write on, as an earlier process left it; a new one where this
            store does not have it.
        tags: More tags, logged as datadiet.<tag>.
    """
    client = _client()
    run = (continues and _continue(client, continues, name, parent)) or _begin(client, name, parent)
    status = RunStatus.FAILED
    try:
        named = {"kind": kind, "exp": exp, "path": name, **tags}
        all_tags = [RunTag(f"datadiet.{k}", v) for k, v in named.items()] + [RunTag("mlflow.note.content", note)]
        if run.id != continues:
            client.log_batch(run.id, tags=all_tags)
            run.log_params({f"cfg.{k}": v for k, v in params.items()})
        yield run
        status = RunStatus.FINISHED
    except (KeyboardInterrupt, Interrupted):
        status = RunStatus.KILLED
        raise
    finally:
        client.set_terminated(run.id, RunStatus.to_string(status))


def store_name() -> str:
    """Where runs are tracked: a URI."""
    return mlflow.get_tracking_uri()


def finished_training_runs() -> list[Run]:
    """Every FINISHED training run of the experiment, newest first."""
    client = _client()
    return mlflow.search_runs(
        [_experiment_id(client)],
        filter_string="attributes.status = 'FINISHED' and tags.`datadiet.kind` = 'train'",
        order_by=["attributes.start_time DESC"],
        output_format="list",
    )
