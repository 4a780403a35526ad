"""What ends work that the caller can repair, or that was asked to stop."""

from __future__ import annotations

from typing import Self

from datadiet.printable import visible


class UserError(Exception):
    """Something the caller can repair; the message says what was got, expected, and how."""

    def __init__(self, message: object = "") -> None:
        super().__init__(visible(str(message)))

    @classmethod
    def of_shown(cls, message: str) -> Self:
        """From a message that can be shown as it is, such as one made of others."""
        error = cls()
        error.args = (message,)
        return error


class Misplaced(UserError):
    """A part of the mirror lies where another one belongs."""


class Diverged(UserError):
    """Training ended because its loss was no longer finite; the same options would end so again."""


class Interrupted(Exception):
    """The work was asked to stop and has stopped in good order; the message says how to go on."""


class Busy(UserError):
    """Another process works on what was asked for."""
