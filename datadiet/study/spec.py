"""What a study compares, and the jobs that make it: pure functions of its options.

Scoring runs train on all examples, each is scored, the scores are averaged over runs, and every arm (a way
to choose examples) trains on its subsets with seeds that no scoring run has.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from datadiet import config as options
from datadiet.config import TrainConfig, find_option, with_values
from datadiet.scores import trajectory
from datadiet.scores.checkpoint import training_score_names
from datadiet.selectors import selection
from datadiet.selectors.options import default_parameters, without_unused
from datadiet.storage.layout import ExperimentLayout, score_file
from datadiet.study.plan import Plan, named, sizes, steps

FULL = "full_data"  # folder of the runs on all examples, below the study's own

PASSES = {"train": 3.0, "grad_norm": 3.0, "score": 1.0}  # work per example, in forward passes, for the time left


@dataclass(frozen=True)
class Arm:
    """One way to choose examples; by the mean score of a type and step, or without scores."""

    name: str
    selector: str
    type: str | None
    step: int | None
    folder: str  # below the study's
    options: tuple[tuple[str, Any], ...] = ()  # of the selector, beside those given to all of them


@dataclass(frozen=True)
class Job:
    """A run to make, with MLflow and the mirror, and what it waits for."""

    name: str  # of what it makes, as a path below exps
    kind: str  # train, score or mean_score
    arguments: dict[str, Any]
    after: tuple[str, ...] = ()  # names of jobs whose files it reads
    cost: float = 0.0  # in examples passed forward through the network
    tags: dict[str, str] = field(default_factory=dict)  # for MLflow


@dataclass(frozen=True)
class Cell:
    """One arm at one size; its runs in the order of their seeds."""

    arm: Arm
    size: int
    fraction: float
    configs: tuple[TrainConfig, ...]
    exp: str


def arms(plan: Plan, scored_at: tuple[int, ...]) -> list[Arm]:
    """All data, a random choice, and every selector with every score it needs."""
    made = [Arm("full data", "all", None, None, FULL), Arm("random", "random", None, None, "random")]
    for selector, own in map(named, plan.selectors):
        told = "".join(f" {name} {value}" for name, value in own.items())
        if selector in selection.without_scores():
            if selector != "random" or own:
                made.append(Arm(f"{selector}{told}", selector, None, None, selector, tuple(own.items())))
            continue
        for kind in plan.score_types:
            for step in scored_at:
                name = f"{selector} {kind}{told}" + (f" step {step}" if len(scored_at) > 1 else "")
                made.append(Arm(name, selector, kind, step, f"{selector}.{kind}.{step}", tuple(own.items())))
    return made


def scoring_configs(plan: Plan, config: TrainConfig) -> list[TrainConfig]:
    """Options of the runs that are scored; they gather what the scores need."""
    gathered = [kind for kind in plan.score_types if kind in training_score_names()]
    gathered = trajectory.expand([*config.trajectory, *gathered])
    chosen = replace(config, selector="all", size=None, scores=None, features_step=None, trajectory=gathered)
    config = without_unused(chosen)
    return [replace(config, run=run) for run in range(plan.score_runs)]


def mean_file(layout: ExperimentLayout, exp: str, kind: str, step: int) -> Path:
    """The mean score file of a study."""
    return score_file(layout.experiment(f"{exp}/{FULL}"), kind, step)


def cells(plan: Plan, config: TrainConfig, exp: str, layout: ExperimentLayout, num_examples: int) -> list[Cell]:
    """Every arm at every size, full data first, then from the largest fraction given first to the last.

    Args:
        config: As given; `num_steps` not None.
        num_examples: N.
    """
    runs = range(plan.score_runs, plan.score_runs + plan.eval_runs)
    scored_at = steps(plan, options.resolve(config, num_examples))
    full, *others = arms(plan, scored_at)
    # Networks that judge are looked at at their end alone, and gather no more than was asked for.
    used = {name for kind in trajectory.expand(config.trajectory) for name in trajectory.TRAJECTORIES[kind].options}
    defaults = {name: find_option(name).default for name in trajectory.option_names() if name not in used}
    config = with_values(config, {"save_steps": config.num_steps, "early_step": 0, **defaults})

    def cell(arm: Arm, size: int) -> Cell:
        looked_at = (config.features_step, arm.step, scored_at[-1])
        needs = arm.selector in selection.SELECTORS and selection.SELECTORS[arm.selector].features
        own = dict(arm.options) if arm.name != "random" else default_parameters()
        scores = None if arm.type is None or arm.step is None else str(mean_file(layout, exp, arm.type, arm.step))
        chosen = replace(
            with_values(config, own),
            selector=arm.selector,
            size=None if arm is full else size,
            scores=scores,
            features_run=str(layout.experiment(f"{exp}/{FULL}") / "run_0") if needs else None,
            features_step=next(step for step in looked_at if step is not None) if needs else None,
        )
        chosen = without_unused(chosen)
        configs = tuple(replace(chosen, run=run) for run in runs)
        return Cell(arm, size, size / num_examples, configs, f"{exp}/{arm.folder}")

    found = [cell(full, num_examples)]
    return found + [cell(arm, size) for size in sizes(plan, num_examples) for arm in (*others[1:], others[0])]


def _train_job(config: TrainConfig, exp: str, layout: ExperimentLayout, after: tuple[str, ...], size: int,
               num_examples: int, **tags: str) -> Job:  # fmt: skip
    assert config.num_steps is not None, "a study resolves it first"
    told = {"size": str(size), "fraction": f"{size / num_examples:.4g}", **tags}
    cost = PASSES["train"] * config.num_steps * min(config.train_batch_size, size)
    if config.budget == "epochs":
        cost *= size / num_examples
    name = layout.name(layout.run(exp, config))
    return Job(name, "train", {"config": config, "exp": exp}, after, cost, told)


def jobs(plan: Plan, config: TrainConfig, exp: str, layout: ExperimentLayout, num_examples: int) -> list[Job]:
    """All jobs of a study; each comes after those it waits for. Arguments as for `cells`."""
    source = f"{exp}/{FULL}"
    scored_at = steps(plan, options.resolve(config, num_examples))
    made, parts = [], {}
    for chosen in scoring_configs(plan, config):
        trained = _train_job(chosen, source, layout, (), num_examples, num_examples, role="scoring")
        made.append(trained)
        for kind in plan.score_types:
            for step in scored_at:
                part = trained
                if kind not in training_score_names():
                    file = score_file(layout.experiment(source) / f"run_{chosen.run}", kind, step)
                    part = Job(
                        layout.name(file.with_suffix("")), "score",
                        {"kind": kind, "run": chosen.run, "step": step, "exp": source}, (trained.name,),
                        PASSES.get(kind, PASSES["score"]) * num_examples, {"role": "scoring"},
                    )  # fmt: skip
                    made.append(part)
                parts.setdefault((kind, step), []).append(part.name)
    means = {}
    for (kind, step), waits in parts.items():
        file = mean_file(layout, exp, kind, step)
        arguments = {"kind": kind, "n_runs": plan.score_runs, "step": step, "exp": source}
        means[kind, step] = layout.name(file.with_suffix(""))
        made.append(Job(means[kind, step], "mean_score", arguments, tuple(waits), 0.0, {"role": "scoring"}))
    for cell in cells(plan, config, exp, layout, num_examples):
        after = () if cell.arm.type is None else (means[cell.arm.type, cell.arm.step],)
        after += (made[0].name,) if cell.configs[0].features_run else ()
        told = {"role": "evaluation", "arm": cell.arm.name}
        made += [
            _train_job(chosen, cell.exp, layout, after, cell.size, num_examples, **told) for chosen in cell.configs
        ]
    return made
