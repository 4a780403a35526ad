"""MLflow itself: its store, and how a record is written into it. Only this room imports it."""

from __future__ import annotations

import json
import logging
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

from datadiet import commands
from datadiet.errors import UserError
from datadiet.printable import escaped, masked, printable
from datadiet.tracking.failures import credentials, reason, repair
from datadiet.tracking.record import Artifact, Record

# A dead server costs seconds, not minutes; the mirror makes up for what one attempt more would have saved.
os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "10")
# Nobody else is told of a run. The thread of telemetry also changes the environment, and a request that reads it fails.
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")  # for a file that is there in a moment
os.environ.setdefault("GIT_PYTHON_REFRESH", "quiet")  # where git is not installed, MLflow alarms three times

import mlflow
from filelock import FileLock
from google.protobuf.json_format import Error as ProtobufError
from mlflow import MlflowClient
from mlflow.entities import Dataset as DatasetEntity
from mlflow.entities import DatasetInput, InputTag, LifecycleStage, Metric, Param, Run, RunTag
from mlflow.environment_variables import MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT as NO_LINKS
from mlflow.exceptions import MlflowException
from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository
from mlflow.tracking.context.registry import resolve_tags
from sqlalchemy.engine import make_url
from sqlalchemy.exc import SQLAlchemyError

EXPERIMENT = "datadiet"
EXPERIMENT_TAGS = {"mlflow.experimentKind": "custom_model_development"}  # the UI then shows training runs first
UID = "datadiet.uid"  # tag by which a run is found whose id could not be noted; as a param, of a run that was adopted
RUN_NAME = "datadiet.run_name"  # tag: what the run was called by the user, whose own name is its path
DOUBLE = "datadiet.double_of"  # tag of a run that was made twice, instead of UID
NOTE, NAMED = "mlflow.note.content", "mlflow.runName"  # tags
MAX_PARAM, MAX_TAG, MAX_KEY = 6000, 5000, 250  # characters; MLflow refuses longer ones
BATCH, PARAMS = 500, 100  # metrics and params in one call; MLflow takes 1,000 of both, and no more params
DEFAULT_EXPERIMENT_ID = "0"  # where `mlflow run` puts a run when no experiment is named
SERVED = ("http", "databricks", "uc")  # what addresses of servers begin with
LOCK_SECONDS = 120  # another process makes the store in a few

# How tables are made, and pages while a store is full, locked or away: whoever called tells of that, in a line.
logging.getLogger("mlflow.store.db.utils").addFilter(lambda made: False)


class Unusable(UserError):
    """The store works, but not what was named in it, or what is refused by it."""


# requests' errors are OSErrors, those of decoding ValueErrors
AWAY = (MlflowException, OSError, SQLAlchemyError, ImportError, ValueError, ProtobufError, Unusable)
MISSING, INVALID = "RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"  # error codes


def refused(error: BaseException) -> bool:
    """Whether MLflow is there and would say the same for ever: that is no absence."""
    return isinstance(error, Unusable) or getattr(error, "error_code", None) in (MISSING, INVALID, "INVALID_STATE")


_given: dict[str, str] = {}  # address without user and password, as MLflow has it -> as it was given


def _address() -> str:
    """The store's URI, as MLflow may print it: user and password of a server go where MLflow has variables for them."""
    uri = mlflow.get_tracking_uri()
    if found := credentials(uri):
        bare, os.environ["MLFLOW_TRACKING_USERNAME"], os.environ["MLFLOW_TRACKING_PASSWORD"] = found
        _given[bare] = uri
        mlflow.set_tracking_uri(bare)
        return bare
    if masked(uri) != uri and uri.startswith("http"):  # a token alone
        NO_LINKS.set(True)
    return uri


def store_name() -> str:
    """Where runs are tracked, without a password: a URI to be shown."""
    uri = _address()
    return printable(_given.get(uri, uri))


def may_repeat() -> bool:
    """Whether what is asked may be done twice: a request to a server is sent again where no answer comes."""
    return _address().startswith(SERVED)


def absolute_store() -> str:
    """Where runs are tracked: a URI for `use_store`, from whatever folder it is used."""
    uri = _address()
    path = uri.removeprefix("sqlite:///")
    return f"sqlite:///{os.path.abspath(path)}" if uri.startswith("sqlite:///") else _given.get(uri, uri)


def use_store(uri: str) -> None:
    """Track runs there from now on."""
    if uri != absolute_store():
        mlflow.set_tracking_uri(uri)
        _address()


def key(name: str) -> str:
    """The name of a param, tag or metric as MLflow takes it."""
    return re.sub(r"[^\w.\- :/]", "_", name)[:MAX_KEY]


def log_inputs(client: MlflowClient, run_id: str, told: list[dict[str, Any]]) -> None:
    """Saying it again changes nothing."""
    inputs = []
    for one in told:
        source, profile = json.dumps({"dataset": one["name"]}), json.dumps(one["profile"])
        entity = DatasetEntity(escaped(one["name"]), one["digest"][:36], "datadiet", source, profile=profile)
        inputs.append(DatasetInput(entity, [InputTag("mlflow.data.context", one["context"])]))
    for others in reversed(range(len(inputs) + 1)):
        try:
            return client.log_inputs(run_id, inputs)
        except MlflowException as error:  # another process made the same dataset after MLflow had looked for it
            if not others or error.error_code != "BAD_REQUEST":
                raise


def _text(value: Any) -> str:
    text = escaped(masked(",".join(map(str, value)) if isinstance(value, list | tuple) else value))
    return text if len(text) <= MAX_PARAM else text[: MAX_PARAM - 1] + "…"


def shown_tags(tags: dict[str, str]) -> dict[str, str]:
    """Tags as MLflow is told them: no characters that are not seen, no passwords; a note has lines."""
    shown = {key(k): printable(v) if k == NOTE else escaped(masked(v)) for k, v in tags.items()}
    return {k: v if len(v) <= MAX_TAG else v[: MAX_TAG - 1] + "…" for k, v in shown.items()}


def set_tags(client: MlflowClient, run_id: str, tags: dict[str, str]) -> None:
    client.log_batch(run_id, tags=[RunTag(key, value) for key, value in shown_tags(tags).items()])


def log_values(
    client: MlflowClient, run_id: str, points: Iterable[tuple[str, float, int, int]], params: Mapping[str, Any] = {}
) -> None:
    """Points (name, value, ms since 1970, step) and params, in few calls."""
    metrics = [Metric(key(name), float(value), at, step) for name, value, at, step in points]
    given = [Param(key(name), _text(value)) for name, value in params.items()]
    calls = max(-(-len(metrics) // BATCH), -(-len(given) // PARAMS))
    for call in range(calls):
        some = metrics[call * BATCH : (call + 1) * BATCH]
        client.log_batch(run_id, metrics=some, params=given[call * PARAMS : (call + 1) * PARAMS])


def artifacts(home: str) -> Any:
    """What has list_artifacts and download_artifacts for a run (runs:/ID) or model (models:/…); raises one of AWAY."""
    return get_artifact_repository(home)


def log_files(client: MlflowClient, run_id: str, files: Iterable[Artifact]) -> None:
    """Files as artifacts of a run, those that are there replaced."""
    for file, folder in files:
        client.log_artifact(run_id, str(file), folder)


def lacks_files(client: MlflowClient, run_id: str, files: Iterable[Artifact]) -> bool:
    """Whether a run has not all of some files, by their names."""
    names: dict[str | None, set[str]] = {}
    for file, folder in files:
        if folder not in names:
            names[folder] = {info.path.rpartition("/")[2] for info in client.list_artifacts(run_id, folder)}
        if file.name not in names[folder]:
            return True
    return False


def connect() -> MlflowClient:
    """A client whose store exists: processes that create one sqlite database at once would break it."""
    uri = _address()
    if not uri.startswith(SERVED):
        from mlflow.store.db import utils

        utils.MAX_RETRY_COUNT = 3  # of a database that is away: MLflow itself waits minutes
    file = (make_url(uri).database if uri.startswith("sqlite:") else None) or ":memory:"
    local = file != ":memory:"
    if local and not Path(file).absolute().parent.is_dir():
        raise FileNotFoundError(f"unable to open {file}: there is no folder {Path(file).absolute().parent}")
    with FileLock(f"{file}.lock", timeout=LOCK_SECONDS) if local else nullcontext():
        client = MlflowClient()  # makes the database, or brings it up to date
        client.search_experiments(max_results=1)
        return client


@contextmanager
def usable(needed: bool = False) -> Iterator[None]:
    """For the length of a `with` block, failures of MLflow are errors with what repairs them.

    Args:
        needed: The work is nothing without MLflow.
    """
    try:
        yield
    except Unusable:
        raise
    except AWAY as error:
        without = "" if needed else f", or work without it: {commands.option('offline', True)}"
        raise UserError(
            f"MLflow store {store_name()} cannot be used: {reason(error)}\n{repair(error, commands.command('sync'))}, "
            f"or name another store with MLFLOW_TRACKING_URI (sqlite:///mlflow.db keeps it in a file here){without}."
        ) from error


def connected(needed: bool = False) -> MlflowClient:
    """Raises UserError where MLflow cannot be reached, or lacks what the environment names."""
    with usable(needed):
        client = connect()
        if run_id := os.environ.get("MLFLOW_RUN_ID"):
            _check_stage("run", "MLFLOW_RUN_ID", run_id, lambda: client.get_run(run_id).info.lifecycle_stage)
        experiment_id(client)
        return client


def _check_stage(kind: str, variable: str, name: str, stage: Callable[[], str]) -> None:
    """Raises Unusable where a run or experiment that the environment names is not there."""
    try:
        deleted = stage() != LifecycleStage.ACTIVE
    except MlflowException as error:
        if not refused(error):
            raise
        raise Unusable(
            f"{variable}={printable(name)}: no such {kind} in {store_name()}. Unset {variable}, or name the store that "
            "has it with MLFLOW_TRACKING_URI."
        ) from error
    if deleted:
        raise Unusable(
            f"{variable}={printable(name)}: this {kind} was deleted. Unset {variable}, or restore it: "
            f"{_restore(kind, name)}"
        )


def _restore(kind: str, name: str) -> str:
    return commands.of_mlflow(f"{kind}s", "restore", f"--{kind}-id", name)


def experiment_id(client: MlflowClient) -> str:
    """The named experiment, else EXPERIMENT, which is made where it does not exist.

    Raises:
        Unusable: it was deleted, or cannot be.
    """
    given = os.environ.get("MLFLOW_EXPERIMENT_ID")
    if given and given != DEFAULT_EXPERIMENT_ID:
        variable = "MLFLOW_EXPERIMENT_ID"
        _check_stage("experiment", variable, given, lambda: client.get_experiment(given).lifecycle_stage)
        return given
    name = os.environ.get("MLFLOW_EXPERIMENT_NAME") or EXPERIMENT
    for attempt in range(2):
        if found := client.get_experiment_by_name(name):
            if found.lifecycle_stage == LifecycleStage.ACTIVE:
                return found.experiment_id
            raise Unusable(
                f"The MLflow experiment {name!r} in {store_name()} was deleted. Restore it: "
                f"{_restore('experiment', found.experiment_id)} (or name another one with MLFLOW_EXPERIMENT_NAME)."
            )
        try:
            return client.create_experiment(name, tags=EXPERIMENT_TAGS)
        except MlflowException as error:  # another process was faster, or an answer was lost
            if attempt or error.error_code == INVALID:
                raise Unusable(f"MLFLOW_EXPERIMENT_NAME={name!r} cannot be made: {reason(error)}") from error
    raise AssertionError("the second attempt returns or raises")


def project_run(client: MlflowClient) -> Run | None:
    """The run that `mlflow run` made for this process; it is given out once."""
    run_id = os.environ.get("MLFLOW_RUN_ID")
    run = client.get_run(run_id) if run_id else None
    os.environ.pop("MLFLOW_RUN_ID", None)
    return run


def active_run(client: MlflowClient, run_id: str) -> Run | None:
    """None where it was deleted, or is not in this store."""
    try:
        found = client.get_run(run_id)
    except MlflowException as error:
        if error.error_code != MISSING:
            raise
        return None
    return found if found.info.lifecycle_stage == LifecycleStage.ACTIVE else None


def create_run(client: MlflowClient, record: Record, experiment_id: str, tags: dict[str, str]) -> Run:
    """A run with the uid of its record."""
    marked = shown_tags(resolve_tags({UID: record.uid}) | tags)
    return client.create_run(experiment_id, start_time=record.begun, tags=marked, run_name=escaped(record.name))


def gone(client: MlflowClient, run_id: str | None, experiment_id: str | None) -> list[str]:
    """The command that restores what was deleted: the experiment, with its runs, or the run alone."""
    with usable():
        if experiment_id and client.get_experiment(experiment_id).lifecycle_stage != LifecycleStage.ACTIVE:
            return [_restore("experiment", experiment_id)]
        if run_id and client.get_run(run_id).info.lifecycle_stage != LifecycleStage.ACTIVE:
            return [_restore("run", run_id)]
    return []


def finished_training_runs() -> list[Run]:
    """Every FINISHED training run of the experiment, newest first; none that was made twice by mistake."""
    client = connected()
    with usable():
        found = mlflow.search_runs(
            [experiment_id(client)],
            filter_string="attributes.status = 'FINISHED' and tags.`datadiet.kind` = 'train'",
            order_by=["attributes.start_time DESC"],
            output_format="list",
        )
    return [run for run in found if DOUBLE not in run.data.tags]


def copies(runs: list[Run]) -> set[str]:
    """Ids of runs that have the tags of another one: of several with one uid, all but the oldest.

    Args:
        runs: Newest first.
    """
    oldest = {run.data.tags.get(UID): run.info.run_id for run in runs}
    return {r.info.run_id for r in runs if UID in r.data.tags and oldest[r.data.tags[UID]] != r.info.run_id}
