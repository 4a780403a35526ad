"""A training run from options to summary, mirrored and tracked: read it from top to bottom."""

from __future__ import annotations

import json
import shlex
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
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
from datadiet.background import Background
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
    return train_runs(config, [config.run], exp, place, choice)[0]


def train_runs(
    config: TrainConfig, runs: Sequence[int], exp: str, place: Place, choice: ScoreChoice = ScoreChoice()
) -> list[dict[str, Any]]:
    """Several training runs that differ in `run` and the seeds that derive from it, each with a folder and an MLflow
    run of its own; at the same time where that is faster.

    Args:
        runs: Their indices.
    Returns:
        Their summaries. The rest is as for `train_run`; a run that diverges is told at the end, and stops no other.
    """
    if len(set(runs)) < len(runs):
        raise UserError(f"runs={','.join(map(str, runs))}: expected each run once.")
    if place.resume and place.overwrite:
        raise UserError("resume=true and overwrite=true exclude each other: continue the run, or replace it.")
    configs = [find_sources(place.layout, resolve(replace(config, run=run)), choice) for run in runs]
    for run_dir in (place.layout.run(exp, one) for one in configs):
        if run_dir.exists():
            with store.lock_run(run_dir):  # a second process is refused before it loads data
                store.check_free(run_dir, place.overwrite or place.resume)
                if place.resume:
                    resume.check_worthwhile(run_dir)
    if place.parent is None:
        tracking.check_store(place.offline)
    loaded = load(configs[0])
    tasks = [prepare(one, exp, place, loaded) for one in configs]
    with ExitStack() as locks:
        for task in tasks:
            locks.enter_context(store.lock_run(task.run_dir))
        tasks = [replace(t, continues=place.resume and (t.run_dir / "args.json").exists()) for t in tasks]
        summaries = {task.name: _begin(task, place) for task in tasks}
        summaries |= _train_all([task for task in tasks if summaries[task.name] is None], place)
    return [summaries[task.name] for task in tasks]


def _begin(task: Task, place: Place) -> dict[str, Any] | None:
    """Make the folder of a run with its inputs; where it is there and finished, its summary."""
    if not task.continues:
        store.claim(task.run_dir, place.overwrite)
    elif (summary := finished(task, place)) is not None:
        return summary
    write_inputs(task)
    return None


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


def _train_all(tasks: Sequence[Task], place: Place) -> dict[str, dict[str, Any]]:
    """Train in folders that are locked and have their inputs; the summaries by name.

    Raises:
        UserError: runs diverged; all others are finished.
    """
    if not tasks:
        return {}
    config, dataset = tasks[0].config, tasks[0].dataset
    network = models.build_model(
        config.model, dataset.num_classes, dataset.image_shape, config.width, config.compute_dtype
    )
    splits = train.on_device(dataset, "train", tasks[0].labels), train.on_device(dataset, "test")
    ended: dict[str, dict[str, Any] | UserError] = {}
    with resume.listen() as stopping:
        for group in _groups(tasks, network, place):
            ended |= _train(group, network, splits, place, stopping)
            if stopping() and (place.parent or len(ended) < len(tasks)):
                raise Interrupted(f"Stopped after {group[-1][0].name}. Continue: {_again(place)}")
    if len(tasks) == 1 and isinstance(error := ended[tasks[0].name], UserError):
        raise error
    if errors := [f"{name}: {error}" for name, error in ended.items() if isinstance(error, UserError)]:
        raise UserError("\n".join(errors))
    return {name: summary for name, summary in ended.items() if not isinstance(summary, UserError)}


def _groups(tasks: Sequence[Task], network: models.Network, place: Place) -> Iterator[list[tuple[Task, resume.Start]]]:
    """Runs that train at the same time: those that begin at the same step, where that is faster; else each alone."""
    if not train.gains_together(tasks[0].config.model):
        yield from ([(task, _start(task, network, place))] for task in tasks)
        return
    starts = [_start(task, network, place) for task in tasks]
    for step in dict.fromkeys(start.step or 0 for start in starts):
        yield [(task, start) for task, start in zip(tasks, starts) if (start.step or 0) == step]


def _start(task: Task, network: models.Network, place: Place) -> resume.Start:
    """Where a run begins: untrained, or, where its folder holds a part of it, at the last good checkpoint."""
    fresh = train.initial_state(network, task.config, task.dataset.num_examples)
    if not task.continues:
        return resume.Start(fresh)
    start = resume.last_good(task.run_dir, task.config, fresh, place.progress.say)
    resume.cut_back(task.run_dir, task.config, start)
    return start


def _again(place: Place) -> str:
    """The command that goes on."""
    return place.command if place.parent or place.resume else f"{place.command} -P resume=true"


@contextmanager
def _open(task: Task, place: Place) -> Iterator[tracking.TrackedRun]:
    """The MLflow run of a training run, the one it had where it is continued."""
    config = task.config
    note = (
        f"{config.model} on {len(task.kept):,} of {task.dataset.num_examples:,} examples of {task.dataset.name} "
        f"({task.kept_by}), {config.num_steps:,} steps."
    )
    with place.track(
        "train", task.exp, task.name, task.run_dir / record.NAME, params=options.as_dict(config), note=note,
        scored_by=task.kept_by,
    ) as tracked:  # fmt: skip
        log_inputs(task, tracked)
        yield tracked


class Lane:
    """A run while it trains: mirrors each report before logging it."""

    def __init__(self, task: Task, start: resume.Start, tracked: tracking.TrackedRun) -> None:
        self.task, self.start, self.tracked = task, start, tracked
        self.saved = start.step
        self.metrics = start.lines[-1] if start.lines else {}  # of the last report
        for line in start.lines:
            tracked.log_metrics({k: v for k, v in line.items() if k != "step"}, line["step"], mirrored=True)

    def entrant(self) -> train.Entrant:
        """As training takes it."""
        names = ("train", "eval", "compile", "total")
        earlier = {name: max(self.start.seconds.get(name, 0.0), self.tracked.spent(name)) for name in names}
        return train.Entrant(self.task.config, np.sort(self.task.kept), self.start.state, earlier)

    def record(self, report: train.Report) -> None:
        if report.metrics:
            self.metrics = report.metrics | self.tracked.timings(report.step)
            store.append_line(self.task.run_dir / "metrics.jsonl", {"step": report.step, **self.metrics})
        if report.save and report.step != self.saved:
            save_step(self.task, report)
            self.saved = report.step
        if report.metrics:
            self.tracked.log_metrics(self.metrics, report.step, mirrored=True)

    def finish(self, place: Place) -> dict[str, Any]:
        """Write the summary."""
        task, summary = self.task, summarize(self.task, self.tracked, self.metrics)
        store.write_json(task.run_dir / "summary.json", store.sealed(summary))
        told = f"test accuracy {summary['test_acc']:.4f} in {summary['total_seconds']:.1f} s -> {task.run_dir}"
        place.progress.say(f"{task.name}: {told}")
        return summary


def _train(
    group: Sequence[tuple[Task, resume.Start]], network: models.Network, splits: tuple[train.DeviceData, ...],
    place: Place, stopping: Callable[[], bool],
) -> dict[str, dict[str, Any] | UserError]:  # fmt: skip
    """Train runs at the same time; by name the summary of each, or why it could not go on.

    Raises:
        Interrupted: `stopping` said yes before the last step; the states are saved.
    """
    config, step = group[0][0].config, group[0][1].step or 0
    ended: dict[str, dict[str, Any] | UserError] = {}
    with ExitStack() as all_runs:
        stacks = [all_runs.enter_context(ExitStack()) for _ in group]
        lanes = [Lane(*pair, own.enter_context(_open(pair[0], place))) for pair, own in zip(group, stacks)]
        names = [lane.task.name for lane in lanes]
        with place.progress.counter(config.num_steps, " … ".join(dict.fromkeys((names[0], names[-1])))) as advance:
            advance(step)
            entrants = [lane.entrant() for lane in lanes]
            with Background(len(lanes)) as records:  # written and logged while the next steps are trained
                for run, report in train.fit_runs(network, *splits, entrants, advance, stopping):
                    step = report.step
                    if report.error:
                        records.wait()
                        ended[names[run]] = report.error
                        stacks[run].__exit__(type(report.error), report.error, None)  # FAILED; the others go on
                    else:
                        records.submit(lanes[run].record, report.kept() if report.save else report)
        if step < config.num_steps and len(ended) < len(lanes):
            raise Interrupted(f"Stopped after step {step} of {config.num_steps}, all saved. Continue: {_again(place)}")
        for name, lane in zip(names, lanes):
            if name not in ended:
                ended[name] = lane.finish(place)
    return ended


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
