"""Event loops that end in good order, for a library that closes its own while tasks still wait in it.

A task whose loop is closed under it is answered by whoever it waited for, in another thread, with a traceback on
stderr, and what it was doing may go on unseen.
"""

from __future__ import annotations

import asyncio
import gc
import traceback
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

PATIENCE = 60.0  # seconds that a closed loop waits for its tasks before it cancels them


class _Patient(asyncio.SelectorEventLoop):
    """A loop that, when closed, first lets its tasks and its threads come to their ends."""

    def close(self) -> None:
        if not self.is_closed() and asyncio._get_running_loop() is None:  # garbage may be collected within another
            self.run_until_complete(self._drain())
        super().close()

    async def _drain(self) -> None:
        await asyncio.sleep(0)  # what is done already is told to those who asked for it
        while others := asyncio.all_tasks(self) - {asyncio.current_task()}:
            done, late = await asyncio.wait(others, timeout=PATIENCE)
            for task in late:
                task.cancel()
            for task in done:
                if not task.cancelled():
                    task.exception()  # heard of; whoever began it failed by another
        await self.shutdown_default_executor()


class _Policy(asyncio.DefaultEventLoopPolicy):
    def new_event_loop(self) -> asyncio.AbstractEventLoop:
        return _Patient()


@contextmanager
def patient() -> Iterator[None]:
    """Event loops that are made in this block, in whichever thread, end in good order, and where the block raises,
    coroutines that nobody came to await end without a word."""
    before = asyncio.get_event_loop_policy()
    asyncio.set_event_loop_policy(_Policy())
    try:
        yield
    except Exception as error:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", r"coroutine .* was never awaited", RuntimeWarning)
            traceback.clear_frames(error.__traceback__)
            gc.collect()
        raise
    finally:
        asyncio.set_event_loop_policy(before)
