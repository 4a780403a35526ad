"""Scores in tables that other programs wrote: ids and a score in csv, parquet or npz."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np

from datadiet.data.align import rows_of
from datadiet.data.dataset import Dataset
from datadiet.data.sources.delimited import candidates, plain, read_table
from datadiet.errors import UserError
from datadiet.printable import printable
from datadiet.storage.arrays import read_arrays

SUFFIXES = (".csv", ".parquet", ".npz")
IDS = ("exampleid", "exampleids", "id", "ids", "index")
SCORE = ("score", "scores", "value", "values")
NO_SCORE = ("rank", "ranks", "ranking", "label", "labels", "class", "target", "prediction", "predicted")


def read_score_table(path: Path, dataset: Dataset) -> np.ndarray:
    """Scores of all training examples by their ids, float64 [N] in canonical order.

    Of the columns one is example_id (names) or, where there is none, index (positions in canonical order); another is
    score, or the only one besides.

    Raises:
        UserError: it cannot be read as that; or it names all obstacles at once: ids that the data does not have,
            examples without a score or with two, scores that are no finite numbers.
    """
    columns = _columns(path)
    names = candidates(list(columns), IDS)
    kinds = [name for name in names if plain(name) != "index"] or names
    others = [name for name in columns if name not in names]
    scores = candidates(others, SCORE) or others
    if len(kinds) != 1 or len(scores) != 1:
        got = ", ".join(map(printable, columns)) or "nothing"
        raise UserError(
            f"scores={path}: expected a column example_id (or index) and one that is called score; got {got}."
        )
    _check_name(path, kinds[0], scores[0])
    ids = np.asarray(columns[kinds[0]])
    index = plain(kinds[0]) == "index"
    if index and all(str(one).isdecimal() for one in ids):
        ids = ids.astype(np.int64)
    rows, obstacles = rows_of(ids, dataset, "have no score", positions=index)
    values = _numbers(columns[scores[0]])
    if bad := int((~np.isfinite(values)).sum()):
        obstacles.append(f"{bad} of {len(values)} scores are no finite numbers")
    if obstacles:
        raise UserError(
            "\n- ".join([f"scores={path}: it is not a score of each example of {dataset.name}:", *obstacles])
        )
    found = np.empty(dataset.num_examples)
    found[rows] = values
    return found


def _check_name(path: Path, ids: str, score: str) -> None:
    """Say which column is taken for the score; raises UserError where its name says that it is none."""
    if plain(score) in NO_SCORE:
        raise UserError(
            f"scores={path}: its only column beside {printable(ids)} is {printable(score)}; expected one that is "
            "called score, which is larger for harder examples."
        )
    if plain(score) not in SCORE:
        warnings.warn(f"{path}: its column {printable(score)} is taken for the score; larger is harder.", stacklevel=3)


def _columns(path: Path) -> dict[str, Any]:
    if path.suffix != ".csv":
        return read_arrays(path)
    table = read_table("scores", path, {"example_id": IDS, "score": SCORE}, ("example_id",))
    return {name: table.column(name) for name in table.header}


def _numbers(cells: Any) -> np.ndarray:
    """float64; NaN where a cell is none."""
    array = np.asarray(cells)
    if array.ndim != 1:
        return np.full(len(array), np.nan)
    try:
        return array.astype(np.float64)
    except (ValueError, TypeError):
        return np.array([_number(cell) for cell in array])


def _number(cell: Any) -> float:
    try:
        return float(cell)
    except (ValueError, TypeError):
        return np.nan
