"""The window search finds the best setting, and judges by examples that it never trains on."""

from __future__ import annotations

import numpy as np
import pytest

from datadiet.errors import UserError
from datadiet.selectors.window_search import window_search

COUNT = 200
VALUES = np.random.RandomState(0).permutation(COUNT).astype(np.float32)
GRID = [{"cutoff": cutoff} for cutoff in (0.0, 0.1, 0.3, 0.5)]


def easy(kept: np.ndarray, held: np.ndarray) -> float:
    """A learner that is the better, the nearer to 52 the mean score of its examples is."""
    return 1 - abs(VALUES[kept].mean() - 52) / COUNT


def test_the_best_setting_comes_first():
    trials = window_search("ccs", VALUES, GRID, easy, fraction=0.2)
    assert sorted(trials, key=lambda t: -t.accuracy) == trials
    assert sorted(trial.setting["cutoff"] for trial in trials) == [0.0, 0.1, 0.3, 0.5]
    assert trials[0].setting == {"cutoff": 0.5}, "the rest then has a mean of about 50, with 0.3 about 70 or more"
    flat = window_search("ccs", VALUES, GRID[::-1], lambda kept, held: 0.5, fraction=0.2)
    assert [trial.setting for trial in flat] == GRID[::-1], "equals stay in the order of the grid"
    found = iter([0.5, float("nan"), 0.9, float("nan")])
    some = window_search("ccs", VALUES, GRID, lambda kept, held: next(found), fraction=0.2)
    assert [trial.setting for trial in some] == [GRID[i] for i in (2, 0, 1, 3)], "what diverged is last"


def test_what_judges_is_never_trained_on_and_stays_the_same():
    seen = []

    def note(kept: np.ndarray, held: np.ndarray) -> float:
        seen.append((kept, held))
        return 0.0

    labels = np.arange(COUNT) % 4
    window_search("keep_max", VALUES, [{}, {"balance": "equal"}], note, fraction=0.25, held_out=0.2, labels=labels)
    for kept, held in seen:
        assert len(held) == 40
        assert len(kept) == 40
        assert not set(kept) & set(held)
        np.testing.assert_array_equal(held, seen[0][1])
    np.testing.assert_array_equal(np.bincount(labels[seen[1][0]]), [10, 10, 10, 10])
    rest = np.setdiff1d(np.arange(COUNT), seen[0][1])
    assert set(seen[0][0]) == set(rest[np.argsort(-VALUES[rest])[:40]])


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"fraction": 1.0}, "fraction=1.0: expected a fraction"),
        ({"fraction": 0.2, "held_out": 0}, "held_out=0: expected a fraction"),
        ({"fraction": 0.2, "grid": []}, "expected at least one setting of selector=ccs"),
        ({"fraction": 0.6}, "cutoff=0.5 leaves 90 of 180"),
    ],
)
def test_what_cannot_be_searched_is_refused(given, message):
    with pytest.raises(UserError, match=message):
        window_search("ccs", VALUES, given.pop("grid", GRID), easy, **given)
