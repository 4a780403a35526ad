"""Which examples each step of a run takes: epochs of all that it keeps, or chosen anew for each, by losses too."""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from datadiet.config import ResolvedConfig
from datadiet.data.order import batches
from datadiet.selectors.epochs import Choice, Epoch, everything
from datadiet.selectors.options import parameters
from datadiet.selectors.selection import SELECTORS

UNSEEN_LOSS = 1.0  # of an example before its first presentation, as in InfoBatch
NEVER = 2**31 - 1


class Losses(NamedTuple):
    """What a run carries from step to step, and through checkpoints, where losses choose its epochs."""

    latest: jax.Array  # float32 [N], when an example was last presented, before that update
    weights: jax.Array  # float32 [N], in this epoch
    epoch: jax.Array  # int32 []
    before: jax.Array  # int32 []: steps done before this epoch


def choice_of(config: ResolvedConfig) -> Choice:
    """How the epochs of a run are chosen."""
    chosen = SELECTORS.get(config.selector)
    return chosen.epochs if chosen and chosen.epochs else Choice(everything)


def initial_losses(config: ResolvedConfig, num_examples: int) -> Losses | None:
    """Before the first step; None where epochs are chosen without losses."""
    if choice_of(config).weigh is None:
        return None
    latest, weights = jnp.full(num_examples, UNSEEN_LOSS), jnp.ones(num_examples)
    return Losses(latest, weights, jnp.int32(0), jnp.int32(0))


class Schedule:
    """The batches of one run, in the order of its steps; batch t depends on t alone, or on t and what `Losses` holds.

    Each epoch's last incomplete batch is dropped, as in the original.

    Args:
        kept: ids of its training examples, sorted int32 [K].
    """

    def __init__(self, config: ResolvedConfig, kept: np.ndarray) -> None:
        self.config, self.kept, self.choice = config, kept, choice_of(config)
        self.size = len(kept) if self.choice.order is everything else config.size or len(kept)
        self.batch_size = min(config.train_batch_size, self.size)
        self._drawn = lru_cache(maxsize=2)(self._order)  # a chunk of steps may end in the next epoch
        self._epoch, self._before, self._ids = 0, 0, np.empty(0, np.int32)  # of the epoch that losses chose

    def begin(self, losses: Losses | None, step: int) -> Losses | None:
        """What is carried on after `step` steps: where an epoch has ended there, the next one's."""
        if losses is None or self.choice.weigh is None:
            return losses
        if not len(self._ids):
            self._take(losses)
        if step - self._before < len(self._ids):
            return losses
        latest, share = np.asarray(losses.latest)[self.kept], self.size / len(self.kept)
        weights = np.ones(len(losses.weights), np.float32)
        given = parameters(self.config)
        weights[self.kept] = self.choice.weigh(latest, share, step / self.config.num_steps, given)
        losses = losses._replace(weights=jnp.array(weights), epoch=losses.epoch + 1, before=jnp.int32(step))
        self._take(losses)
        return losses

    def _take(self, losses: Losses) -> None:
        ids = self._order(int(losses.epoch), np.asarray(losses.weights)[self.kept])
        count = len(ids) // self.batch_size
        self._epoch, self._before = int(losses.epoch), int(losses.before)
        self._ids = ids[: count * self.batch_size].reshape(count, self.batch_size)

    def _order(self, epoch: int, weights: np.ndarray | None = None) -> np.ndarray:
        given = parameters(self.config)
        told = Epoch(epoch, self.config.train_seed, len(self.kept), self.size, self.batch_size, given, weights)
        return self.kept[self.choice.order(told)].astype(np.int32)

    def left(self, step: int) -> int:
        """Steps after `step` whose batches are known by then."""
        return NEVER if self.choice.weigh is None else self._before + len(self._ids) - step

    def ids(self, step: int, count: int) -> np.ndarray:
        """Ids of the batches of the `count` steps after `step`, int32 [count, batch_size]."""
        if self.choice.weigh is not None:
            return self._ids[step - self._before :][:count]
        return batches(self._drawn, self.size, self.batch_size, step + 1, count)

    def epochs(self, step: int, count: int) -> np.ndarray:
        """Epochs of the batches of the `count` steps after `step`, from 0, int32 [count]."""
        if self.choice.weigh is not None:
            return np.full(count, self._epoch, np.int32)
        return (np.arange(step, step + count) // (self.size // self.batch_size)).astype(np.int32)
