"""report: the report of a study, made again."""

from __future__ import annotations

from pathlib import Path

import click

from datadiet.report.page import make_report

from .options import ROOT, Optional, make_context, repairable


@click.command()
@ROOT
@click.option("--exp", default="study", help="Experiment folder of the study below exps/.  [default: study]")
@click.option("--margin", type=Optional(click.FLOAT), help="Loss of test accuracy that would not matter, in percentage "
              "points.  [default: the study's own, else 0.5]")  # fmt: skip
@repairable
def report(root: Path, exp: str, margin: float | None) -> None:
    """Say what a finished study decides, from the mirror alone; nothing is trained.

    Writes report.html (self-contained), statistics.json, figures/ and kept/ (the kept set of every subset as .csv
    and .parquet) below <root>/exps/<exp>/, in place of an earlier report, and logs them to MLflow.
    """
    make_report(exp, margin, make_context(root, overwrite=True))
