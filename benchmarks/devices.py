"""One training and one scoring by all GPUs together, against the same by one: how work scales.

    python -m benchmarks --only devices

It measures nothing where there is one device. No machine with several GPUs has run it yet.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np

from benchmarks.timing import Goal, Row, Seconds, goal, interleaved_seconds, row
from benchmarks.whole import synthetic
from datadiet.config import TrainConfig, resolve
from datadiet.data.batches import Normalizer
from datadiet.data.dataset import Dataset
from datadiet.data.registry import build_dataset
from datadiet.devices import ALL, ONE, Devices
from datadiet.models.registry import build_model
from datadiet.scores.checkpoint import compute_many
from datadiet.training.loop import fit
from datadiet.training.state import initial_state, on_device

MODEL, EXAMPLES, STEPS = "resnet18_lowres", 20_000, 100
BATCHES = (128, 1024)  # the paper's, of which each GPU has little; and one that keeps several busy


def training(dataset: Dataset, model: str, batch: int, steps: int, devices: Devices) -> Callable[[], Any]:
    """Steps of a batch, which the devices share."""
    network = build_model(model, 10, dataset.image_shape)
    splits = [on_device(dataset, split, devices=devices) for split in ("train", "test")]
    given = TrainConfig(model=model, train_batch_size=batch, num_steps=steps, save_steps=steps, log_steps=steps)
    config, everything = resolve(given, dataset.num_examples), np.arange(dataset.num_examples, dtype=np.int32)

    def run() -> Any:
        *_, last = fit(network, *splits, everything, config, initial_state(network, config, dataset.num_examples))
        return last.state

    return run


def scoring(dataset: Dataset, model: str, kind: str, devices: Devices) -> Callable[[], Any]:
    """All scores of a kind, 512 examples on each device at once."""
    network = build_model(model, 10, dataset.image_shape)
    given = network, network.init(jax.random.key(0)), dataset.train_images, dataset.train_labels
    return lambda: compute_many([kind], *given, prepare=Normalizer.of(dataset), devices=devices)


def sharing(seconds: Seconds, devices: Devices) -> Goal:
    """That half of what several devices could save at most is saved."""
    text = f"{devices.count} devices ≤ 2/{devices.count} of one"
    return goal(text, seconds, f"{devices.count} devices", "one", 2 / devices.count)


def measure(rounds: int, quick: bool) -> Iterator[Row]:
    """Rows of the table; quick: a tenth of the work, of simple_cnn_0."""
    every = Devices.asked(ALL)
    if every.count == 1:
        return
    model, examples, steps = ("simple_cnn_0", EXAMPLES // 10, STEPS // 10) if quick else (MODEL, EXAMPLES, STEPS)
    with tempfile.TemporaryDirectory() as folder:
        dataset = build_dataset(f"npz:{synthetic(folder, examples, 256)}")
    together = f"{every.count} devices"
    for batch in BATCHES:
        runs = {name: training(dataset, model, batch, steps, on) for name, on in (("one", ONE), (together, every))}
        seconds = interleaved_seconds(runs, min(rounds, 3))
        goals = [sharing(seconds, every)] if batch > BATCHES[0] else []
        yield row(f"{steps} training steps, {model}", batch, seconds, "one", batch * steps, goals)
    for kind in ("l2_error", "grad_norm"):
        runs = {name: scoring(dataset, model, kind, on) for name, on in (("one", ONE), (together, every))}
        seconds = interleaved_seconds(runs, min(rounds, 3))
        yield row(f"{kind}, {model}", 512, seconds, "one", examples, [sharing(seconds, every)])
