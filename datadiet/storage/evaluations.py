"""What others found in trainings of their own, as a decision keeps it: evaluations.npz, with its hash in study.json."""

from __future__ import annotations

import hashlib
import io
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from datadiet.errors import UserError
from datadiet.intake import read_bytes
from datadiet.storage.files import write_bytes

NAME = "evaluations.npz"
KEPT = "kept_"  # before the number of a cell


class Evaluations(NamedTuple):
    """Of K cells, each trained S times and judged on the same M test examples."""

    accuracies: np.ndarray  # float64 [K, S], 0 to 1
    num_test: int  # M
    correct: np.ndarray | None  # bool [K, S, M]; None: only accuracies are known
    labels: np.ndarray | None  # int32 [M], of the test examples; None: not known
    seconds: np.ndarray | None  # float64 [K, S], of training; NaN: not known
    kept: dict[int, np.ndarray]  # ids in kept order, int32, by cell; those that were given


def _earlier(folder: Path, sha256: str) -> Path:
    """What NAME was, as long as study.json may have its hash."""
    return folder / f"evaluations.{sha256}.npz"


def write_evaluations(folder: Path, found: Evaluations) -> str:
    """Put them into the folder of a study; their sha256. What was there is kept beside them: see `forget_earlier`."""
    arrays: dict[str, Any] = {"accuracies": found.accuracies, "num_test": np.array(found.num_test)}
    arrays |= {} if found.correct is None else {"correct": np.packbits(found.correct, axis=-1)}
    arrays |= {name: value for name in ("labels", "seconds") if (value := getattr(found, name)) is not None}
    arrays |= {f"{KEPT}{cell}": ids for cell, ids in found.kept.items()}
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **arrays)
    path = folder / NAME
    if path.exists():
        before = read_bytes(path)
        write_bytes(_earlier(folder, hashlib.sha256(before).hexdigest()), before)
    write_bytes(path, buffer.getvalue())
    return hashlib.sha256(buffer.getvalue()).hexdigest()


def forget_earlier(folder: Path) -> None:
    """Remove what is kept of before: study.json has the hash of what there is now."""
    for path in folder.glob(_earlier(folder, "*").name):
        path.unlink()


def read_evaluations(folder: Path, sha256: str) -> Evaluations:
    """The inverse.

    Args:
        sha256: Of the file, as study.json has it.
    Raises:
        UserError: missing, or not what was written.
    """
    path = folder / NAME if not (earlier := _earlier(folder, sha256)).exists() else earlier
    try:
        content = read_bytes(path)
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}; study.json says that it was written.") from None
    if hashlib.sha256(content).hexdigest() != sha256:
        raise UserError(f"{path}: not what was written there (its hash differs); it is damaged.")
    with np.load(io.BytesIO(content), allow_pickle=False) as arrays:
        num_test, packed = int(arrays["num_test"]), arrays.get("correct")
        correct = None if packed is None else np.unpackbits(packed, axis=-1, count=num_test).astype(bool)
        kept = {int(name.removeprefix(KEPT)): arrays[name] for name in arrays.files if name.startswith(KEPT)}
        return Evaluations(
            arrays["accuracies"], num_test, correct, arrays.get("labels"), arrays.get("seconds"), kept
        )  # fmt: skip
