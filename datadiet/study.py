"""A study: score, prune, retrain, compare; one parent run with everything below it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from datadiet import (
    choosing,
    cluster,
    data,
    engine,
    graph,
    pipeline,
    record,
    report,
    results,
    resume,
    store,
    tracking,
    workers,
)
from datadiet import config as options
from datadiet.config import TrainConfig, UserError, option
from datadiet.coresets import Parameters
from datadiet.graph import Plan
from datadiet.pipeline import Place, Task

BASELINES = ("full data", "random")
SEEDS = ("model_seed", "train_seed", "random_subset_seed")


class Cell(NamedTuple):
    """Test accuracies [R] of one way to choose so many examples; equal positions share seeds."""

    scored_by: str
    size: int
    accuracies: np.ndarray


class Line(NamedTuple):
    """One line of the study's table; accuracies 0 to 1."""

    scored_by: str
    size: int
    fraction: float
    mean: float
    std: float  # over runs, n - 1 in the denominator
    n: int
    minus_random: float  # mean of paired differences; NaN without a peer
    minus_full: float


def paired_difference(cell: Cell, peer: Cell | None) -> float:
    """Mean of the differences between runs that share their seeds; NaN without a peer."""
    return float(np.mean(cell.accuracies - peer.accuracies)) if peer else float("nan")


def table(cells: Sequence[Cell]) -> list[Line]:
    """Mean, spread and paired differences of every cell."""
    by_key = {(cell.scored_by, cell.size): cell for cell in cells}
    full = next(cell for cell in cells if cell.scored_by == "full data")
    lines = []
    for cell in cells:
        count = len(cell.accuracies)
        std = float(np.std(cell.accuracies, ddof=1)) if count > 1 else float("nan")
        random = by_key.get(("random", cell.size)) if cell.scored_by not in BASELINES else None
        lines.append(Line(
            cell.scored_by, cell.size, cell.size / full.size, float(np.mean(cell.accuracies)), std, count,
            paired_difference(cell, random), paired_difference(cell, full if cell is not full else None),
        ))  # fmt: skip
    return lines


def as_text(lines: Sequence[Line]) -> str:
    """The table for a terminal, accuracies in per cent."""
    wide = max(12, 2 + max(len(line.scored_by) for line in lines))
    head = f"{'scored by':<{wide}}{'examples':>9}{'kept':>7}{'test acc %':>16}{'n':>4}{'- random':>10}{'- full':>9}"
    rows = [
        f"{r.scored_by:<{wide}}{r.size:>9,}{r.fraction:>7.0%}{100 * r.mean:>9.2f} ± {100 * r.std:4.2f}{r.n:>4}"
        f"{_signed(r.minus_random):>10}{_signed(r.minus_full):>9}"
        for r in lines
    ]
    return "\n".join([head, *rows])


def _signed(value: float) -> str:
    return "" if np.isnan(value) else f"{100 * value:+.2f}"


def plot_accuracy(lines: Sequence[Line], path: Path) -> None:
    """Accuracy against the fraction kept: mean and one standard deviation over runs."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4.5), layout="constrained")
    axes = figure.subplots()
    full = next(line for line in lines if line.scored_by == "full data")
    axes.axhline(100 * full.mean, color="black", linestyle="--", label="full data")
    axes.axhspan(100 * (full.mean - full.std), 100 * (full.mean + full.std), color="black", alpha=0.1)
    others = list(dict.fromkeys(line.scored_by for line in lines if line is not full))
    for name, marker in zip(others, "osD^vP*X" * len(others)):
        own = sorted((r for r in lines if r.scored_by == name), key=lambda r: r.fraction)
        x, y, spread = ([100 * getattr(r, f) for r in own] for f in ("fraction", "mean", "std"))
        axes.errorbar(x, y, spread, marker=marker, capsize=3, label=name)
    axes.set(xlabel="training examples kept (%)", ylabel="test accuracy (%)", title=f"mean ± std, n = {full.n}")
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(path, dpi=120)


def plot_histograms(means: dict[str, Path], path: Path) -> None:
    """Histogram of each mean score, counts on a logarithmic axis."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4 * len(means), 3.2), layout="constrained")
    for axes, (kind, file) in zip(np.atleast_1d(figure.subplots(1, len(means))), means.items()):
        values, record = store.load_scores(file)
        axes.hist(values[~np.isnan(values)], bins=40, log=True)
        runs = len(record["runs"]) if record else "?"
        axes.set(xlabel=f"{kind}, mean of {runs} runs", ylabel="examples")
    figure.savefig(path, dpi=120)


def as_json(plan: Plan, task: Task, given: TrainConfig, place: Place) -> dict[str, Any]:
    """study.json: what is compared, and where its parts lie below exps. It is the same however often it is written.

    plan: every option, those of the trainings as resolved for a run on all data.
    dataset, fingerprint, num_examples, model, budget: what all runs share.
    score_runs: folders of the scored runs. means: type, step and path of every mean score file.
    cells: one for each arm and size: arm (its name), selector, type and step of its scores (null without), options of
    the arm's own, size, fraction and runs, the folders of its runs; those at equal positions share their seeds.
    """
    layout, count = place.layout, task.dataset.num_examples
    exp, scored_at = task.exp.removesuffix(f"/{graph.FULL}"), graph.steps(plan, task.config)
    scored = [layout.name(layout.run(task.exp, chosen)) for chosen in graph.scoring_configs(plan, given)]
    means = [
        {"type": kind, "step": step, "path": layout.name(graph.mean_file(layout, exp, kind, step))}
        for kind in plan.score_types
        for step in scored_at
    ]
    cells = [
        {
            "arm": cell.arm.name, "selector": cell.arm.selector, "type": cell.arm.type, "step": cell.arm.step,
            "options": dict(cell.arm.options), "size": cell.size, "fraction": cell.fraction,
            "runs": [layout.name(layout.run(cell.exp, chosen)) for chosen in cell.configs],
        }
        for cell in graph.cells(plan, given, exp, layout, count)
    ]  # fmt: skip
    unset = ("run", "selector", "size", "scores", *SEEDS)
    told = {k: v for k, v in options.as_dict(task.config).items() if k not in unset}
    told |= choosing.parameters(given)._asdict() | {"features_step": given.features_step}
    told |= {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(plan).items()}
    return {
        "plan": told | {"score_steps": list(scored_at)},
        "dataset": task.dataset.name,
        "fingerprint": task.dataset.fingerprint,
        "num_examples": count,
        "model": task.config.model,
        "budget": task.config.budget,
        "score_runs": scored,
        "means": means,
        "cells": cells,
    }


def check(plan: Plan, config: TrainConfig, exp: str, place: Place) -> tuple[TrainConfig, Task]:
    """Refuse, before anything is trained, what could not be finished.

    Returns:
        The config with num_steps, and the first scoring run as it will be prepared.
    Raises:
        UserError: an option is impossible, the data cannot be had, or runs of other options are in the way.
    """
    if given := [name for name in SEEDS if getattr(config, name) is not None]:
        raise UserError(
            f"{given[0]}={getattr(config, given[0])}: the runs of a study have seeds of their own; expected none given."
        )
    options.validate(config)
    graph.check_names(plan)
    resolved = pipeline.resolve(graph.scoring_configs(plan, config)[0])
    given = {name: getattr(config, name) for name in (*Parameters._fields, "features_step")}
    graph.check(plan, replace(resolved, **given), data.count_examples(config.dataset, config.data_dir))
    if not config.track_forgetting and "forget" in plan.score_types:
        raise UserError("score_types=forget needs the statistics that track_forgetting=false leaves out.")
    config = replace(config, num_steps=resolved.num_steps)
    task = pipeline.prepare(resolved, f"{exp}/{graph.FULL}", place, pipeline.load(resolved))
    for job in graph.jobs(plan, config, exp, place.layout, task.dataset.num_examples):
        run_dir = place.layout.exps / job.name
        if job.kind == "train" and not place.overwrite and (run_dir / "args.json").exists():
            resume.check_same(run_dir, pipeline.resolve(job.arguments["config"]), task.dataset, {})
    return config, task


@dataclass(frozen=True)
class Means:
    """How the jobs of a study are done, which never changes a result."""

    engine: str = option(
        "local", "Where jobs are done: 'local', on this machine; or 'ray' (pip install 'datadiet[ray]')."
    )
    workers: int = option(
        None, "Jobs at once; 1: in this process, no others.", auto="one per GPU, else one per processor"
    )
    ray_address: str | None = option(
        None, "Address of a Ray cluster, as in ray.init.", auto="one is begun on this machine"
    )


ENGINES = ("local", "ray")


def check_means(means: Means) -> None:
    """Refuse what cannot be had.

    Raises:
        UserError: names the option, its value and what was expected.
    """
    if means.engine not in ENGINES:
        raise UserError(f"engine={means.engine}: expected one of {', '.join(ENGINES)}.")
    if means.workers is not None and means.workers < 1:
        raise UserError(f"workers={means.workers}: expected at least 1 job at once.")
    if means.engine == "ray":
        cluster.load_ray()
    elif means.ray_address is not None:
        raise UserError(f"ray_address={means.ray_address} is used with engine=ray only.")


def begin_engine(means: Means, place: Place, count: int) -> engine.Engine:
    """The engine for `count` jobs that are not done yet."""
    if means.engine == "ray":
        return cluster.Cluster(engine.Setting.of(place), means.ray_address, means.workers)
    at_once = min(means.workers or workers.default_workers(), max(count, 1))
    return engine.Here(place) if at_once == 1 else workers.Workers(engine.Setting.of(place), at_once)


def run_study(config: TrainConfig, exp: str, place: Place, plan: Plan, means: Means) -> list[Line]:
    """The whole study; what is finished with the same options is taken as it is, the rest continued.

    Args:
        config: Training options; its run and subset options are set by the study.
        exp: Experiment folder that everything is written below.
        place: Where and how to report.
        plan: What to compare.
        means: How jobs are done.
    Returns:
        The table, also printed, written as table.csv and logged with the plots to MLflow.
    """
    check_means(means)
    folder = place.layout.experiment(exp)
    config, task = check(plan, config, exp, place)
    count = task.dataset.num_examples
    described = as_json(plan, task, config, place)
    if not place.overwrite:
        record.reopen(folder / record.NAME)
    note = f"Study of {config.model} on {config.dataset}."
    with place.track("study", exp, exp, folder / record.NAME, params=described["plan"], note=note) as tracked:
        store.write_json(folder / "study.json", described)
        tracked.log_input(task.dataset.name, task.dataset.fingerprint, "study", num_rows=count)
        inner = replace(place, parent=tracked, resume=not place.overwrite)
        jobs = graph.jobs(plan, config, exp, place.layout, count)
        left = [job for job in jobs if not (place.layout.exps / job.name / "summary.json").exists()]
        engine.run_jobs(jobs, begin_engine(means, inner, len(left)), place.progress, exp, place.command)
        return conclude(described, folder, tracked, place)


def conclude(study: dict[str, Any], folder: Path, tracked: tracking.TrackedRun, place: Place) -> list[Line]:
    """The table, the report and the pictures of a finished study, in the mirror and in MLflow."""
    exps = place.layout.exps

    def accuracies(cell: dict[str, Any]) -> np.ndarray:
        return np.array([store.read_json(exps / run / "summary.json")["test_acc"] for run in cell["runs"]])

    lines = table([Cell(cell["arm"], cell["size"], accuracies(cell)) for cell in study["cells"]])
    store.write_csv(folder / "table.csv", ",".join(Line._fields), lines)
    plot_accuracy(lines, folder / "accuracy.png")
    plot_histograms({f"{m['type']} at {m['step']}": exps / m["path"] for m in study["means"]}, folder / "scores.png")
    name = place.layout.name(folder)
    found = [r for r in results.from_mirror(exps) if r.path.startswith(f"{name}/")]
    store.write_text(folder / "results.csv", results.to_csv(found))
    for file in ("study.json", "table.csv", "accuracy.png", "scores.png", "results.csv"):
        tracked.log_artifact(folder / file)
    for path in report.write_report(exps, name):
        where = path.parent.relative_to(folder).as_posix()
        tracked.log_artifact(path, None if where == "." else where)
    told = {f"study/{r.scored_by.replace(' ', '_')}/{r.fraction:.0%}".replace("%", "pct"): r.mean for r in lines}
    tracked.log_metrics(told)
    place.progress.say(
        f"\n{as_text(lines)}\n\nReport: {folder / 'report.html'}\nTable, plots and results.csv: {folder}"
    )
    return lines
