"""Datasets by name: where each comes from, and the only way to load one."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import lru_cache, partial
from pathlib import Path
from typing import Any, NamedTuple

from datadiet import commands
from datadiet.data import cache
from datadiet.data.dataset import Dataset, Splits, Statistics, assembled
from datadiet.data.doubts import tell_doubts
from datadiet.data.reading import AS_IT_IS, Reading, Remark
from datadiet.data.sources.base import Origins
from datadiet.errors import UserError
from datadiet.printable import on_one_line
from datadiet.registries import lazily
from datadiet.train_config import TrainConfig


class Source(NamedTuple):
    """One entry of DATASETS. Each function takes data_dir, and after it a `Reading` where `reads` says so."""

    load: Callable[..., Splits]
    num_classes: int | None  # None: found from the labels
    num_examples: Callable[..., int]  # of the training set, found without loading it
    statistics: Statistics | None = None  # None: computed
    files: Callable[..., Sequence[str | Path]] | None = None  # that the content depends on; None: no cache
    reads: bool = False  # it splits and sizes as a Reading says; of others, images are resized when they are read
    origins: Callable[..., Origins] | None = None  # None: its examples are no files
    installed: bool = False  # a part of a package: the same however often it is read


def _of(module: str, function: str, *first: str) -> Callable[..., Any]:
    """A function of data.sources that is imported when it is called."""
    return lazily(f"datadiet.data.sources.{module}", function, *first)


def _tfds(tfds_name: str) -> Source:
    load_, count, files = (
        _of("tfds_folder", function, tfds_name, f"tfds/{tfds_name}")
        for function in ("load_prepared", "count_prepared", "prepared_files")
    )
    return Source(load_, None, count, None, files, reads=True)


def _cifar(num_classes: int, name: str) -> Source:
    load_, count, files = (_of("cifar", function, name) for function in ("load", "count", "files"))
    return Source(load_, num_classes, count, CIFAR_STATISTICS, files)


def _own(kind: str, module: str, path: str, *, of_files: bool = False) -> Source:
    load_, count, files, origins = (
        _of(module, function, path)
        for function in (f"load_{kind}", f"count_{kind}", f"{kind}_files", f"{kind}_origins")
    )
    return Source(load_, None, count, None, files, True, origins if of_files else None)


# Means and standard deviations as in the original, which takes CIFAR-10's for CIFAR-100 too.
CIFAR_STATISTICS = ((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616))


CINIC_STATISTICS = ((0.47889522, 0.47227842, 0.43047404), (0.24205776, 0.23828046, 0.25874835))


DATASETS: dict[str, Source] = {
    "digits": Source(_of("embedded", "load_digits"), 10, lambda data_dir: 1438, installed=True),
    "fashion_mnist": Source(
        _of("embedded", "load_fashion_mnist"), 10, _of("embedded", "count_fashion_mnist"),
        None, _of("embedded", "fashion_mnist_files"),
    ),
    "cifar10": _cifar(10, "cifar10"),
    "cifar100": _cifar(100, "cifar100"),
    "cinic10": Source(
        _of("cinic10", "load"), 10, _of("cinic10", "count"), CINIC_STATISTICS, _of("cinic10", "files")
    ),
}  # fmt: skip


# What may stand before a name or a path of the user's own.
PREFIXES: dict[str, Callable[[str], Source]] = {
    "tfds/": _tfds,
    "folder:": partial(_own, "folder", "folder", of_files=True),
    "npz:": partial(_own, "npz", "npz_file"),
    "parquet:": partial(_own, "parquet", "parquet"),
    "csv:": partial(_own, "csv", "csv_file", of_files=True),
    "idx:": partial(_own, "idx", "idx"),
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
    expected = f"expected one of {', '.join(known_datasets())}."
    raise UserError(f"dataset={name!r}: {expected}{commands.meant('dataset', name, DATASETS)}")


def data_folder(data_dir: str | Path | None) -> Path | None:
    """data_dir as a path, with ~ expanded; None stays None.

    Raises:
        UserError: the home of a user that there is not.
    """
    try:
        return Path(data_dir).expanduser() if data_dir else None
    except RuntimeError as error:
        raise UserError(f"data_dir={data_dir}: expected a folder ({error}).") from None


def origins_of(config: TrainConfig) -> Origins:
    """Where the training examples that a config names come from.

    Raises:
        UserError: unknown name, or the data is not there.
    """
    entry = find_source(config.dataset)
    if entry.origins is None:
        return Origins()
    with noting():  # what there is to say is said when it is loaded
        return entry.origins(*_asked(config.dataset, entry, config.data_dir, Reading.of(config)))


def count_of(config: TrainConfig) -> int:
    """Size N of the training set that a config names, found without loading it where it is read as it is.

    Raises:
        UserError: unknown name, or the data is not there (with the command that repairs it), or cannot be read so.
    """
    name, data_dir, reading = config.dataset, config.data_dir, Reading.of(config)
    check_asked(name, data_dir, reading)
    reading = replace(reading, labels=None)  # which there are as many of
    if reading.given():
        return read_dataset(name, data_dir, reading).num_examples
    return _listing(name, find_source(name).num_examples, data_dir, reading)


def _listing(name: str, function: Callable[..., Any], data_dir: str | Path | None, reading: Reading) -> Any:
    """What a function of a source gives that looks at no content. What there is to say is said when it is loaded; where
    it cannot be, all that stands in the way is named, not the first of it."""
    asked = _asked(name, find_source(name), data_dir, reading)
    try:
        with warnings.catch_warnings(action="ignore", category=Remark):
            return function(*asked)
    except UserError:
        build_dataset(name, data_dir, reading)
        raise


def _asked(name: str, entry: Source, data_dir: str | Path | None, reading: Reading) -> tuple[Any, ...]:
    """What the functions of a source take.

    Raises:
        UserError: what is asked for cannot be had of it, whatever its content.
    """
    if entry.reads:
        return data_folder(data_dir), reading
    if reading.test_fraction is not None:
        raise UserError(f"{name}: test_fraction={reading.test_fraction}, but it has a test set of its own.")
    if reading.test_split not in (None, "test"):
        raise UserError(f"{name}: test_split={reading.test_split}; it has the splits train and test.")
    return (data_folder(data_dir),)


def check_asked(name: str, data_dir: str | Path | None, reading: Reading) -> None:
    """Refuse what cannot be had of a dataset, before its content is looked at.

    Raises:
        UserError: unknown name, an option that does not go with it, no such home or file of labels.
    """
    _asked(name, find_source(name), data_dir, reading)
    if reading.labels is not None and not Path(reading.labels).expanduser().is_file():
        raise UserError(f"labels={reading.labels}: no such file; expected a csv file with example_id and label.")


def build_dataset(name: str, data_dir: str | Path | None = None, reading: Reading = AS_IT_IS) -> Dataset:
    """A dataset read from its source, past the cache, and checked; what there is to say is in its notes."""
    entry = find_source(name)
    with noting() as notes:
        known = None if reading.shape else entry.statistics
        splits = _read(name, entry, data_dir, reading)
        dataset = assembled(name, splits, known)
        tell_doubts(dataset)
    if entry.num_classes not in (None, found := dataset.num_classes):
        raise UserError(f"{name}: its training labels are of {found} classes; expected {entry.num_classes}.")
    return replace(dataset, notes=tuple(notes))


def _read(name: str, entry: Source, data_dir: str | Path | None, reading: Reading) -> Splits:
    """What a source has, as a Reading asks for it."""
    splits = entry.load(*_asked(name, entry, data_dir, reading))
    return _resized(name, splits, reading) if reading.shape else splits


def _resized(name: str, splits: Splits, reading: Reading) -> Splits:
    """Images of the size that is asked for, those that have it as they are."""
    from datadiet.data.sources.images import resize  # here, because --help needs no Pillow

    train, test = (resize(name, images, reading) for images in (splits.train_images, splits.test_images))
    return splits._replace(train_images=train, test_images=test)


@contextmanager
def noting() -> Iterator[list[str]]:
    """The remarks of a `with` block, in a list, each once after it; other warnings are given."""
    notes: list[str] = []
    remarks = True
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always", Remark)
            yield notes
        remarks = False
        notes += dict.fromkeys(on_one_line(w.message) for w in caught if issubclass(w.category, Remark))
    finally:  # where data is refused, what is said of it is said now
        for warning in caught:
            if remarks or not issubclass(warning.category, Remark):
                warnings.warn_explicit(warning.message, warning.category, warning.filename, warning.lineno)


def load_dataset(
    name: str, data_dir: str | Path | None = None, *, image_size: int | str | None = None,
    test_fraction: float | None = None, test_split: str | None = None, labels: str | None = None,
    skip_bad: bool = False,
) -> Dataset:  # fmt: skip
    """A dataset by name, in canonical order. Nothing is downloaded.

    The first load of given files writes a cache; later ones memory-map it. What was decided when it was read, or is
    doubtful, is in its notes, and warned of.

    Args:
        name: One of `known_datasets`.
        data_dir: Folder that holds its files; None: where they are usually found. A relative
            PATH is taken from it.
        image_size: N, pixels of the shorter side, after which the centre is taken; or 'HxW', height and width exactly;
            None: that of the images, which have to be of one.
        test_fraction: Fraction of each class that is the test set, where there is none, in 0..1, both excluded. By a
            hash of the examples' ids: more examples do not move the others.
        test_split: Which of the splits there are is the test set; None: test, else a labelled validation set.
        labels: csv file (example_id,label): the training labels are these instead of the data's own. The fingerprint
            stays, the test labels too.
        skip_bad: Leave out images that cannot be read.
    Raises:
        UserError: unknown name, missing or damaged files (with the command that repairs it),
            or data that cannot be learned from, with all that stands in the way.
    """
    options = {"test_fraction": test_fraction, "test_split": test_split, "labels": labels, "skip_bad": skip_bad}
    dataset = read_dataset(name, data_dir, Reading.asked(image_size, **options))
    tell_notes(dataset, stacklevel=3)
    if labels is None:
        return dataset
    from datadiet.data.labels import given_labels  # here, because --help needs no reader of tables

    return replace(dataset, train_labels=given_labels(labels, dataset))


def dataset_of(config: TrainConfig) -> Dataset:
    """The dataset that a config names, read as it says, with its own labels; see `load_dataset`. Its notes are not
    told. What is installed is made once, for all runs of a study."""
    read = _read_once if find_source(config.dataset).installed else read_dataset
    return read(config.dataset, config.data_dir, Reading.of(config))


def tell_notes(dataset: Dataset, stacklevel: int = 2) -> None:
    """Warn of what was decided when a dataset was read, and what is doubtful: once for a piece of work."""
    for note in dataset.notes:
        warnings.warn(note, Remark, stacklevel=stacklevel)


def read_dataset(name: str, data_dir: str | Path | None, reading: Reading) -> Dataset:
    """`load_dataset`, with the labels of its own; its notes are not told."""
    reading, entry = replace(reading, labels=None), find_source(name)
    if (source_files := entry.files) is None:
        _asked(name, entry, data_dir, reading)
        return build_dataset(name, data_dir, reading)
    files = partial(_listing, name, source_files, data_dir, reading)
    how = "".join(f"{option}={value}\n" for option, value in reading.given().items())
    return Dataset(name, **cache.through(name, files, partial(_record, name, data_dir, reading), how))


_read_once = lru_cache(maxsize=1)(read_dataset)


def _record(name: str, data_dir: str | Path | None, reading: Reading) -> dict[str, Any]:
    """A freshly built dataset as the values that the cache keeps."""
    record = dict(vars(build_dataset(name, data_dir, reading)))
    del record["name"]
    return record
