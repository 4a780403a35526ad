"""Whole jobs against their bare limits: what scoring and tracking cost beyond the arithmetic."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np

from benchmarks.timing import Row, interleaved_seconds, row
from datadiet import data, models, train
from datadiet.config import TrainConfig, resolve
from datadiet.scores import compute_many

EPOCHS = {"mlp": 8, "simple_cnn_0": 1}  # a run of some seconds, so that its fixed costs count as they do in use


class Silence:
    """Progress that nobody watches."""

    @contextmanager
    def counter(self, total: int, label: str) -> Iterator[Callable[[int], Any]]:
        yield lambda done: None

    def say(self, text: str) -> None:
        pass


def synthetic(num_train: int = 8192, num_test: int = 1024) -> Path:
    """An npz of 32x32x3 images that a network can tell apart a little."""
    random = np.random.RandomState(0)
    means = random.randint(60, 190, (10, 32, 32, 3))

    def split(count: int) -> tuple[np.ndarray, np.ndarray]:
        labels = np.arange(count) % 10
        return np.clip(means[labels] + random.normal(0, 60, (count, 32, 32, 3)), 0, 255).astype(np.uint8), labels

    (x_train, y_train), (x_test, y_test) = split(num_train), split(num_test)
    path = Path(tempfile.mkdtemp()) / "images.npz"
    np.savez(path, x_train=x_train, y_train=y_train, x_test=x_test, y_test=y_test)
    return path


def scoring(dataset: data.Dataset, model: str, batch_size: int) -> dict[str, Callable[[], Any]]:
    """Logit scores of the whole dataset against its forward pass in the same batches, nothing else."""
    network = models.build_model(model, 10, dataset.image_shape)
    variables = network.init(jax.random.key(0))
    prepare = data.Normalizer.of(dataset)
    forward = jax.jit(lambda images: network.apply(variables, prepare(images)))

    def bare() -> Any:
        starts = range(0, dataset.num_examples, batch_size)
        return [forward(dataset.train_images[start : start + batch_size]) for start in starts]

    def scores(*kinds: str) -> Any:
        return compute_many(
            kinds, network, variables, dataset.train_images, dataset.train_labels, batch_size, prepare=prepare
        )

    kinds = ("l2_error", "l1_error", "max_margin", "sum_margin")
    return {"forward": bare, "l2_error": partial(scores, "l2_error"), "four scores": partial(scores, *kinds)}


def training(path: Path, dataset: data.Dataset, model: str) -> dict[str, Callable[[], Any]]:
    """A run with everything on (forgetting, checkpoints, mirror, MLflow) against its jitted steps and evaluations."""
    import mlflow

    from datadiet.pipeline import Place, train_run
    from datadiet.store import ExperimentLayout

    root = Path(tempfile.mkdtemp())
    mlflow.set_tracking_uri(f"sqlite:///{root}/mlflow.db")
    steps = EPOCHS[model] * (dataset.num_examples // 128)
    config = TrainConfig(dataset=f"npz:{path}", model=model, num_steps=steps)
    place = Place(ExperimentLayout(root), Silence(), "benchmark", overwrite=True)
    bare = resolve(
        TrainConfig(model=model, num_steps=steps, track_forgetting=False, save_steps=steps), dataset.num_examples
    )
    network = models.build_model(model, 10, dataset.image_shape)
    splits = train.on_device(dataset, "train"), train.on_device(dataset, "test")
    everything = np.arange(dataset.num_examples, dtype=np.int32)

    def steps_only() -> None:
        for _ in train.fit(
            network, *splits, everything, bare, train.initial_state(network, bare, dataset.num_examples)
        ):
            pass

    return {"jitted steps": steps_only, "everything on": lambda: train_run(config, "benchmark", place)}


def measure(rounds: int, quick: bool) -> Iterator[Row]:
    """Rows of the table; quick: mlp only."""
    path = synthetic()
    dataset = data.build(f"npz:{path}")
    for model in ("mlp",) if quick else tuple(EPOCHS):
        seconds = interleaved_seconds(scoring(dataset, model, 512), rounds)
        yield row(f"scoring, {model}", 512, seconds, "forward", dataset.num_examples)
        seconds = interleaved_seconds(training(path, dataset, model), rounds)
        presented = EPOCHS[model] * dataset.num_examples
        yield row(f"training, {model}", 128, seconds, "jitted steps", presented)
