"""How a command ends otherwise than well: in one message, without a traceback."""

from __future__ import annotations

import click

from datadiet.printable import printable
from datadiet.runs.signals import EXIT_CODE


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
