"""predictions: scores of outputs that a program saved."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from datadiet.config import find_option
from datadiet.data.registry import known_datasets
from datadiet.scores import trajectory
from datadiet.scores.logits import LOGIT_SCORES

from .options import (
    Listed,
    Optional,
    config_option,
    make_command,
    make_config,
    make_context,
    place_options,
    reading_options,
)

NAMES = Listed(click.STRING, "names")
FILES = click.option("--files", type=Listed(click.STRING, "paths"), required=True, help="Runs, comma-separated: each a "
                     "file (npy, npz, parquet) of [N, C], or [T, N, C] of T epochs; or a folder or pattern of a file "
                     "for each epoch.")  # fmt: skip
STEP = click.option("--step", type=click.IntRange(min=0), required=True, help="Optimizer steps that the network had "
                    "done; the score files are named by it.")  # fmt: skip
EPOCH = click.option("--epoch", type=Optional(click.IntRange(min=1)), help="Of several epochs, from 1, the one that "
                     "scores of a checkpoint are of.  [default: the only one]")  # fmt: skip
PROBABILITIES = click.option("--probabilities", type=click.BOOL, default=False, help="The outputs are probabilities, "
                             "each row of sum 1.  [default: false]")  # fmt: skip


def _predictions(
    files: tuple[str, ...], step: int, kinds: tuple[str, ...], epoch: int | None, probabilities: bool, root: Path,
    exp: str | None, overwrite: bool, offline: bool, **values: Any,
) -> None:  # fmt: skip
    """Make score files of logits or probabilities that your own program saved.

    Without ids, rows are the training examples in the data set's order; npz and parquet may have ids (names, or
    positions in that order) and labels, which are compared. Scores of a checkpoint are of one epoch, those gathered
    while training of all of them. Writes <root>/exps/<exp>/run_<n>/<type folder>/ckpt_<step>.npy for each run, and of
    several their mean; exp is predictions by default. They are chosen by with scores=PATH.
    """
    from datadiet.runs.predictions import Wanted, predictions_run

    wanted = Wanted(kinds, step, epoch, probabilities)
    context = make_context(root, overwrite, offline=offline)
    predictions_run(files, wanted, make_config(values), exp or "predictions", context)


def predictions() -> click.Command:
    known = (*LOGIT_SCORES, *trajectory.TRAJECTORIES)
    kind = click.option("--type", "kinds", type=NAMES, default="l2_error", help="Scores, comma-separated. Some of: "
                        f"{', '.join(known)}.  [default: l2_error]")  # fmt: skip
    data = (
        config_option("dataset", "cifar10", known_datasets()), config_option("data_dir", None), *reading_options(),
        config_option("random_label_fraction", 0.0), config_option("random_label_seed", 0),
        *(config_option(name, find_option(name).default) for name in trajectory.option_names()),
    )  # fmt: skip
    return make_command(
        "predictions", _predictions, FILES, STEP, kind, EPOCH, PROBABILITIES, *data, place_options
    )  # fmt: skip
