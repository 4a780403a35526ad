"""The published algorithm, written anew as it is published, against datadiet on the same examples.

Training: every batch is gathered, augmented (one crop offset for all of it) and normalised by NumPy on the host, the
metrics are fetched after every step, and forgetting is counted by NumPy. Scoring: batches made and scores fetched one
by one. GraNd by jacrev is in `grand`.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.timing import Row, interleaved_seconds, row
from benchmarks.whole import synthetic
from datadiet.config import TrainConfig, resolve
from datadiet.data.batches import Normalizer
from datadiet.data.dataset import Dataset
from datadiet.data.registry import build_dataset
from datadiet.models import conv
from datadiet.models.networks import Network
from datadiet.models.registry import build_model
from datadiet.scores.checkpoint import compute_many
from datadiet.training.loop import fit
from datadiet.training.state import initial_state, on_device, optimizer
from datadiet.training.step import cross_entropy

CASES = {"mlp": 8192, "simple_cnn_0": 2048}  # model -> examples of an epoch
ON_A_GPU = {"resnet18_lowres": 16_384}


class Published:
    """Training and EL2N, host-side."""

    def __init__(self, dataset: Dataset, network: Network, config: TrainConfig) -> None:
        self.dataset, self.network, self.config = dataset, network, config
        self.optimizer = optimizer(config)
        on_cpu, conv.on_cpu = conv.on_cpu, lambda: False  # plain convolutions
        try:
            self.step = jax.jit(self._step).lower(*self._like()).compile()
            images = jax.ShapeDtypeStruct((512, *dataset.image_shape), jnp.float32)
            variables, labels = network.init(jax.random.key(0)), jax.ShapeDtypeStruct((512,), jnp.int32)
            self.el2n = jax.jit(self._el2n).lower(variables, images, labels).compile()
        finally:
            conv.on_cpu = on_cpu

    def _initial(self) -> tuple[Any, Any, Any]:
        variables = self.network.init(jax.random.key(0))
        return variables["params"], variables["batch_stats"], self.optimizer.init(variables["params"])

    def _like(self) -> tuple[Any, ...]:
        images = jax.ShapeDtypeStruct((128, *self.dataset.image_shape), jnp.float32)
        return self._initial(), images, jax.ShapeDtypeStruct((128,), jnp.int32)

    def _step(self, state: tuple[Any, Any, Any], images: jax.Array, labels: jax.Array) -> tuple[Any, ...]:
        params, stats, memory = state

        def loss(params):
            logits, updated = self.network.apply_training({"params": params, "batch_stats": stats}, images)
            return cross_entropy(logits, labels).mean(), (logits, updated)

        (value, (logits, stats)), gradient = jax.value_and_grad(loss, has_aux=True)(params)
        updates, memory = self.optimizer.update(gradient, memory, params)
        params = jax.tree.map(jnp.add, params, updates)
        return (params, stats, memory), value, logits.argmax(-1) == labels

    def _el2n(self, variables: Any, images: jax.Array, labels: jax.Array) -> jax.Array:
        errors = jax.nn.softmax(self.network.apply(variables, images)) - jax.nn.one_hot(labels, 10)
        return jnp.linalg.norm(errors, axis=-1)

    def _normalized(self, images: np.ndarray) -> np.ndarray:
        return (images.astype(np.float32) / 255 - self.dataset.mean) / self.dataset.std

    def epoch(self) -> None:
        dataset, random = self.dataset, np.random.RandomState(0)
        height, width = dataset.image_shape[:2]
        state, order = self._initial(), random.permutation(dataset.num_examples)
        was_correct, forgotten = (np.zeros(dataset.num_examples, kind) for kind in (bool, int))
        losses, accuracies = [], []
        for start in range(0, dataset.num_examples - 127, 128):
            ids = order[start : start + 128]
            images = np.pad(dataset.train_images[ids], ((0, 0), (4, 4), (4, 4), (0, 0)), "reflect")
            top, left = random.randint(0, 9, 2)
            images = images[:, top : top + height, left : left + width]
            images = np.where(random.rand(128, 1, 1, 1) < 0.5, images[:, :, ::-1], images)
            state, loss, correct = self.step(state, self._normalized(images), dataset.train_labels[ids])
            correct = np.asarray(correct)
            losses.append(loss.item())
            accuracies.append(float(correct.mean()))
            forgotten[ids] += was_correct[ids] & ~correct
            was_correct[ids] = correct

    def scores(self, variables: Any) -> np.ndarray:
        dataset, found = self.dataset, []
        for start in range(0, dataset.num_examples, 512):
            images = self._normalized(dataset.train_images[start : start + 512])
            found.append(np.asarray(self.el2n(variables, images, dataset.train_labels[start : start + 512])))
        return np.concatenate(found)


def candidates(dataset: Dataset, model: str) -> tuple[dict[str, Callable[[], Any]], dict[str, Callable[[], Any]]]:
    """An epoch of training, and EL2N, both ways."""
    steps = dataset.num_examples // 128
    config = resolve(TrainConfig(model=model, num_steps=steps, log_steps=steps, save_steps=steps), dataset.num_examples)
    network = build_model(model, 10, dataset.image_shape)
    published = Published(dataset, network, config)
    splits = on_device(dataset, "train"), on_device(dataset, "test")
    everything = np.arange(dataset.num_examples, dtype=np.int32)
    variables = network.init(jax.random.key(0))

    def epoch() -> None:
        state = initial_state(network, config, dataset.num_examples)
        for report in fit(network, *splits, everything, config, state):
            jax.block_until_ready(report.state)

    scores = partial(
        compute_many, ["l2_error"], network, variables, dataset.train_images, dataset.train_labels, 512,
        prepare=Normalizer.of(dataset),
    )  # fmt: skip
    return (
        {"datadiet": epoch, "published": published.epoch},
        {"datadiet": scores, "published": lambda: published.scores(variables)},
    )


def measure(rounds: int, quick: bool) -> Iterator[Row]:
    """Two rows of each model; quick: mlp."""
    cases = {"mlp": 8192} if quick else CASES if conv.on_cpu() else CASES | ON_A_GPU
    for model, count in cases.items():
        with tempfile.TemporaryDirectory() as folder:
            dataset = build_dataset(f"npz:{synthetic(folder, count, 512)}")
        training, scoring = candidates(dataset, model)
        yield row(f"epoch, {model}", 128, interleaved_seconds(training, rounds), "datadiet", count)
        yield row(f"EL2N, {model}", 512, interleaved_seconds(scoring, rounds), "datadiet", count)
