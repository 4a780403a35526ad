"""study, and main, its quick preset."""

from __future__ import annotations

import difflib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from datadiet.errors import UserError
from datadiet.option import fields_of
from datadiet.scores.registry import score_names, training_score_names
from datadiet.study.engines import ENGINES
from datadiet.study.options import EngineOptions
from datadiet.study.plan import Plan

from .known import own_option
from .options import (
    DATA_ON,
    JSON,
    Location,
    Optional,
    Repairable,
    config_option,
    is_json,
    make_command,
    make_config,
    make_context,
    option_of,
    place_options,
    selector_options,
    training_options,
)

PLAN_FIELDS, ENGINE_FIELDS = fields_of(Plan), fields_of(EngineOptions)


def take_plan(ctx: click.Context, param: click.Parameter, path: Path | None) -> Path | None:
    """Take the values of a plan file for those options that the command line does not give.

    Raises:
        Repairable: no such file, not a table of names and values, or names that are no options.
    """
    if path is None:
        return None
    from datadiet.study.plan_file import read_plan

    try:
        values = read_plan(path)
    except UserError as error:
        raise Repairable(str(error)) from None
    known = sorted(p.name for p in ctx.command.params if p.name and p.expose_value and p.name != param.name)
    for name in values:
        if name not in known:
            close = difflib.get_close_matches(name[:80], known, 1)
            hint = f" Did you mean {close[0]}?" if close else ""
            told = f"{name[:80]!r} is no option of {ctx.info_name}.{hint} Known: {', '.join(known)}."
            raise Repairable(f"plan={path}: {told}")
    ctx.default_map = dict(values)
    return path


# The quick study: what it trains, a network that is large enough for digits, reporting every third epoch; and what it
# compares. 359 test examples can show margins of some 1.8 points or more, however many runs there are.
QUICK = {
    "dataset": "digits", "model": "mlp", "width": 64, "num_steps": 330, "decay_steps": (99, 198, 264), "log_steps": 33,
    "augment": False,
}  # fmt: skip
QUICK_PLAN = {"score_runs": 4, "eval_runs": 3, "fractions": (0.5, 0.3, 0.1), "margin": 2.0, "every_checkpoint": False}

PLAN = own_option(
    "plan", "study", Optional(Location()), "YAML or JSON file of options, by the names that stand here; the command "
    "line overrides it.  [default: none]", is_eager=True, callback=take_plan,
)  # fmt: skip
DRY_RUN = own_option(
    "dry_run", "study", click.BOOL, "Check everything, say how many trainings there are and what time, disk and memory "
    "they take, and stop before anything is written.  [default: false]", default=False,
)  # fmt: skip


def _run(
    root: Path, exp: str | None, overwrite: bool, offline: bool, plan: Path | None, data_on: str, dry_run: bool,
    **values: Any,
) -> None:  # fmt: skip
    from datadiet.report.summary import as_json
    from datadiet.study.study import prepare, run_study

    chosen = Plan(**{name: values.pop(name) for name in PLAN_FIELDS})
    name = exp or click.get_current_context().info_name
    engine = EngineOptions(**{name: values.pop(name) for name in ENGINE_FIELDS})
    context = make_context(root, overwrite, offline=offline, data_on=data_on)
    given = make_config(values), str(name), context, chosen, engine
    if dry_run:
        prepared = prepare(*given)
        told = prepared.estimate.as_json() if is_json() else str(prepared)
    else:
        decision = run_study(*given)
        told = as_json(decision) if is_json() else ""
    if told:
        click.echo(told)


def _study(**values: Any) -> None:
    """Score, prune, retrain and compare: one command from data to a decision.

    Trains score_runs networks on all examples, scores every example with each, averages the scores, and trains
    eval_runs networks on what each selector keeps by each score at each fraction, on random subsets of the same
    sizes and on all of the data. All of it is written below <root>/exps/<exp>/, exp being study by default, and
    tracked as the children of one MLflow run. With eval_runs=auto there are 3 of those, and then more until the verdict
    stands, the test set is the limit, or there are max_eval_runs. The same command goes on where it was stopped or
    killed and repeats nothing that is finished. SIGTERM or Ctrl-C saves what is being trained and ends with exit code
    75.
    """
    _run(**values)


def _main(**values: Any) -> None:
    """The quick study: the same as study, with defaults that end within minutes on two CPU cores.

    Ends with a table, plots and results.csv in <root>/exps/<exp>/; exp is main by default. Finished runs with the
    same options are not repeated, unfinished ones are continued. SIGTERM or Ctrl-C saves what is being trained and
    ends with exit code 75.
    """
    _run(**values)


def _command(name: str, run: Callable, training: dict[str, Any], **defaults: Any) -> click.Command:
    """With every option of selectors, Plan, EngineOptions and training, with other defaults where given."""
    names = {"engine": tuple(ENGINES), "score_types": (*score_names(), *training_score_names())}
    own = [
        option_of(known, defaults.get(name, known.default), names.get(name, ()))
        for name, known in (PLAN_FIELDS | ENGINE_FIELDS).items()
    ]
    of_features = config_option("features_step", None)
    trained = training_options(without=("run",), **training)
    return make_command(
        name, run, PLAN, *selector_options(), of_features, *own, trained, DATA_ON, DRY_RUN, JSON, place_options
    )


def study() -> click.Command:
    return _command("study", _study, {})


def main() -> click.Command:
    return _command("main", _main, QUICK, workers=1, **QUICK_PLAN)
