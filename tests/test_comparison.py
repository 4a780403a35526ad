"""Verdicts hold for new runs and new test examples, corrected for all that was compared."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from scipy import stats

import datadiet as dd
from datadiet.errors import UserError
from datadiet.report.comparison import ALPHA, least_margin, most_variance
from datadiet.report.verdicts import CAN, CANNOT, FULL, NOT_DECIDED, cliff


def answers(seed: int, runs: int, examples: int, accuracy: float = 0.9, shift: float = 0.0) -> np.ndarray:
    """bool [S, M]; runs agree mostly, and differ as wholes by `shift`."""
    random = np.random.RandomState(seed)
    hard = np.random.RandomState(99).rand(examples) < 2 * (1 - accuracy)
    wrong = random.rand(runs, examples) < 0.5 + shift * random.normal(size=(runs, 1))
    return ~(hard & wrong)


@pytest.mark.parametrize(("runs", "examples"), [(2, 40), (5, 31)])
def test_mean_squares_are_those_of_the_two_way_table(runs, examples):
    one, full = answers(0, runs, examples, shift=0.3), answers(1, runs, examples)
    d = one.astype(float) - full
    rest = d - d.mean(1, keepdims=True) - d.mean(0, keepdims=True) + d.mean()
    found = dd.compare(one, full)
    assert found.difference == pytest.approx(d.mean())
    assert found.of_runs == pytest.approx(examples * d.mean(1).var(ddof=1))
    assert found.of_rest == pytest.approx((rest**2).sum() / ((runs - 1) * (examples - 1)))
    half_examples = runs / (examples - 1)
    assert found.of_examples == pytest.approx(runs * d.mean(0).var(ddof=1) + half_examples)
    low, high = found.this_test_set
    expected = stats.ttest_1samp(d.mean(1), 0).confidence_interval(0.95)
    assert (low, high) == pytest.approx((expected.low, expected.high))


def test_the_interval_is_satterthwaites():
    found = dd.compare(answers(0, 4, 300, shift=0.4), answers(1, 4, 300, shift=0.4))
    r, e, i = found.of_runs, found.of_examples, found.of_rest
    assert r > i
    assert e > i
    variance = (r + e - i) / 1200
    freedom = (r + e - i) ** 2 / (r**2 / 3 + e**2 / 299 + i**2 / 897)
    half = stats.t.ppf(0.975, freedom) * math.sqrt(variance)
    z, c = stats.norm.ppf(0.975), found.squares
    unseen = z * math.sqrt(c + 1)
    skews = [(z**2 + 2) / 3 * (unseen + cubes) / (unseen + c) / 300 for cubes in (-found.cubes, found.cubes)]
    assert (found.difference - found.low, found.high - found.difference) == pytest.approx(
        (half + skews[0], half + skews[1])
    )


@pytest.mark.parametrize("alpha", [ALPHA, ALPHA / 4, ALPHA / 11])
@pytest.mark.parametrize("runs", [1, 3])
def test_a_rare_loss_is_bounded_as_its_count_is(runs, alpha):
    """By Clopper and Pearson 1934, where all runs lose the same few of 1,000 examples."""
    full = np.ones((runs, 1000), bool)
    for count in range(13):
        one = full.copy()
        one[:, :count] = False
        low, exact = dd.compare(one, full).bounds(alpha)[0], stats.beta.ppf(1 - alpha, count + 1, 1000 - count)
        assert -low > 0.999 * exact
        assert runs == 1 or -low < 1.1 * exact


@pytest.mark.parametrize("alpha", [ALPHA, ALPHA / 4, ALPHA / 11])
def test_few_losses_beside_few_gains_are_seldom_called_too_few(alpha):
    """Whatever is expected of either: the chance that the lower bound is above the true difference."""
    lost, won = np.arange(40), np.arange(30)
    low = np.empty((len(lost), len(won)))
    full = np.ones((1, 1000), bool)
    for k, j in itertools.product(lost, won):
        one, other = full.copy(), full.copy()
        one[:, :k], other[:, k : k + j] = False, False
        low[k, j] = dd.compare(np.repeat(one, 3, 0), np.repeat(other, 3, 0)).bounds(alpha)[0]
    for gains, more in itertools.product((0, 0.3, 1, 2, 4, 8), np.arange(0.2, 14, 0.3)):
        chance = np.outer(stats.poisson.pmf(lost, gains + more), stats.poisson.pmf(won, gains))
        assert chance[low > -more / 1000].sum() < 1.02 * alpha


def test_a_margin_can_be_shown_with_that_variance_and_no_larger_one():
    for margin, level in ((0.006, ALPHA), (0.01, ALPHA / 4), (0.2, ALPHA)):
        most = most_variance(margin, 1000, level)
        assert least_margin(most, 1000, level) == pytest.approx(margin)
    assert most_variance(0.005, 1000, ALPHA) == 0, "5.19 examples is the least"
    assert least_margin(1e-6, 1000, ALPHA) == pytest.approx(0.00519, abs=1e-5)


def test_corrected_verdicts_allow_for_shifts_that_few_runs_do_not_show():
    """Whole runs shift far more than test examples do by chance; two or three of them may not show that."""
    random, margin, false = np.random.RandomState(0), 0.01, 0
    for _ in range(300):
        shift = random.normal(0, 0.005, (2, 3, 1))
        one, full = random.rand(2, 3, 10_000) < 0.97 + shift - [[[margin]], [[0.0]]]
        found = dd.compare(one, full, margin)
        false += found.verdict_at(ALPHA / 4) == "not worse"
        assert found.bounds(ALPHA / 4)[0] < found.bounds(ALPHA)[0]
    assert false <= 6, "2 % of 300, for 0.6 %"


def test_it_exists_for_one_run_for_equal_runs_and_without_any_disagreement():
    one, full = answers(0, 1, 200), answers(1, 1, 200)
    for runs in (1, 4):
        found = dd.compare(np.repeat(one, runs, 0), np.repeat(full, runs, 0))
        assert found.low < found.difference < found.high
        same = dd.compare(np.repeat(one, runs, 0), np.repeat(one, runs, 0))
        assert same.difference == 0
        assert same.high == -same.low == pytest.approx(1 - 0.025 ** (1 / 200)), "an exact bound"
        assert same.smallest_margin == same.high
        assert [dd.compare(one, one, margin).runs_needed for margin in (0.018, 0.019)] == [None, 1]
    assert repr(dd.compare(one[0], full[0])) == repr(dd.compare(one, full)), "of one run some are NaN"
    assert all(math.isnan(bound) for bound in dd.compare(one, full).this_test_set)


@pytest.mark.parametrize("runs", [1, 2, 6])
def test_neither_order_nor_direction_matters(runs):
    one, full = answers(0, runs, 150, shift=0.2), answers(1, runs, 150)
    found, turned = dd.compare(one, full), dd.compare(full, one)
    assert (turned.low, turned.high) == pytest.approx((-found.high, -found.low))
    random = np.random.RandomState(0)
    rows, columns = random.permutation(runs), random.permutation(150)
    moved = dd.compare(one[rows][:, columns], full[rows][:, columns])
    assert (moved.low, moved.high) == pytest.approx((found.low, found.high))


def test_more_runs_do_not_take_away_the_chance_of_the_test_set():
    """The defect that made headlines worse with every run."""
    few, many = (dd.compare(answers(0, runs, 359, 0.94), answers(1, runs, 359, 0.9)) for runs in (5, 500))
    assert many.high - many.low > 0.5 * (few.high - few.low)
    inside = many.this_test_set
    assert inside[1] - inside[0] < 0.2 * (many.high - many.low)


def test_verdicts_follow_the_interval_and_the_margin():
    good, bad, full = answers(0, 5, 4000), answers(0, 5, 4000, 0.8), answers(1, 5, 4000)
    assert dd.compare(good, full, 0.05).verdict == "not worse"
    assert dd.compare(bad, full, 0.05).verdict == "worse"
    found = dd.compare(good, full, 0.0001)
    assert found.verdict == "undecided"
    assert found.runs_needed is None, "the test set is the limit"
    assert found.smallest_margin > 0.0001
    needed = [dd.compare(good, full, margin).runs_needed for margin in (0.02, 0.005, 1.05 * found.smallest_margin)]
    assert needed == sorted(needed)
    larger = dd.compare(answers(0, 5, 16000), answers(1, 5, 16000))
    assert larger.smallest_margin < 0.7 * found.smallest_margin, "of four times as many examples"


def test_about_so_many_runs_show_it_as_were_said():
    """Of pairs that are equally good, on new test examples each time."""

    def equal(seed: int, runs: int):
        random = np.random.RandomState(seed)
        chance = random.choice([0.02, 0.5, 0.98, 1.0], (2, 1, 2000), p=[0.05, 0.1, 0.25, 0.6])  # of being right
        chance[1] = np.where(random.rand(2000) < 0.9, chance[0], chance[1])
        return dd.compare(*(random.rand(2, runs, 2000) < chance), margin)

    margin = 0.5
    margin = 1.2 * float(np.median([equal(seed, 12).smallest_margin for seed in range(40)]))
    needed = int(np.median([equal(seed, 12).runs_needed or 1000 for seed in range(40)]))
    assert 2 < needed < 100
    shown = np.mean([equal(100 + seed, needed).verdict == "not worse" for seed in range(200)])
    assert 0.8 < shown < 0.97
    assert np.mean([equal(100 + seed, needed // 4 or 1).verdict == "not worse" for seed in range(200)]) < 0.8


@pytest.mark.parametrize(
    ("one", "full", "complaint"),
    [
        (np.ones((2, 9), bool), np.ones((3, 9), bool), "one has 2 runs of 9 test examples, full 3 runs of 9"),
        (np.full((2, 9), 0.5), np.ones((2, 9)), "one: expected right or wrong.* with other values than 0 and 1"),
        (np.ones((2, 3, 4), bool), np.ones((2, 3, 4), bool), r"got bool \[2, 3, 4\]"),
        (np.ones((2, 1), bool), np.ones((2, 1), bool), "at least one run and two test examples"),
        (np.full((2, 9), np.nan), np.ones((2, 9)), "other values"),
    ],
)
def test_what_cannot_be_compared_is_refused(one, full, complaint):
    with pytest.raises(UserError, match=complaint):
        dd.compare(one, full)


@pytest.mark.parametrize("margin", [0, -0.1, 1, 5, math.nan])
def test_a_margin_is_a_part_of_one(margin):
    with pytest.raises(UserError, match="a part of 1"):
        dd.compare(np.ones((2, 9), bool), np.ones((2, 9), bool), margin)


# --- a whole study ----------------------------------------------------------------------------

EASY = np.ones((3, 4000), bool)  # no disagreement: the bound is 0.1 points at 2.5 %


def losing(points: float) -> np.ndarray:
    worse = EASY.copy()
    worse[:, : round(points / 100 * EASY.shape[1])] = False
    return worse


def test_an_arm_ends_at_its_first_failure():
    cells = {(FULL, 1.0): EASY, ("a", 0.9): EASY, ("a", 0.7): losing(3), ("a", 0.5): EASY, ("b", 0.9): losing(3)}
    found = dd.decide(cells)
    assert (found.kept_fraction, found.arm, found.answer) == (0.9, "a", CAN)
    assert found.passed == {"a": (0.9,), "b": ()}


def test_arms_share_the_chance_of_error_and_leave_theirs_when_they_end_well():
    """Cells that pass at some levels only: each arm is tested at its share, then at what others leave."""
    one, full = answers(5, 3, 4000, 0.97), answers(6, 3, 4000, 0.97)
    low = {k: -dd.compare(one, full).bounds(ALPHA / k)[0] for k in (1, 2, 3)}
    assert low[1] < low[2] < low[3]
    between = (low[1] + low[2]) / 2
    hard, easy = {("hard", 0.5): one}, {("easy", 0.5): EASY | full}
    alone = dd.decide({(FULL, 1.0): full, **hard}, between)
    assert alone.passed == {"hard": (0.5,)}
    both = {(FULL, 1.0): full, **hard, ("other", 0.5): np.zeros_like(full)}
    assert dd.decide(both, between).passed == {"hard": (), "other": ()}, "two arms share"
    assert dd.decide({(FULL, 1.0): full, **hard, **easy}, between).passed == {"hard": (0.5,), "easy": (0.5,)}, "Holm"


@pytest.mark.parametrize("order", [*itertools.permutations(range(3))])
def test_the_order_of_cells_does_not_matter(order):
    items = [((FULL, 1.0), EASY), (("a", 0.5), EASY), (("a", 0.8), EASY)]
    found = dd.decide(dict(items[i] for i in order))
    assert (found.kept_fraction, found.arm) == (0.5, "a")


def test_random_is_named_unless_an_arm_is_shown_to_be_better():
    full = losing(2)
    equal = {(FULL, 1.0): full, ("score", 0.5): full, ("random", 0.5): full}
    assert dd.decide(equal).arm == "random"
    assert dd.decide({**equal, ("score", 0.5): EASY}).arm == "score"
    assert dd.decide({**equal, ("random", 0.5): losing(4)}).arm == "score", "random does not reach it"
    other = {("Random" if arm == "random" else arm, fraction): cell for (arm, fraction), cell in equal.items()}
    with pytest.raises(UserError, match="got an arm 'Random', expected 'random' for chance: pass random='Random'"):
        dd.decide(other)
    assert dd.decide(other, random="Random").arm == "Random"


def test_a_fraction_that_loses_the_margin_is_seldom_named():
    """Whole studies of 3 arms and 3 fractions, every one of which loses exactly the margin; benchmarks/decision.py has
    more of them."""
    random, margin, false = np.random.RandomState(0), 0.01, 0
    for _ in range(400):
        right = random.choice([0.99, 0.6], 300, p=[0.9, 0.1])  # new test examples
        cells = {(arm, f): random.rand(4, 300) < right - margin for arm in "abc" for f in (0.9, 0.7, 0.5)}
        false += dd.decide({(FULL, 1.0): random.rand(4, 300) < right, **cells}, margin).kept_fraction < 1
    assert false <= 20, "5 % of 400"


def test_cannot_is_said_only_where_every_arm_is_shown_to_be_worse():
    full = {(FULL, 1.0): EASY}
    lost = {("a", 0.9): losing(5), ("b", 0.9): losing(9)}
    found = dd.decide({**full, **lost})
    assert (found.kept_fraction, found.arm, found.answer) == (1.0, None, CANNOT)
    assert dd.decide({**full, **lost, ("b", 0.9): losing(0.5)}).answer == NOT_DECIDED


@pytest.mark.parametrize(
    ("cells", "complaint"),
    [
        ({}, r"expected \('full data', 1.0\) and subsets; got none"),
        ({(FULL, 1.0): EASY}, "and subsets"),
        ({("a", 0.5): EASY}, "expected"),
        ({(FULL, 1.0): EASY, ("a", 1.0): EASY}, "a keeps a fraction of 1.0"),
        ({(FULL, 1.0): EASY, ("a", 0.5): EASY[:2]}, "a at 0.5: one has 2 runs"),
    ],
)
def test_what_is_no_study_is_refused(cells, complaint):
    with pytest.raises(UserError, match=complaint):
        dd.decide(cells)


def test_a_cliff_is_shown_and_not_small():
    falls = {
        0.7: dd.compare(losing(0.1), EASY),
        0.5: dd.compare(losing(1), losing(0.1)),
        0.1: dd.compare(losing(9), losing(1)),
    }
    random = {0.7: losing(0.1), 0.5: losing(0.2), 0.1: losing(9)}
    arm = {0.7: losing(0.1), 0.5: losing(1), 0.1: losing(9)}
    below = {f: dd.compare(arm[f], random[f]) for f in arm}
    found = cliff(falls, below, ALPHA, 0.005)
    assert found is not None
    assert (found.fraction, found.below_random) == (0.5, below[0.5])
    step = cliff(falls, {}, ALPHA, 0.005)
    assert step is not None
    assert (step.fraction, step.below_random, step.fall.difference) == (0.1, None, pytest.approx(-0.08))
    assert cliff(falls, below, ALPHA, least=0.02, drop=0.1) is None, "too small to matter"


@pytest.mark.parametrize("runs", [1, 5])
def test_equal_arms_seldom_have_a_cliff(runs):
    random, found = np.random.RandomState(0), 0
    for _ in range(300):
        right = random.choice([0.99, 0.6], 359, p=[0.9, 0.1])
        full, *arms = (random.rand(runs, 359) < right for _ in range(5))
        below = {f: dd.compare(one, other) for f, one, other in ((0.7, arms[0], arms[1]), (0.5, arms[2], arms[3]))}
        falls = {0.7: dd.compare(arms[0], full), 0.5: dd.compare(arms[2], arms[0])}
        found += cliff(falls, below, ALPHA / 4, 0.005) is not None
    assert found <= 12, "4 % of 300"
