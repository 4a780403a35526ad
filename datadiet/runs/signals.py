"""Stopping in good order when asked to."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import Any

from datadiet.errors import Interrupted

EXIT_CODE = 75  # EX_TEMPFAIL of sysexits.h: stopped, not failed; the same command with resume=true goes on
GRACE_SECONDS = 5.0  # after a second Ctrl-C, for noting how things ended
AGAIN_SECONDS = 0.05  # until the main thread is woken again
SIGNALS = (signal.SIGTERM, signal.SIGINT)


class _Listener:
    """Hears signals in a thread of its own: the main one may be inside a compiled program for minutes, and Python
    calls a handler only when that returns."""

    def __init__(self, say: Callable[[str], Any] | None, after: str, again: str) -> None:
        self.say, self.after, self.again = say, after, again
        self.heard, self.hurried, self.over = threading.Event(), threading.Event(), threading.Event()
        self.raised = False

    def __call__(self, number: int, frame: FrameType | None) -> None:
        """In the main thread, when that is in Python again."""
        self.heard.set()
        if self.hurried.is_set() and not self.raised:
            self.raised = True
            raise KeyboardInterrupt

    def follow(self, pipe: int) -> None:
        """Take notice of signals, whose numbers come through a pipe, until its other end is closed."""
        signals = interrupts = 0
        while number := os.read(pipe, 1):
            if number[0] not in SIGNALS:
                continue
            signals, interrupts = signals + 1, interrupts + (number[0] == signal.SIGINT)
            self.heard.set()
            if signals == 1 and self.say:
                name = signal.Signals(number[0]).name
                self.say(f"{name}: stopping {self.after}. A second Ctrl-C ends at once.")
            if interrupts == 2 and not self.hurried.is_set():
                self.hurried.set()
                threading.Thread(target=self._insist, daemon=True).start()

    def _insist(self) -> None:
        """Have the main thread note how things end, and end the process where it does not come to that."""
        end = time.monotonic() + GRACE_SECONDS
        while not self.raised and time.monotonic() < end:
            signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)  # it may be waiting for something
            if self.over.wait(AGAIN_SECONDS):  # or was about to wait, and would not have seen the first
                return
        if not self.over.wait(max(0.0, end - time.monotonic())):
            if self.say:
                with suppress(OSError):
                    os.write(2, f"\nError: {self.ended_at_once}\n".encode())
            os._exit(EXIT_CODE)

    @property
    def ended_at_once(self) -> str:
        return f"Ended at once; what was saved before is there. {self.again}".rstrip()


_listener: _Listener | None = None  # of this process


@contextmanager
def listen(
    say: Callable[[str], Any] | None = None, after: str = "after this step, which is saved", again: str = ""
) -> Iterator[Callable[[], bool]]:
    """For the length of a `with` block, SIGTERM and the first Ctrl-C only make the function it gives say True.

    Both are heard, and told, at once, whatever the main thread is at. A second Ctrl-C ends the block; where it does
    not end within GRACE_SECONDS, being in the middle of a long computation, the process ends with EXIT_CODE.

    Within another such block it says True also where that one heard. Elsewhere than in the main thread, where Python
    lets no one listen, it never does.

    Args:
        say: Told of the first signal; None: nobody is.
        after: When the block ends then, in words.
        again: How to go on after a second Ctrl-C, in words.
    Raises:
        Interrupted: a second Ctrl-C came.
    """
    global _listener
    if threading.current_thread() is not threading.main_thread():
        yield lambda: False
        return
    if _listener is not None:
        yield _listener.heard.is_set
        return
    _listener = listener = _Listener(say, after, again)
    try:
        with _following(listener):
            yield listener.heard.is_set
    except KeyboardInterrupt:
        if not listener.raised:
            raise
        raise Interrupted(listener.ended_at_once) from None
    finally:
        _listener = None


@contextmanager
def _following(listener: _Listener) -> Iterator[None]:
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    thread = threading.Thread(target=listener.follow, args=(reader,), daemon=True, name="datadiet-signals")
    thread.start()
    handlers = {number: signal.signal(number, listener) for number in SIGNALS}
    before = signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    try:
        yield
    finally:
        signal.set_wakeup_fd(before)
        for number, action in handlers.items():
            signal.signal(number, signal.SIG_DFL if action is None else action)  # None: not of Python's making
        listener.over.set()
        os.close(writer)
        thread.join()
        os.close(reader)
