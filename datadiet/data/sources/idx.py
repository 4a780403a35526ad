"""Folders of idx files, as MNIST, EMNIST, KMNIST and their like are published: idx:FOLDER, idx:FOLDER/NAME."""

from __future__ import annotations

import re
from pathlib import Path
from typing import NamedTuple

import numpy as np

from datadiet.data.dataset import Splits
from datadiet.data.sources.arrays import as_labels
from datadiet.data.sources.embedded import idx_shape, read_idx
from datadiet.data.sources.own import resolve_path
from datadiet.data.sources.walk import walk
from datadiet.errors import UserError
from datadiet.intake import read_text

# train-images-idx3-ubyte, t10k-labels.idx1-ubyte.gz, emnist-letters-test-images-idx3-ubyte
_FILE = re.compile(r"(.*?)[-_]?(train|t10k|test)[-_.](images|labels)[-_.]idx(\d)[-_.]ubyte(\.gz)?", re.IGNORECASE)
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
    there = [one for one in _all(path, folder) if not prefix or one.prefix.lower() == prefix.lower()]
    there = [one for one in there if one.folder == folder] or there
    if len(there) == 1:
        return there[0]
    if there:
        choices = ", ".join(f"idx:{one.name}" for one in there)
        raise UserError(f"idx:{path}: there are {len(there)} data sets; expected one of {choices}.")
    got = ", ".join(sorted(entry.name for entry in folder.iterdir())[:10]) or "nothing"
    wanted = f"files of {prefix} ({prefix}-train-images-idx3-ubyte, …)" if prefix else USUAL
    raise UserError(f"idx:{path}: no idx files in {folder}; expected {wanted}, each plain or .gz; got {got}.")


def _all(path: str, folder: Path) -> list[Found]:
    """Every data set below a folder; a plain file counts before the packed one beside it."""
    found: dict[tuple[Path, str], Found] = {}
    for file in sorted(walk(f"idx:{path}", folder)[0], key=lambda file: (file.endswith(".gz"), file)):
        whole = folder / file
        if match := _FILE.fullmatch(whole.name):
            prefix, split, what = match[1], match[2].lower(), match[3].lower()
            one = found.setdefault((whole.parent, prefix), Found(whole.parent, prefix, {}))
            taken = one.files.setdefault(("train" if split == "train" else "test", what), whole)
            if taken.name.removesuffix(".gz") != whole.name.removesuffix(".gz"):
                raise UserError(f"idx:{path}: {taken} and {whole} may both be meant; expected one of them.")
    return sorted(found.values(), key=lambda one: (one.folder, one.prefix))


def _four(path: str, data_dir: Path | None) -> list[Path]:
    """Training images and labels, test images and labels."""
    found = find(path, data_dir)
    keys = [(split, what) for split in ("train", "test") for what in ("images", "labels")]
    if missing := [" ".join(key) for key in keys if key not in found.files]:
        have = ", ".join(sorted(file.name for file in found.files.values()))
        raise UserError(
            f"idx:{path}: {found.folder} has {have}, but no {' and no '.join(missing)}; expected {USUAL} (or "
            "NAME-train-images-idx3-ubyte, NAME-test-images-idx3-ubyte, …), each plain or .gz."
        )
    return [found.files[key] for key in keys]


def _mapping_file(path: str, data_dir: Path | None) -> Path | None:
    """EMNIST's table of labels and characters, where there is one."""
    found = find(path, data_dir)
    file = found.folder / f"{found.prefix}-mapping.txt"
    return file if found.prefix and file.is_file() else None


def _characters(name: str, file: Path) -> dict[int, str]:
    """By label its character, or several: '1 65 97' is A and a."""
    try:
        lines = [[int(word) for word in line.split()] for line in read_text(file, MAPPING).splitlines() if line.strip()]
        return {label: "".join(map(chr, codes)) for label, *codes in lines}
    except (OSError, ValueError, OverflowError) as error:
        raise UserError(f"{name}: {file} cannot be read as labels and their characters ({error}).") from error


def idx_files(path: str, data_dir: Path | None) -> list[Path]:
    """The four files: training images, training labels, test images, test labels; and EMNIST's table of characters."""
    mapping = _mapping_file(path, data_dir)
    return [*_four(path, data_dir), *([mapping] if mapping else [])]


def count_idx(path: str, data_dir: Path | None) -> int:
    """N, from the header of the training labels."""
    shape = idx_shape(_four(path, data_dir)[1])
    return shape[0] if shape else 0


def load_idx(path: str, data_dir: Path | None) -> Splits:
    """Images [N, H, W] and labels [N] of four idx files, in file order and named by it, as fashion_mnist's are.

    Raises:
        UserError: a file is missing or damaged, or the files are of other shapes.
    """
    name, files = f"idx:{path}", _four(path, data_dir)
    arrays = [read_idx(file) for file in files]
    for file, array, ranks in zip(files, arrays, ((3, 4), (1,), (3, 4), (1,))):
        if array.ndim not in ranks:
            wanted = "images [N, H, W]" if 3 in ranks else "labels [N]"
            raise UserError(f"{name}: {file} has an array {list(array.shape)}; expected {wanted}.")
    train, train_labels, test, test_labels = arrays
    (train_labels, test_labels), names = as_labels(name, {"train": train_labels, "test": test_labels})
    train, test = (array if array.ndim == 4 else array[..., None] for array in (train, test))
    if mapping := _mapping_file(path, data_dir):
        characters = _characters(name, mapping)
        labels = [int(label) for label in names] or range(int(train_labels.max(initial=-1)) + 1)
        names = tuple(characters.get(label, str(label)) for label in labels)
    ids = np.array([f"train_{i:05d}" for i in range(len(train))])
    return Splits(train, train_labels, test, test_labels, ids, names)
