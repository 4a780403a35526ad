"""train: a training in Python that leaves no files and tells MLflow nothing, with the numbers of one that does."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from datadiet.config import ResolvedConfig, TrainConfig, fit_budget
from datadiet.data.batches import fit_images
from datadiet.data.dataset import Dataset
from datadiet.errors import UserError
from datadiet.models.networks import Network, Variables
from datadiet.option import refuse
from datadiet.runs.inputs import choose, resolve_config
from datadiet.runs.labels import labels_for
from datadiet.scores.trajectory import TRAJECTORIES
from datadiet.selectors import selection
from datadiet.train_config import FIELDS
from datadiet.training.loop import fit
from datadiet.training.placing import place
from datadiet.training.state import TrainState, initial_state

OF_NETWORK = ("model", "model_sha256", "width", "compute_dtype")  # options that a network is given instead of


@dataclass(frozen=True)
class TrainReport:
    """How far a training has come; it stays as it is while the training goes on."""

    step: int  # optimizer steps done
    metrics: dict[str, float]  # test_acc, train_loss, …; empty where the step is a checkpoint only
    variables: Variables  # of the network
    correct: np.ndarray | None  # bool [M], test examples classified rightly; None where the step is a checkpoint only
    _state: TrainState
    _member: np.ndarray

    @property
    def scores(self) -> dict[str, np.ndarray]:
        """Scores gathered so far (option trajectory), float32 [N] by name; NaN: not measured."""
        return {name: TRAJECTORIES[name].values(stats, self._member) for name, stats in self._state.trajectory.items()}


def train(
    config: TrainConfig, network: Network, dataset: Dataset, *, kept: Sequence[int] | np.ndarray | None = None
) -> Iterator[TrainReport]:
    """Train a network, and report at step 0, at every logging and checkpoint step, and after the last step.

    For equal options, networks and data it gives the bytes that an entry point writes. Nothing is written, and MLflow
    hears nothing.

    Args:
        config: How to train. What it says of the network (model, width, compute_dtype) and of where data lies is that
            of the next two instead.
        network: As of `build_model` or `Network.of`.
        dataset: As of `load_dataset` or `dataset_from`; images are padded up to the network's image_shape.
        kept: ids to train on, as of `select`; None: what the config chooses.
    Yields:
        The last report is that after num_steps: `*_, last = dd.train(…)`.
    Raises:
        UserError: an option, the data or the network is impossible; before the first report.
        Diverged: the loss is no longer finite.
    """
    _check_network(network, dataset)
    config = replace(config, **{name: FIELDS[name].default for name in OF_NETWORK})
    resolved = resolve_config(config, dataset.num_examples)
    if resolved.augment and len(dataset.image_shape) != 3:
        raise UserError(f"augment=True needs images; {dataset.name} has vectors: augment=False.")
    if resolved.augment and resolved.pad >= (least := min(network.image_shape[:2])):
        raise refuse("pad", resolved.pad, f"fewer pixels than images have, {least}")
    labels = labels_for(resolved, dataset).labels
    resolved, ids = _examples(resolved, dataset, labels, kept)
    return _reports(resolved, network, fit_images(dataset, network.image_shape), labels, ids)


def _reports(
    config: ResolvedConfig, network: Network, dataset: Dataset, labels: np.ndarray, kept: np.ndarray
) -> Iterator[TrainReport]:
    member = np.isin(np.arange(dataset.num_examples), kept)
    state = initial_state(network, config, dataset.num_examples, (dataset, kept))
    splits = place(dataset, labels, "auto", lambda text: None)
    for report in fit(network, *splits, kept, config, state):
        state = report.kept().state
        correct = None if report.correct is None else np.asarray(report.correct)
        yield TrainReport(report.step, report.metrics, state.variables, correct, state, member)


def _check_network(network: Network, dataset: Dataset) -> None:
    """Raises UserError where the network is not made for such data."""
    shape, got = network.image_shape, dataset.image_shape
    if len(shape) != len(got) or any(want < have for want, have in zip(shape, got)):
        raise UserError(f"the network takes images {list(shape)}; {dataset.name} has {list(got)}, and is only padded.")
    if network.num_classes != dataset.num_classes:
        raise UserError(
            f"the network gives {network.num_classes} logits; {dataset.name} has {dataset.num_classes} classes."
        )


def _examples(
    config: ResolvedConfig, dataset: Dataset, labels: np.ndarray, kept: Sequence[int] | np.ndarray | None
) -> tuple[ResolvedConfig, np.ndarray]:
    """The config with the steps for the examples that are trained on, and their ids, sorted int32 [K]."""
    if kept is None:
        if config.scores is None and config.selector not in ("all", "manifest", *selection.without_scores()):
            raise UserError(f"selector={config.selector} needs scores=PATH; or give ids: kept=dd.select(…).")
        return config, np.sort(choose(config, dataset, labels, lambda text: None)[0])
    ids = np.asarray(kept)
    whole = ids.ndim == 1 and len(ids) and np.issubdtype(ids.dtype, np.integer)
    if not whole or len(np.unique(ids)) < len(ids) or ids.min() < 0 or ids.max() >= dataset.num_examples:
        raise UserError(
            f"kept: got {ids.dtype} {list(ids.shape)}; expected different ids from 0 to {dataset.num_examples - 1}."
        )
    if config.size not in (None, len(ids)):
        raise UserError(f"kept has {len(ids)} ids, size={config.size}; expected equally many, or no size.")
    if config.size is None:
        config = fit_budget(replace(config, size=len(ids)), dataset.num_examples)
    return config, np.sort(ids).astype(np.int32)
