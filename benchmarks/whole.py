"""Whole jobs against their bare limits: what scoring and tracking cost beyond the arithmetic."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np

from benchmarks.timing import Row, goal, interleaved_seconds, row
from datadiet.config import TrainConfig, resolve
from datadiet.data.batches import Normalizer
from datadiet.data.dataset import Dataset
from datadiet.data.registry import build_dataset
from datadiet.models.registry import build_model
from datadiet.runs.console import Console, Level
from datadiet.scores.checkpoint import compute_many
from datadiet.training.loop import fit
from datadiet.training.state import initial_state, on_device

# Model -> training examples, image shape, epochs (0: scored only). The longer a run, the less its fixed costs count.
JOBS = {"mlp": (60_000, (28, 28, 1), 20), "simple_cnn_0": (2048, (32, 32, 3), 0)}
QUICK = {"mlp": (8192, (28, 28, 1), 2)}


SCORED = ("l2_error", "four logit scores")


def synthetic(folder: str | Path, num_train: int, num_test: int, shape: tuple[int, int, int] = (32, 32, 3)) -> Path:
    """An npz of images that a network can tell apart a little."""
    random = np.random.default_rng(0)
    means = random.integers(0, 128, (10, *shape), np.uint8)

    def split(count: int) -> tuple[np.ndarray, np.ndarray]:
        labels = np.arange(count) % 10
        return means[labels] + random.integers(0, 128, (count, *shape), np.uint8), labels

    (x_train, y_train), (x_test, y_test) = split(num_train), split(num_test)
    path = Path(folder) / "images.npz"
    np.savez(path, x_train=x_train, y_train=y_train, x_test=x_test, y_test=y_test)
    return path


def scoring(dataset: Dataset, model: str, batch_size: int) -> dict[str, Callable[[], Any]]:
    """Logit scores of the whole dataset against its forward pass in the same batches, nothing else."""
    network = build_model(model, 10, dataset.image_shape)
    variables = network.init(jax.random.key(0))
    prepare = Normalizer.of(dataset)
    forward = jax.jit(lambda images: network.apply(variables, prepare(images)))

    def bare() -> Any:
        starts = range(0, dataset.num_examples, batch_size)
        return [forward(dataset.train_images[start : start + batch_size]) for start in starts]

    def scores(*kinds: str) -> Any:
        return compute_many(
            kinds, network, variables, dataset.train_images, dataset.train_labels, batch_size, prepare=prepare
        )

    kinds = ("l2_error", "l1_error", "max_margin", "sum_margin")
    return {"forward": bare} | dict(zip(SCORED, (partial(scores, "l2_error"), partial(scores, *kinds))))


def training(path: Path, root: Path, dataset: Dataset, model: str, epochs: int) -> dict[str, Callable[[], Any]]:
    """A run with everything on (forgetting, checkpoints, mirror, MLflow) against its steps and evaluations alone."""
    import mlflow

    from datadiet.runs.context import Context, Output, Tracker
    from datadiet.runs.train import train_run
    from datadiet.storage.layout import ExperimentLayout

    mlflow.set_tracking_uri(f"sqlite:///{root}/mlflow.db")
    steps = epochs * (dataset.num_examples // 128)
    config = TrainConfig(dataset=f"npz:{path}", model=model, num_steps=steps)
    silence = Console(Level.SILENT)
    output = Output(ExperimentLayout(root), overwrite=True)
    context = Context(output, silence, Tracker(root, "benchmark", silence.say))
    given = TrainConfig(model=model, num_steps=steps, track_forgetting=False, save_steps=steps)
    bare = resolve(given, dataset.num_examples)
    network = build_model(model, 10, dataset.image_shape)
    splits = on_device(dataset, "train"), on_device(dataset, "test")
    everything = np.arange(dataset.num_examples, dtype=np.int32)

    def steps_only() -> None:
        state = initial_state(network, bare, dataset.num_examples)
        for _ in fit(network, *splits, everything, bare, state):
            pass

    return {"jitted steps": steps_only, "everything on": lambda: train_run(config, "benchmark", context)}


def measure(rounds: int, quick: bool) -> Iterator[Row]:
    """Rows of the table; quick: a small job of mlp."""
    for model, (count, shape, epochs) in (QUICK if quick else JOBS).items():
        with tempfile.TemporaryDirectory() as folder:
            path = synthetic(folder, count, count // 6, shape)
            dataset = build_dataset(f"npz:{path}")
            seconds = interleaved_seconds(scoring(dataset, model, 512), rounds)
            goals = [goal(f"{name} ≤ 1.1 forward pass", seconds, name, "forward", 1.1) for name in SCORED]
            yield row(f"scoring {count:,} examples, {model}", 512, seconds, "forward", count, goals)
            if not epochs:
                continue
            seconds = interleaved_seconds(training(path, Path(folder), dataset, model, epochs), min(rounds, 3))
            goals = [goal("everything on ≤ 1.05 jitted steps", seconds, "everything on", "jitted steps", 1.05)]
            case = f"training {epochs} epochs of {count:,} examples, {model}"
            yield row(case, 128, seconds, "jitted steps", epochs * count, goals)
