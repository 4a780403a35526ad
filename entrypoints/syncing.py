"""sync: from the mirror into MLflow."""

from __future__ import annotations

from pathlib import Path

import click

from .known import HELP_ALL, Known
from .options import ONE_EXP, QUIET, ROOT, VERBOSE, make_context, repairable


@click.command(cls=Known)
@ROOT
@ONE_EXP
@VERBOSE
@QUIET
@HELP_ALL
@repairable
def sync(root: Path, exp: str | None) -> None:
    """Write into MLflow what it lacks: runs made with offline=true, or while it was away.

    Reads <root>/exps alone, keeps studies above their runs, and may be repeated at any time: what MLflow has stays as
    it is. Runs that a process is working on are passed over.
    """
    from datadiet.tracking.sync import sync_mirror

    context = make_context(root)
    sync_mirror(context.output.layout, exp, context.reporter.say)
