"""A run whose process has ended, brought into MLflow as far as that lacks it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from datadiet import commands
from datadiet.errors import UserError
from datadiet.tracking import mlflow_store
from datadiet.tracking.failures import reason, repair
from datadiet.tracking.link import Link
from datadiet.tracking.logged_model import has_model
from datadiet.tracking.mlflow_store import AWAY
from datadiet.tracking.push import Home, close_doubles, find, point_launcher, push
from datadiet.tracking.record import Record, load
from datadiet.tracking.run import TrackedRun


def bring(client: Any, record: Record, parent: Record | None, say: Callable[[str], Any]) -> bool:
    """Write into MLflow what a record that no process holds has and MLflow lacks.

    Returns:
        Whether anything was lacking.
    Raises:
        UserError: MLflow cannot be reached, or refuses.
    """
    list(record.files())
    try:
        found = find(client, record)
        doubles = close_doubles(client, record, found, say) if found else 0
        if found and record.synced and _has_all(client, found, record, parent):
            return doubles > 0
        if found and record.lost and found.info.run_id == record.id:
            say(f"{record.name}: MLflow run {record.id} was restored, and is told the rest")
        push(client, record, Home(parent.id if parent else None, say=say))
    except AWAY as error:
        raise UserError(
            f"MLflow ({mlflow_store.store_name()}) does not take {record.name}: {reason(error)}\n"
            f"{repair(error, commands.command('sync'))}."
        ) from error
    record.lost = False
    if not record.synced:
        record.synced = True
        record.save()
    return True


def _has_all(client: Any, found: Any, record: Record, parent: Record | None) -> bool:
    """Whether a run that was told everything still has it; of files, their names."""
    names = {name for _, _, values in record.points() for name in values}
    tags = record.tags | ({"mlflow.parentRunId": parent.id} if parent and parent.id else {})
    return (
        found.info.status == record.status
        and names <= found.data.metrics.keys()
        and mlflow_store.shown_tags(tags).items() <= found.data.tags.items()
        and not mlflow_store.lacks_files(client, found.info.run_id, record.files())
        and (record.model is None or has_model(client, found.info.run_id))
    )


def settle(
    mirror: Path, parent: TrackedRun | None = None, offline: bool = False, model: dict[str, Any] | None = None
) -> None:
    """Make sure that a run whose mirror is finished is FINISHED in MLflow: its process may have been killed between.

    Args:
        mirror: Its record; the caller holds its lock.
        model: As `Record.model` has it, where MLflow is to be given its network.
    Raises:
        UserError: the record or the run's reports are damaged.
    """
    link = parent.link if parent else Link(offline)
    if not mirror.exists() or not (link.open or model):
        return
    record = load(mirror)
    record.settle()
    if model and record.model != model:
        record.model = model
        record.save()
    if not link.open:
        return
    list(record.points())  # damage is told as such, not as MLflow's absence
    try:
        with mlflow_store.usable():
            client = link.client if parent else mlflow_store.connected()
        bring(client, record, parent.record if parent else None, link.say)
    except UserError as error:
        link.lose(error)
        return
    if parent is None and record.id:
        point_launcher(link.client, record.name, record.id)
