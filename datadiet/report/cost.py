"""What a choice costs, what a training on it saves, and when that pays: all of it measured, nothing projected."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

from datadiet.report import statistics as st
from datadiet.report.evidence import CellResult, Study
from datadiet.report.statistics import Estimate
from datadiet.report.trained import TrainedStudy
from datadiet.selectors.options import RANDOM
from datadiet.selectors.selection import SELECTORS, needs_labels
from datadiet.storage.records import Summary


class Spent(NamedTuple):
    """Seconds of a whole study, one job after the other, compiling trainings included; NaN where not recorded."""

    scored: float  # to train the networks that are scored, to their end
    score: float  # to score them
    judged: float  # to train those that judge all of the data and every subset
    select: float

    @property
    def total(self) -> float:
        return sum(self)


class Saved(NamedTuple):
    """What a training on a subset does without."""

    examples: int  # that need not be kept and loaded
    bytes: int | None  # of their images; None: the data cannot be had here
    of_bytes: int | None  # of all training images
    labels: bool  # whether the others could have stayed without labels
    steps: int  # of the optimizer


class Cost(NamedTuple):
    """Seconds that a choice costs, and that training on its subset saves; NaN where they were not recorded."""

    train: float  # to train the scored networks as far as they are scored
    score: float
    select: float
    full_training: Estimate  # seconds of one training on all of the data
    subset_training: Estimate
    saving: Estimate  # seconds per training, from pairs
    pays_after: int | None  # trainings on the subset that pay for the choice; None: never, as far as was measured
    study_pays_after: int | None  # … and that pay for the whole study, without which the choice is not known to be good
    steps: int | None  # of one training; None: not known
    rate: float  # examples per second of training
    joules: float | None  # of one training, mean over runs; None: not all of them tell it
    full_joules: float | None

    @property
    def total(self) -> float:
        return self.train + self.score + self.select

    @property
    def recorded(self) -> bool:
        """Whether all seconds were; those that were not are NaN."""
        return not math.isnan(self.total) and not math.isnan(self.saving.mean)


def _seconds(summary: Summary) -> float:
    """Of a run, all that it took; of one of an earlier version, training and evaluation."""
    return summary.seconds if summary.total_seconds is None else summary.total_seconds


def spent(study: Study) -> Spent:
    """What a study took: who decides for the first time pays for all of it."""
    if not isinstance(study, TrainedStudy):
        return Spent(math.nan, math.nan, float(sum(cell.train_seconds.sum() for cell in study.cells)), math.nan)
    paths = [path for cell in study.cells for path in cell.paths]
    trained, judged = (
        sum(_seconds(study.finished(path)) for path in some) for some in (study.record.score_runs, paths)
    )
    scoring = sum(score.score_seconds for score in study.scores if not score.given)
    return Spent(trained, scoring, judged, sum(cell.select_seconds * len(cell.paths) for cell in study.cells))


def cost_of(study: Study, cell: CellResult) -> Cost:
    """What choosing a subset cost, and what a training on it saves."""
    full, score = study.full, study.score_of(study.like(cell) or cell)
    saving = st.paired(full.train_seconds, cell.train_seconds)
    took = st.estimate(full.train_seconds), st.estimate(cell.train_seconds), saving
    if not isinstance(study, TrainedStudy):
        return Cost(math.nan, math.nan, math.nan, *took, None, None, None, math.nan, None, None)
    train, scoring = (score.train_seconds, score.score_seconds) if score else (0.0, 0.0)
    config = study.run(cell.paths[0]).config
    batch = min(config.train_batch_size, cell.size)

    def pays(price: float) -> int | None:
        # With equal steps a difference is chance, or a device's: no saving is claimed from it.
        equal = study.record.budget == "iterations"
        return None if equal or math.isnan(price) else st.break_even(price, saving)

    return Cost(
        train, scoring, cell.select_seconds, *took,
        pays(train + scoring + cell.select_seconds), pays(spent(study).total), config.num_steps,
        config.num_steps * batch / float(np.mean(np.maximum(cell.train_seconds, 1e-9))),  # NaN stays NaN
        joules=_joules(study, cell), full_joules=_joules(study, full),
    )  # fmt: skip


def _joules(study: TrainedStudy, cell: CellResult) -> float | None:
    found = [study.finished(path).joules for path in cell.paths]
    return None if None in found else float(np.mean([one for one in found if one is not None]))


def saved(study: Study, cell: CellResult) -> Saved:
    """What a training on a subset does without; an arm that takes other examples in each epoch needs all of them."""
    examples = study.full.size - cell.size if cell.drops else 0
    size = None if study.dataset is None else study.dataset.train_images.nbytes
    part = None if size is None else size * examples // study.full.size
    if not isinstance(study, TrainedStudy):
        return Saved(examples, part, size, cell.arm == RANDOM, 0)
    config = study.run(cell.paths[0]).config
    looks = cell.type or config.features_run or config.like or not cell.drops or cell.selector not in SELECTORS
    labels = not looks and not needs_labels(cell.selector, config.balance)
    return Saved(examples, part, size, labels, study.config.num_steps - config.num_steps)
