"""Anybody's data: a folder of images, or arrays in an npz file."""

from __future__ import annotations

import os
import warnings
import zipfile
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from numpy.lib.npyio import NpzFile

from datadiet.data.dataset import Splits
from datadiet.data.reading import AS_IT_IS, Reading, remark
from datadiet.data.sources.arrays import as_examples, as_labels, find_names, texts
from datadiet.data.sources.base import Origins
from datadiet.data.sources.walk import walk
from datadiet.errors import UserError
from datadiet.intake import check_npy
from datadiet.printable import visible

OTHERS = frozenset({".txt", ".csv", ".json", ".xml", ".md", ".py", ".html", ".db", ".ini", ".zip", ".gz", ".tar"})
SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".bmp", ".webp", ".ppm", ".pgm", ".tif", ".tiff", ".gif"})
TRAIN_FOLDERS = ("train", "training")
TEST_FOLDERS = ("test", "testing", "val", "valid", "validation", "eval")  # the first that exists is the test set


def resolve_path(path: str, data_dir: Path | None) -> Path:
    """A path of the user's, taken from data_dir where one is given."""
    return ((data_dir or Path()).expanduser() / Path(path).expanduser()).absolute()


# --- folder:PATH --------------------------------------------------------------------------------


def _split_folders(path: str, data_dir: Path | None) -> tuple[Path, Path]:
    """Of the training and of the test set, whatever the case of their names."""
    root = resolve_path(path, data_dir)
    there = sorted(p.name for p in root.iterdir() if p.is_dir() and p.name[0] != ".") if root.is_dir() else []
    layout = f"expected {root}/train/CLASS/IMAGE and {root}/test/CLASS/IMAGE (or {', '.join(TEST_FOLDERS[1:])})"
    got = f"got {', '.join(there[:10]) or 'no folder'}{' …' if len(there) > 10 else ''}"
    trains, tests = ([name for wanted in names for name in there if name.lower() == wanted]
                     for names in (TRAIN_FOLDERS, TEST_FOLDERS))  # fmt: skip
    if not trains:
        raise UserError(f"folder:{path}: no folder {root / 'train'}; {layout}; {got}.")
    if not tests:
        raise UserError(f"folder:{path}: no test split: {layout}; {got}.")
    if len(trains) > 1 or tests[0].lower() in [name.lower() for name in tests[1:]]:
        raise UserError(f"folder:{path}: {', '.join(trains + tests)} may each be meant; {layout}, each once.")
    if len(tests) > 1:
        others = ", ".join(tests[1:])
        remark(f"folder:{path}: {tests[0]} is the test set; {others} is not used.")
    return root / trains[0], root / tests[0]


def _image_files(path: str, folders: tuple[Path, Path]) -> list[list[str]]:
    """Images of each split by their path below its folder, CLASS/…, sorted; see `walk`."""
    return [_images(f"folder:{path}", *pair) for pair in zip(folders, walk(f"folder:{path}", *folders))]


def _images(name: str, folder: Path, listed: list[str]) -> list[str]:
    found = [path for path in listed if "/" in path and _is_image(folder, path)]
    if len(found) < len(listed):
        first = min(set(listed).difference(found))
        left = len(listed) - len(found)
        remark(f"{name}: {left} files are no images of a class: {folder / first} …")
    classes = {path[: path.index("/")] for path in found}
    empty = [p.name for p in folder.iterdir() if p.is_dir() and p.name not in classes and not p.name.startswith(".")]
    if empty:
        raise UserError(f"{name}: no image in {folder / min(empty)}; add images or remove the folder.")
    return found


def _is_image(folder: Path, path: str) -> bool:
    """By its suffix; where that tells nothing, by how it begins."""
    from datadiet.data.sources.images import looks_like_one

    suffix = os.path.splitext(path)[1].lower()
    return suffix in SUFFIXES or (suffix not in OTHERS and looks_like_one(f"{folder}/{path}"))


def folder_files(path: str, data_dir: Path | None) -> list[str]:
    """Every image of both splits."""
    folders = _split_folders(path, data_dir)
    return [f"{folder}/{file}" for folder, files in zip(folders, _image_files(path, folders)) for file in files]


def folder_origins(path: str, data_dir: Path | None, reading: Reading = AS_IT_IS) -> Origins:
    """The folder of the training images: of a split, else that of the classes itself."""
    root = resolve_path(path, data_dir)
    there = sorted(p.name for p in root.iterdir() if p.is_dir())
    train = next((name for wanted in TRAIN_FOLDERS for name in there if name.lower() == wanted), None)
    return Origins(root=root) if train is None else Origins(visible(train), root, f"{train}/")


def count_folder(path: str, data_dir: Path | None) -> int:
    """N, by listing the folders."""
    return len(_image_files(path, _split_folders(path, data_dir))[0])


def load_folder(path: str, data_dir: Path | None) -> Splits:
    """Images in train/CLASS/… and test/CLASS/…; ids are paths below train, and their order is the canonical one.

    Ids and names of classes that are not UTF-8 are spelled by `visible`.

    Raises:
        UserError: no test split, an empty class, a class only in test, an unreadable image,
            images of different sizes.
    """
    from datadiet.data.sources.images import read_images

    name = f"folder:{path}"
    folders = _split_folders(path, data_dir)
    train, test = _image_files(path, folders)
    if not train:
        raise UserError(f"{name}: no image in {folders[0]}; expected {folders[0]}/CLASS/IMAGE.")
    train_classes, test_classes = ([file[: file.index("/")] for file in files] for files in (train, test))
    class_names = tuple(sorted(set(train_classes)))
    unknown = sorted(set(test_classes).difference(class_names))
    if unknown:
        raise UserError(
            f"{name}: class {unknown[0]} is present only in the test split; {folders[0]} has {', '.join(class_names)}: "
            f"add training images or remove {folders[1] / unknown[0]}."
        )
    files = [f"{folder}/{file}" for folder, found in zip(folders, (train, test)) for file in found]
    images = read_images(files, lambda i: Path(files[i]))
    index = {label: i for i, label in enumerate(class_names)}
    labels = np.array([index[label] for label in train_classes + test_classes], np.int32)
    n = len(train)
    ids = np.array([visible(file) for file in train])
    return Splits(images[:n], labels[:n], images[n:], labels[n:], ids, tuple(map(visible, class_names)))


# --- npz:PATH -----------------------------------------------------------------------------------


def npz_files(path: str, data_dir: Path | None) -> list[Path]:
    """The npz file itself."""
    file = resolve_path(path, data_dir)
    if not file.is_file():
        raise UserError(f"npz:{path}: no file {file}; expected an npz file with x_train, y_train, x_test, y_test.")
    return [file]


def _arrays(path: str, data_dir: Path | None, wanted: Callable[[list[str]], Sequence[str]]) -> list[np.ndarray]:
    """Arrays of the file by what `wanted` names of those that there are."""
    file = npz_files(path, data_dir)[0]
    try:
        if not zipfile.is_zipfile(file):  # which np.load would read as something else
            raise zipfile.BadZipFile("it is no zip file")
        with np.load(file, allow_pickle=False) as archive:
            return [_array(f"npz:{path}: {key}", archive, key) for key in wanted(archive.files)]
    except (
        ValueError, OSError, EOFError, TypeError, AttributeError, NotImplementedError, RuntimeError, MemoryError,
        SyntaxError, zipfile.BadZipFile, zlib.error,
    ) as error:  # fmt: skip
        raise UserError(f"npz:{path}: {file} cannot be read as npz of plain arrays ({error}); save again.") from error


def _array(what: str, archive: NpzFile, key: str) -> np.ndarray:
    """One array, after a look at its header."""
    packed = archive.zip
    assert packed is not None  # until it is closed
    member = packed.getinfo(f"{key}.npy" if f"{key}.npy" in packed.namelist() else key)
    with packed.open(member) as file:
        check_npy(what, file, member.file_size, member.compress_size)
    return archive[key]


def _ids(values: np.ndarray) -> np.ndarray:
    """Names of examples as text."""
    return texts(values) if values.dtype.kind in "SU" else values.astype(str)


def count_npz(path: str, data_dir: Path | None) -> int:
    """N, from the training labels alone."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what there is to say is said when they are loaded
        return len(_arrays(path, data_dir, lambda there: find_names(f"npz:{path}", there)[1:2])[0])


def load_npz(path: str, data_dir: Path | None) -> Splits:
    """Training and test examples and their labels, called as in keras (x_train), scikit-learn (X_train) or MedMNIST
    (train_images), and, optionally, ids_train; in file order. See `as_examples` and `as_labels`.

    Raises:
        UserError: an array is missing or of another form than images or vectors with labels.
    """
    name = f"npz:{path}"
    names: list[str] = []

    def wanted(there: list[str]) -> list[str]:
        names[:] = [*find_names(name, there), *(key for key in ("ids_train",) if key in there)]
        return names

    found = _arrays(path, data_dir, wanted)
    arrays = dict(zip(names, found, strict=True))
    x, y, x_other, y_other, *ids = names
    x_train, x_test = as_examples(name, {x: arrays[x], x_other: arrays[x_other]})
    (y_train, y_test), class_names = as_labels(name, {y: arrays[y], y_other: arrays[y_other]})
    given = arrays[ids[0]] if ids else np.array([f"train_{i:06d}" for i in range(len(x_train))])
    return Splits(x_train, y_train, x_test, y_test, _ids(given), class_names)
