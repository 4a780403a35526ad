"""Statistics gathered while training, one entry per example, in O(N) memory: by JAX on the device, or by NumPy.

Each is a NamedTuple of arrays [N, …] and pure functions of it. A training step tells them its batch: the augmented
examples in training mode, before the update. An example falls into at most one batch of an epoch, so its presentations
are its epochs, without those in which it was in the incomplete last batch, which is dropped. Values follow the
convention of all scores: larger is harder or more informative.

To add one: write its functions and name it in TRAJECTORIES, with the options it has; those that are no fields of
TrainConfig are described there by `option`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np

from datadiet.errors import UserError
from datadiet.option import Parameters
from datadiet.registries import REGISTRIES
from datadiet.scores import forgetting
from datadiet.scores.arrays import Array, copied_to_jax, module_of, softmax, zeros
from datadiet.scores.logits import l2_error, lacking_margin

LOG_EPSILON = 1e-8  # inside the logarithms of tdds, as published


class Batch(NamedTuple):
    """What a training step tells, before its update."""

    ids: Array  # int32 [B], each at most once
    labels: Array  # int32 [B], those trained on
    logits: Array  # float32 [B, C]

    @property
    def probabilities(self) -> Array:
        """float32 [B, C]."""
        return softmax(self.logits)

    @property
    def correct(self) -> Array:
        """bool [B]: the largest logit is that of the label."""
        return self.logits.argmax(-1) == self.labels

    @property
    def true_probability(self) -> Array:
        """p_y, float32 [B]."""
        return module_of(self.logits).take_along_axis(self.probabilities, self.labels[:, None], axis=-1)[:, 0]


class Shape(NamedTuple):
    """What the size of a statistic depends on."""

    examples: int  # N
    classes: int  # C


class Trajectory(NamedTuple):
    """One entry of TRAJECTORIES. S stands for its NamedTuple of arrays.

    Where it has options, `start` and `update` take them as one more argument, Parameters with the values of just those.
    """

    start: Callable[..., Any]  # shape -> S of NumPy or JAX, nothing presented yet
    update: Callable[..., Any]  # (S of the examples of a batch [B, …], batch) -> the same after
    values: Callable[[Any, np.ndarray], np.ndarray]  # (S, member bool [N]) -> float32 [N], NaN where not measured
    summary: Callable[[Any, np.ndarray], dict[str, float]] | None = None  # (S, member) -> metrics of a report
    masks: Mapping[str, Callable[[Any, np.ndarray], np.ndarray]] = MappingProxyType({})  # folder -> (S, member) -> [N]
    options: tuple[str, ...] | Mapping[str, Any] = ()  # that it uses; what `option` made where it brings them

    def own(self, given: Parameters) -> tuple[Parameters, ...]:
        """Its own among all options of statistics, as `start` and `update` take them."""
        return (given.only(self.options),) if self.options else ()


def _measured(values: Any, presentations: Any, least: int, member: np.ndarray) -> np.ndarray:
    """float32 [N]; NaN outside the training set and where there were fewer than `least` presentations."""
    counted = (np.asarray(presentations) >= least) & member
    return np.where(counted, np.asarray(values), np.float32(np.nan)).astype(np.float32)


# --- learning ---------------------------------------------------------------------------------


class FirstLearned(NamedTuple):
    """All int32 [N]."""

    presentations: Array
    learned: Array  # the presentation (1, 2, …) of the first right answer; 0: none so far


def start_first_learned(shape: Shape) -> FirstLearned:
    return FirstLearned(*zeros(shape.examples, np.int32, np.int32))


def update_first_learned(stats: FirstLearned, batch: Batch) -> FirstLearned:
    now = stats.presentations + 1
    return FirstLearned(now, module_of(now).where((stats.learned == 0) & batch.correct, now, stats.learned))


def first_learned_values(stats: FirstLearned, member: np.ndarray) -> np.ndarray:
    """The presentation, counted from 1, at which an example was first classified rightly; high: late.

    Never so far: one more than its presentations. Source: the first learning event of Toneva et al. 2019.
    """
    presentations, learned = map(np.asarray, stats)
    return _measured(np.where(learned > 0, learned, presentations + 1), presentations, 1, member)


# --- means over presentations -----------------------------------------------------------------


class Sum(NamedTuple):
    """A quantity of every presentation, summed."""

    presentations: Array  # int32 [N]
    total: Array  # float32 [N]


def averaged(quantity: Callable[[Batch], Array]) -> Trajectory:
    """The mean over presentations of a quantity, float32 [B] of a batch."""

    def start(shape: Shape) -> Sum:
        return Sum(*zeros(shape.examples, np.int32, np.float32))

    def update(stats: Sum, batch: Batch) -> Sum:
        return Sum(stats.presentations + 1, stats.total + quantity(batch))

    def values(stats: Sum, member: np.ndarray) -> np.ndarray:
        presentations, total = map(np.asarray, stats)
        return _measured(total / np.maximum(presentations, 1), presentations, 1, member)

    return Trajectory(start, update, values)


def negative_margin(batch: Batch) -> Array:
    """max over c != y of z_c, minus z_y: its mean is -AUM, since a high AUM is easy. Source: Pleiss et al. 2020."""
    return lacking_margin(batch.logits, batch.labels)


def negative_probability_margin(batch: Batch) -> Array:
    """The same of probabilities, in [-1, 1]. Source: the "AUM" of the code of Zheng et al. 2023 (CCS)."""
    return lacking_margin(batch.probabilities, batch.labels)


def doubt(batch: Batch) -> Array:
    """1 - p_y: its mean is 1 - confidence, since a high confidence is easy. Source: Swayamdipta et al. 2020."""
    return 1 - batch.true_probability


def wrongness(batch: Batch) -> Array:
    """1 where wrong: its mean is 1 - correctness, since a high correctness is easy. Source: Swayamdipta et al. 2020."""
    return 1 - batch.correct.astype(np.float32)


def el2n(batch: Batch) -> Array:
    """||p - y||_2 in [0, sqrt(2)]. Source: Paul et al. 2021, there of one checkpoint in evaluation mode."""
    return l2_error(batch.logits, batch.labels)


# --- spread over presentations ----------------------------------------------------------------


class Moments(NamedTuple):
    """Mean and squared deviations of p_y, updated as by Welford 1962, so that nothing cancels."""

    presentations: Array  # int32 [N]
    mean: Array  # float32 [N]
    squares: Array  # float32 [N]: sum of (p_y - mean)²


def start_moments(shape: Shape) -> Moments:
    return Moments(*zeros(shape.examples, np.int32, np.float32, np.float32))


def update_moments(stats: Moments, batch: Batch) -> Moments:
    now, value = stats.presentations + 1, batch.true_probability
    mean = stats.mean + (value - stats.mean) / now.astype(np.float32)
    return Moments(now, mean, stats.squares + (value - stats.mean) * (value - mean))


def variability_values(stats: Moments, member: np.ndarray) -> np.ndarray:
    """Standard deviation of p_y over presentations (population), in [0, 0.5]; high is ambiguous.

    Source: Swayamdipta et al. 2020.
    """
    presentations, _, squares = map(np.asarray, stats)
    return _measured(np.sqrt(squares / np.maximum(presentations, 1)), presentations, 1, member)


class Windows(NamedTuple):
    """The last J values of p_y in a ring, and what the windows so far add up to."""

    presentations: Array  # int32 [N]
    recent: Array  # float32 [N, J]
    total: Array  # float32 [N]: over complete windows; before there is one, of the presentations so far


def over_windows(statistic: Callable[[Array, Array], Array]) -> Trajectory:
    """The mean of a statistic of p_y over all windows of J presentations in a row.

    An example with 2 to J - 1 presentations has one window, of all of them.

    Args:
        statistic: (mean [B], unbiased standard deviation [B]) of a window -> [B].
    """

    def start(shape: Shape, given: Parameters) -> Windows:
        presentations, total = zeros(shape.examples, np.int32, np.float32)
        (recent,) = zeros(shape.examples, np.float32, more=given.trajectory_window)
        return Windows(presentations, recent, total)

    def update(stats: Windows, batch: Batch, given: Parameters) -> Windows:
        seen, length = stats.presentations, stats.recent.shape[1]
        value, slot, xp = batch.true_probability, seen % length, module_of(batch.logits)
        ring = xp.where(xp.arange(length) == slot[:, None], value[:, None], stats.recent)
        mean, squares, count = _deviations(ring, seen + 1)
        found = statistic(mean, xp.sqrt(squares / xp.maximum(count - 1, 1)))
        return Windows(seen + 1, ring, xp.where(seen < length, found, stats.total + found))

    def values(stats: Windows, member: np.ndarray) -> np.ndarray:
        presentations, windows = np.asarray(stats.presentations), stats.recent.shape[1]
        complete = np.maximum(presentations - windows + 1, 1)
        return _measured(np.asarray(stats.total) / complete, presentations, 2, member)

    return Trajectory(start, update, values, options=("trajectory_window",))


def _deviations(ring: Array, written: Array) -> tuple[Array, Array, Array]:
    """Mean [B], sum of squared deviations [B] and number [B] of what is in rings [B, J] written to so many times."""
    xp = module_of(ring)
    filled = xp.arange(ring.shape[1]) < written[:, None]
    count = xp.minimum(written, ring.shape[1]).astype(np.float32)
    mean = xp.where(filled, ring, 0).sum(1) / xp.maximum(count, 1)
    squares = xp.where(filled, (ring - mean[:, None]) ** 2, 0).sum(1)
    return mean, squares, count


def window_uncertainty(mean: Array, deviation: Array) -> Array:
    """Standard deviation in a window. Source: Dyn-Unc, He et al. 2024 (code: 10 times that)."""
    return deviation


def window_dual(mean: Array, deviation: Array) -> Array:
    """Standard deviation x (1 - mean): uncertain and hard. Source: DUAL, Cho et al. 2025 (code: 10 times that)."""
    return deviation * (1 - mean)


class Divergences(NamedTuple):
    """The last probabilities and the last J - 1 differences, in a ring. The only statistic that needs O(N C) memory."""

    presentations: Array  # int32 [N]
    last: Array  # float32 [N, C]
    recent: Array  # float32 [N, J - 1]
    score: Array  # float32 [N]


def start_tdds(shape: Shape, given: Parameters) -> Divergences:
    sizes = shape.classes, given.trajectory_window - 1, None
    rest = (zeros(shape.examples, np.float32, more=size)[0] for size in sizes)
    return Divergences(*zeros(shape.examples, np.int32), *rest)


def update_tdds(stats: Divergences, batch: Batch, given: Parameters) -> Divergences:
    """R of the window that ends here is taken in with weight tdds_decay, what was before fades by 1 - tdds_decay."""
    seen, length, new, decay = stats.presentations, stats.recent.shape[1], batch.probabilities, given.tdds_decay
    xp = module_of(new)
    difference = abs(new * (xp.log(new + LOG_EPSILON) - xp.log(stats.last + LOG_EPSILON))).sum(1)
    slot = xp.where(seen > 0, (seen - 1) % length, length)  # the first presentation has no difference: out of the ring
    ring = xp.where(xp.arange(length) == slot[:, None], difference[:, None], stats.recent)
    spread = decay * xp.sqrt(_deviations(ring, seen)[1])
    last = xp.where(difference[:, None] >= 0, new, np.nan)  # so that `last` is read before it is written
    return Divergences(seen + 1, last, ring, xp.where(seen <= length, spread, (1 - decay) * stats.score + spread))


def tdds_values(stats: Divergences, member: np.ndarray) -> np.ndarray:
    """Exponentially weighted mean over windows of J presentations of R, the norm of the J - 1 differences
    sum over c of |p_c (log p_c - log p_c before)| around their mean; high: the output still moves unevenly.

    An example with 3 to J - 1 presentations has one window, of all of them. Source: TDDS, Zhang et al. 2024, as its
    code has it (the paper describes a variance).
    """
    return _measured(stats.score, stats.presentations, 3, member)


# --- by name ----------------------------------------------------------------------------------

TRAJECTORIES: dict[str, Trajectory] = {
    "forget": Trajectory(
        lambda shape: forgetting.start_forgetting(shape.examples),
        lambda stats, batch: forgetting.update_forgetting(stats, batch.correct),
        forgetting.forgetting_values,
        forgetting.forgetting_summary,
        {"never_learned": forgetting.never_learned},
    ),
    "first_learned": Trajectory(start_first_learned, update_first_learned, first_learned_values),
    "aum": averaged(negative_margin),
    "aum_prob": averaged(negative_probability_margin),
    "confidence": averaged(doubt),
    "variability": Trajectory(start_moments, update_moments, variability_values),
    "correctness": averaged(wrongness),
    "dyn_unc": over_windows(window_uncertainty),
    "dual": over_windows(window_dual),
    "tdds": Trajectory(start_tdds, update_tdds, tdds_values, options=("trajectory_window", "tdds_decay")),
    "el2n_epochs": averaged(el2n),
}
REGISTRIES["trajectory"] = TRAJECTORIES


def option_names() -> list[str]:
    """Names of all options of statistics, each once."""
    return list(dict.fromkeys(name for entry in TRAJECTORIES.values() for name in entry.options))


def expand(names: Iterable[str]) -> tuple[str, ...]:
    """Names in the order of TRAJECTORIES, each once; 'all' stands for all of them.

    Raises:
        UserError: an unknown name, with the known ones.
    """
    asked = set(names)
    if unknown := asked - {*TRAJECTORIES, "all"}:
        raise UserError(f"trajectory={min(unknown)!r}: expected some of {', '.join(TRAJECTORIES)}, or all, or none.")
    return tuple(name for name in TRAJECTORIES if "all" in asked or name in asked)


def start(names: Iterable[str], shape: Shape, given: Parameters) -> dict[str, Any]:
    """Fresh statistics by name, of JAX; see `expand`. `given`: the options of all of them."""
    entries = {name: TRAJECTORIES[name] for name in expand(names)}
    return copied_to_jax({name: entry.start(shape, *entry.own(given)) for name, entry in entries.items()})


def update(statistics: Mapping[str, Any], batch: Batch, given: Parameters, places: Any = None) -> dict[str, Any]:
    """All statistics after one more batch, whose rows are `places` [B], or its ids; with the options of `start`."""

    def presented(rows: dict[str, Any]) -> dict[str, Any]:
        entries = {name: TRAJECTORIES[name] for name in rows}
        return {name: entry.update(rows[name], batch, *entry.own(given)) for name, entry in entries.items()}

    return forgetting.update_rows(presented, dict(statistics), batch.ids if places is None else places)


def summary(statistics: Mapping[str, Any], member: np.ndarray) -> dict[str, float]:
    """Metrics of those statistics that have some; member: bool [N], trained on."""
    entries = ((TRAJECTORIES[name].summary, stats) for name, stats in statistics.items())
    return {k: v for describe, stats in entries if describe for k, v in describe(stats, member).items()}
