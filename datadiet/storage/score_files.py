"""Score files, each tied to its data by a record beside it."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np

import datadiet
from datadiet.errors import UserError
from datadiet.intake import check_npy, read_bytes
from datadiet.storage.files import npy_bytes, write_bytes
from datadiet.storage.records import ScoreRecord


def save_scores(
    path: Path, values: np.ndarray, identity: dict[str, Any], provenance: dict[str, Any],
    beside: Mapping[str, np.ndarray] = MappingProxyType({}),
) -> None:  # fmt: skip
    """Write scores [N] as .npy and, beside it, a .json that ties them to their data.

    Args:
        identity: Of the dataset: see `Dataset.identity`.
        provenance: type, step, runs and what else tells how they were made.
        beside: More arrays, for <name>.<suffix>.npy by suffix; the .json has their hashes.
    """
    content = npy_bytes(values)
    hashes = {"sha256": hashlib.sha256(content).hexdigest()}
    for suffix, array in beside.items():
        extra = npy_bytes(array)
        hashes[f"{suffix}_sha256"] = hashlib.sha256(extra).hexdigest()
        write_bytes(path.with_suffix(f".{suffix}.npy"), extra)
    record = ScoreRecord(**provenance, **hashes, package_version=datadiet.__version__, **identity)
    record.write(path.with_suffix(".json"))  # first: values without a record would be taken on trust
    write_bytes(path, content)


def load_record(path: Path) -> ScoreRecord | None:
    """The record beside a score file; None where there is none.

    Raises:
        UserError: it is damaged.
    """
    sidecar = path.with_suffix(".json")
    return ScoreRecord.read(sidecar) if sidecar.exists() else None


def load_scores(path: Path) -> tuple[np.ndarray, ScoreRecord | None]:
    """Scores [N] of a file, and the record beside it (None where there is none).

    Raises:
        UserError: missing, not a 1-D .npy of numbers, or changed since it was written.
    """
    try:
        content = read_bytes(path)
    except (OSError, ValueError) as error:
        raise UserError(f"No score file {path} ({getattr(error, 'strerror', error)}).") from None
    record = load_record(path)
    if record is not None and record.sha256 != hashlib.sha256(content).hexdigest():
        sidecar = path.with_suffix(".json").name
        raise UserError(f"{path}: its content is not what {sidecar} was written for; make the scores again.")
    try:
        check_npy(str(path), io.BytesIO(content), len(content), len(content))
        values = np.load(io.BytesIO(content), allow_pickle=False)
    except Exception as error:  # NumPy's parser raises many kinds for a damaged header
        raise UserError(f"{path}: not readable as a .npy array of numbers ({error}).") from error
    if not isinstance(values, np.ndarray) or values.ndim != 1 or values.dtype.kind not in "fiu":
        kind, shape = getattr(values, "dtype", type(values)), np.shape(values)
        raise UserError(f"{path}: expected one real number per example, got {kind} of shape {shape}.")
    if record is not None and len(values) != len(record.example_ids):
        raise UserError(f"{path}: {len(values)} values for {len(record.example_ids)} examples; it is damaged.")
    return values, record
