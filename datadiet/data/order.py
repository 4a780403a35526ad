"""Batches of examples by id, in an order that depends on seed and epoch alone."""

from __future__ import annotations

import threading
from collections.abc import Callable

import numpy as np


class _Drawn(threading.local):
    """What draws in a thread. To make one costs ten times an order: it asks the system for a seed of its own."""

    def __init__(self) -> None:
        self.random = np.random.RandomState()


_drawn = _Drawn()


def epoch_order(seed: int, epoch: int, num_kept: int) -> np.ndarray:
    """Permutation of 0..M-1 for one epoch, int64 [M]: a function of (seed, epoch) alone.

    RandomState, because NumPy has frozen its stream.
    """
    _drawn.random.seed([seed, epoch])
    return _drawn.random.permutation(num_kept)


def batch_ids(kept: np.ndarray, batch_size: int, seed: int, first_step: int, num_steps: int) -> np.ndarray:
    """Ids of the batches of steps first_step … first_step + num_steps - 1 (counted from 1).

    Each epoch of the kept set is freshly shuffled and its last incomplete batch dropped, as
    in the original; a kept set smaller than a batch is one batch. Batch t depends on t alone.

    Args:
        kept: ids of the training examples, int32 [M].
    Returns:
        int32 [num_steps, min(batch_size, M)].
    """
    size = min(batch_size, len(kept))
    return batches(lambda epoch: kept[epoch_order(seed, epoch, len(kept))], len(kept), size, first_step, num_steps)


def batches(
    order: Callable[[int], np.ndarray], length: int, batch_size: int, first_step: int, num_steps: int
) -> np.ndarray:
    """`batch_ids` of epochs that all have `length` examples, at least one batch.

    Args:
        order: ids of epoch 0, 1, … in order of presentation, int [length].
    Returns:
        int32 [num_steps, batch_size].
    """
    per_epoch = length // batch_size
    begin, end = first_step - 1, first_step - 1 + num_steps
    epochs = range(begin // per_epoch, -(-end // per_epoch))
    orders = [order(epoch)[: per_epoch * batch_size].reshape(per_epoch, batch_size) for epoch in epochs]
    skip = begin - epochs.start * per_epoch
    return np.concatenate(orders)[skip : skip + num_steps].astype(np.int32)
