"""What JAX computes on: looked at before anything is written, so that a device that cannot be had leaves nothing."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from functools import cache
from importlib.metadata import entry_points
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from datadiet import commands
from datadiet.devices import Devices
from datadiet.errors import UserError

ASKED_BY = ("JAX_PLATFORMS", "CUDA_VISIBLE_DEVICES")  # environment that chooses a device
NVIDIA = Path("/proc/driver/nvidia/gpus")  # a folder for each that its driver knows
_said: set[str] = set()


def check_device(say: Callable[[str], Any], devices: str = "1") -> None:
    """Refuse to begin where JAX cannot compute.

    Args:
        say: Told once in a process of a device that is passed over.
        devices: How many there have to be; see `Devices.asked`.
    Raises:
        UserError: what was asked for, what there is, and what repairs it.
    """
    tell(look(), say)
    Devices.asked(devices)


def tell(lines: tuple[str, ...], say: Callable[[str], Any]) -> None:
    """Say what was not said before."""
    for line in lines:
        if line not in _said:
            _said.add(line)
            say(line)


@cache
def look() -> tuple[str, ...]:
    """What there is to say of the device that JAX computes on, which a small program is run on.

    Raises:
        UserError: as `check_device`.
    """
    with _caught() as logged:
        try:
            jax.block_until_ready(jnp.zeros(1) + 1)
        except Exception as error:  # RuntimeError, AssertionError, what a plugin raises
            raise UserError(_refusal(error)) from error
    told = (record for record in logged if record.levelno >= logging.WARNING)
    return tuple(f"Warning: JAX computes on {jax.default_backend()}: {_first_line(r.getMessage())}" for r in told)


def look_apart() -> tuple[str, ...]:
    """As `look`, in a process of its own: one that only hands out work is to take no memory of a GPU."""
    return apart(look)


def apart(call: Callable[..., Any], *arguments: Any) -> Any:
    """What a call gives, in a process of its own, which alone starts JAX.

    Raises:
        UserError: as the call does.
    """
    try:
        with ProcessPoolExecutor(1, get_context("spawn")) as pool:
            return pool.submit(call, *arguments).result()
    except BrokenProcessPool:
        raise UserError(_refusal(RuntimeError("the process that looked at it died"))) from None


@contextmanager
def _caught() -> Iterator[list[logging.LogRecord]]:
    """What JAX logs meanwhile, in place of pages on the terminal."""
    records: list[logging.LogRecord] = []
    handler, logger = logging.Handler(), logging.getLogger("jax")
    handler.handle = lambda record: not records.append(record)
    before = logger.handlers[:], logger.propagate
    logger.handlers[:], logger.propagate = [handler], False
    try:
        yield records
    finally:
        logger.handlers[:], logger.propagate = before


def there() -> str:
    """What there is, in words."""
    gpus = len(list(NVIDIA.glob("*")))
    plugins = ", ".join(sorted({entry.name for entry in entry_points(group="jax_plugins")}))
    plugged = f"plugins of JAX for {plugins}" if plugins else "no plugin of JAX for a GPU"
    return f"a CPU, {gpus or 'no'} NVIDIA GPU{'s' * (gpus > 1)}, {plugged}"


def _refusal(error: Exception) -> str:
    asked = " ".join(f"{name}={os.environ[name]}" for name in ASKED_BY if name in os.environ)
    why = f" ({line})" if (line := _first_line(str(error))) else ""
    return (
        f"JAX has nothing to compute on{why}. Asked for: {asked or 'any device'}. There is: {there()}. "
        "A GPU needs its driver and pip install -U 'jax[cuda13]~=0.10.2'. JAX_PLATFORMS= takes whatever there is, and "
        f"this the CPU: JAX_PLATFORMS=cpu {commands.again()}".rstrip()
    )


def _first_line(text: str) -> str:
    """Without what JAX advises, which is not how this is called."""
    return text.strip().split("\n")[0].split(" (set JAX_PLATFORMS")[0][:200]
