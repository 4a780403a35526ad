"""Scoring checkpoints of runs, mirrored and tracked."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from datadiet import commands
from datadiet import config as options
from datadiet.data.batches import Normalizer, fit_images
from datadiet.data.dataset import Dataset
from datadiet.data.reading import NAMES as READING
from datadiet.data.registry import dataset_of
from datadiet.devices import Devices
from datadiet.errors import Interrupted, UserError
from datadiet.models.source import is_own
from datadiet.runs.context import Context
from datadiet.runs.labels import given_digest, labels_of, told_labels
from datadiet.runs.scored import (
    Scored,
    check_replaceable,
    check_step,
    find_run,
    made_before,
    take_scored,
    write_scored,
)
from datadiet.runs.signals import listen
from datadiet.scores.checkpoint import compute_many
from datadiet.scores.registry import check_score, needs_features
from datadiet.storage.layout import score_file
from datadiet.storage.runs import StoredRun
from datadiet.training.compiled import compile_seconds, unless
from datadiet.training.device import check_device


def score_run(
    kind: str, run: int, step: int | None, batch_size: int, source_exp: str, exp: str, context: Context
) -> Path:
    """Score every training example with one checkpoint of one run; see `score_runs`."""
    return score_runs([kind], [run], step, batch_size, source_exp, exp, context)[0]


class Wanted(NamedTuple):
    """Scores of one run that are to be made."""

    run: StoredRun
    provenance: dict[Path, dict[str, Any]]  # by score file

    @property
    def kinds(self) -> list[str]:
        return [made["type"] for made in self.provenance.values()]

    @property
    def step(self) -> int:
        return next(iter(self.provenance.values()))["step"]


def score_runs(
    kinds: Sequence[str], runs: Sequence[int], step: int | None, batch_size: int, source_exp: str, exp: str,
    context: Context,
) -> list[Path]:  # fmt: skip
    """Score every training example by several scores with one checkpoint of each of several runs.

    The scores of a run share its forward pass where they can, and all runs one compiled program.

    Args:
        kinds: Names in `score_names`.
        runs: Indices of the runs in `source_exp`.
        step: Checkpoint; None: the first after a tenth of training.
        batch_size: Examples on a device at once; no value depends on it.
        source_exp: Experiment that holds the runs.
        exp: Experiment that the scores are written to.
    Returns:
        The score files, run by run.
    Raises:
        UserError: no such run, checkpoint or score type, changed data, or other scores in the way; all of them are
            looked for before anything is scored.
    """
    for name, given in (("type", kinds), ("runs", runs)):
        if len(set(given)) < len(given):
            raise UserError(f"{name}={commands.typed(tuple(given))}: expected each once.")
    for kind in kinds:
        check_score(kind)
    wanted = _of_each(lambda run: _wanted(kinds, run, step, source_exp, exp, context), runs)
    if any(one.provenance for one, _ in wanted):
        check_device(context.reporter.say, context.devices)
        context.tracker.check()
    paths: list[Path] = []
    known: dict[Any, Dataset] = {}
    for one, held in wanted:
        made = _score(one, known, batch_size, context) if one.provenance else []
        done = {scored.path: write_scored(scored, exp, context) for scored in made}
        paths += [done[path] if path in done else take_scored(path, context) for path in (*held, *one.provenance)]
    return paths


def _of_each(work: Callable[[int], Any], runs: Sequence[int]) -> list[Any]:
    """What `work` gives for each run.

    Raises:
        UserError: it refused some; each refusal once.
    """
    found, errors = [], []
    for run in runs:
        try:
            found.append(work(run))
        except UserError as error:
            errors.append(str(error))
    if errors:
        raise UserError("\n".join(dict.fromkeys(errors)))
    return found


def _wanted(
    kinds: Sequence[str], run: int, step: int | None, source_exp: str, exp: str, context: Context
) -> tuple[Wanted, list[Path]]:
    """What is to be scored of a run, and the files that are there already, made in the same way.

    Raises:
        UserError: there is no such run, or other scores are in the way.
    """
    layout, output = context.output.layout, context.output
    stored = find_run(layout, source_exp, run)
    config = stored.config
    step = options.default_score_step(config) if step is None else step
    check_step(stored, step)
    labels, wanted, held = told_labels(config, given_digest(stored)), {}, []
    for kind in kinds:
        path = score_file(layout.experiment(exp) / f"run_{run}", kind, step)
        provenance = {"type": kind, "step": step, "runs": [run], "source": layout.name(stored.path), **labels}
        check_replaceable(path, provenance, output.overwrite)
        if output.resume and made_before(layout, path, provenance, stored.data.fingerprint):
            held.append(path)
        else:
            wanted[path] = provenance
    return Wanted(stored, wanted), held


def _data_of(stored: StoredRun, known: dict[Any, Dataset]) -> Dataset:
    """The data of a run as its network takes it, read once for all runs that read the same.

    Raises:
        UserError: it has changed since the run was trained.
    """
    config, shape = stored.config, stored.network.image_shape
    how = (shape, *(getattr(config, name) for name in ("dataset", "data_dir", *READING)))
    if how not in known:
        known.clear()
        known[how] = fit_images(dataset_of(config), shape)
    dataset = known[how]
    if dataset.fingerprint != stored.data.fingerprint:
        raise UserError(f"{dataset.name} has changed since {stored.path} was trained on it; train the run again.")
    return dataset


def _tell_features(wanted: Wanted, context: Context) -> None:
    """Say what features of a model of the user's own are, where a score looks at them.

    Raises:
        UserError: it has none.
    """
    if any(map(needs_features, wanted.kinds)) and is_own(wanted.run.config.model):
        layer = wanted.run.network.feature_layer()
        context.reporter.say(f"Features: what the last dense layer is given, {layer}.")


def _score(wanted: Wanted, known: dict[Any, Dataset], batch_size: int, context: Context) -> list[Scored]:
    """Scores of one run; their seconds are shared evenly.

    Raises:
        UserError: the data has changed since the run was trained.
        Interrupted: it was stopped.
    """
    stored, kinds = wanted.run, wanted.kinds
    variables = stored.variables(wanted.step)
    dataset = _data_of(stored, known)
    labels = labels_of(stored, dataset)
    _tell_features(wanted, context)
    start = time.perf_counter()
    label = f"{', '.join(kinds)} of {context.output.layout.name(stored.path)}"
    again, say = f"Continue: {context.tracker.command}", context.reporter.say
    with (
        listen(say, "without these scores: there is no part of them", again) as stopping,
        compile_seconds() as compiling, context.reporter.counter(dataset.num_examples, label) as advance,
    ):  # fmt: skip

        def progress(examples: int) -> None:
            if stopping():
                raise Interrupted
            advance(examples)

        scoring = partial(
            compute_many, kinds, stored.network, variables, dataset.train_images, labels, batch_size,
            prepare=Normalizer.of(dataset), progress=progress, devices=Devices.asked(context.devices),
        )  # fmt: skip
        try:
            values = unless(stopping, scoring)
        except Interrupted:
            missing = ", ".join(map(str, wanted.provenance))
            raise Interrupted(f"Stopped; {missing} {'is' if len(kinds) == 1 else 'are'} not written. {again}") from None
    total, count = time.perf_counter() - start, len(kinds)
    seconds = {"total": total / count, "compile": sum(compiling) / count}
    return [
        Scored("score", path, values[made["type"]], dataset.identity(), made, seconds)
        for path, made in wanted.provenance.items()
    ]
