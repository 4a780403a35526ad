"""Compiled programs, and the seconds that compiling and running them takes; both can be left before they end."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, wait
from contextlib import contextmanager
from functools import lru_cache, partial
from types import MappingProxyType
from typing import Any

import jax
import jax.monitoring
import jax.numpy as jnp

from datadiet.devices import Devices
from datadiet.errors import Interrupted

POLL_SECONDS = 0.1  # between two looks at whether to stop
_left: list[Future] = []  # calls that `unless` did not wait for


def never() -> bool:
    """What stops nothing."""
    return False


def unless(stopping: Callable[[], bool], call: Callable, *arguments: Any) -> Any:
    """What a call returns that may take minutes without coming back to Python, as compiling does.

    Args:
        stopping: Where it says yes, the call is left alone, in a thread of its own.
    Raises:
        Interrupted: it was left.
    """
    if stopping is never:
        return call(*arguments)
    result: Future = Future()
    left = Interrupted("Stopped before it was done.")
    if stopping():
        raise left

    def work() -> None:
        try:
            result.set_result(call(*arguments))
        except BaseException as error:
            result.set_exception(error)

    threading.Thread(target=work, daemon=True, name="datadiet-call").start()
    try:
        while not wait([result], POLL_SECONDS).done:
            if stopping():
                raise left
    except BaseException:
        _left.append(result)
        raise
    return result.result()


def is_any_left() -> bool:
    """Whether a call that was left is still at work: then Python cannot end in its usual way."""
    return not all(call.done() for call in _left)


class Clock:
    """Seconds spent, by name: train, eval, compile and total.

    Args:
        earlier: What `elapsed` said where the work is continued.
    """

    def __init__(self, earlier: Mapping[str, float] = MappingProxyType({})) -> None:
        self.begin = time.perf_counter() - earlier.get("total", 0.0)
        self.seconds = {name: earlier.get(name, 0.0) for name in ("train", "eval", "compile")}

    def elapsed(self) -> dict[str, float]:
        """Seconds so far."""
        return {**self.seconds, "total": time.perf_counter() - self.begin}

    def metrics(self, steps: int, batch_size: int) -> dict[str, float]:
        """Seconds so far, and the mean rate of training."""
        spent = {f"time/{name}_seconds": value for name, value in self.elapsed().items()}
        return spent | {"examples_per_second": steps * batch_size / max(self.seconds["train"], 1e-9)}


def timed(clocks: Sequence[Clock], name: str, call: Callable, *arguments: Any) -> Any:
    """What a call returns, when it is computed; its seconds are shared evenly among the runs that it was for."""
    start = time.perf_counter()
    result = jax.block_until_ready(call(*arguments))
    share = (time.perf_counter() - start) / len(clocks)
    for clock in clocks:
        clock.seconds[name] += share
    return result


@contextmanager
def compile_seconds() -> Iterator[list[float]]:
    """Seconds that XLA takes to compile, or to find compiled, each program in a `with` block of this process."""
    spent: list[float] = []

    def hear(event: str, duration_secs: float, **_: Any) -> None:
        if event == "/jax/core/compile/backend_compile_duration":
            spent.append(duration_secs)

    jax.monitoring.register_event_duration_secs_listener(hear)
    try:
        yield spent
    finally:
        jax.monitoring.unregister_event_duration_listener(hear)


def compiled(
    clocks: Sequence[Clock], function: Callable, static: tuple, arguments: tuple, donate: tuple[int, ...] = (),
    calls: tuple[Callable, ...] = (), stopping: Callable[[], bool] = never,
):  # fmt: skip
    """A compiled function, from memory where a run before has compiled it; compiling is timed apart.

    Args:
        arguments: Those that it is called with first, or their shapes.
        calls: Functions that it finds by name: where another has one of their names, it is compiled anew.
        stopping: Where it says yes, compiling is left.
    Raises:
        Interrupted: it was left.
    """
    shapes = jax.tree.map(_shape, arguments)
    leaves, treedef = jax.tree.flatten(shapes)
    given = (function, static, (tuple(leaves), treedef), donate, calls)
    return timed(clocks, "compile", unless, stopping, _compiled, *given)


def _shape(x: Any) -> jax.ShapeDtypeStruct:
    if isinstance(x, jax.ShapeDtypeStruct):
        return x
    return Devices.of(x).like(x if isinstance(x, jax.Array) else jnp.asarray(x))


@lru_cache(maxsize=8)
def _compiled(
    function: Callable, static: tuple, shapes: Any, donate: tuple[int, ...], calls: tuple[Callable, ...]
) -> Callable:
    leaves, treedef = shapes
    arguments = jax.tree.unflatten(treedef, leaves)
    return jax.jit(partial(function, *static), donate_argnums=donate).lower(*arguments).compile()
