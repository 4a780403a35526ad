"""Arrays that other programs saved: npy, npz and parquet, never unpickled, and no larger than memory allows."""

from __future__ import annotations

import re
import zipfile
import zlib
from pathlib import Path

import numpy as np

from datadiet.errors import UserError
from datadiet.intake import check_npy, check_size, size_of

SUFFIXES = (".npy", ".npz", ".parquet")


def read_arrays(path: Path) -> dict[str, np.ndarray]:
    """The arrays of a file by name: entries of npz, columns of parquet; of npy one, whose name is ''.

    A column of lists of one length becomes an array of two dimensions. An array of npy is mapped, not read.

    Raises:
        UserError: another kind of file, or it cannot be read.
    """
    if path.suffix not in SUFFIXES:
        raise UserError(f"{path}: expected a file {', '.join(SUFFIXES[:-1])} or {SUFFIXES[-1]}.")
    try:
        stored = size_of(path)
        if path.suffix == ".npz":
            return _npz(path)
        if path.suffix == ".parquet":
            return _parquet(path, stored)
        with path.open("rb") as file:
            check_npy(str(path), file, stored, stored)
        return {"": np.load(path, mmap_mode="r" if stored else None, allow_pickle=False)}
    except FileNotFoundError:
        raise UserError(f"{path}: no such file.") from None
    except (OSError, ValueError, KeyError, EOFError, NotImplementedError, RuntimeError, zipfile.BadZipFile,
            zlib.error) as error:  # fmt: skip
        raise UserError(f"{path} cannot be read as {path.suffix[1:]} ({error}).") from error


def _npz(path: Path) -> dict[str, np.ndarray]:
    found = {}
    with zipfile.ZipFile(path) as archive:
        for member in archive.infolist():
            name = member.filename.removesuffix(".npy")
            with archive.open(member) as file:
                check_npy(f"{path}: {name}", file, member.file_size, member.compress_size)
            with archive.open(member) as file:
                found[name] = np.lib.format.read_array(file, allow_pickle=False)
    return found


def _parquet(path: Path, stored: int) -> dict[str, np.ndarray]:
    import pyarrow as pa  # here, because few need it
    import pyarrow.parquet as pq

    try:
        footer = pq.read_metadata(path)
        groups = map(footer.row_group, range(footer.num_row_groups))
        check_size(str(path), sum(group.total_byte_size for group in groups), stored)
        table = pq.read_table(path)
    except pa.ArrowException as error:
        raise ValueError(error) from error
    own = [name for name in table.column_names if not re.fullmatch(r"__index_level_\d+__", name)]  # pandas writes those
    return {name: _column(table.column(name)) for name in own}


def _column(column) -> np.ndarray:
    values = column.to_numpy()
    if values.dtype == object and len(values) and isinstance(values[0], np.ndarray):
        if len({len(row) for row in values}) > 1:
            raise ValueError("lists of several lengths in a column")
        return np.stack(values.tolist())
    return values
