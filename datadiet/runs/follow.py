"""What the first of several processes tells the others of a training, and what these do with it; see `hosts`."""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np

from datadiet import hosts
from datadiet.config import ResolvedConfig, as_dict, from_dict
from datadiet.data.dataset import Dataset
from datadiet.devices import Devices
from datadiet.errors import Interrupted, UserError
from datadiet.models.networks import Network
from datadiet.models.registry import network_of
from datadiet.runs.context import Context
from datadiet.runs.task import Task, load_data
from datadiet.training.feed import is_stored
from datadiet.training.loop import Entrant, fit_runs
from datadiet.training.state import DeviceData, initial_state, on_device, on_disk


def tell(
    tasks: Sequence[Task], entrants: Sequence[Entrant], splits: tuple[DeviceData, DeviceData],
    stopping: Callable[[], bool],
) -> None:  # fmt: skip
    """Begin the training of these runs in the other processes.

    Raises:
        Interrupted: one of them is to stop.
        UserError: one of them has failed.
    """
    facts = {
        "configs": [as_dict(one.config) for one in entrants], "data": tasks[0].dataset.fingerprint,
        "stored": [is_stored(split) for split in splits],
    }  # fmt: skip
    arrays: dict[str, Any] = {"facts": np.frombuffer(json.dumps(facts).encode(), np.uint8), "labels": tasks[0].labels}
    for run, one in enumerate(entrants):
        arrays |= {f"kept_{run}": one.kept}
        arrays |= {f"state_{run}_{leaf}": value for leaf, value in enumerate(jax.tree.leaves(one.state))}
    held = io.BytesIO()
    np.savez(held, allow_pickle=False, **arrays)
    hosts.tell(held.getvalue(), stopping)


def follow(config: ResolvedConfig, context: Context, stopping: Callable[[], bool]) -> None:
    """Compute what the first process trains, as long as it has something to train; nothing is written.

    Args:
        config: As this process was asked; what it trains is what the first one tells.
    Raises:
        Interrupted: one of the processes was to stop.
        UserError: the data or the model here is not that of the first process.
    """
    dataset, devices = load_data(config)[1], Devices.asked(context.devices)
    placed: Any = None
    splits: Any = None
    while (content := hosts.hear(stopping)) is not None:
        told = dict(np.load(io.BytesIO(content), allow_pickle=False))
        facts = json.loads(told["facts"].tobytes())
        configs = [from_dict(values) for values in facts["configs"]]
        _check_same(config, configs[0], dataset, facts["data"])
        network = network_of(configs[0], dataset.num_classes, dataset.image_shape)
        if placed != (placing := (facts["stored"], told["labels"].tobytes())):  # once, unless the first placed anew
            placed, splits = placing, _placed(dataset, told["labels"], facts["stored"], devices)
        entrants = [_entrant(network, one, run, told, dataset.num_examples) for run, one in enumerate(configs)]
        steps, ended = [0] * len(entrants), 0
        for run, report in fit_runs(network, splits[0], splits[1], entrants, stopping=stopping):
            steps[run], ended = report.step, ended + (report.error is not None)
        if max(steps) < configs[0].num_steps and ended < len(entrants):
            raise Interrupted(f"Stopped after step {max(steps)} of {configs[0].num_steps}; process 0 has saved it.")


def _check_same(own: ResolvedConfig, first: ResolvedConfig, dataset: Dataset, fingerprint: str) -> None:
    """Raises UserError where this process has another model or other data than the first."""
    if dataset.fingerprint != fingerprint:
        raise UserError(
            f"{dataset.name} here ({dataset.fingerprint[:12]}) is not the data of process 0 ({fingerprint[:12]}): "
            "expected the same examples on every machine."
        )
    if own.model_sha256 != first.model_sha256:
        raise UserError(f"The code of {own.model} here is not that of process 0: expected the same on every machine.")


def _placed(
    dataset: Dataset, labels: np.ndarray, stored: Sequence[bool], devices: Devices
) -> tuple[DeviceData, DeviceData]:
    """The training and the test set, on the devices or on disk as the first process has them."""
    train, test = (on_disk if each else on_device for each in stored)
    return train(dataset, "train", labels, devices), test(dataset, "test", None, devices)


def _entrant(network: Network, config: ResolvedConfig, run: int, told: dict[str, Any], count: int) -> Entrant:
    leaves, structure = jax.tree.flatten(initial_state(network, config, count))
    state = jax.tree.unflatten(structure, [told[f"state_{run}_{leaf}"] for leaf in range(len(leaves))])
    return Entrant(config, told[f"kept_{run}"], state)
