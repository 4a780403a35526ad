"""Score files, each tied to its data by a record beside it.

The names of the examples are written once for all scores of a data set: in ids/<sha256>.json below exps, where the hash
is that of the file. Scores of data with the same fingerprint need no names; to align those of the same examples in
another order they are looked for in an `ids` folder beside the score file or above it.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, ClassVar, Self

import numpy as np

import datadiet
from datadiet.errors import UserError
from datadiet.intake import check_npy, read_bytes
from datadiet.storage.files import make_subfolder, npy_parts, sha256, write_bytes
from datadiet.storage.layout import SCORE_FOLDERS, check_place
from datadiet.storage.records import MirrorRecord


def save_scores(
    path: Path, values: np.ndarray, identity: dict[str, Any], provenance: dict[str, Any],
    beside: Mapping[str, np.ndarray] = MappingProxyType({}), name: str | None = None,
) -> None:  # fmt: skip
    """Write scores [N] as .npy and, beside it, a .json that ties them to their data.

    Args:
        identity: Of the dataset: see `Dataset.identity`, or `identity_of`.
        provenance: type, step, runs and what else tells how they were made.
        beside: More arrays, for <name>.<suffix>.npy by suffix; the .json has their hashes.
        name: Path of the file below exps, where it is in the mirror.
    """
    make_subfolder(path.parent)
    identity = dict(identity)
    if (ids := identity.pop("example_ids", None)) is not None:
        exps = path.parents[name.count("/")] if name else path.parent
        identity |= {"ids_sha256": write_ids(exps, ids), "num_examples": len(ids)}
    content = npy_parts(values)
    hashes = {"sha256": sha256(content)}
    for suffix, array in beside.items():
        extra = npy_parts(array)
        hashes[f"{suffix}_sha256"] = sha256(extra)
        write_bytes(path.with_suffix(f".{suffix}.npy"), *extra)
    record = ScoreRecord(path=name, **provenance, **hashes, package_version=datadiet.__version__, **identity)
    record.write(path.with_suffix(".json"))  # first: values without a record would be taken on trust
    write_bytes(path, *content)


@dataclass(kw_only=True)
class ScoreRecord(MirrorRecord):
    """The .json beside a score file."""

    FORMAT: ClassVar[int] = 2  # names of examples are in a file of their own
    UNSEALED: ClassVar[bool] = False
    path: str | None = None  # of the score file below exps; None: made before it was noted
    type: str | None = None
    step: int | None = None
    runs: list[int] | None = None
    source: str | None = None  # run or experiment that was scored
    random_labels: dict[str, Any] | None = None  # fraction and seed, where labels were randomised
    given_labels: str | None = None  # sha256 of given_labels.csv, where labels were given
    combine: str | None = None  # how runs were combined; None: by their mean
    seconds: float | None = None
    compile_seconds: float | None = None
    package_version: str | None = None
    sha256: str  # of the .npy
    runs_sha256: str | None = None  # of the scores of each run beside it
    stderr_sha256: str | None = None
    dataset: str
    fingerprint: str
    example_ids: list[str] | None = None  # in files of format 1
    ids_sha256: str | None = None  # of the file that has them since then: see `score_files.read_ids`
    num_examples: int | None = None

    @classmethod
    def from_json(cls, path: Path, values: dict[str, Any]) -> Self:
        record = super().from_json(path, values)
        if record.example_ids is None and None in (record.ids_sha256, record.num_examples):
            raise UserError(f"{path}: it does not say which examples it is of; it is damaged.")
        return record

    @property
    def count(self) -> int:
        """N."""
        return len(self.example_ids) if self.example_ids is not None else self.num_examples or 0


# --- names of examples ------------------------------------------------------------------------


def _ids_file(folder: Path, digest: str) -> Path:
    return folder / "ids" / f"{digest}.json"


def ids_digest(ids: Iterable[str]) -> str:
    """sha256 of the file that has these names."""
    return hashlib.sha256(_ids_bytes(ids)).hexdigest()


def _ids_bytes(ids: Iterable[str]) -> bytes:
    return json.dumps([str(one) for one in ids]).encode()


def write_ids(exps: Path, ids: Iterable[str]) -> str:
    """Keep names of examples below a mirror, once; gives the hash that they are found by."""
    content = _ids_bytes(ids)
    digest = hashlib.sha256(content).hexdigest()
    path = _ids_file(exps, digest)
    if not (path.is_file() and path.read_bytes() == content):  # its name says what has to be in it
        make_subfolder(path.parent)
        write_bytes(path, content)
    return digest


def read_ids(path: Path, record: ScoreRecord) -> np.ndarray:
    """Names of the examples of a score file, str [N].

    Raises:
        UserError: they are nowhere, or damaged.
    """
    if record.example_ids is not None:
        return np.array(record.example_ids)
    digest = str(record.ids_sha256)
    folders = dict.fromkeys((*Path(os.path.abspath(path)).parents, *path.resolve().parents))
    found = next((file for folder in folders if (file := _ids_file(folder, digest)).is_file()), None)
    if found is None:
        raise UserError(
            f"{path}: the names of its examples are missing: {_ids_file(Path('exps'), digest)} of the mirror that it "
            f"was made in. Use the scores there, or copy that file to {_ids_file(path.parent, digest)}."
        )
    content = read_bytes(found)
    if hashlib.sha256(content).hexdigest() != digest:
        raise UserError(f"{found}: not what was written there (its hash differs); it is damaged. Make scores again.")
    return np.array(json.loads(content))


def identity_of(record: ScoreRecord) -> dict[str, Any]:
    """The data of a score file, for scores that are made of it."""
    if record.example_ids is not None:
        names = ("dataset", "fingerprint", "example_ids")
    else:
        names = ("dataset", "fingerprint", "ids_sha256", "num_examples")
    return {name: getattr(record, name) for name in names}


# --- scores -----------------------------------------------------------------------------------


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
    if record is not None and len(values) != record.count:
        raise UserError(f"{path}: {len(values)} values for {record.count} examples; it is damaged.")
    return values, record
