"""Score files, each tied to its data by a record beside it."""

from __future__ import annotations

import hashlib
import io
import re
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np

import datadiet
from datadiet.errors import UserError
from datadiet.intake import check_npy, read_bytes
from datadiet.storage.files import make_subfolder, npy_bytes, write_bytes
from datadiet.storage.layout import SCORE_FOLDERS, check_place
from datadiet.storage.records import ScoreRecord


def save_scores(
    path: Path, values: np.ndarray, identity: dict[str, Any], provenance: dict[str, Any],
    beside: Mapping[str, np.ndarray] = MappingProxyType({}), name: str | None = None,
) -> None:  # fmt: skip
    """Write scores [N] as .npy and, beside it, a .json that ties them to their data.

    Args:
        identity: Of the dataset: see `Dataset.identity`.
        provenance: type, step, runs and what else tells how they were made.
        beside: More arrays, for <name>.<suffix>.npy by suffix; the .json has their hashes.
        name: Path of the file below exps, where it is in the mirror.
    """
    make_subfolder(path.parent)
    content = npy_bytes(values)
    hashes = {"sha256": hashlib.sha256(content).hexdigest()}
    for suffix, array in beside.items():
        extra = npy_bytes(array)
        hashes[f"{suffix}_sha256"] = hashlib.sha256(extra).hexdigest()
        write_bytes(path.with_suffix(f".{suffix}.npy"), extra)
    record = ScoreRecord(path=name, **provenance, **hashes, package_version=datadiet.__version__, **identity)
    record.write(path.with_suffix(".json"))  # first: values without a record would be taken on trust
    write_bytes(path, content)


def load_record(path: Path, name: str | None = None) -> ScoreRecord | None:
    """The record beside a score file; None where there is none.

    Args:
        name: Path of the score file below exps, where that is known.
    Raises:
        UserError: it is damaged, or that of a file in another place.
    """
    sidecar = path.with_suffix(".json")
    if not sidecar.exists():
        return None
    record = ScoreRecord.read(sidecar)
    told = record.path or (name and _older_place(record, name))
    check_place(path, told, name)
    return record


def _older_place(record: ScoreRecord, name: str) -> str:
    """`name` with what a record of before paths were noted says instead: the type, the step and the run."""
    *folders, folder, file = name.split("/")
    if record.type is not None:
        folder = SCORE_FOLDERS.get(record.type, f"{record.type}_scores")
    if record.step is not None:
        file = re.sub(r"^ckpt_\d+", f"ckpt_{record.step}", file)
    if folders and record.runs is not None and len(record.runs) == 1:
        folders[-1] = re.sub(r"^run_\d+$", f"run_{record.runs[0]}", folders[-1])
    return "/".join([*folders, folder, file])


def load_scores(path: Path, name: str | None = None) -> tuple[np.ndarray, ScoreRecord | None]:
    """Scores [N] of a file, and the record beside it (None where there is none).

    Args:
        name: Its path below exps, where that is known.
    Raises:
        UserError: missing, not a 1-D .npy of numbers, changed since it was written, or made for another place.
    """
    try:
        content = read_bytes(path)
    except (OSError, ValueError) as error:
        raise UserError(f"No score file {path} ({getattr(error, 'strerror', error)}).") from None
    record = load_record(path, name)
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
