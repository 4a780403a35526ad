"""Images that a csv file lists: path, label and, optionally, split."""

from __future__ import annotations

import os
import re
import stat
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple
from unicodedata import normalize

import numpy as np

from datadiet.data.dataset import Splits
from datadiet.data.reading import Reading, remark
from datadiet.data.sources.arrays import as_labels
from datadiet.data.sources.base import Obstacles, Origins, resolve_path
from datadiet.data.sources.delimited import Table, candidates, named, plain, read_table, windows
from datadiet.data.sources.folder import SUFFIXES
from datadiet.data.sources.splits import TEST, TRAIN, choose, divide, parted, spelled_alike
from datadiet.data.sources.splits import named as split_names
from datadiet.errors import UserError
from datadiet.printable import original, visible

LABELS = (
    "label", "labels", "class", "classes", "classname", "classlabel", "labelname", "classid", "labelid", "category",
    "target", "y",
)  # fmt: skip
ROLES = {
    "path": (
        "path", "file", "files", "filename", "filenames", "filepath", "filepaths", "paths", "image", "images",
        "imagepath", "imagefile", "imagefilename", "imagename", "imageid", "img", "imgpath", "imgname",
    ),
    "label": LABELS,
    "split": ("split", "set", "subset", "partition", "dataset"),
    "kept": ("kept",),
}  # fmt: skip
ALL = "all rows"
USUAL = "train, and test or val"
LEFT_OUT = "a column `kept`, false there, leaves them out"
_ANSWERS = {"true": True, "1": True, "": True, "false": False, "0": False}  # in a column `kept`
_WHOLE = re.compile(r"-?(0|[1-9]\d{0,17})(\.0*)?")  # of more digits: a text


class Listing(NamedTuple):
    """What a csv file lists, in its order."""

    folder: str  # that paths are taken from
    ids: list[str]  # paths from the file's folder on, with '/'
    files: list[str]
    labels: list[str]  # '' where there is none
    names: dict[str, str]  # of classes by their number, where another column tells them
    splits: list[str]  # in lower case; [] without such a column
    lines: list[int]  # of the file, from 1
    others: list[str]  # columns that are not used
    like_split: list[str]  # those of them whose cells are all names of splits


def read_listing(obstacles: Obstacles, path: str, data_dir: Path | None) -> Listing:
    """All rows of a csv file.

    Raises:
        UserError: it cannot be read as one, or a column is missing.
    """
    name, file = f"csv:{path}", resolve_path(path, data_dir)
    table = _kept(name, read_table(name, file, ROLES, ("path", "label")))
    labels, names = _labels(obstacles, table)
    splits = [windows(split.strip().lower()) for split in _column(obstacles, table, "split")]
    cells = _column(obstacles, table, "path")
    before, after = _around(name, str(file.parent), cells)
    found = [_find(str(file.parent), f"{before}{cell}{after}" if cell.strip() else "") for cell in cells]
    if not table.rows:
        obstacles.add(f"{file} has no rows below its header")
    ids, files = [visible(one) for one, _ in found], [path for _, path in found]
    others = [one for one in table.header if one and not any(candidates([one], called) for called in ROLES.values())]
    like_split = [one for one in others if _tells_splits(table.column(one))]
    return Listing(str(file.parent), ids, files, labels, names, splits, table.lines, others, like_split)


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
        remark(f"{name}: {out} rows that are not kept are left out.")
    pairs = [pair for pair, kept in zip(zip(table.rows, table.lines), answers) if kept]
    return Table(table.header, [row for row, _ in pairs], [line for _, line in pairs])


def _column(obstacles: Obstacles, table: Table, role: str) -> list[str]:
    """Cells of the column that a role has; [] where there is none."""
    found = candidates(table.header, ROLES[role])
    if len(found) > 1:
        obstacles.add(f"{' and '.join(found)} may each be the {role}; expected one of them, or one called {role}")
    return table.column(found[0]) if found else []


def _tells_splits(cells: Sequence[str]) -> bool:
    """Whether all cells are names of splits, of both kinds."""
    there = {cell.strip().lower() for cell in cells}
    return there <= {*TRAIN, *TEST} and not (there.isdisjoint(TRAIN) or there.isdisjoint(TEST))


def _labels(obstacles: Obstacles, table: Table) -> tuple[list[str], dict[str, str]]:
    """Labels, and names of classes by label. Columns that tell the same classes are one: numbers, and their names."""
    columns = {
        one: [windows(cell.strip()) for cell in table.column(one)] for one in table.header if plain(one) in LABELS
    }
    first = next((one for one in columns if plain(one) == LABELS[0]), next(iter(columns)))
    others = [one for one in columns if one != first]
    same = [one for one in others if _same_classes(columns[first], columns[one])]
    unlike = [one for one in others if one not in same]
    if unlike and plain(first) != LABELS[0]:
        obstacles.add(f"{named([first, *unlike])} may each be the label; expected one of them, or one called label")
    elif unlike:
        remark(f"{obstacles.name}: {first} is the label; {named(unlike)} is not used.")
    numbers = [one for one in (first, *same) if all(map(_WHOLE.fullmatch, filter(None, columns[one])))]
    texts = [one for one in (first, *same) if one not in numbers]
    if numbers and texts:
        pairs = [pair for pair in zip(columns[numbers[0]], columns[texts[0]]) if all(pair)]
        found = _values([number for number, _ in pairs])
        return columns[numbers[0]], {str(number): text for number, (_, text) in zip(found.tolist(), pairs)}
    return columns[first], {}


def _same_classes(one: Sequence[str], other: Sequence[str]) -> bool:
    return len(set(zip(one, other))) == len(set(one)) == len(set(other))


# --- files ------------------------------------------------------------------------------------


def _around(name: str, folder: str, cells: Sequence[str]) -> tuple[str, str]:
    """What stands before and after the cells in the paths that they mean: nothing, or where the first is not there, the
    one folder beside the csv file, and the one suffix, with which it is."""
    first = next((cell.strip() for cell in cells if cell.strip()), "")
    if not first or os.path.exists(_find(folder, first)[1]):
        return "", ""
    folders = ["", *(f"{entry.name}/" for entry in os.scandir(folder) if entry.is_dir())]
    around = [(before, after) for before in folders for after in ("", *SUFFIXES)]
    found = [one for one in around if os.path.isfile(_find(folder, f"{one[0]}{first}{one[1]}")[1])]
    if len(found) != 1:
        return "", ""
    before, after = found[0]
    remark(f"{name}: {first} is read as {before}{first}{after}, and so are the others.")
    return found[0]


def _find(folder: str, cell: str) -> tuple[str, str]:
    """The path of an image from the folder of the csv file on, and its file; there or not.

    A path may be written on Windows, in another form of Unicode or in another encoding than the names of the files, or
    as our own tables write it.
    """
    text = windows(cell.strip())
    forms = [text, *([normalize(form, text) for form in ("NFC", "NFD")] if not text.isascii() else [])]
    tries = dict.fromkeys([cell, cell.strip(), original(text), *forms, *(one.replace("\\", "/") for one in forms)])
    for path in tries if text else ():
        file = os.path.normpath(os.path.join(folder, path))
        if os.path.exists(file):
            return file.removeprefix(f"{folder.rstrip('/')}/"), file
    return text, os.path.join(folder, text)


def _check_rows(obstacles: Obstacles, listing: Listing, rows: list[int]) -> list[int]:
    """Those of some rows whose images can be read; of the others it is told why not."""
    for what, cells in (("path", listing.ids), ("label", listing.labels)):
        if lines := [str(listing.lines[i]) for i in rows if not cells[i]]:
            out = f"; {LEFT_OUT}" if what == "label" else ""
            obstacles.add(f"{len(lines)} rows without a {what}, in lines {named(lines)}{out}")
    _check_repeated(obstacles, listing, rows)
    states = {i: _state(listing.files[i]) for i in rows if listing.ids[i]}
    for state, what in (("absent", "files are not there"), ("odd", "paths are no regular files")):
        if found := [listing.ids[i] for i, one in states.items() if one == state]:
            where = f"paths are taken from {listing.folder}"
            out = f"; {LEFT_OUT}" if len(found) < len(rows) else ""
            obstacles.add(f"{len(found)} of {len(rows)} {what}: {named(found)} ({where}){out}")
    return [i for i, state in states.items() if state == "file"]


def _state(file: str) -> str:
    try:
        return "file" if stat.S_ISREG(os.stat(file).st_mode) else "odd"
    except (OSError, ValueError):
        return "absent"


def _check_repeated(obstacles: Obstacles, listing: Listing, rows: list[int]) -> None:
    """Images that are listed several times: with several labels, in several splits, or just so."""
    times = Counter(listing.files[i] for i in rows if listing.ids[i])
    told: dict[str, list[int]] = {}
    for i in rows:
        if times[listing.files[i]] > 1:
            told.setdefault(listing.files[i], []).append(i)
    several, mixed, twice = [], [], []
    for at in told.values():
        labels = sorted({listing.labels[i] for i in at})
        splits = {listing.splits[i] for i in at} if listing.splits else {""}
        if len(labels) > 1:
            several.append(f"{listing.ids[at[0]]} ({', '.join(labels)})")
        else:
            (mixed if len(splits) > 1 else twice).append(listing.ids[at[0]])
    kinds = ((several, "have several labels"), (mixed, "are in several splits"), (twice, "are listed several times"))
    for found, what in kinds:
        if found:
            obstacles.add(f"{len(found)} images {what}: {named(found)}; expected one row for each")


# --- csv:PATH ---------------------------------------------------------------------------------


def _split_rows(obstacles: Obstacles, listing: Listing, reading: Reading) -> tuple[list[int], list[int]]:
    """Rows of the training and of the test set; none of the latter, where a fraction of the former is it."""
    everything = [*range(len(listing.files))]
    if not listing.splits and listing.like_split:
        column = named(listing.like_split)
        obstacles.add(f"no column split, but all cells of {column} are names of splits: call it split, or leave it out")
        return everything, []
    if not listing.splits:
        if listing.others:
            remark(f"{obstacles.name}: there is no column split; {named(listing.others)} is not used.")
        choose(obstacles, {ALL: True}, reading, f"expected a column split ({USUAL})", train=ALL)
        return everything, []
    labelled = {split for split, label in zip(listing.splits, listing.labels) if label not in ("", "-1")}
    there = {split: split in labelled for split in dict.fromkeys(listing.splits) if split}
    if gaps := [str(listing.lines[i]) for i in everything if not listing.splits[i]]:
        obstacles.add(f"{len(gaps)} rows without a split, in lines {named(gaps)}")
    train, test = choose(obstacles, there, reading, f"expected rows of split {USUAL}")
    if train is None and not split_names(there, TRAIN):
        obstacles.add(f"no rows of split train; got {named(list(there))}")
    unused = [split for split in there if split not in (train, test) and not split_names([split], TEST)]
    if train and unused and not obstacles.found:
        remark(f"{obstacles.name}: rows of split {named(unused)} are not used.")
    return [i for i in everything if listing.splits[i] == train], [i for i in everything if listing.splits[i] == test]


def csv_files(path: str, data_dir: Path | None, reading: Reading) -> list[str | Path]:
    """The csv file and every image that it lists, those that there are."""
    listing = read_listing(Obstacles(f"csv:{path}"), path, data_dir)
    return [resolve_path(path, data_dir), *(file for file in listing.files if _state(file) == "file")]


def csv_origins(path: str, data_dir: Path | None, reading: Reading) -> Origins:
    """The folder of the csv file, from which ids are paths; those of files elsewhere are whole paths."""
    return Origins(root=resolve_path(path, data_dir).parent)


def count_csv(path: str, data_dir: Path | None, reading: Reading) -> int:
    """N, from the rows."""
    obstacles = Obstacles(f"csv:{path}")
    rows = _split_rows(obstacles, read_listing(obstacles, path, data_dir), reading)[0]
    obstacles.check()
    return len(rows)


def load_csv(path: str, data_dir: Path | None, reading: Reading) -> Splits:
    """Images that a csv file lists, in its order; ids are their paths.

    Raises:
        UserError: it names all that stands in the way at once.
    """
    from datadiet.data.sources.images import read_images

    obstacles = Obstacles(f"csv:{path}")
    listing = read_listing(obstacles, path, data_dir)
    train, test = _split_rows(obstacles, listing, reading)
    rows = _check_rows(obstacles, listing, train + test)
    images = read_images(obstacles, [listing.files[i] for i in rows], lambda i: Path(listing.files[rows[i]]), reading)
    obstacles.check()
    ids, labels = np.array([listing.ids[i] for i in rows]), _values([listing.labels[i] for i in rows])
    if labels.dtype.kind == "U":
        alike = spelled_alike(obstacles.name, labels.tolist(), ())
        labels = np.array([alike[label] for label in labels.tolist()], dtype=str)
    n = len(train)
    found, names = as_labels(obstacles.name, {"train": labels[:n], "test": labels[n:]})
    names = _class_names(listing, names, found[0])
    ids, labels, tested = (array[images.good] for array in (ids, np.concatenate(found), np.arange(len(rows)) >= n))
    if not test and reading.test_fraction is not None:
        tested = divide(obstacles.name, ids, labels, reading.test_fraction)
    return parted(obstacles.name, images.pixels, labels, ids, tested, names, images.skipped)


def _class_names(listing: Listing, found: tuple[str, ...], labels: np.ndarray) -> tuple[str, ...]:
    """Names by number, where another column tells them."""
    numbers = found or tuple(map(str, range(1 + int(labels.max(initial=-1)))))
    if not all(number in listing.names for number in numbers):
        return tuple(map(visible, found))
    return tuple(visible(listing.names[number]) for number in numbers)


def _values(labels: list[str]) -> np.ndarray:
    """Whole numbers where all are, else texts: NA is one."""
    if all(map(_WHOLE.fullmatch, labels)):
        return np.array([int(label.partition(".")[0]) for label in labels], np.int64)
    return np.array(labels, dtype=str)
