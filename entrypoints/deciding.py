"""decide: a decision about trainings that others made."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from datadiet import commands
from datadiet.config import TrainConfig
from datadiet.data.registry import known_datasets
from datadiet.errors import UserError

from .options import Location, Optional, config_option, make_command, make_context, place_options, reading_options

RESULTS = click.option("--results", type=Location(), required=True, help="Table of trainings (csv, parquet or npz): "
                       "arm, fraction or size, run, and accuracy or file.")  # fmt: skip
MARGIN = click.option("--margin", type=click.FLOAT, default=0.5, help="Loss of test accuracy that would "
                      "not matter, in percentage points.  [default: 0.5]")  # fmt: skip
MODEL = click.option("--model", default="the model", help="What the report calls the model.  "
                     "[default: the model]")  # fmt: skip
COUNT = Optional(click.IntRange(min=2))
NUM_TEST = click.option("--num_test", type=COUNT, help="How many test examples accuracies are of.  "
                        "[default: as many as there are answers]")  # fmt: skip
NUM_EXAMPLES = click.option("--num_examples", type=COUNT, help="How many training examples there are in all.  "
                            "[default: those of dataset, or the size beside fraction 1]")  # fmt: skip
DATASET = click.option("--dataset", type=Optional(click.STRING), help="Data that was trained on, for its classes and "
                       f"kept tables. One of: {', '.join(known_datasets())}.  [default: none]")  # fmt: skip


def _decide(
    results: Path, margin: float, model: str, num_test: int | None, num_examples: int | None, root: Path,
    exp: str | None, overwrite: bool, offline: bool, **data: Any,
) -> None:  # fmt: skip
    """Decide what can be dropped from trainings of your own: the same statistics and report as a study.

    The table has a row for each training: arm (how its subset was chosen; 'random' for chance), fraction (1: all of the
    data) or size, run (equal ones are compared in pairs), and file, an npy of right or wrong for each test example, or
    an npz with predicted and labels. With accuracy alone the chance of the test set is bounded, and margins are wider.
    Optional: seconds of training, kept (a kept.csv). docs/own_loop.md has examples. Nothing is trained. Writes
    report.html, statistics.json, figures/ and kept/ below <root>/exps/<exp>/; exp is decide by default.
    """
    from datadiet.study.deciding import Question, decide_given

    results = results.absolute() if commands.caller().by_mlflow else results
    given = {name: value for name, value in data.items() if value not in (None, False)}
    if given and "dataset" not in given:
        named = ", ".join(f"{name}={value}" for name, value in given.items())
        raise UserError(f"{named}: of data that is not named; add {commands.option('dataset', 'NAME')}.")
    config = TrainConfig(**given) if given else None
    question = Question(results, margin, model, num_examples, num_test)
    decide_given(question, config, exp or "decide", make_context(root, overwrite, offline=offline))


def decide() -> click.Command:
    data = (DATASET, config_option("data_dir", None), *reading_options())
    return make_command(
        "decide", _decide, RESULTS, MARGIN, MODEL, NUM_TEST, NUM_EXAMPLES, *data, place_options
    )  # fmt: skip
