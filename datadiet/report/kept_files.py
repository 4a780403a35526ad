"""A kept set as what others read: a table, a list, a folder of links, or a parquet file. To add one: a function and its
line in FORMATS."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any
from unicodedata import normalize

import numpy as np

from datadiet import commands
from datadiet.errors import UserError
from datadiet.printable import as_named, escaped, visible

if TYPE_CHECKING:
    import pandas as pd

    from datadiet.data.dataset import Dataset
    from datadiet.data.sources.base import Origins

PARQUET = "parquet:"
ROWS = 1000  # of parquet, written at once
LONGEST = 200  # bytes of a name that file systems take


@dataclass(frozen=True)
class KeptSet:
    """Examples that are kept.

    table: Columns as `kept_sets.examples` gives them, the rows of these examples alone, in canonical order.
    copy: Files are copied where they would be linked.
    data_dir: From which a relative path of the data is taken.
    """

    dataset: Dataset
    origins: Origins
    table: pd.DataFrame
    copy: bool = False
    data_dir: Path | None = None

    @property
    def ids(self) -> np.ndarray:
        """int32 [M], rising."""
        return self.table["index"].to_numpy()

    @property
    def paths(self) -> list[str]:
        """Of each example's file below the root of the data, as the system has it; none where they are no files."""
        found = [self.origins.path(name) for name in self.table["example_id"]]
        return [path for path in found if path is not None]

    def files(self, needed_by: str) -> list[Path]:
        """The file of each example.

        Raises:
            UserError: they are no files, or some are not there.
        """
        root = self.origins.root
        if root is None:
            others = ", ".join(name for name in FORMATS if name not in (needed_by, "links"))
            raise UserError(
                f"format={needed_by}: the examples of {self.dataset.name} are no files; expected format={others}."
            )
        found = [root / path for path in self.paths]
        if missing := [file for file in found if not file.is_file()]:
            raise UserError(f"{len(missing)} files of {self.dataset.name} are not there, the first is {missing[0]}.")
        return found


def csv(kept: KeptSet, output: Path) -> None:
    """The table, with the kept rows alone."""
    from datadiet.report.kept_sets import as_csv  # here, because --help needs no tables

    output.write_bytes(as_csv(kept.table).encode())


def txt(kept: KeptSet, output: Path) -> None:
    """One line for each example: the path of its file below the root of the data, in the bytes that it has there; where
    they are no files, its id.

    Raises:
        UserError: a name would take more than one line.
    """
    names = kept.paths or kept.table["example_id"].tolist()
    if broken := [name for name in names if "\n" in name or "\r" in name]:
        raise UserError(
            f"format=txt: {escaped(broken[0])} does not fit into a line; expected another format, as "
            f"{commands.option('format', 'csv')}."
        )
    output.write_bytes(b"".join(os.fsencode(name) + b"\n" for name in names))


# --- a folder -----------------------------------------------------------------------------------


def links(kept: KeptSet, output: Path) -> None:
    """CLASS/FILE for each example: a link to its file, absolute so that the folder may be moved, or a copy.

    Raises:
        UserError: the examples are no files, or one is not there.
    """
    for file, place in zip(kept.files("links"), places(kept)):
        target = output / place
        target.parent.mkdir(parents=True, exist_ok=True)
        if kept.copy:
            shutil.copyfile(file, target)
        else:
            target.symlink_to(os.path.abspath(file))


def places(kept: KeptSet) -> list[str]:
    """CLASS/… of each example, relative, each once; what would lead elsewhere is replaced.

    CLASS is that of the label trained on. What lies in a folder of that name keeps its place there; of others, the
    whole path follows.
    """
    classes: dict[str, str] = {}
    for name in sorted(set(kept.table["class"])):
        classes[name] = _free(_confined(as_named(name)), set(classes.values()))
    taken: set[str] = set()
    found = []
    for name, path in zip(kept.table["class"], kept.paths):
        parts = PurePosixPath(path.removeprefix(kept.origins.below)).parts
        inside = len(parts) > 1 and normalize("NFC", visible(parts[0])) == normalize("NFC", name)
        own = [_confined(part) for part in parts[inside:]]
        found.append(_free("/".join([classes[name], *own]), taken))
        taken.add(found[-1])
    return found


def _confined(part: str) -> str:
    """A part of a path that is a plain name: no separator, nothing hidden, of a length that all take."""
    plain = re.sub(r"[/\0]", "_", part)
    plain = re.sub(r"^\.", "_", plain) or "_"
    if len(os.fsencode(plain)) <= LONGEST:
        return plain
    suffix = os.path.splitext(plain)[1]
    digest = hashlib.sha256(os.fsencode(plain)).hexdigest()[:16]
    return f"{digest}{suffix if len(os.fsencode(suffix)) < 20 else ''}"


def _free(place: str, taken: set[str]) -> str:
    """The place, or one with a number where it is taken."""
    stem, suffix = os.path.splitext(place)
    number, found = 2, place
    while found in taken:
        found, number = f"{stem}~{number}{suffix}", number + 1
    return found


# --- parquet ------------------------------------------------------------------------------------


def parquet(kept: KeptSet, output: Path) -> None:
    """Rows of parquet data as they are; of other data, images and labels in the layout of Hugging Face.

    Raises:
        UserError: vectors, or files that are not there.
    """
    import pyarrow.parquet as pq

    name = kept.dataset.name
    parts = _image_rows(kept)
    if name.startswith(PARQUET):
        from datadiet.data.sources.parquet import training_rows  # here, because others do without

        parts = training_rows(name.removeprefix(PARQUET), kept.data_dir, set(kept.table["example_id"]))
    first = next(parts)
    with pq.ParquetWriter(output, first.schema) as writer:
        for part in chain([first], parts):
            writer.write_table(part.cast(first.schema))


def _image_rows(kept: KeptSet) -> Iterator[Any]:
    """Tables of ROWS examples: a struct of encoded bytes and name, and the label."""
    import pyarrow as pa

    names = kept.dataset.classes
    told = {"image": {"_type": "Image"}, "label": {"names": list(names), "_type": "ClassLabel"}}
    schema = pa.schema(
        {"image": pa.struct({"bytes": pa.binary(), "path": pa.string()}), "label": pa.int64()},
        metadata={"huggingface": json.dumps({"info": {"features": told}})},
    )
    encoded, ids, labels = _encoder(kept), kept.table["example_id"].tolist(), kept.table["label"].tolist()
    for start in range(0, len(ids), ROWS):
        rows = range(start, min(start + ROWS, len(ids)))
        cells = [{"bytes": encoded(i), "path": ids[i]} for i in rows]
        yield pa.table({"image": cells, "label": [labels[i] for i in rows]}, schema=schema)


def _encoder(kept: KeptSet) -> Callable[[int], bytes]:
    """Gives the encoded image of each kept example by its place: its file as it is, or its pixels as PNG."""
    from datadiet.data.sources.encoded import encoded

    if kept.origins.root is not None:
        files = kept.files("parquet")
        return lambda i: files[i].read_bytes()
    shape = kept.dataset.image_shape
    if len(shape) != 3 or shape[2] not in (1, 3):
        raise UserError(
            f"format=parquet holds images of 1 or 3 channels; {kept.dataset.name} has {'x'.join(map(str, shape))}: "
            f"expected {commands.option('format', 'csv')} or txt."
        )
    images, ids = kept.dataset.train_images, kept.ids
    return lambda i: encoded(images[ids[i]])


FORMATS: dict[str, Callable[[KeptSet, Path], None]] = {"csv": csv, "parquet": parquet, "links": links, "txt": txt}
FOLDERS: Sequence[str] = ("links",)  # those of FORMATS that write a folder
