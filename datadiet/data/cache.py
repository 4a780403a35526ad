"""A cache of built datasets: arrays in .npy files that later loads memory-map.

An entry is a folder <name>-<key>; the key depends on the path, size and times of every file the
data was built from, so changed files get another entry. Entries are never changed and may be
deleted at any time.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import warnings
import zlib
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock

from datadiet.errors import UserError
from datadiet.home import cache_folder

FORMAT = 1  # raise when the meaning of an entry changes: what is cached, or how a source is read
RECORD = "record.json"


def root() -> Path:
    """$DATADIET_CACHE, or datadiet in the user's cache folder; where there is no home, a temporary one."""
    return cache_folder()


def key(name: str, files: Sequence[str | Path]) -> str:
    """Identity of the source files, 16 hex digits: path, size, times of change. Content is not read.

    The time of the inode's change is in it because a copy that keeps the time of modification
    cannot forge it.
    """
    digest = hashlib.sha256(f"{FORMAT}\n{name}\n".encode())
    for file in files:
        status = os.stat(file)
        facts = (os.path.abspath(file), status.st_size, status.st_mtime_ns, status.st_ctime_ns)
        digest.update(f"{facts}\n".encode())
    return digest.hexdigest()[:16]


def entry_path(name: str, key_: str) -> Path:
    """Folder of one entry."""
    return root() / f"{re.sub(r'[^A-Za-z0-9._-]+', '_', name)[-60:]}-{key_}"


def save(path: Path, record: dict[str, Any]) -> None:
    """Write arrays as .npy and the rest as JSON; the folder appears only when it is complete."""
    temporary = path.with_name(f".{path.name}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)  # left by a killed process: the caller holds the lock
    temporary.mkdir(parents=True)
    arrays = {name: value for name, value in record.items() if isinstance(value, np.ndarray)}
    for name, value in arrays.items():
        np.save(temporary / f"{name}.npy", value, allow_pickle=False)
    values = {name: value for name, value in record.items() if name not in arrays}
    checksums = {name: zlib.crc32(np.ascontiguousarray(value).data) for name, value in arrays.items()}
    (temporary / RECORD).write_text(json.dumps({"values": values, "checksums": checksums}, indent=1))
    os.rename(temporary, path)


def read(path: Path) -> dict[str, Any] | None:
    """A stored record with its arrays memory-mapped; None where there is none, or it is damaged."""
    try:
        stored = json.loads((path / RECORD).read_text())
        load = partial(np.load, mmap_mode="r", allow_pickle=False)
        arrays = {name: np.asarray(load(path / f"{name}.npy")) for name in stored["checksums"]}
        for name, checksum in stored["checksums"].items():
            if zlib.crc32(np.ascontiguousarray(arrays[name]).data) != checksum:
                raise ValueError(f"{name}.npy has changed since it was written")
    except FileNotFoundError as error:
        if path.exists():
            warnings.warn(f"{path}: a damaged cache entry is written anew ({error}).", stacklevel=2)
        return None
    except (ValueError, KeyError, TypeError, OSError, EOFError) as error:
        warnings.warn(f"{path}: a damaged cache entry is written anew ({error}).", stacklevel=2)
        return None
    values = {name: tuple(v) if isinstance(v, list) else v for name, v in stored["values"].items()}
    return {**arrays, **values}


def through(
    name: str, files: Callable[[], Sequence[str | Path]], build: Callable[[], dict[str, Any]]
) -> dict[str, Any]:
    """The record stored for the present state of `files`, else a built one, which is then stored.

    Of several processes that miss it at once, one builds and the others wait. Where the cache
    cannot be written, the built record is returned with a warning.

    Args:
        name: Dataset, part of the entry's name.
        files: Lists all files that the content depends on.
        build: Arrays and JSON-ready values by name.
    Raises:
        UserError: the files changed while they were read.
    """
    present = key(name, files())
    path = entry_path(name, present)
    if path.exists() and (stored := read(path)) is not None:
        return stored
    lock = FileLock(path.with_name(f".{path.name}.lock"))
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        lock.acquire()
    except (OSError, NotImplementedError) as error:  # the latter: a file system without locks
        return _unstored(build(), path, error)
    try:
        if path.exists():
            if (stored := read(path)) is not None:
                return stored
            shutil.rmtree(path)
        built = build()
        if key(name, files()) != present:
            raise UserError(f"{name}: its files changed while they were read; run again when they are complete.")
        try:
            save(path, built)
        except OSError as error:
            return _unstored(built, path, error)
        return read(path) or built
    finally:
        lock.release()


def _unstored(built: dict[str, Any], path: Path, error: Exception) -> dict[str, Any]:
    warnings.warn(
        f"{path}: the cache cannot be written ({error}), so every load reads the source; set DATADIET_CACHE to a "
        "folder that can be written.",
        stacklevel=3,
    )
    return built
