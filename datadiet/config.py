"""Configs at work: checked, resolved, read and written, with the steps that they mean."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from numbers import Integral
from typing import Any, TypeVar

from datadiet import commands
from datadiet.errors import UserError
from datadiet.option import SHARE, SHARES, Option, Parameters, amount, check_values, refuse
from datadiet.option import check_text as check_text
from datadiet.option import option as option
from datadiet.registries import REGISTRIES, brought_options, options_for
from datadiet.train_config import BUDGETS as BUDGETS
from datadiet.train_config import DECAY_EPOCHS, EPOCHS, FIELDS, SEED_STRIDE, SEEDS, ResolvedConfig, TrainConfig

MAX_CHECKPOINTS, MAX_REPORTS = 100_000, 1_000_000

LOCATION_FIELDS = frozenset({"data_dir", "test_batch_size"})  # may differ between two equal runs

MAX_RUNS = 10_000  # the seeds of later ones are beyond 2**32

Config = TypeVar("Config", bound=TrainConfig)


def _check_number_of(name: str, steps: int, every: int | None, limit: int, what: str) -> None:
    if every is not None and steps // every > limit:
        raise refuse(name, every, f"at least {-(-steps // limit)}: {steps // every} {what} are too many")


def validate(config: TrainConfig) -> None:
    """Check every value that can be judged without data.

    Raises:
        UserError: names the option, its value and what was expected.
    """
    check_values(config)
    for name, value in config.registered:
        find_option(name).check(value)
    if config.labels is not None and config.random_label_fraction:
        raise refuse("labels", config.labels, f"no such where random_label_fraction={config.random_label_fraction}")
    _check_training(config)
    if config.num_steps is not None:
        early = min(config.early_step, config.num_steps)
        _check_number_of("save_steps", config.num_steps, config.save_steps, MAX_CHECKPOINTS, "checkpoints")
        _check_number_of("early_save_steps", early, config.early_save_steps, MAX_CHECKPOINTS, "checkpoints")
        _check_number_of("log_steps", config.num_steps, config.log_steps, MAX_REPORTS, "reports")


def _check_training(config: TrainConfig) -> None:
    """Raises UserError for options that say two things at once, or say something of what is not done."""
    if config.epochs is not None and config.num_steps is not None:
        raise refuse("epochs", config.epochs, f"no such where num_steps={config.num_steps} says it")
    if not config.checkpoints and (asked := [name for name in config.trajectory if name != "forget"]):
        raise refuse("checkpoints", "false", f"true, because trajectory={','.join(asked)} is written beside them")
    for name in ("pad", "flip") if not config.augment else ():
        if getattr(config, name) != FIELDS[name].default:
            raise refuse(name, getattr(config, name), f"{FIELDS[name].default} where augment=false: nothing is changed")
    triangle = config.lr_triangle
    if triangle and (len(triangle) != 3 or triangle[1] in (0, 1)):
        got = ",".join(map(str, triangle))
        raise refuse("lr_triangle", got, "three numbers, as in 0.2,0.23,0.07, the second above 0, below 1")
    if triangle and config.lr_vitaly:
        raise refuse("lr_triangle", ",".join(map(str, triangle)), "none where lr_vitaly=true, another schedule")


def without_effect(config: TrainConfig) -> list[str]:
    """Options that were given, but change nothing beside the others, each in words."""
    idle = {
        "early_save_steps": (not config.early_step, "early_step=0"),
        "decay_steps": (config.lr_vitaly, "lr_vitaly=true"),
        "decay_factor": (config.lr_vitaly, "lr_vitaly=true"),
        "random_label_seed": (not config.random_label_fraction, "random_label_fraction=0"),
    }
    return [
        f"{name}={commands.typed(getattr(config, name))} has no effect where {beside}."
        for name, (is_idle, beside) in idle.items()
        if is_idle and getattr(config, name) != FIELDS[name].default
    ]


def number_kept(size: float | str, num_examples: int) -> int:
    """M, how many of N examples a size keeps: itself, or as a float the fraction of them, rounded to the nearest whole
    number (a half to the even one), as those of a study; as text what it says, as in 50%.

    Raises:
        UserError: no number, a fraction that is none, or one that keeps no example.
    """
    try:
        share = amount(size) if isinstance(size, str) else size
    except ValueError:
        share = math.nan
    if isinstance(share, Integral):
        return int(share)
    found = round(share * num_examples) if share in SHARES else 0
    if not found:
        raise refuse("size", size, f"{SHARE}, that keeps at least 1 of {num_examples} examples")
    return found


def check_size(size: int, offset: int, num_examples: int) -> None:
    """Refuse a subset that cannot be had from `num_examples` examples.

    Raises:
        UserError: size below 1, offset below 0, or offset + size beyond num_examples.
    """
    if size < 1:
        raise refuse("size", size, "at least 1 example to keep")
    if offset < 0:
        raise refuse("offset", offset, "at least 0 examples to skip")
    if offset + size > num_examples:
        skipped = f" after skipping offset={offset}" if offset else ""
        raise UserError(
            f"size={size}{skipped}: the training set has {num_examples} examples; "
            f"expected a size from 1 to {max(num_examples - offset, 0)}. Half of them: {commands.again(size='50%')}"
        )


def resolve(config: TrainConfig, num_examples: int) -> ResolvedConfig:
    """Fill in every derived option, and the options of registered entries that are chosen.

    Args:
        config: Options as given, or resolved before, which changes nothing.
        num_examples: N, size of the *full* training set: an epoch is N // train_batch_size
            steps (at least 1) whatever the subset, so all sizes train equally long.
    Raises:
        UserError: an option or the subset asked for is impossible.
    """
    validate(config)
    size = None if config.size is None else number_kept(config.size, num_examples)
    if size is not None:
        check_size(size, config.offset, num_examples)
    epoch = max(1, num_examples // config.train_batch_size)
    num_steps = config.num_steps or max(1, round((config.epochs or EPOCHS) * epoch))
    save_steps = config.save_steps or max(1, num_steps // 10)
    derived = {
        "num_steps": num_steps,
        "decay_steps": () if config.lr_triangle else tuple(e * epoch for e in DECAY_EPOCHS),
        "log_steps": epoch,
        "save_steps": save_steps,
        "early_save_steps": save_steps,
    }
    values = {f.name: getattr(config, f.name) for f in dataclasses.fields(config)}
    values |= {name: value for name, value in derived.items() if values[name] is None} | {"size": size, "epochs": None}
    tracks = config.track_forgetting and config.checkpoints
    values["trajectory"] = tuple(name for name in config.trajectory if tracks or name != "forget")
    names = (name for kind in REGISTRIES for name in options_for(config, kind) if name not in FIELDS)
    values["registered"] = tuple(sorted((dict(config.registered) | {n: value_of(config, n) for n in names}).items()))
    resolved = type(config)(**values) if isinstance(config, ResolvedConfig) else ResolvedConfig(**values)
    validate(resolved)
    return resolved


def fit_budget(config: ResolvedConfig, num_examples: int) -> ResolvedConfig:
    """A resolved config with the steps of its subset.

    With budget=iterations nothing changes. With budget=epochs every number of steps is multiplied by
    the fraction of the examples that is kept, and is at least 1.
    """
    if config.budget == "iterations" or config.size is None:
        return config
    size = config.size

    def shrink(steps: int) -> int:
        return max(1, round(steps * size / num_examples))

    names = ("num_steps", "log_steps", "save_steps", "early_save_steps")
    shrunk: dict[str, Any] = {name: shrink(getattr(config, name)) for name in names}
    shrunk["early_step"] = shrink(config.early_step) if config.early_step else 0
    return dataclasses.replace(config, **shrunk, decay_steps=tuple(map(shrink, config.decay_steps)))


def saved_steps(config: ResolvedConfig) -> list[int]:
    """Steps at which a resolved config saves a checkpoint: 0, the asked ones, num_steps; or none at all."""
    if not config.checkpoints:
        return []
    early = range(0, min(config.early_step, config.num_steps) + 1, config.early_save_steps)
    late = range(0, config.num_steps + 1, config.save_steps)
    return sorted({0, config.num_steps, *early, *(t for t in late if t > config.early_step)})


def logged_steps(config: ResolvedConfig) -> list[int]:
    """Steps after which a resolved config reports metrics: every log_steps, and num_steps."""
    return sorted({*range(config.log_steps, config.num_steps + 1, config.log_steps), config.num_steps})


def default_score_step(config: ResolvedConfig) -> int:
    """The step scored where none is asked: the first checkpoint after a tenth of training.

    With the paper's 200 epochs that is the end of epoch 20.

    Raises:
        UserError: it saves none.
    """
    if not config.checkpoints:
        raise refuse("checkpoints", "false", "true for a run that is to be scored")
    return next(t for t in saved_steps(config) if t >= max(1, config.num_steps // 10))


def differences(one: dict, other: dict) -> dict[str, tuple[Any, Any]]:
    """Options in which two `as_dict` records differ, locations aside."""
    names = (one.keys() | other.keys()) - LOCATION_FIELDS
    pairs = {name: (one.get(name), other.get(name)) for name in sorted(names)}
    return {name: pair for name, pair in pairs.items() if pair[0] != pair[1]}


def as_dict(config: TrainConfig) -> dict[str, Any]:
    """JSON-ready options; tuples become lists, and registered options stand beside the others."""
    names = [f.name for f in dataclasses.fields(config) if f.name not in ("registered", "derived_seeds")]
    values = {name: getattr(config, name) for name in names} | dict(config.registered)
    return {k: list(v) if isinstance(v, tuple) else v for k, v in values.items()}


def from_dict(values: Mapping[str, Any]) -> ResolvedConfig:
    """The inverse of `as_dict` for a resolved config; names that are no option are ignored.

    Seeds that are those of its run count as derived.
    """
    known: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in values.items() if k in FIELDS}
    derived = {name: first + SEED_STRIDE * known.get("run", 0) for name, first in SEEDS.items()}
    known |= {name: None for name, seed in derived.items() if known.get(name, seed) == seed}
    return ResolvedConfig(**known, registered=_registered(values))


# --- options that entries of registries bring -------------------------------------------------


def registered_options() -> dict[str, Option]:
    """Options that no field of TrainConfig has, by name: those that entries of registries bring, as of now.

    Raises:
        UserError: a name that cannot be, or one name for two options.
    """
    found = brought_options()
    for name, known in found.items():
        if FIELDS.get(name, known) != known:
            raise UserError(f"The option {name} of a registered entry is not the {name} that there is; rename it.")
    return {name: known for name, known in found.items() if name not in FIELDS}


def find_option(name: str) -> Option:
    """An option by name, a field of TrainConfig or a registered one.

    Raises:
        UserError: there is none.
    """
    if name in FIELDS:
        return FIELDS[name]
    if name not in (known := registered_options()):
        raise UserError(f"{name!r} is no option; there are {', '.join([*FIELDS, *known])}.")
    return known[name]


def value_of(config: TrainConfig, name: str) -> Any:
    """The value of an option, a field or a registered one."""
    return getattr(config, name) if name in FIELDS else dict(config.registered).get(name, find_option(name).default)


def with_values(config: Config, values: Mapping[str, Any]) -> Config:
    """The config with other values of options, as by `dataclasses.replace`; also of registered ones.

    Raises:
        UserError: a name that is no option.
    """
    own = {name: value for name, value in values.items() if find_option(name) and name not in FIELDS}
    fields: dict[str, Any] = {name: value for name, value in values.items() if name in FIELDS}
    fields["registered"] = tuple(sorted((dict(config.registered) | own).items()))
    return dataclasses.replace(config, **fields)


def given_config(values: Mapping[str, Any]) -> TrainConfig:
    """A config from values by name; those that are no option are ignored."""
    return TrainConfig(**{k: v for k, v in values.items() if k in FIELDS}, registered=_registered(values, False))


def _registered(values: Mapping[str, Any], defaults: bool = True) -> tuple[tuple[str, Any], ...]:
    """The registered options among values by name, those that are their defaults only where asked for."""
    known = registered_options()
    own = {k: tuple(v) if isinstance(v, list) else v for k, v in values.items() if k in known}
    return tuple(sorted((k, v) for k, v in own.items() if defaults or v != known[k].default))


def parameters_for(config: TrainConfig, kind: str) -> Parameters:
    """The options of those entries of one registry that a config chooses, with their values."""
    return Parameters.of({name: value_of(config, name) for name in options_for(config, kind)})
