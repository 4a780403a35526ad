"""The trainings of a finished study, as they lie in the mirror: study.json and the folders that it names.

The data set itself is wanted for labels and images only.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import numpy as np

from datadiet.config import ResolvedConfig
from datadiet.errors import UserError
from datadiet.report.evidence import CellResult, History, Kept, Noise, Score, Study
from datadiet.runs.labels import labels_of
from datadiet.scores.names import names_of
from datadiet.scores.registry import training_score_names
from datadiet.selectors.selection import SELECTORS
from datadiet.storage.answers import read_answers
from datadiet.storage.layout import score_file
from datadiet.storage.manifests import manifest_ids
from datadiet.storage.records import CellRecord, MeanRecord, Summary
from datadiet.storage.runs import StoredRun, open_run
from datadiet.storage.score_files import ScoreRecord, load_scores

Loaded = tuple[np.ndarray, ScoreRecord | None]  # scores and the record beside them


def _which(selector: str) -> str:
    """'largest' for the name of one that keeps "the {count} examples of largest {score}"; else the name."""
    entry = SELECTORS.get(selector)
    before, _, after = ((entry and entry.words) or "").partition(" examples of ")
    return after.removesuffix(" {score}") if before == "the {count}" else selector


def _known(seconds: float | None, otherwise: float = math.nan) -> float:
    """Seconds that may not have been recorded."""
    return otherwise if seconds is None else seconds


@dataclass(frozen=True)
class TrainedStudy(Study):
    """A study whose trainings are runs of this package."""

    _runs: dict[str, StoredRun] = field(default_factory=dict)  # opened so far, by path below exps
    _scores: dict[Path, Loaded] = field(default_factory=dict)  # read so far

    @cached_property
    def cells(self) -> list[CellResult]:
        """Every arm at every size, in the order of study.json."""
        return [self._cell(record) for record in self.record.cells]

    def run(self, path: str) -> StoredRun:
        """A run by its path below exps; its files are read once, whoever asks."""
        if path not in self._runs:
            self._runs[path] = open_run(self.exps / path, path)
        return self._runs[path]

    def finished(self, path: str) -> Summary:
        """Summary of a run; raises UserError where it is not finished."""
        if (summary := self.run(path).summary) is None:
            raise UserError(f"{self.exps / path} is not finished; the same study command continues it.")
        return summary

    def _cell(self, record: CellRecord) -> CellResult:
        found = [self.finished(path) for path in record.runs]
        nothing = [None] * self.run(record.runs[0]).data.num_classes  # of runs made before these were recorded
        last = [self.run(path).reports[-1] for path in record.runs]
        return CellResult(
            record.arm, record.selector, record.type, record.step, record.size, record.fraction,
            paths=tuple(record.runs),
            accuracies=np.array([s.test_acc for s in found]),
            correct=self._answers(record.runs, found),
            per_class=np.array([s.test_acc_per_class or nothing for s in found], float),
            kept_per_class=np.array([s.kept_per_class or nothing for s in found], float).mean(axis=0),
            train_seconds=np.array([line.get("time/train_seconds", math.nan) for line in last]),
            select_seconds=float(np.mean([_known(s.select_seconds) for s in found])),
        )  # fmt: skip

    def _answers(self, paths: list[str], summaries: list[Summary]) -> np.ndarray | None:
        """bool [n, M]; None where a run did not record it."""
        pairs = [(path, s.num_test, s.test_correct_sha256) for path, s in zip(paths, summaries)]
        if any(num_test is None or sha256 is None for _, num_test, sha256 in pairs):
            return None
        return np.stack(
            [read_answers(self.exps / path, num_test or 0, sha256 or "") for path, num_test, sha256 in pairs]
        )

    @property
    def num_test(self) -> int | None:
        """M; None where neither the runs nor the data tell."""
        told = self.finished(self.full.paths[0]).num_test
        return told or (len(self.dataset.test_labels) if self.dataset else None)

    @property
    def test_labels(self) -> np.ndarray | None:
        return self.dataset.test_labels if self.dataset else None

    @cached_property
    def seeds_told(self) -> str:
        """Whether runs of equal positions share their seeds, as words behind 'runs'.

        The plan makes them so, and they are compared in these pairs whatever comes of it.
        """
        cells = [[(run.config.model_seed, run.config.train_seed) for run in map(self.run, c.paths)] for c in self.cells]
        same = all(len(set(at_position)) == 1 for at_position in zip(*cells))
        return " that share their seeds" if same else ", which share no seeds"

    def words(self, kind: str, step: int) -> str:
        """A score in plain words, such as 'error vector length early in training (EL2N, step 468)'."""
        if any(score.given and score.type == kind for score in self.scores):
            return f"{kind} (given)"
        last, in_training = self.config.num_steps, " in training" if kind in training_score_names() else ""
        when = " early in training" if 4 * step <= last else in_training or " late in training"
        return names_of(kind).at(" of an untrained network" if step == 0 else when, f"step {step:,}")

    def short(self, arm: str) -> str:
        """An arm as pictures name it, scores as the literature does: 'largest EL2N' for 'keep_max l2_error'."""
        types = {cell.type for cell in self.cells if cell.type}
        return " ".join(names_of(part).paper if part in types else _which(part) for part in arm.split(" "))

    @cached_property
    def scores(self) -> list[Score]:
        return [self._score(record) for record in self.record.means]

    def _score(self, told: MeanRecord) -> Score:
        """A mean score, the scores of its runs, and what they cost: a run counts as far as the scored step."""
        mean, made = self._loaded(self.exps / told.path)
        if made is not None and made.runs is None:
            return Score(told.type, told.step, told.path, mean, mean[None], math.nan, math.nan, made)
        runs = self.record.score_runs
        loaded = [self._loaded(score_file(self.exps / path, told.type, told.step)) for path in runs]
        trained = 0.0
        for path in runs:
            last = self.run(path).reports[-1]
            trained += last.get("time/train_seconds", math.nan) * min(1.0, told.step / last["step"])
        unknown = 0.0 if told.type in training_score_names() else math.nan  # those come with the training
        scored = sum(_known(own and own.seconds, unknown) for _, own in loaded) + _known(made and made.seconds)
        values = np.stack([values for values, _ in loaded])
        return Score(told.type, told.step, told.path, mean, values, trained, scored, made)

    def _loaded(self, file: Path) -> Loaded:
        if file not in self._scores:
            self._scores[file] = load_scores(file, file.relative_to(self.exps).as_posix())
        return self._scores[file]

    @cached_property
    def first(self) -> StoredRun:
        """The first evaluation run on all data: its options are those of all runs, but for seeds and subsets."""
        return self.run(self.full.paths[0])

    @property
    def config(self) -> ResolvedConfig:
        return self.first.config

    @property
    def data(self) -> ResolvedConfig:
        return self.config

    @property
    def notes(self) -> list[str]:
        return list(self.first.data.notes or [])

    def kept(self, cell: CellResult) -> Kept | None:
        """Raises UserError where a run kept examples that the data set does not have, or that cannot be had."""
        if self.dataset is None:
            raise UserError(f"The kept sets need the data set: {self.no_dataset}")
        run = self.run(cell.paths[0])
        return Kept(manifest_ids(run.input("kept.csv"), self.dataset), run.config.random_subset_seed)

    @cached_property
    def noise(self) -> Noise | None:
        """None where labels are the data's own, or the data cannot be had."""
        config = self.config
        if self.dataset is None or not (config.random_label_fraction or config.labels):
            return None
        labels = labels_of(self.first, self.dataset)
        return Noise(labels, labels != self.dataset.train_labels)

    def history(self, cell: CellResult) -> History:
        """Test accuracies of a cell's runs at every report."""
        lines = [self.run(path).reports for path in cell.paths]
        steps = sorted(set.intersection(*({line["step"] for line in of_run} for of_run in lines)))
        by_step = [{line["step"]: line["test_acc"] for line in of_run} for of_run in lines]
        return History(np.array(steps), np.array([[found[step] for step in steps] for found in by_step]))

    @cached_property
    def forgetting(self) -> np.ndarray | None:
        """Forgetting scores at the end of training, float [R, N], of the scored runs; None without them."""
        last = score_file(Path(), "forget", self.config.num_steps)
        files = [self.exps / path / last for path in self.record.score_runs]
        there = files and all(file.exists() for file in files)
        return np.stack([self._loaded(file)[0] for file in files]) if there else None
