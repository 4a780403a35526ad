"""The file of a recorder's state: one npz with a record of what it is."""

from __future__ import annotations

import json
import zipfile
import zlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np

from datadiet.errors import UserError
from datadiet.intake import check_npy, size_of
from datadiet.temporary import putting

FILE = "recorder.npz"
FORMAT = 1  # of the file; raised where the meaning of an entry changes
RECORD = "record"  # the entry that says what the others are, JSON as uint8


@dataclass(frozen=True)
class About:
    """What a recorder gathers."""

    num_examples: int
    num_classes: int
    scores: tuple[str, ...]
    options: dict[str, Any]

    def __str__(self) -> str:
        own = "".join(f", {name}={value}" for name, value in self.options.items())
        return f"{self.num_examples} examples, {self.num_classes} classes, scores={','.join(self.scores)}{own}"


def write(folder: Path, about: About, more: dict[str, Any], arrays: Mapping[str, np.ndarray]) -> Path:
    """Put the file into a folder, in place of an earlier state of the same.

    Raises:
        UserError: it cannot be written, or what is there is no earlier state of the same.
    """
    path = folder / FILE
    if path.exists() and (there := _record(path)[0]) != about:
        raise UserError(f"{path} is of another recorder ({there}; this one: {about}). Choose another folder.")
    record = json.dumps({"format": FORMAT, **asdict(about), **more}).encode()
    entries: dict[str, Any] = {RECORD: np.frombuffer(record, np.uint8), **arrays}
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with putting(path) as file:
            np.savez(file, **entries)
    except OSError as error:
        raise UserError(f"{path} cannot be written: {error.strerror}. What was there is as it was.") from error
    return path


def read(folder: Path) -> tuple[Path, About, dict[str, Any], dict[str, np.ndarray]]:
    """The file, and what `write` was given.

    Raises:
        UserError: there is none, it is damaged, or of a newer version.
    """
    path = folder / FILE
    about, more, names = _record(path)
    return path, about, more, _arrays(path, names)


def check(path: Path, found: Mapping[str, np.ndarray], wanted: Mapping[str, np.ndarray]) -> None:
    """Raises UserError where arrays are not those that there should be, by names, shapes and dtypes."""
    kinds = [{name: (a.shape, a.dtype) for name, a in arrays.items()} for arrays in (found, wanted)]
    if kinds[0] != kinds[1]:
        odd = min(name for name in kinds[0] | kinds[1] if kinds[0].get(name) != kinds[1].get(name))
        raise UserError(f"{path}: its {odd} is not what was written there; it is damaged, or its scores have changed.")


def _record(path: Path) -> tuple[About, dict[str, Any], list[str]]:
    """What a file says of itself, and the names of its arrays."""
    packed = _arrays(path, [RECORD])[RECORD]
    try:
        record = dict(json.loads(packed.tobytes()))
        if (number := record.pop("format")) > FORMAT:
            raise UserError(f"{path}: written by a newer datadiet (format {number}, here {FORMAT}); install that one.")
        about = About(**{field.name: record.pop(field.name) for field in fields(About)})
        about = replace(about, scores=tuple(about.scores))
        with zipfile.ZipFile(path) as archive:
            names = [name.removesuffix(".npy") for name in archive.namelist()]
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"{path}: no state of a recorder, or a damaged one ({error}).") from error
    return about, record, [name for name in names if name != RECORD]


def _arrays(path: Path, names: list[str]) -> dict[str, np.ndarray]:
    """Arrays of the file, each with its checksum verified."""
    try:
        size_of(path)  # a regular file, else it is never opened
        with zipfile.ZipFile(path) as archive:
            return {name: _array(f"{path}: {name}", archive, f"{name}.npy") for name in names}
    except FileNotFoundError:
        raise UserError(f"No file {path}; expected a folder that a recorder was saved to.") from None
    except (
        KeyError, ValueError, OSError, EOFError, NotImplementedError, RuntimeError, zipfile.BadZipFile, zlib.error,
    ) as error:  # fmt: skip
        raise UserError(f"{path}: no state of a recorder, or a damaged one ({error}).") from error


def _array(what: str, archive: zipfile.ZipFile, name: str) -> np.ndarray:
    member = archive.getinfo(name)
    with archive.open(member) as file:
        check_npy(what, file, member.file_size, member.compress_size)
    with archive.open(member) as file:
        return np.lib.format.read_array(file, allow_pickle=False)
