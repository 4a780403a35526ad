"""What a decision costs and saves, in words."""

from __future__ import annotations

import math

from datadiet.report.cost import Cost, Spent, saved, spent
from datadiet.report.decision import Decision, Line
from datadiet.report.given import GIVEN
from datadiet.report.trained import TrainedStudy
from datadiet.report.words import kept, points, seconds, size
from datadiet.selectors.options import RANDOM


def price(decision: Decision) -> list[str]:
    """What the choice costs, what it saves, and when it pays."""
    line, equal = decision.shown, decision.study.record.budget == "iterations"
    cost, study = decision.cost(line), decision.study
    if not isinstance(study, TrainedStudy):
        return [_told(cost), *(_saved(decision, line) if decision.best else [])]
    training = (
        f"One training takes {seconds(cost.subset_training.mean)} on the subset, {seconds(cost.full_training.mean)} on "
        "all of the data (compilation and evaluation left out)."
    )
    if cost.joules is not None and cost.full_joules is not None:
        part, whole = (f"{joules / 1000:,.3g} kJ" for joules in (cost.joules, cost.full_joules))
        training += f" It takes {part} of the GPUs, {whole} on all of the data."
    if math.isnan(cost.saving.mean):
        training = "How long a training takes was not recorded by all of its runs."
    found = [_study(spent(decision.study), decision), training]
    if decision.best is None:
        return [*found, "As nothing can be dropped at this margin, nothing pays it back.", *_undropped(decision)]
    found.insert(0, _choice(decision, line, cost))
    return [*found, *(_equal_steps() if equal else _equal_epochs(cost)), *_saved(decision, line), *_undropped(decision)]


def _told(cost: Cost) -> str:
    """Where others trained: no more than the seconds that they told."""
    if math.isnan(cost.saving.mean):
        return "Neither what the choice cost nor how long all trainings took was told: when it pays is not known."
    part, whole = seconds(cost.subset_training.mean), seconds(cost.full_training.mean)
    told = f"One training takes {part} on the subset, {whole} on all of the data, as was told"
    if cost.saving.low > 0:
        spread = f"95 % interval {seconds(cost.saving.low)} to {seconds(cost.saving.high)}"
        told += f": each on the subset saves {seconds(cost.saving.mean)} ({spread})"
    return f"{told}. What the choice cost was not told, so when it pays is not known."


def _choice(decision: Decision, line: Line, cost: Cost) -> str:
    if not cost.train + cost.score and line.cell.arm == RANDOM:
        return "A random choice costs nothing."
    score = decision.study.score_of(decision.study.like(line.cell) or line.cell)
    if score and score.given:
        return f"What the score {score.type} cost, which was given, is not known here; to select took " \
               f"{seconds(cost.select)}."  # fmt: skip
    made = f"{seconds(cost.train)} to train {len(score.runs)} networks up to the scored step, " if score else ""
    made += f"{seconds(cost.score)} to score, " if score else ""
    return f"Choosing, {seconds(cost.total)} in all: {made}{seconds(cost.select)} to select."


def _study(spent: Spent, decision: Decision) -> str:
    """The price of a first time."""
    study = decision.study
    judging = sum(len(cell.paths) for cell in study.cells)
    if not study.record.score_runs:
        return (
            f"Who decides this for the first time pays for {judging} trainings that judge, {seconds(spent.total)}, and "
            "for the scores that were given."
        )
    return (
        f"Who decides this for the first time pays for the whole study, {seconds(spent.total)}: "
        f"{seconds(spent.scored)} for {len(study.record.score_runs)} networks that are scored, {seconds(spent.score)} "
        f"to score them, {seconds(spent.judged)} for {judging} trainings that judge."
    )


def _equal_steps() -> list[str]:
    """With budget=iterations no training is shortened."""
    return [
        "It never pays in training time: with budget=iterations every subset trains for as many steps as all of the "
        "data, so no training gets shorter. Whether shorter ones do as well, and when that pays, is measured by "
        "budget=epochs, not here."
    ]


def _equal_epochs(cost: Cost) -> list[str]:
    saving = cost.saving
    if not cost.recorded:
        return ["When it pays is not known, because not all seconds were recorded."]
    if cost.pays_after is None:
        return ["It does not pay, as far as was measured: no training on the subset is surely shorter."]
    spread = f" (measured; 95 % interval {seconds(saving.low)} to {seconds(saving.high)})"
    told = f"Each training on the subset saves {seconds(saving.mean)}{spread}: "
    at_once = cost.total < 0.005 * saving.mean
    told += "it pays from the first one" if at_once else f"the diet pays after {_trainings(cost.pays_after)}"
    whole = f", the whole study after {_trainings(cost.study_pays_after)}" if cost.study_pays_after else ""
    return [f"{told}{whole}."]


def _trainings(count: int | None) -> str:
    return f"{count:,} training{'s' if count != 1 else ''}"


def _saved(decision: Decision, line: Line) -> list[str]:
    """Data that need not be kept; labels only where nothing looked at them."""
    found = saved(decision.study, line.cell)
    stored = f" ({size(found.bytes)} of {size(found.of_bytes)})" if found.bytes and found.of_bytes else ""
    told, study = f"What is saved: {found.examples:,} examples to store and to load{stored}", decision.study
    if found.steps and isinstance(study, TrainedStudy):
        told += f", and {found.steps:,} of {study.config.num_steps:,} steps of each training"
    if line.cell.selector == GIVEN:
        return [f"{told}."]
    labels = "Labels are not saved: the choice looks at those of all examples, or at networks trained on them."
    if found.labels:
        labels = "A random subset can be drawn before anything is labelled: the labels of the others are saved too."
    return [f"{told}. {labels}"]


def _undropped(decision: Decision) -> list[str]:
    """Arms that take other examples in each epoch, and drop none."""
    lines = [line for line in decision.lines if line.verdict and not line.cell.drops]
    arms = list(dict.fromkeys(line.cell.arm for line in lines))
    if not arms:
        return []
    drop = "drops" if len(arms) == 1 else "drop"
    told = f"{', '.join(arms)} {drop} nothing: each epoch takes other examples of all."
    if decision.study.record.budget == "iterations":
        return [f"{told} With budget=iterations that takes as many steps as all of the data, and saves none."]
    found = []
    for arm in arms:
        if (fraction := decision.smallest(arm)) is None:
            found.append(f"{arm} is not shown to do with fewer steps")
            continue
        line = next(line for line in lines if (line.cell.arm, line.cell.fraction) == (arm, fraction))
        saving = decision.cost(line).saving
        assert line.minus_full is not None
        less = f"saving {seconds(saving.mean)} a training" if saving.low > 0 else "no training being surely shorter"
        found.append(f"{arm} does with {kept(fraction)} of the steps, {points(line.minus_full)}, {less}")
    return [f"{told} {'; '.join(found)}."]
