"""What a run is while it trains: its state, its data on the device, its optimizer."""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from datadiet.config import ResolvedConfig, parameters_for
from datadiet.data.batches import as_read, normalize
from datadiet.data.dataset import Dataset
from datadiet.devices import ONE, Devices
from datadiet.models.networks import Network, Variables
from datadiet.scores import trajectory
from datadiet.training.schedule import Losses, initial_losses
from datadiet.training.updates import lookahead, scale_norm_biases


class TrainState(NamedTuple):
    """All that the future of a run depends on, apart from its config."""

    step: jax.Array  # int32 []: optimizer steps done
    params: Any
    batch_stats: Any
    opt_state: optax.OptState
    sums: jax.Array  # float32 [2]: loss and accuracy summed over the steps since the last report
    trajectory: dict[str, Any]  # statistics of TRAJECTORIES by name
    losses: Losses | None = None  # where they choose the epochs

    @property
    def variables(self) -> Variables:
        return {"params": self.params, "batch_stats": self.batch_stats}


class DeviceData(NamedTuple):
    """A split on the device; its images may stay on disk, as an array of NumPy, of which `feed` brings parts there."""

    images: jax.Array  # uint8 [N, H', W', D'], as they were read: `batches.fitted` makes a batch what the network takes
    labels: jax.Array  # int32 [N]
    mean: jax.Array  # float32 [D]
    std: jax.Array  # float32 [D]

    def batch(self, images: jax.Array) -> jax.Array:
        """Images of this split, normalised."""
        return normalize(images, self.mean, self.std)


def on_device(dataset: Dataset, split: str, labels: np.ndarray | None = None, devices: Devices = ONE) -> DeviceData:
    """A split ('train' or 'test') on each of the devices that it is computed on, with other labels where given.

    Images that cannot be written to, as those of a file that is mapped, are not copied where the device is the CPU.
    """
    images = np.asarray(as_read(getattr(dataset, f"{split}_images")))
    labels = np.asarray(getattr(dataset, f"{split}_labels") if labels is None else labels, np.int32)
    placed: Any = jnp.asarray(images) if images.flags.writeable and devices.count == 1 else images
    return devices.put(DeviceData(placed, *map(jnp.asarray, (labels, dataset.mean, dataset.std))))


def on_disk(dataset: Dataset, split: str, labels: np.ndarray | None = None, devices: Devices = ONE) -> DeviceData:
    """The same without its images, which stay where they are."""
    images: Any = as_read(getattr(dataset, f"{split}_images"))
    few = replace(dataset, **{f"{split}_images": images[:1]})
    return on_device(few, split, labels, devices)._replace(images=images)


def learning_rate(config: ResolvedConfig, step: jax.typing.ArrayLike) -> jax.Array:
    """Learning rate of optimizer step t = 1, 2, …, float32.

    Step decay: lr * decay_factor ** (number of decay steps before t). With lr_vitaly: linear
    to 2 * lr over the first 15 % of the steps, then linear to 0 at num_steps (as in Feldman &
    Zhang 2020, whose peak is 0.2 at batch 128). With lr_triangle = (start, peak, end), step decay times a part that
    rises evenly from start, of step 1, to 1 after peak * num_steps steps, and falls evenly to end, after the last.
    """
    step = jnp.asarray(step, jnp.float32)
    if config.lr_vitaly:
        peak = max(1, round(0.15 * config.num_steps))
        rest = max(1, config.num_steps - peak)
        return 2 * config.lr * jnp.minimum(step / peak, (config.num_steps - step) / rest)
    decays = sum(step > boundary for boundary in config.decay_steps)
    rate = config.lr * jnp.float32(config.decay_factor) ** decays
    if config.lr_triangle:
        start, peak, end = config.lr_triangle
        rate *= jnp.interp((step - 1) / config.num_steps, jnp.array([0, peak, 1]), jnp.array([start, 1, end]))
    return rate


@lru_cache(maxsize=4096)
def rate_at(config: ResolvedConfig, step: int) -> float:
    """`learning_rate` for a report; runs alike in what it depends on share it, since each costs milliseconds."""
    return float(learning_rate(config, step))


def optimizer(config: ResolvedConfig) -> optax.GradientTransformation:
    """SGD with (Nesterov) momentum; weight decay is coupled: added to the gradient of every parameter."""
    parts = [
        optax.add_decayed_weights(config.weight_decay),
        optax.sgd(lambda count: learning_rate(config, count + 1), config.beta, config.nesterov),
    ]
    if config.norm_bias_lr != 1:
        parts.insert(0, scale_norm_biases(config.norm_bias_lr))
    if config.lookahead:
        parts.append(lookahead(config.lookahead, config.num_steps))
    return optax.chain(*parts)


def initial_state(
    network: Network, config: ResolvedConfig, num_examples: int, data: tuple[Dataset, np.ndarray] | None = None
) -> TrainState:
    """The untrained state: step 0, weights from model_seed.

    Args:
        data: The dataset, as the model takes it, and the sorted ids of the training examples, of which a network may
            take something before the first step; see `Network.begun`.
    """
    variables = network.init(jax.random.key(config.model_seed))
    variables = network.begun(variables, *data) if data else variables
    shape = trajectory.Shape(num_examples, network.num_classes)
    return TrainState(
        step=jnp.int32(0),
        params=variables["params"],
        batch_stats=variables["batch_stats"],
        opt_state=optimizer(config).init(variables["params"]),
        sums=jnp.zeros(2),
        trajectory=trajectory.start(config.trajectory, shape, parameters_for(config, "trajectory")),
        losses=initial_losses(config, num_examples),
    )
