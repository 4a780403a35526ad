"""A training run before it starts: its options, what they name on disk, and the examples it trains on."""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from datadiet import commands
from datadiet import config as options
from datadiet.config import ResolvedConfig, TrainConfig
from datadiet.data import align
from datadiet.data.dataset import Dataset
from datadiet.data.registry import count_of
from datadiet.errors import UserError
from datadiet.models.registry import code_of
from datadiet.progress import Counting, uncounted
from datadiet.runs.features import features
from datadiet.scores import trajectory
from datadiet.scores.registry import training_score_names
from datadiet.selectors import selection
from datadiet.selectors.options import (
    FEATURE_FIELDS,
    LIKE,
    MANIFEST,
    given_parameters,
    option_names,
    parameters,
    refuse_unused,
)
from datadiet.storage.layout import ExperimentLayout, score_file
from datadiet.storage.manifests import find_manifest, manifest_ids
from datadiet.storage.records import KeptRecord, Summary
from datadiet.storage.runs import StoredRun, open_run
from datadiet.storage.score_files import ScoreRecord, ids_digest, load_scores, read_ids
from datadiet.storage.score_tables import SUFFIXES, read_score_table
from datadiet.tracking.fetch import is_remote, local_file, local_run, refuse_offline
from datadiet.train_config import DERIVED

NAMING_FILES = ("scores", "manifest", LIKE, "features_run")  # options of subsets: files, and a run


@dataclass(frozen=True)
class ScoreChoice:
    """Which mean score a subset is chosen by, where no file is given."""

    exp: str = "full_data"
    type: str = "l2_error"
    step: int | None = None


DEFAULT_CHOICE = ScoreChoice()


def resolve_config(config: TrainConfig, num_examples: int) -> ResolvedConfig:
    """Names checked and derived options filled in, without loading data.

    Args:
        num_examples: N of the full training set.
    Raises:
        UserError: an option is impossible.
    """
    config = replace(config, model_sha256=_code(config))
    if config.selector == MANIFEST:
        config = find_manifest(config, local_file(config.manifest or "", "manifest"))
    elif config.selector != "all":
        selection.check_selector(config.selector)
        if config.size is None:
            raise UserError(f"selector={config.selector} needs a size: {commands.option('size', 'N')}.")
    config = replace(config, trajectory=trajectory.expand(config.trajectory))
    refuse_unused(config)
    selection.check_balance(parameters(config))
    return options.fit_budget(options.resolve(config, num_examples), num_examples)


def _code(config: TrainConfig) -> str | None:
    """sha256 of the code of the model; None for one that comes with this package.

    Raises:
        UserError: there is no such model, or the config tells other code.
    """
    code, asked = code_of(config.model), config.model_sha256
    if asked not in (None, code):
        told = f"its code has {code}" if code else "it comes with this package"
        raise UserError(f"model_sha256={asked}: model={config.model} is another ({told}).")
    return code


def check_online(config: TrainConfig, offline: bool) -> None:
    """Refuse options that name files of MLflow for work that never calls it."""
    refuse_offline(offline, **{name: getattr(config, name) for name in NAMING_FILES})


def default_scores(layout: ExperimentLayout, config: ResolvedConfig, choice: ScoreChoice) -> Path:
    """The mean score file that a choice stands for; the step defaults to that of the scored runs.

    Raises:
        UserError: those runs were trained on another dataset.
    """
    folder = layout.experiment(choice.exp)
    step = choice.step
    if step is None:
        found = first_run(layout, choice.exp)
        scored = found.config if found else config
        if scored.dataset != config.dataset:
            raise UserError(
                f"The runs in {folder} were trained on {scored.dataset}, this one is to train on {config.dataset}: "
                f"pass {commands.option('dataset', scored.dataset)}, or name other scores with "
                f"{commands.option('score_exp', 'EXP')} or {commands.option('scores', 'PATH')}."
            )
        step = options.default_score_step(scored)
    return score_file(folder, choice.type, step)


def first_run(layout: ExperimentLayout, exp: str) -> StoredRun | None:
    """The first run of an experiment; None where there is none."""
    folders = [path.parent for path in layout.experiment(exp).glob("run_*/args.json")]
    numbered = sorted(path for path in folders if re.fullmatch(r"run_\d+", path.name))  # no copies beside them
    return open_run(numbered[0], layout.name(numbered[0])) if numbered else None


def find_scores(layout: ExperimentLayout, config: ResolvedConfig, choice: ScoreChoice) -> ResolvedConfig:
    """The config with the score file it selects by.

    Raises:
        UserError: the file is not there, with the commands that make it.
    """
    if config.selector in ("all", MANIFEST, *selection.without_scores()):
        return replace(config, scores=None)
    path = default_scores(layout, config, choice) if config.scores is None else local_file(config.scores, "scores")
    if path.is_file():
        return config if is_remote(config.scores) else replace(config, scores=str(path))
    if config.scores is not None:
        raise no_scores(path)
    files = layout.experiment(choice.exp).glob("*_scores/ckpt_*.npy")
    others = sorted(str(file) for file in files if file.with_suffix(".json").exists())
    lines = [
        f"No mean score file {path}. Make it, here from runs 0-2 (the paper takes ten):",
        *(f"  {command}" for command in _commands_for(path, layout, config, choice)),
        f"Or name a file: {commands.option('scores', 'PATH')}. Mean scores there are: {', '.join(others) or 'none'}.",
    ]
    raise UserError("\n".join(lines))


def no_scores(path: Path) -> UserError:
    """The error for a file that is not there."""
    expected = f"a score file (.npy), or a table of ids and scores ({', '.join(SUFFIXES)})"
    return UserError(f"scores={path}: no such file; expected {expected}.")


def find_sources(layout: ExperimentLayout, config: ResolvedConfig, choice: ScoreChoice) -> ResolvedConfig:
    """The config with all that its selector looks at: the score file, and the checkpoint of its features."""
    config = find_scores(layout, config, choice)
    if config.like is not None and not local_file(config.like, LIKE).is_file():
        raise UserError(f"like={config.like}: no such file; expected a file of kept examples (kept.csv).")
    return find_features(layout, config, choice.exp, choice.step)


def _commands_for(path: Path, layout: ExperimentLayout, config: TrainConfig, choice: ScoreChoice) -> list[str]:
    """The commands that make a mean score file of runs 0-2, without those whose work is done."""
    step = path.stem.removeprefix("ckpt_")
    scored = {"score_exp": choice.exp, "type": choice.type, "step": step, "root": layout.root}
    made = []
    for run in range(3):
        folder = layout.experiment(choice.exp) / f"run_{run}"
        if not (folder / "args.json").exists():
            made.append(training_command(layout, choice.exp, run, config, **gathering(choice.type)))
        if choice.type not in training_score_names() and not score_file(folder, choice.type, int(step)).exists():
            made.append(commands.command("score", run=run, **scored))
    return [*made, commands.command("mean_score", n_runs=3, **scored)]


def gathering(kind: str) -> dict[str, Any]:
    """The option of a training that gathers a score, where it is no checkpoint's and not gathered anyway."""
    return {"trajectory": kind} if kind in training_score_names() and kind != "forget" else {}


def training_command(
    layout: ExperimentLayout, exp: str, run: int, config: TrainConfig | None = None, **more: Any
) -> str:
    """The command that trains run `run` of an experiment on all data.

    Args:
        config: Resolved options of a run that it is to be like, where none of the experiment tells them.
        more: Other options.
    """
    alike = {}
    if sibling := first_run(layout, exp):
        alike = as_typed(sibling.config, sibling.data.num_examples or count_of(sibling.config))
    elif config is not None:
        alike = as_typed(config, count_of(config))
    return commands.command("full_data", **{"run": run, "exp": exp, **alike, "root": layout.root, **more})


# Of one run among several, or of a subset and what it was chosen by.
ONE_OF_SEVERAL = frozenset(
    {"run", "model_seed", "train_seed", "random_subset_seed", "selector", "size", "scores", "manifest",
     LIKE, *FEATURE_FIELDS}
)  # fmt: skip
_NAMED = ("dataset", "model", "data_dir")  # also where they are the defaults


def as_typed(config: TrainConfig, num_examples: int) -> dict[str, Any]:
    """What has to be typed to train on all N examples with resolved options: those that nothing else gives."""
    named = {name: getattr(config, name) for name in _NAMED}
    own = {
        name: getattr(config, name)
        for name, field in options.FIELDS.items()
        if name not in (*ONE_OF_SEVERAL, *_NAMED, "model_sha256", *option_names())
    }
    if config.budget == "epochs" and config.size is not None:  # its steps are those of a subset
        own = {name: value for name, value in own.items() if not name.endswith(("_steps", "early_step"))}
    typed = {name: value for name, value in own.items() if value != options.FIELDS[name].default}
    for name in [name for name in typed if name in DERIVED]:
        derived = options.resolve(options.given_config({**named, **typed, name: None}), num_examples)
        if getattr(derived, name) == typed[name]:
            del typed[name]
    return named | typed


def _align(path: Path, values: np.ndarray, record: ScoreRecord, dataset: Dataset) -> np.ndarray:
    """Scores in the order of `dataset`, by the names of their examples where it is not the same; an error names the
    file."""
    same = record.fingerprint == dataset.fingerprint or record.ids_sha256 == ids_digest(dataset.example_ids)
    ids = dataset.example_ids if same else read_ids(path, record)
    try:
        return align.align(values, ids, record.fingerprint, dataset, record.dataset)
    except UserError as error:
        raise UserError(f"{path}: {error}") from None


def read_scores(path: Path, dataset: Dataset, say: Callable[[str], None]) -> tuple[np.ndarray, str | None]:
    """Scores [N] in the order of `dataset` (as published) and their type, None where no record tells it.

    Raises:
        UserError: no scores, or those of other data.
    """
    if path.suffix in SUFFIXES:
        return read_score_table(path, dataset), None
    values, record = load_scores(path)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        bare = record is None
        values = align.accept_bare(values, path, dataset) if bare else _align(path, values, record, dataset)
    for warning in caught:
        say(f"Warning: {warning.message}")
    return values, record.type if record else None


def choose(
    config: ResolvedConfig, dataset: Dataset, labels: np.ndarray, say: Callable[[str], None],
    counter: Counting = uncounted,
) -> tuple[np.ndarray, np.ndarray | None, str | None]:  # fmt: skip
    """Ids to train on in kept order [M], the scores they were chosen by, and the type of those.

    Args:
        dataset: As published.
        labels: int32 [N], those trained on.
        counter: Shows how far it is, where it takes long.
    """
    everything = np.arange(dataset.num_examples, dtype=np.int32)
    if config.size is None or selection.chooses_anew(config.selector):
        return everything, None, None
    if config.manifest is not None:
        return manifest_ids(local_file(config.manifest, "manifest"), dataset), None, None
    values, score_type = None, None
    if config.scores is not None:
        values, score_type = read_scores(local_file(config.scores, "scores"), dataset, say)
    chosen_from = everything if values is None else values
    given = {
        "features": features(config, dataset) if config.features_run else None,
        "like": None if config.like is None else manifest_ids(local_file(config.like, LIKE), dataset),
        **parameters(config).as_dict(),
    }
    counted = counter if config.features_run else uncounted  # the others take no time
    with counted(config.size, f"examples kept by {config.selector}") as progress:
        kept = selection.kept_order(
            config.selector, chosen_from, size=config.size, seed=config.random_subset_seed, labels=labels,
            progress=progress, **given,
        )  # fmt: skip
    return kept, values, score_type


def scored_by(config: TrainConfig, score_type: str | None) -> str:
    """How the training examples of a run were chosen, in words for the table."""
    given = given_parameters(config) | ({} if config.like is None else {LIKE: _made_as(local_file(config.like, LIKE))})
    told = " ".join(f"{name} {value}" for name, value in given.items())
    if config.scores is None:
        name = "full data" if config.selector == "all" else config.selector
        return f"{name} ({told})" if told else name
    name, chosen = score_type or Path(config.scores).stem, selection.SELECTORS.get(config.selector)
    manner = " ".join(filter(None, ["" if chosen and chosen.entry_point else config.selector, told]))
    return f"{name} ({manner})" if manner else name


def _made_as(kept: Path) -> str:
    """How a file of kept examples was chosen, in words; its name where nothing beside it tells."""
    if (record := kept.with_suffix(".json")).exists():
        return KeptRecord.read(record).kept_by or kept.name
    return Summary.read(record).scored_by if (record := kept.with_name("summary.json")).exists() else kept.name


def find_features(layout: ExperimentLayout, config: ResolvedConfig, exp: str, step: int | None) -> ResolvedConfig:
    """The config with the checkpoint that its selector takes features from.

    Args:
        exp, step: Experiment whose run 0 it is of, and its step, where the config names none.
    Raises:
        UserError: there is no such run, with the command that trains it.
    """
    if config.selector not in selection.SELECTORS or not selection.SELECTORS[config.selector].features:
        return config
    path = layout.experiment(exp) / "run_0"
    path = path if config.features_run is None else local_run(config.features_run, "features_run")
    if not (path / "args.json").is_file():
        raise UserError(
            f"selector={config.selector} takes features from a checkpoint, but {path} holds no training run. Train it: "
            f"`{training_command(layout, exp, 0, config)}`, or name one with "
            f"{commands.option('features_run', 'PATH')}."
        )
    given = step if config.features_step is None else config.features_step
    step = options.default_score_step(open_run(path).config) if given is None else given
    named = config.features_run if is_remote(config.features_run) else str(path)
    return replace(config, features_run=named, features_step=step)
