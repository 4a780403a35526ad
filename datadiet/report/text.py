"""A decision in words: what a reader needs before any table."""

from __future__ import annotations

import math

import numpy as np

from datadiet.report.comparison import ALPHA
from datadiet.report.decision import ClassWarning, Decision, Line
from datadiet.report.evidence import CellResult, Study
from datadiet.report.given import GIVEN
from datadiet.report.outlook import asked, freed_from_choice, looked, reachable
from datadiet.report.statistics import Estimate
from datadiet.report.trained import TrainedStudy
from datadiet.report.verdicts import CANNOT, NOT_DECIDED
from datadiet.report.words import kept, loss, percent, points
from datadiet.selectors.options import RANDOM
from datadiet.selectors.selection import SELECTORS

COLLAPSE = 0.03  # loss of accuracy of one run that a mean must not hide
FEW = 4  # runs that tell how much runs shift, as docs/decision.md says
RELIABLE = 0.7  # split-half reliability below which a ranking is mostly the runs' own


def what(cell: CellResult, study: Study) -> str:
    """Which examples a subset keeps."""
    score = study.words(cell.type, cell.step) if cell.type and cell.step is not None else ""
    known = SELECTORS.get(cell.selector)
    if known and known.words:
        told = known.words.format(count=f"{cell.size:,}", score=score)
        return f"{told} ({cell.arm})" if cell.selector == RANDOM != cell.arm else told
    by = cell.arm if cell.selector == GIVEN else cell.selector
    return f"the {cell.size:,} examples chosen by {by}" + (f" from the {score}" if score else "")


def table(decision: Decision) -> str:
    """Every cell as a line for a terminal, accuracies in per cent, differences in percentage points."""
    wide = max(12, 2 + max(len(line.cell.arm) for line in decision.lines))
    head = f"{'chosen by':<{wide}}{'examples':>9}{'kept':>7}{'test acc %':>16}{'n':>4}{'- random':>10}{'- full':>9}"
    rows = [
        f"{line.cell.arm:<{wide}}{line.cell.size:>9,}{line.cell.fraction:>7.0%}{100 * line.accuracy.mean:>9.2f}"
        f"{_spread(line.accuracy):>7}{line.accuracy.n:>4}{_signed(line.minus_random):>10}"
        f"{_signed(line.minus_full):>9}  {line.verdict or ''}".rstrip()
        for line in decision.lines
    ]
    return "\n".join([head, *rows])


def _spread(accuracy: Estimate) -> str:
    return f" ± {100 * accuracy.std:4.2f}" if accuracy.n > 1 else ""


def _signed(difference: Estimate | None) -> str:
    return f"{100 * difference.mean:+.2f}" if difference else ""


def headline(decision: Decision) -> str:
    """The answer in one sentence, for readers who know no statistics."""
    margin, best = loss(decision.margin), decision.best
    if best:
        dropped = kept(1 - best.cell.fraction)
        return f"{dropped} of the training examples can be dropped: test accuracy falls by less than {margin}."
    if decision.verdicts.answer == CANNOT:
        return f"Nothing can be dropped: every way to choose is shown to lose more than {margin} of test accuracy."
    return f"Not decided: what can be dropped while test accuracy falls by less than {margin}."


def which(decision: Decision) -> list[str]:
    """What to keep and what that does to the accuracy; or why nothing may go."""
    full, best = decision.lines[0].accuracy, decision.best
    if best and best.minus_full:
        return [
            f"Keep {what(best.cell, decision.study)}.",
            f"Test accuracy {percent(best.accuracy.mean)} against {percent(full.mean)} with all of the data: "
            f"{points(best.minus_full)}, {full.n} pairs of runs{decision.study.seeds_told}.",
            _against_random(decision, best),
            *_against_like(decision, best),
            *freed_from_choice(decision),
        ]
    near = decision.shown
    found = [
        f"The most accurate subset is {what(near.cell, decision.study)}: {percent(near.accuracy.mean)} against "
        f"{percent(full.mean)} with all of the data, {points(near.minus_full) if near.minus_full else ''}."
    ]
    if decision.verdicts.answer == NOT_DECIDED:
        found.append("Neither is it shown that something may go, nor that nothing may. " + what_it_takes(decision))
    return found


def what_it_takes(decision: Decision) -> str:
    """What would decide: more runs, or a larger test set."""
    near = decision.nearest
    if near.runs_needed is None:
        return (
            f"The {near.examples:,} test examples are the limit: where nothing is lost, they show margins of "
            f"{100 * near.smallest_margin:.2f} points or more, with any number of runs. It takes a larger test set, or "
            "a larger margin."
        )
    if near.runs_needed > near.runs:
        return (
            f"Where nothing is lost, about {near.runs_needed:,} evaluation runs a subset would show it (with a chance "
            f"of 90 %); there are {near.runs}."
        )
    return f"Where nothing is lost, {near.runs} runs on {near.examples:,} test examples would mostly have shown it."


def _against_random(decision: Decision, line: Line) -> str:
    """Whether the score earns its keep."""
    if line.cell.arm == RANDOM:
        return "No score is needed for that: no arm is surely better than a random subset of this size."
    if line.minus_random is None:
        return "There is no random subset of this size to compare it with."
    against = f"Against a random subset of the same size: {points(line.minus_random)}"
    if decision.verdicts.worth:
        chance = 100 * ALPHA * max(1.0, decision.looks.spent)
        return f"{against}; the score is worth having (said falsely with a chance of at most {chance:.3g} %)."
    return f"{against}; whether the score is better than chance is not decided."


def _against_like(decision: Decision, line: Line) -> list[str]:
    """What is the score's doing, and what the balance of classes that comes with it."""
    if (difference := decision.minus_like(line)) is None:
        return []
    shown = difference.low > 0 or difference.high < 0
    told = "that is what the choice within classes does" if shown else "whether more than that is gained is not decided"
    return [f"Against a random subset with as many of each class: {points(difference)}; {told}."]


def how_sure(decision: Decision) -> list[str]:
    """The rule and its error rate, what intervals cover and what they can show, and how reliable the scores are."""
    arms, near = len(decision.study.arms), decision.nearest
    together = f", for {arms} arms together" if arms > 1 else ""
    found = [
        "The rule: a subset counts as not worse where the lower bound of its difference to all of the data lies above "
        f"-{decision.margin:g} points. The fractions of an arm are tested from the largest down, and the first that "
        "fails ends it; arms share the chance of error (Holm). The chance that the answer names a fraction that truly "
        f"loses the margin is at most 2.5 %{together}.",
        *looked(decision),
        f"Intervals hold for new runs and for new test examples: {near.runs} run{'s' if near.runs > 1 else ''} a "
        f"subset and {near.examples:,} test examples are taken as drawn at random. {_unchanged(decision)}",
        *_reach(decision),
    ]
    if given := [score.type for score in decision.study.scores if score.given]:
        found.append(f"Scores that were given, for which nothing was trained here: {', '.join(given)}.")
    if score := decision.study.score_of(decision.shown.cell):
        reliability = decision.reliability[score.name]
        if score.given:
            found.append(f"The score {score.type} was given: how far another run would agree is unknown.")
        elif math.isnan(reliability.whole):
            found.append(f"The {score.paper} score comes from one run: how far another would agree is unknown.")
        else:
            found.append(
                f"The {score.paper} score, averaged over {reliability.runs} runs, has a split-half reliability of "
                f"{reliability.whole:.3f} (1: other runs would rank the examples alike)."
            )
    return found


def _reach(decision: Decision) -> list[str]:
    """How far the runs and the test examples that there are can tell."""
    near, shown, found = decision.nearest, decision.shown.cell, []
    low, high = near.this_test_set
    if near.runs == 1:
        found.append(
            "One run does not tell how much whole runs shift: a quarter of the test set's chance is allowed for that, "
            "and where they shift by more the intervals are too narrow."
        )
    elif not math.isnan(low):
        if near.runs < FEW:
            found.append(
                f"{near.runs} runs seldom show how much whole runs shift: where that is more than the test set's "
                "chance, the intervals are too narrow."
            )
        found.append(
            f"For these very test examples alone the interval of {shown.arm} at {kept(shown.fraction)} would be "
            f"{100 * low:+.2f} to {100 * high:+.2f} points."
        )
    if decision.study.full.correct is None:
        found.append(_bounded(decision))
    return [*found, reachable(near)]


def _unchanged(decision: Decision) -> str:
    """What these intervals do not vary."""
    if isinstance(decision.study, TrainedStudy):
        return "The scores were the same throughout."
    return "Others trained: what was tried and is not in the table is not counted, nor what chose the subsets."


def _bounded(decision: Decision) -> str:
    """What intervals are made of where only accuracies are known."""
    told = "the intervals are as wide as the test set's chance may be"
    if isinstance(decision.study, TrainedStudy):
        return f"These runs are of an earlier version, which did not record which test examples are right: {told}."
    return (
        f"Only accuracies were given, not which test examples are right: {told}. Two networks are taken to differ "
        "wherever either is wrong, which is the most that they can; with right or wrong for each test example the same "
        "runs mostly show much smaller margins."
    )


def warnings(decision: Decision) -> list[str]:
    """What to beware of: few runs, bad runs and classes, an unfair opponent, cliffs, emptied classes, label noise."""
    found, study = asked(decision), decision.study
    found += few_runs(decision) + worst(decision) + _opponent(decision)
    for arm, cliff in decision.cliffs.items():
        why = f"falls by {-100 * cliff.fall.difference:.2f} points in one step"
        if below := cliff.below_random:
            why = f"is worse than a random subset: {100 * below.difference:+.2f} points (95 % interval " \
                  f"{100 * below.low:+.2f} to {100 * below.high:+.2f})"  # fmt: skip
        found.append(f"Cliff: at {kept(cliff.fraction)} kept, {arm} {why}.")
    for arm in study.arms:
        if hit := [warning for warning in decision.emptied if warning.cell.arm == arm]:
            found.append(_emptied(decision, hit))
    return found + (_labels(study) if isinstance(study, TrainedStudy) else [])


def _labels(study: TrainedStudy) -> list[str]:
    """Labels that are not the data's own."""
    if fraction := study.config.random_label_fraction:
        return [
            f"{kept(fraction)} of the training labels were drawn anew: the examples of largest score are then mostly "
            "mislabelled; see the noise audit."
        ]
    if study.noise is None or not study.noise.changed.any():
        return []
    return [
        f"{int(study.noise.changed.sum()):,} of {len(study.noise.changed):,} training labels are other than the "
        f"data's own ({study.config.labels}): the noise audit tells which scores find them."
    ]


def few_runs(decision: Decision) -> list[str]:
    n = decision.lines[0].accuracy.n
    return [f"Only {n} evaluation run{'s' if n > 1 else ''} per subset; take 5 or more."] if n < 3 else []


def worst(decision: Decision) -> list[str]:
    """A run or a class of the recommended subset that loses what the mean does not show."""
    found, best = [], decision.best
    if best is None:
        return found
    lost = decision.worst_run
    if best.accuracy.n > 1 and lost <= -COLLAPSE:
        found.append(
            f"One of {best.accuracy.n} runs on the recommended subset loses {-100 * lost:.2f} points, which the mean "
            "hides."
        )
    if decision.worst_class:
        name, one = decision.worst_class
        level = decision.level(ALPHA / len(decision.study.class_names))
        if one.difference < -decision.margin / 100:
            low, high = one.bounds(level)
            sure = "shown" if high < 0 else "not shown to be more than chance"
            found.append(
                f"Class {name} loses most, {-100 * one.difference:.2f} points of its {one.examples:,} test examples "
                f"({100 * low:+.2f} to {100 * high:+.2f}, corrected for the number of classes; {sure})."
            )
    return found


def _opponent(decision: Decision) -> list[str]:
    """Whether all of the data is a fair opponent: if not, it is the recipe that is judged."""
    study, full = decision.study, decision.lines[0].accuracy
    found = _recipe(study) if isinstance(study, TrainedStudy) else []
    level = decision.level(ALPHA / len(decision.verdicts.comparisons))
    better = [key for key, one in decision.verdicts.comparisons.items() if one.bounds(level)[0] > 0]
    if better:
        arm, fraction = better[0]
        found.append(
            f"{arm} at {kept(fraction)} is shown to be more accurate than all of the data: the recipe does not suit "
            "all of it, or too many of its labels are wrong."
        )
    if (labels := study.test_labels) is not None:
        largest = float(np.bincount(labels).max() / len(labels))
        if full.mean - largest < 0.2 * (1 - largest):
            found.append(
                f"All of the data reaches {percent(full.mean)}; to name the largest class always would reach "
                f"{percent(largest)}. Scores of networks that have learned so little say little."
            )
    unreliable = [name for name, one in decision.reliability.items() if one.whole < RELIABLE]
    if unreliable:
        found.append(
            f"Other runs would rank the examples differently: {', '.join(unreliable)} (reliability below 0.7)."
        )
    return found


def _recipe(study: TrainedStudy) -> list[str]:
    """What is doubtful about how all of the data was trained on."""
    found, config = [], study.config
    if not any(step < config.num_steps for step in config.decay_steps) and not config.lr_vitaly:
        found.append(
            f"The learning rate never decays within the {config.num_steps:,} steps: all of the data may look worse "
            "than it is, and then it is the recipe that is judged."
        )
    losses = [line["train_loss"] for line in study.first.reports if "train_loss" in line]
    if len(losses) > 2 and losses[-1] > 0.01 and losses[-1] < 0.9 * losses[-2]:
        found.append(
            f"With all of the data the training loss is still falling at the end ({losses[-2]:.3g} to "
            f"{losses[-1]:.3g} in the last report): longer trainings may change the answer."
        )
    return found


def _emptied(decision: Decision, hit: list[ClassWarning]) -> str:
    """The first, that is largest, subset of an arm that nearly empties classes, and the smallest."""
    first, last = hit[0], hit[-1]
    named = [f"{decision.study.class_names[c]} ({first.cell.kept_per_class[c]:.0f} left)" for c in first.classes]
    shown = ", ".join(named[:5]) + (f" and {len(named) - 5} more" if len(named) > 5 else "")
    text = f"Nearly emptied: {first.cell.arm} at {kept(first.cell.fraction)} keeps less than a fifth of the share of "
    text += f"class{'es' if len(named) > 1 else ''} {shown}"
    if last is not first:
        text += f"; at {kept(last.cell.fraction)} of {len(last.classes)} class{'es' if len(last.classes) > 1 else ''}"
    return f"{text}."
