"""analyze: how training treats easy and hard examples."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from datadiet.option import fields_of
from datadiet.report.groups import Analysis

from .options import DATA_ON, make_command, make_context, option_of, place_options
from .scoring import RUN
from .training import SCORE_CHOICE, score_choice

FIELDS = fields_of(Analysis)


def _analyze(
    root: Path, exp: str | None, overwrite: bool, offline: bool, run: int, scores: str | None, data_on: str,
    **values: Any,
) -> None:  # fmt: skip
    """Analyse the training of a run: kernel velocity and error barriers of groups of examples, from easy to hard.

    Takes a run of score_exp on all examples, with its checkpoints, and the mean score that groups them. Writes
    velocity.csv, barriers.csv, dynamics.png and analysis.json to <root>/exps/<exp>/run_<run>/; exp is analyze by
    default. Children are trained from the checkpoints of spawn to the last step, and not kept.
    """
    from datadiet.report.dynamics import analyze_run

    asked = Analysis(**{name: values.pop(name) for name in FIELDS})
    choice = score_choice(values)
    context = make_context(root, overwrite, offline=offline, data_on=data_on)
    analyze_run(run, asked, choice.exp, exp or "analyze", context, choice, scores)


def analyze() -> click.Command:
    own = [option_of(known, known.default) for known in FIELDS.values()]
    return make_command("analyze", _analyze, RUN, *own, *SCORE_CHOICE, DATA_ON, place_options)
