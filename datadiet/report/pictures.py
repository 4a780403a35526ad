"""The pictures of a report, each with its title and caption. To add one: write a function and name it in FIGURES."""

from __future__ import annotations

import base64
from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from datadiet.report import figures, text
from datadiet.report.decision import Decision
from datadiet.report.evidence import Study
from datadiet.report.words import loss

if TYPE_CHECKING:
    from matplotlib.figure import Figure


class Drawn(NamedTuple):
    """A figure with its words."""

    title: str
    caption: str
    figure: Figure


class Picture(NamedTuple):
    """A figure of the report, as a file."""

    name: str  # of its file
    title: str
    caption: str
    png: bytes

    @property
    def source(self) -> str:
        """As a data URI."""
        return "data:image/png;base64," + base64.b64encode(self.png).decode()


def pictures(decision: Decision) -> list[Picture]:
    """Every picture that the evidence has material for."""
    drawn = ((name, draw(decision)) for name, draw in FIGURES.items())
    return [Picture(name, one.title, one.caption, figures.png(one.figure)) for name, one in drawn if one]


def accuracy(decision: Decision) -> Drawn:
    runs = len(decision.study.full.accuracies)
    means = f"Means of {runs} runs with 95 % intervals over runs" if runs > 1 else "Of one run"
    ring = "; the ring is what to keep" if decision.best else ""
    caption = f"{means}; in the green band less than {loss(decision.margin)} of accuracy is lost{ring}."
    return Drawn("Accuracy against the fraction kept", caption, figures.accuracy(decision))


def training_curves(decision: Decision) -> Drawn | None:
    study, shown = decision.study, decision.shown.cell
    at_size = [found for arm in study.arms if (found := study.cell(arm, shown.size))]
    curves = {cell.arm: told for cell in (study.full, *at_size) if (told := study.history(cell))}
    if not curves:
        return None
    caption = "Test accuracy at every report: mean, and the range of the runs. Nothing was chosen by it; the last step "
    caption += "counts."
    return Drawn(f"While training, {_level(decision)}", caption, figures.training_curves(curves, _called(study)))


def kept_per_class(decision: Decision) -> Drawn | None:
    study, total = decision.study, decision.study.full.kept_per_class
    if not np.isfinite(total).all():
        return None
    called = _called(study).items()
    by_size = {
        size: {name: found for arm, name in called if (found := study.cell(arm, size)) and found.kept_is_known}
        for size in _sizes(decision)
    }
    by_size = {size: found for size, found in by_size.items() if found}
    if not by_size:
        return None
    figure = figures.kept_per_class(by_size, total, study.class_names)
    return Drawn("Examples kept of each class", "Bars: what a random subset leaves on average.", figure)


def score_histograms(decision: Decision) -> Drawn | None:
    if not decision.study.scores:
        return None
    caption = "Mean scores of all training examples. Right of a dashed line lies the fraction that stands beside it."
    return Drawn("Scores", caption, figures.score_histograms(decision.study.scores, _sizes(decision)))


def stability(decision: Decision) -> Drawn | None:
    if not decision.stability:
        return None
    caption = (
        "Overlap of the examples kept by fewer runs with those kept by all of them. It ends at 100 % by construction; "
        "read how early it flattens."
    )
    called = {score.name: f"{score.paper} at {score.step:,}" for score in decision.study.scores}
    overlaps = {called[name]: values for name, values in decision.stability.items()}
    figure = figures.stability(overlaps, decision.shown.cell.fraction)
    return Drawn(f"How many runs a score needs, {_level(decision)}", caption, figure)


def forgetting(decision: Decision) -> Drawn | None:
    values = decision.study.forgetting
    if values is None:
        return None
    caption = "Times that an example turned from right to wrong in a whole training; one never learned counts its "
    return Drawn("Forgetting", caption + "presentations.", figures.forgetting_histogram(values))


def extremes(decision: Decision) -> Drawn | None:
    """The easiest and hardest examples, where there are images and a score."""
    study, dataset = decision.study, decision.study.dataset
    if not study.scores or dataset is None or len(dataset.image_shape) != 3 or dataset.image_shape[2] not in (1, 3):
        return None
    score = study.score_of(decision.shown.cell) or study.scores[0]
    labels = study.noise.labels if study.noise else dataset.train_labels
    figure = figures.extremes(score.mean, labels, dataset.train_images, study.class_names)
    more = f" The first {figures.CLASSES_SHOWN} classes." if len(study.class_names) > figures.CLASSES_SHOWN else ""
    mean = "" if score.given else f", mean of {len(score.runs)} runs"
    caption = f"By {study.words(score.type, score.step)}{mean}; labels as trained on.{more}"
    return Drawn("Easiest and hardest examples", caption, figure)


def _called(study: Study) -> dict[str, str]:
    """Arms, and what pictures call them."""
    called = {arm: study.short(arm) for arm in study.arms}
    return called if len(set(called.values())) == len(called) else {arm: arm for arm in called}


def _level(decision: Decision) -> str:
    return f"{text.kept(decision.shown.cell.fraction)} kept"


def _sizes(decision: Decision) -> list[int]:
    """Sizes of subsets, the largest first."""
    study = decision.study
    return sorted({cell.size for cell in study.cells if cell is not study.full}, reverse=True)


# By name of its file, in the order of the page; None: there is no material for it.
FIGURES: dict[str, Callable[[Decision], Drawn | None]] = {
    "accuracy": accuracy,
    "training_curves": training_curves,
    "kept_per_class": kept_per_class,
    "score_histograms": score_histograms,
    "stability": stability,
    "forgetting": forgetting,
    "extremes": extremes,
}
