"""Stopping in good order when asked to."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType
from typing import Any

EXIT_CODE = 75  # EX_TEMPFAIL of sysexits.h: stopped, not failed; the same command with resume=true goes on


@dataclass
class _Listener:
    """A signal handler that remembers having been called."""

    heard: threading.Event
    before: Mapping[signal.Signals, Any]  # handlers that it stands in for

    def __call__(self, number: int, frame: FrameType | None) -> None:
        self.heard.set()
        if number == signal.SIGINT:  # whoever presses Ctrl-C again does not want to wait
            signal.signal(number, self.before[signal.Signals(number)])


@contextmanager
def listen() -> Iterator[Callable[[], bool]]:
    """For the length of a `with` block, SIGTERM and the first Ctrl-C only make the function it gives say True.

    Within another such block it says True also where that one heard. Elsewhere than in the main
    thread, where Python lets no one listen, it never does.
    """
    if threading.current_thread() is not threading.main_thread():
        yield lambda: False
        return
    listening = signal.getsignal(signal.SIGTERM)
    if isinstance(listening, _Listener):
        yield listening.heard.is_set
        return
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    listener = _Listener(threading.Event(), before)
    try:
        for number in before:
            signal.signal(number, listener)
        yield listener.heard.is_set
    finally:
        for number, action in before.items():
            signal.signal(number, action)
