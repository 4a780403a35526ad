"""Engines by name. To add one: write a class like those of local_engine.py and name it in ENGINES."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from datadiet.errors import UserError
from datadiet.option import check_values
from datadiet.runs.context import Context
from datadiet.study.engine import Engine, EngineOptions
from datadiet.study.local_engine import begin_local, check_local
from datadiet.study.ray_engine import begin_ray, check_ray


class EngineEntry(NamedTuple):
    """One entry of ENGINES."""

    begin: Callable[[EngineOptions, Context, int], Engine]  # (options, context, jobs that are not done yet)
    check: Callable[[EngineOptions], None] = lambda options: None  # raises UserError where it cannot be had
    options: tuple[str, ...] = ()  # of EngineOptions, that no other engine uses
    # Raises UserError where jobs could not compute; asked only if there are any.
    look: Callable[[EngineOptions, Callable[[str], Any]], None] = lambda options, say: None


ENGINES: dict[str, EngineEntry] = {
    "local": EngineEntry(begin_local, look=check_local),
    "ray": EngineEntry(begin_ray, check_ray, ("ray_address",)),
}


def check_engine(options: EngineOptions) -> None:
    """Refuse what cannot be had.

    Raises:
        UserError: names the option, its value and what was expected.
    """
    if options.engine not in ENGINES:
        raise UserError(f"engine={options.engine}: expected one of {', '.join(ENGINES)}.")
    check_values(options)
    for name, entry in ENGINES.items():
        for own in entry.options:
            if name != options.engine and getattr(options, own) is not None:
                raise UserError(f"{own}={getattr(options, own)} is used with engine={name} only.")
    ENGINES[options.engine].check(options)


def check_device(options: EngineOptions, say: Callable[[str], Any]) -> None:
    """Refuse, before anything is written, to begin jobs that could not compute.

    Args:
        say: Told of a device that is passed over.
    Raises:
        UserError: what was asked for, what there is, and what repairs it.
    """
    ENGINES[options.engine].look(options, say)


def begin_engine(options: EngineOptions, context: Context, count: int) -> Engine:
    """The engine for `count` jobs that are not done yet."""
    return ENGINES[options.engine].begin(options, context, count)
