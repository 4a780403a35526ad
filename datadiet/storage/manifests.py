"""Kept manifests: which examples a subset keeps, as a file that may be trained on again."""

from __future__ import annotations

import csv
import hashlib
import io
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from datadiet import commands
from datadiet.config import TrainConfig
from datadiet.data.dataset import Dataset
from datadiet.errors import UserError
from datadiet.intake import read_bytes, read_text
from datadiet.selectors.options import MANIFEST
from datadiet.storage.files import csv_text, write_text
from datadiet.storage.records import KeptRecord


def find_manifest(config: TrainConfig) -> TrainConfig:
    """The config with the size of its manifest.

    Raises:
        UserError: no manifest, or another size was asked for.
    """
    if config.manifest is None:
        wanted = commands.option("manifest", "PATH/kept.csv")
        raise UserError(f"selector={MANIFEST} needs a file of kept examples: {wanted}.")
    size = len(_manifest_names(Path(config.manifest)))
    if config.size not in (None, size):
        raise UserError(f"size={config.size}: {config.manifest} has {size} examples; leave size out.")
    return replace(config, size=size)


def _manifest_names(path: Path) -> list[str]:
    """example_id of every line, in kept order."""
    try:
        rows = list(csv.DictReader(io.StringIO(read_text(path))))
        rows.sort(key=lambda row: int(row.get("kept_order") or 0))
        names = [row["example_id"] for row in rows]
    except (OSError, ValueError, KeyError, TypeError, csv.Error) as error:
        raise UserError(f"manifest={path}: expected a csv file with a column example_id ({error!r}).") from error
    if not names:
        raise UserError(f"manifest={path} names no example.")
    return names


def manifest_ids(path: Path, dataset: Dataset) -> np.ndarray:
    """Ids of the examples that a manifest names, int32 [M] in kept order.

    Raises:
        UserError: it is of other data, or names an example twice or one that the data does not have.
    """
    record = path.with_suffix(".json")
    told = KeptRecord.read(record) if record.exists() else None
    if told and told.sha256 != _digest(path):
        raise UserError(
            f"manifest={path} is not what {record.name} was written for. Make them again, or remove {record.name} to "
            "train on lines that you changed yourself."
        )
    if told and told.fingerprint != dataset.fingerprint:
        raise UserError(f"manifest={path} keeps examples of {told.dataset}, not of this {dataset.name}.")
    place = {str(name): i for i, name in enumerate(dataset.example_ids)}
    names = _manifest_names(path)
    if unknown := [name for name in names if name not in place]:
        raise UserError(
            f"manifest={path}: {len(unknown)} examples are not in {dataset.name}, the first is {unknown[0]}."
        )
    if len(set(names)) < len(names):
        raise UserError(f"manifest={path} names {len(names) - len(set(names))} examples twice.")
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
    shown: Callable[[int], object] = (lambda i: "") if values is None else values.tolist().__getitem__
    return csv_text(
        "example_id,kept_order,score", ((dataset.example_ids[i], order, shown(i)) for order, i in enumerate(kept))
    )
