"""Scoring a checkpoint of a run, and averaging scores over runs, mirrored and tracked."""

from __future__ import annotations

import hashlib
import time
from pathlib import Path
from typing import Any

import numpy as np

from datadiet import config as options
from datadiet.data.batches import Normalizer, fit_images, randomize_labels
from datadiet.data.registry import load_dataset
from datadiet.errors import UserError
from datadiet.runs.context import Place
from datadiet.scores.checkpoint import check_score, compute_many, score_names, training_score_names
from datadiet.scores.combine import COMBINATIONS, standard_error
from datadiet.storage.files import npy_bytes, read_record
from datadiet.storage.layout import score_file
from datadiet.storage.runs import StoredRun, open_run
from datadiet.storage.score_files import load_scores, save_scores
from datadiet.tracking import record
from datadiet.tracking.run import check_store, settle
from datadiet.training.compiled import compile_seconds

QUANTILES = (5, 25, 50, 75, 95)  # per cent


def statistics(values: np.ndarray) -> dict[str, float]:
    """Mean, spread and quantiles of scores [N], NaN left out, as score/<name>."""
    found = values[~np.isnan(values)]
    if not len(found):
        return {}
    summary = {"mean": found.mean(), "std": found.std(), "min": found.min(), "max": found.max()}
    summary |= {f"q{q:02}": np.percentile(found, q) for q in QUANTILES}
    return {f"score/{name}": float(value) for name, value in summary.items()}


def check_replaceable(path: Path, provenance: dict[str, Any], overwrite: bool) -> None:
    """Refuse to replace a score file that was made otherwise; making the same one again loses nothing."""
    if not path.exists() or overwrite:
        return
    sidecar = path.with_suffix(".json")
    made = read_record(sidecar) if sidecar.exists() else {}
    differing = [f"{k}: {made.get(k)} there, {v} asked for" for k, v in provenance.items() if made.get(k) != v]
    if differing:
        raise UserError(f"{path} holds other scores ({'; '.join(differing)}). Replace them with -P overwrite=true.")


def find_run(place: Place, exp: str, run: int) -> StoredRun:
    """The run `run_<run>` of an experiment.

    Raises:
        UserError: there is none, with the command that trains it.
    """
    path = place.layout.experiment(exp) / f"run_{run}"
    if not (path / "args.json").exists():
        raise UserError(f"No run in {path}. Train it: mlflow run . -e full_data -P run={run} -P exp={exp}")
    return open_run(path)


def _record(kind: str, path: Path, values: np.ndarray, identity: dict, provenance: dict, seconds: dict[str, float],
            exp: str, place: Place, entry_point: str, beside: dict[str, np.ndarray] | None = None) -> Path:  # fmt: skip
    """Write a score file, arrays beside it by suffix, and its MLflow run.

    Args:
        seconds: total, and compile where something was compiled.
    """
    name = place.layout.name(path.with_suffix(""))
    told = {k: v for k, v in provenance.items() if k != "labels"}
    note = f"{kind} of {len(values):,} examples of {identity['dataset']}: {told}"
    found, mirror = statistics(values), path.with_suffix(f".{record.NAME}")
    with place.track(entry_point, exp, name, mirror, params=told, note=note) as tracked:
        spent = {"seconds": round(seconds["total"] - seconds.get("compile", 0), 3)}
        spent |= {"compile_seconds": round(seconds["compile"], 3)} if "compile" in seconds else {}
        save_scores(path, values, identity, provenance | spent, beside or {})
        tracked.log_input(identity["dataset"], identity["fingerprint"], "scoring", num_rows=len(values))
        timings = {f"time/{name}_seconds": value for name, value in seconds.items()}
        tracked.log_metrics(found | timings, provenance["step"])
    mean = f"mean {found['score/mean']:.4f}" if found else "nothing measured yet"
    place.progress.say(f"{kind} at step {provenance['step']}: {mean} in {seconds['total']:.1f} s -> {path}")
    return path


def _made_before(path: Path, provenance: dict[str, Any], fingerprint: str, place: Place) -> dict[str, Any] | None:
    """The .json of scores that `place.resume` says to take as they are; None where they are to be made.

    Raises:
        UserError: the file was changed since it was written.
    """
    mirror = path.with_suffix(f".{record.NAME}")
    if not (place.resume and path.with_suffix(".json").exists() and mirror.exists()):
        return None
    _, made = _load_recorded(path)
    same = made["fingerprint"] == fingerprint and all(made.get(k) == v for k, v in provenance.items())
    return made if same and record.load(mirror).status == "FINISHED" else None


def _take(path: Path, place: Place) -> Path:
    """Scores as they are, which MLflow is to have as well."""
    mirror = path.with_suffix(f".{record.NAME}")
    with record.load(mirror).lock():
        settle(mirror, place.parent, place.offline)
    place.progress.say(f"{place.layout.name(path)}: made before, taken as it is")
    return path


def score_run(kind: str, run: int, step: int | None, batch_size: int, source_exp: str, exp: str, place: Place) -> Path:
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
    stored = find_run(place, source_exp, run)
    config = stored.config
    step = options.default_score_step(config) if step is None else step
    path = score_file(place.layout.experiment(exp) / f"run_{run}", kind, step)
    labels_from = {"fraction": config.random_label_fraction, "seed": config.random_label_seed}
    provenance = {
        "type": kind, "step": step, "runs": [run], "source": place.layout.name(stored.path),
        "random_labels": labels_from if config.random_label_fraction else None,
    }  # fmt: skip
    check_replaceable(path, provenance, place.overwrite)
    if _made_before(path, provenance, stored.arguments["data"]["fingerprint"], place):
        return _take(path, place)
    if place.parent is None:
        check_store(place.offline)
    variables = stored.variables(step)
    dataset = fit_images(load_dataset(config.dataset, config.data_dir), stored.network.image_shape)
    if dataset.fingerprint != stored.arguments["data"]["fingerprint"]:
        raise UserError(f"{dataset.name} has changed since {stored.path} was trained on it; train the run again.")
    labels, _ = randomize_labels(dataset.train_labels, config.random_label_fraction, config.random_label_seed)
    start = time.perf_counter()
    label = f"{kind} of {place.layout.name(stored.path)}"
    with compile_seconds() as compiling, place.progress.counter(dataset.num_examples, label) as advance:
        values = compute_many(
            [kind], stored.network, variables, dataset.train_images, labels, batch_size,
            prepare=Normalizer.of(dataset), progress=advance,
        )[kind]  # fmt: skip
    seconds = {"total": time.perf_counter() - start, "compile": sum(compiling)}
    return _record(kind, path, values, dataset.identity(), provenance, seconds, exp, place, "score")


def mean_run(
    kind: str, n_runs: int, step: int | None, source_exp: str, exp: str, place: Place, combine: str = "mean"
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
    check_score(kind, (*score_names(), *training_score_names()))
    if not 1 <= n_runs <= options.MAX_RUNS:
        raise UserError(f"n_runs={n_runs}: expected at least 1, at most {options.MAX_RUNS}.")
    if combine not in COMBINATIONS:
        raise UserError(f"combine={combine!r}: expected one of {', '.join(COMBINATIONS)}.")
    start = time.perf_counter()
    step = options.default_score_step(find_run(place, source_exp, 0).config) if step is None else step
    folder = place.layout.experiment(source_exp)
    target = score_file(place.layout.experiment(exp), kind, step, combine)
    paths = [score_file(folder / f"run_{run}", kind, step) for run in range(n_runs)]
    if missing := [run for run, path in enumerate(paths) if not path.exists()]:
        lines = [
            f"{len(missing)} of {n_runs} runs have no {kind} scores at step {step}; "
            f"the first is {paths[missing[0]]}. Make them:",
            *(f"  {_command(kind, step, run, source_exp)}" for run in missing),
        ]
        raise UserError("\n".join(lines))
    if place.parent is None:
        check_store(place.offline)
    loaded = [_load_recorded(path) for path in paths]
    first = loaded[0][1]
    for path, (_, other) in zip(paths, loaded):
        if other["fingerprint"] != first["fingerprint"]:
            raise UserError(f"{path} was not made from the same data as {paths[0]}; score those runs again.")
    runs = np.stack([values for values, _ in loaded])
    values = COMBINATIONS[combine](runs)
    identity = {name: first[name] for name in ("dataset", "fingerprint", "example_ids")}
    provenance = {
        "type": kind, "step": step, "runs": list(range(n_runs)), "source": source_exp,
        "random_labels": first.get("random_labels"),
        **({} if combine == "mean" else {"combine": combine}),
    }  # fmt: skip
    check_replaceable(target, provenance, place.overwrite)
    held = _made_before(target, provenance, first["fingerprint"], place)
    if held and held["sha256"] == hashlib.sha256(npy_bytes(values)).hexdigest():
        return _take(target, place)
    beside = {"runs": runs.astype(np.float32), "stderr": standard_error(runs)}
    seconds = {"total": time.perf_counter() - start}
    return _record(kind, target, values, identity, provenance, seconds, exp, place, "mean_score", beside)


def _load_recorded(path: Path) -> tuple[np.ndarray, dict[str, Any]]:
    """Scores and their record; a file without one cannot be averaged, because nothing tells its data."""
    values, made = load_scores(path)
    if made is None:
        raise UserError(f"{path} has no {path.stem}.json beside it, which tells its data; score that run again.")
    return values, made


def _command(kind: str, step: int, run: int, exp: str) -> str:
    """The command that gives a run its scores."""
    if kind in training_score_names():
        gathered = "" if kind == "forget" else f" -P trajectory={kind}"
        return f"mlflow run . -e full_data -P run={run} -P exp={exp} -P save_steps={step}{gathered}"
    return f"mlflow run . -e score -P run={run} -P score_exp={exp} -P type={kind} -P step={step}"
