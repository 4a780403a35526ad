"""Anybody's data: a folder of images, or arrays in an npz file."""

from __future__ import annotations

import os
import struct
import zipfile
import zlib
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple
from unicodedata import normalize

import numpy as np
from numpy.lib.npyio import NpzFile

from datadiet.data.dataset import Splits, check_lengths, numbered
from datadiet.data.reading import AS_IT_IS, Reading, remark
from datadiet.data.sources.arrays import WHOLE, Arrays, as_examples, as_labels, find_splits, has_labels, texts
from datadiet.data.sources.base import Obstacles, Origins
from datadiet.data.sources.splits import TEST, TRAIN, choose, divide, meant, named, parted, spelled_alike, tell_numbers
from datadiet.data.sources.walk import entries, walk
from datadiet.errors import UserError
from datadiet.intake import check_npy, is_much, npy_map
from datadiet.printable import visible

OTHERS = frozenset({".txt", ".csv", ".json", ".xml", ".md", ".py", ".html", ".db", ".ini", ".zip", ".gz", ".tar"})
PIECE = 2**22  # bytes read at once
SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".webp", ".ppm", ".pgm", ".tif", ".tiff", ".gif")


def resolve_path(path: str, data_dir: Path | None) -> Path:
    """A path of the user's, taken from data_dir where one is given.

    Raises:
        UserError: the home of a user that there is not, what lies in a folder that others may not enter, or no path.
    """
    try:
        found = ((data_dir or Path()).expanduser() / Path(path).expanduser()).absolute()
        with suppress(FileNotFoundError, NotADirectoryError, ValueError):  # which the source tells, and what it expects
            os.stat(found)
    except (RuntimeError, OSError) as error:
        raise UserError(f"{path}: expected a path that can be read ({error}).") from None
    return found


# --- folder:PATH --------------------------------------------------------------------------------


class Listed(NamedTuple):
    """Images of a folder, by their paths below that of their split, CLASS/…, sorted; see `walk`."""

    folders: list[Path]  # of the training set, and of the test set where that has one
    files: list[list[str]]  # in each


def _listed(path: str, data_dir: Path | None, reading: Reading, obstacles: Obstacles) -> Listed:
    """Raises UserError where there is nothing to read; other obstacles are added to those given."""
    folders = _split_folders(path, data_dir, reading, obstacles)
    files = [_images(obstacles, *pair) for pair in zip(folders, walk(obstacles.name, *folders))]
    if not files[0]:
        obstacles.add(f"no image in {folders[0]}; expected {folders[0]}/CLASS/IMAGE")
        obstacles.check()
    return Listed(folders, files)


def _split_folders(path: str, data_dir: Path | None, reading: Reading, obstacles: Obstacles) -> list[Path]:
    """Of the training and of the test set, whatever the case of their names; of the first alone, where there is no
    other. Without any, folders of classes are all that there is."""
    root = resolve_path(path, data_dir)
    there = _by_split(root)
    trains = named(there, TRAIN)
    within = {name: _folders(root / folder) for name, folder in there.items()}
    known = {normalize("NFC", one) for name in trains for one in within[name]}
    labelled = {name: any(normalize("NFC", one) in known for one in within[name]) for name in there}
    shown = [f"{folder} of {', '.join(within[name][:5])}" if known and within[name] and not labelled[name] else folder
             for name, folder in [*there.items()][:10]]  # fmt: skip
    got = f"got {', '.join(shown) or 'no folder'}{' …' if len(there) > 10 else ''}"
    expected = f"expected {root}/train/CLASS/IMAGE and {root}/test/CLASS/IMAGE (or {', '.join(TEST[1:])}); {got}"
    whole = not trains and not named(there, TEST) and len(there) > 1
    if not trains and not whole:
        obstacles.add(f"no folder {root / 'train'}; {expected}")
        obstacles.check()
    train, test = choose(obstacles, {".": True} if whole else labelled, reading, expected, "." if whole else None)
    if train is None:
        obstacles.check()
    if not obstacles.found:
        _tell_folders(obstacles.name, there, labelled, within, (train, test))
    return [root / there.get(name, name) for name in (train, test) if name is not None]


def _tell_folders(
    name: str,
    there: dict[str, str],
    labelled: dict[str, bool],
    within: dict[str, list[str]],
    chosen: Sequence[str | None],
) -> None:
    """Say which folders are read as what, and which of splits are not."""
    if others := [f"{folder} is read as {split}" for split, folder in there.items() if folder != split]:
        remark(f"{name}: {', '.join(others)}.")
    if unused := [split for split in labelled if labelled[split] and split not in (*chosen, *named(there, TEST))]:
        remark(f"{name}: {', '.join(unused)} is not used.")
    inner = sorted({one for split in within for one in within[split]}) if chosen[0] == "." else []
    if named(inner, TRAIN) and named(inner, TEST):
        splits = ", ".join(named(inner, (*TRAIN, *TEST)))
        remark(f"{name}: {splits} within folders of classes are not told apart.")


def _folders(root: Path) -> list[str]:
    """Names of the folders in one, without those that are hidden."""
    return sorted(entry.name for entry in entries(str(root)) if entry.is_dir()) if root.is_dir() else []


def _by_split(root: Path) -> dict[str, str]:
    """Folders in one by the splits that they are of; see `meant`. What has no folders within is itself a class."""
    there = _folders(root)
    found = meant(there)
    return found if all(_folders(root / found[one]) for one in named(found, TRAIN)) else {name: name for name in there}


def _images(obstacles: Obstacles, folder: Path, listed: list[str]) -> list[str]:
    found = [path for path in listed if "/" in path and is_image(folder, path)]
    if len(found) < len(listed):
        first = min(set(listed).difference(found))
        left = len(listed) - len(found)
        remark(f"{obstacles.name}: {left} files are no images of a class: {folder / first} …")
    classes = {path[: path.index("/")] for path in found}
    if empty := [one for one in _folders(folder) if one not in classes]:
        several = f" and {len(empty) - 1} more" if len(empty) > 1 else ""
        obstacles.add(f"no image in {folder / empty[0]}{several}; expected some in each folder of a class")
    return found


def is_image(folder: Path, path: str) -> bool:
    """By its suffix; where that tells nothing, by how it begins."""
    if path.lower().endswith(SUFFIXES):
        return True
    from datadiet.data.sources.images import looks_like_one

    return os.path.splitext(path)[1].lower() not in OTHERS and looks_like_one(f"{folder}/{path}")


def folder_files(path: str, data_dir: Path | None, reading: Reading) -> list[str]:
    """Every image of both splits."""
    listed = _listed(path, data_dir, reading, Obstacles(f"folder:{path}"))
    return [f"{folder}/{file}" for folder, files in zip(*listed) for file in files]


def folder_origins(path: str, data_dir: Path | None, reading: Reading) -> Origins:
    """The folder of the training images: of a split, else that of the classes itself."""
    root = resolve_path(path, data_dir)
    there = _by_split(root)
    train = next((there[split] for split in named(there, TRAIN)), None)
    return Origins(root=root) if train is None else Origins(visible(train), root, f"{train}/")


def count_folder(path: str, data_dir: Path | None, reading: Reading) -> int:
    """N, by listing the folders."""
    listed = _listed(path, data_dir, reading, obstacles := Obstacles(f"folder:{path}"))
    obstacles.check()
    return len(listed.files[0])


def load_folder(path: str, data_dir: Path | None, reading: Reading) -> Splits:
    """Images in train/CLASS/… and test/CLASS/…; ids are paths below train, and their order is the canonical one.

    Where there is no test set, a fraction of train/CLASS/… or, without any splits, of CLASS/… is one. Ids and names of
    classes that are not UTF-8 are spelled by `visible`.

    Raises:
        UserError: no test split, an empty class, a class only in test, unreadable images, images of several sizes;
            all of these that there are.
    """
    from datadiet.data.sources.images import read_images

    obstacles = Obstacles(f"folder:{path}")
    folders, listed = _listed(path, data_dir, reading, obstacles)
    names = [file for files in listed for file in files]
    given = [name[: name.index("/")] for name in names]
    count = len(listed[0])
    same = spelled_alike(obstacles.name, given[:count], given[count:])
    class_names = sorted({same[one] for one in given[:count]})
    if unknown := sorted({same[one] for one in given[count:]}.difference(class_names)):
        shown = ", ".join(unknown[:10])
        obstacles.add(
            f"class {shown} is present only in the test split; {folders[0]} has {', '.join(class_names[:20])}"
        )
    paths = [f"{folder}/{file}" for folder, files in zip(folders, listed) for file in files]
    images = read_images(obstacles, paths, lambda i: Path(paths[i]), reading)
    obstacles.check()
    tell_numbers(obstacles.name, list(map(visible, class_names)))
    index = {one: i for i, one in enumerate(class_names)}
    labels = np.array([index[same[one]] for one in given], np.int32)[images.good]
    ids = np.array([visible(name) for name in names])[images.good]
    test = images.good >= count
    if len(listed) == 1 and reading.test_fraction is not None:
        test = divide(obstacles.name, ids, labels, reading.test_fraction)
    return parted(obstacles.name, images.pixels, labels, ids, test, tuple(map(visible, class_names)), images.skipped)


# --- npz:PATH -----------------------------------------------------------------------------------


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
    return Chosen(there[train or WHOLE], there[test] if test else None, labels)


def count_npz(path: str, data_dir: Path | None, reading: Reading) -> int:
    """N, from the labels alone."""
    train, _, labels = _chosen(path, data_dir, reading, obstacles := Obstacles(f"npz:{path}"))
    obstacles.check()
    return len(labels[str(train.labels)])


def load_npz(path: str, data_dir: Path | None, reading: Reading) -> Splits:
    """Training and test examples and their labels, called as in keras (x_train), scikit-learn (X_train) or MedMNIST
    (train_images), and, optionally, ids_train; in file order. See `as_examples` and `as_labels`.

    Without a test set, a fraction of the training set is one.

    Raises:
        UserError: an array is missing or of another form than images or vectors with labels.
    """
    name = f"npz:{path}"
    train, test, labels = _chosen(path, data_dir, reading, obstacles := Obstacles(name))
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
    (y_train, y_test), class_names = as_labels(name, given_labels)
    ids = [_ids(name, arrays, one, count) for one, count in ((train, len(examples)), (test, len(others))) if one]
    if test is None and reading.test_fraction is not None:
        check_lengths(name, "train", examples, y_train, ids[0])
        held = divide(name, ids[0], y_train, reading.test_fraction)
        return parted(name, examples, y_train, ids[0], held, class_names)
    return Splits(examples, y_train, others, y_test, ids[0], class_names, ids[1])


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
