"""Images that a csv file lists: path, label and, optionally, split."""

from __future__ import annotations

import os
import re
import stat
import unicodedata
import warnings
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from datadiet.data.dataset import Splits
from datadiet.data.sources.arrays import as_labels
from datadiet.data.sources.delimited import Table, candidates, named, plain, read_table, windows
from datadiet.data.sources.own import TEST_FOLDERS, TRAIN_FOLDERS, resolve_path
from datadiet.errors import UserError
from datadiet.printable import visible

LABELS = (
    "label", "labels", "class", "classes", "classname", "classlabel", "labelname", "classid", "labelid", "category",
    "target", "y",
)  # fmt: skip
ROLES = {
    "path": (
        "path", "file", "files", "filename", "filenames", "filepath", "filepaths", "paths", "image", "images",
        "imagepath", "imagefile", "imagefilename", "imagename", "img", "imgpath", "imgname",
    ),
    "label": LABELS,
    "split": ("split", "set", "subset", "partition", "dataset"),
    "kept": ("kept",),
}  # fmt: skip
_ANSWERS = {"true": True, "1": True, "": True, "false": False, "0": False}  # in a column `kept`
_WHOLE = re.compile(r"-?(0|[1-9]\d*)(\.0*)?")


class Listing(NamedTuple):
    """What a csv file lists, in its order."""

    ids: list[str]  # paths from the file's folder on, with '/'
    files: list[str]
    labels: list[str]  # '' where there is none
    names: dict[str, str]  # of classes by label, where another column tells them
    splits: list[str]  # as they are written there; [] without such a column


def read_listing(path: str, data_dir: Path | None) -> Listing:
    """All rows of a csv file.

    Raises:
        UserError: it is no such file; or it names every kind of obstacle at once.
    """
    name, file = f"csv:{path}", resolve_path(path, data_dir)
    table = _kept(name, read_table(name, file, ROLES, ("path", "label")))
    obstacles: list[str] = []
    cells = _column(table, "path", obstacles)
    labels, names = _labels(name, table, obstacles)
    splits = [windows(split.strip()) for split in _column(table, "split", obstacles)]
    found = [_find(str(file.parent), cell) for cell in cells]
    listing = Listing([visible(one) for one, _ in found], [path for _, path in found], labels, names, splits)
    obstacles += _gaps(table, cells, listing) + _absent(cells, listing) + _repeated(listing)
    if not table.rows:
        obstacles.append("it has no rows below its header")
    if obstacles:
        raise UserError("\n- ".join([f"{name}: {file} cannot be used as it is:", *obstacles]))
    return listing


# --- columns ----------------------------------------------------------------------------------


def _kept(name: str, table: Table) -> Table:
    """Without the rows that a column `kept` leaves out."""
    column = next(iter(candidates(table.header, ROLES["kept"])), None)
    if column is None:
        return table
    answers = [_ANSWERS.get(cell.strip().lower()) for cell in table.column(column)]
    if None in answers:
        line, cell = table.lines[answers.index(None)], table.column(column)[answers.index(None)]
        raise UserError(f"{name}: kept={cell!r} in line {line}; expected true, false, 1 or 0.")
    if out := answers.count(False):
        warnings.warn(f"{name}: {out} rows that are not kept are left out.", stacklevel=3)
    pairs = [pair for pair, kept in zip(zip(table.rows, table.lines), answers) if kept]
    return Table(table.header, [row for row, _ in pairs], [line for _, line in pairs])


def _column(table: Table, role: str, obstacles: list[str]) -> list[str]:
    """Cells of the column that a role has; [] where there is none."""
    found = candidates(table.header, ROLES[role])
    if len(found) > 1:
        obstacles.append(f"{' and '.join(found)} may each be the {role}: expected one of them, or one called {role}")
    return table.column(found[0]) if found else []


def _labels(name: str, table: Table, obstacles: list[str]) -> tuple[list[str], dict[str, str]]:
    """Labels, and names of classes by label. Columns that tell the same classes are one: numbers, and their names."""
    columns = {one: [windows(cell.strip()) for cell in table.column(one)] for one in table.header if plain(one) in LABELS}
    first = next((one for one in columns if plain(one) == LABELS[0]), next(iter(columns)))
    others = [one for one in columns if one != first]
    same = [one for one in others if _same_classes(columns[first], columns[one])]
    unlike = [one for one in others if one not in same]
    if unlike and plain(first) != LABELS[0]:
        obstacles.append(f"{' and '.join([first, *unlike])} may each be the label: expected one of them, or one called "
                         "label")  # fmt: skip
    elif unlike:
        warnings.warn(f"{name}: {first} is the label; {named(unlike)} is not used.", stacklevel=3)
    numbers = [one for one in (first, *same) if all(map(_WHOLE.fullmatch, columns[one]))]
    texts = [one for one in (first, *same) if one not in numbers]
    if numbers and texts:
        return columns[numbers[0]], dict(zip(columns[numbers[0]], columns[texts[0]]))
    return columns[first], {}


def _same_classes(one: Sequence[str], other: Sequence[str]) -> bool:
    return len(set(zip(one, other))) == len(set(one)) == len(set(other))


# --- files ------------------------------------------------------------------------------------


def _find(folder: str, cell: str) -> tuple[str, str]:
    """The path of an image from the folder of the csv file on, and its file; there or not.

    A path may be written on Windows, in another form of Unicode or in another encoding than the names of the files.
    """
    text = windows(cell)
    forms = [text, *([unicodedata.normalize(form, text) for form in ("NFC", "NFD")] if not text.isascii() else [])]
    tries = dict.fromkeys([cell, cell.strip(), *forms, *(one.replace("\\", "/") for one in forms)])
    for path in tries if cell.strip() else ():
        file = os.path.normpath(os.path.join(folder, path))
        if os.path.exists(file):
            return file.removeprefix(f"{folder.rstrip('/')}/"), file
    return text, os.path.join(folder, text)


def _gaps(table: Table, cells: list[str], listing: Listing) -> list[str]:
    """Rows without a path, or without a label where others of their split have one."""
    splits = listing.splits or [""] * len(cells)
    labelled = {split for split, label in zip(splits, listing.labels) if label}
    gaps = {
        "path": [line for line, cell in zip(table.lines, cells) if not cell.strip()],
        "label": [
            line for line, label, split in zip(table.lines, listing.labels, splits)
            if not label and (split in labelled or not listing.splits)
        ],
        "split": [line for line, split in zip(table.lines, splits) if not split and listing.splits],
    }  # fmt: skip
    return [f"{len(at)} rows without a {what}, in lines {named(list(map(str, at)))}" for what, at in gaps.items() if at]


def _absent(cells: list[str], listing: Listing) -> list[str]:
    absent, odd = [], []
    for cell, file in zip(cells, listing.files):
        try:
            regular = stat.S_ISREG(os.stat(file).st_mode)
        except (OSError, ValueError):
            absent += [cell] if cell.strip() else []
        else:
            odd += [] if regular or not cell.strip() else [cell]
    told = f"paths are taken from its folder, {os.path.dirname(listing.files[0])}" if listing.files and absent else ""
    kinds = ((absent, "files are not there"), (odd, "paths are no regular files"))
    return [
        f"{len(found)} of {len(cells)} {what}: {named(found)}{f' ({told})' if found is absent else ''}"
        for found, what in kinds if found
    ]  # fmt: skip


def _repeated(listing: Listing) -> list[str]:
    """Files that are listed several times: with several labels, in several splits, or just so."""
    again = {file for file, times in Counter(listing.files).items() if times > 1}
    told: dict[str, set[tuple[str, str]]] = {}
    shown: dict[str, str] = {}
    splits = listing.splits or [""] * len(listing.files)
    for one, file, label, split in zip(listing.ids, listing.files, listing.labels, splits):
        if file in again and one:
            told.setdefault(file, set()).add((label, split))
            shown[file] = one
    labels = {file: sorted({label for label, _ in pairs}) for file, pairs in told.items()}
    several = [f"{shown[file]} ({', '.join(found)})" for file, found in labels.items() if len(found) > 1]
    mixed = [shown[file] for file, pairs in told.items() if len(labels[file]) == 1 and len(pairs) > 1]
    twice = [shown[file] for file, pairs in told.items() if len(pairs) == 1]
    kinds = ((several, "have several labels"), (mixed, "are in several splits"), (twice, "are listed several times"))
    return [f"{len(found)} images {what}: {named(found)}; expected one row each" for found, what in kinds if found]


# --- csv:PATH ---------------------------------------------------------------------------------


def _split_rows(path: str, listing: Listing) -> tuple[list[int], list[int]]:
    """Rows of the training and of the test set."""
    name, words = f"csv:{path}", [split.lower() for split in listing.splits]
    labelled = {word for word, label in zip(words, listing.labels) if label}
    train = next((word for word in TRAIN_FOLDERS if word in labelled), None)
    tests = [word for word in TEST_FOLDERS if word in labelled]
    if train is None or not tests:
        raise UserError(f"{name}: splits {named(sorted(set(words)))}")
    rows = {split: [i for i, word in enumerate(words) if word == split] for split in (train, tests[0])}
    return rows[train], rows[tests[0]]


def csv_files(path: str, data_dir: Path | None) -> list[str | Path]:
    """The csv file and every image that it lists."""
    return [resolve_path(path, data_dir), *read_listing(path, data_dir).files]


def count_csv(path: str, data_dir: Path | None) -> int:
    """N, from the rows."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what there is to say is said when they are loaded
        return len(_split_rows(path, read_listing(path, data_dir))[0])


def load_csv(path: str, data_dir: Path | None) -> Splits:
    """Images that a csv file lists, in its order; ids are their paths.

    Raises:
        UserError: see `read_listing`; no test split, an unreadable image, images of different sizes.
    """
    from datadiet.data.sources.images import read_images

    listing = read_listing(path, data_dir)
    train, test = _split_rows(path, listing)
    rows, n = train + test, len(train)
    files = [listing.files[i] for i in rows]
    labels = _values([listing.labels[i] for i in rows])
    (train_labels, test_labels), found = as_labels(f"csv:{path}", {"train": labels[:n], "test": labels[n:]})
    images = read_images(files, lambda i: Path(files[i]))
    ids = np.array([listing.ids[i] for i in train])
    return Splits(images[:n], train_labels, images[n:], test_labels, ids, found)


def _values(labels: list[str]) -> np.ndarray:
    """Whole numbers where all are, else texts: NA is one."""
    if all(map(_WHOLE.fullmatch, labels)):
        return np.array([int(label.partition(".")[0]) for label in labels], np.int64)
    return np.array(labels, dtype=str)
