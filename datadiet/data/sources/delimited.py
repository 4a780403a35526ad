"""Tables of people's own: csv in any usual encoding, with any usual delimiter, columns by any usual name."""

from __future__ import annotations

import codecs
import csv
import io
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from datadiet.data.reading import remark
from datadiet.errors import UserError
from datadiet.intake import read_bytes
from datadiet.printable import printable

MARKS = {  # before the text; UTF-32's begins as one of UTF-16's does
    codecs.BOM_UTF8: "utf-8-sig", codecs.BOM_UTF32_LE: "utf-32", codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16", codecs.BOM_UTF16_BE: "utf-16",
}  # fmt: skip
DELIMITERS = (",", ";", "\t", "|")
SPACE = " "  # where a first line has none of them: lists of files and numbers
BEGIN = 2**20  # characters that have the first line
SHOWN = 10  # things of a kind that a message names

Roles = Mapping[str, Sequence[str]]  # what a column is for, and how it is called, as `plain` spells it


class Table(NamedTuple):
    """Cells as text; those of bytes that are not UTF-8 have half characters, as names of files do."""

    header: list[str]
    rows: list[list[str]]  # as long as the header
    lines: list[int]  # of the file, from 1, in which each row ends

    def column(self, name: str) -> list[str]:
        place = self.header.index(name)
        return [row[place] for row in self.rows]


def plain(name: str) -> str:
    """A column's name without case, spaces and marks: 'Image Path' and 'image_path' are one."""
    return re.sub(r"[\W_]+", "", name).lower()


def named(things: Sequence[str]) -> str:
    """The first SHOWN of some things, in words."""
    return ", ".join(map(printable, things[:SHOWN])) + (" …" if len(things) > SHOWN else "")


def read_table(name: str, path: Path, roles: Roles, needed: Sequence[str]) -> Table:
    """The rows of a csv file.

    Args:
        name: Of the data, for errors.
        roles: What columns are looked for.
        needed: Those that there have to be.
    Raises:
        UserError: it cannot be read as csv, or has no such columns.
    """
    try:
        text = _decoded(name, path, read_bytes(path))
    except OSError as error:
        raise UserError(f"{name}: {path} cannot be read ({error.strerror}); expected a csv file.") from error
    first = text.split("\n", 1)[0].rstrip("\r").strip('"').lower()
    skipped = int(bool(re.fullmatch(r"sep=.", first)))  # what spreadsheets write before the header
    headers = {delimiter: _header(text[:BEGIN], delimiter, skipped) for delimiter in DELIMITERS}
    if max(map(len, headers.values())) < 2:
        headers |= {SPACE: _header(text[:BEGIN], SPACE, skipped)}
    known = {
        delimiter: sum(1 for role in roles if candidates(header, roles[role])) for delimiter, header in headers.items()
    }
    best = max(headers, key=lambda delimiter: (known[delimiter], len(headers[delimiter])))
    header = headers[best]
    if not known[best] and not skipped and "path" in roles and _lists_files(path, header):
        columns = list(roles)[: len(header)]
        remark(f"{name}: {path} has no header; its columns are read as {', '.join(columns)}.")
        table = _rows(name, path, f"{best.join(columns)}\n{text}", best, 0)
        return table._replace(lines=[line - 1 for line in table.lines])
    if missing := [role for role in needed if not candidates(header, roles[role])]:
        told = "; ".join(f"{role} (or {', '.join(roles[role][1:5])}, …)" for role in needed)
        raise UserError(
            f"{name}: {path} has no column {' and no column '.join(missing)}. Its first line is "
            f"{named([cell or '(nothing)' for cell in header]) or 'empty'}; expected a header with {told}, in a copy "
            "of it, say."
        )
    return _rows(name, path, text, best, skipped)


def _lists_files(path: Path, row: Sequence[str]) -> bool:
    """Whether a first line is no header, but of a file: its path, its label and perhaps its split."""
    return 2 <= len(row) <= 3 and bool(row[0]) and os.path.isfile(path.parent / row[0])


def candidates(header: Sequence[str], called: Sequence[str]) -> list[str]:
    """Columns that are called so: the one that is called by the first name, else all of the others."""
    exact = [column for column in header if plain(column) == called[0]]
    return exact or [column for column in header if plain(column) in called]


def _decoded(name: str, path: Path, content: bytes) -> str:
    for mark, encoding in MARKS.items():
        if content.startswith(mark):
            try:
                return content.decode(encoding)
            except UnicodeDecodeError as error:
                raise UserError(f"{name}: {path} begins as {encoding} and is not ({error}).") from None
    if b"\0" in content:
        raise UserError(f"{name}: {path} has zero bytes; expected csv as text, in UTF-8 or UTF-16 with its mark.")
    try:
        return content.decode()
    except UnicodeDecodeError:
        remark(f"{name}: {path} is not UTF-8; it is read as Windows-1252.")
        return content.decode(errors="surrogateescape")


def windows(text: str) -> str:
    """Text whose bytes that are not UTF-8 are meant as Windows-1252."""
    if text.isascii():
        return text
    return re.sub("[\udc80-\udcff]", lambda m: _letter(os.fsencode(m[0])), text)


def _letter(byte: bytes) -> str:
    try:
        return byte.decode("cp1252")
    except UnicodeDecodeError:
        return byte.decode("latin-1")


def _reader(text: str, delimiter: str):
    skip = delimiter != SPACE
    return csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True, skipinitialspace=skip)


def _header(text: str, delimiter: str, skipped: int) -> list[str]:
    try:
        rows = _reader(text, delimiter)
        return [cell.strip() for cell in [next(rows, []) for _ in range(skipped + 1)][-1]]
    except csv.Error:  # by this delimiter; by that which is taken it is told
        return []


def _rows(name: str, path: Path, text: str, delimiter: str, skipped: int) -> Table:
    """All rows; empty ones are left out, and empty cells at their end beyond the header."""
    rows, lines, uneven = [], [], []
    reader = _reader(text, delimiter)
    try:
        header = [cell.strip() for cell in [next(reader) for _ in range(skipped + 1)][-1]]
        for row in reader:
            if not any(map(str.strip, row)):
                continue
            if len(row) < len(header) or any(map(str.strip, row[len(header) :])):
                uneven.append(f"line {reader.line_num} has {len(row)}")
            rows.append(row[: len(header)])
            lines.append(reader.line_num)
    except csv.Error as error:
        raise UserError(f"{name}: {path}, line {reader.line_num}: {error}; expected csv, quoted as usual.") from error
    if uneven:
        raise UserError(
            f"{name}: {path}: {len(uneven)} rows have not the {len(header)} cells of the header: {named(uneven)}."
        )
    twice = sorted({column for column in header if column and header.count(column) > 1})
    if twice:
        raise UserError(f"{name}: {path} has several columns {named(twice)}; expected each name once.")
    return Table(header, rows, lines)
