"""npz:FILE, arrays in an npz file."""

from __future__ import annotations

import os
import struct
import zipfile
import zlib
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.lib.npyio import NpzFile

from datadiet.data.dataset import Splits, check_lengths, numbered
from datadiet.data.reading import AS_IT_IS, Reading, remark
from datadiet.data.sources.arrays import (
    WHOLE,
    Arrays,
    as_examples,
    as_labels,
    find_splits,
    has_labels,
    named_classes,
    texts,
)  # fmt: skip
from datadiet.data.sources.base import Obstacles, resolve_path
from datadiet.data.sources.splits import choose, divide, parted
from datadiet.errors import UserError
from datadiet.intake import check_npy, is_much, npy_map

PIECE = 2**22  # bytes read at once
CLASS_NAMES = ("class_names", "label_names", "target_names")  # arrays of C texts


def npz_files(path: str, data_dir: Path | None, reading: Reading) -> list[Path]:
    """The npz file itself."""
    file = resolve_path(path, data_dir)
    if not file.is_file():
        raise UserError(f"npz:{path}: no file {file}; expected an npz file with x_train, y_train, x_test, y_test.")
    return [file]


def _arrays(path: str, data_dir: Path | None, wanted: Callable[[list[str]], Iterable[str]]) -> dict[str, np.ndarray]:
    """Arrays of the file by name, those that `wanted` names of those that there are."""
    (file,) = npz_files(path, data_dir, AS_IT_IS)
    try:
        with open(file, "rb") as content:
            if not zipfile.is_zipfile(content):  # which np.load would read as something else
                raise zipfile.BadZipFile("it is no zip file")
        with np.load(file, allow_pickle=False) as archive:
            return {key: _array(f"npz:{path}: {key}", file, archive, key) for key in wanted(archive.files)}
    except (
        ValueError, OSError, EOFError, TypeError, AttributeError, NotImplementedError, RuntimeError, MemoryError,
        SyntaxError, zipfile.BadZipFile, zlib.error,
    ) as error:  # fmt: skip
        raise UserError(f"npz:{path}: {file} cannot be read as npz of plain arrays ({error}).") from error


def _array(what: str, path: Path, archive: NpzFile, key: str) -> np.ndarray:
    """One array, after a look at its header. A large one that is stored as it is stays in the file."""
    packed = archive.zip
    assert packed is not None  # until it is closed
    member = packed.getinfo(f"{key}.npy" if f"{key}.npy" in packed.namelist() else key)
    if member.compress_type == zipfile.ZIP_STORED and is_much(member.file_size):
        return _mapped(path, packed, member)
    with packed.open(member) as file:
        check_npy(what, file, member.file_size, member.compress_size)
    return archive[key]


def _mapped(path: Path, packed: zipfile.ZipFile, member: zipfile.ZipInfo) -> np.ndarray:
    """An array of an npz file, mapped from it once all of it has been compared with its checksum."""
    with packed.open(member) as whole:
        while whole.read(PIECE):
            pass
    with open(path, "rb") as file:
        file.seek(member.header_offset + 26)
        names = struct.unpack("<HH", file.read(4))  # lengths of what stands between the zip header and the array
        file.seek(sum(names), os.SEEK_CUR)
        return npy_map(path, file, member.file_size)


class Chosen(NamedTuple):
    """Arrays of the splits that are trained and tested on."""

    train: Arrays
    test: Arrays | None
    labels: dict[str, np.ndarray]  # those of all splits, by name
    names: list[str]  # of all arrays of the file


def _chosen(path: str, data_dir: Path | None, reading: Reading, obstacles: Obstacles) -> Chosen:
    """Raises UserError where there is nothing to read; other obstacles are added to those given."""
    there: dict[str, Arrays] = {}
    names: list[str] = []

    def labels_of(keys: list[str]) -> list[str]:
        names[:], found = keys, find_splits(obstacles.name, keys)
        there.update(found)
        return [arrays.labels for arrays in found.values() if arrays.labels]

    labels = _arrays(path, data_dir, labels_of)
    labelled = {split: one.labels is not None and has_labels(labels[one.labels]) for split, one in there.items()}
    expected = (
        f"it has {', '.join(names) or 'no array'}; expected x_train, y_train, x_test, y_test (or X_…, or train_images, "
        "train_labels, …): np.savez('FILE.npz', x_train=…, y_train=…, x_test=…, y_test=…)"
    )
    train, test = choose(obstacles, labelled, reading, expected, WHOLE if WHOLE in there else None)
    if train is None or not labelled[train]:
        obstacles.found = obstacles.found or [f"no training split: {expected}"]
        obstacles.check()
    return Chosen(there[train or WHOLE], there[test] if test else None, labels, names)


def count_npz(path: str, data_dir: Path | None, reading: Reading) -> int:
    """N, from the labels alone."""
    train, _, labels, _ = _chosen(path, data_dir, reading, obstacles := Obstacles(f"npz:{path}"))
    obstacles.check()
    return len(labels[str(train.labels)])


def load_npz(path: str, data_dir: Path | None, reading: Reading) -> Splits:
    """Training and test examples and their labels, called as in keras (x_train), scikit-learn (X_train) or MedMNIST
    (train_images), and, optionally, ids_train and class_names; in file order. See `as_examples` and `as_labels`.

    Without a test set, a fraction of the training set is one.

    Raises:
        UserError: an array is missing or of another form than images or vectors with labels.
    """
    name = f"npz:{path}"
    train, test, labels, names = _chosen(path, data_dir, reading, obstacles := Obstacles(name))
    obstacles.check()
    keys = [key for one in (train, test) if one for key in (one.examples, one.ids) if key]
    arrays = {**labels, **_arrays(path, data_dir, lambda there: keys)}
    y, nothing = str(train.labels), f"{train.labels} of no examples"
    if test is None or test.labels is None:
        given = {train.examples: arrays[train.examples], nothing: arrays[train.examples][:0]}
        given_labels = {y: arrays[y], nothing: arrays[y][:0]}
    else:
        given = {one.examples: arrays[one.examples] for one in (train, test)}
        given_labels = {y: arrays[y], test.labels: arrays[test.labels]}
    examples, others = as_examples(name, given)
    (y_train, y_test), found = as_labels(name, given_labels)
    class_names = _class_names(path, data_dir, names, found, 1 + int(y_train.max(initial=-1)))
    ids = [_ids(name, arrays, one, count) for one, count in ((train, len(examples)), (test, len(others))) if one]
    if test is None and reading.test_fraction is not None:
        check_lengths(name, "train", examples, y_train, ids[0])
        held = divide(name, ids[0], y_train, reading.test_fraction)
        return parted(name, examples, y_train, ids[0], held, class_names)
    return Splits(examples, y_train, others, y_test, ids[0], class_names, ids[1])


def _class_names(
    path: str, data_dir: Path | None, names: list[str], found: tuple[str, ...], count: int
) -> tuple[str, ...]:
    """Names of C classes by the file, where it tells them; else those that were found in the labels."""
    key = next((one for one in CLASS_NAMES if one in names), None)
    if key is None:
        return found
    try:
        given = _arrays(path, data_dir, lambda there: [key])[key]
        if given.dtype.kind not in "SU":
            raise UserError(f"npz:{path}: {key} is {given.dtype} {list(given.shape)}; expected texts [C].")
        return named_classes(f"npz:{path}", tuple(texts(given.ravel()).tolist()), found, count)
    except UserError as error:  # of data that is whole without it
        remark(f"{error} So {key} is not used.")
        return found


def _ids(name: str, arrays: dict[str, np.ndarray], split: Arrays, count: int) -> np.ndarray:
    """Names of examples as text; numbers where the file has none."""
    if split.ids is None:
        return numbered(split.name or "example", count)
    values = arrays[split.ids]
    values = values[:, 0] if values.ndim == 2 and values.shape[1] == 1 else values
    if values.ndim != 1:
        raise UserError(
            f"{name}: {split.ids} is {values.dtype} {list(values.shape)}; expected one name for each example."
        )
    return texts(values) if values.dtype.kind in "SU" else values.astype(str)
