"""main: the quick study."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from datadiet.study import run_study

from .options import make_config, make_place, place_options, repairable, training_options


@click.command(name="main")
@training_options(without=("run",), dataset="digits", model="mlp", num_steps=330, augment=False)
@place_options
@repairable
def main(root: Path, exp: str | None, overwrite: bool, offline: bool, **values: Any) -> None:
    """The quick study: score, prune, retrain and compare.

    Trains scoring runs on all examples, scores them by EL2N, GraNd and forgetting, and trains on the examples of
    largest mean score and on random ones at several sizes with several seeds. Ends with a table, plots and
    results.csv in <root>/exps/<exp>/; exp is main by default. Finished runs with the same options are not
    repeated, unfinished ones are continued. SIGTERM while a run trains saves it and ends with exit code 75.
    """
    run_study(make_config(values), exp or "main", make_place(root, overwrite, offline=offline))
