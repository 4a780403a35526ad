"""R runs at the same time against the same runs one after the other."""

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
from datadiet.models.registry import build_model, gains_together
from datadiet.training.loop import Entrant, fit_runs
from datadiet.training.state import initial_state, on_device

# Model -> runs, steps: an epoch of 60,000 examples, and what shows the ratio.
CASES = {"mlp": (10, 468), "simple_cnn_0": (2, 4)}


def candidates(dataset: Dataset, model: str, runs: int, steps: int) -> dict[str, Callable[[], Any]]:
    """The same steps of `runs` runs, both ways."""
    network = build_model(model, 10, dataset.image_shape)
    splits = on_device(dataset, "train"), on_device(dataset, "test")
    everything = np.arange(dataset.num_examples, dtype=np.int32)

    def entrants() -> Iterator[Entrant]:
        for run in range(runs):
            given = TrainConfig(model=model, run=run, num_steps=steps, save_steps=steps, log_steps=steps)
            config = resolve(given, dataset.num_examples)
            yield Entrant(config, everything, initial_state(network, config, dataset.num_examples))

    def train_all(lanes: list[Entrant]) -> None:
        for _, report in fit_runs(network, *splits, lanes):
            jax.block_until_ready(report.state)

    def one_by_one() -> None:
        for lane in entrants():
            train_all([lane])

    return {"one after the other": one_by_one, "at the same time": lambda: train_all(list(entrants()))}


def measure(rounds: int, quick: bool) -> Iterator[Row]:
    """Rows of the table; a goal only where the runs are trained at the same time by default. Quick: mlp, 3 runs."""
    with tempfile.TemporaryDirectory() as folder:
        dataset = build_dataset(f"npz:{synthetic(folder, 60_000, 256)}")
    for model, (runs, steps) in ({"mlp": (3, 64)} if quick else CASES).items():
        seconds = interleaved_seconds(candidates(dataset, model, runs, steps), rounds)
        goals = []
        if gains_together(model):
            goals = [goal("runs at the same time are faster", seconds, "at the same time", "one after the other", 1.0)]
        case = f"{runs} training runs, {model}"
        yield row(case, 128, seconds, "one after the other", 128 * steps * runs, goals)
