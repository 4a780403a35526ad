"""A cache of built datasets: arrays in .npy files that later loads memory-map.

An entry is a folder <name>-<key>; the key depends on the path, size and times of every file the
data was built from, so changed files get another entry. Entries are never changed and may be
deleted at any time. Only what nobody else can have written is believed: folders are made for their
owner alone, and one of another user, or that others may write to, is passed by.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
import shutil
import tempfile
import warnings
import zlib
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from datadiet import intake
from datadiet.data.dataset import CHUNK
from datadiet.errors import UserError
from datadiet.home import CACHE, cache_folder
from datadiet.temporary import left_beside, temporary_path

FORMAT = 6  # raise when the meaning of an entry changes: what is cached, or how a source is read
RECORD = "record.json"


def root() -> Path:
    """$DATADIET_CACHE, or datadiet in the user's cache folder; where there is no home, a temporary one."""
    return cache_folder()


def key(name: str, files: Sequence[str | Path], how: str = "") -> str:
    """Identity of the source files, 16 hex digits: path, size, times of change. Content is not read.

    The time of the inode's change is in it because a copy that keeps the time of modification
    cannot forge it.

    Args:
        how: They are read, where that is not as usual.
    """
    digest = hashlib.sha256(f"{FORMAT}\n{name}\n{how}".encode(errors="surrogateescape"))
    folders: dict[str, str] = {}  # as absolute paths: to ask for each of 60,000 files takes longer than to look at it
    for file in (os.fspath(file) for file in files):
        status = os.stat(file)
        folder, _, last = file.rpartition("/")
        if folder not in folders:
            folders[folder] = os.path.abspath(folder or ("/" if file.startswith("/") else "."))
        facts = (f"{folders[folder].rstrip('/')}/{last}", status.st_size, status.st_mtime_ns, status.st_ctime_ns)
        digest.update(f"{facts}\n".encode())
    return digest.hexdigest()[:16]


def entry_path(name: str, key_: str) -> Path:
    """Folder of one entry."""
    return root() / f"{re.sub(r'[^A-Za-z0-9._-]+', '_', name)[-60:]}-{key_}"


def save(path: Path, values: dict[str, Any]) -> None:
    """Write arrays as .npy and the rest as JSON; the folder appears only when it is complete."""
    for left in left_beside(path):  # by a killed process: the caller holds the lock
        shutil.rmtree(left, ignore_errors=True)
    temporary = temporary_path(path)
    intake.private_folder(temporary, ours=True)
    arrays = {name: value for name, value in values.items() if isinstance(value, np.ndarray)}
    for name, value in arrays.items():
        np.save(temporary / f"{name}.npy", value, allow_pickle=False)
    plain = {name: value for name, value in values.items() if name not in arrays}
    checksums = {name: zlib.crc32(np.ascontiguousarray(value).data) for name, value in arrays.items()}
    record = {"entry": path.name, "values": plain, "checksums": checksums}
    (temporary / RECORD).write_text(json.dumps(record, indent=1))
    for file in temporary.iterdir():
        file.chmod(0o600)
    os.rename(temporary, path)


def room(what: str, shape: tuple[int, ...]) -> np.ndarray:
    """An array uint8 to be filled: in memory where it takes at most half of what is free, else in a file beside the
    cache, which has no name and goes with the array.

    Args:
        what: Name for the error.
    Raises:
        UserError: neither memory nor the disk has room for it, or it is more than is allowed.
    """
    needed = math.prod(shape)
    if intake.is_much(needed):
        with suppress(OSError):  # there is no such folder, or it cannot be written
            folder = intake.private_folder(root(), ours=not os.environ.get(CACHE))
            if 2 * needed < shutil.disk_usage(folder).free:  # what is built is written once more, as an entry
                with tempfile.TemporaryFile(dir=folder) as file:
                    return np.asarray(np.memmap(file, np.uint8, "w+", shape=shape))
    intake.check_memory(what, needed)
    return np.empty(shape, np.uint8)


def filled(what: str, shape: tuple[int, ...], piece: Callable[[slice], np.ndarray]) -> np.ndarray:
    """An array uint8 made piece by piece, into a `room`."""
    found = room(what, shape)
    for first in range(0, shape[0], CHUNK):
        part = slice(first, min(first + CHUNK, shape[0]))
        found[part] = piece(part)
    return found


def taken(what: str, images: np.ndarray, which: np.ndarray) -> np.ndarray:
    """Some of the images, which: bool [N]; piece by piece where they are uint8, into a `room`."""
    ids = np.flatnonzero(which)
    if images.dtype != np.uint8:
        return images[ids]
    return filled(what, (len(ids), *images.shape[1:]), lambda part: images[ids[part]])


def read(path: Path) -> dict[str, Any] | None:
    """A stored record with its arrays memory-mapped; None where there is none, or it is damaged."""
    try:
        stored = json.loads(intake.read_bytes(path / RECORD))
        if stored["entry"] != path.name:
            raise ValueError(f"it was written as {stored['entry']}")
        load = partial(np.load, mmap_mode="r", allow_pickle=False)
        arrays = {name: np.asarray(load(path / f"{name}.npy")) for name in stored["checksums"]}
        for name, checksum in stored["checksums"].items():
            if zlib.crc32(np.ascontiguousarray(arrays[name]).data) != checksum:
                raise ValueError(f"{name}.npy has changed since it was written")
    except FileNotFoundError as error:
        if path.exists():
            warnings.warn(f"{path}: a damaged cache entry is written anew ({error}).", stacklevel=2)
        return None
    except (ValueError, KeyError, TypeError, OSError, EOFError, RecursionError, UserError) as error:
        warnings.warn(f"{path}: a damaged cache entry is written anew ({error}).", stacklevel=2)
        return None
    values = {name: tuple(v) if isinstance(v, list) else v for name, v in stored["values"].items()}
    return {**arrays, **values}


def through(
    name: str, files: Callable[[], Sequence[str | Path]], build: Callable[[], dict[str, Any]], how: str = ""
) -> dict[str, Any]:
    """The record stored for the present state of `files`, else a built one, which is then stored.

    Of several processes that miss it at once, one builds and the others wait. Where the cache
    cannot be written, or others can write to it, the built record is returned with a warning.

    Args:
        name: Dataset, part of the entry's name.
        files: Lists all files that the content depends on.
        build: Arrays and JSON-ready values by name.
        how: The files are read, where that is not as usual.
    Raises:
        UserError: the files changed while they were read.
    """
    present = key(name, files(), how)
    try:
        path = entry_path(name, present)
        intake.private_folder(path.parent, ours=not os.environ.get(CACHE))
        if os.path.lexists(path):
            intake.check_ours(path, *path.iterdir())
            if (stored := read(path)) is not None:
                return stored
        from filelock import FileLock  # here, because --help needs no lock

        lock = FileLock(path.with_name(f".{path.name}.lock"))
        lock.acquire()
    except (OSError, RuntimeError) as error:  # the latter: no home, or a file system without locks
        return _unstored(name, build(), error)
    try:
        return _stored(name, files, build, path, how)
    finally:
        lock.release()


def _stored(
    name: str, files: Callable[[], Sequence[str | Path]], build: Callable[[], dict[str, Any]], path: Path, how: str
) -> dict[str, Any]:
    """The entry at `path`, built and written where there is none that is good; the caller holds its lock."""
    if path.exists():
        if (stored := read(path)) is not None:
            return stored
        shutil.rmtree(path)
    built = build()
    if entry_path(name, key(name, files(), how)) != path:
        raise UserError(f"{name}: its files changed while they were read; run again when they are complete.")
    try:
        save(path, built)
    except OSError as error:
        return _unstored(name, built, error)
    return read(path) or built


def _unstored(name: str, built: dict[str, Any], error: Exception) -> dict[str, Any]:
    why = error if isinstance(error, intake.NotOurs) else f"it cannot be written ({error})"
    warnings.warn(
        f"{name}: the cache is not used, {why}: so every load reads the source. Set {CACHE} to a folder that you "
        "can write to, and nobody else.",
        stacklevel=4,
    )
    return built
