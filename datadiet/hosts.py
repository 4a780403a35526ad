"""Processes that train as one, each on a machine of its own: the first chooses, says and writes; all compute."""

from __future__ import annotations

import re
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import jax
import numpy as np
from jax.experimental.multihost_utils import broadcast_one_to_all, process_allgather

from datadiet import commands
from datadiet.errors import Interrupted, UserError
from datadiet.option import refuse

CLUSTER = "cluster"  # Slurm, MPI or Kubernetes tell JAX
FORM = r"(?P<address>[^\s,:]+|\[[0-9a-fA-F:]+\]):(?P<port>[0-9]{1,5}),(?P<index>[0-9]{1,4}),(?P<count>[0-9]{1,4})"
WAIT_SECONDS = 600  # for the others, at the start
LEFT, MOST = 0, 2**31 - 1  # numbers in `agree`: this process has ended; whatever others say
GOING, STOPPED, FAILED = 0, 1, 2  # how it is with a process
# How the loss of another process begins, in what XLA says; a ValueError where JAX calls a program without Python.
STATUS = "(ABORTED|CANCELLED|DEADLINE_EXCEEDED|INTERNAL|UNAVAILABLE|UNKNOWN): "
STOPPED_BEFORE = "Stopped before training."


@dataclass
class _Place:
    """This process among them."""

    index: int = 0
    count: int = 1
    open: bool = False  # others wait for a word of this one
    stopped: bool = False  # one of them was to stop
    lost: bool = False  # one of them is gone without a word


_here = _Place()


def check(given: str) -> tuple[str, int, int]:
    """Address and port of the first process, the index of this one, and how many there are.

    Raises:
        UserError: `given` is not of that form.
    """
    found = re.fullmatch(FORM, given)
    if not found or not 0 < int(found["port"]) < 2**16 or not int(found["index"]) < int(found["count"]):
        form = "ADDRESS:PORT,PROCESS,PROCESSES (where process 0 listens, which this one is, and how many there are)"
        raise refuse("hosts", given, f"{form}, as in 10.0.0.1:9876,0,2, or {CLUSTER}")
    return f"{found['address']}:{found['port']}", int(found["index"]), int(found["count"])


def join(given: str | None, say: Callable[[str], object]) -> None:
    """Become one of several processes, once; before JAX computes anything.

    Args:
        given: As `check` has it, or 'cluster'; None: alone.
        say: Told of what is waited for.
    Raises:
        UserError: the first process does not answer, or nothing tells which this is.
    """
    if given is None or are_several():
        return
    if given == CLUSTER:
        try:
            jax.distributed.initialize(initialization_timeout=WAIT_SECONDS)
        except (ValueError, RuntimeError) as error:
            told = f"an address, for no Slurm, MPI or Kubernetes tells of other processes here ({error})"
            raise refuse("hosts", CLUSTER, told) from None
    else:
        address, index, count = check(given)
        if count == 1:
            return
        say(f"Process {index} of {count}: waits for {'the others' if not index else f'process 0 at {address}'}.")
        if index:
            _wait_for(address)
        jax.distributed.initialize(address, count, index, initialization_timeout=WAIT_SECONDS)
    _here.index, _here.count = jax.process_index(), jax.process_count()
    if not is_first():
        say(f"Process {_here.index} of {_here.count}: computes; process 0 says how it stands, and alone writes.")


def _wait_for(address: str) -> None:
    """JAX would abort this process where nobody answers."""
    name, port = address.rsplit(":", 1)
    until = time.monotonic() + WAIT_SECONDS
    while True:
        try:
            socket.create_connection((name.strip("[]"), int(port)), timeout=5).close()
            return
        except OSError as error:
            if time.monotonic() > until or isinstance(error, socket.gaierror):
                raise refuse("hosts", address, f"process 0 to listen there ({error})") from None
        time.sleep(0.2)


def is_first() -> bool:
    """Whether this process chooses, says and writes."""
    return _here.index == 0


def are_several() -> bool:
    """Whether other processes train with this one."""
    return _here.count > 1


def is_any_lost() -> bool:
    """Whether a process is gone without a word: then JAX lets no other end in its usual way."""
    return _here.lost


def agree(number: int, stopping: Callable[[], bool]) -> tuple[int, bool]:
    """The least number of all processes, and whether one of them is to stop; each has to come here as often.

    Raises:
        UserError: one of them has failed.
    """
    least, state = _exchange(number, STOPPED if stopping() else GOING)
    if state == FAILED:
        raise UserError(f"Another of {_here.count} processes has failed; what it said last says why.")
    return least, state == STOPPED


def _exchange(number: int, state: int) -> tuple[int, int]:
    told = process_allgather(np.array([number, state], np.int32))
    least, worst = int(told[:, 0].min()), int(told[:, 1].max())
    _here.open = least != LEFT and worst == GOING
    _here.stopped |= worst == STOPPED
    return least, worst


def stopping(own: Callable[[], bool]) -> Callable[[], bool]:
    """Whether this process is to stop, or another one was."""
    return lambda: own() or _here.stopped


def tell(content: bytes, stopping: Callable[[], bool]) -> None:
    """By the first process, what all others `hear`.

    Raises:
        Interrupted: one of them is to stop.
        UserError: one of them has failed.
    """
    if agree(len(content), stopping)[1]:
        raise Interrupted(STOPPED_BEFORE)
    broadcast_one_to_all(np.frombuffer(content, np.uint8))


def hear(stopping: Callable[[], bool]) -> bytes | None:
    """What the first process tells; None where it has no more work. Raises as `tell`."""
    size, stopped = agree(MOST, stopping)
    if stopped:
        raise Interrupted(STOPPED_BEFORE)
    return None if size == LEFT else broadcast_one_to_all(np.zeros(size, np.uint8)).tobytes()


@contextmanager
def together(given: str | None, say: Callable[[str], object]) -> Iterator[None]:
    """A `with` block in which this is one of several processes, and at whose end the others are told how it ended.

    Args:
        given, say: As `join` takes them; with None nothing is done.
    Raises:
        UserError: one of them does not come, or is gone.
    """
    join(given, say)
    if not are_several():
        yield
        return
    _here.open, _here.stopped, state = True, False, FAILED
    try:
        yield
        state = GOING
    except Interrupted:
        state = STOPPED
        raise
    except (jax.errors.JaxRuntimeError, ValueError) as error:
        if not re.match(STATUS, str(error)):
            raise
        _here.open, _here.lost = False, True
        told, again = str(error).split("\n")[0][:200], commands.option("resume", True)
        raise UserError(
            f"Another of {_here.count} processes is gone ({told}). What was saved is kept: begin all again, {again}."
        ) from None
    finally:
        if _here.open:
            try:
                _exchange(LEFT, state)
            except (jax.errors.JaxRuntimeError, ValueError):
                _here.lost = True
