"""A training run before it starts: what it trains on and where it writes."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

import jax
import numpy as np

from datadiet import commands
from datadiet.config import ResolvedConfig
from datadiet.data.batches import fit_images
from datadiet.data.dataset import Dataset
from datadiet.data.registry import dataset_of
from datadiet.errors import UserError
from datadiet.models.networks import Network
from datadiet.models.registry import network_of
from datadiet.option import refuse
from datadiet.progress import Counting, uncounted
from datadiet.runs.inputs import choose, scored_by
from datadiet.runs.labels import labels_for
from datadiet.selectors.selection import chooses_anew
from datadiet.storage.files import write_text
from datadiet.storage.layout import ExperimentLayout
from datadiet.storage.manifests import manifest_text
from datadiet.storage.records import Arguments, DataFacts, MadeAs
from datadiet.training.updates import norm_biases


@dataclass(frozen=True)
class Task:
    """A training run before it starts: what it trains on and where it writes."""

    config: ResolvedConfig
    exp: str
    run_dir: Path
    name: str  # path below exps
    dataset: Dataset  # as the model takes it
    labels: np.ndarray  # int32 [N], those trained on
    touched: np.ndarray  # ids whose label was drawn anew, or given
    kept: np.ndarray  # ids to train on, in kept order
    kept_by: str
    select_seconds: float  # that choosing them took, reading the scores included
    inputs: dict[str, str]  # kept.csv for a subset, random_labels.csv or given_labels.csv
    continues: bool = False  # its folder holds a part of it

    @property
    def num_kept(self) -> int:
        """Examples of an epoch: all that it trains on, unless each epoch chooses among them."""
        return self.config.size or len(self.kept)

    @property
    def member(self) -> np.ndarray:
        """bool [N]: trained on."""
        member = np.zeros(self.dataset.num_examples, bool)
        member[self.kept] = True
        return member


def published_data(config: ResolvedConfig) -> Dataset:
    """The dataset of a run as published.

    Raises:
        UserError: the data cannot be had, or cannot be trained on as asked.
    """
    published = dataset_of(config)
    if config.augment and len(published.image_shape) != 3:
        repair = commands.option("augment", False)
        raise UserError(f"augment=true needs images; {published.name} has vectors: {repair}.")
    return published


def network_for(config: ResolvedConfig, num_classes: int, image_shape: tuple[int, ...]) -> Network:
    """The network of a run on data of a shape.

    Raises:
        UserError: the model does not take such data, or options ask for what it has not.
    """
    network = network_of(config, num_classes, image_shape)
    least = min(network.image_shape[:2])
    if config.augment and config.pad >= least:
        raise refuse("pad", config.pad, f"fewer pixels than images have, {least}")
    if config.norm_bias_lr != 1:
        params = jax.eval_shape(network.init, jax.random.key(0))["params"]
        if not any(jax.tree.leaves(norm_biases(params))):
            raise refuse("norm_bias_lr", config.norm_bias_lr, f"1 with model={config.model}, which has no norm")
    return network


def load_data(config: ResolvedConfig) -> tuple[Dataset, Dataset]:
    """The dataset of a run as published, and as its model takes it.

    Raises:
        UserError: as `published_data`, or the model does not take these data.
    """
    published = published_data(config)
    network = network_for(config, published.num_classes, published.image_shape)
    return published, fit_images(published, network.image_shape)


def noted(dataset: Dataset) -> dict[str, str]:
    """What was decided when the data was read, as a param for MLflow."""
    return {"data.notes": " ".join(dataset.notes)} if dataset.notes else {}


def prepare_task(
    config: ResolvedConfig, exp: str, layout: ExperimentLayout, loaded: tuple[Dataset, Dataset],
    say: Callable[[str], None], counter: Counting = uncounted,
) -> Task:  # fmt: skip
    """Choose the examples of a run.

    Args:
        loaded: What `load` gave.
        counter: Shows how far it is, where it takes long.
    Raises:
        UserError: the scores cannot be had or do not fit.
    """
    published, dataset = loaded
    labels, touched, inputs = labels_for(config, published)
    start = time.perf_counter()
    kept, values, score_type = choose(config, published, labels, say, counter)
    select_seconds = time.perf_counter() - start
    inputs = dict(inputs)
    if config.selector != "all" and not chooses_anew(config.selector):
        inputs["kept.csv"] = manifest_text(dataset, kept, values)
    run_dir = layout.run(exp, config)
    name, kept_by = layout.name(run_dir), scored_by(config, score_type)
    return Task(config, exp, run_dir, name, dataset, labels, touched, kept, kept_by, select_seconds, inputs)


def write_inputs(task: Task) -> None:
    """args.json and the inputs; those that are there already are kept: `resume.check_same` has compared them."""
    dataset, path = task.dataset, task.run_dir / "args.json"
    facts = DataFacts(
        dataset.fingerprint, dataset.num_classes, list(dataset.image_shape), dataset.num_examples,
        dataset.mean.tolist(), dataset.std.tolist(), list(dataset.notes), list(dataset.skipped),
    )  # fmt: skip
    if not path.exists():
        hashes = {name: sha256(text.encode()).hexdigest() for name, text in task.inputs.items()}
        made_as = MadeAs(task.name, hashes)
        Arguments(config=task.config, data=facts, exp=task.exp, made_as=made_as).write(path)
    for name, text in task.inputs.items():
        if not (task.run_dir / name).exists():
            write_text(task.run_dir / name, text)
