"""score and mean_score."""

from __future__ import annotations

from pathlib import Path

import click

from datadiet.scores.combine import COMBINATIONS
from datadiet.scores.registry import score_names, training_score_names

from .indices import Runs
from .options import DEVICES, SCORE_EXP, Listed, Optional, make_command, make_context, place_options

STEP = click.option(
    "--step",
    type=Optional(click.IntRange(min=0)),
    help="Optimizer steps done by the network that scores; 0 is the untrained one.  "
    "[default: the first checkpoint after a tenth of training]",
)


def _experiments(score_exp: str | None, exp: str | None) -> tuple[str, str]:
    """Where runs are found and where scores are written: each defaults to the other, both to full_data."""
    source = score_exp or exp or "full_data"
    return source, exp or source


RUN = click.option("--run", type=click.IntRange(min=0), default=0, help="Index of the run to score with.  [default: 0]")
BATCH_SIZE = click.option("--batch_size", type=click.IntRange(min=1), default=512,
                          help="Examples on a device at once; no value depends on it.  [default: 512]")  # fmt: skip


def _score(
    run: int, runs: tuple[int, ...] | None, step: int | None, kinds: tuple[str, ...], batch_size: int,
    score_exp: str | None, exp: str | None, root: Path, overwrite: bool, offline: bool, devices: str,
) -> None:  # fmt: skip
    """Score every training example with a checkpoint of a run, or of several runs.

    Writes <root>/exps/<exp>/run_<run>/<type folder>/ckpt_<step>.npy; exp is score_exp by default. Several types of
    a run share its forward pass, several runs one compiled program.
    """
    from datadiet.runs.score import score_runs

    source, target = _experiments(score_exp, exp)
    context = make_context(root, overwrite, offline=offline, devices=devices)
    score_runs(kinds, runs or [run], step, batch_size, source, target, context)


RUNS = click.option("--runs", type=Optional(Runs()), help="Indices of several runs instead of run, as in 0-9 or 0,2,5: "
                    "each has its own files and MLflow runs.  [default: the one of run]")  # fmt: skip


N_RUNS = click.option("--n_runs", type=click.INT, default=10, help="Runs 0 … n_runs - 1 are averaged.  [default: 10]")
COMBINE = click.option("--combine", default="mean", help=f"How runs are combined, one of: {', '.join(COMBINATIONS)}; "
                       "others than mean go to ckpt_<step>.<combine>.npy.  [default: mean]")  # fmt: skip


def _mean_score(
    n_runs: int, step: int | None, kind: str, combine: str, score_exp: str | None, exp: str | None, root: Path,
    overwrite: bool, offline: bool,
) -> None:  # fmt: skip
    """Average the scores of one type and step over runs.

    Writes <root>/exps/<exp>/<type folder>/ckpt_<step>.npy, and beside it the scores of each run (.runs.npy) and the
    standard error of their mean (.stderr.npy); exp is score_exp by default.
    """
    from datadiet.runs.mean import mean_run

    source, target = _experiments(score_exp, exp)
    mean_run(kind, n_runs, step, source, target, make_context(root, overwrite, offline=offline), combine)


def score() -> click.Command:
    text = f"One or several, comma-separated, of: {', '.join(score_names())}.  [default: l2_error]"
    kinds = click.option("--type", "kinds", type=Listed(click.STRING, "types"), default="l2_error", help=text)
    return make_command("score", _score, RUN, RUNS, STEP, kinds, BATCH_SIZE, DEVICES, SCORE_EXP, place_options)


def mean_score() -> click.Command:
    text = f"One of: {', '.join((*score_names(), *training_score_names()))}.  [default: l2_error]"
    kind = click.option("--type", "kind", default="l2_error", help=text)
    return make_command("mean_score", _mean_score, N_RUNS, STEP, kind, COMBINE, SCORE_EXP, place_options)
