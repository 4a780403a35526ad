"""A training run before it starts: its options, what they name on disk, and the examples it trains on."""

from __future__ import annotations

import shlex
import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from datadiet import config as options
from datadiet.config import ResolvedConfig, TrainConfig
from datadiet.data import align
from datadiet.data.batches import Normalizer, fit_images
from datadiet.data.dataset import Dataset
from datadiet.data.registry import count_examples, load_dataset
from datadiet.errors import UserError
from datadiet.models.registry import check_model
from datadiet.runs.context import Place
from datadiet.scores import trajectory
from datadiet.scores.checkpoint import compute_features, training_score_names
from datadiet.selectors import selection
from datadiet.selectors.options import MANIFEST, given_parameters, parameters, refuse_unused
from datadiet.storage.layout import ExperimentLayout, score_file
from datadiet.storage.manifests import find_manifest, manifest_ids
from datadiet.storage.runs import open_run
from datadiet.storage.score_files import load_scores


@dataclass(frozen=True)
class ScoreChoice:
    """Which mean score a subset is chosen by, where no file is given."""

    exp: str = "full_data"
    type: str = "l2_error"
    step: int | None = None


DEFAULT_CHOICE = ScoreChoice()


def resolve_config(config: TrainConfig) -> ResolvedConfig:
    """Names checked and derived options filled in, without loading data."""
    check_model(config.model)
    if config.selector == MANIFEST:
        config = find_manifest(config)
    elif config.selector != "all":
        selection.check_selector(config.selector)
        if config.size is None:
            raise UserError(f"selector={config.selector} needs a size: -P size=N.")
    config = replace(config, trajectory=trajectory.expand(config.trajectory))
    refuse_unused(config)
    selection.check_balance(parameters(config))
    options.validate(config)
    count = count_examples(config.dataset, config.data_dir)
    return options.fit_budget(options.resolve(config, count), count)


def default_scores(layout: ExperimentLayout, config: ResolvedConfig, choice: ScoreChoice) -> Path:
    """The mean score file that a choice stands for; the step defaults to that of the scored runs.

    Raises:
        UserError: those runs were trained on another dataset.
    """
    folder = layout.experiment(choice.exp)
    step = choice.step
    if step is None:
        runs = sorted(folder.glob("run_*/args.json"))
        scored = open_run(runs[0].parent).config if runs else config
        if scored.dataset != config.dataset:
            raise UserError(
                f"The runs in {folder} were trained on {scored.dataset}, this one is to train on {config.dataset}: "
                f"pass -P dataset={scored.dataset}, or name other scores with -P score_exp=EXP or -P scores=PATH."
            )
        step = options.default_score_step(scored)
    return score_file(folder, choice.type, step)


def find_scores(layout: ExperimentLayout, config: ResolvedConfig, choice: ScoreChoice) -> ResolvedConfig:
    """The config with the score file it selects by.

    Raises:
        UserError: the file is not there, with the commands that make it.
    """
    if config.selector in ("all", MANIFEST, *selection.without_scores()):
        return replace(config, scores=None)
    path = default_scores(layout, config, choice) if config.scores is None else Path(config.scores)
    if path.is_file():
        return replace(config, scores=str(path))
    if config.scores is not None:
        raise UserError(f"scores={path}: no such file; expected a score file (.npy).")
    files = layout.experiment(choice.exp).glob("*_scores/ckpt_*.npy")
    others = sorted(str(file) for file in files if file.with_suffix(".json").exists())
    lines = [
        f"No mean score file {path}. Make it, here from runs 0-2 (the paper takes ten):",
        *(f"  {command}" for command in _commands_for(path, layout, config, choice)),
        f"Or name a file: -P scores=PATH. Mean scores there are: {', '.join(others) or 'none'}.",
    ]
    raise UserError("\n".join(lines))


def find_sources(layout: ExperimentLayout, config: ResolvedConfig, choice: ScoreChoice) -> ResolvedConfig:
    """The config with all that its selector looks at: the score file, and the checkpoint of its features."""
    config = find_scores(layout, config, choice)
    return find_features(layout, config, choice.exp, choice.step)


def _commands_for(path: Path, layout: ExperimentLayout, config: TrainConfig, choice: ScoreChoice) -> list[str]:
    """The commands that make a mean score file of runs 0-2, without those whose work is done."""
    step = path.stem.removeprefix("ckpt_")
    root = "" if layout.root == Path(".") else f" -P root={shlex.quote(str(layout.root))}"
    data_dir = f" -P data_dir={shlex.quote(config.data_dir)}" if config.data_dir else ""
    trained = f" -P exp={choice.exp} -P dataset={shlex.quote(config.dataset)} -P model={config.model}{data_dir}{root}"
    scored = f" -P score_exp={choice.exp} -P type={choice.type} -P step={step}{root}"
    gathered = "" if choice.type not in training_score_names() else f" -P trajectory={choice.type}"
    trained += gathered if choice.type != "forget" else ""
    commands = []
    for run in range(3):
        folder = layout.experiment(choice.exp) / f"run_{run}"
        if not (folder / "args.json").exists():
            commands.append(f"mlflow run . -e full_data -P run={run}{trained}")
        if choice.type not in training_score_names() and not score_file(folder, choice.type, int(step)).exists():
            commands.append(f"mlflow run . -e score -P run={run}{scored}")
    return [*commands, f"mlflow run . -e mean_score -P n_runs=3{scored}"]


def _align(path: Path, values: np.ndarray, record: dict[str, Any], dataset: Dataset) -> np.ndarray:
    """Scores in the order of `dataset`, by the ids of their record; an error names the file."""
    ids = np.array(record["example_ids"])
    try:
        return align.align(values, ids, record["fingerprint"], dataset, record["dataset"])
    except UserError as error:
        raise UserError(f"{path}: {error}") from None


def read_scores(path: Path, dataset: Dataset, say: Callable[[str], None]) -> tuple[np.ndarray, str | None]:
    """Scores [N] in the order of `dataset` (as published) and their type, None where no record tells it.

    Raises:
        UserError: no scores, or those of other data.
    """
    values, record = load_scores(path)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        bare = record is None
        values = align.accept_bare(values, path, dataset) if bare else _align(path, values, record, dataset)
    for warning in caught:
        say(f"Warning: {warning.message}")
    return values, record.get("type") if record else None


def choose(
    config: ResolvedConfig, dataset: Dataset, labels: np.ndarray, place: Place
) -> tuple[np.ndarray, np.ndarray | None, str | None]:
    """Ids to train on in kept order [M], the scores they were chosen by, and the type of those.

    Args:
        dataset: As published.
        labels: int32 [N], those trained on.
    """
    everything = np.arange(dataset.num_examples, dtype=np.int32)
    if config.size is None:
        return everything, None, None
    if config.manifest is not None:
        return manifest_ids(Path(config.manifest), dataset), None, None
    values, score_type = None, None
    if config.scores is not None:
        values, score_type = read_scores(Path(config.scores), dataset, place.progress.say)
    chosen_from = everything if values is None else values
    kept = selection.kept_order(
        config.selector, chosen_from, size=config.size, seed=config.random_subset_seed, labels=labels,
        features=features(config, dataset) if config.features_run else None,
        **parameters(config).as_dict(),
    )  # fmt: skip
    return kept, values, score_type


def scored_by(config: TrainConfig, score_type: str | None) -> str:
    """How the training examples of a run were chosen, in words for the table."""
    told = " ".join(f"{name} {value}" for name, value in given_parameters(config).items())
    if config.scores is None:
        name = "full data" if config.selector == "all" else config.selector
        return f"{name} ({told})" if told else name
    name, chosen = score_type or Path(config.scores).stem, selection.SELECTORS.get(config.selector)
    manner = " ".join(filter(None, ["" if chosen and chosen.entry_point else config.selector, told]))
    return f"{name} ({manner})" if manner else name


def find_features(layout: ExperimentLayout, config: ResolvedConfig, exp: str, step: int | None) -> ResolvedConfig:
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
    step = options.default_score_step(open_run(path).config) if given is None else given
    return replace(config, features_run=str(path), features_step=step)


def features(config: TrainConfig, dataset: Dataset) -> np.ndarray:
    """Penultimate features [N, F] of the training examples, by the checkpoint that `find_features` found.

    Raises:
        UserError: the run was trained on other data, or has no such checkpoint.
    """
    assert config.features_run is not None
    assert config.features_step is not None
    path = Path(config.features_run)
    trained_on = open_run(path).arguments["data"]["fingerprint"]
    if trained_on != dataset.fingerprint:
        raise UserError(f"features_run={path} was trained on other data than {dataset.name}: name a run on that.")
    folder = path / "ckpts" / str(config.features_step)
    made = folder.stat().st_mtime_ns if folder.exists() else 0
    return _features(path.resolve(), config.features_step, made, config.dataset, config.data_dir)


@lru_cache(maxsize=1)  # the runs of a study share them; they are never written
def _features(path: Path, step: int, made: int, dataset: str, data_dir: str | None) -> np.ndarray:
    stored = open_run(path)
    variables = stored.variables(step)
    fitted = fit_images(load_dataset(dataset, data_dir), stored.network.image_shape)
    return compute_features(stored.network, variables, fitted.train_images, prepare=Normalizer.of(fitted))
