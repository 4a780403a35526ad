"""A finished study as it lies in the mirror: accuracies, kept sets, scores and seconds as arrays.

Read from study.json and the folders that it names. The data set itself is wanted for labels and images only.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

import numpy as np

from datadiet import commands
from datadiet.config import ResolvedConfig
from datadiet.data.dataset import CHUNK, Dataset
from datadiet.data.registry import dataset_of, origins_of
from datadiet.data.sources.base import Origins
from datadiet.errors import UserError
from datadiet.runs.labels import labels_of
from datadiet.scores.names import names_of
from datadiet.scores.registry import training_score_names
from datadiet.selectors.options import LIKE, RANDOM
from datadiet.selectors.selection import SELECTORS, chooses_anew
from datadiet.storage.answers import read_answers
from datadiet.storage.layout import near_root, score_file
from datadiet.storage.records import AUTO, CellRecord, MeanRecord, StudyRecord, Summary
from datadiet.storage.runs import StoredRun, open_run
from datadiet.storage.score_files import ScoreRecord, load_scores

Loaded = tuple[np.ndarray, ScoreRecord | None]  # scores and the record beside them


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
        return f"{self.type} at {self.step}"

    @property
    def paper(self) -> str:
        """As the literature calls it."""
        return names_of(self.type).paper

    @property
    def stderr(self) -> np.ndarray:
        """Standard error of the mean over runs, float [N]; NaN for one run."""
        runs = len(self.runs)
        return np.std(self.runs, axis=0, ddof=1) / np.sqrt(runs) if runs > 1 else np.full_like(self.mean, np.nan)


def _which(selector: str) -> str:
    """'largest' for the name of one that keeps "the {count} examples of largest {score}"; else the name."""
    entry = SELECTORS.get(selector)
    before, _, after = ((entry and entry.words) or "").partition(" examples of ")
    return after.removesuffix(" {score}") if before == "the {count}" else selector


def _known(seconds: float | None, otherwise: float = math.nan) -> float:
    """Seconds that may not have been recorded."""
    return otherwise if seconds is None else seconds


class History(NamedTuple):
    """Test accuracy while training."""

    steps: np.ndarray  # int [T]
    accuracies: np.ndarray  # float [n, T]


class Noise(NamedTuple):
    """Labels that were randomised, or given."""

    labels: np.ndarray  # int32 [N], those trained on
    changed: np.ndarray  # bool [N]: differs from the data's own label


@dataclass(frozen=True)
class Study:
    """study.json and what it names."""

    exps: Path
    exp: str
    record: StudyRecord
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
        last, in_training = self.config.num_steps, " in training" if kind in training_score_names() else ""
        when = " early in training" if 4 * step <= last else in_training or " late in training"
        return names_of(kind).at(" of an untrained network" if step == 0 else when, f"step {step:,}")

    def short(self, arm: str) -> str:
        """An arm as pictures name it, scores as the literature does: 'largest EL2N' for 'keep_max l2_error'."""
        types = {cell.type for cell in self.cells if cell.type}
        return " ".join(names_of(part).paper if part in types else _which(part) for part in arm.split(" "))

    def of_arm(self, arm: str) -> list[CellResult]:
        """Its cells, the largest size first."""
        return sorted((cell for cell in self.cells if cell.arm == arm), key=lambda cell: -cell.size)

    @cached_property
    def scores(self) -> list[Score]:
        return [self._score(record) for record in self.record.means]

    def _score(self, told: MeanRecord) -> Score:
        """A mean score, the scores of its runs, and what they cost: a run counts as far as the scored step."""
        mean, made = self._loaded(self.exps / told.path)
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

    def score_of(self, cell: CellResult) -> Score | None:
        """The score that a cell chooses by."""
        return next((s for s in self.scores if (s.type, s.step) == (cell.type, cell.step)), None)

    @cached_property
    def first(self) -> StoredRun:
        """The first evaluation run on all data: its options are those of all runs, but for seeds and subsets."""
        return self.run(self.full.paths[0])

    @property
    def config(self) -> ResolvedConfig:
        return self.first.config

    @cached_property
    def dataset(self) -> Dataset | None:
        """The data, as published; None where it cannot be had here (`no_dataset` says why)."""
        return self._found[0]

    @cached_property
    def origins(self) -> Origins:
        """Where the training examples come from."""
        return origins_of(self.config)

    @property
    def no_dataset(self) -> str:
        return self._found[1]

    @cached_property
    def _found(self) -> tuple[Dataset | None, str]:
        try:
            dataset = dataset_of(self.config)
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
    def noise(self) -> Noise | None:
        """None where labels are the data's own, or the data cannot be had."""
        config = self.config
        if self.dataset is None or not (config.random_label_fraction or config.labels):
            return None
        labels = labels_of(self.first, self.dataset)
        return Noise(labels, labels != self.dataset.train_labels)

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
        return np.stack([self._loaded(file)[0] for file in files]) if all(f.exists() for f in files) else None


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
    return Study(exps, exp, record)
