"""A training run before it starts: its options, what they name on disk, and the examples it trains on."""

from __future__ import annotations

import json
import shlex
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from datadiet import choosing, data, identity, models, scores, selection, store, stored_runs, trajectory
from datadiet import config as options
from datadiet.config import TrainConfig, UserError
from datadiet.data import Dataset
from datadiet.place import Place
from datadiet.store import ExperimentLayout


@dataclass(frozen=True)
class ScoreChoice:
    """Which mean score a subset is chosen by, where no file is given."""

    exp: str = "full_data"
    type: str = "l2_error"
    step: int | None = None


DEFAULT_CHOICE = ScoreChoice()


def resolve(config: TrainConfig) -> TrainConfig:
    """Names checked and derived options filled in, without loading data."""
    models.check_model(config.model)
    if config.selector == choosing.MANIFEST:
        config = choosing.find_manifest(config)
    elif config.selector != "all":
        selection.check_selector(config.selector)
        if config.size is None:
            raise UserError(f"selector={config.selector} needs a size: -P size=N.")
    config = replace(config, trajectory=trajectory.expand(config.trajectory))
    choosing.refuse_unused(config)
    selection.check_words(choosing.parameters(config))
    options.validate(config)
    count = data.count_examples(config.dataset, config.data_dir)
    return options.fit_budget(options.resolve(config, count), count)


def default_scores(layout: ExperimentLayout, config: TrainConfig, choice: ScoreChoice) -> Path:
    """The mean score file that a choice stands for; the step defaults to that of the scored runs.

    Raises:
        UserError: those runs were trained on another dataset.
    """
    folder = layout.experiment(choice.exp)
    step = choice.step
    if step is None:
        runs = sorted(folder.glob("run_*/args.json"))
        scored = stored_runs.open_run(runs[0].parent).config if runs else config
        if scored.dataset != config.dataset:
            raise UserError(
                f"The runs in {folder} were trained on {scored.dataset}, this one is to train on {config.dataset}: "
                f"pass -P dataset={scored.dataset}, or name other scores with -P score_exp=EXP or -P scores=PATH."
            )
        step = options.default_score_step(scored)
    return store.score_file(folder, choice.type, step)


def find_scores(layout: ExperimentLayout, config: TrainConfig, choice: ScoreChoice) -> TrainConfig:
    """The config with the score file it selects by.

    Raises:
        UserError: the file is not there, with the commands that make it.
    """
    if config.selector in ("all", choosing.MANIFEST, *selection.WITHOUT_SCORES):
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


def find_sources(layout: ExperimentLayout, config: TrainConfig, choice: ScoreChoice) -> TrainConfig:
    """The config with all that its selector looks at: the score file, and the checkpoint of its features."""
    config = find_scores(layout, config, choice)
    return choosing.find_features(layout, config, choice.exp, choice.step)


def _commands_for(path: Path, layout: ExperimentLayout, config: TrainConfig, choice: ScoreChoice) -> list[str]:
    """The commands that make a mean score file of runs 0-2, without those whose work is done."""
    step = path.stem.removeprefix("ckpt_")
    root = "" if layout.root == Path(".") else f" -P root={shlex.quote(str(layout.root))}"
    data_dir = f" -P data_dir={shlex.quote(config.data_dir)}" if config.data_dir else ""
    trained = f" -P exp={choice.exp} -P dataset={shlex.quote(config.dataset)} -P model={config.model}{data_dir}{root}"
    scored = f" -P score_exp={choice.exp} -P type={choice.type} -P step={step}{root}"
    gathered = "" if choice.type not in scores.TRAINING_SCORES else f" -P trajectory={choice.type}"
    trained += gathered if choice.type != "forget" else ""
    commands = []
    for run in range(3):
        folder = layout.experiment(choice.exp) / f"run_{run}"
        if not (folder / "args.json").exists():
            commands.append(f"mlflow run . -e full_data -P run={run}{trained}")
        if choice.type not in scores.TRAINING_SCORES and not store.score_file(folder, choice.type, int(step)).exists():
            commands.append(f"mlflow run . -e score -P run={run}{scored}")
    return [*commands, f"mlflow run . -e mean_score -P n_runs=3{scored}"]


def _align(path: Path, values: np.ndarray, record: dict[str, Any], dataset: Dataset) -> np.ndarray:
    """Scores in the order of `dataset`, by the ids of their record; an error names the file."""
    ids = np.array(record["example_ids"])
    try:
        return identity.align(values, ids, record["fingerprint"], dataset, record["dataset"])
    except UserError as error:
        raise UserError(f"{path}: {error}") from None


def read_scores(path: Path, dataset: Dataset, say: Callable[[str], None]) -> tuple[np.ndarray, str | None]:
    """Scores [N] in the order of `dataset` (as published) and their type, None where no record tells it.

    Raises:
        UserError: no scores, or those of other data.
    """
    values, record = store.load_scores(path)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        if record is None:
            values = identity.accept_bare(values, path, dataset)
        else:
            values = _align(path, values, record, dataset)
    for warning in caught:
        say(f"Warning: {warning.message}")
    return values, record.get("type") if record else None


def choose(
    config: TrainConfig, dataset: Dataset, labels: np.ndarray, place: Place
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
        return choosing.manifest_ids(Path(config.manifest), dataset), None, None
    values, score_type = None, None
    if config.scores is not None:
        values, score_type = read_scores(Path(config.scores), dataset, place.progress.say)
    chosen_from = everything if values is None else values
    kept = selection.kept_order(
        config.selector, chosen_from, size=config.size, seed=config.random_subset_seed, labels=labels,
        features=choosing.features(config, dataset) if config.features_run else None,
        **choosing.parameters(config)._asdict(),
    )  # fmt: skip
    return kept, values, score_type


def scored_by(config: TrainConfig, score_type: str | None) -> str:
    """How the training examples of a run were chosen, in words for the table."""
    told = " ".join(f"{name} {value}" for name, value in choosing.given_parameters(config).items())
    if config.scores is None:
        name = "full data" if config.selector == "all" else config.selector
        return f"{name} ({told})" if told else name
    name, selector = score_type or Path(config.scores).stem, config.selector
    manner = " ".join(filter(None, ["" if selector in ("keep_max", "offset") else selector, told]))
    return f"{name} ({manner})" if manner else name


@dataclass(frozen=True)
class Task:
    """A training run before it starts: what it trains on and where it writes."""

    config: TrainConfig  # resolved
    exp: str
    run_dir: Path
    name: str  # path below exps
    dataset: Dataset  # as the model takes it
    labels: np.ndarray  # int32 [N], those trained on
    touched: np.ndarray  # ids whose label was drawn anew
    kept: np.ndarray  # ids to train on, in kept order
    kept_by: str
    select_seconds: float  # that choosing them took, reading the scores included
    inputs: dict[str, str]  # kept.csv for a subset, random_labels.csv where labels were randomised
    continues: bool = False  # its folder holds a part of it

    @property
    def member(self) -> np.ndarray:
        """bool [N]: trained on."""
        member = np.zeros(self.dataset.num_examples, bool)
        member[self.kept] = True
        return member


def load(config: TrainConfig) -> tuple[Dataset, Dataset]:
    """The dataset of a run as published, and as its model takes it.

    Raises:
        UserError: the data cannot be had, or cannot be trained on as asked.
    """
    published = data.load(config.dataset, config.data_dir)
    dataset = data.fit_images(published, models.input_shape(config.model, published.image_shape))
    if config.augment and len(dataset.image_shape) != 3:
        raise UserError(f"augment=true needs images; {dataset.name} has vectors: -P augment=false.")
    return published, dataset


def prepare(config: TrainConfig, exp: str, place: Place, loaded: tuple[Dataset, Dataset]) -> Task:
    """Choose the examples of a run.

    Args:
        loaded: What `load` gave.
    Raises:
        UserError: the scores cannot be had or do not fit.
    """
    published, dataset = loaded
    labels, touched = data.randomize_labels(
        dataset.train_labels, config.random_label_fraction, config.random_label_seed
    )
    start = time.perf_counter()
    kept, values, score_type = choose(config, published, labels, place)
    select_seconds = time.perf_counter() - start
    inputs = {}
    if config.selector != "all":
        inputs["kept.csv"] = choosing.manifest_text(dataset, kept, values)
    if config.random_label_fraction:
        rows = ((dataset.example_ids[i], i, dataset.train_labels[i], labels[i]) for i in touched)
        inputs["random_labels.csv"] = store.csv_text("example_id,id,label,random_label", rows)
    run_dir = place.layout.run(exp, config)
    name, kept_by = place.layout.name(run_dir), scored_by(config, score_type)
    return Task(config, exp, run_dir, name, dataset, labels, touched, kept, kept_by, select_seconds, inputs)


def write_inputs(task: Task) -> None:
    """args.json and the inputs; those that are there already are kept: `resume.check_same` has compared them."""
    facts = {
        "fingerprint": task.dataset.fingerprint,
        "num_examples": task.dataset.num_examples,
        "num_classes": task.dataset.num_classes,
        "image_shape": list(task.dataset.image_shape),
        "mean": task.dataset.mean.tolist(),
        "std": task.dataset.std.tolist(),
    }
    arguments = store.sealed({"exp": task.exp, **options.as_dict(task.config), "data": facts})
    for name, text in {"args.json": json.dumps(arguments, indent=1) + "\n", **task.inputs}.items():
        if not (task.run_dir / name).exists():
            store.write_text(task.run_dir / name, text)
