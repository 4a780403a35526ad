"""How long a training takes here, measured by a few steps whose results are thrown away."""

from __future__ import annotations

import time
from dataclasses import replace
from typing import NamedTuple

import jax
import numpy as np

from datadiet.config import TrainConfig
from datadiet.data.batches import fit_images
from datadiet.data.dataset import Dataset
from datadiet.devices import Devices
from datadiet.models.registry import network_of
from datadiet.runs.inputs import resolve_config
from datadiet.training.loop import fit
from datadiet.training.state import initial_state, on_device

SECONDS = 8.0  # of steps, after the first of them
STEPS = 200  # at most
EXAMPLES = 4096  # that take part, or a batch where that is more: a step takes as long with more


class Timing(NamedTuple):
    """What training takes."""

    model: str
    num_steps: int  # of a whole training
    steps: int  # that were measured
    seconds: float  # that these took
    compile_seconds: float
    device: str

    @property
    def training(self) -> float:
        """Seconds that the steps of a whole training take."""
        return self.num_steps * self.seconds / self.steps


def measure(config: TrainConfig, dataset: Dataset, asked: str = "1") -> Timing:
    """Time some steps of a training.

    Args:
        config: Options of the training, as given or resolved.
        dataset: As published.
        asked: How many devices; see `Devices.asked`.
    Raises:
        UserError: an option is impossible with these data, or there are not as many devices.
    """
    images = len(dataset.image_shape) == 3
    whole = resolve_config(replace(config, augment=config.augment and images), dataset.num_examples)
    taken = max(EXAMPLES, whole.train_batch_size)
    part = replace(
        dataset, train_images=dataset.train_images[:taken], train_labels=dataset.train_labels[:taken],
        test_images=dataset.test_images[:1], test_labels=dataset.test_labels[:1],
    )  # fmt: skip
    network = network_of(whole, dataset.num_classes, dataset.image_shape)
    part = fit_images(part, network.image_shape)
    count = min(STEPS, whole.num_steps)
    few = replace(whole, num_steps=count, log_steps=count, save_steps=count, early_save_steps=count)
    kept = np.arange(len(part.train_labels))
    state = initial_state(network, few, len(kept), (part, kept))
    begun: list[float] = []
    devices = Devices.asked(asked)
    splits = on_device(part, "train", devices=devices), on_device(part, "test", devices=devices)
    reports = fit(
        network, *splits, kept, few, state, progress=lambda _: begun.append(time.perf_counter()),
        stopping=lambda: bool(begun) and time.perf_counter() - begun[0] > SECONDS,
    )  # fmt: skip
    *_, last = ((report.step, report.seconds) for report in reports)
    steps, seconds = last
    return Timing(few.model, whole.num_steps, steps, seconds["train"], seconds["compile"], jax.default_backend())
