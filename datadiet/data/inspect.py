"""What data is: its files, splits, classes, what is doubtful in it, and what lets it be read where it is refused."""

from __future__ import annotations

import dataclasses
import re
import time
import warnings
from collections import Counter
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from datadiet.config import validate
from datadiet.data.dataset import Dataset
from datadiet.data.doubts import blank, called, repeats
from datadiet.data.reading import Reading, Remark
from datadiet.data.registry import PREFIXES, check_asked, data_folder, dataset_of
from datadiet.data.sources.base import resolve_path
from datadiet.data.sources.folder import is_image
from datadiet.data.sources.walk import walk
from datadiet.errors import UserError
from datadiet.printable import visible
from datadiet.processors import processors
from datadiet.progress import Counting
from datadiet.train_config import FIELDS, TrainConfig

FOLDER = "folder:"  # of which the files are looked at one by one
ATTEMPTS = 8  # to read data that is refused
USUAL: dict[str, Any] = {"image_size": "64", "test_fraction": 0.2, "skip_bad": True}  # where a refusal names no value
SHOWN = 10  # names in a list of many


class Pair(NamedTuple):
    """Two examples of the same pixels, by their names, with their classes."""

    one: str
    other: str
    one_class: str
    other_class: str


class Doubts(NamedTuple):
    """What is doubtful in data that can be read."""

    duplicates: int  # training examples whose pixels an earlier one has
    conflicts: list[Pair]  # of those, which have another label than the first one
    leaks: list[Pair]  # test examples (one) whose pixels a training example (other) has
    constant: list[str]  # training examples of one colour


class Files(NamedTuple):
    """The image files of a folder."""

    root: Path
    folders: dict[str, int]  # images in each folder at its top
    bytes: int
    sizes: Counter[tuple[int, int]]  # width, height
    kinds: Counter[str]  # mode, as Pillow calls it
    bad: list[str]  # names and why; only what their begin tells, unless they were decoded
    others: list[str]  # names of what is no image


@dataclass(frozen=True)
class Facts:
    """What is known of data."""

    asked: TrainConfig  # what names it
    config: TrainConfig  # the same with the options with which it can be read
    refusals: list[str]  # why it cannot be read as asked, then with what repairs that, …
    dataset: Dataset | None  # None: with no option that is known
    seconds: float  # that reading took
    files: Files | None = None
    doubts: Doubts | None = None
    warnings: list[str] = field(default_factory=list)  # beside the notes of the dataset

    @property
    def repairs(self) -> dict[str, Any]:
        """The options that were added."""
        before = Reading.of(self.asked).given()
        return {name: value for name, value in Reading.of(self.config).given().items() if before.get(name) != value}

    @property
    def class_names(self) -> tuple[str, ...]:
        """Names of the classes, else their numbers."""
        return () if self.dataset is None else self.dataset.classes


def check(config: TrainConfig) -> None:
    """Raises UserError for options that cannot be, whatever the data is."""
    validate(config)
    check_asked(config.dataset, config.data_dir, Reading.of(config))


def inspect(config: TrainConfig, counter: Counting) -> Facts:
    """Look at the data that a config names, whether or not it can be read as that says.

    Args:
        config: As `check` lets it through.
    Raises:
        UserError: nothing is there.
    """
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        start = time.perf_counter()
        read, refusals, dataset = _attempts(config)
        seconds = time.perf_counter() - start
        if dataset is None and not _is_there(config):
            raise UserError(refusals[0])
        files = look_at(config, counter, decode=dataset is None) if config.dataset.startswith(FOLDER) else None
    told = [str(one.message) for one in caught if not issubclass(one.category, Remark)]
    found = None if dataset is None else doubts(dataset)
    return Facts(config, read, refusals, dataset, seconds, files, found, list(dict.fromkeys(told)))


def _is_there(config: TrainConfig) -> bool:
    """Whether the data is a path where something is."""
    prefix, _, path = config.dataset.partition(":")
    return f"{prefix}:" in PREFIXES and resolve_path(path, data_folder(config.data_dir)).exists()


def _attempts(config: TrainConfig) -> tuple[TrainConfig, list[str], Dataset | None]:
    """Read as asked, then as each refusal advises: the last config, the refusals, and the data."""
    refusals: list[str] = []
    for _ in range(ATTEMPTS):
        try:
            return config, refusals, dataset_of(config)
        except UserError as error:
            refusals.append(str(error))
        added = {name: value for name, value in advised(refusals[-1]).items() if not getattr(config, name)}
        if not added:
            break
        config = dataclasses.replace(config, **added)
    return config, refusals, None


def advised(refusal: str) -> dict[str, Any]:
    """The options of reading that a refusal advises, as in 'Add --image_size 64', else names; with the values that it
    names, else usual ones. Of those that exclude each other, the first."""
    found: dict[str, Any] = {}
    for match in re.finditer(
        rf"\b({'|'.join((*USUAL, 'test_split'))})\b(?:[= ]([\w.]+))?", refusal.rpartition("Add ")[2]
    ):
        name, text = match[1], (match[2] or "").rstrip(".")
        value = _value(name, text)
        value = USUAL.get(name) if value is None else value
        if value is not None and not (name.startswith("test_") and {"test_fraction", "test_split"} & found.keys()):
            found.setdefault(name, value)
    return found


def _value(name: str, text: str) -> Any:
    """An option's value from text; None where it is none, as a word that stands for one."""
    try:
        value = FIELDS[name].parse(text)
        FIELDS[name].check(value)
    except (ValueError, UserError):
        return None
    return None if text in ("", "NAME", "N", "HxW", "FILE") else value


# --- files --------------------------------------------------------------------------------------


def look_at(config: TrainConfig, counter: Counting, decode: bool) -> Files | None:
    """Every image file below the folder of a dataset, whether it is used or not; None where there is no such folder.

    Args:
        decode: All of each file, not its begin alone, to find what is damaged.
    """
    from datadiet.data.sources.encoded import facts_of  # here, because --help needs no Pillow

    root = resolve_path(config.dataset.removeprefix(FOLDER), data_folder(config.data_dir))
    if not root.is_dir():
        return None
    try:
        listed = walk(config.dataset, root)[0]
    except UserError:  # which has been told as the refusal of the data
        return None
    images = [path for path in listed if is_image(root, path)]
    folders = Counter(visible(path.split("/", 1)[0]) if "/" in path else "." for path in images)
    sizes, kinds, bad, total = Counter(), Counter(), [], 0
    with counter(len(images), "files") as count, ThreadPoolExecutor(len(processors())) as pool:
        for path, found in zip(images, pool.map(lambda path: facts_of(Path(f"{root}/{path}"), decode), images)):
            count(1)
            if isinstance(found, str):
                bad.append(f"{visible(path)}: {found}")
                continue
            sizes[found.size] += 1
            kinds[found.mode] += 1
            total += found.bytes
    others = sorted(map(visible, set(listed).difference(images)))
    return Files(root, dict(sorted(folders.items())), total, sizes, kinds, bad, others)


# --- pixels -------------------------------------------------------------------------------------


def doubts(dataset: Dataset) -> Doubts:
    """What is doubtful in data: the same pixels twice, with two labels, or in both splits; images of one colour."""
    names, ids, tests, labels = dataset.classes, dataset.example_ids, dataset.test_names, dataset.train_labels
    found = repeats(dataset.train_images, dataset.test_images)
    conflicts = [
        Pair(str(ids[before]), str(ids[i]), names[labels[before]], names[labels[i]])
        for before, i in found.train
        if labels[before] != labels[i]
    ]
    leaks = [
        Pair(called("test", tests[i]), called("train", ids[before]), names[own], names[labels[before]])
        for (i, before), own in zip(found.test, dataset.test_labels[[i for i, _ in found.test]])
    ]
    return Doubts(len(found.train), conflicts, leaks, [str(ids[i]) for i in blank(dataset.train_images)])


def counts(dataset: Dataset) -> list[tuple[str, int, int]]:
    """Name of each class, and how many training and test examples it has."""
    names = dataset.classes
    train, test = (np.bincount(y, minlength=len(names)) for y in (dataset.train_labels, dataset.test_labels))
    return [(str(name), int(a), int(b)) for name, a, b in zip(names, train, test, strict=True)]


def samples(labels: np.ndarray, label: int, most: int) -> np.ndarray:
    """Ids of at most so many examples of a class, evenly over all of them, int64."""
    ids = np.flatnonzero(labels == label)
    return ids[np.linspace(0, len(ids) - 1, min(most, len(ids))).round().astype(int)] if len(ids) else ids


def listed(names: Sequence[str]) -> list[str]:
    """The first SHOWN."""
    return list(names[:SHOWN])


def memory(dataset: Dataset, shape: Sequence[int] | None = None) -> int:
    """Bytes of both splits, as they are or with images padded to a shape."""
    arrays: Mapping[str, np.ndarray] = {"train": dataset.train_images, "test": dataset.test_images}
    each = np.prod(shape or dataset.image_shape, dtype=np.int64) * dataset.train_images.dtype.itemsize
    return int(sum(len(images) for images in arrays.values()) * each)
