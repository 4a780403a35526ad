"""A training run from options to summary, mirrored and tracked: read it from top to bottom."""

from __future__ import annotations

import shlex
import warnings
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from datadiet import config as options
from datadiet import data, identity, models, scores, selection, store, tracking, train, trajectory
from datadiet.config import TrainConfig, UserError
from datadiet.data import Dataset
from datadiet.store import ExperimentLayout


class Progress(Protocol):
    """Shows that work goes on."""

    def counter(self, total: int, label: str) -> AbstractContextManager[Callable[[int], Any]]:
        """A bar for the length of a `with` block; call what it gives with the units just done."""
        ...

    def say(self, text: str) -> None:
        """One line that stays."""
        ...


@dataclass(frozen=True)
class Place:
    """Where an entry point writes and how it reports, which never changes a result."""

    layout: ExperimentLayout
    progress: Progress
    command: str  # that the user would type to repeat this
    overwrite: bool = False
    reuse: bool = False  # a finished run with the same options is taken as it is, an unfinished one made again
    parent: tracking.TrackedRun | None = None


@dataclass(frozen=True)
class ScoreChoice:
    """Which mean score a subset is chosen by, where no file is given."""

    exp: str = "full_data"
    type: str = "l2_error"
    step: int | None = None


def resolve(config: TrainConfig) -> TrainConfig:
    """Names checked and derived options filled in, without loading data."""
    models.check_model(config.model)
    if config.selector != "all":
        selection.check_selector(config.selector)
        if config.size is None:
            raise UserError(f"selector={config.selector} needs a size: -P size=N.")
    if config.offset and config.selector != "offset":
        raise UserError(f"offset={config.offset} is used by offset_subset only.")
    options.validate(config)
    return options.resolve(config, data.count_examples(config.dataset, config.data_dir))


def default_scores(layout: ExperimentLayout, config: TrainConfig, choice: ScoreChoice) -> Path:
    """The mean score file that a choice stands for; the step defaults to that of the scored runs.

    Raises:
        UserError: those runs were trained on another dataset.
    """
    folder = layout.experiment(choice.exp)
    step = choice.step
    if step is None:
        runs = sorted(folder.glob("run_*/args.json"))
        scored = store.open_run(runs[0].parent).config if runs else config
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
    if config.selector == "all" or config.selector in selection.WITHOUT_SCORES:
        return replace(config, scores=None)
    path = default_scores(layout, config, choice) if config.scores is None else Path(config.scores)
    if path.is_file():
        return replace(config, scores=str(path))
    if config.scores is not None:
        raise UserError(f"scores={path}: no such file; expected a score file (.npy).")
    others = sorted(map(str, layout.experiment(choice.exp).glob("*_scores/ckpt_*.npy")))
    lines = [
        f"No mean score file {path}. Make it, here from runs 0-2 (the paper takes ten):",
        *(f"  {command}" for command in _commands_for(path, layout, config, choice)),
        f"Or name a file: -P scores=PATH. Mean scores there are: {', '.join(others) or 'none'}.",
    ]
    raise UserError("\n".join(lines))


def _commands_for(path: Path, layout: ExperimentLayout, config: TrainConfig, choice: ScoreChoice) -> list[str]:
    """The commands that make a mean score file of runs 0-2, without those whose work is done."""
    step = path.stem.removeprefix("ckpt_")
    root = "" if layout.root == Path(".") else f" -P root={shlex.quote(str(layout.root))}"
    data_dir = f" -P data_dir={shlex.quote(config.data_dir)}" if config.data_dir else ""
    trained = f" -P exp={choice.exp} -P dataset={shlex.quote(config.dataset)} -P model={config.model}{data_dir}{root}"
    scored = f" -P score_exp={choice.exp} -P type={choice.type} -P step={step}{root}"
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
    return values, record["type"] if record else None


def choose(config: TrainConfig, dataset: Dataset, place: Place) -> tuple[np.ndarray, np.ndarray | None, str | None]:
    """Ids to train on in kept order [M], the scores they were chosen by, and the type of those."""
    everything = np.arange(dataset.num_examples, dtype=np.int32)
    if config.size is None:
        return everything, None, None
    values, score_type = None, None
    if config.scores is not None:
        values, score_type = read_scores(Path(config.scores), dataset, place.progress.say)
    chosen_from = everything if values is None else values
    seed = config.random_subset_seed
    kept = selection.kept_order(config.selector, chosen_from, size=config.size, offset=config.offset, seed=seed)
    return kept, values, score_type


def reusable(run_dir: Path, config: TrainConfig, dataset: Dataset) -> dict[str, Any] | None:
    """Summary of a finished run made with the same options from the same data; None where there is none.

    Raises:
        UserError: a finished run that was made otherwise, with the differing options.
    """
    if not (run_dir / "summary.json").exists():
        return None
    run = store.open_run(run_dir)
    differing = options.differences(options.as_dict(run.config), options.as_dict(config))
    if run.arguments["data"]["fingerprint"] != dataset.fingerprint:
        differing["data"] = (run.arguments["data"]["fingerprint"][:12], dataset.fingerprint[:12])
    if not differing:
        return run.summary
    told = "; ".join(f"{name}: {there} there, {here} asked for" for name, (there, here) in differing.items())
    raise UserError(f"{run_dir} holds a run made otherwise ({told}). Choose another -P exp, or -P overwrite=true.")


def scored_by(config: TrainConfig, score_type: str | None) -> str:
    """How the training examples of a run were chosen, in words for the table."""
    if config.scores is None:
        return "full data" if config.selector == "all" else config.selector
    name = score_type or Path(config.scores).stem
    manner = {"keep_max": "", "offset": f" (offset {config.offset})"}
    return name + manner.get(config.selector, f" ({config.selector})")


def write_inputs(run_dir: Path, config: TrainConfig, exp: str, dataset: Dataset, kept, values, labels, touched) -> None:
    """args.json, kept.csv for a subset, random_labels.csv where labels were randomised."""
    facts = {
        "fingerprint": dataset.fingerprint,
        "num_examples": dataset.num_examples,
        "num_classes": dataset.num_classes,
        "image_shape": list(dataset.image_shape),
        "mean": dataset.mean.tolist(),
        "std": dataset.std.tolist(),
    }
    store.write_json(run_dir / "args.json", {"exp": exp, **options.as_dict(config), "data": facts})
    if config.selector != "all":
        shown = [""] * dataset.num_examples if values is None else values.tolist()
        rows = ((dataset.example_ids[i], order, shown[i]) for order, i in enumerate(kept))
        store.write_csv(run_dir / "kept.csv", "example_id,kept_order,score", rows)
    if config.random_label_fraction:
        rows = ((dataset.example_ids[i], i, dataset.train_labels[i], labels[i]) for i in touched)
        store.write_csv(run_dir / "random_labels.csv", "example_id,id,label,random_label", rows)


def save_step(run_dir: Path, report: train.Report, dataset: Dataset, member: np.ndarray, run: int) -> None:
    """The checkpoint of a step, and the forgetting scores so far."""
    store.save_checkpoint(run_dir, report.state)
    if report.state.forgetting:
        provenance = {"type": "forget", "step": report.step, "runs": [run]}
        values = trajectory.forgetting_values(report.state.forgetting, member)
        store.save_scores(store.score_file(run_dir, "forget", report.step), values, dataset.identity(), provenance)
        mask = trajectory.never_learned(report.state.forgetting, member)
        store.write_bytes(run_dir / "never_learned" / f"ckpt_{report.step}.npy", store.npy_bytes(mask))


def train_run(config: TrainConfig, exp: str, place: Place, choice: ScoreChoice = ScoreChoice()) -> dict[str, Any]:
    """One training run: choose examples, train, mirror and log every report.

    Args:
        config: Options as given.
        exp: Experiment folder.
        place: Where and how to report.
        choice: The score to select by where config.scores is None.
    Returns:
        The summary, as in summary.json.
    Raises:
        UserError: anything the caller can repair; before data is loaded where that can be known.
    """
    layout = place.layout
    config = find_scores(layout, resolve(config), choice)
    run_dir = layout.run(exp, config)
    overwrite = place.overwrite or (place.reuse and not (run_dir / "summary.json").exists())
    if not place.reuse:
        store.check_free(run_dir, overwrite)
    published = data.load(config.dataset, config.data_dir)
    dataset = data.fit_images(published, models.input_shape(config.model, published.image_shape))
    if config.augment and len(dataset.image_shape) != 3:
        raise UserError(f"augment=true needs images; {dataset.name} has vectors: -P augment=false.")
    labels, touched = data.randomize_labels(
        dataset.train_labels, config.random_label_fraction, config.random_label_seed
    )
    kept, values, score_type = choose(config, published, place)
    kept_by = scored_by(config, score_type)
    if place.reuse and not place.overwrite and (summary := reusable(run_dir, config, dataset)):
        place.progress.say(f"{layout.name(run_dir)}: finished before, taken as it is")
        return summary
    store.claim(run_dir, overwrite)
    write_inputs(run_dir, config, exp, dataset, kept, values, labels, touched)

    name = layout.name(run_dir)
    note = (
        f"{config.model} on {len(kept):,} of {dataset.num_examples:,} examples of {dataset.name} "
        f"({kept_by}), {config.num_steps:,} steps.\n\n    {place.command}"
    )
    tags = {"root": str(layout.root.resolve()), "scored_by": kept_by}
    with tracking.open_run(
        "train", exp, name, params=options.as_dict(config), note=note, parent=place.parent, **tags
    ) as tracked:
        tracked.log_params({"data.num_examples": dataset.num_examples, "data.num_kept": len(kept)})
        digest = dataset.fingerprint if config.selector == "all" else dataset.subset_digest(kept)
        tracked.log_input(dataset.name, digest, "training", num_rows=len(kept), kept_by=kept_by)
        if config.random_label_fraction:
            changed = int((labels != dataset.train_labels).sum())
            tracked.log_metrics({"random_labels/touched": len(touched), "random_labels/changed": changed})
        last = _fit(config, dataset, labels, np.sort(kept), run_dir, tracked, place, name)
        summary = {
            "path": name,
            "dataset": dataset.name,
            "model": config.model,
            "scored_by": kept_by,
            "num_kept": len(kept),
            "num_examples": dataset.num_examples,
            **{key: last[key] for key in ("train_acc", "test_acc", "train_loss", "test_loss")},
            "seconds": last["time/train_seconds"] + last["time/eval_seconds"],
            "compile_seconds": last["time/compile_seconds"],
            "total_seconds": last["time/total_seconds"],
            "fingerprint": dataset.fingerprint,
            "mlflow_run_id": tracked.id,
        }
        store.write_json(run_dir / "summary.json", summary)
    place.progress.say(
        f"{name}: test accuracy {summary['test_acc']:.4f} in {summary['total_seconds']:.1f} s -> {run_dir}"
    )
    return summary


def _fit(config, dataset, labels, kept, run_dir, tracked, place, name) -> dict[str, float]:
    """Train, mirroring each report before logging it; the metrics of the last one."""
    network = models.build_model(config.model, dataset.num_classes, dataset.image_shape, config.width)
    train_data, test_data = train.on_device(dataset, "train", labels), train.on_device(dataset, "test")
    state = train.initial_state(network, config, dataset.num_examples)
    member = np.zeros(dataset.num_examples, bool)
    member[kept] = True
    metrics: dict[str, float] = {}
    with place.progress.counter(config.num_steps, name) as advance:
        for report in train.fit(network, train_data, test_data, kept, config, state, advance):
            if report.save:
                save_step(run_dir, report, dataset, member, config.run)
            if report.metrics:
                metrics = report.metrics
                store.append_line(run_dir / "metrics.jsonl", {"step": report.step, **metrics})
                tracked.log_metrics(metrics, report.step)
    return metrics
