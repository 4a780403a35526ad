"""select: what a selector keeps, as a file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from datadiet.data.registry import known_datasets

from .options import config_option, make_command, make_config, make_context, place_options, reading_options
from .training import SCORE_CHOICE, score_choice, selection

DATA = (
    config_option("data_dir", None),
    *reading_options(),
    config_option("run", 0),
    config_option("random_subset_seed", None),
    config_option("random_label_fraction", 0.0),
    config_option("random_label_seed", 0),
)


def _select(root: Path, exp: str | None, overwrite: bool, offline: bool, **values: Any) -> None:
    """Write what a selector keeps, without training on it.

    Writes <root>/exps/<exp>/size_<size>.<selector>[.<option>_<value>]/run_<run>/kept.csv: example id, kept order and
    score; and kept.json, which ties it to its data. exp is select by default. Train on it: subset with
    selector=manifest manifest=PATH.
    """
    from datadiet.runs.select import select_run

    context = make_context(root, overwrite, names_selector=True, offline=offline)
    select_run(make_config(values), exp or "select", context, score_choice(values))


def select() -> click.Command:
    dataset = config_option("dataset", "cifar10", known_datasets())
    return make_command("select", _select, *selection(), *SCORE_CHOICE, dataset, *DATA, place_options)
