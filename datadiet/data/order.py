"""Batches of examples by id, in an order that depends on seed and epoch alone."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np


def epoch_order(seed: int, epoch: int, num_kept: int) -> np.ndarray:
    """Permutation of 0..M-1 for one epoch, int64 [M]: a function of (seed, epoch) alone.

    RandomState, because NumPy has frozen its stream.
    """
    return np.random.RandomState([seed, epoch]).permutation(num_kept)


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
    orders = [order(epoch)[: per_epoch * batch_size].reshape(per_epoch, batch_size) for epoch in epochs]
    skip = begin - epochs.start * per_epoch
    return np.concatenate(orders)[skip : skip + num_steps].astype(np.int32)
