"""Reports to whoever called, in this process: as much as they want to read."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from enum import IntEnum

from datadiet import progress
from datadiet.progress import Advance, Standing, counting


class Level(IntEnum):
    """How much is said."""

    SILENT = 0  # nothing: a program reads the answer in another form
    QUIET = 1  # the answer alone
    USUAL = 2
    VERBOSE = 3  # every path


def _as_it_is(text: str) -> str:
    return text


@dataclass(frozen=True)
class Console:
    """A `Reporter` on a terminal, in a file or in a notebook.

    Attributes:
        level: How much is said.
        placed: A message as it is shown, where paths are named otherwise for those who read it.
    """

    level: Level = Level.USUAL
    placed: Callable[[str], str] = _as_it_is

    def counter(
        self, total: int, label: str, told: Callable[[], Standing] | None = None
    ) -> AbstractContextManager[Advance]:
        if self.level < Level.USUAL:
            return nullcontext(lambda units: None)
        return counting(total, label, told)

    def detail(self, text: str) -> None:
        self._say(text, Level.VERBOSE)

    def say(self, text: str) -> None:
        self._say(text, Level.USUAL)

    def answer(self, text: str) -> None:
        self._say(text, Level.QUIET)

    def _say(self, text: str, level: Level) -> None:
        if self.level >= level:
            progress.say(self.placed(text))
