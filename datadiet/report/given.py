"""A study of trainings that others made: what they told of them, as `decide` keeps it; and studies of either kind."""

from __future__ import annotations

import math
from functools import cached_property
from pathlib import Path

import numpy as np

from datadiet import commands
from datadiet.config import TrainConfig, given_config
from datadiet.errors import UserError
from datadiet.report.evidence import CellResult, Kept, Study
from datadiet.report.trained import TrainedStudy
from datadiet.storage.evaluations import Evaluations, read_evaluations
from datadiet.storage.layout import near_root
from datadiet.storage.records import CellRecord, StudyRecord

GIVEN = "given"  # the selector of an arm of others, and the budget of their trainings


class GivenStudy(Study):
    """A study that trained nothing."""

    @cached_property
    def found(self) -> Evaluations:
        return read_evaluations(self.exps / self.exp, self.record.evaluations or "")

    @cached_property
    def cells(self) -> list[CellResult]:
        """Every arm at every size, in the order of study.json."""
        return [self._cell(place, record) for place, record in enumerate(self.record.cells)]

    def _cell(self, place: int, record: CellRecord) -> CellResult:
        found = self.found
        accuracies = found.accuracies[place]
        nothing = np.full(accuracies.shape, math.nan)
        return CellResult(
            record.arm, record.selector, None, None, record.size, record.fraction,
            paths=tuple(record.runs), accuracies=accuracies,
            correct=None if found.correct is None else found.correct[place],
            per_class=self._per_class(place), kept_per_class=self._kept_per_class(place, record),
            train_seconds=nothing if found.seconds is None else found.seconds[place], select_seconds=math.nan,
        )  # fmt: skip

    @cached_property
    def _classes(self) -> int:
        if self.dataset is not None:
            return self.dataset.num_classes
        return 1 if self.found.labels is None else int(self.found.labels.max()) + 1

    def _per_class(self, place: int) -> np.ndarray:
        """float [S, C], NaN where labels are not known or a class has no test example."""
        correct, labels = self.found.correct, self.found.labels
        runs = self.found.accuracies.shape[1]
        per_class = np.full((runs, self._classes), math.nan)
        if correct is not None and labels is not None:
            for c in np.unique(labels):
                per_class[:, c] = correct[place][:, labels == c].mean(axis=1)
        return per_class

    def _kept_per_class(self, place: int, record: CellRecord) -> np.ndarray:
        """float [C], NaN where what is kept is not known."""
        if self.dataset is not None and (place in self.found.kept or record.selector == "all"):
            kept = self.found.kept.get(place, slice(None))
            return np.bincount(self.dataset.train_labels[kept], minlength=self._classes).astype(float)
        return np.full(self._classes, math.nan)

    @property
    def num_test(self) -> int:
        return self.found.num_test

    @property
    def test_labels(self) -> np.ndarray | None:
        return self.found.labels

    @property
    def data(self) -> TrainConfig | None:
        return given_config(self.record.plan) if self.record.plan.get("dataset") else None

    @property
    def seeds_told(self) -> str:
        return " of the same name"

    def kept(self, cell: CellResult) -> Kept | None:
        ids = self.found.kept.get(self._place(cell))
        return None if ids is None else Kept(ids, 0)

    def tells_kept(self, cell: CellResult) -> bool:
        return self.dataset is not None and self._place(cell) in self.found.kept

    def _place(self, cell: CellResult) -> int:
        return next(place for place, one in enumerate(self.cells) if one is cell)


def read_study(exps: Path, exp: str) -> Study:
    """A study by its experiment folder.

    Raises:
        UserError: there is none, or that of another folder.
    """
    path = exps / exp / "study.json"
    if not path.exists():
        known = sorted(p.parent.relative_to(exps).as_posix() for p in exps.rglob("study.json"))
        told = f"No study in {path.parent} (no study.json); there is: {', '.join(known) or 'none'}."
        if root := near_root(exps.parent, f"{exp}/study.json"):
            raise UserError(f"{told} There is one in another folder: {commands.again(root=root)}")
        raise UserError(f"{told} Make one: {commands.command('study', exp=exp, root=exps.parent)}")
    record = StudyRecord.read(path)
    named = [*record.score_runs, *(run for cell in record.cells for run in cell.runs)]
    if elsewhere := [run for run in named if not run.startswith(f"{exp}/")]:
        raise UserError(
            f"{path} is of another study than {exp}: it names {elsewhere[0]}. It was copied, moved or renamed; exps "
            "may be moved as a whole, no part of it."
        )
    return TrainedStudy(exps, exp, record) if record.evaluations is None else GivenStudy(exps, exp, record)
