"""Averaging scores over runs, mirrored and tracked."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np

from datadiet import commands
from datadiet import config as options
from datadiet.errors import UserError
from datadiet.runs.context import Context
from datadiet.runs.inputs import gathering, training_command
from datadiet.runs.scored import (
    Scored,
    check_replaceable,
    check_step,
    find_run,
    load_recorded,
    made_before,
    take_scored,
    write_scored,
)
from datadiet.scores.combine import COMBINATIONS, standard_error
from datadiet.scores.registry import check_score, score_names, training_score_names
from datadiet.storage.files import npy_parts, sha256
from datadiet.storage.layout import ExperimentLayout, score_file
from datadiet.storage.score_files import ScoreRecord, identity_of

LABELS = ("random_labels", "given_labels")  # what a record says of labels that are not the data's own


def mean_run(
    kind: str, n_runs: int, step: int | None, source_exp: str, exp: str, context: Context, combine: str = "mean"
) -> Path:
    """Mean over runs 0 … n_runs - 1 of the scores of one type and step, or another combination of them.

    Beside it: ckpt_<step>.runs.npy, the scores [R, N] of each run, and ckpt_<step>.stderr.npy, the standard error
    [N] of their mean (NaN for one run).

    Args:
        kind: A name in `score_names` or `training_score_names`.
        n_runs: How many runs.
        step: As for `score_run`.
        source_exp: Experiment that holds the runs' scores.
        exp: Experiment that the mean is written to.
        combine: A name in scores.COMBINATIONS; others than mean go to ckpt_<step>.<combine>.npy.
    Returns:
        The score file.
    Raises:
        UserError: a run without such scores (with the command that makes them), or runs on different data.
    """
    _check_mean(kind, n_runs, combine)
    start, output, layout = time.perf_counter(), context.output, context.output.layout
    step = options.default_score_step(find_run(layout, source_exp, 0).config) if step is None else step
    target = score_file(layout.experiment(exp), kind, step, combine)
    paths = _scores_of_runs(layout, source_exp, kind, n_runs, step)
    context.tracker.check()
    runs, first = _load_runs(layout, paths)
    provenance = {
        "type": kind, "step": step, "runs": list(range(n_runs)), "source": source_exp,
        **{name: getattr(first, name) for name in LABELS}, **({} if combine == "mean" else {"combine": combine}),
    }  # fmt: skip
    check_replaceable(target, provenance, output.overwrite)
    values = COMBINATIONS[combine](runs)
    held = made_before(layout, target, provenance, first.fingerprint) if output.resume else None
    if held and held.sha256 == sha256(npy_parts(values)):
        return take_scored(target, context)
    identity = identity_of(first)
    beside = {"runs": runs.astype(np.float32, copy=False), "stderr": standard_error(runs)}
    seconds = {"total": time.perf_counter() - start}
    return write_scored(Scored("mean_score", target, values, identity, provenance, seconds, beside), exp, context)


def _check_mean(kind: str, n_runs: int, combine: str) -> None:
    check_score(kind, (*score_names(), *training_score_names()))
    if not 1 <= n_runs <= options.MAX_RUNS:
        raise UserError(f"n_runs={n_runs}: expected at least 1, at most {options.MAX_RUNS}.")
    if combine not in COMBINATIONS:
        raise UserError(f"combine={combine!r}: expected one of {', '.join(COMBINATIONS)}.")


def _scores_of_runs(layout: ExperimentLayout, exp: str, kind: str, n_runs: int, step: int) -> list[Path]:
    """The score file of each run of an experiment.

    Raises:
        UserError: some have none, with the commands that make them.
    """
    if step == 0 and kind in training_score_names():
        raise UserError(f"step=0: {kind} is gathered while training, so there is none before the first step.")
    paths = [score_file(layout.experiment(exp) / f"run_{run}", kind, step) for run in range(n_runs)]
    if missing := [run for run, path in enumerate(paths) if not path.exists()]:
        lines = [
            f"{len(missing)} of {n_runs} runs have no {kind} scores at step {step}; "
            f"the first is {paths[missing[0]]}. Make them:",
            *(f"  {command}" for command in _commands(kind, step, missing, exp, layout)),
        ]
        raise UserError("\n".join(lines))
    return paths


def _load_runs(layout: ExperimentLayout, paths: list[Path]) -> tuple[np.ndarray, ScoreRecord]:
    """Scores [R, N] and the record of the first run.

    Raises:
        UserError: they were not all made from the same data and labels, or not each for its run, step and type.
    """
    values, first = load_recorded(layout, paths[0])
    runs = np.empty((len(paths), len(values)), values.dtype)
    for run, path in enumerate(paths):
        values, other = load_recorded(layout, path)
        if other.fingerprint != first.fingerprint:
            raise UserError(f"{path} was not made from the same data as {paths[0]}; score those runs again.")
        was, now = ({name: getattr(one, name) for name in LABELS} for one in (first, other))
        if was != now:
            told = "; ".join(f"{n}: {was[n]} in run 0, {now[n]} in run {run}" for n in LABELS if was[n] != now[n])
            raise UserError(
                f"{path} was made with other labels than {paths[0]} ({told}); expected the same in all runs. Train and "
                f"score run {run} again, or average those before it: {commands.again(n_runs=run)}"
            )
        runs = runs.astype(np.result_type(runs, values), copy=False)
        runs[run] = values
    return runs, first


def _commands(kind: str, step: int, missing: list[int], exp: str, layout: ExperimentLayout) -> list[str]:
    """The commands that give runs their scores. What is trained gathers no more: for that there is another exp.

    Raises:
        UserError: a run has no checkpoint at that step, with the command for the nearest.
    """
    trained = [run for run in missing if (layout.experiment(exp) / f"run_{run}" / "args.json").exists()]
    scored = {"score_exp": exp, "type": kind, "step": step, "root": layout.root}
    if kind not in training_score_names():
        for run in trained:
            check_step(find_run(layout, exp, run), step)
        lines = []
        for run in missing:
            lines += [] if run in trained else [training_command(layout, exp, run)]
            lines.append(commands.command("score", run=run, **scored))
        return lines
    alike = find_run(layout, exp, trained[0]).config if trained else None
    runs, named = (range(max(missing) + 1), f"{exp}_{kind}") if trained else (missing, exp)
    made = [training_command(layout, named, run, alike, save_steps=step, **gathering(kind)) for run in runs]
    average = commands.command("mean_score", n_runs=len(made), **scored | {"score_exp": named})
    return [*made, average] if trained else made
