"""Training: a generator of reports over a jitted loop of steps.

Everything that happens in a step (batch, augmentation, gradient, update, statistics) runs on
the device; the host sends ids and fetches metrics once per report.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from functools import lru_cache, partial
from types import MappingProxyType
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from datadiet import data, trajectory
from datadiet.config import Diverged, TrainConfig, logged_steps, saved_steps
from datadiet.data import Dataset
from datadiet.models import Network, Variables

CHUNK_STEPS = 128  # at most so many steps per call of the device
CHUNK_SECONDS = 0.5  # and about so long, so that progress shows and an interrupt is heard

# The options that shape the compiled program; all others are data or bookkeeping.
PROGRAM_FIELDS = (
    "num_steps", "lr", "beta", "nesterov", "weight_decay", "decay_factor", "decay_steps", "lr_vitaly", "augment",
    "tdds_decay",
)  # fmt: skip


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


class Report(NamedTuple):
    """What `fit` yields. The state's buffers are reused: take what you need before the next report."""

    step: int
    state: TrainState
    metrics: dict[str, float]  # empty where the step is a checkpoint only
    save: bool  # whether a checkpoint was asked for at this step
    seconds: dict[str, float]  # spent so far, by name; see Clock


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


@lru_cache(maxsize=8)
def _compiled(function: Callable, static: tuple, shapes: Any, donate: tuple[int, ...]) -> Callable:
    leaves, treedef = shapes
    arguments = jax.tree.unflatten(treedef, leaves)
    return jax.jit(partial(function, *static), donate_argnums=donate).lower(*arguments).compile()


class Clock:
    """Seconds spent, by name: train, eval, compile and total.

    Args:
        earlier: What `elapsed` said where the work is continued.
    """

    def __init__(self, earlier: Mapping[str, float] = MappingProxyType({})) -> None:
        self.begin = time.perf_counter() - earlier.get("total", 0.0)
        self.seconds = {name: earlier.get(name, 0.0) for name in ("train", "eval", "compile")}

    def elapsed(self) -> dict[str, float]:
        """Seconds so far."""
        return {**self.seconds, "total": time.perf_counter() - self.begin}

    def timed(self, name: str, call: Callable, *arguments: Any) -> Any:
        start = time.perf_counter()
        result = jax.block_until_ready(call(*arguments))
        self.seconds[name] += time.perf_counter() - start
        return result

    def metrics(self, steps: int, batch_size: int) -> dict[str, float]:
        """Seconds so far, and the mean rate of training."""
        spent = {f"time/{name}_seconds": value for name, value in self.elapsed().items()}
        return spent | {"examples_per_second": steps * batch_size / max(self.seconds["train"], 1e-9)}


def _program(clock: Clock, function: Callable, static: tuple, arguments: tuple, donate: tuple[int, ...] = ()):
    """A compiled function, from memory where a run before has compiled it; compiling is timed apart."""
    shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(jnp.shape(x), jnp.asarray(x).dtype), arguments)
    leaves, treedef = jax.tree.flatten(shapes)
    start = time.perf_counter()
    program = _compiled(function, static, (tuple(leaves), treedef), donate)
    clock.seconds["compile"] += time.perf_counter() - start
    return program


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
    """Train from `state` to num_steps.

    Args:
        network: What is trained.
        train, test: The full splits; train's labels are the ones trained on.
        kept: ids of the training examples, int32 [M].
        config: Resolved options.
        state: Where to begin: `initial_state`, or one restored. Consumed.
        progress: Called with the number of steps just done.
        stopping: Asked after every chunk of steps; where it says yes, a last report that is to be
            saved comes at once and training ends.
        earlier: Seconds spent before `state`, as in `Report.seconds`.
    Yields:
        A report at each logging and checkpoint step, and at step 0 when beginning there.
    Raises:
        Diverged: the loss is no longer finite (with the steps between which it happened).
    """
    clock, began = Clock(earlier), int(state.step)
    key = jax.random.key(config.train_seed)
    batch_size = min(config.train_batch_size, len(kept))
    ids = np.zeros((CHUNK_STEPS, batch_size), np.int32)
    run_chunk, evaluate = _programs(clock, network, config, (key, train, state, ids), test)
    member = np.zeros(len(train.labels), bool)
    member[kept] = True
    saves, logs = frozenset(saved_steps(config)), frozenset(logged_steps(config))

    step, spent = began, clock.seconds["train"]
    if step == 0:
        yield Report(0, state, {}, True, clock.elapsed())
    for stop in sorted(t for t in saves | logs if t > began):
        while step < stop and not (step > began and stopping()):
            pace = (clock.seconds["train"] - spent) / max(1, step - began)
            count = min(stop - step, CHUNK_STEPS, max(1, int(CHUNK_SECONDS / max(pace, 1e-9))))
            ids[:count] = data.batch_ids(kept, batch_size, config.train_seed, step + 1, count)
            state = clock.timed("train", run_chunk, key, train, state, ids, np.int32(count))
            step += count
            progress(count)
        if step < stop:
            yield Report(step, state, {}, True, clock.elapsed())
            return
        metrics: dict[str, float] = {}
        if stop in logs:
            test_values = clock.timed("eval", evaluate, state.variables, test)
            metrics = _metrics(config, state, test_values, member) | clock.metrics(step, batch_size)
            state = state._replace(sums=jnp.zeros(2))
        yield Report(step, state, metrics, stop in saves, clock.elapsed())


def _programs(clock: Clock, network: Network, config: TrainConfig, inputs: tuple, test: DeviceData):
    """The compiled loop over a chunk of steps, and the compiled evaluation.

    Args:
        inputs: key, train, state and ids, as `_run_chunk` takes them.
    """
    static = (network, replace(TrainConfig(), **{name: getattr(config, name) for name in PROGRAM_FIELDS}))
    run_chunk = _program(clock, _run_chunk, static, (*inputs, np.int32(0)), donate=(2,))
    eval_static = (network, min(config.test_batch_size, len(test.labels)))
    return run_chunk, _program(clock, _evaluate, eval_static, (inputs[2].variables, test))


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
