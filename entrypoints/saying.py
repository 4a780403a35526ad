"""How much a command says, and how it says what is wrong."""

from __future__ import annotations

import re
from collections.abc import Callable

import click

from datadiet import commands
from datadiet.printable import printable
from datadiet.runs.console import Level
from datadiet.runs.signals import EXIT_CODE

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
        callback=_leveled(level), help=f"{text}  [default: false]",
    )  # fmt: skip


VERBOSE = level_option(Level.VERBOSE, "--verbose", "-v", text="Say every path that is written.")
QUIET = level_option(Level.QUIET, "--quiet", "-q", text="Say the answer alone.")
JSON = level_option(Level.SILENT, "--json", text="Print the answer alone, as JSON.")


def is_json() -> bool:
    """Whether a program reads the answer of the current command."""
    return click.get_current_context().meta.get(LEVEL) == Level.SILENT


class Told(click.ClickException):
    """One message without a traceback."""

    def format_message(self) -> str:
        return printable(self.message)


class Repairable(Told):
    """A UserError."""

    exit_code = 2


class Stopped(Told):
    """An Interrupted; the exit code tells a scheduler to try again."""

    exit_code = EXIT_CODE


def program_of(ctx: click.Context) -> commands.Caller:
    """How the user called, without options."""
    return commands.Caller(ctx.find_root().obj or commands.DATADIET)


class Known(click.Command):
    """A command that tells a misspelt option the line that was meant."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        given = list(args)
        try:
            return super().parse_args(ctx, args)
        except click.NoSuchOption as error:
            if not error.possibilities:
                raise
            meant = error.possibilities[0]
            words = [re.sub(rf"^{re.escape(error.option_name)}(?==|$)", meant, word) for word in given]
            line = program_of(ctx).typed_again(str(ctx.info_name), words)
            raise Repairable(f"No such option: {error.option_name}. Did you mean {meant}? {line}") from None
