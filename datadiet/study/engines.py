"""Engines by name. To add one: write a class like those of local_engine.py and name it in ENGINES.

What does the work is imported when it is called: names need no JAX.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

from datadiet.errors import UserError
from datadiet.option import check_values
from datadiet.registries import lazily
from datadiet.study.options import EngineOptions

if TYPE_CHECKING:
    from datadiet.runs.context import Context
    from datadiet.study.engine import Engine

LOCAL, RAY = "datadiet.study.local_engine", "datadiet.study.ray_engine"


class EngineEntry(NamedTuple):
    """One entry of ENGINES."""

    begin: Callable[[EngineOptions, Context, int], Engine]  # (options, context, jobs that are not done yet)
    check: Callable[[EngineOptions], None] = lambda options: None  # raises UserError where it cannot be had
    options: tuple[str, ...] = ()  # of EngineOptions, that no other engine uses
    # Raises UserError where jobs could not compute; asked only if there are any.
    look: Callable[[EngineOptions, Callable[[str], Any]], None] = lambda options, say: None


ENGINES: dict[str, EngineEntry] = {
    "local": EngineEntry(lazily(LOCAL, "begin_local"), look=lazily(LOCAL, "check_local")),
    "ray": EngineEntry(lazily(RAY, "begin_ray"), lazily(RAY, "check_ray"), ("ray_address",)),
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
