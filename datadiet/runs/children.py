"""Children of a run: trained on from one of its checkpoints, with the noise of SGD drawn anew."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import jax.numpy as jnp
import numpy as np

from datadiet.config import ResolvedConfig
from datadiet.errors import Interrupted
from datadiet.models.networks import Variables
from datadiet.storage.checkpoints import load_state
from datadiet.storage.runs import StoredRun
from datadiet.training.loop import fit
from datadiet.training.state import DeviceData, initial_state


def config_of_child(config: ResolvedConfig, step: int, number: int) -> ResolvedConfig:
    """As its parent from `step` on, but for the order of examples and the augmentation, and without scores."""
    seed = int(np.random.SeedSequence((config.train_seed, step, number)).generate_state(1)[0]) >> 1
    whole = dict.fromkeys(("log_steps", "save_steps", "early_save_steps"), config.num_steps)
    return replace(config, train_seed=seed, trajectory=(), **whole)


def train_child(
    run: StoredRun, step: int, number: int, splits: tuple[DeviceData, DeviceData], progress: Callable[[int], Any],
    stopping: Callable[[], bool],
) -> Variables:  # fmt: skip
    """The network of a child after the last step; nothing of it is written.

    Args:
        run: Of all examples.
        step: Checkpoint that it begins with: weights, statistics and momentum.
        number: Of the child.
        splits: Training and test set, with the labels that the run trained on.
    Raises:
        Interrupted: `stopping` said yes.
        Diverged: its loss is not finite.
    """
    config, count = run.config, len(splits[0].labels)
    parent = load_state(run.path, step, initial_state(run.network, config, count))
    state = parent._replace(trajectory={}, sums=jnp.zeros(2))
    if step == config.num_steps:
        return state.variables
    child, kept = config_of_child(config, step, number), np.arange(count, dtype=np.int32)
    for report in fit(run.network, *splits, kept, child, state, progress, stopping):
        if report.step == config.num_steps:
            return report.state.variables
    raise Interrupted
