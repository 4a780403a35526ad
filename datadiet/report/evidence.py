"""What a decision is made of, wherever it comes from: accuracies, kept sets and scores as arrays.

`TrainedStudy` has the trainings of a study, `GivenStudy` what others found in trainings of their own.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

import numpy as np

from datadiet.config import TrainConfig
from datadiet.data.dataset import CHUNK, Dataset
from datadiet.data.registry import dataset_of, origins_of
from datadiet.data.sources.base import Origins
from datadiet.errors import UserError
from datadiet.scores.names import names_of
from datadiet.selectors.options import LIKE, RANDOM
from datadiet.selectors.selection import chooses_anew
from datadiet.storage.records import AUTO, StudyRecord
from datadiet.storage.score_files import ScoreRecord


class CellResult(NamedTuple):
    """One arm at one size; [n] are its runs in the order of their seeds, which equal positions of cells share."""

    arm: str
    selector: str
    type: str | None  # of the score it chooses by
    step: int | None
    size: int
    fraction: float
    paths: tuple[str, ...]  # of its runs, below exps
    accuracies: np.ndarray  # float [n], 0 to 1, on the test set after the last step
    correct: np.ndarray | None  # bool [n, M], of the test examples; None where a run did not record it
    per_class: np.ndarray  # float [n, C], NaN where it was not recorded
    kept_per_class: np.ndarray  # float [C], mean over runs
    train_seconds: np.ndarray  # float [n], without compilation and evaluation; these and the others: NaN, not recorded
    select_seconds: float  # mean over runs

    @property
    def kept_is_known(self) -> bool:
        """Whether it is known how many examples of each class it keeps."""
        return bool(np.isfinite(self.kept_per_class).all())

    @property
    def drops(self) -> bool:
        """Whether it keeps a subset; else each epoch takes another one of all examples."""
        return not chooses_anew(self.selector)


class Score(NamedTuple):
    """A mean score of a study with the runs it was averaged from."""

    type: str
    step: int
    path: str  # below exps
    mean: np.ndarray  # float [N]
    runs: np.ndarray  # float32 [R, N]
    train_seconds: float  # to train the scored runs as far as `step`, all of them together
    score_seconds: float  # to score them and to average
    made: ScoreRecord | None  # the record beside the mean

    @property
    def name(self) -> str:
        return self.type if self.given else f"{self.type} at {self.step}"

    @property
    def given(self) -> bool:
        """Whether no run of ours was scored for it."""
        return self.made is not None and self.made.runs is None

    @property
    def paper(self) -> str:
        """As the literature calls it."""
        return names_of(self.type).paper

    @property
    def stderr(self) -> np.ndarray:
        """Standard error of the mean over runs, float [N]; NaN for one run."""
        runs = len(self.runs)
        return np.std(self.runs, axis=0, ddof=1) / np.sqrt(runs) if runs > 1 else np.full_like(self.mean, np.nan)


class History(NamedTuple):
    """Test accuracy while training."""

    steps: np.ndarray  # int [T]
    accuracies: np.ndarray  # float [n, T]


class Noise(NamedTuple):
    """Labels that were randomised, or given."""

    labels: np.ndarray  # int32 [N], those trained on
    changed: np.ndarray  # bool [N]: differs from the data's own label


class Kept(NamedTuple):
    """The examples of a subset."""

    ids: np.ndarray  # int32 [M] in kept order
    seed: int  # of the order among equal scores


@dataclass(frozen=True)
class Study:
    """study.json and what it names. What only trainings of this package tell is nothing here."""

    exps: Path
    exp: str
    record: StudyRecord

    @cached_property
    def cells(self) -> list[CellResult]:
        """Every arm at every size, in the order of study.json."""
        raise NotImplementedError

    @property
    def num_test(self) -> int | None:
        """M; None where it is not known."""
        raise NotImplementedError

    @property
    def test_labels(self) -> np.ndarray | None:
        """int32 [M]; None where they are not known, or not in the order of answers."""
        raise NotImplementedError

    @property
    def data(self) -> TrainConfig | None:
        """Options that name the data and how it is read; None: they are not known."""
        raise NotImplementedError

    @property
    def seeds_told(self) -> str:
        """What runs of equal positions, which are compared in pairs, have in common; as words behind 'runs'."""
        raise NotImplementedError

    @property
    def notes(self) -> list[str]:
        """What was decided when the data was read, and what is doubtful."""
        return [] if self.dataset is None else list(self.dataset.notes)

    def kept(self, cell: CellResult) -> Kept | None:
        """What a cell keeps, in its first run; None where that is not known.

        Args:
            cell: One that drops examples.
        """
        raise NotImplementedError

    def tells_kept(self, cell: CellResult) -> bool:
        """Whether there is what `kept` gives."""
        return cell.drops and cell is not self.full

    def short(self, arm: str) -> str:
        """An arm as pictures name it."""
        return arm

    def words(self, kind: str, step: int) -> str:
        """A score in plain words."""
        return names_of(kind).at("", f"step {step:,}")

    @cached_property
    def scores(self) -> list[Score]:
        return []

    @cached_property
    def noise(self) -> Noise | None:
        """None where labels are the data's own, or the data cannot be had."""
        return None

    def history(self, cell: CellResult) -> History | None:
        """Test accuracies of a cell's runs at every report; None where only the last are known."""
        return None

    @cached_property
    def forgetting(self) -> np.ndarray | None:
        """Forgetting scores at the end of training, float [R, N], of the scored runs; None without them."""
        return None

    def cell(self, arm: str, size: int) -> CellResult | None:
        return next((cell for cell in self.cells if (cell.arm, cell.size) == (arm, size)), None)

    def like(self, cell: CellResult) -> CellResult | None:
        """The cell whose numbers of each class a random one takes over."""
        arm = cell.arm.removeprefix(f"{RANDOM} {LIKE} ")
        return self.cell(arm, cell.size) if arm != cell.arm else None

    @property
    def planned_runs(self) -> int:
        """Evaluation runs of a subset that were planned before the first look."""
        record = self.record
        most = record.plan.get("max_eval_runs") if record.plan.get("eval_runs") == AUTO else None
        return record.looks[0].planned if record.looks else most or len(record.cells[0].runs)

    @property
    def planned_margin(self) -> float | None:
        """Of the question that the first look asked, in percentage points."""
        return self.record.looks[0].margin if self.record.looks else self.record.plan.get("margin")

    @property
    def full(self) -> CellResult:
        return next(cell for cell in self.cells if cell.selector == "all")

    @property
    def arms(self) -> list[str]:
        """Ways to choose a subset, random last."""
        names = dict.fromkeys(cell.arm for cell in self.cells if cell.selector != "all")
        return sorted(names, key=lambda name: name == RANDOM)

    def of_arm(self, arm: str) -> list[CellResult]:
        """Its cells, the largest size first."""
        return sorted((cell for cell in self.cells if cell.arm == arm), key=lambda cell: -cell.size)

    def score_of(self, cell: CellResult) -> Score | None:
        """The score that a cell chooses by."""
        return next((s for s in self.scores if (s.type, s.step) == (cell.type, cell.step)), None)

    @cached_property
    def dataset(self) -> Dataset | None:
        """The data, as published; None where it cannot be had here (`no_dataset` says why)."""
        return self._found[0]

    @cached_property
    def origins(self) -> Origins:
        """Where the training examples come from."""
        return origins_of(self.data) if self.data else Origins()

    @property
    def no_dataset(self) -> str:
        return self._found[1]

    @cached_property
    def _found(self) -> tuple[Dataset | None, str]:
        if self.data is None:
            return None, "no data set was named."
        try:
            dataset = dataset_of(self.data)
        except UserError as error:
            return None, str(error)
        if dataset.fingerprint != self.record.fingerprint:
            return None, f"{dataset.name} has changed since the study: its fingerprint is {dataset.fingerprint}."
        return dataset, ""

    @cached_property
    def class_names(self) -> list[str]:
        """Names of the classes, else their numbers."""
        count = len(self.full.kept_per_class)
        named = self.dataset.class_names if self.dataset else ()
        return [str(name) for name in named] if len(named) == count else [str(c) for c in range(count)]

    @cached_property
    def input_norm(self) -> np.ndarray | None:
        """Norm of every normalised input, float [N]: a control, since it knows no label and no network."""
        if self.dataset is None:
            return None
        images, mean, std = self.dataset.train_images, self.dataset.mean, self.dataset.std
        scale = 255.0 if images.dtype == np.uint8 else 1.0
        norms = np.empty(len(images))
        for start in range(0, len(images), CHUNK):
            chunk = (images[start : start + CHUNK] / scale - mean) / std
            norms[start : start + CHUNK] = np.linalg.norm(chunk.reshape(len(chunk), -1), axis=1)
        return norms
