"""A study: score, prune, retrain, compare; one parent run with everything below it."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import Any

from datadiet import config as options
from datadiet.config import TrainConfig, option, value_of, with_values
from datadiet.data.registry import count_examples
from datadiet.errors import UserError
from datadiet.report.decision import Decision
from datadiet.report.evidence import Cell, read_study
from datadiet.report.page import write_report
from datadiet.report.results_table import from_mirror, to_csv
from datadiet.report.text import headline, table
from datadiet.runs import resume
from datadiet.runs.context import Place
from datadiet.runs.inputs import resolve_config
from datadiet.runs.task import Task, load_data, prepare_task
from datadiet.selectors.options import option_names
from datadiet.storage.files import write_json, write_text
from datadiet.study import spec
from datadiet.study.engine import Engine, Setting
from datadiet.study.local_engine import Here, Workers, default_workers
from datadiet.study.plan import Plan, check_names, check_plan, steps
from datadiet.study.ray_engine import Cluster, load_ray
from datadiet.study.scheduler import run_jobs
from datadiet.study.spec import FULL, mean_file, scoring_configs
from datadiet.tracking import record
from datadiet.tracking.run import TrackedRun

SEEDS = ("model_seed", "train_seed", "random_subset_seed")


def as_json(plan: Plan, task: Task, given: TrainConfig, place: Place) -> dict[str, Any]:
    """study.json: what is compared, and where its parts lie below exps. It is the same however often it is written.

    plan: every option, those of the trainings as resolved for a run on all data.
    dataset, fingerprint, num_examples, model, budget: what all runs share.
    score_runs: folders of the scored runs. means: type, step and path of every mean score file.
    cells: one for each arm and size: arm (its name), selector, type and step of its scores (null without), options of
    the arm's own, size, fraction and runs, the folders of its runs; those at equal positions share their seeds.
    """
    layout, count = place.layout, task.dataset.num_examples
    exp, scored_at = task.exp.removesuffix(f"/{FULL}"), steps(plan, task.config)
    scored = [layout.name(layout.run(task.exp, chosen)) for chosen in scoring_configs(plan, given)]
    means = [
        {"type": kind, "step": step, "path": layout.name(mean_file(layout, exp, kind, step))}
        for kind in plan.score_types
        for step in scored_at
    ]
    cells = [
        {
            "arm": cell.arm.name, "selector": cell.arm.selector, "type": cell.arm.type, "step": cell.arm.step,
            "options": dict(cell.arm.options), "size": cell.size, "fraction": cell.fraction,
            "runs": [layout.name(layout.run(cell.exp, chosen)) for chosen in cell.configs],
        }
        for cell in spec.cells(plan, given, exp, layout, count)
    ]  # fmt: skip
    unset = ("run", "selector", "size", "scores", *SEEDS)
    told = {k: v for k, v in options.as_dict(task.config).items() if k not in unset}
    told |= {name: value_of(given, name) for name in (*option_names(), "features_step") if name in told}
    told |= dict(given.registered)
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
    check_names(plan)
    resolved = resolve_config(scoring_configs(plan, config)[0])
    given = {name: value_of(config, name) for name in (*option_names(), "features_step")}
    check_plan(plan, with_values(resolved, given), count_examples(config.dataset, config.data_dir))
    if not config.track_forgetting and "forget" in plan.score_types:
        raise UserError("score_types=forget needs the statistics that track_forgetting=false leaves out.")
    config = replace(config, num_steps=resolved.num_steps)
    task = prepare_task(resolved, f"{exp}/{FULL}", place, load_data(resolved))
    for job in spec.jobs(plan, config, exp, place.layout, task.dataset.num_examples):
        run_dir = place.layout.exps / job.name
        if job.kind == "train" and not place.overwrite and (run_dir / "args.json").exists():
            resume.check_same(run_dir, resolve_config(job.arguments["config"]), task.dataset, {})
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
        load_ray()
    elif means.ray_address is not None:
        raise UserError(f"ray_address={means.ray_address} is used with engine=ray only.")


def begin_engine(means: Means, place: Place, count: int) -> Engine:
    """The engine for `count` jobs that are not done yet."""
    if means.engine == "ray":
        return Cluster(Setting.of(place), means.ray_address, means.workers)
    at_once = min(means.workers or default_workers(), max(count, 1))
    return Here(place) if at_once == 1 else Workers(Setting.of(place), at_once)


def run_study(config: TrainConfig, exp: str, place: Place, plan: Plan, means: Means) -> Decision:
    """The whole study; what is finished with the same options is taken as it is, the rest continued.

    Args:
        config: Training options; its run and subset options are set by the study.
        exp: Experiment folder that everything is written below.
        place: Where and how to report.
        plan: What to compare.
        means: How jobs are done.
    Returns:
        What the report is about; its table is printed, and all files are logged to MLflow.
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
        write_json(folder / "study.json", described)
        tracked.log_input(task.dataset.name, task.dataset.fingerprint, "study", num_rows=count)
        inner = replace(place, parent=tracked, resume=not place.overwrite)
        jobs = spec.jobs(plan, config, exp, place.layout, count)
        left = [job for job in jobs if not (place.layout.exps / job.name / "summary.json").exists()]
        run_jobs(jobs, begin_engine(means, inner, len(left)), place.progress, exp, place.command)
        return conclude(exp, plan.margin, tracked, place)


def conclude(exp: str, margin: float, tracked: TrackedRun, place: Place) -> Decision:
    """The report, the table and results.csv of a finished study, in the mirror and in MLflow."""
    exps, folder = place.layout.exps, place.layout.experiment(exp)
    name = place.layout.name(folder)
    found = [r for r in from_mirror(exps) if r.path.startswith(f"{name}/")]
    write_text(folder / "results.csv", to_csv(found))
    for path in (folder / "study.json", folder / "results.csv", *write_report(exps, name, margin)):
        where = path.parent.relative_to(folder).as_posix()
        tracked.log_artifact(path, None if where == "." else where)
    decision = Decision(read_study(exps, name), margin)
    tracked.log_metrics({_metric(line.cell): line.accuracy.mean for line in decision.lines})
    place.progress.say(
        f"\n{table(decision)}\n\n{headline(decision)}\n"
        f"Report: {folder / 'report.html'}\nPictures: {folder / 'figures'}\nEvery training: {folder / 'results.csv'}"
    )
    return decision


def _metric(cell: Cell) -> str:
    """Name of the mean accuracy of a cell: MLflow takes no per cent sign."""
    return f"study/{cell.arm.replace(' ', '_')}/{cell.fraction:.0%}".replace("%", "pct")
