"""A finished study in Python: data frames, pictures and the decision. What it says is what its report says."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from datadiet import commands, notebook
from datadiet.errors import UserError
from datadiet.report import evidence, kept_sets, summary, words
from datadiet.report.decision import Decision, check_margin
from datadiet.report.evidence import CellResult
from datadiet.report.given import read_study
from datadiet.report.page import margin_of
from datadiet.report.trained import TrainedStudy
from datadiet.storage.records import StudyRecord
from datadiet.storage.score_files import read_ids

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True, repr=False)
class Answer:
    """What a study decides.

    Attributes:
        sentence: For readers who know no statistics.
        answer: Whether it is shown that something may be dropped, that nothing may, or neither.
        kept_fraction: The smallest that may be kept; 1.0: nothing can be dropped.
        arm: By which; None: nothing can be dropped.
        accuracy, accuracy_full: On the test set, 0 to 1, of what is kept and of all data.
        margin: Loss of test accuracy that does not matter, in percentage points.
        warnings: What to beware of.
        facts: All of it, as `report` says it to programs.
    """

    sentence: str
    answer: str
    kept_fraction: float
    arm: str | None
    accuracy: float
    accuracy_full: float
    margin: float
    warnings: tuple[str, ...]
    facts: dict[str, Any]

    @classmethod
    def of(cls, decision: Decision) -> Answer:
        told = summary.facts(decision)
        names = ("sentence", "answer", "kept_fraction", "arm", "accuracy", "accuracy_full", "margin")
        return cls(**{name: told[name] for name in names}, warnings=tuple(told["warnings"]), facts=told)

    def __repr__(self) -> str:
        return self.sentence

    def _repr_html_(self) -> str:
        told = {
            "keep": f"{self.kept_fraction:.0%} by {self.arm}" if self.arm else "all of the data",
            "test accuracy": f"{self.accuracy:.2%}, with all of the data {self.accuracy_full:.2%}",
            "margin": words.loss(self.margin),
        } | {f"beware {number}": one for number, one in enumerate(self.warnings, 1)}
        return notebook.facts(self.sentence, told)


class Study:
    """A finished study; `open` reads it.

    Attributes:
        path: Its folder.
    """

    def __init__(self, path: Path, decided: Decision) -> None:
        self.path, self._decided = path, decided

    @classmethod
    def open(cls, path: str | Path, margin: float | None = None) -> Study:
        """A study by its folder, as in exps/study.

        Args:
            margin: Loss of test accuracy that would not matter, in percentage points; None: the study's own.
        Raises:
            UserError: there is none, or one that is not finished.
        """
        path = Path(path)
        if margin is not None:
            check_margin(margin)
        exps = _exps_of(path)
        study = read_study(exps, path.absolute().relative_to(exps).as_posix())
        decided = Decision(study, margin_of(study, margin))
        _ = study.cells  # a run that is not finished is told now
        return cls(path, decided)

    def __repr__(self) -> str:
        record = self._evidence.record
        return (
            f"Study {self.path}: {record.model} on {record.dataset}, {len(self._evidence.arms)} arms. {self.decision}"
        )

    def _repr_html_(self) -> str:
        record, drawn = self._evidence.record, self._picture("accuracy")
        told = {"folder": self.path, "dataset": record.dataset, "model": record.model,
                "arms": ", ".join(self._evidence.arms)}  # fmt: skip
        return notebook.facts(self.decision.sentence, told, drawn)

    def _picture(self, name: str) -> str:
        from datadiet.report.figures import png

        return notebook.picture(png(self.figure(name)), self.decision.sentence)

    @property
    def _evidence(self) -> evidence.Study:
        return self._decided.study

    @cached_property
    def decision(self) -> Answer:
        """What may be dropped, and how sure that is."""
        return Answer.of(self._decided)

    @cached_property
    def runs(self) -> pd.DataFrame:
        """Every training: path below exps, role, arm, kept fraction, size, accuracies 0 to 1, seconds."""
        study = self._evidence
        if not isinstance(study, TrainedStudy):
            return pd.DataFrame([one for cell in study.cells for one in _told(cell)])
        rows = [_run(study, path, "scoring", "full data", 1.0) for path in study.record.score_runs]
        rows += [
            _run(study, path, "evaluation", cell.arm, cell.fraction) for cell in study.cells for path in cell.paths
        ]
        return pd.DataFrame(rows)

    @cached_property
    def cells(self) -> pd.DataFrame:
        """Every arm at every size: mean test accuracy (0 to 1) with its standard deviation over runs, the difference
        to all of the data with its 95 % interval for new runs and new test examples, and the verdict."""
        rows = []
        for line in self._decided.lines:
            cell, full = line.cell, line.minus_full
            rows.append({
                "arm": cell.arm, "selector": cell.selector, "score": cell.type, "step": cell.step,
                "fraction": cell.fraction, "size": cell.size, "runs": line.accuracy.n, "accuracy": line.accuracy.mean,
                "std": line.accuracy.std, "difference": full and full.mean, "low": full and full.low,
                "high": full and full.high, "verdict": line.verdict,
            })  # fmt: skip
        return pd.DataFrame(rows)

    @cached_property
    def scores(self) -> pd.DataFrame:
        """Every training example, in the data set's own order: a column for each mean score, and one for its standard
        error over runs. Larger is harder.

        Raises:
            UserError: the study has no scores.
        """
        study = self._evidence
        if not study.scores:
            raise UserError(f"{self.path} has no scores: its arms choose without.")
        steps = len({score.step for score in study.scores if not score.given}) > 1
        found = {}
        for score in study.scores:
            name = f"{score.type} step {score.step}" if steps and not score.given else score.type
            found |= {name: score.mean, f"{name} stderr": score.stderr}
        first = study.scores[0]
        ids = range(study.record.num_examples) if first.made is None else read_ids(study.exps / first.path, first.made)
        return pd.DataFrame(found, index=pd.Index(ids, name="example_id"))

    def figure(self, name: str) -> Figure:
        """A picture of the report.

        Args:
            name: One of those that `figures` lists.
        Raises:
            UserError: there is none of that name, or the study has nothing to show there.
        """
        from datadiet.report.pictures import FIGURES

        drawn = FIGURES[name](self._decided) if name in FIGURES else None
        if drawn is None:
            raise UserError(f"figure {name!r}: expected one of {', '.join(self.figures)}.")
        return drawn.figure

    @cached_property
    def figures(self) -> tuple[str, ...]:
        """Names of its pictures."""
        from datadiet.report.pictures import FIGURES

        return tuple(name for name, draw in FIGURES.items() if draw(self._decided) is not None)

    def kept(self, fraction: float | None = None, arm: str | None = None) -> pd.DataFrame:
        """Every training example, and whether a subset keeps it; the columns are those of kept tables.

        Args:
            fraction: Of the subset; None: the one that the decision is about.
            arm: By which it was chosen; None: the one that the decision is about, where it has that fraction, else
                the first that has.
        Raises:
            UserError: there is no such subset; it lists those there are.
        """
        return kept_sets.table(self._evidence, self._cell(fraction, arm))

    def _cell(self, fraction: float | None, arm: str | None) -> CellResult:
        about = self._decided.shown.cell
        subsets = [cell for cell in self._evidence.cells if cell is not self._evidence.full and cell.drops]
        wanted = about.fraction if fraction is None else fraction
        found = [cell for cell in subsets if abs(cell.fraction - wanted) < 0.5 / self._evidence.record.num_examples]
        named = [cell for cell in found if cell.arm == (about.arm if arm is None else arm)]
        if not (named or (found and arm is None)):
            known = ", ".join(f"{cell.arm} at {cell.fraction:.4g}" for cell in subsets)
            asked = f"{arm or 'any arm'} at {wanted:.4g}"
            raise UserError(f"{self.path} has no subset {asked}; there is: {known}.")
        return (named or found)[0]


def _run(study: TrainedStudy, path: str, role: str, arm: str, fraction: float) -> dict[str, Any]:
    made = study.finished(path)
    return {
        "path": path, "role": role, "arm": arm, "fraction": fraction, "size": made.num_kept,
        "train_acc": made.train_acc, "test_acc": made.test_acc, "seconds": made.seconds,
    }  # fmt: skip


def _told(cell: CellResult) -> list[dict[str, Any]]:
    """The same of what others found."""
    told = {"role": "evaluation", "arm": cell.arm, "fraction": cell.fraction, "size": cell.size, "train_acc": math.nan}
    runs = zip(cell.paths, cell.accuracies, cell.train_seconds)
    return [{"path": path, **told, "test_acc": accuracy, "seconds": seconds} for path, accuracy, seconds in runs]


def _exps_of(path: Path) -> Path:
    """The folder that paths of a study are told below.

    Raises:
        UserError: no study lies there.
    """
    if not (path / "study.json").is_file():
        repair = commands.command("study", exp=path.name, root=path.absolute().parent.parent)
        raise UserError(f"{path} holds no study (no study.json). Make one: {repair}")
    first = StudyRecord.read(path / "study.json").cells[0].runs[0]
    whole = path.absolute()
    return next((folder for folder in whole.parents if (folder / first).is_dir()), whole.parent)
