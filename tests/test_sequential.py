"""Looking again after more runs is paid for, and a chosen arm's gain is estimated where it was not chosen."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

import datadiet as dd
from datadiet.errors import UserError
from datadiet.report.comparison import ALPHA
from datadiet.report.gain import regained
from datadiet.report.sequential import SHARE, Looks, looks, spent
from datadiet.report.verdicts import CAN, FULL, NOT_DECIDED

AUTO = (3, 5, 8, 12, 18, 27, 30)


def test_one_planned_look_costs_nothing():
    for alpha in (ALPHA, ALPHA / 11):
        assert looks((), 5).level(alpha) == pytest.approx(alpha)
        assert Looks((30,), 30).level(alpha) == pytest.approx(alpha)


@pytest.mark.parametrize(
    ("runs", "planned", "alpha"),
    [((5, 10), 5, 0.025), (AUTO, 30, 0.025), ((2, 3, 4, 5, 9), 4, 0.2), (tuple(range(1, 31)), 30, 0.1)],
)
def test_looks_together_spend_what_is_said(runs, planned, alpha):
    """Walks of independent runs, which are the worst that there is: by Monte Carlo, another way than the integral."""
    levels = [Looks(runs[: k + 1], planned).level(alpha) for k in range(len(runs))]
    walk = np.random.default_rng(0).standard_normal((100_000, runs[-1])).cumsum(axis=1)
    z = walk[:, np.array(runs) - 1] / np.sqrt(runs)
    crossed = (z > stats.norm.isf(levels)).any(axis=1).mean()
    first = alpha * spent(runs[0], planned) if runs[0] >= planned else 0.0
    expected = first + SHARE * (alpha * spent(runs[-1], planned) - first)
    assert crossed == pytest.approx(expected, abs=4 * math.sqrt(expected / 100_000))


@pytest.mark.parametrize(
    ("runs", "planned", "most"),
    [(range(2, 31), 30, 0.025), (AUTO, 30, 0.025), (range(5, 31), 5, 0.05), (range(2, 31), 5, 0.05)],
)
def test_looks_by_t_spend_no_more_than_is_said(runs, planned, most):
    """Of runs whose variance few of them tell badly, which makes looks less alike than walks of known variance."""
    drawn = np.random.default_rng(1).standard_normal((40_000, 30))
    counts = np.arange(1, 31)
    sums, squares = drawn.cumsum(axis=1), np.square(drawn).cumsum(axis=1)
    with np.errstate(all="ignore"):
        t = sums / counts / np.sqrt((squares - sums**2 / counts) / (counts - 1) / counts)
    passed = np.zeros(len(drawn), bool)
    for n in runs:
        level = looks([one for one in runs if one < n], n, planned).level(ALPHA)
        passed |= t[:, n - 1] > stats.t.isf(level, n - 1)
    assert passed.mean() < most + 2 * math.sqrt(most / len(drawn))


def test_looks_that_share_a_test_set_spend_less():
    """However much of the chance is the test set's own, which all looks share."""
    runs = np.array(AUTO)
    levels = [Looks(AUTO[: k + 1], 30).level(0.1) for k in range(len(AUTO))]
    random, last = np.random.default_rng(0), 0.1
    walk = random.standard_normal((40_000, 30)).cumsum(axis=1)[:, runs - 1] / runs
    for weight in (0.03, 0.3, 3.0):
        z = (walk + math.sqrt(weight) * random.standard_normal((40_000, 1))) / np.sqrt(weight + 1 / runs)
        crossed = (z > stats.norm.isf(levels)).any(axis=1).mean()
        assert crossed < last + 0.004
        last = crossed
    assert last < 0.06


def test_what_is_spent_never_exceeds_twice_one_look():
    assert spent(5, 5) == 1
    parts = [spent(n, 5) for n in (1, 2, 5, 6, 30, 10**6)]
    assert parts == sorted(parts)
    assert parts[-1] == pytest.approx(2, abs=1e-5)
    levels = [Looks((5, n), 5).level(ALPHA) for n in (6, 10, 100)]
    assert 0 < levels[0] < levels[1] < levels[2] <= ALPHA * (1 + 1e-9)


def test_the_number_of_looks_matters_and_their_order_does_not():
    assert looks((3,), 5) == Looks((3, 5), 3), "planned were as many as were looked at first"
    assert looks((5, 3), 8, 30) == Looks((3, 5, 8), 30)
    assert looks((3, 5, 8), 5, 30) == Looks((3, 5), 30), "a look is what it was"
    often, seldom = (Looks(tuple(range(first, 31)), 30).level(ALPHA) for first in (2, 29))
    assert often < seldom < ALPHA


@pytest.mark.parametrize(
    ("earlier", "runs", "planned"), [((10,), 5, None), ((5, 10), 7, 5), ((0,), 5, None), ((), 5, 0)]
)
def test_looking_at_fewer_runs_afterwards_is_refused(earlier, runs, planned):
    with pytest.raises(UserError, match="Expected|expected"):
        looks(earlier, runs, planned)


# --- of a whole study -------------------------------------------------------------------------


def cells(seed: int, runs: int, lost: float, examples: int = 3000, arms: str = "ab", shift: float = 0.0) -> dict:
    """bool [S, M] by arm and fraction; whole runs differ in accuracy by `shift`."""
    random = np.random.RandomState(seed)
    right = random.choice([0.995, 0.7], examples, p=[0.9, 0.1])

    def drawn(lost: float) -> np.ndarray:
        shifts = shift * random.normal(size=(runs, 1)) if shift else 0.0
        return random.rand(runs, examples) < right - lost + shifts

    return {(FULL, 1.0): drawn(0.0)} | {(arm, 0.5): drawn(lost) for arm in arms}


def test_looks_before_lower_every_level():
    study = cells(0, 4, 0.0)
    first = dd.decide(study, 0.05)
    levels = [dd.decide(study, 0.05, looked=looked).comparisons["a", 0.5].level for looked in ((), (3,), (2, 3))]
    assert levels == sorted(levels, reverse=True)
    assert len(set(levels)) == 3
    low = -min(one.bounds(ALPHA / 2)[0] for one in first.comparisons.values())
    margin = 1.001 * low  # just enough for one look
    assert dd.decide(study, margin).passed == {"a": (0.5,), "b": (0.5,)}
    again = dd.decide(study, margin, looked=(2, 3))
    assert again.passed != {"a": (0.5,), "b": (0.5,)}
    needed = [dd.decide(study, 0.05, looked=one).comparisons["a", 0.5].smallest_margin for one in ((), (2, 3))]
    assert needed[0] < needed[1], "what a verdict takes is said by the level that it has"
    with pytest.raises(UserError, match="looked at with 9"):
        dd.decide(study, margin, looked=(9,))


def test_peeking_after_every_run_is_seldom_false_and_was_often():
    """benchmarks/decision.py has more cases."""
    runs, paid, unpaid = range(2, 16), 0, 0
    for seed in range(150):
        study = cells(seed, runs[-1], 0.02, 1600, shift=0.01)
        for way in ("paid", "unpaid"):
            looked: list[int] = []
            for n in runs:
                part = {key: value[:n] for key, value in study.items()}
                if dd.decide(part, 0.02, looked=looked if way == "paid" else (), planned=15).kept_fraction < 1:
                    paid, unpaid = paid + (way == "paid"), unpaid + (way == "unpaid")
                    break
                looked.append(n)
    assert paid <= 10, "7 % of 150, for 2.5 %"
    assert unpaid > paid


def test_what_is_open_is_what_more_runs_could_change():
    one = cells(0, 3, 0.0)
    assert dd.decide(one, 0.3).open == []
    close = dd.decide(one, 0.002)
    assert close.answer == NOT_DECIDED
    assert close.open == [("a", 0.5), ("b", 0.5)]
    lost = np.zeros_like(one["a", 0.5])
    assert dd.decide({**one, ("a", 0.2): lost}, 0.3).open == [], "shown to be worse"
    half = one["a", 0.5].copy()
    half[:, :60] = False
    some = dd.decide({**one, ("a", 0.2): half}, 0.025)
    assert (some.answer, some.kept_fraction) == (CAN, 0.5)
    assert some.open == [("a", 0.2)], "may keep less yet"
    half[:, :90] = False
    assert dd.decide({**one, ("a", 0.2): half}, 0.025).open == [], "looks worse than the margin"


# --- the gain of a chosen arm -----------------------------------------------------------------


@pytest.mark.parametrize(("runs", "examples"), [(4, 200), (1, 400), (4, 1)])
def test_the_gain_of_the_best_of_equal_arms_is_zero(runs, examples):
    random, looks_like, freed = np.random.default_rng(0), [], []
    for seed in range(200):
        arms = random.random((6, runs, examples)) < 0.9
        *rivals, opponent = arms if examples > 1 else random.normal(0.9, 0.02, arms.shape)
        looks_like.append(max(one.mean() for one in rivals) - opponent.mean())
        freed.append(regained(rivals, opponent, seed))
    assert np.mean(looks_like) > 5 * np.std(looks_like) / math.sqrt(200), "the winner's curse"
    assert abs(np.mean(freed)) < 3 * np.std(freed) / math.sqrt(200)


def test_a_gain_that_is_there_is_found():
    random = np.random.default_rng(0)
    right = random.random((4, 4000)) < 0.9
    better = right | (random.random(right.shape) < 0.5)
    worse = right & (random.random(right.shape) < 0.9)
    assert regained([worse, better, worse], right) == pytest.approx(better.mean() - right.mean(), abs=0.003)
    assert regained([better], right) == pytest.approx(better.mean() - right.mean(), abs=1e-6)
    assert math.isnan(regained([np.ones((1, 1))], np.ones((1, 1))))


def test_a_score_is_called_worth_having_at_the_level_of_all_that_could_have_been():
    """Every fraction and arm at which that could have been said shares the chance."""
    study = cells(3, 4, 0.0, arms="a")
    better = study["a", 0.5].copy()
    random = np.random.RandomState(0)
    margin = 0.3
    for share in np.linspace(0.0, 0.05, 200):
        worse = better & (random.rand(*better.shape) >= share)
        found = dd.compare(better, worse)
        if found.bounds(ALPHA)[0] > 0 > found.bounds(ALPHA / 4)[0]:
            break
    few = {(FULL, 1.0): better, ("a", 0.5): better, ("random", 0.5): worse}
    assert dd.decide(few, margin).worth
    assert dd.decide(few, margin).arm == "a"
    many = few | {(arm, f): better for arm in ("a",) for f in (0.9, 0.8, 0.7)}
    many |= {("random", f): worse for f in (0.9, 0.8, 0.7)}
    assert not dd.decide(many, margin).worth
    assert dd.decide(many, margin).arm == "random"


def test_gains_come_with_the_decision():
    study = {**cells(1, 4, 0.0, arms="abc"), ("random", 0.5): cells(1, 4, 0.05, arms="x")["x", 0.5]}
    found = dd.decide(study, 0.1)
    rivals = [study[arm, 0.5] for arm in "abc"]
    assert found.worth
    assert found.gain == regained(rivals, study["random", 0.5])
    assert found.change == regained(rivals, study[FULL, 1.0])
    assert (
        found.gain
        < found.comparisons[found.arm, 0.5].difference - dd.compare(study["random", 0.5], study[FULL, 1.0]).difference
    ), "less than it looks"
