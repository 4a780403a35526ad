"""Datasets by name: where each comes from, and the only way to load one."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from datadiet.data import cache
from datadiet.data.dataset import Dataset, Splits, check_splits, fingerprint, pixel_statistics, vector_statistics
from datadiet.data.sources.base import Origins
from datadiet.errors import UserError


class Source(NamedTuple):
    """One entry of DATASETS. Each function takes data_dir."""

    load: Callable[[Path | None], Splits]
    num_classes: int | None  # None: found from the labels
    num_examples: Callable[[Path | None], int]  # of the training set, found without loading it
    statistics: tuple[tuple[float, ...], tuple[float, ...]] | None = None  # None: computed
    files: Callable[[Path | None], Sequence[str | Path]] | None = None  # that the content depends on; None: no cache
    origins: Callable[[Path | None], Origins] | None = None  # None: its examples are no files


def lazily(module: str, function: str, *first: str) -> Callable[[Path | None], Any]:
    """A function of data.sources that is imported when it is called."""

    def call(data_dir: Path | None) -> Any:
        return getattr(import_module(f"datadiet.data.sources.{module}"), function)(*first, data_dir)

    return call


def _tfds(statistics: Any, num_classes: int | None, tfds_name: str, name: str) -> Source:
    load_, count, files = (
        lazily("tfds_folder", function, tfds_name, name)
        for function in ("load_prepared", "count_prepared", "prepared_files")
    )
    return Source(load_, num_classes, count, statistics, files)


def _own(kind: str, module: str, path: str, *, of_files: bool = False) -> Source:
    load_, count, files, origins = (
        lazily(module, function, path)
        for function in (f"load_{kind}", f"count_{kind}", f"{kind}_files", f"{kind}_origins")
    )
    return Source(load_, None, count, None, files, origins if of_files else None)


# Means and standard deviations as in the original, which takes CIFAR-10's for CIFAR-100 too.
CIFAR_STATISTICS = ((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616))


CINIC_STATISTICS = ((0.47889522, 0.47227842, 0.43047404), (0.24205776, 0.23828046, 0.25874835))


DATASETS: dict[str, Source] = {
    "digits": Source(lazily("embedded", "load_digits"), 10, lambda data_dir: 1438),
    "fashion_mnist": Source(
        lazily("embedded", "load_fashion_mnist"), 10, lazily("embedded", "count_fashion_mnist"),
        None, lazily("embedded", "fashion_mnist_files"),
    ),
    "cifar10": _tfds(CIFAR_STATISTICS, 10, "cifar10", "cifar10"),
    "cifar100": _tfds(CIFAR_STATISTICS, 100, "cifar100", "cifar100"),
    "cinic10": Source(
        lazily("cinic10", "load"), 10, lazily("cinic10", "count"), CINIC_STATISTICS, lazily("cinic10", "files")
    ),
}  # fmt: skip


# What may stand before a name or a path of the user's own.
PREFIXES: dict[str, Callable[[str], Source]] = {
    "tfds/": lambda name: _tfds(None, None, name, f"tfds/{name}"),
    "folder:": partial(_own, "folder", "own", of_files=True),
    "npz:": partial(_own, "npz", "own"),
    "parquet:": partial(_own, "parquet", "parquet"),
}


def known_datasets() -> tuple[str, ...]:
    """Names of datasets, and what may stand before a name or a path: digits, …, tfds/NAME, folder:PATH, …"""
    return (*DATASETS, *(prefix + ("NAME" if prefix.endswith("/") else "PATH") for prefix in PREFIXES))


def find_source(name: str) -> Source:
    """Raises UserError, listing the known names, where `name` is none of `known_datasets`."""
    if name in DATASETS:
        return DATASETS[name]
    for prefix, make in PREFIXES.items():
        if name.startswith(prefix) and len(name) > len(prefix):
            return make(name[len(prefix) :])
    raise UserError(f"dataset={name!r}: expected one of {', '.join(known_datasets())}.")


def data_folder(data_dir: str | Path | None) -> Path | None:
    """data_dir as a path, with ~ expanded; None stays None.

    Raises:
        UserError: the home of a user that there is not.
    """
    try:
        return Path(data_dir).expanduser() if data_dir else None
    except RuntimeError as error:
        raise UserError(f"data_dir={data_dir}: expected a folder ({error}).") from None


def count_examples(name: str, data_dir: str | Path | None = None) -> int:
    """Size N of the training set, found without loading it.

    Raises:
        UserError: unknown name, or the data is not there (with the command that repairs it).
    """
    return find_source(name).num_examples(data_folder(data_dir))


def find_origins(name: str, data_dir: str | Path | None = None) -> Origins:
    """Where the training examples come from: their split and, where they are files, the folder.

    Raises:
        UserError: unknown name, or the data is not there.
    """
    origins = find_source(name).origins
    return Origins() if origins is None else origins(data_folder(data_dir))


def build_dataset(name: str, data_dir: str | Path | None = None) -> Dataset:
    """A dataset read from its source, past the cache, and checked."""
    entry = find_source(name)
    splits = entry.load(data_folder(data_dir))
    num_classes = check_splits(name, splits)
    if entry.num_classes not in (None, num_classes):
        raise UserError(f"{name}: its training labels are of {num_classes} classes; expected {entry.num_classes}.")
    if entry.statistics:
        mean, std = (np.asarray(values, np.float32) for values in entry.statistics)
    else:
        statistics = pixel_statistics if splits.train_images.dtype == np.uint8 else vector_statistics
        mean, std = statistics(splits.train_images)
    digest = fingerprint(splits.example_ids, splits.train_labels, splits.train_images)
    return Dataset(name, *splits[:5], num_classes, mean, std, digest, splits.class_names)


def load_dataset(name: str, data_dir: str | Path | None = None) -> Dataset:
    """A dataset by name, in canonical order. Nothing is downloaded.

    The first load of given files writes a cache; later ones memory-map it.

    Args:
        name: One of `known_datasets`.
        data_dir: Folder that holds its files; None: where they are usually found. A relative
            PATH is taken from it.
    Raises:
        UserError: unknown name, missing or damaged files (with the command that repairs it),
            or data that cannot be learned from.
    """
    files = find_source(name).files
    if files is None:
        return build_dataset(name, data_dir)
    return Dataset(name, **cache.through(name, partial(files, data_folder(data_dir)), partial(_record, name, data_dir)))


def _record(name: str, data_dir: str | Path | None) -> dict[str, Any]:
    """A freshly built dataset as the values that the cache keeps."""
    record = dict(vars(build_dataset(name, data_dir)))
    del record["name"]
    return record
