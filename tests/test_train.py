"""Training does what the original does, from a batch order that is a function of the step."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, fields, replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import oracles
import oracles_trajectory
import pytest
from conftest import GOLDEN

from datadiet.config import FIELDS, TrainConfig, resolve
from datadiet.data.batches import fit_images
from datadiet.data.registry import load_dataset
from datadiet.devices import ONE
from datadiet.errors import UserError
from datadiet.models.networks import Network
from datadiet.models.registry import build_model, input_shape
from datadiet.scores.trajectory import TRAJECTORIES
from datadiet.train_config import ResolvedConfig
from datadiet.training.compiled import Clock, _compiled, never
from datadiet.training.feed import Feed
from datadiet.training.loop import NOT_PROGRAM, _evaluation, fit
from datadiet.training.schedule import Schedule
from datadiet.training.state import initial_state, learning_rate, on_device, optimizer
from datadiet.training.step import _run_chunk, train_step


@pytest.fixture(scope="module")
def digits():
    return load_dataset("digits")


def setup(dataset, **given):
    given = {"dataset": "digits", "model": "mlp", "width": 16, "num_steps": 30, "augment": False} | given
    config = resolve(TrainConfig(**given), dataset.num_examples)
    dataset = fit_images(dataset, input_shape(config.model, dataset.image_shape))
    network = build_model(config.model, dataset.num_classes, dataset.image_shape, config.width)
    state = initial_state(network, config, dataset.num_examples)
    splits = on_device(dataset, "train"), on_device(dataset, "test")
    return network, *splits, config, state


def run(dataset, kept=None, **given):
    """All reports, states copied to the host."""
    network, train_split, test_split, config, state = setup(dataset, **given)
    kept = np.arange(dataset.num_examples, dtype=np.int32) if kept is None else kept
    reports = fit(network, train_split, test_split, kept, config, state)
    return [r._replace(state=jax.device_get(r.state)) for r in reports]


def equal(one, other):
    jax.tree.map(np.testing.assert_array_equal, one, other)


def test_golden_learning_rates():
    golden = json.loads((GOLDEN / "lr_schedule.json").read_text())
    decay = resolve(TrainConfig(), 50_000)
    vitaly = resolve(TrainConfig(num_steps=31_200, lr_vitaly=True), 50_000)
    for config, name in ((decay, "step_decay"), (vitaly, "lr_vitaly")):
        for step, expected in golden[name].items():
            assert float(learning_rate(config, int(step))) == pytest.approx(expected, rel=1e-5, abs=1e-9), step


@pytest.mark.parametrize("nesterov", [True, False])
def test_the_optimizer_is_sgd_with_coupled_weight_decay(nesterov):
    config = resolve(TrainConfig(num_steps=6, decay_steps=(2, 4), nesterov=nesterov, weight_decay=0.01), 1000)
    random = np.random.RandomState(0)
    params, grads = random.normal(size=5), random.normal(size=(6, 5))
    expected = oracles.sgd(params, grads, [0.1, 0.1, 0.02, 0.02, 0.004, 0.004], 0.9, 0.01, nesterov)
    tx, current = optimizer(config), jnp.asarray(params, jnp.float32)
    state = tx.init(current)
    for gradient, wanted in zip(grads, expected):
        updates, state = tx.update(jnp.asarray(gradient, jnp.float32), state, current)
        current = current + updates
        np.testing.assert_allclose(current, wanted, rtol=1e-4, atol=1e-6)


def test_a_run_repeats_itself_and_learns(digits):
    one, other = run(digits, num_steps=55), run(digits, num_steps=55)
    equal(one[-1].state, other[-1].state)
    assert one[-1].metrics["test_acc"] > 0.9
    losses = [r.metrics["train_loss"] for r in one if r.metrics]
    assert losses[-1] < losses[0]


def test_how_often_is_reported_and_saved_changes_nothing(digits):
    rare = run(digits, num_steps=30, log_steps=30, save_steps=30)
    often = run(digits, num_steps=30, log_steps=4, save_steps=7, early_step=3, early_save_steps=1)
    equal(rare[-1].state._replace(sums=0), often[-1].state._replace(sums=0))
    assert [r.step for r in often if r.save] == [0, 1, 2, 3, 7, 14, 21, 28, 30]
    assert [r.step for r in often if r.metrics] == [4, 8, 12, 16, 20, 24, 28, 30]


def test_a_run_continued_from_the_middle_ends_the_same(digits):
    """Also in the middle between two reports: the sums of the metrics are part of the state."""
    given = {"num_steps": 30, "save_steps": 10, "log_steps": 15, "trajectory": tuple(TRAJECTORIES)}
    whole = run(digits, **given)
    network, train_split, test_split, config, _ = setup(digits, **given)
    middle = jax.tree.map(jnp.array, next(r.state for r in whole if r.step == 10))
    kept = np.arange(digits.num_examples, dtype=np.int32)
    rest = list(fit(network, train_split, test_split, kept, config, middle))
    assert [r.step for r in rest] == [15, 20, 30]
    equal(whole[-1].state, jax.device_get(rest[-1].state))
    for one, other in zip(whole[-3:], rest):
        timeless = [{k: v for k, v in r.metrics.items() if "second" not in k} for r in (one, other)]
        assert timeless[0] == timeless[1]


@pytest.mark.parametrize(("batch_size", "kept"), [(128, 1438), (8, 30)])
def test_the_compiled_loop_agrees_with_single_steps(digits, batch_size, kept):
    """Also where a call takes fewer examples than there are, each of them several times."""
    everything = np.arange(kept, dtype=np.int32)
    given = {"num_steps": 12, "augment": True, "train_batch_size": batch_size, "trajectory": tuple(TRAJECTORIES)}
    *_, looped = run(digits, everything, **given)
    network, train_split, _, config, state = setup(digits, **given)
    step = jax.jit(train_step, static_argnums=(0, 1))
    for ids in oracles.batch_ids(everything, batch_size, config.train_seed, 1, 12):
        state = step(network, config, jax.random.key(config.train_seed), train_split, state, ids)
    alike = (looped.state._replace(sums=0), state._replace(sums=0))
    for one, other in zip(*map(jax.tree.leaves, alike)):
        np.testing.assert_allclose(one, other, rtol=1e-3, atol=1e-5)


def test_training_on_a_subset_touches_only_the_subset(digits):
    kept = np.arange(100, 400, dtype=np.int32)
    *_, last = run(digits, kept, num_steps=30)
    presented = np.flatnonzero(last.state.trajectory["forget"].presentations)
    assert set(presented) <= set(kept.tolist())
    assert last.state.trajectory["forget"].presentations.sum() == 30 * 128


def test_a_subset_smaller_than_a_batch_is_one_batch(digits):
    kept = np.array([3, 5, 8], np.int32)
    *_, last = run(digits, kept, num_steps=9)
    assert last.state.trajectory["forget"].presentations[kept].tolist() == [9, 9, 9]
    assert last.step == 9


def test_statistics_of_training_equal_the_history(digits):
    """Replay the batches one by one and gather the same statistics by their definitions."""
    given = {"num_steps": 60, "trajectory": tuple(TRAJECTORIES), "trajectory_window": 4}
    network, train_split, _, config, state = setup(digits, **given)
    kept = np.arange(100, 500, dtype=np.int32)
    ids = oracles.batch_ids(kept, 128, config.train_seed, 1, 60)
    history, step = [], jax.jit(train_step, static_argnums=(0, 1))
    logits = jax.jit(lambda variables, row: network.apply(variables, train_split.batch(train_split.images[row])))
    for row in ids:
        history.append(np.asarray(logits(state.variables, row)))
        state = step(network, config, jax.random.key(config.train_seed), train_split, state, row)
    *_, last = run(digits, kept, **given)
    member = np.isin(np.arange(digits.num_examples), kept)
    for name, stats in last.state.trajectory.items():
        found = TRAJECTORIES[name].values(stats, member)
        expected = oracles_trajectory.values(name, ids, history, digits.train_labels, 4, config.tdds_decay)
        different = ~np.isclose(found, expected, rtol=1e-2, atol=1e-3, equal_nan=True)
        assert different.sum() <= 2, f"{name}: beyond rounding at a decision boundary"


@pytest.mark.parametrize("batch_size", [1, 100, 359, 1000])
def test_evaluation_counts_every_example_once(digits, batch_size):
    network, _, test_split, config, state = setup(digits, test_batch_size=batch_size)
    network_logits = network.apply(state.variables, test_split.batch(test_split.images))
    expected = float((network_logits.argmax(-1) == test_split.labels).mean())
    values, answers = _evaluation([Clock()], network, batch_size, state.variables, test_split, never)(state.variables)
    _, accuracy, *per_class = map(float, values)
    assert accuracy == pytest.approx(expected, abs=1e-6)
    correct, labels = np.asarray(network_logits.argmax(-1) == test_split.labels), np.asarray(test_split.labels)
    np.testing.assert_array_equal(answers, correct)
    assert per_class == pytest.approx([correct[labels == c].mean() for c in range(10)], abs=1e-6)
    assert config.test_batch_size == batch_size


def test_the_last_report_has_the_accuracy_of_every_class_that_is_tested(digits):
    few = replace(digits, test_images=digits.test_images[:2], test_labels=np.array([3, 8], np.int32))
    first, last = (r.metrics for r in run(few, num_steps=2, log_steps=1) if r.metrics)
    assert not [key for key in first if key.startswith("test_acc/")]
    tested = {key: value for key, value in last.items() if key.startswith("test_acc/")}
    assert tested.keys() == {"test_acc/class_3", "test_acc/class_8"}
    assert sum(tested.values()) / 2 == pytest.approx(last["test_acc"])


def test_seeds_change_what_they_say(digits):
    base = run(digits, num_steps=3)
    assert not np.array_equal(
        *(jax.tree.leaves(r[0].state.params)[1] for r in (base, run(digits, num_steps=3, model_seed=1)))
    )
    other_order = run(digits, num_steps=3, train_seed=1)
    equal(base[0].state.params, other_order[0].state.params)
    one, other = (reports[-1].state.trajectory["forget"].presentations for reports in (base, other_order))
    assert not np.array_equal(one, other)


def test_labels_given_are_the_labels_trained_on(digits):
    network, _, test_split, config, state = setup(digits, num_steps=60)
    noisy = (digits.train_labels + 1) % 10
    kept = np.arange(digits.num_examples, dtype=np.int32)
    *_, last = fit(network, on_device(digits, "train", noisy), test_split, kept, config, state)
    assert last.metrics["train_acc"] > 0.5
    assert last.metrics["test_acc"] < 0.1


def test_divergence_stops_with_the_steps(digits):
    with pytest.raises(
        UserError, match=r"diverged: the loss was not finite between steps 1 and 11.*lr \(it was 1e\+20\)"
    ):
        run(digits, lr=1e20)


def test_convolutions_with_batch_norm_train(digits):
    network, *splits, config, state = setup(digits, model="resnet18_lowres", width=4, num_steps=3, augment=True)
    network = Network(network.module.clone(stages=(1, 1)), network.image_shape)  # more blocks only take longer
    state = initial_state(network, config, digits.num_examples)
    *_, last = fit(network, *splits, np.arange(16, dtype=np.int32), config, state)
    assert last.step == 3
    assert np.abs(last.state.batch_stats["bn_init"]["mean"]).max() > 0


def test_programs_are_shared_between_runs_of_a_study(digits):
    run(digits, num_steps=5, run=0)
    before = _compiled.cache_info().misses
    again = run(digits, num_steps=5, run=1)
    kept = np.arange(300, dtype=np.int32)
    run(digits, kept, num_steps=5, run=2, selector="random", size=300, random_label_seed=3, log_steps=2, save_steps=5)
    assert _compiled.cache_info().misses == before
    assert again[-1].metrics["time/compile_seconds"] < 0.2


@dataclass(frozen=True, kw_only=True)
class Scaled(ResolvedConfig):
    """With an option that somebody adds."""

    scale: float = 1.0


def test_an_option_that_is_added_takes_effect(digits, monkeypatch):
    """In the second training of a process too: the program of the first is not taken for it."""

    def scaled_step(network, config, *arguments):
        done = train_step(network, config, *arguments)
        return done._replace(params=jax.tree.map(lambda leaf: config.scale * leaf, done.params))

    monkeypatch.setattr("datadiet.training.step.train_step", scaled_step)
    found = []
    for scale in (1.0, 0.5):
        network, *splits, config, state = setup(digits, num_steps=3)
        config = Scaled(**{f.name: getattr(config, f.name) for f in fields(config)}, scale=scale)
        *_, last = fit(network, *splits, np.arange(200, dtype=np.int32), config, state)
        found.append(jax.tree.leaves(jax.device_get(last.state.params))[1])
    assert np.abs(found[1]).mean() < 0.3 * np.abs(found[0]).mean()


def test_what_does_not_shape_the_program_is_not_looked_at_by_it(digits):
    assert set(FIELDS) > NOT_PROGRAM, "each names an option"
    seen = set()

    class Watched(ResolvedConfig):
        def __getattribute__(self, name):
            seen.add(name)
            return super().__getattribute__(name)

    network, train_split, _, config, state = setup(digits, num_steps=3, trajectory=tuple(TRAJECTORIES))
    config = Watched(**{f.name: getattr(config, f.name) for f in fields(config)})
    seen.clear()
    for vitaly in (True, False):
        watched = replace(config, lr_vitaly=vitaly)
        seen.clear()
        jax.eval_shape(partial(train_step, network, watched), jax.random.key(0), train_split, state, np.arange(8))
        assert "lr" in seen
        assert not seen & NOT_PROGRAM


def test_no_step_touches_all_examples(digits, as_users_have):
    """The program's loop carries no array of N statistics or labels that XLA could copy, or share among threads."""
    network, train, _, config, state = setup(digits, train_batch_size=8, trajectory=tuple(TRAJECTORIES))
    _, ids, rows, epochs, _ = Feed(train, [Schedule(config, np.arange(1438, dtype=np.int32))], 30).like()
    given = (jax.random.key(0), train, state, ids[0], rows[0], epochs[0], np.int32(3))
    program = jax.jit(partial(_run_chunk, network, config, ONE), donate_argnums=2).lower(*given).compile()
    loops = [line.split("condition=")[0] for line in program.as_text().splitlines() if " while(" in line]
    carried = {shape for loop in loops for shape in re.findall(r"\w+\[1438\b[^]]*\]", loop)}
    assert any("u8[1438,8,8,1]" in loop for loop in loops), "the images alone, which are read where they lie"
    assert carried == {"u8[1438,8,8,1]"}
