"""Finished training runs -> one table -> results.csv, from MLflow or from the mirror alike."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from datadiet import commands
from datadiet.config import BUDGETS
from datadiet.errors import Misplaced, UserError
from datadiet.intake import size_of
from datadiet.printable import natural, printable, unescaped
from datadiet.report.trained import TrainedStudy
from datadiet.runs.context import Context
from datadiet.storage.files import make_folder, write_text, writing
from datadiet.storage.layout import check_place
from datadiet.storage.records import Summary
from datadiet.storage.tables import csv_text
from datadiet.tracking import mlflow_store

HEADER = (
    "Dataset", "Neural network", "Scored by", "No.of train datasamples", "fraction of data trained on",
    "Train acc", "Test acc", "Execution time (in secs)",
)  # fmt: skip


_FIRST = ",".join(HEADER).encode()


class Result(NamedTuple):
    """One finished training run."""

    path: str  # below exps
    dataset: str
    model: str
    scored_by: str  # what the examples were kept by
    num_kept: int
    num_examples: int
    train_acc: float  # 0 to 1, over the last report's training batches
    test_acc: float  # 0 to 1, on the whole test set after the last step
    seconds: float  # training and evaluation, without compilation
    budget: str  # what trainings on subsets share with those on all data

    def cells(self) -> tuple[str, ...]:
        return (
            self.dataset, self.model, self.scored_by, str(self.num_kept), f"{self.num_kept / self.num_examples:.6g}",
            f"{self.train_acc:.6f}", f"{self.test_acc:.6f}", f"{self.seconds:.2f}",
        )  # fmt: skip


def from_mirror(exps_path: Path, say: Callable[[str], Any] = print) -> list[Result]:
    """Every finished training run below a folder, each once.

    Args:
        say: Told of copies, which do not count.
    Raises:
        UserError: no such folder.
    """
    if not exps_path.is_dir():
        raise UserError(f"exps_path={exps_path}: no such folder; expected the exps/ folder of a root.")
    found = {folder: Summary.read(folder / "summary.json") for folder in _finished(exps_path)}
    whole = any(folder == exps_path / summary.path for folder, summary in found.items())  # it is an exps itself
    counted: dict[Path, Summary] = {}
    for folder, summary in sorted(found.items(), key=lambda pair: (len(pair[0].parts), pair[0])):
        try:
            check_place(folder, summary.path, folder.relative_to(exps_path).as_posix() if whole else None)
        except Misplaced as error:
            say(f"Not counted: {error}")
            continue
        if twin := next((there for there, other in counted.items() if summary.same_run(other)), None):
            say(f"Not counted: {folder} is a copy of {twin}.")
        else:
            counted[folder] = summary
    return list(map(_result, counted.values()))


def of_study(study: TrainedStudy, say: Callable[[str], Any] = print) -> list[Result]:
    """Every finished training run below the folder of a study; `say` is told of copies, which do not count."""
    found = []
    for folder in _finished(study.exps / study.exp):
        try:
            summary = study.run(folder.relative_to(study.exps).as_posix()).summary
        except Misplaced as error:
            say(f"Not counted: {error}")
            continue
        found += [_result(summary)] if summary else []
    return found


def _result(summary: Summary) -> Result:
    return Result(*(getattr(summary, name) for name in Result._fields))


def _finished(folder: Path) -> Iterator[Path]:
    """Folders of finished runs below a folder. Within a run nothing is looked for: its checkpoints are many files."""
    for found, folders, files in os.walk(folder):
        if "args.json" in files:
            folders.clear()
        if "summary.json" in files:
            yield Path(found)


def from_mlflow(root: Path | None, say: Callable[[str], Any] = print) -> list[Result]:
    """Every finished training run of the MLflow experiment, the newest for each folder.

    Args:
        root: Only runs whose mirror lies in this root; None: all.
        say: Told of runs that look like one, and are passed over: somebody made them by hand, or copied their tags.
    """
    newest: dict[tuple[str, str], Result] = {}
    foreign: list[str] = []
    runs = mlflow_store.finished_training_runs()
    copies = mlflow_store.copies(runs)
    for run in runs:
        home = run.data.tags.get("datadiet.root")
        if home is not None and root is not None and home != str(root.resolve()):
            continue
        try:
            if run.info.run_id in copies:
                raise ValueError("with the tags of another run")
            result = _of_run(run.data.tags, run.data.params, run.data.metrics)
        except KeyError as error:
            foreign.append(f"{run.info.run_id} (without {printable(error.args[0])})")
        except ValueError as error:
            foreign.append(f"{run.info.run_id} ({printable(error)})")
        else:
            newest.setdefault((str(home), result.path), result)
    if foreign:
        named = ", ".join(foreign[:3]) + (" …" if len(foreign) > 3 else "")
        say(f"Passed over {len(foreign)} runs of MLflow that datadiet did not write, or not to their end: {named}")
    return list(newest.values())


def _of_run(tags: dict[str, str], params: dict[str, str], metrics: dict[str, float]) -> Result:
    """Raises KeyError or ValueError where they are not what a finished training writes."""
    result = Result(
        path=unescaped(tags["datadiet.path"]),
        dataset=unescaped(params["cfg.dataset"]),
        model=unescaped(params["cfg.model"]),
        scored_by=unescaped(tags["datadiet.scored_by"]),
        num_kept=int(params["data.num_kept"]),
        num_examples=int(params["data.num_examples"]),
        train_acc=metrics["train_acc"],
        test_acc=metrics["test_acc"],
        seconds=metrics["time/train_seconds"] + metrics["time/eval_seconds"],
        budget=params.get("cfg.budget", BUDGETS[0]),
    )
    if not (tags["datadiet.root"] and 0 < result.num_kept <= result.num_examples and result.budget in BUDGETS):
        raise ValueError("with values that no training has")
    return result


def to_csv(results: list[Result]) -> str:
    """The table, ordered by path."""
    return csv_text(HEADER, (r.cells() for r in sorted(results, key=lambda r: (natural(r.path), r))))


def of_one_budget(found: list[Result], budget: str | None) -> list[Result]:
    """The runs of one budget, which must be named where there are several: their accuracies do not compare.

    Raises:
        UserError: runs of several budgets and none named, or an unknown one.
    """
    if budget not in (None, *BUDGETS):
        raise UserError(f"budget={budget}: expected one of {', '.join(BUDGETS)}.")
    there = sorted({result.budget for result in found})
    if budget is None and len(there) > 1:
        raise UserError(
            f"These runs were trained with different budgets ({', '.join(there)}), which one table must not mix: "
            f"choose with {commands.option('budget', there[0])}, or one experiment with "
            f"{commands.option('exp', 'EXP')}."
        )
    return [result for result in found if budget in (None, result.budget)]


def _check_output(path: Path, overwrite: bool) -> None:
    """Raises UserError where a file that is no table would be replaced."""
    if path.is_dir():
        raise UserError(f"output={path} is a folder; expected the name of a file.")
    if overwrite or not path.exists():
        return
    size_of(path)  # which refuses a pipe, that would be waited for
    with open(path, "rb") as file:
        if file.read(1) and (file.seek(0), file.read(len(_FIRST)))[1] != _FIRST:
            raise UserError(
                f"output={path} is no table of results, and would be lost. Choose another file, or replace it with "
                f"{commands.option('overwrite', True)}."
            )


def _write(output: Path, text: str) -> None:
    """Into a folder that may be new: it is no part of a mirror."""
    with writing(output):
        make_folder(output.parent)
    write_text(output, text)


def _nothing_in(source: str, mirror: Path) -> UserError:
    return UserError(
        f"No finished training run in {source}. Train one (`{commands.command('full_data')}`), name the experiment "
        f"(`{commands.caller().within('NAME').command('results')}`), or read a mirror "
        f"({commands.option('exps_path', mirror)})."
    )


def write_table(
    exps_path: Path | None,
    output: Path,
    root: Path | None,
    exp: str | None,
    context: Context,
    budget: str | None = None,
) -> None:
    """Write results.csv and log it to MLflow.

    Args:
        exps_path: Mirror to read; None: MLflow, or the mirror where MLflow is not called.
        output: File to write.
        root, exp: Only runs of this root or experiment folder; None: all.
        budget: Only runs of this budget; None: of the one there is.
    Raises:
        UserError: there is no finished training run, or there are runs of several budgets.
    """
    _check_output(output, context.output.overwrite)
    if exp is not None:
        context.output.layout.experiment(exp)
    if budget not in (None, *BUDGETS):
        raise UserError(f"budget={budget}: expected one of {', '.join(BUDGETS)}.")
    if context.tracker.offline and exps_path is None:
        exps_path = context.output.layout.exps
    found = from_mirror(exps_path, context.reporter.say) if exps_path else from_mlflow(root, context.reporter.say)
    found = of_one_budget([r for r in found if exp is None or r.path.startswith(f"{exp}/")], budget)
    source = str(exps_path) if exps_path else f"MLflow ({mlflow_store.store_name()})"
    if not found:
        raise _nothing_in(source, context.output.layout.exps)
    params = {"exps_path": exps_path or "MLflow", "output": output, "root": root or "all", "exp": exp or "all"}
    note = f"Table of {len(found)} finished training runs, from {source}."
    with context.tracker.track("results", exp or "results", output.name, None, params=params, note=note) as tracked:
        _write(output, to_csv(found))
        tracked.log_artifact(output)
    context.reporter.answer(f"{len(found)} finished training runs from {source} -> {output}")
