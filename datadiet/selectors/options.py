"""What examples are chosen by beside scores: features of a checkpoint, and manifests of examples kept before."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace

from datadiet import config as options
from datadiet.config import TrainConfig
from datadiet.errors import UserError
from datadiet.scores.trajectory import TRAJECTORIES
from datadiet.selectors import selection
from datadiet.selectors.coresets import Parameters


def parameters(config: TrainConfig) -> Parameters:
    """The options of selectors."""
    return Parameters(*(getattr(config, name) for name in Parameters._fields))


def given_parameters(config: TrainConfig) -> dict[str, object]:
    """Those that are not their defaults, and an offset where the selector is named after it."""
    given = parameters(config)._asdict()
    return {k: v for k, v in given.items() if v != Parameters._field_defaults[k] or k == config.selector}


def without_unused(config: TrainConfig) -> TrainConfig:
    """The config with the defaults of those selector options that its selector does not use."""
    used = options_of(config.selector)
    rest = {name: default for name, default in Parameters._field_defaults.items() if name not in used}
    return replace(config, **rest)


def options_of(selector: str) -> tuple[str, ...]:
    """Names of the options that a selector uses."""
    chosen = selection.SELECTORS.get(selector)
    return (*chosen.options, "balance") if chosen else ()


def refuse_unused(config: TrainConfig) -> None:
    """Raises UserError where an option was given that neither the selector nor a statistic asked for uses."""
    users = {name: [s for s in selection.SELECTORS if name in options_of(s)] for name in Parameters._fields}
    users |= {name: [s for s, chosen in selection.SELECTORS.items() if chosen.features] for name in FEATURE_FIELDS}
    _refuse_unused(config, "selector", users, [config.selector])
    users = {
        option: [name for name, entry in TRAJECTORIES.items() if option in entry.options]
        for option in ("trajectory_window", "tdds_decay")
    }
    _refuse_unused(config, "trajectory", users, config.trajectory)
    if config.manifest is not None and config.selector != MANIFEST:
        raise UserError(f"manifest={config.manifest} is used by selector={MANIFEST} only.")


def _refuse_unused(config: TrainConfig, kind: str, users: Mapping[str, list[str]], chosen: Iterable[str]) -> None:
    for name, names in users.items():
        if getattr(config, name) != options.FIELDS[name].default and not {*names} & {*chosen}:
            raise UserError(f"{name}={getattr(config, name)} is used by {kind}={','.join(names)} only.")


# --- features ---------------------------------------------------------------------------------


MANIFEST = "manifest"  # the selector that keeps what a file names
FEATURE_FIELDS = ("features_run", "features_step")
