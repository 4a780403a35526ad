"""CIFAR as torchvision has it: folders of pickles, or their archives. Same order, names and content as by tfds.

The pickles are those that were published, byte for byte, and even of these nothing is built but arrays of bytes,
lists, dictionaries and texts.
"""

from __future__ import annotations

import hashlib
import io
import pickle
import tarfile
import zlib
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

import numpy as np

from datadiet import commands
from datadiet.data.dataset import Splits
from datadiet.data.reading import AS_IT_IS
from datadiet.data.sources import tfds_folder
from datadiet.data.sources.base import prepare_command
from datadiet.data.sources.published import CIFAR_PICKLES, CifarPickles, verify
from datadiet.errors import UserError
from datadiet.intake import read_bytes

MOST = 2**28  # bytes of one file; the largest published one has 155 million


class Place(NamedTuple):
    """Where torchvision's files were found: their folder, or their archive."""

    path: Path
    packed: bool


def find(name: str, data_dir: Path | None) -> Place | None:
    """torchvision's files in data_dir, or data_dir itself; None where there are none, or what tfds prepared is there.

    Raises:
        UserError: neither is there.
    """
    root, known = tfds_folder.root(data_dir), CIFAR_PICKLES[name]
    first = known.train[0]
    folders = [root / known.folder, *([root] if root.name == known.folder else [])]
    found = [Place(folder, False) for folder in folders if (folder / first).is_file()]
    if (root / known.archive.file_name).is_file():
        found.append(Place(root / known.archive.file_name, True))
    try:
        tfds_folder.find(name, name, data_dir)
    except UserError:
        if found:
            return found[0]
        raise UserError(
            f"{name}: {root} has neither {name}/<version> as tensorflow-datasets prepares it, nor torchvision's "
            f"{known.folder}/ or {known.archive.file_name}. Training never downloads: prepare it with "
            f"{prepare_command(name, data_dir)}, or name the folder that has one with "
            f"{commands.option('data_dir', 'FOLDER')}."
        ) from None
    return None


def files(name: str, data_dir: Path | None) -> list[Path]:
    """Every file that the content depends on."""
    place = find(name, data_dir)
    if place is None:
        return tfds_folder.prepared_files(name, name, data_dir, AS_IT_IS)
    found = [place.path] if place.packed else [place.path / file for file in CIFAR_PICKLES[name].digests]
    return [file for file in found if file.is_file()]  # what is missing is told when it is read


def count(name: str, data_dir: Path | None) -> int:
    """N, a published number, known before the data is there."""
    return tfds_folder.COUNTS[name][0]


def load(name: str, data_dir: Path | None) -> Splits:
    """The training and the test set, from what tfds prepared or else from torchvision's files.

    Raises:
        UserError: neither is there, or it is damaged or other data than was published.
    """
    place = find(name, data_dir)
    if place is None:
        return tfds_folder.load_prepared(name, name, data_dir, AS_IT_IS)
    known = CIFAR_PICKLES[name]
    contents = _members(place.path, known) if place.packed else _files(place.path, known)
    told = {file: _unpickled(place.path, file, content) for file, content in contents.items()}
    read = [_examples(name, place.path, known, [told[file] for file in split]) for split in (known.train, known.test)]
    (train, train_labels), (test, test_labels) = read
    counts, expected = (len(train), len(test)), tfds_folder.COUNTS[name]
    if counts != expected:
        raise UserError(f"{name}: {place.path} has {counts[0]} + {counts[1]} examples; expected {expected}.")
    ids, test_ids = (np.array([f"{split}_{i:05d}" for i in range(n)]) for split, n in zip(("train", "test"), counts))
    names = tuple(_text(one) for one in told[known.meta][known.class_names])
    return Splits(train, train_labels, test, test_labels, ids, names, test_ids)


def _members(path: Path, known: CifarPickles) -> dict[str, bytes]:
    """The files of an archive, by name; nothing is extracted."""
    verify(path, known.archive)
    found: dict[str, bytes] = {}
    try:
        with tarfile.open(path, "r|gz") as tar:
            for member in tar:
                inside = PurePosixPath(member.name)
                wanted = inside.name in known.digests and inside.parent.name == known.folder
                if wanted and member.size <= MOST and (file := tar.extractfile(member)) is not None:
                    found[inside.name] = file.read()
    except (tarfile.TarError, EOFError, OSError, zlib.error) as error:
        raise UserError(f"{path} is damaged ({error}). Fetch it again from {known.archive.url}.") from error
    return {file: _published(path, known, file, found.get(file, b"")) for file in known.digests}


def _files(folder: Path, known: CifarPickles) -> dict[str, bytes]:
    """The files of a folder, by name."""
    found = {}
    for file in known.digests:
        try:
            found[file] = _published(folder, known, file, read_bytes(folder / file, MOST))
        except OSError as error:
            raise UserError(
                f"{folder / file} cannot be read ({error.strerror}); extract {known.archive.file_name} again."
            ) from error
    return found


def _published(where: Path, known: CifarPickles, file: str, content: bytes) -> bytes:
    """The content of a file, once it is the published one."""
    got = hashlib.md5(content, usedforsecurity=False).hexdigest()
    if got != known.digests[file]:
        raise UserError(
            f"{where}: {file} is not as it was published ({len(content)} bytes with md5 {got}; expected md5 "
            f"{known.digests[file]}). Fetch {known.archive.url} and extract it again; data of your own are read as "
            "npz:FILE."
        )
    return content


# --- pickles ----------------------------------------------------------------------------------


class _Named:
    """The class of arrays where a pickle names it: nothing that can be called."""


def _empty_array(kind: object, shape: object, code: object) -> np.ndarray:
    if kind is not _NDARRAY or shape != (0,):
        raise pickle.UnpicklingError(f"an array of {shape}")
    return np.empty(0, np.uint8)


def _bytes_type(code: object, *align_and_copy: object) -> np.dtype:
    if code not in (b"u1", "u1"):
        raise pickle.UnpicklingError(f"an array of {code!r}")
    return np.dtype("u1", copy=True)  # type: ignore[call-overload]  its state is set, that of the shared one never


_NDARRAY = _Named()
_ALLOWED: dict[tuple[str, str], Any] = {
    ("numpy.core.multiarray", "_reconstruct"): _empty_array,
    ("numpy", "ndarray"): _NDARRAY,
    ("numpy", "dtype"): _bytes_type,
}


class Confined(pickle.Unpickler):
    """Reads dictionaries, lists, numbers, texts and arrays of bytes; refuses whatever else a pickle asks for."""

    def find_class(self, module: str, name: str) -> Any:
        try:
            return _ALLOWED[module, name]
        except KeyError:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}") from None


def _unpickled(where: Path, file: str, content: bytes) -> dict[str, Any]:
    """What a pickle of Python 2 holds, by name.

    Raises:
        UserError: it is damaged, or holds other things.
    """
    try:
        found = Confined(io.BytesIO(content), encoding="bytes").load()
        return {_text(key): value for key, value in found.items()}
    except Exception as error:  # pickles fail in any way
        raise UserError(f"{where}: {file} cannot be read as a file of CIFAR ({error}); extract it again.") from error


def _text(value: bytes | str) -> str:
    return value.decode() if isinstance(value, bytes) else value


def _examples(
    name: str, where: Path, known: CifarPickles, parts: list[dict[str, Any]]
) -> tuple[np.ndarray, np.ndarray]:
    """Images uint8 [N, 32, 32, 3] and labels int32 [N] of some files in turn."""
    try:
        rows = np.concatenate([part["data"].reshape(-1, 3, 32, 32) for part in parts])
        labels = np.concatenate([np.asarray(part[known.labels], np.int32) for part in parts])
    except (KeyError, ValueError, AttributeError, TypeError) as error:
        raise UserError(f"{name}: {where} holds other things than images of 32 x 32 ({error!r}).") from error
    return np.ascontiguousarray(rows.transpose(0, 2, 3, 1)), labels
