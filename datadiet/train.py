"""Training: a generator of reports over a jitted loop of steps.

Everything that happens in a step (batch, augmentation, gradient, update, statistics) runs on
the device; the host sends ids and fetches metrics once per report.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from types import MappingProxyType
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from datadiet import data, trajectory
from datadiet.config import Diverged, TrainConfig, logged_steps, saved_steps
from datadiet.conv import on_cpu
from datadiet.data import Dataset
from datadiet.models import Network, Variables
from datadiet.programs import Clock, compiled, timed

CHUNK_STEPS = 128  # at most so many steps per call of the device
CHUNK_SECONDS = 0.5  # and about so long, so that progress shows and an interrupt is heard

# The options that shape the compiled program; all others are data or bookkeeping.
PROGRAM_FIELDS = (
    "num_steps", "lr", "beta", "nesterov", "weight_decay", "decay_factor", "decay_steps", "lr_vitaly", "augment",
    "tdds_decay",
)  # fmt: skip


# Models whose runs train side by side: small ones, a step of which does not keep all cores or a GPU busy. Measured by
# `python -m benchmarks --only runs`. On a CPU it changes no result.
TOGETHER = frozenset({"mlp", "simple_cnn_0"})


def gains_together(model: str) -> bool:
    """Whether several runs of a model are faster side by side."""
    return model in TOGETHER


class TrainState(NamedTuple):
    """All that the future of a run depends on, apart from its config."""

    step: jax.Array  # int32 []: optimizer steps done
    params: Any
    batch_stats: Any
    opt_state: optax.OptState
    sums: jax.Array  # float32 [2]: loss and accuracy summed over the steps since the last report
    trajectory: dict[str, Any]  # statistics of TRAJECTORIES by name

    @property
    def variables(self) -> Variables:
        return {"params": self.params, "batch_stats": self.batch_stats}


class DeviceData(NamedTuple):
    """A split on the device."""

    images: jax.Array  # uint8 [N, H, W, D]
    labels: jax.Array  # int32 [N]
    mean: jax.Array  # float32 [D]
    std: jax.Array  # float32 [D]

    def batch(self, images: jax.Array) -> jax.Array:
        """Images of this split, normalised."""
        return data.normalize(images, self.mean, self.std)


class Entrant(NamedTuple):
    """A run that is to be trained."""

    config: TrainConfig  # resolved
    kept: np.ndarray  # ids of its training examples, int32 [M]
    state: TrainState  # where it begins: `initial_state`, or one restored; consumed
    earlier: Mapping[str, float] = MappingProxyType({})  # seconds spent before that, as in `Report.seconds`


class Report(NamedTuple):
    """What `fit` yields. The state's buffers are reused: take what you need before the next report, or `kept()`."""

    step: int
    state: TrainState
    metrics: dict[str, float]  # empty where the step is a checkpoint only
    save: bool  # whether a checkpoint was asked for at this step
    seconds: dict[str, float]  # spent so far, by name; see Clock
    error: Diverged | None = None  # why this is the run's last report, though its training is not done

    def kept(self) -> Report:
        """The same with a copy of the state."""
        return self._replace(state=jax.tree.map(jnp.copy, self.state))


def is_timing(metric: str) -> bool:
    """Whether a metric tells how long the work took; all others are the same in every repetition."""
    return metric.startswith("time/") or metric == "examples_per_second"


def class_metric(label: int) -> str:
    """Name of the test accuracy in one class, which the last report has where the test set has that class."""
    return f"test_acc/class_{label}"


def on_device(dataset: Dataset, split: str, labels: np.ndarray | None = None) -> DeviceData:
    """A split ('train' or 'test') on the default device, with other labels where given."""
    images = getattr(dataset, f"{split}_images")
    labels = np.asarray(getattr(dataset, f"{split}_labels") if labels is None else labels, np.int32)
    return DeviceData(*map(jnp.asarray, (images, labels, dataset.mean, dataset.std)))


def learning_rate(config: TrainConfig, step: jax.Array | int) -> jax.Array:
    """Learning rate of optimizer step t = 1, 2, …, float32.

    Step decay: lr * decay_factor ** (number of decay steps before t). With lr_vitaly: linear
    to 2 * lr over the first 15 % of the steps, then linear to 0 at num_steps (as in Feldman &
    Zhang 2020, whose peak is 0.2 at batch 128).
    """
    step = jnp.asarray(step, jnp.float32)
    if config.lr_vitaly:
        peak = max(1, round(0.15 * config.num_steps))
        rest = max(1, config.num_steps - peak)
        return 2 * config.lr * jnp.minimum(step / peak, (config.num_steps - step) / rest)
    decays = sum(step > boundary for boundary in config.decay_steps)
    return config.lr * jnp.float32(config.decay_factor) ** decays


def optimizer(config: TrainConfig) -> optax.GradientTransformation:
    """SGD with (Nesterov) momentum; weight decay is coupled: added to the gradient of every parameter."""
    return optax.chain(
        optax.add_decayed_weights(config.weight_decay),
        optax.sgd(lambda count: learning_rate(config, count + 1), config.beta, config.nesterov),
    )


def initial_state(network: Network, config: TrainConfig, num_examples: int) -> TrainState:
    """The untrained state: step 0, weights from model_seed."""
    variables = network.init(jax.random.key(config.model_seed))
    shape = trajectory.Shape(num_examples, network.num_classes, config.trajectory_window)
    return TrainState(
        step=jnp.int32(0),
        params=variables["params"],
        batch_stats=variables["batch_stats"],
        opt_state=optimizer(config).init(variables["params"]),
        sums=jnp.zeros(2),
        trajectory=trajectory.start(config.trajectory, shape),
    )


def cross_entropy(logits: jax.Array, labels: jax.Array) -> jax.Array:
    """Per-example loss, float32 [B]."""
    return optax.losses.softmax_cross_entropy_with_integer_labels(logits, labels)


def train_step(
    network: Network, config: TrainConfig, key: jax.Array, train: DeviceData, state: TrainState, ids: jax.Array
) -> TrainState:
    """One optimizer step on the examples `ids` [B]; its metrics are those of the batch before the update."""
    key = jax.random.fold_in(key, state.step + 1)
    images = train.batch(data.augment(key, train.images, ids) if config.augment else train.images[ids])
    labels = train.labels[ids]

    def loss(params):
        logits, batch_stats = network.apply_training({"params": params, "batch_stats": state.batch_stats}, images)
        return cross_entropy(logits, labels).mean(), (logits, batch_stats)

    (value, (logits, batch_stats)), grads = jax.value_and_grad(loss, has_aux=True)(state.params)
    updates, opt_state = optimizer(config).update(grads, state.opt_state, state.params)
    batch = trajectory.Batch(ids, labels, logits)
    gathered = trajectory.update(state.trajectory, batch, config.tdds_decay)
    params = optax.apply_updates(state.params, updates)
    sums = state.sums + jnp.stack([value, batch.correct.mean()])
    return TrainState(state.step + 1, params, batch_stats, opt_state, sums, gathered)


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


def _evaluate(network: Network, batch_size: int, variables: Variables, split: DeviceData) -> jax.Array:
    """float32 [2 + C]: mean loss and accuracy over the whole split, then the accuracy in each class (NaN where the
    split has none of it); the last batch is filled and masked."""
    count = len(split.labels)
    num_classes = jax.eval_shape(network.apply, variables, split.batch(split.images[:1])).shape[-1]

    def body(i, sums):
        index = i * batch_size + jnp.arange(batch_size)
        ids, counted = jnp.minimum(index, count - 1), index < count
        logits, labels = network.apply(variables, split.batch(split.images[ids])), split.labels[ids]
        correct = logits.argmax(-1) == labels
        values = jnp.stack([cross_entropy(logits, labels), correct])
        per_class = jax.nn.one_hot(labels, num_classes, axis=0) * correct
        return sums + jnp.where(counted, jnp.concatenate([values, per_class]), 0).sum(1)

    sums = jax.lax.fori_loop(0, -(-count // batch_size), body, jnp.zeros(2 + num_classes))
    sizes = jnp.bincount(split.labels, length=num_classes)
    return sums / jnp.concatenate([jnp.full(2, count), sizes])


def fit(
    network: Network,
    train: DeviceData,
    test: DeviceData,
    kept: np.ndarray,
    config: TrainConfig,
    state: TrainState,
    progress: Callable[[int], Any] = lambda steps: None,
    stopping: Callable[[], bool] = lambda: False,
    earlier: Mapping[str, float] = MappingProxyType({}),
) -> Iterator[Report]:
    """Train one run; `fit_runs` and `Entrant` say how.

    Raises:
        Diverged: the loss is no longer finite (with the steps between which it happened).
    """
    for _, report in fit_runs(network, train, test, [Entrant(config, kept, state, earlier)], progress, stopping):
        if report.error:
            raise report.error
        yield report


def fit_runs(
    network: Network,
    train: DeviceData,
    test: DeviceData,
    entrants: Sequence[Entrant],
    progress: Callable[[int], Any] = lambda steps: None,
    stopping: Callable[[], bool] = lambda: False,
) -> Iterator[tuple[int, Report]]:
    """Train runs at the same time, from their states to num_steps. None of them depends on the others.

    On a CPU all run the program of a single run, as many at once as there are cores, and end with the bytes of runs
    trained alone. Elsewhere one program takes a step of all of them (vmap), which adds in another order: equal to
    rounding. `gains_together` tells where this is faster.

    Args:
        network: What is trained.
        train, test: The full splits; train's labels are the ones trained on.
        entrants: The runs: all at the same step, with equally many examples, alike in all options but seeds.
        progress: Called with the number of steps just done.
        stopping: Asked after every chunk of steps; where it says yes, a last report of each run that is to be
            saved comes at once and training ends.
    Yields:
        Position of a run, and its report, at each logging and checkpoint step, and at step 0 when beginning there.
        A run whose loss is no longer finite has an `error` in its last report, and the others go on.
    """
    config, began = entrants[0].config, int(entrants[0].state.step)
    clocks = [Clock(run.earlier) for run in entrants]
    batch_size = min(config.train_batch_size, len(entrants[0].kept))
    keys = tuple(jax.random.key(run.config.train_seed) for run in entrants)
    states = tuple(run.state for run in entrants)
    ids = np.zeros((len(entrants), CHUNK_STEPS, batch_size), np.int32)
    advance, evaluate = _programs(clocks, network, config, (keys, train, states, ids), test)
    members = [_member(run.kept, len(train.labels)) for run in entrants]
    saves, logs = frozenset(saved_steps(config)), frozenset(logged_steps(config))

    def reports(step: int, metrics: Mapping[int, dict[str, float] | Diverged], save: bool):
        for run in sorted(alive):
            found = metrics.get(run, {})
            error = found if isinstance(found, Diverged) else None
            told = {} if isinstance(found, Diverged) else found
            yield run, Report(step, states[run], told, save and error is None, clocks[run].elapsed(), error)

    step, training, alive = began, 0.0, set(range(len(entrants)))
    if step == 0:
        yield from reports(0, {}, True)
    for stop in sorted(t for t in saves | logs if t > began):
        while step < stop and not (step > began and stopping()):
            pace = training / max(1, step - began)
            count = min(stop - step, CHUNK_STEPS, max(1, int(CHUNK_SECONDS / max(pace, 1e-9))))
            for rows, run in zip(ids, entrants):
                rows[:count] = data.batch_ids(run.kept, batch_size, run.config.train_seed, step + 1, count)
            start = time.perf_counter()
            states = timed(clocks, "train", advance, states, ids, np.int32(count))
            training += time.perf_counter() - start
            step += count
            progress(count)
        if step < stop:
            yield from reports(step, {}, True)
            return
        metrics: dict[int, dict[str, float] | Diverged] = {}
        for run in alive if stop in logs else ():
            clock = clocks[run]
            test_values = timed([clock], "eval", evaluate, states[run].variables, test)
            try:
                metrics[run] = _metrics(config, states[run], test_values, members[run])
                metrics[run] |= clock.metrics(step, batch_size)
            except Diverged as error:
                metrics[run] = error
        if stop in logs:
            states = tuple(state._replace(sums=jnp.zeros(2)) for state in states)
        yield from reports(step, metrics, stop in saves)
        alive -= {run for run, found in metrics.items() if isinstance(found, Diverged)}
        if not alive:
            return


def _member(kept: np.ndarray, count: int) -> np.ndarray:
    """bool [N]: trained on."""
    member = np.zeros(count, bool)
    member[kept] = True
    return member


def _programs(clocks: Sequence[Clock], network: Network, config: TrainConfig, inputs: tuple, test: DeviceData):
    """The compiled loop over a chunk of steps of all runs, (states, ids, count) -> states, and the evaluation of one.

    Args:
        inputs: keys, train, states and ids, as `_run_chunks` takes them.
    """
    static = (network, replace(TrainConfig(), **{name: getattr(config, name) for name in PROGRAM_FIELDS}))
    keys, train, states, ids = inputs
    eval_static = (network, min(config.test_batch_size, len(test.labels)))
    evaluate = compiled(clocks, _evaluate, eval_static, (states[0].variables, test))
    if len(states) > 1 and not on_cpu():
        chunks = compiled(clocks, _run_chunks, static, (*inputs, np.int32(0)), donate=(2,))
        return lambda states, ids, count: chunks(keys, train, states, ids, count), evaluate
    chunk = compiled(clocks, _run_chunk, static, (keys[0], train, states[0], ids[0], np.int32(0)), donate=(2,))

    def advance(states: tuple[TrainState, ...], ids: np.ndarray, count: np.integer) -> tuple[TrainState, ...]:
        def one(run: int) -> TrainState:
            return jax.block_until_ready(chunk(keys[run], train, states[run], ids[run], count))

        if len(states) == 1:
            return (one(0),)
        with ThreadPoolExecutor(min(len(states), os.cpu_count() or 1)) as pool:
            return tuple(pool.map(one, range(len(states))))

    return advance, evaluate


def _metrics(config: TrainConfig, state: TrainState, test_values: jax.Array, member: np.ndarray) -> dict[str, float]:
    """Metrics of a report, all but the timings.

    Raises:
        Diverged: the training loss since the last report is not finite.
    """
    step = int(state.step)
    since = max(t for t in (0, *logged_steps(config)) if t < step)
    loss, accuracy = (float(total) / (step - since) for total in state.sums)
    if not np.isfinite(loss):
        raise Diverged(
            f"Training diverged: the loss was not finite between steps {since + 1} and {step}. "
            f"Try a smaller lr (it was {config.lr})."
        )
    test_loss, test_accuracy, *per_class = map(float, test_values)
    last = {class_metric(c): value for c, value in enumerate(per_class) if np.isfinite(value)}
    return {
        "train_loss": loss,
        "train_acc": accuracy,
        "test_loss": test_loss,
        "test_acc": test_accuracy,
        "lr": float(learning_rate(config, step)),
        **trajectory.summary(state.trajectory, member),
        **(last if step == config.num_steps else {}),
    }
