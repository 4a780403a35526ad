"""Progress of long work: a bar on a terminal; elsewhere, as in the log of a batch job, a line a minute."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from datadiet.printable import printable

LINE_SECONDS = 60.0


class Lines:
    """What has been done, told in lines.

    Args:
        total: Units of the whole work.
        label: Names it.
    """

    def __init__(self, total: int, label: str) -> None:
        self.total, self.label, self.done = total, label, 0
        self._mark: tuple[float, int] | None = None  # when a line was last due, and what was done by then

    def update(self, count: int = 1) -> None:
        """So many units more are done. The first call may tell what an earlier process did: no pace is seen in it."""
        self.done += count
        self._mark = self._mark or (time.monotonic(), self.done)

    def reset(self) -> None:
        """Nothing is done."""
        self.done, self._mark = 0, None

    def close(self) -> None:
        """As a bar has it; there is nothing to close."""

    def line(self) -> str:
        """What is done now, and how fast since the line before."""
        now, done = time.monotonic(), self.done
        (since, before), self._mark = self._mark or (now, done), (now, done)
        share = f" ({100 * done / self.total:.1f} %)" if self.total else ""
        told = f"{self.label}: {done:,} of {self.total:,}{share}"
        if done <= before:
            return f"{told}, none just now"
        pace = (done - before) / (now - since)
        return f"{told}, {_in_digits(pace)} a second, about {duration((self.total - done) / pace)} left"


def _in_digits(pace: float) -> str:
    """Three digits of a number, or all before the point."""
    return f"{pace:,.0f}" if pace >= 100 else f"{pace:.3g}"


def duration(seconds: float) -> str:
    """At about two digits: 48 s, 12 min, 3.4 h."""
    if seconds < 10:
        return f"{seconds:.2g} s"
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


@contextmanager
def progress(total: int, label: str, *, delay: float = 0, unit: str = "it") -> Iterator[Any]:
    """For the length of a `with` block, a bar on a terminal, else a line on stderr every LINE_SECONDS.

    Args:
        total: Units of the whole work; call `update` of what this gives with those just done.
        label: Text of whoever.
        delay: Seconds before a bar shows.
        unit: Of a bar; B for bytes.
    """
    if sys.stderr.isatty():
        from tqdm import tqdm

        with tqdm(total=total, desc=printable(label), leave=False, dynamic_ncols=True, delay=delay, unit=unit,
                  unit_scale=unit == "B") as bar:  # fmt: skip
            yield bar
        return
    lines, ended = Lines(total, printable(label)), threading.Event()

    def tell(stream=sys.stderr) -> None:
        while not ended.wait(LINE_SECONDS):
            print(lines.line(), file=stream, flush=True)

    thread = threading.Thread(target=tell, daemon=True, name="datadiet-progress")
    thread.start()
    try:
        yield lines
    finally:
        ended.set()
        thread.join()
