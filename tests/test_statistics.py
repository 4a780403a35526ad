"""Statistics of a study against naive oracles, SciPy, and simulation."""

from __future__ import annotations

import itertools
import math
import warnings

import numpy as np
import pytest
from scipy import stats

from datadiet.report import statistics as st


def normal(seed: int, *shape: int) -> np.ndarray:
    return np.random.RandomState(seed).normal(size=shape)


def test_an_estimate_is_the_t_interval():
    values = normal(0, 7)
    found = st.estimate(values)
    expected = stats.ttest_1samp(values, 0).confidence_interval(0.95)
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high))
    assert (found.mean, found.std, found.n) == pytest.approx((values.mean(), values.std(ddof=1), 7))


ROUNDED = np.float32([0.9, 0.7, 0.5, 0.3]).astype(float) - np.float32([0.8, 0.6, 0.4, 0.2]).astype(float)


@pytest.mark.parametrize("values", [[0.9], [0.9, 0.9, 0.9], [0.9 - 0.8, 0.95 - 0.85], ROUNDED])
def test_no_interval_is_made_of_one_value_or_of_equal_ones(values):
    found = st.estimate(values)
    assert math.isnan(found.low)
    assert math.isnan(found.high)
    assert not found.known
    assert found.mean == pytest.approx(values[0])


def test_rounding_gives_no_interval_and_one_test_example_in_a_million_does():
    losses = np.linspace(0.1, 0.8, 8)
    full, one = np.float32(0.9 - losses).astype(float), np.float32(0.899 - losses).astype(float)
    assert np.std(one - full) > 0
    assert not st.paired(one, full).known
    counts = np.zeros(30)
    counts[0] = 1
    assert st.estimate(counts / 1_000_000).known


def test_pairs_take_out_what_the_seeds_share():
    seeds, own = 0.1 * normal(1, 6), 0.001 * normal(2, 6)
    found = st.paired(seeds + 0.01 + own, seeds)
    reference = stats.ttest_rel(seeds + 0.01 + own, seeds).confidence_interval(0.95)
    assert (found.low, found.high) == pytest.approx((reference.low, reference.high))
    assert 0 < found.low < found.high < 0.03
    with pytest.raises(ValueError, match="2 and 3"):
        st.paired(np.zeros(2), np.zeros(3))


def test_intervals_cover_as_often_as_they_claim():
    draws = normal(3, 4000, 4)
    covered = [(e := st.estimate(row)).low < 0 < e.high for row in draws]
    assert abs(np.mean(covered) - 0.95) < 4 * math.sqrt(0.95 * 0.05 / len(draws))


def test_emptied_classes_are_judged_by_what_random_would_leave():
    total = np.array([100, 100, 200, 10])
    assert st.emptied(np.array([67, 7, 7, 1]), total).tolist() == [2]
    assert st.emptied(total // 10, total).tolist() == []


def test_stability_ends_at_one_and_finds_what_runs_agree_on():
    truth = np.arange(200.0)
    same = st.stability(np.stack([truth] * 4), size=50)
    assert same.tolist() == [1, 1, 1, 1]
    noisy = st.stability(truth / 200 + normal(7, 6, 200), size=50)
    assert noisy[-1] == 1
    assert noisy[0] < noisy[2] < noisy[4]
    chance = st.stability(normal(8, 2, 4000), size=400, draws=1)[0]
    assert 0.3 < chance < 0.8  # one of the two runs, so more than the 0.1 of chance


def test_stability_is_the_overlap_of_top_sets():
    scores = normal(9, 2, 30)
    tops = [set(np.argsort(-scores[r])[:10]) for r in range(2)]
    both = set(np.argsort(-scores.mean(0))[:10])
    allowed = [len(top & both) / 10 for top in tops]
    found = st.stability(scores, 10, draws=1)[0]
    assert min(abs(found - value) for value in allowed) < 1e-12


def test_spearman_is_scipys():
    scores = np.round(normal(10, 3, 50), 1)  # with ties
    expected = stats.spearmanr(scores, axis=1).statistic
    np.testing.assert_allclose(st.spearman_matrix(scores), expected, atol=1e-12)
    np.testing.assert_allclose(st.spearman_matrix(scores[:2]), expected[:2, :2], atol=1e-12)
    np.testing.assert_allclose(st.spearman_matrix(scores[:1]), [[1]], atol=1e-12)


def test_kendall_and_the_overlap_of_tops_are_their_definition():
    scores = np.round(normal(11, 3, 40), 1)
    tau, overlap = st.kendall_matrix(scores), st.top_overlap_matrix(scores, 10)
    one, other = scores[0][:, None] - scores[0], scores[1][:, None] - scores[1]
    signs = np.sign(one) * np.sign(other)
    assert tau[0, 1] == pytest.approx(signs.sum() / math.sqrt((one != 0).sum() * (other != 0).sum()))
    np.testing.assert_allclose(np.diag(tau), 1)
    np.testing.assert_array_equal(np.diag(overlap), 1)
    np.testing.assert_array_equal(overlap, overlap.T)
    distinct = normal(12, 2, 40)
    tops = [set(np.argsort(-row)[:10]) for row in distinct]
    assert st.top_overlap_matrix(distinct, 10)[0, 1] == len(tops[0] & tops[1]) / 10


@pytest.mark.parametrize("constant", [0, 1, 2])
def test_a_constant_score_correlates_with_none_and_takes_nothing_from_others(constant):
    scores = np.round(normal(10, 3, 50), 1)
    expected = np.array(st.spearman_matrix(scores))
    scores[constant] = 1.5
    expected[constant], expected[:, constant] = math.nan, math.nan
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        np.testing.assert_allclose(st.spearman_matrix(scores), expected, atol=1e-12)


@pytest.mark.parametrize("runs", [2, 5, 8])
def test_split_half_estimates_the_reliability_of_the_mean(runs):
    """Parallel measurements: the squared correlation of the mean with the truth is its reliability."""
    truth, errors = normal(11, 20000), normal(12, runs, 20000)
    scores = truth + 1.5 * errors
    found = st.split_half(scores)
    expected = np.corrcoef(scores.mean(axis=0), truth)[0, 1] ** 2
    assert found.whole == pytest.approx(expected, abs=0.03)  # Spearman is a little below Pearson
    assert found.half < found.whole
    assert found.runs == runs


def test_split_half_of_two_runs_is_their_correlation_stepped_up():
    scores = normal(13, 2, 40)
    rho = stats.spearmanr(*scores).statistic
    assert st.split_half(scores) == pytest.approx((rho, 2 * rho / (1 + rho), 2))
    assert math.isnan(st.split_half(scores[:1]).whole)


VALUES = np.array([3.0, 1.0, 2.0, 2.0, 5.0, 2.0, 0.0])
POSITIVE = np.array([True, False, True, False, True, False, False])


def test_auroc_is_the_share_of_pairs_in_order():
    pairs = list(itertools.product(VALUES[POSITIVE], VALUES[~POSITIVE]))
    expected = np.mean([(p > q) + 0.5 * (p == q) for p, q in pairs])
    assert st.auroc(VALUES, POSITIVE) == pytest.approx(expected)
    assert math.isnan(st.auroc(VALUES, np.zeros(7, bool)))
    assert math.isnan(st.auroc(VALUES, np.ones(7, bool)))
    assert math.isnan(st.auroc(np.where(VALUES == 5, math.nan, VALUES), POSITIVE))


@pytest.mark.parametrize("k", range(1, 8))
def test_precision_is_expected_over_the_order_of_ties(k):
    found = []
    for order in itertools.permutations(range(7)):
        top = sorted(order, key=lambda i: -VALUES[i])[:k]  # sorted is stable, so ties come in every order
        found.append(POSITIVE[top].mean())
    assert st.precision_at(VALUES, POSITIVE, k) == pytest.approx(np.mean(found))


def test_skips_remove_noise_and_tell_what_it_costs():
    assert st.skip_for(VALUES, POSITIVE, 1 / 3) == (1, pytest.approx(1 / 3), 0)
    assert st.skip_for(VALUES, POSITIVE, 2 / 3) == (2, pytest.approx(2 / 3), 0)
    assert st.skip_for(VALUES, POSITIVE, 1.0) == (5, 1.0, 2)  # the tied ones go as well
    assert st.best_skip(VALUES, POSITIVE) == (2, pytest.approx(2 / 3), 0)


def test_the_best_skip_is_the_best_of_all():
    values = np.round(normal(14, 300), 1)
    positive = normal(15, 300) + values > 1
    found = st.best_skip(values, positive)
    hits, clean = positive.sum(), (~positive).sum()
    gains = [(positive & (values >= b)).sum() / hits - (~positive & (values >= b)).sum() / clean for b in values]
    assert found.removed - found.clean / clean == pytest.approx(max(gains))


def test_break_even():
    assert st.break_even(100, st.estimate([9.0, 10.0, 11.0])) == 10
    assert st.break_even(101, st.estimate([9.0, 10.0, 11.0])) == 11
    assert st.break_even(1, st.estimate([9.0, 10.0, 11.0])) == 1
    assert st.break_even(100, st.estimate([-1.0, 1.0, 1.0])) is None  # nothing is known to be saved
    assert st.break_even(100, st.estimate([10.0])) is None
