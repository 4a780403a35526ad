"""What others found in trainings of their own, read from a table: a row for each training, or for all of a subset.

Columns: arm, fraction (1: all of the data) or size, run, and accuracy or file, which names right or wrong for each test
example. All that stands in the way is named at once.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from datadiet.data.sources.delimited import candidates, read_table
from datadiet.errors import UserError
from datadiet.option import check_text
from datadiet.printable import printable
from datadiet.storage.arrays import read_arrays

ROLES = {
    "arm": ("arm", "arms", "method", "chosenby"),
    "fraction": ("fraction", "keptfraction", "part"),
    "size": ("size", "examples", "numexamples", "numkept"),
    "run": ("run", "runs", "seed", "repeat"),
    "accuracy": ("accuracy", "acc", "testaccuracy", "testacc"),
    "file": ("file", "files", "answers"),
    "seconds": ("seconds", "trainseconds", "time"),
    "kept": ("kept", "manifest", "keptset"),
    "correct": ("correct",),  # of npz and parquet: in place of a file
    "predicted": ("predicted", "predictions"),
}
TOLD = ("correct", "predicted", "labels")  # of test examples, by arrays in cells
MOST = 20  # obstacles that are named
LONGEST = 100  # characters of an arm
CLOSE = 5e-4  # by how much a rounded accuracy may miss that of its answers


@dataclass
class Doubts:
    """What stands in the way, gathered."""

    found: list[str] = field(default_factory=list)

    def add(self, text: str) -> None:
        if text not in self.found:
            self.found.append(text)

    def check(self, name: str) -> None:
        """Raises UserError where there is any."""
        if not self.found:
            return
        more = [f"and {len(self.found) - MOST} more"] if len(self.found) > MOST else []
        told = "".join(f"\n- {printable(text)}" for text in [*self.found[:MOST], *more])
        raise UserError(f"{name}: {len(self.found)} thing{'s' * (len(self.found) > 1)} in the way:{told}")


class Row(NamedTuple):
    """One training."""

    where: str  # in the table, for messages
    arm: str
    fraction: float  # NaN: not told
    size: int | None
    run: str
    accuracy: float
    correct: np.ndarray | None  # bool [M]
    labels: np.ndarray | None  # int [M], of the test examples
    seconds: float  # NaN: not told
    kept: str  # path of what it keeps; '': not told


def read_rows(path: Path, doubts: Doubts) -> list[Row]:
    """The trainings that a table (csv, parquet or npz) lists.

    Raises:
        UserError: it is no such table.
    """
    columns, shared = _columns(path)
    if "arm" not in columns or not {"fraction", "size"} & columns.keys():
        raise UserError(
            f"results={path}: expected columns arm, fraction (or size), run, and accuracy or file; got "
            f"{', '.join(map(printable, columns)) or 'none that is known'}."
        )
    if not {"accuracy", "file", "correct", "predicted"} & columns.keys():
        raise UserError(f"results={path}: expected a column accuracy, or file with right or wrong; there is neither.")
    if len({len(column) for column in columns.values()}) > 1:
        lengths = ", ".join(f"{name} {len(column)}" for name, column in columns.items())
        raise UserError(f"results={path}: expected a value of each column for each training; got {lengths}.")
    rows: list[Row] = []
    for number in range(len(columns["arm"])):
        where = f"line {number + 2}" if path.suffix == ".csv" else f"row {number}"
        cells = {name: column[number] for name, column in columns.items()}
        rows += _trainings(where, cells, shared, path.parent, doubts)
    return rows


def _columns(path: Path) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Columns by their role, labels of parquet too; and what all rows share: labels [M] of the test examples."""
    found: dict[str, Any] = {}
    if path.suffix == ".csv" or path.suffix not in (".npz", ".parquet"):
        table = read_table("results", path, ROLES, ("arm",))
        header, shared = table.header, {}
        column: Callable[[str], Any] = table.column
    else:
        arrays = read_arrays(path)
        shared = {"labels": arrays.pop("labels")} if "labels" in arrays else {}
        if path.suffix == ".parquet":  # where each row has them
            found, shared = shared, {}
        header, column = list(arrays), arrays.__getitem__
    for role, called in ROLES.items():
        names = candidates(header, called)
        if len(names) > 1:
            raise UserError(f"results={path}: {' and '.join(map(printable, names))} may each be the {role}; keep one.")
        if names:
            found[role] = column(names[0])
    return found, shared


def _trainings(
    where: str, cells: dict[str, Any], shared: dict[str, np.ndarray], folder: Path, doubts: Doubts
) -> list[Row]:
    """The trainings of a row: one, or as many as its file has answers of."""
    arm, run = _text(cells["arm"]), _text(cells.get("run", ""))
    if problem := _unnameable(arm):
        doubts.add(f"{where}: arm={arm[:LONGEST]}: {problem}")
    fraction = _number(where, "fraction", cells, doubts, above=0, most=1)
    size = _number(where, "size", cells, doubts, above=0)
    seconds = _number(where, "seconds", cells, doubts, above=0)
    accuracy = _number(where, "accuracy", cells, doubts, above=-1, most=1)
    answers, labels = _answers(where, cells, shared, folder, doubts)
    if answers is None and math.isnan(accuracy) and not _text(cells.get("file", "")):
        doubts.add(f"{where}: neither an accuracy nor a file of answers")
    count = 1 if answers is None else len(answers)
    several = count > 1
    if several and run:
        doubts.add(f"{where}: {count} runs in one file, and run={run}; leave run out, or give each a row")
    if not (several or run):
        doubts.add(f"{where}: no run; expected a name or number, the same for trainings that are compared in pairs")
    found = []
    for number in range(count):
        own = None if answers is None else answers[number]
        right = accuracy if own is None else float(own.mean())
        if own is not None and not several and abs(right - accuracy) > CLOSE:  # NaN is not
            doubts.add(f"{where}: accuracy={accuracy:g}, but its answers are right {right:.4f} of the time")
        found.append(
            Row(where, arm, fraction, None if math.isnan(size) else round(size), run or str(number), right, own, labels,
                seconds, _text(cells.get("kept", "")))
        )  # fmt: skip
    return found


def _unnameable(arm: str) -> str:
    if not arm:
        return "expected a name"
    if len(arm) > LONGEST:
        return f"expected at most {LONGEST} characters"
    try:
        check_text("arm", arm)
    except UserError:
        return "expected text without control characters"
    return ""


def _text(cell: Any) -> str:
    return str(cell.item() if isinstance(cell, np.generic) else "" if cell is None else cell).strip()


def _number(
    where: str, name: str, cells: dict[str, Any], doubts: Doubts, above: float, most: float = math.inf
) -> float:
    """A cell as a number, also in per cent where it is a fraction; NaN where there is none."""
    text = _text(cells.get(name, ""))
    if text in ("", "nan", "None"):
        return math.nan
    try:
        value = float(text.removesuffix("%")) / (100 if text.endswith("%") and name == "fraction" else 1)
    except ValueError:
        value = math.nan
    if not above < value <= most or (name == "accuracy" and value < 0) or value == math.inf:
        expected = "a number from 0 to 1" if name == "accuracy" else f"a number above 0{', up to 1' * (most == 1)}"
        hint = " (per cent divided by 100)" if name == "accuracy" and 1 < value <= 100 else ""
        doubts.add(f"{where}: {name}={text[:40]}; expected {expected}{hint}")
        return math.nan
    return value


# --- right or wrong ---------------------------------------------------------------------------


def _answers(
    where: str, cells: dict[str, Any], shared: dict[str, np.ndarray], folder: Path, doubts: Doubts
) -> tuple[np.ndarray | None, np.ndarray | None]:
    """bool [S, M] and the labels [M] of the test examples; None where they are not told or cannot be read."""
    file = _text(cells.get("file", ""))
    arrays = {name: np.asarray(cells[name]) for name in TOLD if name in cells} | shared
    try:
        if file:
            arrays = {name or "correct": array for name, array in read_arrays(folder / file).items()}
        if not {"correct", "predicted"} & arrays.keys():
            if file:
                raise UserError(f"{file}: expected correct, or predicted and labels; got {', '.join(arrays)}.")
            return None, None
        return _judged(arrays)
    except UserError as error:
        doubts.add(f"{where}: {error}")
        return None, None


def _judged(arrays: dict[str, np.ndarray]) -> tuple[np.ndarray, np.ndarray | None]:
    """Right or wrong, bool [S, M], as it is told or by predicted classes and labels."""
    labels = arrays.get("labels")
    told = np.asarray(arrays["correct"] if "correct" in arrays else arrays["predicted"])
    told = told[None] if told.ndim == 1 else told
    if told.ndim != 2 or 0 in told.shape or told.shape[1] < 2:
        raise UserError(f"answers of shape {list(told.shape)}; expected [M] or [S, M] of M test examples, 2 or more.")
    if labels is not None and (labels.shape != told.shape[1:] or labels.dtype.kind not in "iu" or labels.min() < 0):
        raise UserError(
            f"labels are {labels.dtype} {list(labels.shape)}; expected a class, from 0, of each of {told.shape[1]}."
        )
    if "correct" in arrays:
        if told.dtype != bool and not (told.dtype.kind in "iuf" and np.isin(told, (0, 1)).all()):
            raise UserError(
                f"answers are {told.dtype}, and others than 0 and 1; expected right or wrong. Predicted classes go "
                "into an npz as predicted, beside labels."
            )
        return told.astype(bool), labels
    if labels is None or told.dtype.kind not in "iu":
        raise UserError(f"predicted is {told.dtype}; expected whole numbers, beside labels [{told.shape[1]}].")
    return told == labels, labels


def by_cell(rows: Iterable[Row]) -> dict[tuple[str, float], list[Row]]:
    """Trainings by arm and fraction, in the order in which these are first named."""
    found: dict[tuple[str, float], list[Row]] = {}
    for row in rows:
        found.setdefault((row.arm, row.fraction), []).append(row)
    return found
