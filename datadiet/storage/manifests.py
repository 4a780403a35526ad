"""Kept manifests: which examples a subset keeps, as a file that may be trained on again."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from datadiet import commands
from datadiet.config import TrainConfig
from datadiet.data.dataset import Dataset
from datadiet.errors import UserError
from datadiet.intake import check_size, read_bytes, size_of
from datadiet.selectors.options import MANIFEST
from datadiet.storage.files import write_text
from datadiet.storage.records import KeptRecord
from datadiet.storage.tables import csv_text, read_csv

COLUMNS = ("example_id", "kept_order", "score")
_ANSWERS = {"true": True, "1": True, "false": False, "0": False}  # in a column `kept`


def find_manifest(config: TrainConfig, path: Path) -> TrainConfig:
    """The config with the size of its manifest.

    Args:
        path: Of the manifest on this machine.
    Raises:
        UserError: no manifest, or another size was asked for.
    """
    if config.manifest is None:
        wanted = commands.option("manifest", "PATH/kept.csv")
        raise UserError(f"selector={MANIFEST} needs a file of kept examples: {wanted}.")
    try:
        size = len(_manifest_names(path))
    except UserError as error:
        raise UserError(f"manifest={error}") from None
    if config.size not in (None, size):
        raise UserError(f"size={config.size}: {config.manifest} has {size} examples; leave size out.")
    return replace(config, size=size)


def kept_rows(path: Path) -> list[dict[str, str]]:
    """The lines of a kept.csv, or of a kept table (.csv or .parquet), that are kept, in kept order where it is told;
    lines without a column `kept` all are.

    Raises:
        UserError: no such table, or none is kept.
    """
    read = _read_parquet if path.suffix == ".parquet" else read_csv
    rows = [row for row in read(path, "example_id") if _is_kept(path, row)]
    try:
        rows.sort(key=lambda row: int(row.get("kept_order", 0)))
    except ValueError as error:
        raise UserError(f"{path}: kept_order counts the examples ({error}).") from None
    if not rows:
        raise UserError(f"{path} keeps no example.")
    return rows


def _manifest_names(path: Path) -> list[str]:
    return [row["example_id"] for row in kept_rows(path)]


def _read_parquet(path: Path, *columns: str) -> list[dict[str, str]]:
    """As `read_csv`; what is missing is an empty text."""
    import pyarrow as pa  # here, because no other file of kept examples needs it
    import pyarrow.parquet as pq

    try:
        stored = size_of(path)
        footer = pq.read_metadata(path)
        groups = map(footer.row_group, range(footer.num_row_groups))
        check_size(str(path), sum(group.total_byte_size for group in groups), stored)
        found = pq.read_table(path)
    except (pa.ArrowException, OSError, ValueError) as error:
        raise UserError(f"{path}: expected a parquet file with a column {columns[0]} ({error}).") from error
    if columns[0] not in found.column_names:
        raise UserError(f"{path}: expected a parquet file with a column {columns[0]}; got {found.column_names}.")
    return [{name: "" if cell is None else str(cell) for name, cell in row.items()} for row in found.to_pylist()]


def _is_kept(path: Path, row: dict[str, str]) -> bool:
    """Raises UserError where a column `kept` says neither."""
    answer = _ANSWERS.get(row.get("kept", "true").strip().lower())
    if answer is None:
        raise UserError(f"{path}: kept={row['kept']!r} of {row['example_id']!r}; expected true, false, 1 or 0.")
    return answer


def manifest_ids(path: Path, dataset: Dataset) -> np.ndarray:
    """Ids of the examples that a manifest names, int32 [M] in kept order.

    Raises:
        UserError: it is of other data, or names an example twice or one that the data does not have.
    """
    record = path.with_suffix(".json")
    told = KeptRecord.read(record) if record.exists() else None
    if told and told.sha256 != _digest(path):
        raise UserError(
            f"{path} is not what {record.name} was written for. Lines that you changed yourself "
            "are trained on from a file of another name."
        )
    if told and told.fingerprint != dataset.fingerprint:
        raise UserError(f"{path} keeps examples of {told.dataset}, not of this {dataset.name}.")
    place = {str(name): i for i, name in enumerate(dataset.example_ids)}
    names = _manifest_names(path)
    if unknown := [name for name in names if name not in place]:
        raise UserError(f"{path}: {len(unknown)} examples are not in {dataset.name}, the first is {unknown[0]}.")
    if len(set(names)) < len(names):
        raise UserError(f"{path} names {len(names) - len(set(names))} examples twice.")
    return np.array([place[name] for name in names], np.int32)


def _digest(path: Path) -> str:
    return hashlib.sha256(read_bytes(path)).hexdigest()


def write_manifest(
    path: Path, dataset: Dataset, kept: np.ndarray, values: np.ndarray | None, chosen: dict[str, Any], kept_by: str
) -> None:
    """kept.csv and, beside it, kept.json that ties it to its data.

    Args:
        chosen: Options of the selection, by name.
        kept_by: The same in words.
    """
    text = manifest_text(dataset, kept, values)
    record = KeptRecord(
        options=chosen, kept_by=kept_by, dataset=dataset.name, fingerprint=dataset.fingerprint, num_kept=len(kept),
        sha256=hashlib.sha256(text.encode()).hexdigest(),
    )  # fmt: skip
    record.write(path.with_suffix(".json"))  # first: lines without it are taken on trust
    write_text(path, text)


def manifest_text(dataset: Dataset, kept: np.ndarray, values: np.ndarray | None) -> str:
    """kept.csv: example id, kept order and score (empty where none was used) of every kept example."""
    shown: Callable[[int], object] = (lambda i: None) if values is None else values.tolist().__getitem__
    return csv_text(COLUMNS, ((dataset.example_ids[i], order, shown(i)) for order, i in enumerate(kept)))
