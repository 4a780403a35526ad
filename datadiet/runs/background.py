"""Work that goes on behind the caller's back, in order, and is waited for."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import Any


class Background:
    """Calls done one after the other by a thread; a `with` block ends when all of them are done.

    After one that raised none is done any more, and the caller hears of it: at the next `submit` or `wait`, or at the
    end of the block, unless that ends by another exception.

    Args:
        most: So many calls may wait or be at work; `submit` waits where there are more.
    """

    def __init__(self, most: int = 1) -> None:
        self._most, self._failed = most, False
        self._pending: deque[Future[None]] = deque()
        self._thread = ThreadPoolExecutor(1, "datadiet-background")

    def submit(self, call: Callable[..., Any], *arguments: Any) -> None:
        """Have a call done after all earlier ones.

        Raises:
            What one of those raised.
        """
        while len(self._pending) >= self._most:
            self._pending.popleft().result()
        self._pending.append(self._thread.submit(self._do, call, arguments))

    def wait(self) -> None:
        """Return when all calls are done; raises what one of them raised."""
        while self._pending:
            self._pending.popleft().result()

    def _do(self, call: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
        if self._failed:
            return
        try:
            call(*arguments)
        except BaseException:
            self._failed = True
            raise

    def __enter__(self) -> Background:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._thread.shutdown(wait=True)
        if error is None:
            self.wait()
