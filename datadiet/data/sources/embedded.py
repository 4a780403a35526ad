"""Datasets that need no preparing: scikit-learn's digits, and idx files (Fashion-MNIST)."""

from __future__ import annotations

import gzip
import math
import struct
import zlib
from functools import cache
from importlib.metadata import distribution
from pathlib import Path

import numpy as np

from datadiet import commands
from datadiet.data.dataset import Splits
from datadiet.data.sources.base import DATA_ROOT, prepare_command
from datadiet.data.sources.published import IDX_FILES, verify_content
from datadiet.errors import UserError
from datadiet.home import expanded
from datadiet.intake import check_size, size_of

DEBIAN_FASHION_MNIST = Path("/usr/share/datasets/fashion-mnist")
FASHION_CLASSES = (
    "T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot",
)  # fmt: skip
DIGITS_FILE = "sklearn/datasets/data/digits.csv.gz"  # read past scikit-learn, whose import takes over a second


@cache
def _digits() -> np.ndarray:
    """64 pixels from 0 to 16 and the label, float64 [1797, 65]; read once, because every run of a study asks for it."""
    return np.loadtxt(str(distribution("scikit-learn").locate_file(DIGITS_FILE)), delimiter=",")


def load_digits(data_dir: Path | None) -> Splits:
    """scikit-learn's 1,797 8x8 digits; every fifth example is the test set."""
    table = _digits()
    images = np.round(table[:, :-1] * (255 / 16)).astype(np.uint8).reshape(-1, 8, 8, 1)
    labels = table[:, -1].astype(np.int32)
    ids = np.array([f"digits_{i:04d}" for i in range(len(labels))])
    test = np.arange(len(labels)) % 5 == 4
    return Splits(images[~test], labels[~test], images[test], labels[test], ids[~test])


def idx_folder(data_dir: Path | None) -> Path:
    """Where fetched idx files of Fashion-MNIST are placed and looked for."""
    return data_dir or expanded(DATA_ROOT / "downloads" / "manual" / "fashion_mnist")


def fashion_mnist_files(data_dir: Path | None) -> list[Path]:
    """The four idx files, gzipped or not, in the order of IDX_FILES.

    Raises:
        UserError: one is missing.
    """
    folders = [data_dir] if data_dir else [DEBIAN_FASHION_MNIST, idx_folder(None)]
    for folder in folders:
        found = [[path for path in (folder / name, folder / f"{name}.gz") if path.is_file()] for name in IDX_FILES]
        if all(found):
            return [paths[0] for paths in found]
    missing = next(name for name, paths in zip(IDX_FILES, found) if not paths)
    raise UserError(
        f"fashion_mnist: no file {folders[-1] / missing}[.gz]. Expected a folder with the four idx files of "
        f"Fashion-MNIST: pass {commands.option('data_dir', 'FOLDER')}, install them with "
        "`apt-get install dataset-fashion-mnist`, "
        f"or fetch them with {prepare_command('fashion_mnist', data_dir)}."
    )


IDX_TYPES = {8: np.uint8, 12: ">i4"}


def _read_idx(path: Path, data_too: bool) -> tuple[tuple[int, ...], np.dtype, bytes]:
    try:
        stored = size_of(path)
        with (gzip.open if path.suffix == ".gz" else open)(path, "rb") as file:
            zero, kind, rank = struct.unpack(">HBB", file.read(4))
            shape = struct.unpack(f">{rank}I", file.read(4 * rank))
            if zero or kind not in IDX_TYPES:
                raise UserError(
                    f"{path}: not an idx file of unsigned bytes or integers (magic number {zero:#x}, {kind:#x})."
                )
            dtype = np.dtype(IDX_TYPES[kind])
            if not data_too:
                return shape, dtype, b""
            check_size(str(path), size := math.prod(shape) * dtype.itemsize, stored)
            return shape, dtype, file.read(size + 1)
    except (struct.error, EOFError, zlib.error, OSError) as error:
        raise UserError(f"{path}: cannot be read as an idx file ({error}).") from error


def idx_shape(path: Path) -> tuple[int, ...]:
    """Shape of the array in an idx file, from its header."""
    return _read_idx(path, data_too=False)[0]


def read_idx(path: Path) -> np.ndarray:
    """An array, uint8 or int32, from an idx file (http://yann.lecun.com/exdb/mnist), gzipped or not.

    Raises:
        UserError: not an idx file of unsigned bytes or integers, or its length belies its header.
    """
    shape, dtype, content = _read_idx(path, data_too=True)
    if len(content) != (size := math.prod(shape) * dtype.itemsize):
        got = "more" if len(content) > size else len(content)
        raise UserError(f"{path}: {got} bytes of data where its header says {shape}.")
    return np.frombuffer(content, dtype).reshape(shape)


def count_fashion_mnist(data_dir: Path | None) -> int:
    """N, from the header of the training labels."""
    return idx_shape(fashion_mnist_files(data_dir)[1])[0]


def load_fashion_mnist(data_dir: Path | None) -> Splits:
    """Fashion-MNIST (Xiao et al. 2017) from its four idx files, in file order.

    Raises:
        UserError: a file is missing, damaged, or holds other data than was published.
    """
    files = fashion_mnist_files(data_dir)
    arrays = [read_idx(file) for file in files]
    verify_content("fashion_mnist", files, arrays)
    train_images, train_labels, test_images, test_labels = arrays
    ids = np.array([f"train_{i:05d}" for i in range(len(train_labels))])
    return Splits(
        train_images[..., None], train_labels.astype(np.int32),
        test_images[..., None], test_labels.astype(np.int32), ids, FASHION_CLASSES,
    )  # fmt: skip
