"""Published data: what their files are called, how to know them, and whether what is there is that."""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from datadiet.errors import UserError
from datadiet.intake import size_of

CIFAR_URL = "https://www.cs.toronto.edu/~kriz/"
IDX_FILES = ("train-images-idx3-ubyte", "train-labels-idx1-ubyte", "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte")


class Archive(NamedTuple):
    """A published file: where it is, and how to know it."""

    url: str
    file_name: str
    size: int  # bytes
    digest: str  # hex
    algorithm: str = "sha256"


def _idx_archives(url: str, files: tuple[tuple[int, str], ...]) -> tuple[Archive, ...]:
    return tuple(Archive(f"{url}{n}.gz", f"{n}.gz", *known) for n, known in zip(IDX_FILES, files, strict=True))


# Sizes and sha256 as in tensorflow-datasets 4.9.10's url_checksums. Of CINIC-10 only an md5 is published.
ARCHIVES: dict[str, tuple[Archive, ...]] = {
    "cifar10": (
        Archive(
            f"{CIFAR_URL}cifar-10-binary.tar.gz", "cifar-10-binary.tar.gz", 170052171,
            "c4a38c50a1bc5f3a1c5537f2155ab9d68f9f25eb1ed8d9ddda3db29a59bca1dd",
        ),
    ),
    "cifar100": (
        Archive(
            f"{CIFAR_URL}cifar-100-binary.tar.gz", "cifar-100-binary.tar.gz", 168513733,
            "58a81ae192c23a4be8b1804d68e518ed807d710a4eb253b1f2a199162a40d8ec",
        ),
    ),
    "cinic10": (
        Archive(
            "https://datashare.ed.ac.uk/bitstream/handle/10283/3192/CINIC-10.tar.gz", "CINIC-10.tar.gz", 687544992,
            "6ee4d0c996905fe93221de577967a372", "md5",
        ),
    ),
    "mnist": _idx_archives(
        "https://storage.googleapis.com/cvdf-datasets/mnist/",
        (
            (9912422, "440fcabf73cc546fa21475e81ea370265605f56be210a4024d2ca8f203523609"),
            (28881, "3552534a0a558bbed6aed32b30c495cca23d567ec52cac8be1a0730e8010255c"),
            (1648877, "8d422c7b0a1c1c79245a5bcf07fe86e33eeafee792b84584aec276f5a2dbc4e6"),
            (4542, "f7ae60f92e00ec6debd23a6088c31dbd2371eca3ffa0defaefb259924204aec6"),
        ),
    ),
    "kmnist": _idx_archives(
        "http://codh.rois.ac.jp/kmnist/dataset/kmnist/",
        (
            (18165135, "51467d22d8cc72929e2a028a0428f2086b092bb31cfb79c69cc0a90ce135fde4"),
            (29497, "e38f9ebcd0f3ebcdec7fc8eabdcdaef93bb0df8ea12bee65224341c8183d8e17"),
            (3041136, "edd7a857845ad6bb1d0ba43fe7e794d164fe2dce499a1694695a792adfac43c5"),
            (5120, "20bb9a0ef54c7db3efc55a92eef5582c109615df22683c380526788f98e42a1c"),
        ),
    ),
    "fashion_mnist": _idx_archives(
        "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/",
        (
            (26421880, "3aede38d61863908ad78613f6a32ed271626dd12800ba2636569512369268a84"),
            (29515, "a04f17134ac03560a47e3764e11b92fc97de4d1bfaf8ba1a3aa29af54cc90845"),
            (4422102, "346e55b948d973a97e58d2351dde16a484bd415d4595297633bb08f03db6a073"),
            (5148, "67da17c76eaffca5446c3361aaab5c3cd6d1c2608764d35dfb1850b086bf8dd5"),
        ),
    ),
}  # fmt: skip


class CifarPickles(NamedTuple):
    """CIFAR as torchvision has it."""

    archive: Archive
    folder: str
    train: tuple[str, ...]  # files, in the order of their examples
    test: tuple[str, ...]
    meta: str
    class_names: str  # under which the latter has them
    labels: str  # under which the others have them
    digests: dict[str, str]  # md5 of each file


# Archives and files with the md5 that torchvision's datasets/cifar.py checks.
CIFAR_PICKLES: dict[str, CifarPickles] = {
    "cifar10": CifarPickles(
        Archive(
            f"{CIFAR_URL}cifar-10-python.tar.gz", "cifar-10-python.tar.gz", 170498071,
            "c58f30108f718f92721af3b95e74349a", "md5",
        ),
        "cifar-10-batches-py", tuple(f"data_batch_{k}" for k in range(1, 6)), ("test_batch",), "batches.meta",
        "label_names", "labels",
        {
            "data_batch_1": "c99cafc152244af753f735de768cd75f", "data_batch_2": "d4bba439e000b95fd0a9bffe97cbabec",
            "data_batch_3": "54ebc095f3ab1f0389bbae665268c751", "data_batch_4": "634d18415352ddfa80567beed471001a",
            "data_batch_5": "482c414d41f54cd18b22e5b47cb7c3cb", "test_batch": "40351d587109b95175f43aff81a1287e",
            "batches.meta": "5ff9c542aee3614f3951f8cda6e48888",
        },
    ),
    "cifar100": CifarPickles(
        Archive(
            f"{CIFAR_URL}cifar-100-python.tar.gz", "cifar-100-python.tar.gz", 169001437,
            "eb9058c3a382ffc7106e4002c42a8d85", "md5",
        ),
        "cifar-100-python", ("train",), ("test",), "meta", "fine_label_names", "fine_labels",
        {
            "train": "16019d7e3df5f24257cddd939b257f8d", "test": "f0ef6b0ae62326f3e7ffdfab6717acfc",
            "meta": "7973b15100ade9c7d40fb424638fde48",
        },
    ),
}  # fmt: skip


# sha256 of the unpacked idx files, because Debian's are packed anew. They are those of the archives above: Debian's
# packed bytes behind the headers of the published files (their names, and times of 2017-08-31) have those digests.
CONTENTS: dict[str, tuple[str, ...]] = {
    "fashion_mnist": (
        "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888",
        "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9",
        "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b",
        "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34",
    ),
}


def verify(path: Path, archive: Archive) -> None:
    """Raises UserError where a file is not, byte for byte, the one that was published."""
    size = size_of(path)
    got = f" with {archive.algorithm} {_digest(path, archive.algorithm)}" if size <= archive.size else ""
    expected = f" with {archive.algorithm} {archive.digest}"
    if got != expected:
        raise UserError(
            f"{path}: {size} bytes{got}; expected {archive.size} bytes{expected}. Fetch "
            f"{archive.url} into another folder."
        )


def _digest(path: Path, algorithm: str) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, algorithm).hexdigest()


def verify_content(name: str, sources: Sequence[object], arrays: Sequence[np.ndarray]) -> None:
    """Refuse data that go by a published name and are others, however they are packed.

    Args:
        name: Dataset that they go by.
        sources: Where each array is from, for the error.
        arrays: uint8, those of its idx files in the order of IDX_FILES.
    Raises:
        UserError: names the first one whose content differs.
    """
    for source, archive, array, expected in zip(sources, ARCHIVES[name], arrays, CONTENTS[name], strict=True):
        if (got := idx_digest(array)) != expected:
            raise UserError(
                f"{name}: {source} holds other data than {archive.file_name} as published: unpacked, sha256 {got}; "
                f"expected {expected}. Fetch {archive.url}, or pass data of your own under another name (npz:FILE)."
            )


def idx_digest(array: np.ndarray) -> str:
    """sha256 (hex) of the unpacked idx file of a uint8 array."""
    digest = hashlib.sha256(struct.pack(f">HBB{array.ndim}I", 0, 8, array.ndim, *array.shape))
    digest.update(np.ascontiguousarray(array).data)
    return digest.hexdigest()
