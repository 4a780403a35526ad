"""results: the table of finished training runs."""

from __future__ import annotations

from pathlib import Path

import click
from click.core import ParameterSource

from datadiet import commands

from .known import HELP_ALL, Known
from .options import OFFLINE, ONE_EXP, OVERWRITE, QUIET, VERBOSE, Location, Optional, make_context, repairable


@click.command(cls=Known)
@click.option("--exps_path", type=Optional(Location()),
              help="Read this exps/ folder (the mirror) instead of MLflow.  [default: MLflow]")  # fmt: skip
@click.option("--output", type=Location(), default="results.csv",
              help="File to write; it may replace an older table only.  [default: results.csv]")  # fmt: skip
@click.option("--root", type=Location(), default=".",
              help="Where given, only the runs below <root>/exps.  [default: all of the experiment]")  # fmt: skip
@ONE_EXP
@click.option("--budget", type=Optional(click.STRING),
              help="Only runs of this budget, iterations or epochs.  [default: the one there is]")  # fmt: skip
@OVERWRITE
@OFFLINE
@VERBOSE
@QUIET
@HELP_ALL
@repairable
def results(
    exps_path: Path | None,
    output: Path,
    root: Path,
    exp: str | None,
    budget: str | None,
    overwrite: bool,
    offline: bool,
) -> None:
    """Write one line per finished training run, from MLflow or from the mirror: the same bytes."""
    from datadiet.report.results_table import write_table

    ctx = click.get_current_context()
    given = ctx.get_parameter_source("root") != ParameterSource.DEFAULT
    context = make_context(root, overwrite, offline=offline)
    output = output.absolute() if commands.caller().by_mlflow else output  # which works in the project's folder
    write_table(exps_path, output, root if given else None, exp, context, budget)
