"""Logits or probabilities that other programs saved: files of runs and epochs, brought into the order of the data."""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import numpy as np

from datadiet import commands
from datadiet.data.align import rows_of
from datadiet.data.dataset import Dataset
from datadiet.errors import UserError
from datadiet.printable import natural, printable
from datadiet.scores.outputs import logits_from
from datadiet.storage.arrays import SUFFIXES, read_arrays

IDS, LABELS = ("example_id", "example_ids", "ids", "id", "index"), ("labels", "label")
OUTPUTS = ("logits", "probabilities", "probs", "outputs", "")
MOST = 20  # things in the way that are named


class Given(NamedTuple):
    """What a file has."""

    outputs: np.ndarray  # [T, rows, C]
    ids: np.ndarray | None  # [rows]; None: canonical order
    labels: np.ndarray | None  # [rows]
    positions: bool  # whether the ids are called so


@dataclass(frozen=True)
class Outputs:
    """What one run gave.

    Attributes:
        name: As it was typed.
        files: In the order of its epochs; one alone may hold several.
    """

    name: str
    files: tuple[Path, ...]
    probabilities: bool

    def epochs(self, dataset: Dataset) -> Iterator[np.ndarray]:
        """Logits of each epoch, float32 [N, C] in canonical order; of what `problems` has nothing against."""
        for file in self.files:
            given = read_given(file)
            rows = np.arange(dataset.num_examples)
            if given.ids is not None:
                rows = np.argsort(rows_of(given.ids, dataset, positions=given.positions)[0])
            for outputs in given.outputs:
                yield logits_from(outputs[rows], dataset.num_classes, probabilities=self.probabilities)


@lru_cache(maxsize=1)  # looked at, then read epoch by epoch
def read_given(path: Path) -> Given:
    """Raises UserError where it has no outputs, or several that might be."""
    arrays = read_arrays(path)
    positions = "index" in arrays
    ids, labels = _one_of(path, arrays, IDS), _one_of(path, arrays, LABELS)
    columns = sorted((name for name in arrays if re.fullmatch(r"\D*\d+", name)), key=natural)
    names = [name for name in arrays if name in OUTPUTS]
    if path.suffix == ".parquet" and not names and columns == list(arrays):
        outputs = np.stack([arrays[name] for name in columns], axis=1)  # a column for each class
    elif len(names) == 1 and len(arrays) == 1:
        outputs = arrays[names[0]]
    else:
        told = ", ".join(printable(name) for name in arrays) or "nothing"
        raise UserError(
            "expected logits or probabilities under that name, or (parquet) numbered columns, one for each class; got "
            f"{told} beside ids and labels"
        )
    if outputs.ndim not in (2, 3) or 0 in outputs.shape:
        raise UserError(f"outputs of shape {list(outputs.shape)}; expected [N, C], or [T, N, C] of T epochs")
    return Given(outputs[None] if outputs.ndim == 2 else outputs, ids, labels, positions)


def _one_of(path: Path, arrays: dict[str, np.ndarray], names: Sequence[str]) -> np.ndarray | None:
    """The array under one of some names, which is taken out."""
    found = [name for name in names if name in arrays]
    if len(found) > 1:
        raise UserError(f"{' and '.join(found)} may both be meant; keep one")
    return arrays.pop(found[0]) if found else None


def find_outputs(files: Sequence[str], probabilities: bool) -> list[Outputs]:
    """Each of some paths is a run: a file, or a folder or pattern (`logits/epoch_*.npy`) of a file for each epoch.

    Raises:
        UserError: all of those where there is nothing, or no file of a kind that is known.
    """
    found, missing = [], []
    for name in files:
        path = Path(name).expanduser()
        if path.is_dir():
            own = [file for file in path.iterdir() if file.suffix in SUFFIXES]
        elif any(sign in name for sign in "*?") and not path.exists():
            own = [file for file in Path(path.anchor or ".").glob(str(path.relative_to(path.anchor)))]
        else:
            own = [path] if path.is_file() else []
        own.sort(key=lambda file: natural(file.name))
        found.append(Outputs(name, tuple(own), probabilities))
        if not own or any(file.suffix not in SUFFIXES for file in own):
            missing.append(name)
    if missing:
        raise UserError(
            f"files={','.join(missing)}: no files of outputs; expected {', '.join(SUFFIXES)}, or a folder of them."
        )
    return found


def check_outputs(runs: Sequence[Outputs], dataset: Dataset, labels: np.ndarray) -> tuple[list[int], list[str]]:
    """Look at all files before anything is written: the number of epochs of each run, and what is to be said of runs
    that do not tell the order of their rows.

    Args:
        labels: int32 [N], those trained on.
    Raises:
        UserError: all that stands in the way.
    """
    counts, found, told = [], [], []
    for run in runs:
        epochs = 0
        for file in run.files:
            try:
                given = read_given(file)
                epochs += len(given.outputs)
                problems = list(_problems(given, run.probabilities, dataset, labels))
            except UserError as error:
                problems = [str(error)]
            found += [f"{file}: {problem}" for problem in problems]
        counts.append(epochs)
        if not found and given.ids is None and given.labels is None:
            told.append(_order_taken(run, given, dataset, labels))
    if found:
        more = [f"and {len(found) - MOST} more"] if len(found) > MOST else []
        raise UserError("\n- ".join([f"{len(found)} thing{'s' * (len(found) > 1)} in the way:", *found[:MOST], *more]))
    return counts, told


def _order_taken(run: Outputs, given: Given, dataset: Dataset, labels: np.ndarray) -> str:
    """How rows with neither ids nor labels are taken, and what speaks against it."""
    right = float(np.mean(given.outputs[-1].argmax(axis=1) == labels))
    chance = 1.5 * float(np.bincount(labels).max()) / len(labels)
    end = ", as many as by chance: in another order, scores would be those of other examples" * (right < chance)
    return (
        f"{run.name}: neither ids nor labels, so its rows are taken to be in the order of {dataset.name}; of its last "
        f"outputs {right:.1%} are right{end}."
    )


def _problems(given: Given, probabilities: bool, dataset: Dataset, labels: np.ndarray) -> Iterator[str]:
    """What stands in the way of using a file."""
    rows, count = given.outputs.shape[1], dataset.num_examples
    order = None if rows != count else np.arange(count)
    if given.ids is not None and given.ids.shape != (rows,):
        yield f"ids of shape {list(given.ids.shape)} for {rows} rows"
        order = None
    elif given.ids is not None:
        order, obstacles = rows_of(given.ids, dataset, positions=given.positions)
        yield from obstacles
        order = None if obstacles else order
    elif rows != count:
        yield f"{rows} rows; {dataset.name} has {count} training examples, and without ids they are in its order"
    if given.labels is not None and order is not None:
        if given.labels.shape != (rows,):
            yield f"labels of shape {list(given.labels.shape)} for {rows} rows"
        elif wrong := int((given.labels != labels[order]).sum()):
            yield f"{wrong} of {rows} labels are not those of {dataset.name}: other labels, or another order"
    for epoch, outputs in enumerate(given.outputs):
        where = f"epoch {epoch}: " if len(given.outputs) > 1 else ""
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            try:
                logits_from(outputs, dataset.num_classes, probabilities=probabilities)
            except UserError as error:
                yield f"{where}{error}"
        if caught:
            yield f"{where}these look like probabilities: say so by {commands.option('probabilities', True)}"
