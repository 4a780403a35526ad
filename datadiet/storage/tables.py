"""Tables as csv: quoted by a library, every text as it was, and none of it a formula."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from datadiet.errors import UserError
from datadiet.intake import read_bytes
from datadiet.printable import harmless as harmless
from datadiet.printable import original


def csv_text(header: Sequence[str], rows: Iterable[Iterable[Any]]) -> str:
    """A table. Texts become `harmless`; numbers are written as they are, None as nothing."""
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(header)
    writer.writerows([harmless(cell) if isinstance(cell, str) else cell for cell in row] for row in rows)
    return buffer.getvalue()


def read_csv(path: Path, *columns: str) -> list[dict[str, str]]:
    """The rows of a table, every cell the text that it was.

    Args:
        columns: That there have to be.
    Raises:
        UserError: it cannot be read, or is no such table.
    """
    expected = f"expected a csv file with {'columns' if len(columns) > 1 else 'a column'} {', '.join(columns)}"
    try:
        text = read_bytes(path).decode("utf-8-sig")  # spreadsheets put a mark before the text
        rows = csv.reader(io.StringIO(text, newline=""), strict=True)
        header = next(rows, [])
        found = [(rows.line_num, cells) for cells in rows if cells]
    except (OSError, ValueError, csv.Error) as error:
        raise UserError(f"{path}: {expected} ({getattr(error, 'strerror', None) or error}).") from error
    if missing := [name for name in columns if header.count(name) != 1]:
        raise UserError(f"{path}: {expected}; got {', '.join(header) or 'nothing'}, which has not one {missing[0]}.")
    for line, cells in found:
        if len(cells) != len(header):
            raise UserError(f"{path}: line {line} has {len(cells)} cells; expected {len(header)}, as in line 1.")
    return [dict(zip(header, map(original, cells))) for _, cells in found]
