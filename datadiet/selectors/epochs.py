"""Which examples each epoch presents: all that are kept, or some of them, chosen anew each time.

Everything is a function of the seed, the number of the epoch, and the weights that losses gave its examples: a run that
is continued draws what it would have drawn.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from datadiet.data.order import epoch_order
from datadiet.option import Parameters


class Epoch(NamedTuple):
    """What the examples of an epoch are chosen by."""

    number: int  # 0, 1, …
    seed: int
    count: int  # K, examples that there are
    size: int  # M of them, the size that was asked for
    batch_size: int
    parameters: Parameters
    weights: np.ndarray | None = None  # float32 [K], where losses gave some


class Choice(NamedTuple):
    """How a selector chooses anew for each epoch.

    `order` gives positions among the K examples in order of presentation, int [M]; where there is `weigh`, of another
    length, not below batch_size.
    """

    order: Callable[[Epoch], np.ndarray]
    # (losses float32 [K] as they were when each was last presented, 1 before; M / K; part of the steps done, 0 to 1;
    # parameters) -> float32 [K], that the losses of the next epoch are multiplied by
    weigh: Callable[[np.ndarray, float, float, Parameters], np.ndarray] | None = None


def everything(epoch: Epoch) -> np.ndarray:
    """All of them, freshly shuffled."""
    return epoch_order(epoch.seed, epoch.number, epoch.count)


def rs2(epoch: Epoch) -> np.ndarray:
    """A random `size` of all examples, another one in every epoch.

    Without replacement, all are shuffled and cut into floor(K / size) pieces, one for an epoch; when they are spent,
    all are shuffled again. With replacement, each epoch draws from all. Source: RS2, Okanovic et al. 2024.
    """
    if epoch.parameters.replacement:
        return everything(epoch)[: epoch.size]
    round_, piece = divmod(epoch.number, epoch.count // epoch.size)
    return everything(epoch._replace(number=round_))[piece * epoch.size : (piece + 1) * epoch.size]


def infobatch(epoch: Epoch) -> np.ndarray:
    """Those of weight 1, and each other one with a chance of size / K.

    An epoch has at least one batch: the draws that missed by least fill it up. Source: InfoBatch, Qin et al. 2024 (its
    code leaves out the same share of the easy ones each time, the paper each with the same chance, as is done here).
    """
    assert epoch.weights is not None
    draws = np.random.RandomState([epoch.seed, epoch.number, 1]).random_sample(epoch.count)
    draws[epoch.weights == 1] = -1
    kept = draws < epoch.size / epoch.count
    if kept.sum() < epoch.batch_size:
        kept[np.argsort(draws, kind="stable")[: epoch.batch_size]] = True
    return np.flatnonzero(kept)[epoch_order(epoch.seed, epoch.number, int(kept.sum()))]


def infobatch_weights(losses: np.ndarray, kept: float, done: float, parameters: Parameters) -> np.ndarray:
    """1 / kept for losses below their mean, which r = 1 - kept of them are left out for; else 1.

    Once `full_from` of the steps are done, 1 for all: nothing is left out any more. Source: InfoBatch, Qin et al. 2024,
    whose delta is of epochs; here, where steps are the budget, an epoch that begins later is full.
    """
    easy = (losses < losses.mean(dtype=np.float64)) & (done < parameters.full_from)
    return np.where(easy, np.float32(1 / kept), np.float32(1))
