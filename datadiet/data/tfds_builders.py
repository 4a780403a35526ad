"""Prepares tensorflow-datasets' own datasets as array_record, without TensorFlow.

The stock builders import TensorFlow to unpack archives and to encode arrays. These subclasses
unpack with tarfile and gzip and yield Pillow images under the stock keys and ids, so that pixels,
labels, ids and record order equal those of the stock preparation.
"""

from __future__ import annotations

import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from PIL import Image
from tensorflow_datasets.core import registered
from tensorflow_datasets.core.download import checksums
from tensorflow_datasets.image_classification import cifar, mnist

from datadiet.data.download import Archive
from datadiet.data.sources.embedded import read_idx
from datadiet.errors import UserError


def url_infos(archives: tuple[Archive, ...]) -> dict[str, Any]:
    """The same facts in the form tfds' download manager takes."""
    size = checksums.utils.Size
    return {a.url: checksums.UrlInfo(size=size(a.size), checksum=a.digest, filename=a.file_name) for a in archives}


def _member(tar: tarfile.TarFile, name: str) -> bytes:
    try:
        file = tar.extractfile(name)
    except KeyError:
        file = None
    if file is None:
        raise UserError(f"{tar.name}: no file {name} in it; expected the archive as published.")
    return file.read()


class _Cifar:
    """Mixed into the stock CIFAR builders, which know their files, features and version."""

    archives: tuple[Archive, ...]
    counts: tuple[int, int]  # examples in train and test, that must be found
    info: Any
    _cifar_info: Any

    def _split_generators(self, dl_manager: Any) -> dict[str, Iterator]:
        info = self._cifar_info
        path = dl_manager.download(self.archives[0].url)
        with tarfile.open(path) as tar:
            for key, file in zip(info.label_keys, info.label_files, strict=True):
                names = _member(tar, info.prefix + file).decode().split("\n")
                self.info.features[key].names = [name for name in names if name]
        files = {"train": info.train_files, "test": info.test_files}
        return {
            split: self._generate_examples(f"{split}_", path, files[split], count)
            for split, count in zip(files, self.counts, strict=True)
        }

    def _generate_examples(self, prefix: str, path: Any, files: list[str], count: int) -> Iterator[tuple[int, dict]]:
        info = self._cifar_info
        keys = info.label_keys
        index = 0
        with tarfile.open(path) as tar:
            for file in files:
                data = _member(tar, info.prefix + file)
                if len(data) % (len(keys) + 3072):
                    raise UserError(f"{path}: {file} has {len(data)} bytes, not a whole number of examples.")
                for row in np.frombuffer(data, np.uint8).reshape(-1, len(keys) + 3072):
                    pixels = row[len(keys) :].reshape(3, 32, 32).transpose(1, 2, 0)
                    labels = dict(zip(keys, row))
                    yield index, {"id": f"{prefix}{index:05d}", "image": Image.fromarray(pixels), **labels}
                    index += 1
        if index != count:
            raise UserError(f"{path}: {index} examples in {', '.join(files)}; expected {count}.")


class _Mnist:
    """Mixed into the stock MNIST builders."""

    archives: tuple[Archive, ...]

    def _split_generators(self, dl_manager: Any) -> dict[str, Iterator]:
        paths = dl_manager.download([archive.url for archive in self.archives])
        return {"train": self._generate_examples(*paths[:2]), "test": self._generate_examples(*paths[2:])}

    def _generate_examples(self, images_path: Any, labels_path: Any) -> Iterator[tuple[int, dict]]:
        images, labels = (read_idx(Path(path)) for path in (images_path, labels_path))
        if len(images) != len(labels):
            raise UserError(f"{images_path}: {len(images)} images but {len(labels)} labels in {labels_path}.")
        for index, (image, label) in enumerate(zip(images, labels)):
            yield index, {"image": Image.fromarray(image), "label": label}


with registered.skip_registration():

    class Cifar10(_Cifar, cifar.Cifar10):
        """CIFAR-10 (Krizhevsky 2009)."""

    class Cifar100(_Cifar, cifar.Cifar100):
        """CIFAR-100 (Krizhevsky 2009)."""

    class MNIST(_Mnist, mnist.MNIST):
        """MNIST (LeCun et al. 1998)."""

    class KMNIST(_Mnist, mnist.KMNIST):
        """Kuzushiji-MNIST (Clanuwat et al. 2018)."""

    class FashionMNIST(_Mnist, mnist.FashionMNIST):
        """Fashion-MNIST (Xiao et al. 2017)."""


BUILDERS: dict[str, type] = {
    "cifar10": Cifar10,
    "cifar100": Cifar100,
    "mnist": MNIST,
    "kmnist": KMNIST,
    "fashion_mnist": FashionMNIST,
}


def make_builder(tfds_name: str, data_dir: Path, archives: tuple[Archive, ...], counts: tuple[int, int] | None) -> Any:
    """A builder that writes array_record: ours where there is one, else the stock one.

    Args:
        archives: The files it is made of; () with a stock builder, which knows its own.
        counts: Examples in train and test that a CIFAR builder must find.
    """
    if tfds_name not in BUILDERS:
        return tfds.builder(tfds_name, data_dir=data_dir, file_format="array_record")
    attributes = {"archives": archives, "counts": counts, "url_infos": url_infos(archives)}
    with registered.skip_registration():
        cls = type(BUILDERS[tfds_name].__name__, (BUILDERS[tfds_name],), {"name": tfds_name, **attributes})
    return cls(data_dir=data_dir, file_format="array_record")
