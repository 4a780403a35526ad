"""From the mirror into MLflow: runs made offline, or while it was away. Doing so again changes nothing."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from datadiet import commands
from datadiet.errors import Busy, Misplaced, UserError
from datadiet.storage.claims import lock_run
from datadiet.storage.layout import ExperimentLayout
from datadiet.tracking import mlflow_store, record
from datadiet.tracking.bring import bring
from datadiet.tracking.record import Record


def record_files(folder: Path) -> Iterator[Path]:
    """Every record below a folder, in order of path."""
    for place, folders, files in os.walk(folder):
        folders[:] = sorted(set(folders) - {"ckpts"})
        yield from (Path(place) / name for name in sorted(files) if f".{name}".endswith(f".{record.NAME}"))


def sync_mirror(layout: ExperimentLayout, exp: str | None, say: Callable[[str], Any]) -> None:
    """Write into MLflow what it lacks of the mirror, studies first, so that their runs find them.

    Args:
        exp: Only this experiment folder; None: all.
    Raises:
        UserError: MLflow cannot be reached, or some runs could not be told (with their files).
    """
    folder = layout.exps if exp is None else layout.experiment(exp)
    if not folder.is_dir():
        root, of_exp = commands.option("root", "FOLDER"), commands.option("exp", "EXP")
        raise UserError(f"{folder}: no such folder; expected the runs of a root ({root}) or of an exp ({of_exp}).")
    client = mlflow_store.connected(needed=True)
    records, failed = _load_all(folder, layout, say)
    by_uid = {one.uid: one for one in records}
    counts: Counter[str] = Counter()
    for one in sorted(records, key=lambda r: r.kind != "study"):
        try:
            counts[_sync_one(client, one, by_uid, layout, say)] += 1
        except UserError as error:
            failed.append(str(error))
    told = ", ".join(f"{count} {what}" for what, count in sorted(counts.items())) or "no run"
    say(f"{folder} -> MLflow ({mlflow_store.store_name()}): {told}")
    if failed:
        raise UserError("\n".join([f"{len(failed)} could not be told to MLflow:", *failed]))


def _load_all(folder: Path, layout: ExperimentLayout, say: Callable[[str], Any]) -> tuple[list[Record], list[str]]:
    """The records below a folder, and what is wrong with those that are damaged; copies are passed over."""
    records, failed = [], []
    for path in record_files(folder):
        try:
            records.append(record.load(path, layout.name(path)))
        except Misplaced as error:
            say(f"Passed over: {error}")
        except UserError as error:
            failed.append(str(error))
    return records, failed


def _sync_one(
    client: Any, one: Record, by_uid: dict[str, Record], layout: ExperimentLayout, say: Callable[[str], Any]
) -> str:
    """What was done, in words for a count."""
    assert one.path is not None
    try:
        with lock_run(one.path.parent if one.kind == "train" else one.path):
            fresh = record.load(one.path)  # another process may have written it meanwhile
            fresh.settle()
            root = str(layout.root.resolve())
            if fresh.tags.get("datadiet.root") != root:  # the mirror was moved
                fresh.tags["datadiet.root"], fresh.synced = root, False
            written = bring(client, fresh, by_uid.get(fresh.parent or ""), say)
            by_uid[fresh.uid] = fresh
    except Busy:
        return "passed over (a process is working on them)"
    return "written" if written else "there already"
