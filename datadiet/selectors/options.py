"""What examples are chosen by beside scores: options, features of a checkpoint, manifests of examples kept before."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from datadiet.config import Config, TrainConfig, find_option, value_of, with_values
from datadiet.errors import UserError
from datadiet.option import Parameters
from datadiet.registries import REGISTRIES, options_for
from datadiet.selectors import selection
from datadiet.selectors.selection import option_names, options_of


def parameters(config: TrainConfig) -> Parameters:
    """The options that its selector uses, with their values."""
    return Parameters.of({name: value_of(config, name) for name in options_of(config.selector)})


def given_parameters(config: TrainConfig) -> dict[str, Any]:
    """Options of selectors that are not their defaults, and an offset where the selector is named after it."""
    given = {name: value_of(config, name) for name in option_names()}
    return {k: v for k, v in given.items() if v != find_option(k).default or k == config.selector}


def default_parameters() -> dict[str, Any]:
    """The defaults of all options of selectors, by name."""
    return {name: find_option(name).default for name in option_names()}


def without_unused(config: Config) -> Config:
    """The config with the defaults of those selector options that its selector does not use."""
    used = {*options_of(config.selector), *options_for(config, "trajectory")}
    unused = {name: default for name, default in default_parameters().items() if name not in used}
    config = with_values(config, unused)
    return replace(config, registered=tuple(item for item in config.registered if item[0] not in unused))


def refuse_unused(config: TrainConfig) -> None:
    """Raises UserError where an option was given that neither the selector nor a statistic asked for uses."""
    users: dict[str, dict[str, list[str]]] = {}  # by option, then by the kind of those that use it
    for kind, registry in REGISTRIES.items():
        for entry in registry:
            for name in options_of(entry) if kind == "selector" else registry[entry].options:
                users.setdefault(name, {}).setdefault(kind, []).append(entry)
    of_features = [name for name, chosen in selection.SELECTORS.items() if chosen.features]
    users |= {name: {"selector": of_features} for name in FEATURE_FIELDS} | {LIKE: {"selector": [RANDOM]}}
    for name, by_kind in users.items():
        used = config.selector in by_kind.get("selector", ()) or {*by_kind.get("trajectory", ())} & {*config.trajectory}
        if value_of(config, name) != find_option(name).default and not used:
            told = " or ".join(f"{kind}={','.join(entries)}" for kind, entries in by_kind.items())
            raise UserError(f"{name}={value_of(config, name)} is used by {told} only.")
    if config.manifest is not None and config.selector != MANIFEST:
        raise UserError(f"manifest={config.manifest} is used by selector={MANIFEST} only.")


# --- features ---------------------------------------------------------------------------------


MANIFEST = "manifest"  # the selector that keeps what a file names
RANDOM, LIKE = "random", "like"  # a selector, and its option that names a file
FEATURE_FIELDS = ("features_run", "features_step")
