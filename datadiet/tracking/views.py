"""What the table of an experiment shows of studies: columns, order and groups, which a link of MLflow's UI opens.

The UI reads a view from a tag of the experiment, as its own button for sharing writes it. Where an experiment takes no
tag there is no link; nothing else depends on it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import mlflow
from mlflow.entities import Metric, RunTag

from datadiet import commands
from datadiet.errors import Busy
from datadiet.printable import masked
from datadiet.storage.claims import lock_run
from datadiet.tracking import mlflow_store
from datadiet.tracking.mlflow_store import AWAY
from datadiet.tracking.record import ANSWER, METRICS, Record, load, now
from datadiet.tracking.run import TrackedRun

VIEW = "mlflow.sharedViewState."  # tag of an experiment, before the name of a view
DEFAULT_STORE = "mlflow.db"  # which `mlflow ui` shows where it is called
DEFAULT_ADDRESS = "http://127.0.0.1:5000"
NAME_COLUMN = "attributes.`Run Name`"
NAME_WIDTH, WIDTH = 440, 140  # pixels of the column of names, which has those of groups, and of the others
COLUMNS = [*(f"metrics.`{name}`" for name in METRICS), f"tags.`{ANSWER}`"]
GROUPS = ("datadiet.arm", "datadiet.fraction")  # tags


class Told(NamedTuple):
    """What a study says of one of its trainings."""

    metrics: dict[str, float]
    tags: dict[str, str]


def tell_trainings(study: TrackedRun, told: Mapping[Path, Told], step: int) -> list[tuple[str, ...]]:
    """Have trainings of a study say what was decided of their subset; saying it again changes nothing.

    Args:
        told: By the record of each; one that another process writes is left alone.
        step: Of the metrics: how many runs the decision looked at.
    Returns:
        The subsets, each once: what GROUPS are of them.
    """
    groups: list[tuple[str, ...]] = []
    for path, one in told.items():
        if not path.exists():
            continue
        try:
            with lock_run(path.parent):
                record = load(path)
                _tell(study, record, one, step)
        except Busy:
            continue
        groups.append(tuple(mlflow_store.shown_tags(record.tags).get(name, "null") for name in GROUPS))
    return list(dict.fromkeys(groups))


def _tell(study: TrackedRun, record: Record, told: Told, step: int) -> None:
    """Have a record say it, then MLflow; what that does not hear now, `sync` brings."""
    had_all = record.synced
    if not _note(record, told, step) or record.id is None or study.behind or not study.link.open:
        return
    tags = [RunTag(*pair) for pair in mlflow_store.shown_tags(told.tags).items()]
    points = [Metric(mlflow_store.key(name), value, now(), step) for name, value in told.metrics.items()]
    try:
        study.link.client.log_batch(record.id, metrics=points, tags=tags)
    except AWAY as error:
        study.link.lose(error)
        return
    if had_all:
        record.synced = True
        record.save()


def _note(record: Record, told: Told, step: int) -> bool:
    """Have a record say it; whether it did not yet."""
    latest: dict[str, float] = {}
    for _, _, values in record.metrics:
        latest |= values
    if told.tags.items() <= record.tags.items() and told.metrics.items() <= latest.items():
        return False
    record.tags |= told.tags
    record.metrics.append([step, now(), told.metrics])
    record.synced = False
    record.save()
    return True


def save_views(study: TrackedRun, groups: Sequence[tuple[str, ...]] = ()) -> list[tuple[str, str]]:
    """Let the experiment of a study have two views: of all studies, a row each, and of this one's trainings by arm.

    Args:
        groups: See `tell_trainings`; of trainings that are no runs there are none, and one view.
    Returns:
        What each shows, and its address; [] where MLflow is away or takes no tag.
    """
    if study.id is None or study.experiment_id is None or study.behind or not study.link.open or _address() is None:
        return []
    views = {"datadiet": ("Every study, a row each", _state())}
    if groups:
        views[f"datadiet-{study.id}"] = "The trainings of this one, by arm and fraction", _by_arm(str(study.id), groups)
    try:
        for key, (_, state) in views.items():
            study.link.client.set_experiment_tag(study.experiment_id, VIEW + key, json.dumps(state))
    except AWAY:
        return []
    home = f"{_address()}/#/experiments/{study.experiment_id}/runs?viewStateShareKey="
    return [(shown, home + key) for key, (shown, _) in views.items()]


def _state(**values: Any) -> dict[str, Any]:
    """A view as the UI reads it: with our columns, the newest run first."""
    order = {
        "columnOrder": [NAME_COLUMN, *COLUMNS],
        "columnWidths": {NAME_COLUMN: NAME_WIDTH, **dict.fromkeys(COLUMNS, WIDTH)},
    }
    ordered = {"orderByKey": "attributes.start_time", "orderByAsc": False}
    return {"selectedColumns": COLUMNS, **order, **ordered, **values}


def _by_arm(study_id: str, groups: Sequence[tuple[str, ...]]) -> dict[str, Any]:
    """The trainings of a study in closed groups, the most accurate first; open where the tag would be too long."""
    made = _state(
        searchFilter=f"tags.mlflow.parentRunId = '{study_id}' and tags.`{GROUPS[0]}` LIKE '%'",
        groupBy={"aggregateFunction": "average", "groupByKeys": [{"mode": "tag", "groupByData": g} for g in GROUPS]},
        orderByKey=COLUMNS[1],
    )
    closed = {",".join(f"tag.{name}.{value}" for name, value in zip(GROUPS, one)): False for one in groups}
    whole = made | {"groupsExpanded": closed}
    return whole if len(json.dumps(whole)) <= mlflow_store.MAX_TAG else made


def _address() -> str | None:
    """Where the UI is, or would be; None where its address holds what must not be shown."""
    uri = mlflow.get_tracking_uri()
    if not uri.startswith("http"):
        return DEFAULT_ADDRESS
    return uri.rstrip("/") if masked(uri) == uri else None


def ui_command() -> str | None:
    """What starts the UI over a store of this machine; None where a server shows it."""
    uri = mlflow.get_tracking_uri()
    if uri.startswith("http"):
        return None
    store = mlflow_store.absolute_store()
    named = [] if store == f"sqlite:///{Path(DEFAULT_STORE).absolute()}" else ["--backend-store-uri", store]
    return commands.of_mlflow("ui", *named, "--host", "127.0.0.1")
