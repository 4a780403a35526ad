"""What examples are chosen by beside scores: features of a checkpoint, and manifests of examples kept before."""

from __future__ import annotations

import csv
import hashlib
import io
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from functools import lru_cache
from pathlib import Path

import numpy as np

from datadiet import config as options
from datadiet import data, selection, store, stored_runs
from datadiet.config import TrainConfig, UserError
from datadiet.coresets import Parameters
from datadiet.data import Dataset
from datadiet.scores import compute_features
from datadiet.store import ExperimentLayout
from datadiet.trajectory import TRAJECTORIES

MANIFEST = "manifest"  # the selector that keeps what a file names


def parameters(config: TrainConfig) -> Parameters:
    """The options of selectors."""
    return Parameters(*(getattr(config, name) for name in Parameters._fields))


def given_parameters(config: TrainConfig) -> dict[str, object]:
    """Those that are not their defaults, and an offset where the selector is named after it."""
    given = parameters(config)._asdict()
    return {k: v for k, v in given.items() if v != Parameters._field_defaults[k] or k == config.selector}


def without_unused(config: TrainConfig) -> TrainConfig:
    """The config with the defaults of those selector options that its selector does not use."""
    used = options_of(config.selector)
    rest = {name: default for name, default in Parameters._field_defaults.items() if name not in used}
    return replace(config, **rest)


def options_of(selector: str) -> tuple[str, ...]:
    """Names of the options that a selector uses."""
    chosen = selection.SELECTORS.get(selector)
    return (*chosen.options, "balance") if chosen else ()


def refuse_unused(config: TrainConfig) -> None:
    """Raises UserError where an option was given that neither the selector nor a statistic asked for uses."""
    users = {name: [s for s in selection.SELECTORS if name in options_of(s)] for name in Parameters._fields}
    users |= {name: [s for s, chosen in selection.SELECTORS.items() if chosen.features] for name in FEATURE_FIELDS}
    _refuse_unused(config, "selector", users, [config.selector])
    users = {
        option: [name for name, entry in TRAJECTORIES.items() if option in entry.options]
        for option in ("trajectory_window", "tdds_decay")
    }
    _refuse_unused(config, "trajectory", users, config.trajectory)
    if config.manifest is not None and config.selector != MANIFEST:
        raise UserError(f"manifest={config.manifest} is used by selector={MANIFEST} only.")


def _refuse_unused(config: TrainConfig, kind: str, users: Mapping[str, list[str]], chosen: Iterable[str]) -> None:
    for name, names in users.items():
        if getattr(config, name) != options.FIELDS[name].default and not {*names} & {*chosen}:
            raise UserError(f"{name}={getattr(config, name)} is used by {kind}={','.join(names)} only.")


# --- features ---------------------------------------------------------------------------------

FEATURE_FIELDS = ("features_run", "features_step")


def find_features(layout: ExperimentLayout, config: TrainConfig, exp: str, step: int | None) -> TrainConfig:
    """The config with the checkpoint that its selector takes features from.

    Args:
        exp, step: Experiment whose run 0 it is of, and its step, where the config names none.
    Raises:
        UserError: there is no such run, with the command that trains it.
    """
    if config.selector not in selection.SELECTORS or not selection.SELECTORS[config.selector].features:
        return config
    path = layout.experiment(exp) / "run_0" if config.features_run is None else Path(config.features_run)
    if not (path / "args.json").is_file():
        raise UserError(
            f"selector={config.selector} takes features from a checkpoint, but {path} holds no training run. Train it: "
            f"mlflow run . -e full_data -P run=0 -P exp={exp} -P dataset={config.dataset} -P model={config.model}, or "
            "name one with -P features_run=PATH."
        )
    given = step if config.features_step is None else config.features_step
    step = options.default_score_step(stored_runs.open_run(path).config) if given is None else given
    return replace(config, features_run=str(path), features_step=step)


def features(config: TrainConfig, dataset: Dataset) -> np.ndarray:
    """Penultimate features [N, F] of the training examples, by the checkpoint that `find_features` found.

    Raises:
        UserError: the run was trained on other data, or has no such checkpoint.
    """
    assert config.features_run is not None
    assert config.features_step is not None
    path = Path(config.features_run)
    trained_on = stored_runs.open_run(path).arguments["data"]["fingerprint"]
    if trained_on != dataset.fingerprint:
        raise UserError(f"features_run={path} was trained on other data than {dataset.name}: name a run on that.")
    folder = path / "ckpts" / str(config.features_step)
    made = folder.stat().st_mtime_ns if folder.exists() else 0
    return _features(path.resolve(), config.features_step, made, config.dataset, config.data_dir)


@lru_cache(maxsize=1)  # the runs of a study share them; they are never written
def _features(path: Path, step: int, made: int, dataset: str, data_dir: str | None) -> np.ndarray:
    stored = stored_runs.open_run(path)
    variables = stored.variables(step)
    fitted = data.fit_images(data.load(dataset, data_dir), stored.network.image_shape)
    return compute_features(stored.network, variables, fitted.train_images, prepare=data.Normalizer.of(fitted))


# --- manifests --------------------------------------------------------------------------------


def find_manifest(config: TrainConfig) -> TrainConfig:
    """The config with the size of its manifest.

    Raises:
        UserError: no manifest, or another size was asked for.
    """
    if config.manifest is None:
        raise UserError(f"selector={MANIFEST} needs a file of kept examples: -P manifest=PATH/kept.csv.")
    size = len(_manifest_names(Path(config.manifest)))
    if config.size not in (None, size):
        raise UserError(f"size={config.size}: {config.manifest} has {size} examples; leave size out.")
    return replace(config, size=size)


def _manifest_names(path: Path) -> list[str]:
    """example_id of every line, in kept order."""
    try:
        rows = list(csv.DictReader(io.StringIO(path.read_text())))
        rows.sort(key=lambda row: int(row.get("kept_order") or 0))
        names = [row["example_id"] for row in rows]
    except (OSError, ValueError, KeyError, TypeError, csv.Error) as error:
        raise UserError(f"manifest={path}: expected a csv file with a column example_id ({error!r}).") from error
    if not names:
        raise UserError(f"manifest={path} names no example.")
    return names


def manifest_ids(path: Path, dataset: Dataset) -> np.ndarray:
    """Ids of the examples that a manifest names, int32 [M] in kept order.

    Raises:
        UserError: it is of other data, or names an example twice or one that the data does not have.
    """
    record = path.with_suffix(".json")
    told = store.read_record(record) if record.exists() else {}
    if record.exists() and told.get("sha256") != _digest(path):
        raise UserError(
            f"manifest={path} is not what {record.name} was written for. Make them again, or remove {record.name} to "
            "train on lines that you changed yourself."
        )
    if told.get("fingerprint", dataset.fingerprint) != dataset.fingerprint:
        raise UserError(f"manifest={path} keeps examples of {told.get('dataset')}, not of this {dataset.name}.")
    place = {str(name): i for i, name in enumerate(dataset.example_ids)}
    names = _manifest_names(path)
    if unknown := [name for name in names if name not in place]:
        raise UserError(
            f"manifest={path}: {len(unknown)} examples are not in {dataset.name}, the first is {unknown[0]}."
        )
    if len(set(names)) < len(names):
        raise UserError(f"manifest={path} names {len(names) - len(set(names))} examples twice.")
    return np.array([place[name] for name in names], np.int32)


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def write_manifest(path: Path, dataset: Dataset, kept: np.ndarray, values: np.ndarray | None, facts: dict) -> None:
    """kept.csv and, beside it, kept.json that ties it to its data."""
    text = manifest_text(dataset, kept, values)
    record = {**facts, "dataset": dataset.name, "fingerprint": dataset.fingerprint, "num_kept": len(kept)}
    record["sha256"] = hashlib.sha256(text.encode()).hexdigest()
    store.write_json(path.with_suffix(".json"), store.sealed(record))  # first: lines without it are taken on trust
    store.write_text(path, text)


def manifest_text(dataset: Dataset, kept: np.ndarray, values: np.ndarray | None) -> str:
    """kept.csv: example id, kept order and score (empty where none was used) of every kept example."""
    shown: Callable[[int], object] = (lambda i: "") if values is None else values.tolist().__getitem__
    return store.csv_text(
        "example_id,kept_order,score", ((dataset.example_ids[i], order, shown(i)) for order, i in enumerate(kept))
    )
