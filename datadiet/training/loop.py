"""Training: a generator of reports over a jitted loop of steps.

Everything that happens in a step (batch, augmentation, gradient, update, statistics) runs on
the device; the host sends ids and fetches metrics once per report.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from types import MappingProxyType
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from datadiet import hosts
from datadiet.config import FIELDS, ResolvedConfig, logged_steps, options_for, saved_steps
from datadiet.devices import Devices
from datadiet.errors import Diverged, Interrupted
from datadiet.models.conv import on_cpu
from datadiet.models.networks import Network, Variables
from datadiet.processors import processors
from datadiet.scores import trajectory
from datadiet.training.compiled import Clock, compiled, never, timed
from datadiet.training.feed import CHUNK_STEPS, Batches, Feed, Sweep
from datadiet.training.schedule import Schedule
from datadiet.training.state import DeviceData, TrainState, rate_at
from datadiet.training.step import _evaluate, _run_chunk, _run_chunks, means, nothing_found

CHUNK_SECONDS = 0.5  # a call of the device takes about so long, so that progress shows and an interrupt is heard


# The options that do not shape the compiled program, which runs share that differ in nothing else: data, seeds, which
# examples are kept, and when is reported. What is not named here does.
NOT_PROGRAM = frozenset((
    "dataset", "data_dir", "image_size", "test_fraction", "test_split", "labels", "skip_bad",
    "random_label_fraction", "random_label_seed", "test_batch_size", "run", "model_seed", "train_seed",
    "random_subset_seed", "budget", "log_steps", "save_steps", "checkpoints", "early_step", "early_save_steps",
    "selector", "size", "offset", "scores", "balance", "cutoff", "strata", "center", "neighbors", "gamma",
    "features_run", "features_step", "manifest", "like",
))  # fmt: skip


class Entrant(NamedTuple):
    """A run that is to be trained."""

    config: ResolvedConfig
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
    correct: jax.Array | None = None  # bool [M], of the test examples; None where the step is a checkpoint only

    def kept(self) -> Report:
        """The same with a copy of the state, on the host where its devices are apart."""
        return self._replace(state=jax.tree.map(_copied, self.state))


def _copied(leaf: jax.Array) -> jax.Array | np.ndarray:
    return jnp.copy(leaf) if leaf.is_fully_addressable else np.array(leaf)


def class_metric(label: int) -> str:
    """Name of the test accuracy in one class, which the last report has where the test set has that class."""
    return f"test_acc/class_{label}"


def fit(
    network: Network,
    train: DeviceData,
    test: DeviceData,
    kept: np.ndarray,
    config: ResolvedConfig,
    state: TrainState,
    progress: Callable[[int], Any] = lambda steps: None,
    stopping: Callable[[], bool] = never,
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
    stopping: Callable[[], bool] = never,
) -> Iterator[tuple[int, Report]]:
    """Train runs at the same time, from their states to num_steps. None of them depends on the others.

    On a CPU all run the program of a single run, as many at once as there are cores, and end with the bytes of runs
    trained alone. Elsewhere one program takes a step of all of them (vmap), which adds in another order: equal to
    rounding. `models.registry.gains_together` tells where this is faster. Where the splits lie on several devices
    (`placing.place`), each step is computed by all of them, to rounding as by one.

    Args:
        network: What is trained.
        train, test: The full splits, on the devices or on disk; train's labels are the ones trained on.
        entrants: The runs: all at the same step, with equally many examples, alike in all options but seeds.
        progress: Called with the number of steps just done.
        stopping: Asked after every chunk of steps; where it says yes, a last report of each run that is to be
            saved comes at once and training ends. Asked while programs are compiled too; then nothing is reported.
    Yields:
        Position of a run, and its report, at each logging and checkpoint step, and at step 0 when beginning there.
        A run whose loss is no longer finite has an `error` in its last report, and the others go on.
    """
    config, began = entrants[0].config, int(entrants[0].state.step)
    clocks = [Clock(run.earlier) for run in entrants]
    schedules = [Schedule(run.config, run.kept) for run in entrants]
    batch_size = schedules[0].batch_size
    devices = Devices.of(train.labels)
    keys = devices.put(tuple(jax.random.key(run.config.train_seed) for run in entrants))
    states = devices.put(tuple(run.state for run in entrants))
    feed = Feed(train, schedules, config.num_steps, began)
    answers: dict[int, jax.Array] = {}  # of the latest evaluation
    agreed = hosts.agree if devices.are_apart else lambda count, stopping: (count, stopping())
    try:
        leaving = never if devices.are_apart else stopping  # the others would wait for this process
        advance, evaluate = _programs(clocks, network, config, (keys, feed.like(), states), test, leaving)
    except Interrupted:
        return
    members = [_member(run.kept, len(train.labels)) for run in entrants]
    saves, logs = frozenset(saved_steps(config)), frozenset(logged_steps(config))

    def reports(step: int, metrics: Mapping[int, dict[str, float] | Diverged], save: bool):
        for run in sorted(alive):
            found = metrics.get(run, {})
            error = found if isinstance(found, Diverged) else None
            told = {} if isinstance(found, Diverged) else found
            correct = answers[run] if told else None
            yield run, Report(step, states[run], told, save and error is None, clocks[run].elapsed(), error, correct)

    def measure(run: int) -> dict[str, float] | Diverged:
        test_values, answers[run] = timed([clocks[run]], "eval", evaluate, states[run].variables)
        try:
            return _metrics(config, states[run], test_values, members[run]) | clocks[run].metrics(step, batch_size)
        except Diverged as error:
            return error

    step, training, alive = began, 0.0, set(range(len(entrants)))
    if step == 0 and 0 in saves:
        yield from reports(0, {}, True)
    for stop in sorted(t for t in saves | logs if t > began):
        while step < stop:
            pace = training / max(1, step - began)
            count = min(stop - step, CHUNK_STEPS, max(1, int(CHUNK_SECONDS / pace)) if pace else 1)
            count, stopped = agreed(count, stopping if step > began else never)
            if stopped:
                break
            states, count = _begin(schedules, devices, states, step, count)
            start = time.perf_counter()
            batches = timed(clocks, "train", feed.batches, step, count)
            states = timed(clocks, "train", advance, states, batches)
            training += time.perf_counter() - start
            step += batches.count
            progress(batches.count)
        if step < stop:
            yield from reports(step, {}, True)
            return
        metrics = {run: measure(run) for run in alive} if stop in logs else {}
        if stop in logs:
            states = tuple(state._replace(sums=devices.put(jnp.zeros(2))) for state in states)
        yield from reports(step, metrics, stop in saves)
        alive -= {run for run, found in metrics.items() if isinstance(found, Diverged)}
        if not alive:
            return


def _begin(
    schedules: Sequence[Schedule], devices: Devices, states: tuple[TrainState, ...], step: int, count: int
) -> tuple[tuple[TrainState, ...], int]:
    """The states with what their next batches are chosen by, and how many of `count` batches that is enough for."""
    begun = [schedule.begin(state.losses, step) for schedule, state in zip(schedules, states)]
    states = tuple(state._replace(losses=devices.put(losses)) for state, losses in zip(states, begun))
    return states, min(count, *(schedule.left(step) for schedule in schedules))


def _member(kept: np.ndarray, count: int) -> np.ndarray:
    """bool [N]: trained on."""
    member = np.zeros(count, bool)
    member[kept] = True
    return member


def program_config(config: ResolvedConfig) -> ResolvedConfig:
    """What of a config shapes its program: the options of NOT_PROGRAM have one value in all of them."""
    same = {name: FIELDS[name].default for name in NOT_PROGRAM}
    same |= dict.fromkeys(("log_steps", "save_steps", "early_save_steps"), config.num_steps)
    own = options_for(config, "trajectory")
    return replace(config, **same, registered=tuple(item for item in config.registered if item[0] in own))


def _programs(
    clocks: Sequence[Clock], network: Network, config: ResolvedConfig, inputs: tuple, test: DeviceData,
    stopping: Callable[[], bool],
):  # fmt: skip
    """The compiled loop over a chunk of steps of all runs, (states, batches) -> states, and the evaluation of one.

    Args:
        inputs: keys, batches and states, as they are given first.
    Raises:
        Interrupted: `stopping` said yes before they were compiled.
    """
    keys, (train, *numbers, _), states = inputs
    devices = Devices.of(train.labels)
    static = (network, program_config(config), devices)
    updates = tuple(trajectory.TRAJECTORIES[name].update for name in states[0].trajectory)
    evaluate = _evaluation(clocks, network, config.test_batch_size, states[0].variables, test, stopping)
    if len(states) > 1 and not on_cpu():
        given = (keys, train, states, *map(devices.like, (*numbers, np.int32(0))))
        chunks = compiled(clocks, _run_chunks, static, given, (2,), updates, stopping)
        return lambda states, at: chunks(keys, at.split, states, *at[1:4], np.int32(at.count)), evaluate
    given = (keys[0], train, states[0], *(devices.like(each[0]) for each in numbers), devices.like(np.int32(0)))
    chunk = compiled(clocks, _run_chunk, static, given, (2,), updates, stopping)

    def advance(states: tuple[TrainState, ...], at: Batches) -> tuple[TrainState, ...]:
        def one(run: int) -> TrainState:
            given = (keys[run], at.split, states[run], at.ids[run], at.rows[run], at.epochs[run], np.int32(at.count))
            return jax.block_until_ready(chunk(*given))

        if len(states) == 1:
            return (one(0),)
        at_once = 1 if devices.count > 1 else len(processors())  # all devices work on one program
        with ThreadPoolExecutor(min(len(states), at_once)) as pool:
            return tuple(pool.map(one, range(len(states))))

    return advance, evaluate


def _evaluation(
    clocks: Sequence[Clock], network: Network, batch_size: int, variables: Variables, test: DeviceData,
    stopping: Callable[[], bool],
) -> Callable[[Variables], tuple[np.ndarray, jax.Array]]:  # fmt: skip
    """Compiled: variables -> `means` of the test set, and whether each example is classified rightly, bool [M].

    Raises:
        Interrupted: `stopping` said yes before it was compiled.
    """
    size, devices = min(batch_size, len(test.labels)), Devices.of(test.labels)
    sweep, nothing = Sweep(test, size), devices.put(nothing_found(network, len(test.labels)))
    given = (variables, sweep.like(), devices.like(np.int32(0)), nothing)
    program = compiled(clocks, _evaluate, (network, size, devices), given, stopping=stopping)

    def evaluate(variables: Variables) -> tuple[np.ndarray, jax.Array]:
        found = nothing
        for first, part in sweep.parts():
            found = program(variables, part, first, found)
        return means(found[0], test.labels), found[1]

    return evaluate


def _metrics(
    config: ResolvedConfig, state: TrainState, test_values: np.ndarray, member: np.ndarray
) -> dict[str, float]:
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
        "lr": rate_at(program_config(config), step),
        **trajectory.summary(state.trajectory, member),
        **(last if step == config.num_steps else {}),
    }
