"""What ends work that the caller can repair, or that was asked to stop."""

from __future__ import annotations

from datadiet.printable import visible


class UserError(Exception):
    """Something the caller can repair; the message says what was got, expected, and how."""

    def __init__(self, message: object = "") -> None:
        super().__init__(visible(str(message)))


class Misplaced(UserError):
    """A part of the mirror lies where another one belongs."""


class Diverged(UserError):
    """Training ended because its loss was no longer finite; the same options would end so again."""


class Interrupted(Exception):
    """The work was asked to stop and has stopped in good order; the message says how to go on."""


class Busy(UserError):
    """Another process works on what was asked for."""
