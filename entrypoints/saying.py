"""How much a command says."""

from __future__ import annotations

from collections.abc import Callable

import click

from datadiet.runs.console import Level

from .known import Grouped

LEVEL = "datadiet.level"  # how much is said, in the context of a command


def _leveled(level: Level) -> Callable:
    def take(ctx: click.Context, param: click.Parameter, value: bool) -> None:
        if not value:
            return
        if ctx.meta.setdefault(LEVEL, level) != level:
            raise click.UsageError("--verbose, --quiet and --json exclude each other.")

    return take


def level_option(level: Level, *names: str, text: str) -> Callable:
    """An option with or without a value, as MLflow gives it one: -q and --quiet true are the same."""
    return click.option(
        *names, is_flag=False, flag_value="true", type=click.BOOL, default=False, expose_value=False, is_eager=True,
        callback=_leveled(level), metavar="", cls=Grouped, group="output", help=f"{text}  [default: false]",
    )  # fmt: skip


VERBOSE = level_option(Level.VERBOSE, "--verbose", "-v", text="Say every path that is written.")
QUIET = level_option(Level.QUIET, "--quiet", "-q", text="Say the answer alone.")
JSON = level_option(Level.SILENT, "--json", text="Print the answer alone, as JSON.")


def is_json() -> bool:
    """Whether a program reads the answer of the current command."""
    return click.get_current_context().meta.get(LEVEL) == Level.SILENT
