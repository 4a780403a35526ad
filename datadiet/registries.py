"""Registries whose entries have options, and may bring new ones: selectors, and scores gathered while training.

What is added to a registry while the program runs counts from then on.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from importlib import import_module
from typing import Any, NamedTuple

from datadiet.errors import UserError
from datadiet.option import Option, Parameters


class EntryPoint(NamedTuple):
    """One entry of ENTRY_POINTS."""

    text: str  # line of help
    make: Callable[[], Any]  # -> click.Command, with the options that registries have by then


def lazily(module: str, name: str, *first: Any) -> Callable[..., Any]:
    """A function whose module is imported when it is called, so that the names of a registry cost no libraries.

    Args:
        module: By its whole name.
        first: Arguments that stand before those of the call.
    """

    def call(*given: Any) -> Any:
        return getattr(import_module(module), name)(*first, *given)

    return call


ENTRY_POINTS: dict[str, EntryPoint] = {}  # commands by name; the command line puts its own here

# By the option that chooses entries. `options` of an entry: names, or a mapping from names to what `option` made.
REGISTRIES: dict[str, Mapping[str, Any]] = {}

# Names that commands and files use for something else.
TAKEN = frozenset((
    "root", "exp", "overwrite", "offline", "resume", "runs", "plan", "score_exp", "score_type", "score_step", "data",
    "registered", "derived_seeds", "recipe",
))  # fmt: skip


def brought_options() -> dict[str, Option]:
    """The options that entries bring, by name.

    Raises:
        UserError: a name that cannot be, or one name for two options.
    """
    found: dict[str, Option] = {}
    for kind, entry, described in ((kind, *item) for kind, registry in REGISTRIES.items() for item in registry.items()):
        for name, made in described.options.items() if isinstance(described.options, Mapping) else ():
            known = made if isinstance(made, Option) else Option.of(name, made)
            if not re.fullmatch("[a-z][a-z0-9_]*", name) or name in TAKEN or hasattr(Parameters(), name):
                raise UserError(f"{kind} {entry}: its option {name!r} needs another name, of letters, digits and '_'.")
            if found.setdefault(name, known) != known:
                raise UserError(f"{kind} {entry}: another entry has another option {name}; rename one of them.")
    return found


def options_for(config: Any, kind: str) -> list[str]:
    """Names of the options of those entries of one registry that a config chooses, each once."""
    chosen, registry = getattr(config, kind), REGISTRIES.get(kind, {})
    names = chosen if isinstance(chosen, tuple) else (chosen,)
    entries = [entry for name, entry in registry.items() if name in names or (names is chosen and "all" in names)]
    return list(dict.fromkeys(name for entry in entries for name in entry.options))
