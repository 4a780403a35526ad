"""Statistics of training agree with the original and with their definitions, presentation by presentation."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import oracles
import oracles_trajectory
import pytest
from conftest import GOLDEN

import datadiet as dd
from datadiet.errors import UserError
from datadiet.option import Parameters
from datadiet.scores import forgetting, trajectory
from datadiet.scores.trajectory import TRAJECTORIES

N, C, J, DECAY = 12, 4, 5, 0.7
GIVEN = Parameters.of(trajectory_window=J, tdds_decay=DECAY)


def test_golden_forgetting():
    golden = np.load(GOLDEN / "forgetting.npz")
    ids, correct, expected = golden["ids"], golden["correct"], golden["forget_scores"]
    found = dd.forgetting_scores(ids, correct, num_examples=300)
    learned = np.isfinite(expected)
    np.testing.assert_array_equal(found[learned], expected[learned])
    presentations = np.bincount(ids.ravel(), minlength=300)
    np.testing.assert_array_equal(found[~learned], presentations[~learned])
    assert (~learned).sum() == 37


def test_forgetting_equals_the_definition_on_random_histories():
    random = np.random.RandomState(0)
    for trial in range(5):
        ids = np.stack([random.permutation(40)[:8] for _ in range(30)])
        correct = random.rand(30, 8) < (0.1, 0.3, 0.5, 0.8, 1.0)[trial]
        found = dd.forgetting_scores(ids, correct, num_examples=45)
        np.testing.assert_array_equal(found, oracles.forgetting(ids, correct, 45))


def test_one_example_at_a_time():
    assert dd.forgetting_scores([0, 0, 0, 0], [1, 0, 1, 0], 1).tolist() == [2]


def test_a_history_that_cannot_be_is_refused_and_an_empty_one_knows_nothing():
    for ids, correct, message in (
        ([0, 3], [1, 0], "ids: expected whole numbers from 0 to 2, got int64 from 0 to 3"),
        ([0, -1], [1, 0], "ids: expected whole numbers from 0 to 2"),
        ([[0, 0]], [[1, 0]], "an example is twice in a row"),
        ([0, 1], [1, 0, 1], r"ids have the shape \[2\], correct \[3\]"),
        ([0, 1], [0.3, 0.9], "correct: expected 0 and 1"),
    ):
        with pytest.raises(UserError, match=message):
            dd.forgetting_scores(np.array(ids), np.array(correct), 3)
    assert np.isnan(dd.forgetting_scores(np.zeros((0, 4), int), np.zeros((0, 4)), 3)).all()


def test_a_member_not_yet_presented_has_no_presentations_and_others_are_nan():
    stats = forgetting.start_forgetting(4)._replace(presentations=np.array([1, 0, 0, 0]))
    values = forgetting.forgetting_values(stats, member=np.array([True, True, False, False]))
    np.testing.assert_array_equal(values, [1, 0, np.nan, np.nan])
    summary = forgetting.forgetting_summary(stats, np.array([True, True, False, False]))
    assert summary == {"forget/mean": 0.5, "forget/never_learned": 2, "forget/unforgettable": 0}


def history(steps: int, classes: int = C, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Batches of four of the first N - 2 examples: ids [T, 4], logits [T, 4, C], and labels [N]."""
    random = np.random.RandomState(seed)
    labels = random.randint(0, classes, N)
    ids = np.stack([random.permutation(N - 2)[:4] for _ in range(steps)]).astype(np.int32)
    logits = random.normal(0, 3, (steps, 4, classes)).astype(np.float32)
    logits[np.arange(steps)[:, None], np.arange(4), labels[ids]] += np.linspace(-2, 4, steps)[:, None]  # learning
    return ids, logits, labels


def gathered(names, ids, logits, labels, classes: int = C) -> dict[str, np.ndarray]:
    """Values of all examples after a history, by the compiled updates."""
    step = jax.jit(trajectory.update, static_argnums=2)
    stats = trajectory.start(names, trajectory.Shape(len(labels), classes), GIVEN)
    for row, z in zip(ids, logits):
        batch = trajectory.Batch(jnp.asarray(row), jnp.asarray(labels[row], jnp.int32), jnp.asarray(z))
        stats = step(stats, batch, GIVEN)
    return {name: TRAJECTORIES[name].values(stats[name], np.ones(len(labels), bool)) for name in names}


def test_every_statistic_has_an_oracle():
    assert set(TRAJECTORIES) == set(oracles_trajectory.TRAJECTORIES)


@pytest.mark.parametrize("name", TRAJECTORIES)
@pytest.mark.parametrize(("steps", "classes"), [(1, 4), (5, 2), (12, 4), (60, 7)])
def test_statistics_equal_their_definition(name, steps, classes):
    """Histories shorter than a window, about as long, and of many windows."""
    ids, logits, labels = history(steps, classes)
    found = gathered([name], ids, logits, labels, classes)[name]
    expected = oracles_trajectory.values(name, ids, logits, labels, J, DECAY)
    assert found.dtype == np.float32
    if name == "forget":
        expected = np.nan_to_num(expected)  # a member not yet presented
    np.testing.assert_allclose(found, expected, rtol=2e-4, atol=1e-5)
    assert steps < 60 or np.isfinite(found[: N - 2]).all()


def test_statistics_do_not_depend_on_the_order_of_examples():
    ids, logits, labels = history(40)
    found = gathered(TRAJECTORIES, ids, logits, labels)
    place = np.random.RandomState(1).permutation(N).astype(np.int32)  # example i becomes example place[i]
    moved_labels = np.empty_like(labels)
    moved_labels[place] = labels
    within = np.random.RandomState(2).permutation(4)
    moved = gathered(TRAJECTORIES, place[ids][:, within], logits[:, within], moved_labels)
    for name, values in found.items():
        np.testing.assert_allclose(moved[name][place], values, rtol=1e-5, err_msg=name)


def test_extreme_logits_stay_finite():
    ids, logits, labels = history(40)
    for name, values in gathered(TRAJECTORIES, ids, 1e4 * logits, labels).items():
        assert np.isfinite(values[: N - 2]).all(), name


def test_outside_the_training_set_everything_is_nan():
    member = np.arange(N) % 2 == 0
    for name, stats in trajectory.start(TRAJECTORIES, trajectory.Shape(N, C), GIVEN).items():
        presented = stats._replace(presentations=jnp.full(N, 9))
        values = TRAJECTORIES[name].values(presented, member)
        assert np.isnan(values[~member]).all(), name
        assert np.isfinite(values[member]).all(), name


def test_names_are_expanded_in_one_order():
    assert trajectory.expand(["aum", "forget", "aum"]) == ("forget", "aum")
    assert trajectory.expand(["all"]) == tuple(TRAJECTORIES)
    assert trajectory.expand([]) == ()
    with pytest.raises(UserError, match="trajectory='auc': expected some of forget, first_learned"):
        trajectory.expand(["auc"])
