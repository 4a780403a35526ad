"""full_data, random_subset, keep_max, offset_subset, subset: one training command, five presets."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from datadiet.config import find_option
from datadiet.selectors.options import FEATURE_FIELDS, LIKE, MANIFEST
from datadiet.selectors.selection import SELECTORS

from .known import Grouped
from .options import (
    DATA_ON,
    DEVICES,
    HOSTS,
    RUNS,
    SCORE_EXP,
    Optional,
    config_option,
    make_command,
    make_config,
    make_context,
    place_options,
    required_option,
    selector_options,
    training_options,
)  # fmt: skip

if TYPE_CHECKING:
    from datadiet.runs.inputs import ScoreChoice

SCORE_CHOICE = (
    config_option("scores", None),
    SCORE_EXP,
    click.option("--score_type", cls=Grouped, group="score", default="l2_error", help="Type of that mean score.  "
                 "[default: l2_error]"),
    click.option("--score_step", cls=Grouped, group="score", first=False, type=Optional(click.IntRange(min=0)),
                 help="Step of that mean score.  [default: the first checkpoint of the scored runs after a tenth of "
                 "their training]"),
)  # fmt: skip


RESUME = click.option(
    "--resume",
    cls=Grouped,
    group="training",
    type=click.BOOL,
    default=False,
    help="Continue an unfinished run from its last good checkpoint; start where there is none, and leave a finished "
    "one as it is.  [default: false]",
)


def selection() -> list[Callable]:
    """The options of choosing examples, as of now."""
    return [
        required_option("selector", (*SELECTORS, MANIFEST)),
        config_option("size", None),
        *selector_options(),
        *(config_option(name, find_option(name).default) for name in (*FEATURE_FIELDS, LIKE)),
    ]


def score_choice(values: dict[str, Any]) -> ScoreChoice:
    """From click's values."""
    from datadiet.runs.inputs import ScoreChoice

    return ScoreChoice(
        values.get("score_exp") or "full_data", values.get("score_type", "l2_error"), values.get("score_step")
    )


STOPPING = """

SIGTERM or Ctrl-C saves a checkpoint and ends with exit code 75 (MLflow's own command then with 1). The same command
with resume=true goes on, and ends with the result of an uninterrupted run."""

LOG_MODEL = click.option(
    "--log_model", type=click.BOOL, default=False, help="Give MLflow the trained network as a model, which "
    "`mlflow models serve` serves; with resume=true also that of a finished run.  [default: false]",
)  # fmt: skip

BALANCE = config_option("balance", None)

TEXTS = {
    "full_data": """Train on all examples, tracking forgetting.

Writes <root>/exps/<exp>/run_<run>/; exp is full_data by default.""",
    "random_subset": """Train on `size` examples drawn at random.

Writes <root>/exps/<exp>/size_<size>/run_<run>/; exp is random_subset by default.""",
    "keep_max": """Train on the `size` examples of largest score.

Writes <root>/exps/<exp>/size_<size>/run_<run>/; exp is keep_max by default.""",
    "offset_subset": """Train on the `size` examples of smallest score after skipping the `offset` smallest.

Writes <root>/exps/<exp>/size_<size>.offset_<offset>/run_<run>/; exp is offset_subset by default.""",
    "subset": """Train on what any selector keeps, or on the examples of a kept.csv (selector=manifest manifest=PATH).

Writes <root>/exps/<exp>/size_<size>.<selector>[.<option>_<value>]/run_<run>/; exp is subset by default. Selectors that
look at features take them from run 0 of score_exp.""",
}


def _training_command(name: str, selector: str | None, *own_options: Any) -> click.Command:
    """A command that trains on the examples that `selector` keeps; None: the one that is asked for."""

    def run(
        root: Path,
        exp: str | None,
        overwrite: bool,
        offline: bool,
        resume: bool,
        runs: tuple[int, ...] | None,
        data_on: str,
        devices: str,
        hosts: str | None,
        log_model: bool,
        **values: Any,
    ) -> None:
        from datadiet.runs.train import train_runs

        config = make_config(values) if selector is None else make_config(values, selector=selector)
        named = {"names_selector": selector is None, "offline": offline, "resume": resume, "data_on": data_on}
        named |= {"log_model": log_model, "devices": devices, "hosts": hosts}
        context = make_context(root, overwrite, **named)
        train_runs(config, runs or [config.run], exp or name, context, score_choice(values))

    options = (*own_options, training_options(), RUNS, RESUME, DATA_ON, DEVICES, HOSTS, LOG_MODEL, place_options)
    return make_command(name, run, *options, help=TEXTS[name] + STOPPING)


def full_data() -> click.Command:
    return _training_command("full_data", "all")


def random_subset() -> click.Command:
    return _training_command("random_subset", "random", required_option("size"), BALANCE, config_option(LIKE, None))


def keep_max() -> click.Command:
    return _training_command("keep_max", "keep_max", required_option("size"), *SCORE_CHOICE, BALANCE)


def offset_subset() -> click.Command:
    skipped = config_option("offset", 0)
    return _training_command("offset_subset", "offset", required_option("size"), skipped, *SCORE_CHOICE, BALANCE)


def subset() -> click.Command:
    return _training_command("subset", None, *selection(), *SCORE_CHOICE, config_option("manifest", None))
