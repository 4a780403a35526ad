"""Labels that are trained on instead of the data's own: those of a file, or some of them drawn anew."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from datadiet.data.align import rows_of
from datadiet.data.dataset import Dataset
from datadiet.data.sources.csv_file import ROLES as OF_IMAGES
from datadiet.data.sources.delimited import Table, candidates, named, plain, read_table, windows
from datadiet.errors import UserError
from datadiet.printable import original, visible

ROLES = {
    "example_id": ("exampleid", "id", "ids", "example", "examples", *OF_IMAGES["path"]),
    "label": OF_IMAGES["label"],
}
NAMES = ("class", "classname", "labelname")  # columns whose cells are names, also where these are numbers


def randomize_labels(labels: np.ndarray, fraction: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Permute the labels of a random fraction of the examples among themselves.

    Args:
        labels: int32 [N].
        fraction: Of N, 0 to 1; int(N * fraction) examples are drawn.
        seed: Of NumPy's RandomState, as in the original.
    Returns:
        Labels int32 [N] in unchanged order, and the ids whose label may differ, sorted int32.
    """
    if not 0 <= fraction <= 1:
        raise UserError(f"random_label_fraction={fraction}: expected a fraction from 0 to 1.")
    random = np.random.RandomState(seed)
    chosen = random.choice(len(labels), int(len(labels) * fraction), replace=False)
    noisy = np.array(labels)
    noisy[chosen] = noisy[random.permutation(chosen)]
    return noisy, np.sort(chosen).astype(np.int32)


def given_labels(path: str | Path, dataset: Dataset) -> np.ndarray:
    """The label of each training example by a csv file with example_id and label, int32 [N].

    A label is the name of a class, or its number.

    Raises:
        UserError: it is no such file; or it names all obstacles at once: ids that the data does not have, training
            examples without a label or with two, labels that are no class.
    """
    name, file = f"labels={path}", Path(path).expanduser()
    table = read_table(name, file, ROLES, ("example_id", "label"))
    obstacles: list[str] = []
    rows = _rows(table, dataset, obstacles)
    numbers = _numbers(table, dataset, obstacles)
    if obstacles:
        raise UserError(
            "\n- ".join(
                [
                    f"{name}: it is not a label for each example of {dataset.name}, the data's own where that stays:",
                    *obstacles,
                ]
            )
        )
    labels = np.empty(dataset.num_examples, np.int32)
    labels[rows] = numbers
    return labels


def _rows(table: Table, dataset: Dataset, obstacles: list[str]) -> np.ndarray:
    """Which training example each row is of, int64 [N]."""
    columns = candidates(table.header, ROLES["example_id"])
    if len(columns) > 1:
        obstacles.append(f"{named(columns)} may each be the example_id: expected one that is called so")
    found, problems = rows_of(table.column(columns[0]), dataset, "have no label")
    obstacles += problems
    return found


def _numbers(table: Table, dataset: Dataset, obstacles: list[str]) -> list[int]:
    """The number of each row's class."""
    names = [str(one) for one in dataset.class_names] or [str(c) for c in range(dataset.num_classes)]
    by_name = {one: c for c, one in enumerate(names)}
    by_number = {spelled: c for c in range(dataset.num_classes) for spelled in (str(c), f"{c}.0")}
    columns = [one for one in table.header if plain(one) in ROLES["label"]]
    columns.sort(key=lambda one: (plain(one) not in NAMES, plain(one) != ROLES["label"][0]))
    readings: list[list[int]] = []
    cells: list[str] = []
    for column in columns:
        cells = [_spelled(cell, by_name) for cell in table.column(column)]
        found = [[known.get(cell) for cell in cells] for known in (by_name, by_number)]
        whole = [[c for c in numbers if c is not None] for numbers in found if None not in numbers]
        if None not in found[0] and plain(column) in NAMES:
            return whole[0]
        readings += whole
        if plain(column) in NAMES and not whole and any(c is not None for c in found[0]):
            readings = []  # some are names of classes: another column may not have what was written here
            break
    if not readings:
        _refuse_labels(cells, by_name, by_number, obstacles)
        return []
    if any(one != readings[0] for one in readings[1:]):
        obstacles.append(
            f"its labels may be names ({named(names)}) or numbers (0 to {dataset.num_classes - 1}), which differ: "
            "expected names in a column `class`"
        )
    return readings[0]


def _spelled(cell: str, known: dict[str, int]) -> str:
    tries = (cell, original(cell), visible(cell), windows(cell).strip())
    return next((one for one in tries if one in known), cell.strip())


def _refuse_labels(
    cells: Sequence[str], by_name: dict[str, int], by_number: dict[str, int], obstacles: list[str]
) -> None:
    empty = cells.count("")
    if empty:
        obstacles.append(f"{empty} rows have no label")
    wrong = {cell: None for cell in cells if cell and cell not in by_name and cell not in by_number}
    if wrong:
        count = sum(cell in wrong for cell in cells)
        expected = f"{named(list(by_name))}, or numbers from 0 to {len(by_name) - 1}"
        obstacles.append(f"{count} labels are of no class: {named(list(wrong))}; expected {expected}")
    elif not empty:
        obstacles.append("some labels are names of classes and some are numbers: expected one of them")
