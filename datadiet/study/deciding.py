"""What `decide` does: a decision and a report of trainings that others made, from what they found."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from datadiet import commands
from datadiet.config import TrainConfig, validate
from datadiet.data.dataset import Dataset
from datadiet.data.reading import Reading
from datadiet.data.registry import check_asked, dataset_of, tell_notes
from datadiet.errors import UserError
from datadiet.printable import natural
from datadiet.report.decision import Decision, check_margin
from datadiet.report.given import GIVEN, GivenStudy
from datadiet.report.sequential import looks
from datadiet.report.summary import metric_name
from datadiet.report.verdicts import FULL
from datadiet.runs.context import Context
from datadiet.selectors.options import RANDOM
from datadiet.storage.evaluations import Evaluations, forget_earlier, write_evaluations
from datadiet.storage.manifests import manifest_ids
from datadiet.storage.records import CellRecord, LookRecord, StudyRecord
from datadiet.study.evaluations import Doubts, Row, by_cell, read_rows
from datadiet.study.study import conclude
from datadiet.tracking import record

Cells = Mapping[tuple[str, float], Sequence[Row]]


@dataclass(frozen=True)
class Question:
    """What is to be decided, and what the table does not tell."""

    results: Path
    margin: float = 0.5  # percentage points
    model: str = "the model"  # as the report calls it
    num_examples: int | None = None  # N, of all of the data
    num_test: int | None = None  # M, where only accuracies are known


def decide_given(question: Question, config: TrainConfig | None, exp: str, context: Context) -> Decision:
    """Conclude from trainings of others, and write the report.

    Args:
        config: Options that name the data; None: it is not known here, and neither are classes and kept sets.
        exp: Experiment folder that everything is written below.
    Raises:
        UserError: the table is none, with all that stands in the way; or the folder has another decision.
    """
    check_margin(question.margin)
    layout, folder = context.output.layout, context.output.layout.experiment(exp)
    if config is not None:
        validate(config)
        check_asked(config.dataset, config.data_dir, Reading.of(config))
    dataset = None if config is None else dataset_of(config)
    if dataset is not None:
        tell_notes(dataset)
    doubts = Doubts()
    rows = _chance_named(read_rows(question.results, doubts), context.reporter.say)
    cells = _ordered(_cells(rows, question, dataset, doubts), doubts)
    found = _evaluations(cells, question, dataset, doubts)
    doubts.check(f"results={question.results}")
    context.tracker.check()
    told = _record(question, config, dataset, layout.name(folder), cells)
    before = _looks_before(folder, told, found, context.output.overwrite)
    name, where = layout.name(folder), folder / record.NAME
    note = f"Decision about trainings of others: {question.model}, {question.results.name}."
    with context.tracker.track("decide", exp, name, where, params=told.plan, note=note) as tracked:
        folder.mkdir(parents=True, exist_ok=True)
        told.evaluations, told.looks = write_evaluations(folder, found), before
        told.write(folder / "study.json")
        forget_earlier(folder)
        if dataset is not None:
            tracked.log_input(dataset.name, dataset.fingerprint, "study", num_rows=dataset.num_examples)
        return conclude(exp, question.margin, tracked, context)


# --- from rows to cells -----------------------------------------------------------------------


def _chance_named(rows: list[Row], say: Callable[[str], Any]) -> list[Row]:
    """The same, the arm of chance as RANDOM however it is written, which is said."""
    for other in dict.fromkeys(row.arm for row in rows if row.arm.lower() == RANDOM != row.arm):
        say(f"{other} is read as {RANDOM}: the arm by chance, which others have to beat.")
    return [row._replace(arm=RANDOM) if row.arm.lower() == RANDOM else row for row in rows]


def _cells(rows: list[Row], question: Question, dataset: Dataset | None, doubts: Doubts) -> Cells:
    """Trainings by arm and fraction; those on all of the data as FULL. Sizes and fractions are told by each other."""
    whole = [row.size for row in rows if row.fraction == 1 and row.size]
    known = [*([dataset.num_examples] if dataset else []), *([question.num_examples] if question.num_examples else [])]
    count = (known or whole or [None])[0]
    if count is None:
        doubts.add(
            "how many training examples there are is not told: expected a size beside fraction 1, "
            f"{commands.option('num_examples', 'N')}, or {commands.option('dataset', 'NAME')}"
        )
        return by_cell([r._replace(fraction=float(r.size or 0)) if math.isnan(r.fraction) else r for r in rows])
    for told in {*known, *whole} - {count}:
        doubts.add(f"all of the data has {count:,} training examples, and is told to have {told:,}")
    made = []
    for row in rows:
        fraction = row.size / count if math.isnan(row.fraction) and row.size else row.fraction
        size = row.size or (0 if math.isnan(fraction) else round(fraction * count))
        if math.isnan(fraction):
            doubts.add(f"{row.where}: neither a fraction nor a size")
        elif not 0 < fraction <= 1 or abs(size / count - fraction) > max(0.5 / count, 0.005 * fraction):
            doubts.add(f"{row.where}: a size of {size:,} of {count:,} is no fraction of {row.fraction:g}")
        made.append(row._replace(fraction=1.0 if size == count else size / count, size=size))
    return by_cell(made)


def _ordered(cells: Cells, doubts: Doubts) -> dict[tuple[str, float], list[Row]]:
    """The same with full data first, its runs in their natural order, and those of the others in the same."""
    whole = [key for key in cells if key[1] == 1]
    if not whole:
        doubts.add("no training on all of the data (fraction 1), with which all others are compared")
    elif len(whole) > 1:
        doubts.add(f"{', '.join(arm for arm, _ in whole)} keep all of the data; expected one name for that")
    if len(cells) == len(whole):
        doubts.add("no training on a subset (a fraction below 1)")
    names: dict[str, str] = {}
    for arm, fraction in cells:
        if arm.lower() == FULL and fraction != 1:
            doubts.add(f"{arm} keeps {fraction:g}; another arm cannot have its name")
        if (other := names.setdefault(metric_name(arm).lower(), arm)) != arm:
            doubts.add(f"{other} and {arm} are the same in names of files and metrics; rename one")
    expected = sorted({row.run for row in cells[whole[0]]}, key=natural) if whole else []
    found: dict[tuple[str, float], list[Row]] = {}
    for key in [*whole, *(key for key in cells if key not in whole)]:
        arm, fraction = (FULL if key in whole else key[0]), key[1]
        by_run: dict[str, Row] = {}
        for row in cells[key]:
            if row.run in by_run:
                doubts.add(f"{row.where}: run {row.run} of {arm} at {fraction:g} again, as in {by_run[row.run].where}")
            by_run[row.run] = row
        if expected and set(by_run) != set(expected):
            doubts.add(
                f"{arm} at {fraction:g} has the runs {_listed(by_run)}, {FULL} {_listed(expected)}: expected the same, "
                "because they are compared in pairs"
            )
        found[arm, fraction] = [by_run[run] for run in expected or by_run if run in by_run]
    return found


def _listed(runs: Any) -> str:
    runs = sorted(runs, key=natural)
    return ", ".join(runs[:10]) + (" …" if len(runs) > 10 else "")


def _evaluations(cells: Cells, question: Question, dataset: Dataset | None, doubts: Doubts) -> Evaluations:
    """What the cells tell, where nothing stands in the way."""
    rows = [row for of_cell in cells.values() for row in of_cell]
    lengths = {len(row.correct): row.where for row in rows if row.correct is not None}
    bare = [row.where for row in rows if row.correct is None]
    num_test = question.num_test or next(iter(lengths), 0)
    if len(lengths) > 1 or (lengths and num_test not in lengths):
        told = ", ".join(f"{length:,} in {where}" for length, where in lengths.items())
        doubts.add(f"answers of different numbers of test examples: {told}; expected {num_test:,} everywhere")
    if lengths and bare:
        doubts.add(f"{bare[0]}: only an accuracy, where others have answers; expected either for all trainings")
    if not num_test:
        doubts.add(
            "only accuracies are given, and how many test examples they are of is not told: expected "
            f"{commands.option('num_test', 'M')}"
        )
    labels = next((row.labels for row in rows if row.labels is not None), None)
    for row in rows:
        if row.labels is not None and not np.array_equal(row.labels, labels if labels is not None else []):
            doubts.add(f"{row.where}: other labels of test examples than before; expected the same test set everywhere")
    if labels is not None and dataset is not None and labels.max() >= dataset.num_classes:
        doubts.add(f"labels of test examples go up to {labels.max()}; {dataset.name} has {dataset.num_classes} classes")
    kept = _kept(cells, question, dataset, doubts)
    if doubts.found:
        return Evaluations(np.zeros((0, 0)), num_test, None, None, None, {})
    seconds = np.array([[row.seconds for row in of_cell] for of_cell in cells.values()])
    return Evaluations(
        np.array([[row.accuracy for row in of_cell] for of_cell in cells.values()]), num_test,
        None if bare else np.array([[row.correct for row in of_cell] for of_cell in cells.values()]),
        None if labels is None else labels.astype(np.int32),
        None if np.isnan(seconds).all() else seconds, kept,
    )  # fmt: skip


def _kept(cells: Cells, question: Question, dataset: Dataset | None, doubts: Doubts) -> dict[int, np.ndarray]:
    """What cells keep, in their first run that tells it, by their number."""
    found = {}
    for place, ((arm, fraction), rows) in enumerate(cells.items()):
        told = next((row for row in rows if row.kept), None)
        if told is None or fraction == 1:
            continue
        if dataset is None:
            named = commands.option("dataset", "NAME")
            doubts.add(f"{told.where}: kept={told.kept} is of data that is not named: {named}")
            continue
        try:
            ids = manifest_ids(question.results.parent / told.kept, dataset)
        except UserError as error:
            doubts.add(f"{told.where}: {error}")
            continue
        if len(ids) != told.size:
            doubts.add(f"{told.where}: {told.kept} keeps {len(ids):,} examples, not {told.size:,} as {arm} is told to")
        found[place] = ids
    return found


# --- the record -------------------------------------------------------------------------------


def _record(
    question: Question, config: TrainConfig | None, dataset: Dataset | None, exp: str, cells: Cells
) -> StudyRecord:
    """study.json, but for what `decide_given` adds."""
    plan = asdict(question) | {"results": str(question.results)}
    plan = {name: value for name, value in plan.items() if value is not None}
    if config is not None:
        plan |= {"dataset": config.dataset} | ({"data_dir": config.data_dir} if config.data_dir else {})
        plan |= Reading.of(config).given()
    selectors = {FULL: "all", RANDOM: RANDOM}
    made = [
        CellRecord(
            arm, selectors.get(arm, GIVEN), None, None, rows[0].size or 0, fraction,
            [f"{exp}/{row.run}" for row in rows],
        )
        for (arm, fraction), rows in cells.items()
    ]  # fmt: skip
    return StudyRecord(
        plan=plan, dataset=dataset.name if dataset else "the data",
        fingerprint=dataset.fingerprint if dataset else "", num_examples=made[0].size, model=question.model,
        budget=GIVEN, score_runs=[], means=[], cells=made,
    )  # fmt: skip


def _looks_before(folder: Path, told: StudyRecord, found: Evaluations, overwrite: bool) -> list[LookRecord]:
    """The looks of an earlier decision about fewer, or the same, of these trainings.

    Raises:
        UserError: the folder has the decision, or the study, of other trainings.
    """
    path = folder / "study.json"
    if not path.exists() or overwrite:
        return []
    old = StudyRecord.read(path)
    if old.evaluations is None or not _continues(GivenStudy(folder, ".", old), told, found):
        raise UserError(
            f"{folder} has what other trainings decided. Choose another {commands.option('exp', 'NAME')}, or replace "
            f"it with {commands.option('overwrite', True)}."
        )
    looks([look.runs for look in old.looks], len(told.cells[0].runs))
    return old.looks


def _continues(old: GivenStudy, told: StudyRecord, found: Evaluations) -> bool:
    """Whether trainings that both tell of on all of the data, of which there are some, have the same accuracies."""
    was, now = (
        dict(zip(record.cells[0].runs, accuracies))
        for record, accuracies in ((old.record, old.found.accuracies[0]), (told, found.accuracies[0]))
    )
    both = was.keys() & now.keys()
    same = old.record.fingerprint == told.fingerprint and old.record.model == told.model
    return bool(both) and same and all(was[run] == now[run] for run in both)
