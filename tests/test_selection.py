"""Selectors keep the right examples, exactly as many, and decide ties by seed."""

from __future__ import annotations

import numpy as np
import oracles
import pytest

import datadiet as dd
from datadiet.config import UserError
from datadiet.selection import SELECTORS, kept_order


def test_every_selector_has_an_oracle():
    assert set(SELECTORS) == set(oracles.SELECTORS)


@pytest.mark.parametrize("name", SELECTORS)
@pytest.mark.parametrize("values", ["distinct", "ties", "constant"])
@pytest.mark.parametrize("size", [1, 13, 40, 60])
def test_selectors_agree_with_their_definition(name, values, size):
    random = np.random.RandomState(3)
    scores = {"distinct": random.normal(size=60), "ties": random.randint(-2, 3, 60), "constant": np.ones(60)}[values]
    offset = min(5, 60 - size) if name == "offset" else 0
    kept = dd.select(name, scores, size=size, offset=offset, seed=1)
    assert kept.dtype == np.int32
    assert len(set(kept.tolist())) == size
    assert (np.diff(kept) > 0).all()
    assert oracles.SELECTORS[name](scores.tolist(), kept, size, offset)
    np.testing.assert_array_equal(kept, dd.select(name, scores, size=size, offset=offset, seed=1))


@pytest.mark.parametrize("name", sorted(set(SELECTORS) - {"random"}))
def test_ties_depend_on_the_seed_not_on_the_position(name):
    scores = np.zeros(1000)
    picks = [dd.select(name, scores, size=100, seed=seed) for seed in range(20)]
    assert len({tuple(p) for p in picks}) == 20
    # 20 x 100 draws from 1000 positions: the first half gets 1000 +- 3 standard deviations.
    assert 870 < sum((p < 500).sum() for p in picks) < 1130


def test_ties_never_let_a_smaller_score_in():
    scores = np.repeat([0.0, 1.0, 2.0], 10)
    kept = dd.select("keep_max", scores, size=15, seed=7)
    assert set(range(20, 30)) <= set(kept.tolist())
    assert (kept >= 10).all()


def test_kept_order_is_best_first():
    scores = np.array([0.1, 0.9, 0.5, -3.0])
    assert kept_order("keep_max", scores, size=3).tolist() == [1, 2, 0]
    assert kept_order("keep_max_abs", scores, size=2).tolist() == [3, 1]
    assert kept_order("offset", scores, size=2, offset=1).tolist() == [0, 2]


def test_random_subsets_are_uniform():
    counts = sum(np.bincount(dd.select("random", np.zeros(50), size=10, seed=s), minlength=50) for s in range(500))
    assert abs(counts - 100).max() < 45  # 5 standard deviations of a binomial(500, 0.2)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"size": 0}, "size=0: expected at least 1"),
        ({"size": -4}, "size=-4: expected at least 1"),
        ({"size": 11}, "size=11: the training set has 10 examples; expected a size from 1 to 10"),
        ({"size": 8, "offset": 3}, "size=8 after skipping offset=3: .* from 1 to 7"),
        ({"size": 8, "offset": -1}, "offset=-1: expected at least 0"),
    ],
)
def test_sizes_that_cannot_be_had_are_refused(arguments, message):
    with pytest.raises(UserError, match=message):
        dd.select("offset", np.arange(10.0), **arguments)


def test_scores_that_cannot_be_ordered_are_refused():
    with pytest.raises(UserError, match="2 of 4 values are NaN"):
        dd.select("keep_max", np.array([1, np.nan, 2, np.nan]), size=1)
    with pytest.raises(UserError, match="one real number per example"):
        dd.select("keep_max", np.zeros((3, 2)), size=1)
    with pytest.raises(UserError, match="selector='best': expected one of keep_max"):
        dd.select("best", np.zeros(3), size=1)
