"""What the statistics gathered while training cost: all of them, and forgetting alone, against none."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np

from benchmarks.timing import Row, goal, interleaved_seconds, row
from benchmarks.whole import synthetic
from datadiet.config import TrainConfig, resolve
from datadiet.data.dataset import Dataset
from datadiet.data.registry import build_dataset
from datadiet.models.registry import build_model
from datadiet.scores.trajectory import TRAJECTORIES
from datadiet.training.schedule import Schedule
from datadiet.training.state import TrainState, initial_state, on_device
from datadiet.training.step import train_step

# Examples, image shape, channels of the first layer (None: the model's own), steps of one call.
JOBS = {
    "mlp": (16_384, (28, 28, 1), None, 256),
    "resnet18_lowres": (2_048, (32, 32, 3), 8, 4),
}
GATHERED = {"none": (), "forgetting": ("forget",), "all": tuple(TRAJECTORIES)}


def candidates(dataset: Dataset, model: str, width: int | None, steps: int) -> dict[str, Callable[[], Any]]:
    """The same steps with each choice of GATHERED; the state goes from call to call, so that none is made anew."""
    network = build_model(model, dataset.num_classes, dataset.image_shape, width)
    split = on_device(dataset, "train")
    key = jax.random.key(0)

    def candidate(names: tuple[str, ...]) -> Callable[[], Any]:
        given = TrainConfig(model=model, num_steps=10 * steps, lr=0.01, trajectory=names)
        config = resolve(given, dataset.num_examples)
        held = [initial_state(network, config, dataset.num_examples)]
        kept = np.arange(dataset.num_examples, dtype=np.int32)
        ids = Schedule(config, kept).ids(0, steps)

        def chunk(state: TrainState, ids: Any) -> TrainState:
            def body(i: int, state: TrainState) -> TrainState:
                return train_step(network, config, key, split, state, ids[i])

            return jax.lax.fori_loop(0, steps, body, state)

        program = jax.jit(chunk, donate_argnums=0)

        def call() -> Any:
            held[0] = program(held[0], ids)
            return held[0].step

        return call

    return {name: candidate(names) for name, names in GATHERED.items()}


def measure(rounds: int, quick: bool) -> Iterator[Row]:
    """Rows of the table; quick: mlp only."""
    for model, (count, shape, width, steps) in JOBS.items():
        if quick and model != "mlp":
            continue
        with tempfile.TemporaryDirectory() as folder:
            dataset = build_dataset(f"npz:{synthetic(folder, count, 256, shape)}")
        seconds = interleaved_seconds(candidates(dataset, model, width, steps), rounds)
        goals = [goal("all statistics ≤ 1.05 training without", seconds, "all", "none", 1.05)]
        name = f"{model} of width {width}" if width else model
        yield row(f"statistics while training, {name}", 128, seconds, "none", 128 * steps, goals)
