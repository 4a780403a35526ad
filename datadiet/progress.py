"""How far work is: a live line on a terminal, a line a minute in a file, a bar in a notebook. It changes no result.

A process has one terminal, so that what is shown there is in one place: whoever counts or says something comes by here.
"""

from __future__ import annotations

import html
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from datadiet.intake import shown
from datadiet.printable import printable

PERIOD = 60.0  # seconds between two lines in a file
NOTEBOOK_PERIOD = 0.5  # … and between two changes of a bar in a notebook
DELAY = 0.5  # seconds of work before anything is shown of it on a terminal
WIDTH = 20  # characters of a bar

Advance = Callable[[int], Any]  # told the units just done


class Standing(NamedTuple):
    """How far a piece of work is, in the words of whoever does it."""

    done: str  # as in '53 of 90 trainings'
    doing: str = ""


def duration(seconds: float) -> str:
    """At about two digits."""
    if seconds < 10:
        return f"{seconds:.2g} s"
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


@dataclass
class Count:
    """A piece of work, counted in units of whatever kind."""

    total: int
    label: str
    told: Callable[[], Standing] | None = None  # in place of the units
    size: bool = False  # the units are bytes
    done: int = 0
    began: float = field(default_factory=time.monotonic)
    since: tuple[float, int] | None = None  # when counting began, and what was done by then
    shown_at: float = 0.0

    def advance(self, units: int) -> None:
        self.done += units
        if self.since is None:  # what was done before, or while programs were compiled, tells no rate
            self.since = time.monotonic(), self.done

    @property
    def fraction(self) -> float:
        return min(1.0, self.done / self.total) if self.total else 1.0

    @property
    def rate(self) -> float | None:
        """Units a second; None: not known yet."""
        if self.since is None or (seconds := time.monotonic() - self.since[0]) < 0.5 or self.done <= self.since[1]:
            return None
        return (self.done - self.since[1]) / seconds

    def standing(self) -> Standing:
        if self.told is not None:
            return self.told()
        if not self.size:
            return Standing(f"{self.done:,} of {self.total:,}")
        return Standing(
            f"{shown(min(self.done, self.total))} of {shown(self.total)}",
            f"{shown(int(self.rate))}/s" if self.rate else "",
        )

    def words(self) -> list[str]:
        """Part, what is done, time left, what is being done."""
        done, doing = self.standing()
        left = f"{duration((self.total - self.done) / self.rate)} left" if self.rate and self.done < self.total else ""
        return [printable(part) for part in (f"{self.fraction:.0%}", done, left, doing) if part]

    def line(self) -> str:
        """As a line of a file."""
        return f"{printable(self.label)}: {', '.join(self.words())}"

    def bar(self) -> str:
        """As a line of a terminal."""
        filled = round(WIDTH * self.fraction)
        return f"{printable(self.label)} {'━' * filled}{'╌' * (WIDTH - filled)} {' · '.join(self.words())}"


class Screen:
    """Where work is shown while it goes on."""

    def __init__(self) -> None:
        self.counts: list[Count] = []
        self.lock = threading.RLock()  # told from threads: of scoring, and of those that listen to signals

    def begin(self, count: Count) -> None:
        self.counts.append(count)

    def end(self, count: Count) -> None:
        self.counts.remove(count)

    def advanced(self, count: Count) -> None:
        pass

    def say(self, text: str) -> None:
        print(text, flush=True)


class File(Screen):
    """Neither terminal nor notebook: a line now and then."""

    def begin(self, count: Count) -> None:
        super().begin(count)
        count.shown_at = time.monotonic()

    def advanced(self, count: Count) -> None:
        if time.monotonic() - count.shown_at >= PERIOD:
            count.shown_at = time.monotonic()
            print(count.line(), file=sys.stderr, flush=True)


class Terminal(Screen):
    """One line for each piece of work, below everything that was said; it goes when the work is done."""

    def __init__(self) -> None:
        super().__init__()
        self.live: Any = None  # rich's, while something is counted

    def begin(self, count: Count) -> None:
        super().begin(count)
        if self.live is None:
            from rich.console import Console
            from rich.live import Live

            # soft_wrap: no line that is said is broken, so that commands can be copied
            console = Console(file=sys.stderr, soft_wrap=True, markup=False, highlight=False, emoji=False)
            self.live = Live(
                get_renderable=lambda: self._lines(console.width - 1), console=console, transient=True,
                redirect_stdout=False,
            )  # fmt: skip
            self.live.start()
            console.show_cursor(True)  # which would stay hidden after a second Ctrl-C

    def _lines(self, width: int) -> Any:
        from rich.text import Text

        old = [count for count in self.counts if time.monotonic() - count.began > DELAY]
        lines = [Text(count.bar(), no_wrap=True) for count in old]
        for line in lines:
            line.truncate(max(10, width), overflow="ellipsis")
        return Text("\n").join(lines)

    def end(self, count: Count) -> None:
        super().end(count)
        if not self.counts and self.live is not None:
            self.live.stop()
            self.live = None

    def say(self, text: str) -> None:
        with self.lock:
            if self.live is not None and sys.stdout.isatty():
                self.live.console.print(text)
            else:
                super().say(text)


class Notebook(Screen):
    """A bar below the cell."""

    def __init__(self) -> None:
        super().__init__()
        self.handles: dict[int, Any] = {}

    def begin(self, count: Count) -> None:
        from IPython import display  # pyright: ignore[reportMissingImports]  there is one in a notebook

        super().begin(count)
        self.handles[id(count)] = display.display(display.HTML(_bar(count)), display_id=True)

    def advanced(self, count: Count) -> None:
        if time.monotonic() - count.shown_at >= NOTEBOOK_PERIOD:
            self._show(count)

    def _show(self, count: Count) -> None:
        from IPython import display  # pyright: ignore[reportMissingImports]

        count.shown_at = time.monotonic()
        self.handles[id(count)].update(display.HTML(_bar(count)))

    def end(self, count: Count) -> None:
        super().end(count)
        self._show(count)
        del self.handles[id(count)]


def _bar(count: Count) -> str:
    return f'<progress max="1" value="{count.fraction:.4f}"></progress> {html.escape(count.line())}'


_screen: Screen | None = None
_hushed = False


def screen() -> Screen:
    """Where this process shows what it does; as long as something is counted, it stays the same."""
    global _screen
    if _hushed:
        return Screen()
    if _screen is None or not _screen.counts:
        _screen = Notebook() if in_notebook() else Terminal() if sys.stderr.isatty() else File()
    return _screen


def hush() -> None:
    """Show nothing of what is counted in this process: one that works for another, which shows it."""
    global _hushed
    _hushed = True


def in_notebook() -> bool:
    """Whether a notebook shows what this process prints."""
    ipython = sys.modules.get("IPython")
    shell = ipython.get_ipython() if ipython is not None else None
    return type(shell).__name__ == "ZMQInteractiveShell"


@contextmanager
def counting(
    total: int, label: str, told: Callable[[], Standing] | None = None, size: bool = False
) -> Iterator[Advance]:
    """Shows a piece of work for the length of a `with` block; call what it gives with the units just done.

    Args:
        total: Units in all.
        label: Names it.
        told: How far it is, in words, in place of the units.
        size: The units are bytes.
    """
    place, count = screen(), Count(total, label, told, size)
    with place.lock:
        place.begin(count)

    def advance(units: int) -> None:
        count.advance(units)
        with place.lock:
            place.advanced(count)

    try:
        yield advance
    finally:
        with place.lock:
            place.end(count)


def say(text: str) -> None:
    """Lines that stay, above whatever is counted; unseen characters are shown as `printable` has them."""
    screen().say(printable(text))
