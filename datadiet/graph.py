"""What a study compares, and the jobs that make it: pure functions of its options.

Scoring runs train on all examples, each is scored, the scores are averaged over runs, and every arm (a way
to choose examples) trains on its subsets with seeds that no scoring run has.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from datadiet import choosing, scores, selection, store, trajectory
from datadiet import config as options
from datadiet.config import TrainConfig, UserError, option
from datadiet.coresets import Parameters
from datadiet.decision import check_margin
from datadiet.store import ExperimentLayout

FULL = "full_data"  # folder of the runs on all examples, below the study's own
TRAJECTORY_OPTIONS = frozenset(name for entry in trajectory.TRAJECTORIES.values() for name in entry.options)
PASSES = {"train": 3.0, "grad_norm": 3.0, "score": 1.0}  # work per example, in forward passes, for the time left


@dataclass(frozen=True)
class Plan:
    """What a study compares, beside the training options."""

    score_runs: int = option(10, "Runs whose scores are averaged: runs 0 … score_runs - 1.")
    eval_runs: int = option(5, "Runs that judge each subset: the next ones, whose seeds no scoring run has.")
    score_types: tuple[str, ...] = option(("l2_error", "grad_norm", "forget"), "Scores to compare, comma-separated.")
    score_steps: tuple[int, ...] = option(
        None,
        "Optimizer steps at which runs are scored, comma-separated; each needs a checkpoint (save_steps).",
        auto="the first checkpoint after a tenth of training",
    )
    selectors: tuple[str, ...] = option(
        ("keep_max",),
        "Ways to choose examples, comma-separated: selectors, each by every score that it needs, with options of their "
        "own where wanted, as in ccs:cutoff=0.3:strata=20.",
    )
    fractions: tuple[float, ...] = option(
        (0.9, 0.7, 0.5, 0.3), "Fractions of the training set to keep, above 0 and below 1, comma-separated."
    )
    margin: float = option(0.5, "Loss of test accuracy that is tolerated, in percentage points.")


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


def _refuse(name: str, got: Any, expected: str) -> UserError:
    shown = ",".join(map(str, got)) if isinstance(got, tuple) else got
    return UserError(f"{name}={shown}: expected {expected}.")


def _check_names(name: str, given: tuple[str, ...], known: Iterable[str]) -> None:
    known = tuple(known)
    if not given or len(set(given)) < len(given) or not set(given) <= set(known):
        raise _refuse(name, given, f"one or more of {', '.join(known)}, each once")


def check_names(plan: Plan) -> None:
    """Raises UserError for a number of runs below 1, and a score or selector that there is not."""
    for name in ("score_runs", "eval_runs"):
        if getattr(plan, name) < 1:
            raise _refuse(name, getattr(plan, name), "a whole number of at least 1")
        if getattr(plan, name) > options.MAX_RUNS:
            raise _refuse(name, getattr(plan, name), f"at most {options.MAX_RUNS}: seeds go no further")
    _check_names("score_types", plan.score_types, (*scores.SCORES, *scores.TRAINING_SCORES))
    for text in plan.selectors:
        named(text)
    _check_names("selectors", plan.selectors, map(str, plan.selectors or selection.SELECTORS))


TYPES: dict[str, type] = {"int": int, "float": float, "str": str}  # of selector options, as their fields have them


def named(text: str) -> tuple[str, dict[str, Any]]:
    """A selector and its own options, from selector[:option=value]….

    Raises:
        UserError: no such selector, an option that it does not use, or a value of another type.
    """
    selector, *pairs = text.split(":")
    if selector not in selection.SELECTORS:
        raise UserError(f"selectors={text}: expected one or more of {', '.join(selection.SELECTORS)}, each once.")
    own, known = {}, choosing.options_of(selector)
    for pair in pairs:
        name, _, value = pair.partition("=")
        kind = str(options.FIELDS[name].type).removesuffix(" | None") if name in known else ""
        try:
            own[name] = TYPES[kind](value)
        except (KeyError, ValueError):
            expected = f"one of type {kind}" if kind else f"option=value with one of {', '.join(known)}"
            raise UserError(f"selectors={text}: got {pair!r}, expected {expected}.") from None
    return selector, own


def check(plan: Plan, config: TrainConfig, num_examples: int) -> None:
    """Refuse a study that could not be finished; after `check_names`.

    Args:
        config: Options of a scoring run, resolved.
        num_examples: N, size of the full training set.
    Raises:
        UserError: names the option, its value and what was expected.
    """
    check_margin(plan.margin)
    if not plan.fractions or not all(0 < fraction < 1 for fraction in plan.fractions):
        raise _refuse("fractions", plan.fractions, "fractions above 0 and below 1 (all of the data is always there)")
    made = sizes(plan, num_examples)
    if min(made) < 1 or max(made) == num_examples or len(set(made)) < len(made):
        raise UserError(
            f"fractions={','.join(map(str, plan.fractions))}: of {num_examples} examples these keep "
            f"{', '.join(map(str, made))}; expected different sizes from 1 to {num_examples - 1}."
        )
    saved = options.saved_steps(config)
    if absent := [step for step in plan.score_steps or () if step not in saved]:
        raise UserError(
            f"score_steps={','.join(map(str, plan.score_steps))}: no checkpoint is saved at {absent[0]}; there are "
            f"checkpoints at {', '.join(map(str, saved))}. Choose among them, or save more with -P save_steps=N."
        )
    if plan.score_steps is not None and (not plan.score_steps or len(set(plan.score_steps)) < len(plan.score_steps)):
        raise _refuse("score_steps", plan.score_steps, "one or more steps, each once")
    _check_presentations(plan, config, num_examples)
    _check_selectors(plan, config, num_examples)


def _check_presentations(plan: Plan, config: TrainConfig, num_examples: int) -> None:
    """Refuse scores gathered while training at a step before all examples have been presented often enough."""
    first, epoch = min(steps(plan, config)), max(1, num_examples // config.train_batch_size)
    for kind in plan.score_types:
        if kind not in scores.TRAINING_SCORES or kind == "forget":  # whose value is 0 before anything is presented
            continue
        windowed = "trajectory_window" in trajectory.TRAJECTORIES[kind].options
        least = config.trajectory_window if windowed else 1
        if first < least * epoch:
            times = "once" if least == 1 else f"{least} times (trajectory_window)"
            raise UserError(
                f"score_types={kind}: after {first} steps not every example has been presented {times}; expected "
                f"-P score_steps of at least {least * epoch}."
            )


def _check_selectors(plan: Plan, config: TrainConfig, num_examples: int) -> None:
    """Refuse selector options that cannot be, that nothing uses, or that make two arms the same."""
    chosen_by = [named(text) for text in plan.selectors]
    used = {option for selector, _ in chosen_by for option in choosing.options_of(selector)}
    for name, default in Parameters._field_defaults.items():
        if getattr(config, name) != default and name not in used:
            raise _refuse(name, getattr(config, name), f"a selector that uses it among {','.join(plan.selectors)}")
    saved, features = options.saved_steps(config), any(selection.SELECTORS[s].features for s, _ in chosen_by)
    if config.features_step is not None and (not features or config.features_step not in saved):
        raise _refuse("features_step", config.features_step, f"a selector of features, and one of {saved}")
    seen: dict[Any, str] = {}
    for (selector, own), text in zip(chosen_by, plan.selectors):
        chosen = choosing.without_unused(replace(config, selector=selector, **own))
        options.validate(chosen)
        given = choosing.parameters(chosen)
        if (other := seen.setdefault((selector, given), text)) != text:
            raise UserError(f"selectors={','.join(plan.selectors)}: {other} and {text} are the same; name it once.")
        for size in sizes(plan, num_examples):
            selection.check_parameters(selector, given, size, num_examples)


def sizes(plan: Plan, num_examples: int) -> list[int]:
    """How many examples each fraction keeps, in the order of `fractions`."""
    return [round(fraction * num_examples) for fraction in plan.fractions]


def steps(plan: Plan, config: TrainConfig) -> tuple[int, ...]:
    """Steps at which runs with this resolved config are scored."""
    return plan.score_steps or (options.default_score_step(config),)


def arms(plan: Plan, scored_at: tuple[int, ...]) -> list[Arm]:
    """All data, a random choice, and every selector with every score it needs."""
    made = [Arm("full data", "all", None, None, FULL), Arm("random", "random", None, None, "random")]
    for selector, own in map(named, plan.selectors):
        told = "".join(f" {name} {value}" for name, value in own.items())
        if selector in selection.WITHOUT_SCORES:
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
    gathered = [kind for kind in plan.score_types if kind in scores.TRAINING_SCORES]
    gathered = trajectory.expand([*config.trajectory, *gathered])
    chosen = replace(config, selector="all", size=None, scores=None, features_step=None, trajectory=gathered)
    config = choosing.without_unused(chosen)
    return [replace(config, run=run) for run in range(plan.score_runs)]


def mean_file(layout: ExperimentLayout, exp: str, kind: str, step: int) -> Path:
    """The mean score file of a study."""
    return store.score_file(layout.experiment(f"{exp}/{FULL}"), kind, step)


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
    defaults = {name: options.FIELDS[name].default for name in TRAJECTORY_OPTIONS - used}
    config = replace(config, save_steps=config.num_steps, early_step=0, **defaults)

    def cell(arm: Arm, size: int) -> Cell:
        looked_at = (config.features_step, arm.step, scored_at[-1])
        needs = arm.selector in selection.SELECTORS and selection.SELECTORS[arm.selector].features
        own = dict(arm.options) if arm.name != "random" else Parameters._field_defaults
        chosen = replace(
            config,
            selector=arm.selector,
            size=None if arm is full else size,
            scores=None if arm.type is None or arm.step is None else str(mean_file(layout, exp, arm.type, arm.step)),
            features_run=str(layout.experiment(f"{exp}/{FULL}") / "run_0") if needs else None,
            features_step=next(step for step in looked_at if step is not None) if needs else None,
            **own,
        )
        chosen = choosing.without_unused(chosen)
        configs = tuple(replace(chosen, run=run) for run in runs)
        return Cell(arm, size, size / num_examples, configs, f"{exp}/{arm.folder}")

    found = [cell(full, num_examples)]
    return found + [cell(arm, size) for size in sizes(plan, num_examples) for arm in (*others[1:], others[0])]


def _train_job(config: TrainConfig, exp: str, layout: ExperimentLayout, after: tuple[str, ...], size: int,
               num_examples: int, **tags: str) -> Job:  # fmt: skip
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
                if kind not in scores.TRAINING_SCORES:
                    file = store.score_file(layout.experiment(source) / f"run_{chosen.run}", kind, step)
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
