"""folder:PATH, images in a folder for each class."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple
from unicodedata import normalize

import numpy as np

from datadiet.data.dataset import Splits
from datadiet.data.reading import Reading, remark
from datadiet.data.sources.base import Obstacles, Origins, resolve_path
from datadiet.data.sources.splits import TEST, TRAIN, choose, divide, meant, named, parted, spelled_alike, tell_numbers
from datadiet.data.sources.walk import entries, walk
from datadiet.printable import visible

OTHERS = frozenset({".txt", ".csv", ".json", ".xml", ".md", ".py", ".html", ".db", ".ini", ".zip", ".gz", ".tar"})
SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".webp", ".ppm", ".pgm", ".tif", ".tiff", ".gif")


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
