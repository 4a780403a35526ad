"""The looks of a study: what was looked at before, what may be said before it starts, and whether more runs are asked
for."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from datadiet.config import LOCATION_FIELDS
from datadiet.data.dataset import Dataset
from datadiet.errors import UserError
from datadiet.option import fields_of
from datadiet.report.comparison import ALPHA
from datadiet.report.decision import Decision
from datadiet.report.outlook import bound, reachable
from datadiet.report.page import MARGIN, read_decision
from datadiet.report.sequential import looks
from datadiet.report.statistics import estimate
from datadiet.report.text import headline
from datadiet.report.trained import TrainedStudy
from datadiet.report.verdicts import NOT_DECIDED
from datadiet.runs.context import Output
from datadiet.selectors.options import option_names
from datadiet.storage.records import CellRecord, LookRecord, StudyRecord, Summary
from datadiet.study.plan import Plan
from datadiet.study.spec import Cell, Job, StudySpec
from datadiet.tracking.run import TrackedRun


def looks_before(folder: Path, described: StudyRecord) -> list[LookRecord]:
    """Looks at this study that its folder tells of; none of trainings with other options, which were replaced.

    Raises:
        UserError: study.json, which tells them, is damaged.
    """
    path = folder / "study.json"
    if not path.exists():
        return []
    try:
        old = StudyRecord.read(path)
    except UserError as error:
        raise UserError(
            f"{error} It tells how often this study was looked at: put it back, or choose another exp."
        ) from None
    if not _same_runs(old, described):
        return []
    if not old.looks and (folder / "statistics.json").exists():  # of a version that did not note them
        return [_look(old, len(old.cells[0].runs), old.plan.get("margin", MARGIN), NOT_DECIDED, 1.0)]
    return old.looks


def _same_runs(old: StudyRecord, new: StudyRecord) -> bool:
    """Whether two studies train alike, whatever they compare and how often."""
    known = (old.plan.keys() & new.plan.keys()) - fields_of(Plan).keys() - LOCATION_FIELDS
    known -= {*option_names(), "features_step"}  # of the subsets alone: runs on all of the data are taken as they are
    was, now = ({name: one.plan[name] for name in sorted(known)} for one in (old, new))
    alike = json.dumps(was) == json.dumps(now)
    return alike and (old.fingerprint, old.cells[0].runs[0]) == (new.fingerprint, new.cells[0].runs[0])


def first_runs(plan: Plan, before: list[LookRecord]) -> int:
    """Evaluation runs of the first round: as planned, or with which a study was last looked at that goes on.

    Raises:
        UserError: fewer than it was looked at with.
    """
    seen = [look.runs for look in before]
    if plan.eval_runs is None:
        return seen[-1] if seen else plan.first_runs
    try:
        looks(seen, plan.eval_runs)
    except UserError as error:
        raise UserError(f"eval_runs={plan.eval_runs}: {error}") from None
    return plan.eval_runs


def _finished(exps: Path, cell: CellRecord) -> int:
    """How many runs of a cell are finished, one after the other from the first."""
    return next((n for n, run in enumerate(cell.runs) if not (exps / run / "summary.json").exists()), len(cell.runs))


def note_look(decision: Decision) -> bool:
    """Note in study.json that a study was looked at, before anyone is told what it says; whether that is new."""
    record = decision.study.record
    if decision.looks.runs[-1] in [look.runs for look in record.looks]:
        return False
    verdicts = decision.verdicts
    planned, told = decision.study.planned_runs, (verdicts.answer, verdicts.kept_fraction)
    record.looks.append(_look(record, planned, decision.margin, *told))
    record.write(decision.study.exps / decision.study.exp / "study.json")
    return True


def _look(record: StudyRecord, planned: int, margin: float, answer: str, kept_fraction: float) -> LookRecord:
    cells = [f"{cell.arm} {cell.fraction:.4g}" for cell in record.cells[1:]]
    return LookRecord(len(record.cells[0].runs), planned, margin, answer, kept_fraction, cells)


def next_runs(decision: Decision, most: int) -> tuple[int | None, str]:
    """Evaluation runs of the next look, half as many more; None: there is none. And what to say of it."""
    verdicts, runs = decision.verdicts, decision.looks.runs[-1]
    reached = [key for key in verdicts.open if verdicts.comparisons[key].runs_needed is not None]
    if not reached:
        decided = not verdicts.open or verdicts.answer != NOT_DECIDED
        why = "The verdict stands." if decided else "The test set is the limit: more runs would not decide it."
    elif runs >= most:
        why = f"There are {most} runs a subset, the most that were planned."
    else:
        more = min(most, -(-3 * runs // 2))
        return more, f"{_said(decision)} Not all is decided that could be: on to {more} runs."
    return None, f"{_said(decision)} {why}"


def _said(decision: Decision) -> str:
    return f"Looked at with {decision.looks.runs[-1]} runs a subset: {headline(decision)} {reachable(decision.nearest)}"


def cell_line(cell: Cell, accuracies: list[float]) -> str:
    """What came of an arm at a size."""
    told, n = estimate(accuracies), len(accuracies)
    name = cell.arm.name if cell.fraction == 1 else f"{cell.arm.name} at {cell.fraction:.0%}"
    spread = f" ± {100 * told.std:.2f}" if n > 1 else ""
    return f"{name}: test accuracy {100 * told.mean:.2f}{spread} %, {n} run{'s' * (n > 1)}"


@dataclass
class Rounds:
    """What a study trains before each look at it."""

    plan: Plan
    compiled: Callable[[int], StudySpec]  # with so many evaluation runs
    dataset: Dataset
    output: Output
    exp: str
    known: set[str] = field(default_factory=set)  # names of jobs of the rounds so far
    done: set[str] = field(default_factory=set)  # … of those that are done
    cells: tuple[Cell, ...] = ()  # of this round

    def __post_init__(self) -> None:
        """Raises UserError as `looks_before` and `first_runs` do."""
        self.described = self.compiled(self.plan.most_runs).record(self.dataset)
        self.before = looks_before(self.exps / self.exp, self.described)
        self.first = first_runs(self.plan, self.before)

    @property
    def exps(self) -> Path:
        return self.output.layout.exps

    def outlook(self) -> str:
        """What this test set can decide, and about how many runs that takes: by runs that are there, else a bound."""
        cells, arms = self.described.cells, len({cell.arm for cell in self.described.cells}) - 1
        counts = [0 if self.output.overwrite else _finished(self.exps, cell) for cell in cells]
        if not (runs := min(counts[0], max(counts[1:]))):
            return bound(len(self.dataset.test_labels), self.plan.margin, arms)
        there = [replace(cell, runs=cell.runs[:runs]) for cell, count in zip(cells, counts) if count >= runs]
        pilot = TrainedStudy(self.exps, self.exp, replace(self.described, cells=there, looks=[]))
        near = replace(Decision(pilot, self.plan.margin).nearest, level=ALPHA / arms)
        told = f"{runs} run{'s' if runs > 1 else ''} of {len(there) - 1} of {len(cells) - 1} subsets"
        return f"By {told}, which are finished: {reachable(near)}"

    def jobs(self, runs: int, before: list[LookRecord]) -> list[Job]:
        """Begin a round: study.json names so many runs of each subset. Gives the jobs that no round before had."""
        spec = self.compiled(runs)
        replace(spec.record(self.dataset), looks=before).write(self.exps / self.exp / "study.json")
        new = [job for job in spec.jobs if job.name not in self.known]
        self.known.update(job.name for job in new)
        self.cells = spec.cells
        return new

    def note(self, job: Job, say: Callable[[str], Any]) -> None:
        """A job is done: say what came of each cell all of whose runs are."""
        self.done.add(job.name)
        for cell in self.cells:
            if job in cell.jobs and self.done.issuperset(one.name for one in cell.jobs):
                paths = (self.exps / one.name / "summary.json" for one in cell.jobs)
                say(cell_line(cell, [Summary.read(path).test_acc for path in paths]))

    def more(self, tracked: TrackedRun, say: Callable[[str], Any]) -> list[Job]:
        """Look at what there is, note that, and ask for another round unless the verdict stands."""
        if self.plan.eval_runs is not None:
            return []
        decision = read_decision(self.exps, self.exp, self.plan.margin)
        if note_look(decision):
            told = {"kept_fraction": decision.verdicts.kept_fraction,
                    "smallest_margin": 100 * decision.nearest.smallest_margin}  # fmt: skip
            tracked.log_metrics({f"look/{name}": value for name, value in told.items()}, decision.looks.runs[-1])
        runs, words = next_runs(decision, self.plan.most_runs)
        say(words)
        return self.jobs(runs, decision.study.record.looks) if runs else []
