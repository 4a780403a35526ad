"""Examples chosen anew in each epoch: by the rules of the papers, resumable, and the same however training is cut."""

from __future__ import annotations

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import oracles
import oracles_selection
import pytest
from conftest import QUICK, datadiet
from test_resume import content, stop_at
from test_train import equal, run, setup

import datadiet as dd
from datadiet.config import with_values
from datadiet.data.registry import load_dataset
from datadiet.errors import UserError
from datadiet.selectors.epochs import Epoch, infobatch_weights
from datadiet.selectors.selection import SELECTORS, parameters_of
from datadiet.storage.files import read_json
from datadiet.training.loop import Entrant, fit_runs
from datadiet.training.schedule import Schedule
from datadiet.training.step import cross_entropy, train_step

ANEW = [name for name, selector in SELECTORS.items() if selector.epochs]
N, SIZE = 1438, 500  # of digits
MANNERS = [("rs2", {}), ("rs2", {"replacement": True}), ("infobatch", {}), ("infobatch", {"full_from": 0.4})]


@pytest.fixture(scope="module")
def digits():
    return load_dataset("digits")


def given(name: str, options: dict, **more) -> dict:
    return {"selector": name, "size": SIZE, "registered": tuple(sorted(options.items())), "num_steps": 40} | more


def epoch_of(name: str, number: int, count: int, size: int, weights=None, batch_size: int = 8, **options) -> list[int]:
    choice = SELECTORS[name].epochs
    assert choice is not None
    told = Epoch(number, 7, count, size, batch_size, parameters_of(name, options), weights)
    return choice.order(told).tolist()


# --- the rules --------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "options"), MANNERS)
@pytest.mark.parametrize(("count", "size"), [(60, 20), (60, 17), (60, 40), (60, 60)])
def test_epochs_are_those_of_the_papers(name, options, count, size):
    losses, keep, parameters = np.random.RandomState(1).gamma(1, 1, count), size / count, parameters_of(name, options)
    choice = SELECTORS[name].epochs
    assert choice is not None
    for number in range(9):
        weights, done = np.ones(count, np.float32), number / 9
        if choice.weigh:
            weights = choice.weigh(losses, keep, done, parameters)
        found = epoch_of(name, number, count, size, weights, **options)
        kept, weight = oracles_selection.EPOCHS[name](number, size, count, 7, losses, keep, done, parameters)
        assert (sorted(found), len(set(found))) == (kept, len(found))
        np.testing.assert_allclose(weights, weight, rtol=1e-6)
        assert sorted(found) != found, "in the order of the file"


def test_without_replacement_an_example_comes_once_in_a_round_and_with_it_as_chance_has_it():
    for start in range(0, 12, 3):
        seen = [i for number in range(start, start + 3) for i in epoch_of("rs2", number, 60, 20)]
        assert sorted(seen) == list(range(60))
    drawn = [i for number in range(300) for i in epoch_of("rs2", number, 60, 20, replacement=True)]
    counts = np.bincount(drawn, minlength=60)
    assert abs(counts - 100).max() < 5 * np.sqrt(300 / 3 * 2 / 3)
    assert counts.min() < counts.max()


def test_what_is_left_out_is_made_up_for_by_the_weights():
    """The mean over draws of any weighted sum is the sum over all, and easy examples are left out with chance r."""
    random = np.random.RandomState(2)
    losses, gradients = random.gamma(1, 1, 300), random.normal(size=300)
    weights = infobatch_weights(losses, 0.3, 0.5, parameters_of("infobatch", {}))
    easy = losses < losses.mean()
    kept = [epoch_of("infobatch", number, 300, 90, weights) for number in range(2000)]
    shares = np.bincount(np.concatenate(kept), minlength=300) / 2000
    assert (shares[~easy] == 1).all()
    assert abs(shares[easy] - 0.3).max() < 5 * np.sqrt(0.3 * 0.7 / 2000)
    sums = [(weights[ids] * gradients[ids]).sum() for ids in kept]
    assert abs(np.mean(sums) - gradients.sum()) < 4 * np.std(sums) / np.sqrt(2000)


def test_first_and_last_epochs_leave_nothing_out():
    parameters = parameters_of("infobatch", {})
    assert (infobatch_weights(np.ones(9, np.float32), 0.5, 0.0, parameters) == 1).all()
    losses = np.arange(9, dtype=np.float32)
    assert (infobatch_weights(losses, 0.5, 0.874, parameters) > 1).sum() == 4
    assert (infobatch_weights(losses, 0.5, 0.875, parameters) == 1).all()
    assert (infobatch_weights(np.full(9, np.nan, np.float32), 0.5, 0.1, parameters) == 1).all()


def test_an_epoch_has_at_least_one_batch():
    weights = np.full(100, 100, np.float32)
    assert len(epoch_of("infobatch", 3, 100, 1, weights)) == 8
    draws = np.random.RandomState([7, 3, 1]).random_sample(100)
    assert set(np.argsort(draws)[:8]) == set(epoch_of("infobatch", 3, 100, 1, weights))


def test_the_order_of_the_examples_does_not_change_which_are_easy():
    losses, place = (
        np.random.RandomState(3).gamma(1, 1, 50).astype(np.float32),
        np.random.RandomState(4).permutation(50),
    )
    parameters = parameters_of("infobatch", {})
    weights = infobatch_weights(losses, 0.5, 0.1, parameters)
    np.testing.assert_array_equal(infobatch_weights(losses[place], 0.5, 0.1, parameters), weights[place])


@pytest.mark.parametrize(("name", "options"), MANNERS)
def test_the_size_of_a_batch_does_not_change_what_an_epoch_takes(name, options, digits):
    found = []
    for batch_size in (1, 50, 128):
        _, _, _, config, state = setup(digits, **given(name, options, train_batch_size=batch_size))
        schedule, losses = Schedule(config, np.arange(N, dtype=np.int32)), state.losses
        assert schedule.begin(losses, 0) is losses
        count = SIZE if name == "rs2" else N
        found.append(schedule.ids(0, count // batch_size).ravel().tolist())
    for ids in found[1:]:
        assert ids == found[0][: len(ids)]


# --- training ---------------------------------------------------------------------------------


def test_a_run_that_takes_all_in_each_epoch_is_one_on_all_of_the_data(digits):
    plain = run(digits, num_steps=25)
    for name in ANEW:
        anew = run(digits, selector=name, size=N, num_steps=25)
        alike = plain[-1].state, anew[-1].state._replace(losses=None)
        if name == "rs2":
            equal(*alike)
        for one, other in zip(*map(jax.tree.leaves, alike)):
            np.testing.assert_allclose(one, other, rtol=1e-3, atol=1e-5)


def test_rs2_trains_on_the_epochs_of_its_rule(digits):
    *_, last = run(digits, **given("rs2", {}, train_batch_size=100, num_steps=10))
    counts, parameters = np.zeros(N, int), parameters_of("rs2", {})
    for number in range(2):
        kept, _ = oracles_selection.EPOCHS["rs2"](number, SIZE, N, last_seed(digits), None, None, None, parameters)
        counts[kept] += 1
    np.testing.assert_array_equal(last.state.trajectory["forget"].presentations, counts)


def last_seed(digits) -> int:
    return setup(digits)[3].train_seed


def test_infobatch_trains_as_its_rule_says(digits):
    """Replayed one batch at a time: losses are noted before each update, epochs chosen by the oracle."""
    options = given("infobatch", {}, num_steps=36, train_batch_size=100)
    network, train, _, config, state = setup(digits, **options)
    plain = replace(config, selector="all", size=None, registered=())
    assert state.losses is not None
    losses, step, number, parameters = np.ones(N, np.float32), 0, 0, parameters_of("infobatch", {})
    advance = jax.jit(train_step, static_argnums=(0, 1))

    @jax.jit
    def forward(variables, row):
        return cross_entropy(network.apply_training(variables, train.batch(train.images[row]))[0], train.labels[row])

    presented, left_out = np.zeros(N, int), []
    while step < 36:
        keep = SIZE / N
        kept, weights = oracles_selection.EPOCHS["infobatch"](
            number, SIZE, N, config.train_seed, losses, keep, step / 36, parameters
        )
        left_out.append(N - len(kept))
        order = np.array(kept)[np.random.RandomState([config.train_seed, number]).permutation(len(kept))]
        for row in order[: len(order) // 100 * 100].reshape(-1, 100)[: 36 - step]:
            losses[row] = forward(state.variables, row)
            presented[row] += 1
            carried = state.losses._replace(weights=jnp.array(weights, jnp.float32))
            state = advance(
                network, plain, jax.random.key(config.train_seed), train, state._replace(losses=carried), row
            )
            step += 1
        number += 1
    assert left_out[0] == 0
    assert min(left_out[1:3]) > 0.2 * N
    *_, last = run(digits, **options)
    np.testing.assert_array_equal(last.state.trajectory["forget"].presentations, presented)
    np.testing.assert_allclose(last.state.losses.latest, losses, rtol=1e-3, atol=1e-4)
    for one, other in zip(*map(jax.tree.leaves, (last.state.params, state.params))):
        np.testing.assert_allclose(one, other, rtol=1e-2, atol=1e-4)


def test_a_weight_scales_the_gradient_of_its_example(digits):
    """Against the gradient of the weighted mean, written out."""
    network, train, _, config, state = setup(
        digits, **given("infobatch", {}, weight_decay=0.0, beta=0.0, nesterov=False)
    )
    ids, weights = np.arange(16), np.linspace(1, 3, N).astype(np.float32)
    state = state._replace(losses=state.losses._replace(weights=jnp.array(weights)))
    after = jax.jit(train_step, static_argnums=(0, 1))(network, config, jax.random.key(0), train, state, ids)

    def loss(params):
        logits, _ = network.apply_training({"params": params, "batch_stats": {}}, train.batch(train.images[ids]))
        return jnp.dot(weights[ids], cross_entropy(logits, train.labels[ids])) / len(ids)

    slopes = jax.jit(jax.grad(loss))(state.params)
    expected = jax.tree.map(lambda leaf, slope: leaf - 0.1 * slope, state.params, slopes)
    for one, other in zip(*map(jax.tree.leaves, (after.params, expected))):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(("name", "options"), MANNERS)
def test_a_run_continued_at_any_step_ends_the_same(name, options, digits):
    more = given(name, options, train_batch_size=128)
    whole = run(digits, **more, save_steps=1, log_steps=9)
    rare = run(digits, **more, save_steps=40, log_steps=40)
    equal(whole[-1].state._replace(sums=0), rare[-1].state._replace(sums=0))
    network, train, test, config, _ = setup(digits, **more)
    kept = np.arange(N, dtype=np.int32)
    for step in (1, 3, 11, 12, 25, 39):  # within epochs and at their ends
        middle = jax.tree.map(jnp.array, next(r.state for r in whole if r.step == step))
        *_, last = dd_fit(network, train, test, kept, config, middle)
        equal(whole[-1].state._replace(sums=0), jax.device_get(last.state)._replace(sums=0))


def dd_fit(network, train, test, kept, config, state):
    return [report for _, report in fit_runs(network, train, test, [Entrant(config, kept, state)])]


@pytest.mark.parametrize("name", ANEW)
def test_runs_side_by_side_end_as_alone_though_their_epochs_end_at_other_steps(name, digits):
    alone, entrants, kept = [], [], np.arange(N, dtype=np.int32)
    for number in range(3):
        options = given(name, {}, run=number, train_batch_size=20, num_steps=150)
        alone.append(run(digits, **options)[-1].state)
        network, train, test, config, state = setup(digits, **options)
        entrants.append(Entrant(config, kept, state))
    together = {}
    for position, report in fit_runs(network, train, test, entrants):
        together[position] = jax.device_get(report.state)
    for number, state in enumerate(alone):
        equal(state, together[number])
    if name == "infobatch":
        assert len({int(state.losses.before) for state in alone}) > 1


def test_runs_that_choose_nothing_anew_carry_no_losses(digits):
    _, _, _, config, _ = setup(digits)
    for name in ("all", "random", "rs2"):
        chosen = with_values(config, {"selector": name, "size": 40})
        schedule = Schedule(chosen, np.arange(40, dtype=np.int32))
        assert schedule.begin(None, 5) is None
        assert schedule.left(5) > 10**6
        if name != "rs2":
            expected = oracles.batch_ids(schedule.kept, 128, chosen.train_seed, 6, 9)
            np.testing.assert_array_equal(schedule.ids(5, 9), expected)


# --- commands ---------------------------------------------------------------------------------


SHORT = QUICK | {"num_steps": 60, "save_steps": 25, "log_steps": 33, "size": 700}


@pytest.mark.parametrize("name", ANEW)
def test_a_run_that_was_stopped_within_an_epoch_ends_with_the_same_bytes(name, tmp_path, monkeypatch):
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    datadiet("subset", tmp_path, root=whole, selector=name, **SHORT)
    with monkeypatch.context() as patch:
        stop_at(patch, 33)
        datadiet("subset", tmp_path, expect=75, root=cut, selector=name, **SHORT)
    done = datadiet("subset", tmp_path, root=cut, selector=name, resume="true", **SHORT)
    assert "continued from step 33 of 60" in done.stdout
    one, other = (content(root / f"exps/subset/size_700.{name}/run_0") for root in (whole, cut))
    assert {key: (one[key], other[key]) for key in one | other if one.get(key) != other.get(key)} == {}
    assert "kept.csv" not in one, "it keeps no subset"
    assert any("losses" in key or "latest" in key for key in one) == (name == "infobatch")
    summary = read_json(whole / f"exps/subset/size_700.{name}/run_0/summary.json")
    assert (summary["num_kept"], summary["num_examples"], summary["scored_by"]) == (700, N, name)
    assert sum(summary["kept_per_class"]) == N


@pytest.mark.parametrize("name", ANEW)
def test_there_is_no_subset_to_select(name, tmp_path):
    refused = datadiet("select", tmp_path, 2, dataset="digits", selector=name, size=700)
    assert (
        "keeps no subset: each epoch of a training takes another one. Train with it: `datadiet subset" in refused.stderr
    )
    assert not (tmp_path / "exps").exists()
    with pytest.raises(UserError, match=f"selector={name} keeps no subset"):
        dd.select(name, np.zeros(9), size=3)
    refused = datadiet("subset", tmp_path, 2, selector=name, balance="equal", **SHORT)
    assert "balance=equal is used by" in refused.stderr
