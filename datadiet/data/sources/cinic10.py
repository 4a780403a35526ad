"""CINIC-10 (Darlow et al. 2018): training and validation set together are the training set.

It is read from CINIC-10.tar.gz, from its extracted tree, or from a folder of arrays. Its images
include all of CIFAR-10's.
"""

from __future__ import annotations

import tarfile
import zlib
from pathlib import Path
from typing import NamedTuple

import numpy as np

from datadiet import commands
from datadiet.data.dataset import Splits
from datadiet.data.sources.base import DATA_ROOT, Obstacles, integer_labels, prepare_command
from datadiet.data.sources.images import read_images
from datadiet.data.sources.published import ARCHIVES, verify
from datadiet.data.sources.walk import walk
from datadiet.errors import UserError
from datadiet.home import expanded
from datadiet.intake import check_npy, size_of

CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
SPLITS = ("train", "valid", "test")
PER_CLASS = 9000  # images of each class in each split
FILE_NAME = "CINIC-10.tar.gz"


class Place(NamedTuple):
    """Where CINIC-10 was found, and as what: 'tree', 'arrays' or 'archive'."""

    kind: str
    path: Path

    def names(self) -> list[str]:
        """Of a tree: its images by path from train, valid or test on, sorted."""
        found = zip(SPLITS, walk("cinic10", *(self.path / split for split in SPLITS)))
        return [f"{split}/{name}" for split, names in found for name in names if name.endswith(".png")]


def folder_of(data_dir: Path | None) -> Path:
    """Where a fetched archive is placed."""
    return expanded(data_dir or DATA_ROOT / "cinic10")


def _array_files(folder: Path) -> list[Path]:
    """X and y of train, valid (if any) and test, whatever the case of the letter."""
    found = []
    for split in SPLITS:
        for letter in "Xy":
            paths = [folder / f"{c}_{split}.npy" for c in (letter.upper(), letter.lower())]
            found += [path for path in paths if path.is_file()][:1]
    return found


def find(data_dir: Path | None) -> Place:
    """CINIC-10 in data_dir or a folder cinic10 or CINIC-10 in it.

    Raises:
        UserError: it is not there.
    """
    first = folder_of(data_dir)
    for folder in (first, first / "cinic10", first / "CINIC-10"):
        if all((folder / split).is_dir() for split in SPLITS):
            return Place("tree", folder)
        if (folder / "X_train.npy").is_file():
            return Place("arrays", folder)
        if (folder / FILE_NAME).is_file():
            return Place("archive", folder / FILE_NAME)
    raise UserError(
        f"cinic10: in {first} there is no {FILE_NAME}, no extracted tree (train, valid and test) and no X_train.npy. "
        f"Training never downloads: prepare it with {prepare_command('cinic10', data_dir)}."
    )


def files(data_dir: Path | None) -> list[str]:
    """Every file that the content depends on."""
    place = find(data_dir)
    if place.kind == "tree":
        return [f"{place.path}/{name}" for name in place.names()]
    return list(map(str, _array_files(place.path) if place.kind == "arrays" else [place.path]))


def count(data_dir: Path | None) -> int:
    """N: the training and the validation set, a published number, known before the data is there."""
    return 2 * PER_CLASS * len(CLASSES)


def _archive_members(path: Path) -> dict[str, bytes]:
    """PNG files of the published archive by their path from train, valid or test on."""
    verify(path, ARCHIVES["cinic10"][0])
    members = {}
    try:
        with tarfile.open(path, "r|gz") as tar:
            for member in tar:
                parts = Path(member.name).parts[-3:]
                if not member.name.endswith(".png") or parts[0] not in SPLITS:
                    continue
                if (file := tar.extractfile(member)) is not None:
                    members["/".join(parts)] = file.read()
    except (tarfile.TarError, EOFError, OSError, zlib.error) as error:
        raise UserError(
            f"cinic10: {path} is damaged ({error}). Prepare it afresh in another folder: "
            f"{prepare_command('cinic10', 'FOLDER')}."
        ) from error
    return members


def _check_counts(names: list[str], where: Path) -> None:
    """Refuse other than PER_CLASS images of each class in each split."""
    counts: dict[tuple[str, ...], int] = {(split, label): 0 for split in SPLITS for label in CLASSES}
    for name in names:
        key = tuple(name.split("/")[:2])
        counts[key] = counts.get(key, 0) + 1
    for (split, label), got in counts.items():
        if label not in CLASSES:
            raise UserError(f"cinic10: {where} has images in {split}/{label}; expected classes {', '.join(CLASSES)}.")
        if got != PER_CLASS:
            raise UserError(
                f"cinic10: {where} has {got} images in {split}/{label}; expected {PER_CLASS}: extract "
                f"{FILE_NAME} again, or use it as it is with {commands.option('data_dir', 'FOLDER')} that holds it."
            )


def _load_images(place: Place) -> Splits:
    members = _archive_members(place.path) if place.kind == "archive" else dict.fromkeys(place.names(), b"")
    found = {split: sorted(name for name in members if name.startswith(f"{split}/")) for split in SPLITS}
    names = [name for split in SPLITS for name in found[split]]
    _check_counts(names, place.path)
    given = members.__getitem__ if place.kind == "archive" else place.path.joinpath
    obstacles = Obstacles("cinic10")
    images = read_images(obstacles, names, lambda i: given(names[i]), colour=True).pixels
    obstacles.options.clear()  # it is as it was published, or it is not CINIC-10
    obstacles.check()
    labels = np.array([CLASSES.index(name.split("/")[1]) for name in names], np.int32)
    n = len(found["train"]) + len(found["valid"])
    return Splits(images[:n], labels[:n], images[n:], labels[n:], np.array(names[:n]), CLASSES)


def _pixels(path: Path) -> np.ndarray:
    """uint8 [N, H, W, 3]; floats are taken where they are whole numbers from 0 to 255."""
    images = _loaded(path)
    if images.dtype != np.uint8:
        converted = images.astype(np.uint8)
        if not np.array_equal(converted, images):
            raise UserError(f"cinic10: {path} has values other than whole numbers from 0 to 255; expected uint8.")
        images = converted
    return images


def _loaded(path: Path) -> np.ndarray:
    with open(path, "rb") as file:
        check_npy(f"cinic10: {path}", file, size := size_of(path), size)
    return np.load(path, allow_pickle=False)


def _array(path: Path) -> np.ndarray:
    try:
        return _pixels(path) if path.stem.lower().startswith("x") else _loaded(path)
    except (ValueError, OSError, EOFError, SyntaxError, MemoryError) as error:
        raise UserError(f"cinic10: {path} cannot be read ({error}); save it again.") from error


def _load_arrays(place: Place) -> Splits:
    folder = place.path
    arrays = {path.stem.lower(): _array(path) for path in _array_files(folder)}
    joined = not {"x_valid", "y_valid"} & arrays.keys()  # valid is appended to train already
    splits = [split for split in SPLITS if not (joined and split == "valid")]
    missing = [stem for split in splits for stem in (f"X_{split}", f"y_{split}") if stem.lower() not in arrays]
    if missing:
        raise UserError(f"cinic10: no {missing[0]}.npy in {folder}; expected X_… and y_… of train, valid and test.")
    labels = {split: integer_labels("cinic10", split, arrays[f"y_{split}"]) for split in splits}
    for split in splits:
        expected = PER_CLASS * (2 if joined and split == "train" else 1)
        classes, got = np.unique(labels[split], return_counts=True)
        if classes.tolist() != list(range(len(CLASSES))) or set(got) != {expected}:
            found = ", ".join(f"{n} of class {label}" for label, n in zip(classes[:12], got))
            raise UserError(
                f"cinic10: {folder} has {found} in {split}; expected {expected} of each class from 0 to 9 "
                "(without X_valid.npy, the validation set is expected at the end of X_train.npy)."
            )
        if len(labels[split]) != len(arrays[f"x_{split}"]):
            n = len(arrays[f"x_{split}"])
            raise UserError(f"cinic10: {folder} has {n} images in {split} but {len(labels[split])} labels.")
    parts = [split for split in splits if split != "test"]
    ids = np.array([f"{split}_{i:06d}" for split in parts for i in range(len(labels[split]))])
    images = np.concatenate([arrays[f"x_{split}"] for split in parts])
    train_labels = np.concatenate([labels[split] for split in parts])
    return Splits(images, train_labels, arrays["x_test"], labels["test"], ids, CLASSES)


def load(data_dir: Path | None) -> Splits:
    """180,000 training examples (train, then valid; each by sorted path) and 90,000 test examples.

    Raises:
        UserError: it is not there, damaged, or not 9,000 images per class and split.
    """
    place = find(data_dir)
    splits = _load_arrays(place) if place.kind == "arrays" else _load_images(place)
    if splits.train_images.shape[1:] != (32, 32, 3):
        raise UserError(f"cinic10: {place.path} has images of {splits.train_images.shape[1:]}; expected (32, 32, 3).")
    return splits
