"""Scores of outputs that other programs saved: what `predictions` does."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, cast

import numpy as np

from datadiet import commands
from datadiet.config import TrainConfig, validate, value_of
from datadiet.data.dataset import Dataset
from datadiet.data.reading import Reading
from datadiet.data.registry import check_asked, dataset_of, tell_notes
from datadiet.errors import UserError
from datadiet.runs.context import Context
from datadiet.runs.labels import Labels, labels_for, table_digest, told_labels
from datadiet.runs.mean import mean_run
from datadiet.runs.outputs import Outputs, check_outputs, find_outputs
from datadiet.runs.scored import Scored, check_replaceable, write_scored
from datadiet.scores import trajectory
from datadiet.scores.logits import LOGIT_SCORES
from datadiet.scores.recorder import Recorder
from datadiet.scores.trajectory import TRAJECTORIES
from datadiet.storage.layout import score_file
from datadiet.tracking import record


@dataclass(frozen=True)
class Wanted:
    """What is made of saved outputs."""

    types: tuple[str, ...]  # of LOGIT_SCORES and TRAJECTORIES
    step: int  # that the scores are of: steps done by the network, at the end of what was saved
    epoch: int | None = None  # from 1; that scores of a checkpoint are of, where several were saved
    probabilities: bool = False

    @property
    def gathered(self) -> list[str]:
        return [kind for kind in self.types if kind not in LOGIT_SCORES]


def _check(wanted: Wanted, config: TrainConfig) -> None:
    known = (*LOGIT_SCORES, *TRAJECTORIES)
    if unknown := [kind for kind in wanted.types if kind not in known]:
        raise UserError(
            f"type={unknown[0]}: expected some of {', '.join(known)}; other scores need the network, not its outputs."
        )
    if len(set(wanted.types)) < len(wanted.types) or not wanted.types:
        raise UserError(f"type={','.join(wanted.types) or 'none'}: expected each score once, and one at least.")
    for name in trajectory.option_names():
        used = any(name in TRAJECTORIES[kind].options for kind in wanted.gathered)
        if not used and value_of(config, name) != value_of(TrainConfig(), name):
            raise UserError(f"{name}={value_of(config, name)}: none of {', '.join(wanted.types)} uses it.")


def predictions_run(files: Sequence[str], wanted: Wanted, config: TrainConfig, exp: str, context: Context) -> None:
    """Score files, tied to the data, of logits or probabilities that a program saved; with their mean over runs.

    Args:
        files: Each a run; see `find_outputs`.
        config: Options that name the data and the labels trained on, and those of scores gathered while training.
        exp: Experiment folder.
    Raises:
        UserError: anything the caller can repair; of the files, all that stands in the way.
    """
    _check(wanted, config)
    validate(config)
    check_asked(config.dataset, config.data_dir, Reading.of(config))
    layout, say = context.output.layout, context.reporter.say
    folder = layout.experiment(exp)
    runs = find_outputs(files, wanted.probabilities)
    context.tracker.check()
    dataset = dataset_of(config)
    tell_notes(dataset)
    labels = labels_for(config, dataset)
    counts, of_order = check_outputs(runs, dataset, labels.labels)
    _check_epochs(runs, counts, wanted)
    name, note = layout.name(folder), f"{', '.join(wanted.types)} of saved outputs of {dataset.name}, {len(runs)} runs."
    params = {"dataset": dataset.name, "files": list(files), "step": wanted.step, "type": list(wanted.types)}
    params |= {"probabilities": wanted.probabilities, "epoch": wanted.epoch}
    _say_what(runs, counts, wanted, context)
    for told in of_order:
        say(told)
    with context.tracker.track("predictions", exp, name, folder / record.NAME, params=params, note=note) as tracked:
        inside = replace(context, tracker=replace(context.tracker, parent=tracked))
        for number, run in enumerate(runs):
            for made in _scores(run, number, wanted, config, dataset, labels, exp, context):
                write_scored(made, exp, inside)
        for kind in wanted.types if len(runs) > 1 else ():
            mean_run(kind, len(runs), wanted.step, exp, exp, inside)
    folder = folder if len(runs) > 1 else folder / "run_0"
    scores = score_file(folder, wanted.types[0], wanted.step)
    say(f"Choose by them: {commands.command('select', selector='keep_max', size='50%', scores=scores)}")


def _check_epochs(runs: Sequence[Outputs], counts: Sequence[int], wanted: Wanted) -> None:
    """Raises UserError where it is open which epoch is meant, or one has not so many."""
    of_one = [kind for kind in wanted.types if kind in LOGIT_SCORES]
    if wanted.epoch is not None and not of_one:
        raise UserError(f"epoch={wanted.epoch}: {', '.join(wanted.types)} take all epochs; leave it out.")
    for run, count in zip(runs, counts):
        if of_one and wanted.epoch is None and count > 1:
            raise UserError(
                f"{run.name} has {count} epochs, and {', '.join(of_one)} is of one: say which by "
                f"{commands.option('epoch', count)} (1 to {count}); or name each file as a run, comma-separated."
            )
        if wanted.epoch is not None and wanted.epoch > count:
            raise UserError(f"epoch={wanted.epoch}: {run.name} has {count}.")
    if len(set(counts)) > 1 and wanted.gathered:
        told = ", ".join(f"{run.name} {count}" for run, count in zip(runs, counts))
        raise UserError(f"runs of different numbers of epochs: {told}; expected the same, as they are averaged.")


def _say_what(runs: Sequence[Outputs], counts: Sequence[int], wanted: Wanted, context: Context) -> None:
    """Which kind of score each is, and in which order files are epochs."""
    say = context.reporter.say
    for run in runs:
        if len(run.files) > 1:
            say(f"{run.name}: {len(run.files)} epochs in the order {run.files[0].name} … {run.files[-1].name}")
    if of_one := [kind for kind in wanted.types if kind in LOGIT_SCORES]:
        say(f"Of a checkpoint: {', '.join(of_one)}.")
    if wanted.gathered:
        say(
            f"Gathered while training: {', '.join(wanted.gathered)}, one look at each example for each of {counts[0]} "
            "epochs, as saved. Our own trainings look at the augmented batch before its step."
        )


def _scores(
    run: Outputs, number: int, wanted: Wanted, config: TrainConfig, dataset: Dataset, labels: Labels, exp: str,
    context: Context,
) -> list[Scored]:  # fmt: skip
    """All scores of one run."""
    start, ids = time.perf_counter(), np.arange(dataset.num_examples)
    of_all, of_one = hashlib.sha256(), hashlib.sha256()
    values: dict[str, Any] = {}
    recorder, classes, epochs = _recorder(wanted, config, dataset), cast(Any, labels.labels), 0
    logits: Any
    for epochs, logits in enumerate(run.epochs(dataset), start=1):
        of_all.update(logits.tobytes())
        if recorder is not None:
            recorder.update(ids, logits, classes)
        if wanted.epoch in (None, epochs):
            of_one.update(logits.tobytes())
            values |= {kind: LOGIT_SCORES[kind](logits, classes) for kind in wanted.types if kind in LOGIT_SCORES}
    values |= {kind: recorder.values(kind) for kind in wanted.gathered} if recorder is not None else {}
    made, of_labels = [], told_labels(config, table_digest(labels.inputs))
    for kind in wanted.types:
        if np.isnan(values[kind]).any():
            raise UserError(f"{kind}: {run.name} has {epochs} epochs, which are too few for it (trajectory_window).")
        path = score_file(context.output.layout.experiment(exp) / f"run_{number}", kind, wanted.step)
        source = f"outputs, sha256 {(of_one if kind in LOGIT_SCORES else of_all).hexdigest()}"
        told = {"type": kind, "step": wanted.step, "runs": [number], "source": source, **of_labels}
        check_replaceable(path, told, context.output.overwrite)
        seconds = {"total": time.perf_counter() - start}
        found = np.asarray(values[kind], np.float32)
        made.append(Scored("score", path, found, dataset.identity(), told, seconds))
    return made


def _recorder(wanted: Wanted, config: TrainConfig, dataset: Dataset) -> Recorder | None:
    """What gathers scores of several epochs; None where none is asked for."""
    if not wanted.gathered:
        return None
    used = {name for kind in wanted.gathered for name in TRAJECTORIES[kind].options}
    options = {name: value_of(config, name) for name in used}
    return Recorder(dataset.num_examples, dataset.num_classes, wanted.gathered, **options)
