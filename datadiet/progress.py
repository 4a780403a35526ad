"""How far work is: a live line on a terminal, a line a minute in a file, a bar in a notebook. It changes no result.

A process has one terminal, so that what is shown there is in one place: whoever counts or says something comes by here.
"""

from __future__ import annotations

import html
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any, NamedTuple, TypeVar

from datadiet.intake import shown
from datadiet.printable import printable
from datadiet.processors import processors

PERIOD = 60.0  # seconds between two lines in a file
NOTEBOOK_PERIOD = 0.5  # … and between two changes of a bar in a notebook
LEAST = 0.5  # seconds after which a pace is known
DELAY = 0.5  # seconds of work before anything is shown of it on a terminal
WIDTH = 20  # characters of a bar
AT_ONCE = 8  # units of work that a thread is given

Found = TypeVar("Found")
Advance = Callable[[int], Any]  # told the units just done
Counting = Callable[[int, str], AbstractContextManager[Advance]]  # a bar for so many units, as `counting`


def uncounted(total: int, label: str) -> AbstractContextManager[Advance]:
    """A `Counting` that shows nothing."""
    return nullcontext(lambda units: None)


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


def _in_digits(pace: float) -> str:
    """Three digits of a number, or all before the point."""
    return f"{pace:,.0f}" if pace >= 100 else f"{pace:.3g}"


@dataclass
class Count:
    """A piece of work, counted in units of whatever kind."""

    total: int
    label: str
    told: Callable[[], Standing] | None = None  # in place of the units
    size: bool = False  # the units are bytes
    done: int = 0
    began: float = field(default_factory=time.monotonic)
    since: tuple[float, int] | None = None  # from when on the pace counts, and what was done by then
    shown_at: float = 0.0

    def advance(self, units: int) -> None:
        self.done += units
        if self.since is None:  # what was done before, or while programs were compiled, tells no pace
            self.mark()

    def mark(self) -> None:
        """From now on the pace counts."""
        self.since = time.monotonic(), self.done

    @property
    def fraction(self) -> float:
        return min(1.0, self.done / self.total) if self.total else 1.0

    @property
    def pace(self) -> float | None:
        """Units a second; None: none are known."""
        if self.since is None or (seconds := time.monotonic() - self.since[0]) < LEAST or self.done <= self.since[1]:
            return None
        return (self.done - self.since[1]) / seconds

    def words(self) -> list[str]:
        """What is done, the pace of units, time left, what is being done."""
        pace, how_fast = self.pace, ""
        if self.told is not None:
            done, doing = self.told()
        elif self.size:
            done, doing = f"{shown(min(self.done, self.total))} of {shown(self.total)}", ""
            how_fast = f"{shown(int(pace))}/s" if pace else ""
        else:
            done, doing = f"{self.done:,} of {self.total:,}", ""
            how_fast = f"{_in_digits(pace)} a second" if pace else ""
        left = f"about {duration((self.total - self.done) / pace)} left" if pace and self.done < self.total else ""
        parts = (f"{done} ({100 * self.fraction:.1f} %)", how_fast, left, doing)
        return [printable(part) for part in parts if part]

    def line(self) -> str:
        """As a line of a file."""
        still = [] if self.pace or self.done >= self.total else ["none just now"]
        return f"{printable(self.label)}: {', '.join(self.words() + still)}"

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
    """Neither terminal nor notebook: a line now and then, also while nothing comes back."""

    def __init__(self) -> None:
        super().__init__()
        self.ended: dict[int, threading.Event] = {}

    def begin(self, count: Count) -> None:
        super().begin(count)
        ended, stream = threading.Event(), sys.stderr

        def tell() -> None:
            while not ended.wait(PERIOD):
                print(count.line(), file=stream, flush=True)
                count.mark()

        self.ended[id(count)] = ended
        threading.Thread(target=tell, daemon=True, name="datadiet-progress").start()

    def end(self, count: Count) -> None:
        super().end(count)
        self.ended.pop(id(count)).set()


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


def in_order(work: Callable[[int], Found], count: int, label: str) -> Iterator[Found]:
    """What `work` gives for 0 … count - 1, done in threads, a few ahead of what is taken."""
    threads = len(processors())
    waiting: deque[Future[list[Found]]] = deque()
    with (
        counting(count, label) as advance,
        ThreadPoolExecutor(threads) as pool,
    ):

        def first() -> Iterator[Found]:
            for found in waiting.popleft().result():
                yield found
                advance(1)

        for start in range(0, count, AT_ONCE):
            part = range(start, min(start + AT_ONCE, count))
            waiting.append(pool.submit(lambda part: [work(i) for i in part], part))
            if len(waiting) > threads:
                yield from first()
        while waiting:
            yield from first()
