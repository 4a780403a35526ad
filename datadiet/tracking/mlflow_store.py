"""MLflow itself: its store, and how a record is written into it. The only module that imports it."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from datadiet import commands
from datadiet.errors import UserError
from datadiet.tracking.record import Record

# A dead server costs seconds, not minutes; the mirror makes up for what one attempt more would have saved.
os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "10")
# Nobody else is told of a run. The thread of telemetry also changes the environment, and a request that reads it fails.
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")

import mlflow
from filelock import FileLock
from mlflow import MlflowClient
from mlflow.entities import Dataset as DatasetEntity
from mlflow.entities import DatasetInput, InputTag, LifecycleStage, Metric, Param, Run, RunStatus, RunTag
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import BAD_REQUEST, INVALID_PARAMETER_VALUE, RESOURCE_DOES_NOT_EXIST, ErrorCode
from mlflow.tracking.context.registry import resolve_tags

EXPERIMENT = "datadiet"
EXPERIMENT_TAGS = {"mlflow.experimentKind": "custom_model_development"}  # the UI then shows training runs first
UID = "datadiet.uid"  # tag by which a run is found whose id could not be noted
MAX_PARAM = 6000  # characters; MLflow refuses longer ones
BATCH = 500  # metrics in one call; MLflow takes 1,000
DEFAULT_EXPERIMENT_ID = "0"  # where `mlflow run` puts a run when no experiment is named


AWAY = (MlflowException, OSError)  # requests' errors are OSErrors


def reraise_mistakes(error: Exception) -> None:
    """What MLflow refuses it would refuse for ever; that is no absence."""
    if isinstance(error, MlflowException) and error.error_code == ErrorCode.Name(INVALID_PARAMETER_VALUE):
        raise error


def store_name() -> str:
    """Where runs are tracked: a URI."""
    return mlflow.get_tracking_uri()


def absolute_store() -> str:
    """The same, from whatever folder it is used."""
    uri = store_name()
    path = uri.removeprefix("sqlite:///")
    return f"sqlite:///{os.path.abspath(path)}" if uri.startswith("sqlite:///") else uri


def use_store(uri: str) -> None:
    """Track runs there from now on."""
    if uri != store_name():
        mlflow.set_tracking_uri(uri)


def log_params(client: MlflowClient, run_id: str, params: dict[str, Any]) -> None:
    entities = [Param(k, _text(v)) for k, v in params.items()]
    for start in range(0, len(entities), 100):  # MLflow takes no more at once
        client.log_batch(run_id, params=entities[start : start + 100])


def log_inputs(client: MlflowClient, run_id: str, told: list[dict[str, Any]]) -> None:
    """Saying it again changes nothing."""
    inputs = []
    for one in told:
        source, profile = json.dumps({"dataset": one["name"]}), json.dumps(one["profile"])
        entity = DatasetEntity(one["name"], one["digest"][:36], "datadiet", source, profile=profile)
        inputs.append(DatasetInput(entity, [InputTag("mlflow.data.context", one["context"])]))
    for others in reversed(range(len(inputs) + 1)):
        try:
            return client.log_inputs(run_id, inputs)
        except MlflowException as error:  # another process made the same dataset after MLflow had looked for it
            if not others or error.error_code != ErrorCode.Name(BAD_REQUEST):
                raise


def _text(value: Any) -> str:
    text = ",".join(map(str, value)) if isinstance(value, list | tuple) else str(value)
    return text if len(text) <= MAX_PARAM else text[: MAX_PARAM - 1] + "…"


def connect() -> MlflowClient:
    """A client whose store exists: processes that create one sqlite database at once would break it."""
    uri = mlflow.get_tracking_uri()
    local = uri.startswith("sqlite:///")
    with FileLock(uri.removeprefix("sqlite:///") + ".lock") if local else nullcontext():
        client = MlflowClient()  # makes the database, or brings it up to date
        client.search_experiments(max_results=1)
        return client


def connected() -> MlflowClient:
    """Raises UserError where MLflow cannot be reached."""
    try:
        return connect()
    except AWAY as error:
        raise UserError(
            f"MLflow store {store_name()} cannot be used: {error}\nStart its server, or name another store with "
            "MLFLOW_TRACKING_URI (sqlite:///mlflow.db keeps it in a file here), or work without it: "
            f"{commands.option('offline', True)}."
        ) from error


def _experiment_id(client: MlflowClient) -> str:
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


def _project_run(client: MlflowClient) -> Run | None:
    """The run that `mlflow run` made for this process; it is given out once."""
    run_id = os.environ.get("MLFLOW_RUN_ID")
    run = client.get_run(run_id) if run_id else None
    os.environ.pop("MLFLOW_RUN_ID", None)
    return run


def _create(client: MlflowClient, record: Record, parent_id: str | None, experiment_id: str | None) -> Run:
    """The project's run where it lies in a named experiment, else a new one.

    Without --experiment-name MLflow puts the project's run into its Default experiment, from
    which no run can be moved: that one stays there as the launcher, and points to the real one.
    """
    launcher = _project_run(client) if parent_id is None else None
    mark = {UID: record.uid}
    if launcher and launcher.info.experiment_id != DEFAULT_EXPERIMENT_ID:
        client.log_batch(launcher.info.run_id, tags=_tags(mark | {"mlflow.runName": record.name}))
        return launcher
    tags = resolve_tags(mark)
    if launcher:
        tags |= {k: v for k, v in launcher.data.tags.items() if k not in ("mlflow.runName", "mlflow.user")}
    run = client.create_run(
        experiment_id or _experiment_id(client), start_time=record.begun, tags=tags, run_name=record.name
    )
    if launcher:
        client.log_batch(run.info.run_id, params=[Param(k, v) for k, v in launcher.data.params.items()])
        client.set_tag(launcher.info.run_id, "mlflow.runName", f"launcher of {record.name}")
        client.set_tag(
            launcher.info.run_id,
            "mlflow.note.content",
            f"Launched run {run.info.run_id} in experiment `{EXPERIMENT}`. "
            "With `--experiment-name` (or MLFLOW_EXPERIMENT_NAME) there is one run instead of two.",
        )
    return run


def point_launcher(client: MlflowClient, name: str, run_id: str) -> None:
    """Make the project's run, if there is one, the launcher of another one."""
    launcher = _project_run(client)
    if launcher is None or launcher.info.run_id == run_id:
        return
    client.set_tag(launcher.info.run_id, "mlflow.runName", f"launcher of {name}")
    client.set_tag(launcher.info.run_id, "mlflow.note.content", f"Launched run {run_id}, which already existed.")


def find(client: MlflowClient, record: Record) -> Run | None:
    """The run of a record that can be written to; None where there is none in this store, or it was deleted."""
    if record.id:
        try:
            found = client.get_run(record.id)
        except MlflowException as error:
            if error.error_code != ErrorCode.Name(RESOURCE_DOES_NOT_EXIST):
                raise
        else:
            if found.info.lifecycle_stage == LifecycleStage.ACTIVE:
                return found
    same = client.search_runs([_experiment_id(client)], f"tags.`{UID}` = '{record.uid}'", max_results=1)
    return client.get_run(same[0].info.run_id) if same else None


@dataclass(frozen=True)
class Told:
    """What MLflow has of a run after `push`."""

    experiment_id: str
    held: dict[tuple[str, int], float]  # (metric, step) -> value


def push(
    client: MlflowClient,
    record: Record,
    *,
    parent_id: str | None = None,
    experiment_id: str | None = None,
    fresh: bool = False,
    say: Callable[[str], Any] = print,
) -> Told:
    """Write into MLflow what a record has and it lacks; doing so again changes nothing.

    Args:
        parent_id: Run to nest under.
        experiment_id: Of a run that is made; None: the named one.
        fresh: MLflow cannot have heard of it.
        say: Told where the run is lost and made again.
    Raises:
        one of AWAY.
    """
    found = None if fresh else find(client, record)
    if found is None:
        if record.id:
            say(f"MLflow run {record.id} is not in {store_name()}: another takes its place")
        found = _create(client, record, parent_id, experiment_id)
    elif parent_id is None:
        point_launcher(client, record.name, found.info.run_id)
    run_id = found.info.run_id
    record.identify(run_id)
    tags = record.tags | ({"mlflow.parentRunId": parent_id} if parent_id else {})
    if tags.items() - found.data.tags.items():
        client.log_batch(run_id, tags=_tags(tags))
    log_params(client, run_id, {k: v for k, v in record.params.items() if k not in found.data.params})
    held = _push_metrics(client, record, found)
    if record.inputs:
        log_inputs(client, run_id, record.inputs)
    _push_artifacts(client, record, run_id)
    _set_status(client, record, found)
    return Told(found.info.experiment_id, held)


def _push_metrics(client: MlflowClient, record: Record, found: Run) -> dict[tuple[str, int], float]:
    histories = (client.get_metric_history(found.info.run_id, key) for key in found.data.metrics)
    held = {(point.key, point.step): point.value for history in histories for point in history}
    new: dict[tuple[str, int], tuple[str, float, int, int]] = {}
    for step, at, values in record.points():
        new |= {(k, step): (k, v, at, step) for k, v in values.items() if (k, step) not in held}
    log_metrics(client, found.info.run_id, new.values())
    return held | {key: value for key, (_, value, _, _) in new.items()}


def _push_artifacts(client: MlflowClient, record: Record, run_id: str) -> None:
    """Those of its files that are there."""
    for path, folder in record.artifacts:
        file = record.path.parent / path if record.path else Path(path)
        if file.is_file():
            client.log_artifact(run_id, str(file), folder)


def log_metrics(client: MlflowClient, run_id: str, points: Iterable[tuple[str, float, int, int]]) -> None:
    """Points (name, value, ms since 1970, step), in few calls."""
    metrics = [Metric(name, float(value), at, step) for name, value, at, step in points]
    for start in range(0, len(metrics), BATCH):
        client.log_batch(run_id, metrics=metrics[start : start + BATCH])


def _set_status(client: MlflowClient, record: Record, found: Run) -> None:
    if found.info.status == record.status:
        return
    if record.status == RunStatus.to_string(RunStatus.RUNNING):
        client.update_run(found.info.run_id, status=record.status)
    else:
        client.set_terminated(found.info.run_id, record.status, record.ended)


def _tags(values: dict[str, str]) -> list[RunTag]:
    return [RunTag(key, value) for key, value in values.items()]


def finished_training_runs() -> list[Run]:
    """Every FINISHED training run of the experiment, newest first."""
    client = connected()
    return mlflow.search_runs(
        [_experiment_id(client)],
        filter_string="attributes.status = 'FINISHED' and tags.`datadiet.kind` = 'train'",
        order_by=["attributes.start_time DESC"],
        output_format="list",
    )
