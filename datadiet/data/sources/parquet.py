"""Parquet files in the layout of Hugging Face image datasets: a struct of image bytes, and a label."""

from __future__ import annotations

import re
from collections.abc import Iterator, Set
from functools import partial
from itertools import zip_longest
from pathlib import Path
from typing import Any, NamedTuple
from unicodedata import normalize

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from datadiet.data.dataset import Splits
from datadiet.data.reading import Reading, remark
from datadiet.data.sources.arrays import as_labels, has_labels
from datadiet.data.sources.base import Obstacles, resolve_path
from datadiet.data.sources.columns import LABEL_NAMES, find_columns, hugging_face_classes, plain_labels
from datadiet.data.sources.images import read_images
from datadiet.data.sources.splits import TRAIN, WORD, choose, divide, parted
from datadiet.data.sources.walk import walk
from datadiet.errors import UserError
from datadiet.intake import check_size

PIECE = re.compile(r"-(\d+)-of-(\d{1,5})(?!\d)")
ROWS = 1000  # read at once
AT_ONCE = 2**25  # bytes that they may take
SMALL = 2**26  # bytes that any file may take; encoded images hardly shrink


def all_splits(path: str, data_dir: Path | None) -> dict[str, list[Path]]:
    """Files of each split there is, sorted by path.

    The split is the first of its words in the file's name, else in the folder's it lies in:
    train-00000-of-00002.parquet, data/test-….parquet, default/train/0000.parquet.
    """
    root = resolve_path(path, data_dir)
    if not root.is_dir():
        raise UserError(f"parquet:{path}: no folder {root}; expected one with train-*.parquet and test-*.parquet.")
    found: dict[str, list[Path]] = {}
    configurations: set[str] = set()
    for name in (name for name in walk(f"parquet:{path}", root)[0] if name.lower().endswith(".parquet")):
        file, parts = root / name, name.split("/")
        words = [match.group(1) for part in reversed(parts) if (match := WORD.search(part.lower()))]
        if not words:
            raise UserError(f"parquet:{path}: {file} names no split; expected train, test or validation in its name.")
        configurations.add("/".join(part for part in parts[:-1] if not WORD.fullmatch(part.lower())) or ".")
        found.setdefault(words[0], []).append(file)
    if len(configurations) > 1:
        several = ", ".join(sorted(configurations))
        raise UserError(f"parquet:{path}: {root} has several data sets, in {several}; name the folder of one of them.")
    return found


def chosen_files(path: str, data_dir: Path | None, reading: Reading, obstacles: Obstacles) -> list[list[Path]]:
    """Files of the training and of the test split; of the first alone, where there is no other.

    Raises:
        UserError: there is nothing to read; other obstacles are added to those given.
    """
    splits = all_splits(path, data_dir)
    trained = next((splits[split] for split in TRAIN if split in splits), None)
    labelled = {
        split: split in TRAIN or trained is None or _has_labels(obstacles.name, trained[0], files)
        for split, files in splits.items()
    }
    root, got = resolve_path(path, data_dir), ", ".join(splits) or "no parquet file"
    expected = (
        f"expected files such as train-00000-of-00001.parquet and test-00000-of-00001.parquet (or validation-…) in "
        f"{root}; got {got}"
    )
    if trained is None:
        obstacles.add(f"no train split: {expected}")
        obstacles.check()
    train, test = choose(obstacles, labelled, reading, expected)
    if train is None:
        obstacles.check()
    chosen = [splits[split] for split in (train, test) if split]
    _tell_gaps(obstacles.name, chosen)
    return chosen


def _tell_gaps(name: str, splits: list[list[Path]]) -> None:
    """Say where of files that are numbered, as in train-00000-of-00002.parquet, some are not there."""
    for files in splits:
        found = [(int(match[1]), int(match[2])) for file in files if (match := PIECE.search(file.name))]
        missing = set(range(max((count for _, count in found), default=0))).difference(i for i, _ in found)
        if missing:
            remark(
                f"{name}: {len(missing)} files beside {files[0].name} are not there, the first is {min(missing):05d}."
            )


def _has_labels(name: str, like: Path, files: list[Path]) -> bool:
    """Whether files of a split have labels in the column that a file of the training split has them in."""
    label = _found_columns(name, _opened(name, like, pq.read_schema))[1]

    def look(file: Path) -> bool:
        with pq.ParquetFile(file) as parts:
            if label not in parts.schema_arrow.names:
                return False
            batches = parts.iter_batches(ROWS, columns=[label])
            given = (plain_labels(batch[label].drop_null()) for batch in batches)
            return parts.metadata.num_rows == 0 or any(labels.size and has_labels(labels) for labels in given)

    return any(_opened(name, file, look) for file in files)


def parquet_files(path: str, data_dir: Path | None, reading: Reading) -> list[Path]:
    """Every file of both splits."""
    return [file for files in chosen_files(path, data_dir, reading, Obstacles(f"parquet:{path}")) for file in files]


def _opened(name: str, file: Path, read: Any) -> Any:
    try:
        return read(file)
    except (pa.ArrowException, OSError, ValueError, MemoryError) as error:
        raise UserError(f"{name}: {file} cannot be read as parquet ({error}).") from error


def count_parquet(path: str, data_dir: Path | None, reading: Reading) -> int:
    """N, from the files' footers."""
    train, *_ = chosen_files(path, data_dir, reading, obstacles := Obstacles(f"parquet:{path}"))
    obstacles.check()
    return sum(_opened(f"parquet:{path}", file, pq.read_metadata).num_rows for file in train)


def _found_columns(name: str, schema: pa.Schema) -> tuple[str, str]:
    classes = [one for one in schema.names if hugging_face_classes(schema, one)]
    image, label = find_columns(name, schema, classes)
    if others := [one for one in schema.names if one != label and one in (*LABEL_NAMES, *classes)]:
        remark(f"{name}: {label} is the label; {', '.join(others)} is not used.")
    return image, label


def _rows_of(name: str, image: str, label: str, file: Path) -> list[tuple[list[Any], np.ndarray]]:
    """Image cells and labels of a file, some rows at a time.

    What the footer says is checked before anything is read. Of what a dictionary repeats it says nothing, so no more
    rows are taken at once than fit if each were all of the dictionary.
    """
    stored, taken, found = file.stat().st_size, 0, []
    parts = pq.ParquetFile(file)
    groups = [_columns_of(parts.metadata.row_group(i), (image, label)) for i in range(parts.num_row_groups)]
    declared = sum(column.total_uncompressed_size for group in groups for column in group)
    check_size(f"{name}: {file}", declared + 8 * parts.metadata.num_rows, stored, small=SMALL)
    for i, group in enumerate(groups):
        rows = max(1, min(ROWS, AT_ONCE // max(1, sum(map(_repeatable, group)))))
        for batch in parts.iter_batches(rows, row_groups=[i], columns=[image, label]):  # no folder names as columns
            table = pa.Table.from_batches([batch])
            taken += table.nbytes
            check_size(f"{name}: {file}", taken, stored, small=SMALL)
            if table[label].null_count:
                raise UserError(f"{name}: {table[label].null_count} rows without a label in {file}; expected none.")
            found.append((table[image].to_pylist(), plain_labels(table[label])))
    return found


def _columns_of(group: Any, names: tuple[str, ...]) -> list[Any]:
    """What the footer says of some columns of a row group, and of those in them."""
    columns = map(group.column, range(group.num_columns))
    return [column for column in columns if column.path_in_schema.split(".")[0] in names]


def _repeatable(column: Any) -> int:
    """The most bytes that a column's dictionary can have: its packed ones, and all that unpacking adds."""
    if not column.has_dictionary_page:
        return 0
    packed = column.data_page_offset - column.dictionary_page_offset
    return packed + max(0, column.total_uncompressed_size - column.total_compressed_size)


class Named(NamedTuple):
    """Names of the classes."""

    file: Path  # the first that has them
    names: tuple[str, ...] = ()


class Rows(NamedTuple):
    """What the files of a split have."""

    encoded: list[bytes]  # images
    paths: list[str | None]  # theirs, where given
    labels: np.ndarray
    named: Named


def _rows(name: str, files: list[Path]) -> Rows:
    encoded: list[bytes] = []
    paths: list[str | None] = []
    labels: list[np.ndarray] = []
    named = Named(files[0])
    for file in files:
        schema = _opened(name, file, pq.read_schema)
        image, label = _found_columns(name, schema)
        named = _same_names(name, named, Named(file, hugging_face_classes(schema, label)))
        for cells, found in _opened(name, file, partial(_rows_of, name, image, label)):
            encoded += [cell["bytes"] if isinstance(cell, dict) else cell for cell in cells]
            paths += [cell.get("path") if isinstance(cell, dict) else None for cell in cells]
            labels.append(found)
    missing = [i for i, cell in enumerate(encoded) if cell is None]
    if missing:
        raise UserError(f"{name}: {len(missing)} rows without image bytes (the first: {missing[0]}); embed the images.")
    joined = np.concatenate(labels) if labels else np.empty(0, np.int32)
    return Rows(encoded, paths, joined, named)


def load_parquet(path: str, data_dir: Path | None, reading: Reading) -> Splits:
    """Rows of all files of a split in turn; ids are the images' paths where all differ, else row numbers. Without a
    test split, a fraction of the training split is one.

    Raises:
        UserError: no test split, unknown columns, rows without image or label, damaged files or images, images of
            several sizes.
    """
    obstacles = Obstacles(f"parquet:{path}")
    files = chosen_files(path, data_dir, reading, obstacles)
    train, *tests = (_rows(obstacles.name, of_split) for of_split in files)
    test = tests[0] if tests else Rows([], [], train.labels[:0], train.named)
    names = _same_names(obstacles.name, train.named, test.named).names
    found, class_names = as_labels(obstacles.name, {"train": train.labels, "test": test.labels})
    numbers = class_names or tuple(map(str, range(1 + int(found[0].max(initial=-1)))))  # texts, or those there were
    if names and all(map(str.isdecimal, numbers)):
        if (last := max(map(int, numbers), default=0)) >= len(names):
            raise UserError(
                f"{obstacles.name}: label {last}, but names of {len(names)} classes; expected one for each."
            )
        class_names = tuple(names[int(number)] for number in numbers)
    n, cells = len(train.encoded), train.encoded + test.encoded
    names = [f"train row {i}" for i in range(n)] + [f"test row {i}" for i in range(len(test.encoded))]
    images = read_images(obstacles, [f"{obstacles.name} {name}" for name in names], cells.__getitem__, reading)
    obstacles.check()
    ids = np.concatenate([_ids(train, "train"), _ids(test, "test")])[images.good]
    labels = np.concatenate(found)[images.good]
    held_out = images.good >= n
    if not tests and reading.test_fraction is not None:
        held_out = divide(obstacles.name, ids, labels, reading.test_fraction)
    return parted(obstacles.name, images.pixels, labels, ids, held_out, class_names, images.skipped)


def _ids(rows: Rows, split: str) -> np.ndarray:
    return np.array(_called(rows.paths, split), dtype=str)


def _called(paths: list[str | None], split: str) -> list[str]:
    """Names of rows: the paths of their images where all differ, else numbers."""
    given = [path for path in paths if path]
    return given if len(set(given)) == len(paths) else [f"{split}_{i:06d}" for i in range(len(paths))]


def _same_names(name: str, one: Named, other: Named) -> Named:
    """The names of two files, of that which has some; refused where they are not the same in the same order. In another
    spelling of Unicode they are."""
    here, there = ([normalize("NFC", c) for c in found.names] for found in (one, other))
    if here and there and here != there:
        number = next(i for i, (mine, theirs) in enumerate(zip_longest(here, there)) if mine != theirs)
        first, second = ("none" if number >= len(found.names) else found.names[number] for found in (one, other))
        raise UserError(
            f"{name}: class {number} is {first!r} in {one.file.name} and {second!r} in {other.file.name}; expected the "
            "same classes in the same order."
        )
    return one if one.names else other


def training_rows(path: str, data_dir: Path | None, kept: Set[str]) -> Iterator[pa.Table]:
    """The rows of some training examples with all their columns, some at a time, in their order.

    Args:
        kept: Names of these examples.
    """
    name = f"parquet:{path}"
    splits = all_splits(path, data_dir)
    files = next(splits[split] for split in TRAIN if split in splits)
    paths = [one for file in files for one in _paths(name, file)]
    names = iter(_called(paths, "train"))
    for file in files:
        for batch in _opened(name, file, pq.ParquetFile).iter_batches(ROWS):
            mask = [next(names) in kept for _ in range(batch.num_rows)]
            yield pa.Table.from_batches([batch]).filter(pa.array(mask, pa.bool_()))


def _paths(name: str, file: Path) -> list[str | None]:
    """The path of each row's image, where one is given."""
    schema = _opened(name, file, pq.read_schema)
    image, _ = _found_columns(name, schema)
    if not pa.types.is_struct(schema.field(image).type) or schema.field(image).type.get_field_index("path") < 0:
        return [None] * _opened(name, file, pq.read_metadata).num_rows
    found = _opened(name, file, pq.ParquetFile).read(columns=[f"{image}.path"])[image]
    return [cell and cell.get("path") for cell in found.to_pylist()]
