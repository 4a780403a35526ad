"""One optimizer step and one evaluation, as pure functions that are compiled."""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
import optax

from datadiet.config import ResolvedConfig, parameters_for
from datadiet.data.batches import augment
from datadiet.models.networks import Network, Variables
from datadiet.scores import trajectory
from datadiet.training.state import DeviceData, TrainState, optimizer


def cross_entropy(logits: jax.Array, labels: jax.Array) -> jax.Array:
    """Per-example loss, float32 [B]."""
    return optax.losses.softmax_cross_entropy_with_integer_labels(logits, labels)


def train_step(
    network: Network, config: ResolvedConfig, key: jax.Array, train: DeviceData, state: TrainState, ids: jax.Array
) -> TrainState:
    """One optimizer step on the examples `ids` [B]; its metrics are those of the batch before the update."""
    key = jax.random.fold_in(key, state.step + 1)
    images = train.batch(augment(key, train.images, ids) if config.augment else train.images[ids])
    labels = train.labels[ids]

    carried = state.losses

    def loss(params):
        logits, batch_stats = network.apply_training({"params": params, "batch_stats": state.batch_stats}, images)
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


def _run_chunk(network, config, key, train, state, ids, num_steps):
    """The first `num_steps` rows of ids [CHUNK_STEPS, B]; a dynamic count, so one program serves all."""
    return jax.lax.fori_loop(
        0, num_steps, lambda i, state: train_step(network, config, key, train, state, ids[i]), state
    )


def _run_chunks(network, config, keys, train, states, ids, num_steps):
    """`_run_chunk` of R runs side by side: keys and states are tuples of R, ids [R, CHUNK_STEPS, B]."""
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *states)
    one = partial(_run_chunk, network, config)
    stacked = jax.vmap(one, (0, None, 0, 0, None))(jnp.stack(keys), train, stacked, ids, num_steps)
    return tuple(jax.tree.map(lambda leaf: leaf[run], stacked) for run in range(len(states)))  # noqa: B023


def _evaluate(
    network: Network, batch_size: int, variables: Variables, split: DeviceData
) -> tuple[jax.Array, jax.Array]:
    """Over the whole split, whose last batch is filled and masked.

    Returns:
        float32 [2 + C]: mean loss and accuracy, then the accuracy in each class (NaN where the split has none of it).
        bool [M]: whether each example is classified rightly.
    """
    count = len(split.labels)
    num_classes = jax.eval_shape(network.apply, variables, split.batch(split.images[:1])).shape[-1]

    def body(i, carry):
        sums, answers = carry
        index = i * batch_size + jnp.arange(batch_size)
        ids, counted = jnp.minimum(index, count - 1), index < count
        logits, labels = network.apply(variables, split.batch(split.images[ids])), split.labels[ids]
        correct = logits.argmax(-1) == labels
        values = jnp.stack([cross_entropy(logits, labels), correct])
        per_class = jax.nn.one_hot(labels, num_classes, axis=0) * correct
        sums += jnp.where(counted, jnp.concatenate([values, per_class]), 0).sum(1)
        return sums, answers.at[ids].set(correct)  # the filling repeats the last example

    start = jnp.zeros(2 + num_classes), jnp.zeros(count, bool)
    sums, answers = jax.lax.fori_loop(0, -(-count // batch_size), body, start)
    sizes = jnp.bincount(split.labels, length=num_classes)
    return sums / jnp.concatenate([jnp.full(2, count), sizes]), answers
