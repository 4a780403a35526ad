"""Forgetting agrees with the original and with its definition."""

from __future__ import annotations

import numpy as np
import oracles
from conftest import GOLDEN

import datadiet as dd
from datadiet import trajectory


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


def test_a_member_not_yet_presented_has_no_presentations_and_others_are_nan():
    stats = trajectory.update_forgetting(trajectory.start_forgetting(4), np.array([0], np.int32), np.array([False]))
    values = trajectory.forgetting_values(stats, member=np.array([True, True, False, False]))
    np.testing.assert_array_equal(values, [1, 0, np.nan, np.nan])
    summary = trajectory.forgetting_summary(stats, np.array([True, True, False, False]))
    assert summary == {"forget/mean": 0.5, "forget/never_learned": 2, "forget/unforgettable": 0}
