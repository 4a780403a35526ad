"""A study begun by a program or a notebook, without a shell."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from datadiet import commands
from datadiet.config import given_config, registered_options
from datadiet.errors import UserError
from datadiet.option import fields_of
from datadiet.recipes import recipe_values
from datadiet.report.frames import Study
from datadiet.runs.console import Console, Level
from datadiet.runs.context import Context, Output, Tracker
from datadiet.storage.layout import ExperimentLayout
from datadiet.study.options import EngineOptions
from datadiet.study.plan import Plan
from datadiet.study.study import run_study
from datadiet.train_config import FIELDS


def study(
    dataset: str, *, exp: str = "study", root: str | Path = ".", offline: bool = False, overwrite: bool = False,
    workers: int | None = 1, quiet: bool = False, **options: Any,
) -> Study:  # fmt: skip
    """Score, prune, retrain and compare: from data to a decision, as the command `study` does.

    What is finished with the same options is taken as it is; an interrupted study goes on when it is called again.

    Args:
        dataset: Training data, by name, as in digits or folder:PATH.
        exp: Experiment folder below <root>/exps.
        offline: MLflow is not called.
        overwrite: Replace what is there.
        workers: Jobs at once; 1: in this process, which begins no others. A program that asks for more keeps what it
            does below `if __name__ == "__main__":`.
        quiet: Say nothing.
        options: Those of the command, by name, as in model="mlp", fractions=(0.7, 0.5), score_types=("l2_error",).
    Returns:
        The finished study.
    Raises:
        UserError: an option that there is not, or a study that could not be finished.
    """
    given = {"dataset": dataset, **options}
    plans, engines = fields_of(Plan), fields_of(EngineOptions)
    _check_names(given, (*FIELDS, *plans, *engines, *registered_options(), "recipe"))
    values: dict[str, Any] = {name: tuple(value) if isinstance(value, list) else value for name, value in given.items()}
    values |= {name: str(options[name]) for name in ("devices", "image_size") if options.get(name) is not None}
    if "recipe" in values:
        values |= recipe_values(values["recipe"], values)
    plan = Plan(**{name: value for name, value in values.items() if name in plans})
    engine = EngineOptions(**{name: value for name, value in values.items() if name in engines}, workers=workers)
    training = {name: value for name, value in values.items() if name not in plans}
    root = Path(root)
    typed = {**given, "root": root, "exp": exp, "offline": offline, "workers": workers}
    with commands.calling(commands.Caller(shared={"root": root}, entry_point="study", typed=typed)):
        console = Console(Level.SILENT if quiet else Level.USUAL)
        tracker = Tracker(root, commands.again(), console.say, offline=offline)
        context = Context(Output(ExperimentLayout(root), overwrite), console, tracker)
        decision = run_study(given_config(training), exp, context, plan, engine)
    return Study(root / "exps" / exp, decision)


def _check_names(given: Iterable[str], known: Sequence[str]) -> None:
    """Raises UserError for a name that is no option."""
    for name in given:
        if name not in known:
            close = difflib.get_close_matches(name, known, 1)
            told = f"Did you mean {close[0]}?" if close else f"Known: {', '.join(sorted(known))}."
            raise UserError(f"{name!r} is no option of a study. {told}")
