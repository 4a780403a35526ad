"""One optimizer step and one evaluation, as pure functions that are compiled."""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax

from datadiet.config import ResolvedConfig, parameters_for
from datadiet.data.batches import alternating_flips, augment, fitted
from datadiet.devices import ONE, Devices
from datadiet.models.networks import Network, Variables
from datadiet.scores import trajectory
from datadiet.training.state import DeviceData, TrainState, optimizer

OF_NETWORK = 0x6E6574  # folded into the key of a step: what dropout draws from, beside augmentation


def cross_entropy(logits: jax.Array, labels: jax.Array) -> jax.Array:
    """Per-example loss, float32 [B]."""
    return optax.losses.softmax_cross_entropy_with_integer_labels(logits, labels)


def training_loss(logits: jax.Array, labels: jax.Array, smoothing: float) -> jax.Array:
    """Per-example loss that is trained on, float32 [B]: `cross_entropy`, with the part `smoothing` of each label spread
    evenly over all classes."""
    losses = cross_entropy(logits, labels)
    if not smoothing:
        return losses
    return (1 - smoothing) * losses - smoothing * jax.nn.log_softmax(logits).mean(-1)


def _augmented(
    config: ResolvedConfig, key: jax.Array, step: jax.Array, images: jax.Array, ids: jax.Array, rows: jax.Array,
    epoch: jax.typing.ArrayLike,
) -> jax.Array:  # fmt: skip
    """The images of a batch as step `step`, from 1, sees them; other arguments as of `train_step`."""
    if not config.augment:
        return images[rows]
    flipped = {
        "none": lambda: jnp.zeros(len(ids), bool),
        "random": lambda: None,
        "alternating": lambda: alternating_flips(jax.random.fold_in(key, 0), ids, jnp.asarray(epoch)),
    }[config.flip]()
    return augment(jax.random.fold_in(key, step), images, rows, config.pad, flipped)


def train_step(
    network: Network, config: ResolvedConfig, key: jax.Array, train: DeviceData, state: TrainState, ids: jax.Array,
    rows: jax.Array | None = None, epoch: jax.typing.ArrayLike = 0, devices: Devices = ONE,
    places: jax.Array | None = None,
) -> TrainState:  # fmt: skip
    """One optimizer step on the examples `ids` [B]; its metrics are those of the batch before the update.

    Args:
        key: JAX random key of the run.
        rows: Where train.images has their images, int32 [B]; None: all are there, in order.
        epoch: That the batch is of, from 0.
        devices: That compute it, each a part of the batch; the state is whole on each of them.
        places: Where train.labels and the statistics of the state have them, int32 [B]; None: as for rows.
    """
    images, rows, places = train.images, ids if rows is None else rows, ids if places is None else places
    if images.shape[1:] != tuple(network.image_shape):
        images, rows = fitted(images[rows], network.image_shape), jnp.arange(len(ids))
    images = devices.split(train.batch(_augmented(config, key, state.step + 1, images, ids, rows, epoch)))
    ids, places = devices.whole((ids, places))  # statistics of examples are kept by every device
    labels = devices.whole(train.labels[places])
    carried, own = state.losses, jax.random.fold_in(jax.random.fold_in(key, state.step + 1), OF_NETWORK)

    def loss(params):
        variables = {"params": params, "batch_stats": state.batch_stats}
        logits, batch_stats = network.apply_training(variables, images, own)
        logits = devices.whole(logits)  # a few numbers of each example, once, for the loss and all statistics
        losses = training_loss(logits, labels, config.label_smoothing)
        weighted = losses if carried is None else carried.weights[ids] * losses
        return weighted.mean(), (logits, batch_stats)

    (value, (logits, batch_stats)), grads = jax.value_and_grad(loss, has_aux=True)(state.params)
    updates, opt_state = optimizer(config).update(grads, state.opt_state, state.params)
    batch = trajectory.Batch(ids, labels, logits)
    gathered = trajectory.update(state.trajectory, batch, parameters_for(config, "trajectory"), places)
    params = optax.apply_updates(state.params, updates)
    if carried is not None:
        losses = training_loss(logits, labels, config.label_smoothing)
        value, carried = losses.mean(), carried._replace(latest=carried.latest.at[ids].set(losses))
    sums = state.sums + jnp.stack([value, batch.correct.mean()])
    return devices.whole(TrainState(state.step + 1, params, batch_stats, opt_state, sums, gathered, carried))


def _run_chunk(network, config, devices, key, train, state, ids, rows, epochs, num_steps):
    """The first `num_steps` of ids and rows [CHUNK_STEPS, B] and their epochs [CHUNK_STEPS]; a dynamic count, so one
    program serves all.

    Labels and statistics [N] are brought together before the steps, [CHUNK_STEPS * B], and statistics put back after
    them: no step reaches into memory that no cache holds, and XLA has no array of N rows to copy or to share among
    threads in each of them.
    """
    gathered, places = state.trajectory, ids
    if ids.size < len(train.labels):
        places = jnp.zeros(len(train.labels), jnp.int32).at[ids].set(jnp.arange(ids.size).reshape(ids.shape))[ids]
        own = jax.tree.map(lambda leaf: leaf[ids.ravel()], (train.labels, gathered))
        train, state = train._replace(labels=own[0]), state._replace(trajectory=own[1])

    def step(i, state):
        return train_step(network, config, key, train, state, ids[i], rows[i], epochs[i], devices, places[i])

    state = jax.lax.fori_loop(0, num_steps, step, state)
    if places is ids:
        return state

    def put_back(leaf, own):  # an example that is there twice is written twice alike
        return leaf.at[ids].set(own[places])

    return state._replace(trajectory=jax.tree.map(put_back, gathered, state.trajectory))


def _run_chunks(network, config, devices, keys, train, states, ids, rows, epochs, num_steps):
    """`_run_chunk` of R runs side by side: keys and states are tuples of R, the others [R, …]."""
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *states)
    one = partial(_run_chunk, network, config, devices)
    given = (jnp.stack(keys), train, stacked, ids, rows, epochs, num_steps)
    stacked = jax.vmap(one, (0, None, 0, 0, 0, 0, None))(*given)
    return tuple(jax.tree.map(lambda leaf: leaf[run], stacked) for run in range(len(states)))  # noqa: B023


def _evaluate(
    network: Network, batch_size: int, devices: Devices, variables: Variables, part: DeviceData, first: jax.Array,
    found: tuple[jax.Array, jax.Array],
) -> tuple[jax.Array, jax.Array]:  # fmt: skip
    """Over a part of a split, from example `first` on; the last batch of the split is filled and masked.

    Args:
        part: The split, with the images of the part alone: whole batches of them, or all that there are.
        found: What the parts before gave; `nothing_found` for the first.
    Returns:
        float32 [2 + C]: sums of loss and rightness, then of rightness in each class.
        bool [M]: whether each example is classified rightly, as far as it was seen.
    """
    count, num_classes = len(part.labels), len(found[0]) - 2

    def body(i, carry):
        sums, answers = carry
        index = first + i * batch_size + jnp.arange(batch_size)
        ids, counted = jnp.minimum(index, count - 1), index < count
        images = devices.split(part.batch(fitted(part.images[ids - first], network.image_shape)))
        ids = devices.whole(ids)
        logits, labels = devices.whole(network.apply(variables, images)), devices.whole(part.labels[ids])
        correct = logits.argmax(-1) == labels
        values = jnp.stack([cross_entropy(logits, labels), correct])
        per_class = jax.nn.one_hot(labels, num_classes, axis=0) * correct
        sums += jnp.where(counted, jnp.concatenate([values, per_class]), 0).sum(1)
        return sums, answers.at[ids].set(correct)  # the filling repeats the last example

    batches = -(-jnp.minimum(len(part.images), count - first) // batch_size)
    return jax.lax.fori_loop(0, batches, body, found)


def nothing_found(network: Network, count: int) -> tuple[jax.Array, jax.Array]:
    """What `_evaluate` begins with for a split of `count` examples."""
    return jnp.zeros(2 + network.num_classes), jnp.zeros(count, bool)


def means(sums: jax.Array, labels: jax.Array) -> np.ndarray:
    """Mean loss and accuracy of a split, then the accuracy in each class (NaN where it has none), float32 [2 + C]."""
    sizes = np.bincount(np.asarray(labels), minlength=len(sums) - 2)
    with np.errstate(invalid="ignore"):
        return np.asarray(sums) / np.concatenate([np.full(2, len(labels)), sizes]).astype(np.float32)
