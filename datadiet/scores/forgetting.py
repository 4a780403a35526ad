"""Forgetting, gathered on device while training; one of the statistics of trajectory.py."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from datadiet.errors import UserError
from datadiet.scores.arrays import Array, zeros


class Forgetting(NamedTuple):
    """What a forgetting score needs of the past presentations of each example, all [N]."""

    presentations: Array  # int32: times in a batch
    forgotten: Array  # int32: times classified wrongly just after rightly
    was_correct: Array  # bool: at the latest presentation
    ever_correct: Array  # bool


def start_forgetting(num_examples: int) -> Forgetting:
    """Nothing presented yet; of NumPy."""
    return Forgetting(*zeros(num_examples, np.int32, np.int32, bool, bool))


def update_rows(update: Callable[[Any], Any], statistics: Any, ids: Array) -> Any:
    """A pytree of arrays [N, …] after an update of its rows `ids` [B], each at most once.

    XLA copies an array of N rows in every step of a loop unless whole rows are written, and from what is read of it.

    Args:
        update: Takes the rows, arrays [B, …], and gives the new ones.
    """
    import jax

    rows = update(jax.tree.map(lambda leaf: leaf[ids], statistics))
    return jax.tree.map(lambda leaf, row: leaf.at[ids].set(row), statistics, rows)


def update_forgetting(stats: Forgetting, correct: Array) -> Forgetting:
    """The entries of the examples of a batch [B], after it.

    Args:
        correct: bool [B], of the augmented batch, before its update.
    """
    lost = stats.was_correct & ~correct
    forgotten = stats.forgotten + lost.astype(np.int32)
    return Forgetting(stats.presentations + 1, forgotten, correct, stats.ever_correct | correct)


def forgetting_values(stats: Forgetting, member: np.ndarray | None = None) -> np.ndarray:
    """Forgetting scores so far, float32 [N].

    The number of times an example turned from right to wrong; for one never classified
    rightly, the number of its presentations, so that it ranks among the hardest and stays
    finite. NaN outside the training set.

    Args:
        member: bool [N], which examples are trained on; None: those presented so far.
    Source: Toneva et al. 2019. (The code of Paul et al. gives never-learned examples inf.)
    """
    presentations, forgotten, _, ever_correct = (np.asarray(leaf) for leaf in stats)
    values = np.where(ever_correct, forgotten, presentations).astype(np.float32)
    return np.where(presentations > 0 if member is None else member, values, np.float32(np.nan))


def never_learned(stats: Forgetting, member: np.ndarray) -> np.ndarray:
    """bool [N]: trained on, and not once classified rightly so far."""
    return ~np.asarray(stats.ever_correct) & member


def forgetting_summary(stats: Forgetting, member: np.ndarray) -> dict[str, float]:
    """Mean score, and the numbers of examples never learned, and learned and never forgotten."""
    never = never_learned(stats, member)
    unforgettable = member & ~never & (np.asarray(stats.forgotten) == 0)
    return {
        "forget/mean": float(np.mean(forgetting_values(stats, member)[member])),
        "forget/never_learned": float(never.sum()),
        "forget/unforgettable": float(unforgettable.sum()),
    }


def forgetting_scores(ids: np.ndarray, correct: np.ndarray, num_examples: int) -> np.ndarray:
    """Forgetting scores from a history of presentations.

    Args:
        ids: int [T, B] or [T], examples in order of presentation, each once per row.
        correct: 0/1, same shape.
        num_examples: N.
    Returns:
        float32 [N]; NaN for examples that were never presented.
    Raises:
        UserError: other shapes or values, or an example twice in a row.
    """
    rows = _history(np.asarray(ids), np.asarray(correct), num_examples)
    import jax

    def step(stats: Forgetting, row: tuple[Array, Array]) -> tuple[Forgetting, None]:
        return update_rows(lambda seen: update_forgetting(seen, row[1]), stats, row[0]), None

    stats, _ = jax.lax.scan(step, start_forgetting(num_examples), jax.tree.map(jax.numpy.asarray, rows))
    return forgetting_values(stats)


def _history(ids: np.ndarray, correct: np.ndarray, num_examples: int) -> tuple[np.ndarray, np.ndarray]:
    """ids and correct of every presentation, int and bool [T, B]; raises as `forgetting_scores` does."""
    if ids.shape != correct.shape or ids.ndim not in (1, 2):
        raise UserError(f"ids have the shape {list(ids.shape)}, correct {list(correct.shape)}; expected [T, B] or [T].")
    if ids.size and (ids.dtype.kind not in "iu" or ids.min() < 0 or ids.max() >= num_examples):
        raise UserError(f"ids: expected whole numbers from 0 to {num_examples - 1}, got {ids.dtype} {_range(ids)}.")
    if not np.isin(correct, (0, 1)).all():
        raise UserError(f"correct: expected 0 and 1, got {correct.dtype} {_range(correct)}.")
    rows = ids.reshape(len(ids), ids[0].size if len(ids) else 0)
    if (np.diff(np.sort(rows, axis=1), axis=1) == 0).any():
        raise UserError("ids: an example is twice in a row; expected each at most once, one row for each batch.")
    return rows.astype(np.int32), correct.reshape(rows.shape).astype(bool)


def _range(values: np.ndarray) -> str:
    return f"from {values.min()} to {values.max()}"
