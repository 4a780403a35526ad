"""A record into MLflow: its run found, adopted or made, and told what it lacks."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from datadiet.tracking import mlflow_store
from datadiet.tracking.logged_model import log_model
from datadiet.tracking.mlflow_store import AWAY, DOUBLE, NAMED, NOTE, RUN_NAME, UID, Unusable
from datadiet.tracking.record import Record

OWN = ("datadiet.", "cfg.", "data.")  # what keys of tags and params begin with that datadiet writes
UNDER_WAY = ("RUNNING", "SCHEDULED")


@dataclass(frozen=True)
class Told:
    """What MLflow has of a run after `push`."""

    experiment_id: str
    held: dict[tuple[str, int], float]  # (metric, step) -> value


@dataclass(frozen=True)
class Home:
    """Where the run of a record may be made.

    Attributes:
        parent_id: Run to nest under.
        experiment_id: None: the named one.
        adopts: The run that `mlflow run` made for this process may become it.
        fresh: MLflow cannot have heard of it.
        replaces: Where its run was deleted, another takes its place.
        say: Told of what is not as expected.
    """

    parent_id: str | None = None
    experiment_id: str | None = None
    adopts: bool = False
    fresh: bool = False
    replaces: bool = True
    say: Callable[[str], Any] = print


def push(client: Any, record: Record, home: Home) -> Told:
    """Write into MLflow what a record has and it lacks; doing so again changes nothing.

    Raises:
        one of AWAY.
        UserError: the record is damaged.
    """
    files = list(record.files())
    found = None if home.fresh else find(client, record, home.experiment_id)
    if found is None:
        if record.id and not home.replaces:
            raise Unusable(f"The run {record.id} was deleted.")
        if record.id:
            home.say(f"MLflow run {record.id} is not in {mlflow_store.store_name()} any more: another takes its place")
        found = _create(client, record, home)
    elif home.adopts:
        point_launcher(client, record.name, found.info.run_id)
    run_id = found.info.run_id
    record.identify(run_id)
    tags = _tags(record, home)
    if mlflow_store.shown_tags(tags).items() - found.data.tags.items():
        mlflow_store.set_tags(client, run_id, tags)
    held = _push_values(client, record, found)
    if record.inputs:
        mlflow_store.log_inputs(client, run_id, record.inputs)
    mlflow_store.log_files(client, run_id, files)
    if record.status == "FINISHED":
        log_model(client, run_id, record)
    _set_status(client, record, found)
    return Told(found.info.experiment_id, held)


def _tags(record: Record, home: Home) -> dict[str, str]:
    return record.tags | ({"mlflow.parentRunId": home.parent_id} if home.parent_id else {})


def _push_values(client: Any, record: Record, found: Any) -> dict[tuple[str, int], float]:
    """Params and metrics; gives those metrics that MLflow then has."""
    known = found.data.params
    params = {k: v for k, v in record.params.items() if mlflow_store.key(k) not in known}
    histories = (client.get_metric_history(found.info.run_id, key) for key in found.data.metrics)
    held = {(point.key, point.step): point.value for history in histories for point in history}
    new: dict[tuple[str, int], tuple[str, float, int, int]] = {}
    for step, at, values in record.points():
        new |= {(k, step): (k, v, at, step) for k, v in values.items() if (k, step) not in held}
    mlflow_store.log_values(client, found.info.run_id, new.values(), params)
    return held | {key: value for key, (_, value, _, _) in new.items()}


def find(client: Any, record: Record, experiment_id: str | None = None) -> Any:
    """The run of a record that can be written to; None where there is none in this store, or it was deleted."""
    if record.id and (found := mlflow_store.active_run(client, record.id)):
        return found
    same = _of_uid(client, record, experiment_id or mlflow_store.experiment_id(client))
    return same[0] if same else None


def _of_uid(client: Any, record: Record, experiment_id: str) -> list[Any]:
    """The active runs that were made for a record, the one to be kept first."""
    same = client.search_runs([experiment_id], f"tags.`{UID}` = '{record.uid}'")
    own = [run for run in same if run.info.run_id == record.id or _made_by_us(run, record)]
    return sorted(own, key=lambda run: _worth(run, record))


def _made_by_us(run: Any, record: Record) -> bool:
    """A run of somebody else into which tags were copied began at another moment."""
    return run.info.start_time == record.begun or run.data.params.get(UID) == record.uid


def _worth(run: Any, record: Record) -> tuple[Any, ...]:
    return run.info.run_id != record.id, run.info.status != record.status, -len(run.data.metrics), run.info.run_id


def _set_status(client: Any, record: Record, found: Any) -> None:
    if found.info.status == record.status:
        return
    if record.status in UNDER_WAY:
        client.update_run(found.info.run_id, status=record.status)
    else:
        end_quietly(client, found.info.run_id, record.status, record.ended)


def end_quietly(client: Any, run_id: str, status: str, ended: int | None = None) -> None:
    """End one run of several without the two lines of links that MLflow prints of each where a server has it."""
    silent = mlflow_store.NO_LINKS.get()
    mlflow_store.NO_LINKS.set(True)
    try:
        client.set_terminated(run_id, status, ended)
    finally:
        mlflow_store.NO_LINKS.set(silent)


def close_doubles(client: Any, record: Record, kept: Any, say: Callable[[str], Any]) -> int:
    """Let one run have a record's uid: others end, and tell of the one that is kept.

    Returns:
        How many there were.
    """
    others = [r for r in _of_uid(client, record, kept.info.experiment_id) if r.info.run_id != kept.info.run_id]
    for run in others:
        run_id, told = run.info.run_id, f"Made twice by mistake; run {kept.info.run_id} is the one that is kept."
        mlflow_store.set_tags(client, run_id, {DOUBLE: kept.info.run_id, NOTE: told})
        client.delete_tag(run_id, UID)
        if run.info.status in UNDER_WAY:
            client.set_terminated(run_id, "KILLED")
        say(f"{record.name}: MLflow run {run_id} was made twice and is ended; {kept.info.run_id} is kept")
    return len(others)


def _create(client: Any, record: Record, home: Home) -> Any:
    """The run that `mlflow run` made, where it lies in a named experiment and nothing has used it; else a new one.

    Without --experiment-name MLflow puts its run into the Default experiment, from which no run can be moved: that one
    stays there as the launcher, and points to the real one.
    """
    given = mlflow_store.project_run(client) if home.adopts else None
    if given is None:
        where = home.experiment_id or mlflow_store.experiment_id(client)
        return _make(client, record, where, _tags(record, home), home.say)
    if called := given.data.tags.get(RUN_NAME) or given.info.run_name:
        record.tags[RUN_NAME] = called
    by_default = given.info.experiment_id == mlflow_store.DEFAULT_EXPERIMENT_ID
    if not by_default and _adopt(client, given, record):
        return given
    own_names = (*OWN, NAMED, NOTE, "mlflow.user")
    tags = {k: v for k, v in given.data.tags.items() if not k.startswith(own_names)}
    where = mlflow_store.experiment_id(client) if by_default else given.info.experiment_id
    run = _make(client, record, where, tags, home.say)
    params = {k: v for k, v in given.data.params.items() if not k.startswith(OWN)}
    mlflow_store.log_values(client, run.info.run_id, (), params)
    if by_default:
        told = f"Launched run {run.info.run_id} in experiment `{mlflow_store.EXPERIMENT}`. "
        told += "With `--experiment-name` (or MLFLOW_EXPERIMENT_NAME) there is one run instead of two."
        _launch(client, given, record.name, told)
    else:
        beside = f"{record.name} is run {run.info.run_id}, beside it"
        home.say(f"MLflow run {given.info.run_id} (MLFLOW_RUN_ID) is used already: {beside}")
    return run


def _adopt(client: Any, given: Any, record: Record) -> bool:
    """Whether an inherited run becomes that of a record: of several that want it, one gets it."""
    used = any(key.startswith(OWN) for key in (*given.data.tags, *given.data.params))
    if used or given.info.status not in UNDER_WAY:
        return False
    try:
        told = {UID: record.uid}
        mlflow_store.log_values(client, given.info.run_id, (), told)  # MLflow lets nobody change a param
    except AWAY as error:
        if mlflow_store.refused(error):
            return False
        raise
    mlflow_store.set_tags(client, given.info.run_id, {UID: record.uid, NAMED: record.name})
    return True


def _make(client: Any, record: Record, experiment_id: str, tags: dict[str, str], say: Callable[[str], Any]) -> Any:
    """A new run. What MLflow said to have failed may have been done, also before it was tried again."""
    try:
        made = mlflow_store.create_run(client, record, experiment_id, tags)
        if not mlflow_store.may_repeat():
            return made
    except AWAY:
        if not _of_uid(client, record, experiment_id):
            raise
    made = _of_uid(client, record, experiment_id)[0]
    close_doubles(client, record, made, say)
    return client.get_run(made.info.run_id)


def _launch(client: Any, launcher: Any, name: str, told: str) -> None:
    """Let the run that `mlflow run` made tell of one that it launched, after those of which it tells already."""
    tags = launcher.data.tags
    called = {RUN_NAME: launcher.info.run_name, NAMED: f"launcher of {name}"} if RUN_NAME not in tags else {}
    note = "\n\n".join([*([tags[NOTE]] if RUN_NAME in tags and NOTE in tags else []), told])
    mlflow_store.set_tags(client, launcher.info.run_id, called | {NOTE: note})


def point_launcher(client: Any, name: str, run_id: str) -> None:
    """Make the project's run, if there is one, the launcher of another one."""
    launcher = mlflow_store.project_run(client)
    if launcher is not None and launcher.info.run_id != run_id and launcher.data.params.get(UID) is None:
        _launch(client, launcher, name, f"Launched run {run_id}, which already existed.")
