"""A training run from options to summary, mirrored and tracked: read it from top to bottom."""

from __future__ import annotations

import json
import shlex
import time
import warnings
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from datadiet import (
    choosing,
    data,
    identity,
    models,
    record,
    resume,
    scores,
    selection,
    store,
    tracking,
    train,
    trajectory,
)
from datadiet import config as options
from datadiet.config import Interrupted, TrainConfig, UserError
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
    resume: bool = False  # a finished run with the same options is taken as it is, an unfinished one continued
    parent: tracking.TrackedRun | None = None
    offline: bool = False  # MLflow is never called; `sync` tells it later
    tags: Mapping[str, str] = field(default_factory=dict)  # more of MLflow's tags, as datadiet.<tag>

    def track(
        self, kind: str, exp: str, name: str, mirror: Path | None, *, params: dict[str, Any], note: str, **tags: str
    ) -> AbstractContextManager[tracking.TrackedRun]:
        """`tracking.open_run` as this place has it."""
        return tracking.open_run(
            kind, exp, name, params=params, note=f"{note}\n\n    {self.command}", parent=self.parent, mirror=mirror,
            offline=self.offline, say=self.progress.say, root=str(self.layout.root.resolve()), **{**self.tags, **tags},
        )  # fmt: skip


@dataclass(frozen=True)
class ScoreChoice:
    """Which mean score a subset is chosen by, where no file is given."""

    exp: str = "full_data"
    type: str = "l2_error"
    step: int | None = None


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
    select_seconds: float  # spent on choosing

    @property
    def member(self) -> np.ndarray:
        """bool [N]: trained on."""
        member = np.zeros(self.dataset.num_examples, bool)
        member[self.kept] = True
        return member


def prepare(config: TrainConfig, exp: str, place: Place) -> Task:
    """Load the data and choose the examples of a run.

    Raises:
        UserError: the data or the scores cannot be had or do not fit.
    """
    published = data.load(config.dataset, config.data_dir)
    dataset = data.fit_images(published, models.input_shape(config.model, published.image_shape))
    if config.augment and len(dataset.image_shape) != 3:
        raise UserError(f"augment=true needs images; {dataset.name} has vectors: -P augment=false.")
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
    arguments = json.dumps({"exp": task.exp, **options.as_dict(task.config), "data": facts}, indent=1) + "\n"
    for name, text in {"args.json": arguments, **task.inputs}.items():
        if not (task.run_dir / name).exists():
            store.write_text(task.run_dir / name, text)


def save_step(task: Task, report: train.Report) -> None:
    """The scores gathered so far, then the checkpoint: it vouches for them.

    A checkpoint at an unplanned step, made because training stops, is alone and goes when the
    next planned one is there.
    """
    run_dir, step = task.run_dir, report.step
    planned = step in options.saved_steps(task.config)
    for name, stats in report.state.trajectory.items() if planned else ():
        entry = trajectory.TRAJECTORIES[name]
        provenance = {"type": name, "step": step, "runs": [task.config.run]}
        values = entry.values(stats, task.member)
        store.save_scores(store.score_file(run_dir, name, step), values, task.dataset.identity(), provenance)
        for folder, mask in entry.masks.items():
            content = store.npy_bytes(mask(stats, task.member))
            store.write_bytes(run_dir / folder / f"ckpt_{step}.npy", content)
    store.save_checkpoint(run_dir, report.state, report.seconds)
    if planned:
        resume.remove_unplanned(run_dir, task.config, step)


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
        Interrupted: SIGTERM or Ctrl-C came; what was done is saved.
    """
    config = find_sources(place.layout, resolve(config), choice)
    run_dir = place.layout.run(exp, config)
    if place.resume and place.overwrite:
        raise UserError("resume=true and overwrite=true exclude each other: continue the run, or replace it.")
    if run_dir.exists():
        with store.lock_run(run_dir):  # a second process is refused before it loads data
            store.check_free(run_dir, place.overwrite or place.resume)
            if place.resume:
                resume.check_worthwhile(run_dir)
    if place.parent is None:
        tracking.check_store(place.offline)
    task = prepare(config, exp, place)
    with store.lock_run(run_dir):
        continues = place.resume and (run_dir / "args.json").exists()
        if not continues:
            store.claim(run_dir, place.overwrite)
        elif (summary := finished(task, place)) is not None:
            return summary
        write_inputs(task)
        return _train(task, place, continues)


def finished(task: Task, place: Place) -> dict[str, Any] | None:
    """Summary of a finished run; None where the run is to be continued.

    Raises:
        UserError: it was made otherwise.
    """
    resume.check_same(task.run_dir, task.config, task.dataset, task.inputs)
    summary = store.open_run(task.run_dir).summary
    if summary is not None:
        tracking.settle(task.run_dir / record.NAME, place.parent, place.offline)
        place.progress.say(f"{task.name}: finished before, taken as it is")
    return summary


def _train(task: Task, place: Place, continues: bool) -> dict[str, Any]:
    """Train in a folder that is locked and has its inputs, from the beginning or from its last good checkpoint."""
    config = task.config
    note = (
        f"{config.model} on {len(task.kept):,} of {task.dataset.num_examples:,} examples of {task.dataset.name} "
        f"({task.kept_by}), {config.num_steps:,} steps."
    )
    with (
        resume.listen() as stopping,
        place.track(
            "train", task.exp, task.name, task.run_dir / record.NAME, params=options.as_dict(config), note=note,
            scored_by=task.kept_by,
        ) as tracked,
    ):  # fmt: skip
        log_inputs(task, tracked)
        last = _fit(task, tracked, place, stopping, continues)
        summary = summarize(task, tracked, last)
        store.write_json(task.run_dir / "summary.json", summary)
    place.progress.say(
        f"{task.name}: test accuracy {summary['test_acc']:.4f} in {summary['total_seconds']:.1f} s -> {task.run_dir}"
    )
    if stopping() and place.parent:
        raise Interrupted(f"Stopped after {task.name}, which is finished. Continue: {place.command}")
    return summary


def log_inputs(task: Task, tracked: tracking.TrackedRun) -> None:
    """What is trained on, to MLflow; saying it again changes nothing."""
    config, dataset = task.config, task.dataset
    tracked.log_params({"data.num_examples": dataset.num_examples, "data.num_kept": len(task.kept)})
    digest = dataset.fingerprint if config.selector == "all" else dataset.subset_digest(task.kept)
    tracked.log_input(dataset.name, digest, "training", num_rows=len(task.kept), kept_by=task.kept_by)
    if config.random_label_fraction:
        changed = int((task.labels != dataset.train_labels).sum())
        tracked.log_metrics({"random_labels/touched": len(task.touched), "random_labels/changed": changed})


def summarize(task: Task, tracked: tracking.TrackedRun, last: dict[str, float]) -> dict[str, Any]:
    """summary.json of a finished run, from its last metrics."""
    classes = range(task.dataset.num_classes)
    kept_per_class = np.bincount(task.labels[task.kept], minlength=len(classes))
    return {
        "path": task.name,
        "dataset": task.dataset.name,
        "model": task.config.model,
        "scored_by": task.kept_by,
        "num_kept": len(task.kept),
        "num_examples": task.dataset.num_examples,
        **{key: last[key] for key in ("train_acc", "test_acc", "train_loss", "test_loss")},
        "test_acc_per_class": [last.get(train.class_metric(c)) for c in classes],  # null: no test example
        "kept_per_class": kept_per_class.tolist(),  # by the labels trained on
        "budget": task.config.budget,
        "select_seconds": task.select_seconds,
        "seconds": last["time/train_seconds"] + last["time/eval_seconds"],
        **{f"{name}_seconds": last[f"time/{name}_seconds"] for name in ("train", "eval")},
        "compile_seconds": last["time/compile_seconds"],
        "total_seconds": last["time/total_seconds"],
        "fingerprint": task.dataset.fingerprint,
        "mlflow_run_id": tracked.id,
    }


def _fit(
    task: Task, tracked: tracking.TrackedRun, place: Place, stopping: Callable[[], bool], continues: bool
) -> dict[str, float]:
    """Train, mirroring each report before logging it; the metrics of the last one.

    Raises:
        Interrupted: `stopping` said yes before the last step; the state is saved.
    """
    config, run_dir = task.config, task.run_dir
    network = models.build_model(config.model, task.dataset.num_classes, task.dataset.image_shape, config.width)
    splits = train.on_device(task.dataset, "train", task.labels), train.on_device(task.dataset, "test")
    start = resume.Start(train.initial_state(network, config, task.dataset.num_examples))
    if continues:
        start = resume.last_good(run_dir, config, start.state, place.progress.say)
        resume.cut_back(run_dir, config, start)
        for line in start.lines:
            tracked.log_metrics({k: v for k, v in line.items() if k != "step"}, line["step"], mirrored=True)
    names = ("train", "eval", "compile", "total")
    earlier = {name: max(start.seconds.get(name, 0.0), tracked.spent(name)) for name in names}
    saved, step = start.step, start.step or 0
    metrics = start.lines[-1] if start.lines else {}
    with place.progress.counter(config.num_steps, task.name) as advance:
        advance(step)
        kept = np.sort(task.kept)
        for report in train.fit(network, *splits, kept, config, start.state, advance, stopping, earlier):
            step = report.step
            if report.metrics:
                metrics = report.metrics | tracked.timings(step)
                store.append_line(run_dir / "metrics.jsonl", {"step": step, **metrics})
            if report.save and step != saved:
                save_step(task, report)
                saved = step
            if report.metrics:
                tracked.log_metrics(metrics, step, mirrored=True)
    if step < config.num_steps:
        again = place.command if place.parent or place.resume else f"{place.command} -P resume=true"
        raise Interrupted(f"Stopped after step {step} of {config.num_steps}, all saved. Continue: {again}")
    return metrics
