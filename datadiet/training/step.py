"""One optimizer step and one evaluation, as pure functions that are compiled."""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax

from datadiet.config import ResolvedConfig, parameters_for
from datadiet.data.batches import augment
from datadiet.models.networks import Network, Variables
from datadiet.scores import trajectory
from datadiet.training.state import DeviceData, TrainState, optimizer

OF_NETWORK = 0x6E6574  # folded into the key of a step: what dropout draws from, beside augmentation


def cross_entropy(logits: jax.Array, labels: jax.Array) -> jax.Array:
    """Per-example loss, float32 [B]."""
    return optax.losses.softmax_cross_entropy_with_integer_labels(logits, labels)


def train_step(
    network: Network, config: ResolvedConfig, key: jax.Array, train: DeviceData, state: TrainState, ids: jax.Array,
    rows: jax.Array | None = None,
) -> TrainState:  # fmt: skip
    """One optimizer step on the examples `ids` [B]; its metrics are those of the batch before the update.

    Args:
        rows: Where train.images has their images, int32 [B]; None: all are there, in order.
    """
    key = jax.random.fold_in(key, state.step + 1)
    rows = ids if rows is None else rows
    images = train.batch(augment(key, train.images, rows) if config.augment else train.images[rows])
    labels = train.labels[ids]

    carried, own = state.losses, jax.random.fold_in(key, OF_NETWORK)

    def loss(params):
        variables = {"params": params, "batch_stats": state.batch_stats}
        logits, batch_stats = network.apply_training(variables, images, own)
        losses = cross_entropy(logits, labels)
        weighted = losses if carried is None else carried.weights[ids] * losses
        return weighted.mean(), (logits, batch_stats)

    (value, (logits, batch_stats)), grads = jax.value_and_grad(loss, has_aux=True)(state.params)
    updates, opt_state = optimizer(config).update(grads, state.opt_state, state.params)
    batch = trajectory.Batch(ids, labels, logits)
    gathered = trajectory.update(state.trajectory, batch, parameters_for(config, "trajectory"))
    params = optax.apply_updates(state.params, updates)
    if carried is not None:
        losses = cross_entropy(logits, labels)
        value, carried = losses.mean(), carried._replace(latest=carried.latest.at[ids].set(losses))
    sums = state.sums + jnp.stack([value, batch.correct.mean()])
    return TrainState(state.step + 1, params, batch_stats, opt_state, sums, gathered, carried)


def _run_chunk(network, config, key, train, state, ids, rows, num_steps):
    """The first `num_steps` of ids and rows [CHUNK_STEPS, B]; a dynamic count, so one program serves all."""
    return jax.lax.fori_loop(
        0, num_steps, lambda i, state: train_step(network, config, key, train, state, ids[i], rows[i]), state
    )


def _run_chunks(network, config, keys, train, states, ids, rows, num_steps):
    """`_run_chunk` of R runs side by side: keys and states are tuples of R, ids and rows [R, CHUNK_STEPS, B]."""
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *states)
    one = partial(_run_chunk, network, config)
    stacked = jax.vmap(one, (0, None, 0, 0, 0, None))(jnp.stack(keys), train, stacked, ids, rows, num_steps)
    return tuple(jax.tree.map(lambda leaf: leaf[run], stacked) for run in range(len(states)))  # noqa: B023


def _evaluate(
    network: Network, batch_size: int, variables: Variables, part: DeviceData, first: jax.Array,
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
        logits, labels = network.apply(variables, part.batch(part.images[ids - first])), part.labels[ids]
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
