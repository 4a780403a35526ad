"""Scoring a checkpoint of a run, and averaging scores over runs, mirrored and tracked."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from datadiet import commands
from datadiet import config as options
from datadiet.data.batches import Normalizer, fit_images
from datadiet.data.registry import dataset_of
from datadiet.errors import Interrupted, UserError
from datadiet.runs.context import Context
from datadiet.runs.inputs import gathering, training_command
from datadiet.runs.labels import given_digest, labels_of
from datadiet.runs.products import small
from datadiet.runs.signals import listen
from datadiet.scores.checkpoint import compute_many
from datadiet.scores.combine import COMBINATIONS, standard_error
from datadiet.scores.registry import check_score, score_names, training_score_names
from datadiet.storage.files import npy_bytes
from datadiet.storage.layout import ExperimentLayout, score_file
from datadiet.storage.records import MirrorRecord, ScoreRecord
from datadiet.storage.runs import StoredRun, open_run
from datadiet.storage.score_files import load_scores, save_scores
from datadiet.tracking import record
from datadiet.tracking.bring import settle
from datadiet.tracking.record import Artifact
from datadiet.training.compiled import compile_seconds, unless
from datadiet.training.device import check_device

LABELS = ("random_labels", "given_labels")  # what a record says of labels that are not the data's own
QUANTILES = (5, 25, 50, 75, 95)  # per cent


def statistics(values: np.ndarray) -> dict[str, float]:
    """Mean, spread and quantiles of scores [N], NaN left out, as score/<name>."""
    found = values[~np.isnan(values)]
    if not len(found):
        return {}
    summary = {"mean": found.mean(), "std": found.std(), "min": found.min(), "max": found.max()}
    summary |= {f"q{q:02}": np.percentile(found, q) for q in QUANTILES}
    return {f"score/{name}": float(value) for name, value in summary.items()}


def check_replaceable(
    path: Path, provenance: dict[str, Any], overwrite: bool, read: Callable[[Path], MirrorRecord] = ScoreRecord.read
) -> None:
    """Refuse to replace a score file that was made otherwise; making the same one again loses nothing."""
    if not path.exists() or overwrite:
        return
    sidecar = path.with_suffix(".json")
    made = read(sidecar).as_json() if sidecar.exists() else {}
    differing = [f"{k}: {made.get(k)} there, {v} asked for" for k, v in provenance.items() if made.get(k) != v]
    if differing:
        repair = commands.option("overwrite", True)
        raise UserError(f"{path} holds other scores ({'; '.join(differing)}). Replace them with {repair}.")


def find_run(layout: ExperimentLayout, exp: str, run: int) -> StoredRun:
    """The run `run_<run>` of an experiment.

    Raises:
        UserError: there is none, with the command that trains it.
    """
    path = layout.experiment(exp) / f"run_{run}"
    if not (path / "args.json").exists():
        raise UserError(f"No run in {path}. Train it: {training_command(layout, exp, run)}")
    return open_run(path, layout.name(path))


class Scored(NamedTuple):
    """Scores that were made, before they are written."""

    entry_point: str  # score or mean_score
    path: Path  # of the score file
    values: np.ndarray  # [N]
    identity: dict[str, Any]  # of the data: see `Dataset.identity`
    provenance: dict[str, Any]  # how they were made, as `ScoreRecord` has it
    seconds: dict[str, float]  # total, and compile where something was compiled
    beside: dict[str, np.ndarray] = {}  # noqa: RUF012 - arrays beside them by suffix; never changed


def write_scores(made: Scored, exp: str, context: Context) -> Path:
    """Write a score file and its MLflow run."""
    path, provenance, seconds = made.path, made.provenance, made.seconds
    dataset, fingerprint = made.identity["dataset"], made.identity["fingerprint"]
    name, kind = context.output.layout.name(path.with_suffix("")), provenance["type"]
    note = f"{kind} of {len(made.values):,} examples of {dataset}: {provenance}"
    found, mirror = statistics(made.values), path.with_suffix(f".{record.NAME}")
    with context.tracker.track(made.entry_point, exp, name, mirror, params=provenance, note=note) as tracked:
        spent = {"seconds": round(seconds["total"] - seconds.get("compile", 0), 3)}
        spent |= {"compile_seconds": round(seconds["compile"], 3)} if "compile" in seconds else {}
        save_scores(path, made.values, made.identity, provenance | spent, made.beside, f"{name}.npy")
        if context.tracker.parent is None or made.beside:  # of a study, the means
            tracked.log_artifacts(_files(made, context.reporter.say))
        tracked.log_input(dataset, fingerprint, "scoring", num_rows=len(made.values))
        timings = {f"time/{name}_seconds": value for name, value in seconds.items()}
        tracked.log_metrics(found | timings, provenance["step"])
    mean = f"mean {found['score/mean']:.4f}" if found else "nothing measured yet"
    context.reporter.say(f"{kind} at step {provenance['step']}: {mean} in {seconds['total']:.1f} s -> {path}")
    return path


def _files(made: Scored, say: Callable[[str], None]) -> list[Artifact]:
    """A score file, its record and what lies beside them, as far as they are small."""
    whole = small([made.path, made.path.with_suffix(".json")], say)
    extra = [small([made.path.with_suffix(f".{suffix}.npy")], say) for suffix in made.beside]
    return whole + [one for some in extra for one in some]


def _made_before(
    layout: ExperimentLayout, path: Path, provenance: dict[str, Any], fingerprint: str
) -> ScoreRecord | None:
    """The .json of finished scores that were made in the same way from the same data; None where there are none.

    Raises:
        UserError: the file was changed since it was written, or made for another place.
    """
    mirror = path.with_suffix(f".{record.NAME}")
    if not (path.with_suffix(".json").exists() and mirror.exists()):
        return None
    _, made = _load_recorded(layout, path)
    told = made.as_json()
    same = made.fingerprint == fingerprint and all(told.get(k) == v for k, v in provenance.items())
    return made if same and record.load(mirror).status == "FINISHED" else None


def _take(path: Path, context: Context) -> Path:
    """Scores as they are, which MLflow is to have as well."""
    mirror = path.with_suffix(f".{record.NAME}")
    with record.load(mirror).lock():
        settle(mirror, context.tracker.parent, context.tracker.offline)
    context.reporter.say(f"{context.output.layout.name(path)}: made before, taken as it is")
    return path


def score_run(
    kind: str, run: int, step: int | None, batch_size: int, source_exp: str, exp: str, context: Context
) -> Path:
    """Score every training example with one checkpoint of one run.

    Args:
        kind: A name in `score_names`.
        run: Index of the run in `source_exp`.
        step: Checkpoint; None: the first after a tenth of training.
        batch_size: Examples on the device at once; no value depends on it.
        source_exp: Experiment that holds the run.
        exp: Experiment that the scores are written to.
    Returns:
        The score file.
    Raises:
        UserError: no such run, checkpoint or score type, changed data, or other scores in the way.
    """
    check_score(kind)
    layout, output = context.output.layout, context.output
    stored = find_run(layout, source_exp, run)
    config = stored.config
    step = options.default_score_step(config) if step is None else step
    path = score_file(layout.experiment(exp) / f"run_{run}", kind, step)
    labels_from = {"fraction": config.random_label_fraction, "seed": config.random_label_seed}
    provenance = {
        "type": kind, "step": step, "runs": [run], "source": layout.name(stored.path),
        "random_labels": labels_from if config.random_label_fraction else None, "given_labels": given_digest(stored),
    }  # fmt: skip
    check_replaceable(path, provenance, output.overwrite)
    if output.resume and _made_before(layout, path, provenance, stored.data.fingerprint):
        return _take(path, context)
    check_device(context.reporter.say)
    context.tracker.check()
    return write_scores(_score(stored, path, provenance, batch_size, context), exp, context)


def _score(stored: StoredRun, path: Path, provenance: dict[str, Any], batch_size: int, context: Context) -> Scored:
    """Raises UserError where the data has changed since the run was trained, Interrupted where it was stopped."""
    config, kind = stored.config, provenance["type"]
    variables = stored.variables(provenance["step"])
    dataset = fit_images(dataset_of(config), stored.network.image_shape)
    if dataset.fingerprint != stored.data.fingerprint:
        raise UserError(f"{dataset.name} has changed since {stored.path} was trained on it; train the run again.")
    labels = labels_of(stored, dataset)
    start = time.perf_counter()
    label = f"{kind} of {context.output.layout.name(stored.path)}"
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
            compute_many, [kind], stored.network, variables, dataset.train_images, labels, batch_size,
            prepare=Normalizer.of(dataset), progress=progress,
        )  # fmt: skip
        try:
            values = unless(stopping, scoring)[kind]
        except Interrupted:
            raise Interrupted(f"Stopped; {path} is not written. {again}") from None
    seconds = {"total": time.perf_counter() - start, "compile": sum(compiling)}
    return Scored("score", path, values, dataset.identity(), provenance, seconds)


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
    held = _made_before(layout, target, provenance, first.fingerprint) if output.resume else None
    if held and held.sha256 == hashlib.sha256(npy_bytes(values)).hexdigest():
        return _take(target, context)
    identity = {name: getattr(first, name) for name in ("dataset", "fingerprint", "example_ids")}
    beside = {"runs": runs.astype(np.float32), "stderr": standard_error(runs)}
    seconds = {"total": time.perf_counter() - start}
    return write_scores(Scored("mean_score", target, values, identity, provenance, seconds, beside), exp, context)


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
    paths = [score_file(layout.experiment(exp) / f"run_{run}", kind, step) for run in range(n_runs)]
    if missing := [run for run, path in enumerate(paths) if not path.exists()]:
        lines = [
            f"{len(missing)} of {n_runs} runs have no {kind} scores at step {step}; "
            f"the first is {paths[missing[0]]}. Make them:",
            *(f"  {_command(kind, step, run, exp, layout)}" for run in missing),
        ]
        raise UserError("\n".join(lines))
    return paths


def _load_runs(layout: ExperimentLayout, paths: list[Path]) -> tuple[np.ndarray, ScoreRecord]:
    """Scores [R, N] and the record of the first run.

    Raises:
        UserError: they were not all made from the same data, or not each for its run, step and type.
    """
    loaded = [_load_recorded(layout, path) for path in paths]
    first = loaded[0][1]
    for path, (_, other) in zip(paths, loaded):
        if other.fingerprint != first.fingerprint:
            raise UserError(f"{path} was not made from the same data as {paths[0]}; score those runs again.")
    return np.stack([values for values, _ in loaded]), first


def _load_recorded(layout: ExperimentLayout, path: Path) -> tuple[np.ndarray, ScoreRecord]:
    """Scores and their record; a file without one cannot be averaged, because nothing tells its data."""
    values, made = load_scores(path, layout.name(path))
    if made is None:
        raise UserError(f"{path} has no {path.stem}.json beside it, which tells its data; score that run again.")
    return values, made


def _command(kind: str, step: int, run: int, exp: str, layout: ExperimentLayout) -> str:
    """The command that gives a run its scores."""
    if kind in training_score_names():
        return training_command(layout, exp, run, save_steps=step, **gathering(kind))
    return commands.command("score", run=run, score_exp=exp, type=kind, step=step, root=layout.root)
