"""Folders of idx files, as MNIST, EMNIST, KMNIST and their like are published: idx:FOLDER, idx:FOLDER/NAME."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from datadiet.data.dataset import Splits
from datadiet.data.reading import Reading, remark
from datadiet.data.sources.arrays import as_labels
from datadiet.data.sources.base import Obstacles, resolve_path
from datadiet.data.sources.embedded import idx_shape, read_idx
from datadiet.data.sources.splits import choose, divide, parted
from datadiet.data.sources.walk import walk
from datadiet.errors import UserError
from datadiet.intake import read_text

# train-images-idx3-ubyte, t10k-labels.idx1-ubyte.gz, emnist-letters-test-images-idx3-ubyte, qmnist-test-labels-idx2-int
_FILE = re.compile(
    r"(.*?)[-_]?(train|t10k|test)[-_.](images|labels)[-_.]idx(\d)[-_.](?:ubyte|int)(\.gz)?", re.IGNORECASE
)
MAPPING = 2**16  # bytes of a table of characters
USUAL = "train-images-idx3-ubyte, train-labels-idx1-ubyte, t10k-images-idx3-ubyte and t10k-labels-idx1-ubyte"


class Found(NamedTuple):
    """The files of one data set by split and content: ('train', 'images'), …"""

    folder: Path
    prefix: str  # of their names: 'emnist-letters', or ''
    files: dict[tuple[str, str], Path]

    @property
    def name(self) -> str:
        """What follows idx: to mean this one."""
        return str(self.folder / self.prefix) if self.prefix else str(self.folder)


def find(path: str, data_dir: Path | None) -> Found:
    """The data set in a folder, or below it; of several, the one whose name follows the folder's.

    Raises:
        UserError: there is none, or there are several.
    """
    folder = resolve_path(path, data_dir)
    prefix = ""
    if not folder.is_dir() and folder.parent.is_dir():
        folder, prefix = folder.parent, folder.name
    if not folder.is_dir():
        raise UserError(f"idx:{path}: no folder {folder}; expected one with {USUAL}, each plain or .gz.")
    files = sorted(os.listdir(folder)) if prefix else walk(f"idx:{path}", folder)[0]
    there = [one for one in _all(path, folder, files) if one.prefix.lower() == (prefix or one.prefix).lower()]
    there = [one for one in there if one.folder == folder] or there
    if len(there) == 1:
        return there[0]
    if there:
        choices = ", ".join(f"idx:{one.name}" for one in there)
        raise UserError(f"idx:{path}: there are {len(there)} data sets; expected one of {choices}.")
    got = ", ".join(sorted(entry.name for entry in folder.iterdir())[:10]) or "nothing"
    there_is = (
        f"neither a folder {folder / prefix} nor idx files of {prefix} in {folder}"
        if prefix
        else (f"no idx file in {folder}")
    )
    wanted = f"{prefix}-train-images-idx3-ubyte, …" if prefix else USUAL
    raise UserError(f"idx:{path}: there is {there_is}; expected {wanted}, each plain or .gz; got {got}.")


def _all(path: str, folder: Path, files: Sequence[str]) -> list[Found]:
    """Every data set among files below a folder; a plain file counts before the packed one beside it."""
    found: dict[tuple[Path, str], Found] = {}
    for file in sorted(files, key=lambda file: (file.endswith(".gz"), file)):
        whole = folder / file
        if match := _FILE.fullmatch(whole.name):
            prefix, split, what = match[1], match[2].lower(), match[3].lower()
            one = found.setdefault((whole.parent, prefix), Found(whole.parent, prefix, {}))
            taken = one.files.setdefault(("test" if split == "t10k" else split, what), whole)
            if taken.name.removesuffix(".gz") != whole.name.removesuffix(".gz"):
                raise UserError(f"idx:{path}: {taken} and {whole} may both be meant; expected one of them.")
    return sorted(found.values(), key=lambda one: (one.folder, one.prefix))


def _of_splits(obstacles: Obstacles, path: str, found: Found, reading: Reading) -> tuple[list[Path], list[Path]]:
    """Images and labels of the training and of the test set; none of the latter, where a fraction of the former is."""
    there = dict.fromkeys(split for split, what in found.files if what == "images")
    labelled = {split: (split, "labels") in found.files for split in there}
    have = ", ".join(sorted(file.name for file in found.files.values()))
    expected = f"expected {USUAL} (or NAME-train-images-idx3-ubyte, NAME-test-images-idx3-ubyte, …), each plain or .gz"
    if missing := [one for one in ("images", "labels") if ("train", one) not in found.files]:
        obstacles.add(f"{found.folder} has {have}, but no train {' and no train '.join(missing)}; {expected}")
    test = choose(obstacles, labelled, reading, f"{expected}; {found.folder} has {have}")[1]
    obstacles.check()
    train, tested = ([found.files[split, what] for what in ("images", "labels")] if split else []
                     for split in ("train", test))  # fmt: skip
    return train, tested


def _mapping_file(found: Found) -> Path | None:
    """EMNIST's table of labels and characters, where there is one."""
    file = found.folder / f"{found.prefix}-mapping.txt"
    return file if found.prefix and file.is_file() else None


def _characters(name: str, file: Path) -> dict[int, str]:
    """By label its character, or several: '1 65 97' is A and a."""
    try:
        lines = [[int(word) for word in line.split()] for line in read_text(file, MAPPING).splitlines() if line.strip()]
        return {label: "".join(map(chr, codes)) for label, *codes in lines}
    except (OSError, ValueError, OverflowError) as error:
        raise UserError(f"{name}: {file} cannot be read as labels and their characters ({error}).") from error


def idx_files(path: str, data_dir: Path | None, reading: Reading) -> list[Path]:
    """The files of training and test set: images, labels; and EMNIST's table of characters."""
    found = find(path, data_dir)
    mapping = _mapping_file(found)
    train, test = _of_splits(Obstacles(f"idx:{path}"), path, found, reading)
    return [*train, *test, *([mapping] if mapping else [])]


def count_idx(path: str, data_dir: Path | None, reading: Reading) -> int:
    """N, from the header of the training labels."""
    (_, labels), _ = _of_splits(Obstacles(f"idx:{path}"), path, find(path, data_dir), reading)
    shape = idx_shape(labels)
    return shape[0] if shape else 0


def load_idx(path: str, data_dir: Path | None, reading: Reading) -> Splits:
    """Images [N, H, W] and labels [N] of idx files, in file order and named by it, as fashion_mnist's are.

    Raises:
        UserError: a file is missing or damaged, or the files are of other shapes.
    """
    name, found = f"idx:{path}", find(path, data_dir)
    train, test = _of_splits(Obstacles(name), path, found, reading)
    images, labels = _read(name, *train)
    ids = np.array([f"train_{i:05d}" for i in range(len(labels))])
    if test:
        test_images, test_labels = _read(name, *test)
    else:
        test_images, test_labels = images[:0], labels[:0]
    (train_labels, test_labels), names = as_labels(name, {"train": labels, "test": test_labels})
    if mapping := _mapping_file(found):
        characters = _characters(name, mapping)
        numbers = [int(one) for one in names] or range(int(train_labels.max(initial=-1)) + 1)
        names = tuple(characters.get(number, str(number)) for number in numbers)
    if not test and reading.test_fraction is not None:
        tested = divide(name, ids, train_labels, reading.test_fraction)
        return parted(name, images, train_labels, ids, tested, names)
    test_ids = np.array([f"test_{i:05d}" for i in range(len(test_labels))])
    return Splits(images, train_labels, test_images, test_labels, ids, names, test_ids)


def _read(name: str, *files: Path) -> list[np.ndarray]:
    """Images uint8 [N, H, W, D] and labels [N], uint8, or int32 where they came with more, as QMNIST's do."""
    images, labels = (read_idx(file) for file in files)
    if labels.ndim == 2 and labels.dtype != np.uint8:
        remark(f"{name}: {files[1]} has {labels.shape[1]} columns; the first is the class, as in QMNIST.")
        labels = labels[:, 0]
    for file, array, ranks, wanted in zip(files, (images, labels), ((3, 4), (1,)), ("images [N, H, W]", "labels [N]")):
        if array.ndim not in ranks:
            raise UserError(f"{name}: {file} has an array {list(array.shape)}; expected {wanted}.")
    if len(images) != len(labels):
        raise UserError(
            f"{name}: {len(images)} images in {files[0]}, but {len(labels)} labels in {files[1]}; expected as many."
        )
    return [images if images.ndim == 4 else images[..., None], labels]
