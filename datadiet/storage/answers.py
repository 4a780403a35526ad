"""Which test examples a finished run got right: test_correct.npy, one bit each, with its hash in summary.json."""

from __future__ import annotations

import hashlib
import io
from pathlib import Path

import numpy as np

from datadiet.errors import UserError
from datadiet.storage.files import npy_parts, write_bytes

NAME = "test_correct.npy"


def write_answers(run_dir: Path, correct: np.ndarray) -> None:
    """Keep whether a run is right about each test example after its last step, bool [M] in the data set's order."""
    write_bytes(run_dir / NAME, *npy_parts(np.packbits(correct)))


def digest(run_dir: Path) -> str | None:
    """Its sha256; None where a run has none, as those of earlier versions."""
    path = run_dir / NAME
    return hashlib.sha256(path.read_bytes()).hexdigest() if path.exists() else None


def read_answers(run_dir: Path, num_test: int, sha256: str) -> np.ndarray:
    """bool [M].

    Args:
        num_test: M.
        sha256: Of the file, as the summary has it.
    Raises:
        UserError: missing, or not what was written.
    """
    path = run_dir / NAME
    try:
        content = path.read_bytes()
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}; summary.json says that it was written.") from None
    if hashlib.sha256(content).hexdigest() != sha256:
        raise UserError(f"{path}: not what was written there (its hash differs); it is damaged.")
    packed = np.load(io.BytesIO(content), allow_pickle=False)
    if packed.shape != (-(-num_test // 8),):
        raise UserError(f"{path}: {packed.shape[0]} bytes for {num_test} test examples; it is damaged.")
    return np.unpackbits(packed, count=num_test).astype(bool)
