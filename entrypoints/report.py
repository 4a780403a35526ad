"""report: the report of a study, made again."""

from __future__ import annotations

from pathlib import Path

import click

from datadiet import commands
from datadiet.errors import UserError

from .known import HELP_ALL, Known
from .options import QUIET, ROOT, VERBOSE, Location, Optional, make_context, repairable


@click.command(cls=Known)
@ROOT
@click.option("--exp", default="study", help="Experiment folder of the study below exps/.  [default: study]")
@click.option("--margin", type=Optional(click.FLOAT), help="Loss of test accuracy that would not matter, in percentage "
              "points.  [default: the study's own, else 0.5]")  # fmt: skip
@click.option("--format", "form", type=click.Choice(["html", "json"]), default="html",
              help="json: the decision alone, for programs; makes no report.  [default: html]")  # fmt: skip
@click.option("--output", type=Optional(Location()),
              help="File to write the decision to (format=json).  [default: it is printed]")  # fmt: skip
@VERBOSE
@QUIET
@HELP_ALL
@repairable
def report(root: Path, exp: str, margin: float | None, form: str, output: Path | None) -> None:
    """Say what a finished study decides, from the mirror alone; nothing is trained.

    Writes report.html (self-contained), statistics.json, figures/ and kept/ (the kept set of every subset as .csv
    and .parquet) below <root>/exps/<exp>/, in place of an earlier report, and logs them to MLflow. With --format json
    it prints the decision, or writes it to a file, and does nothing else; docs/decision.md has its entries.
    """
    from datadiet.report.page import make_report, read_decision, write_decision
    from datadiet.report.summary import as_json

    context = make_context(root, overwrite=True)
    if form == "html" and output is not None:
        raise UserError(f"output={output}: only {commands.option('format', 'json')} writes a file that has a name.")
    if form == "html":
        make_report(exp, margin, context)
    elif output is None:
        click.echo(as_json(read_decision(context.output.layout.exps, exp, margin)))
    else:
        # `mlflow run` works in the folder of the project
        output = output.absolute() if commands.caller().by_mlflow else output
        write_decision(read_decision(context.output.layout.exps, exp, margin), output)
        context.reporter.say(str(output))
