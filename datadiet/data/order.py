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


def batches(
    order: Callable[[int], np.ndarray], length: int, batch_size: int, first_step: int, num_steps: int
) -> np.ndarray:
    """Ids of the batches of steps first_step … first_step + num_steps - 1 (counted from 1), of epochs that all have
    `length` examples, at least one batch. The last incomplete batch of each is dropped, as in the original.

    Args:
        order: ids of epoch 0, 1, … in order of presentation, int [length].
    Returns:
        int32 [num_steps, batch_size].
    """
    per_epoch = length // batch_size
    begin, end = first_step - 1, first_step - 1 + num_steps
    epochs = range(begin // per_epoch, -(-end // per_epoch))

    def within(epoch: int) -> np.ndarray:
        """Those of them that are of an epoch."""
        first, last = max(begin - epoch * per_epoch, 0), min(end - epoch * per_epoch, per_epoch)
        return order(epoch)[first * batch_size : last * batch_size].reshape(-1, batch_size)

    return np.concatenate([within(epoch) for epoch in epochs]).astype(np.int32)
