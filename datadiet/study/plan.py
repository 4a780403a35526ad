"""What a study compares, and what it refuses."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from datadiet import commands
from datadiet import config as options
from datadiet.config import MAX_RUNS, ResolvedConfig, find_option, option, value_of, with_values
from datadiet.errors import UserError
from datadiet.option import check_values, fields_of
from datadiet.scores import trajectory
from datadiet.scores.registry import DATA_SCORES, score_names, training_score_names
from datadiet.selectors import selection
from datadiet.selectors.options import LIKE, RANDOM, option_names, options_of, parameters, without_unused

FIRST_RUNS = 3  # of eval_runs=auto: two do not tell how much whole runs shift


@dataclass(frozen=True)
class Plan:
    """What a study compares, beside the training options."""

    score_runs: int = option(
        10, "Runs whose scores are averaged: runs 0 … score_runs - 1.", min=1, max=MAX_RUNS, group="score", first=True
    )
    eval_runs: int | None = option(
        5,
        "Runs that judge each subset: the next ones, whose seeds no scoring run has. 'auto': 3, then half as many more "
        "again and again, until the verdict stands, the test set is the limit, or there are max_eval_runs; every look "
        "is paid for.",
        min=1,
        max=MAX_RUNS,
        group="study",
        first=True,
    )
    max_eval_runs: int = option(30, "Most runs that eval_runs=auto takes.", min=FIRST_RUNS, max=MAX_RUNS, group="study")
    score_types: tuple[str, ...] = option(
        ("l2_error", "grad_norm", "forget"), "Scores to compare, comma-separated.", group="score", first=True
    )
    scores: tuple[str, ...] = option(
        (),
        "Scores of your own to choose by, comma-separated, each NAME=PATH or PATH: a score file, or a table of ids and "
        "scores. Nothing is trained for them; with score_types=none no network is scored.",
        group="score",
    )
    every_checkpoint: bool = option(
        True, "Save checkpoints as save_steps says, and the first and the last of runs that judge; false: none of runs "
        "that judge, and where save_steps is not given no more than are scored.", group="tracking",
    )  # fmt: skip
    score_steps: tuple[int, ...] | None = option(
        None,
        "Optimizer steps at which runs are scored, comma-separated; each needs a checkpoint (save_steps).",
        auto="the first checkpoint after a tenth of training",
        group="score",
    )
    selectors: tuple[str, ...] = option(
        ("keep_max",),
        "Ways to choose examples, comma-separated: selectors, each by every score that it needs, with options of their "
        "own where wanted, as in ccs:cutoff=0.3:strata=20; random:like=ARM keeps as many of each class as ARM.",
        group="subset",
        first=True,
    )
    fractions: tuple[float, ...] = option(
        (0.9, 0.7, 0.5, 0.3),
        "Fractions of the training set to keep, comma-separated.",
        above=0,
        below=1,
        noun="a fraction",
        group="subset",
        first=True,
    )
    margin: float = option(
        0.5,
        "Loss of test accuracy that is tolerated, in percentage points.",
        above=0,
        below=100,
        noun="a number of percentage points",
        group="study",
        first=True,
    )

    @property
    def first_runs(self) -> int:
        """Evaluation runs at the first look."""
        return self.eval_runs or FIRST_RUNS

    @property
    def most_runs(self) -> int:
        """Evaluation runs at the last look."""
        return self.eval_runs or self.max_eval_runs


def _refuse(name: str, got: Any, expected: str) -> UserError:
    shown = ",".join(map(str, got)) if isinstance(got, tuple) else got
    return UserError(f"{name}={shown}: expected {expected}.")


def _check_names(name: str, given: tuple[str, ...], known: Iterable[str]) -> None:
    known = tuple(known)
    if not given or len(set(given)) < len(given) or not set(given) <= set(known):
        raise _refuse(name, given, f"one or more of {', '.join(known)}, each once")


def check_names(plan: Plan) -> None:
    """Raises UserError for a value out of its bounds, and a score or selector that there is not."""
    check_values(plan)
    most = fields_of(Plan)["max_eval_runs"].default
    if plan.eval_runs is not None and plan.max_eval_runs != most:
        raise UserError(f"max_eval_runs={plan.max_eval_runs} is used with eval_runs=auto only.")
    if plan.score_types or not plan.scores:
        _check_names("score_types", plan.score_types, (*score_names(), *training_score_names()))
    for text in plan.selectors:
        named(text)
    _check_names("selectors", plan.selectors, map(str, plan.selectors or selection.SELECTORS))


def named(text: str) -> tuple[str, dict[str, Any]]:
    """A selector and its own options, from selector[:option=value]….

    Raises:
        UserError: no such selector, an option that it does not use, or a value of another type.
    """
    selector, *pairs = text.split(":")
    if selector not in selection.SELECTORS:
        raise UserError(f"selectors={text}: expected one or more of {', '.join(selection.SELECTORS)}, each once.")
    own, known = {}, (*options_of(selector), *([LIKE] if selector == RANDOM else []))
    for pair in pairs:
        name, _, value = pair.partition("=")
        if name not in known:
            expected = f"option=value with one of {', '.join(known)}"
            raise UserError(f"selectors={text}: got {pair!r}, expected {expected}.")
        try:
            own[name] = find_option(name).parse(value)
        except ValueError:
            expected = f"one of type {find_option(name).type.__name__}"
            raise UserError(f"selectors={text}: got {pair!r}, expected {expected}.") from None
    return selector, own


def check_plan(plan: Plan, config: ResolvedConfig, num_examples: int) -> None:
    """Refuse a study that could not be finished; after `check_names`.

    Args:
        config: Options of a scoring run, resolved.
        num_examples: N, size of the full training set.
    Raises:
        UserError: names the option, its value and what was expected.
    """
    if not config.track_forgetting and "forget" in plan.score_types:
        raise UserError("score_types=forget needs the statistics that track_forgetting=false leaves out.")
    if not plan.fractions:
        raise _refuse("fractions", "none", "one or more, above 0 and below 1 (all of the data is always there)")
    made = sizes(plan, num_examples)
    if min(made) < 1 or max(made) == num_examples or len(set(made)) < len(made):
        raise UserError(
            f"fractions={','.join(map(str, plan.fractions))}: of {num_examples} examples these keep "
            f"{', '.join(map(str, made))}; expected different sizes from 1 to {num_examples - 1}."
        )
    saved = options.saved_steps(config)
    chosen = plan.score_steps or ()
    if absent := [step for step in chosen if step not in saved]:
        raise UserError(
            f"score_steps={','.join(map(str, chosen))}: no checkpoint is saved at {absent[0]}; there are "
            f"checkpoints at {', '.join(map(str, saved))}. Choose among them, or save more with "
            f"{commands.option('save_steps', 'N')}."
        )
    if plan.score_steps is not None and (not plan.score_steps or len(set(plan.score_steps)) < len(plan.score_steps)):
        raise _refuse("score_steps", plan.score_steps, "one or more steps, each once")
    _check_presentations(plan, config, num_examples)
    _check_selectors(plan, config, num_examples)


def _check_presentations(plan: Plan, config: ResolvedConfig, num_examples: int) -> None:
    """Refuse scores gathered while training at a step before all examples have been presented often enough."""
    first, epoch = min(steps(plan, config)), max(1, num_examples // config.train_batch_size)
    for kind in plan.score_types:
        if kind not in training_score_names() or kind == "forget":  # whose value is 0 before anything is presented
            continue
        windowed = "trajectory_window" in trajectory.TRAJECTORIES[kind].options
        least = config.trajectory_window if windowed else 1
        if first < least * epoch:
            times = "once" if least == 1 else f"{least} times (trajectory_window)"
            raise UserError(
                f"score_types={kind}: after {first} steps not every example has been presented {times}; expected "
                f"score_steps of at least {least * epoch}."
            )


def _check_selectors(plan: Plan, config: ResolvedConfig, num_examples: int) -> None:
    """Refuse selector options that cannot be, that nothing uses, or that make two arms the same."""
    chosen_by = [named(text) for text in plan.selectors]
    used = {option for selector, _ in chosen_by for option in options_of(selector)}
    for name in option_names():
        if value_of(config, name) != find_option(name).default and name not in used:
            raise _refuse(name, value_of(config, name), f"a selector that uses it among {','.join(plan.selectors)}")
    saved, features = options.saved_steps(config), any(selection.SELECTORS[s].features for s, _ in chosen_by)
    if config.features_step is not None and (not features or config.features_step not in saved):
        raise _refuse("features_step", config.features_step, f"a selector of features, and one of {saved}")
    seen: dict[Any, str] = {}
    for (selector, own), text in zip(chosen_by, plan.selectors):
        chosen = without_unused(with_values(config, {"selector": selector, **own}))
        options.validate(chosen)
        given = parameters(chosen)
        if (other := seen.setdefault((selector, given, own.get(LIKE)), text)) != text:
            raise UserError(f"selectors={','.join(plan.selectors)}: {other} and {text} are the same; name it once.")
        for size in sizes(plan, num_examples):
            selection.check_parameters(selector, given, size, num_examples)


def sizes(plan: Plan, num_examples: int) -> list[int]:
    """How many examples each fraction keeps, in the order of `fractions`."""
    return [round(fraction * num_examples) for fraction in plan.fractions]


def steps(plan: Plan, config: ResolvedConfig) -> tuple[int, ...]:
    """Steps at which runs with this resolved config are scored."""
    return plan.score_steps or (options.default_score_step(config),)


def steps_of(kind: str, scored_at: tuple[int, ...]) -> tuple[int, ...]:
    """Those of `scored_at` at which a score is taken: the first, where it is the same at all."""
    return scored_at[:1] if kind in DATA_SCORES else scored_at
