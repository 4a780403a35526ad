"""Selectors keep the right examples, exactly as many, and decide ties by seed."""

from __future__ import annotations

import tracemalloc

import numpy as np
import oracles_selection
import pytest

import datadiet as dd
from datadiet.config import find_option
from datadiet.errors import UserError
from datadiet.selectors import coresets, distances
from datadiet.selectors.coresets import evenly, in_proportion
from datadiet.selectors.selection import SELECTORS, kept_order, option_names, parameters_of
from entrypoints.__main__ import COMMANDS

N = 60
KEEPING = [name for name, selector in SELECTORS.items() if selector.keep]  # the others choose anew in each epoch
DISTINCT = {"cutoff": 0.2, "strata": 7, "neighbors": 4, "gamma": 0.3}  # other than the defaults


def pool(kind: str = "distinct") -> tuple[np.ndarray, dict]:
    """Scores [N], and labels [N] and features [N, 3], without ties, with many, or all equal."""
    random = np.random.RandomState(3)
    scores = {"distinct": random.normal(size=N), "ties": random.randint(-2, 3, N), "constant": np.ones(N)}[kind]
    labels = random.choice(4, N, p=[0.5, 0.3, 0.15, 0.05]) if kind != "constant" else np.zeros(N, int)
    features = {
        "distinct": random.normal(size=(N, 3)),
        "ties": random.randint(0, 3, (N, 3)),
        "constant": np.ones((N, 3)),
    }
    return scores, {"labels": labels, "features": features[kind].astype(np.float32)}


def options_of(name: str, size: int) -> dict:
    """Parameters that a selector takes, within what `size` allows."""
    given = {k: v for k, v in DISTINCT.items() if k in SELECTORS[name].options}
    if "cutoff" in given:
        given["cutoff"] = min(given["cutoff"], (N - size) / N)
    return given | ({"offset": min(5, N - size)} if name == "offset" else {})


@pytest.mark.parametrize("dtype", ["int8", "uint8", "int16", "uint16", "int32", "uint32", "int64", "uint64", "float16"])
@pytest.mark.parametrize("name", KEEPING)
def test_selectors_keep_the_same_of_scores_of_every_type(name, dtype):
    scores, more = pool()
    low, high = (-100, 100) if dtype == "float16" else (np.iinfo(dtype).min, np.iinfo(dtype).max)
    scores = np.abs(20 * scores).astype(dtype)
    scores[:6] = low, low, high, high, 0, 0
    exact = scores.astype(object) if dtype.endswith("64") else scores.astype(np.float64)
    same = np.unique(exact, return_inverse=True)[1].astype(np.float64)  # in the same order, ties included
    if name.endswith("abs"):
        same = np.unique(np.abs(exact), return_inverse=True)[1].astype(np.float64)
    elif SELECTORS[name].options:
        same = scores.astype(np.float64)
    more |= options_of(name, 20)
    np.testing.assert_array_equal(kept_order(name, scores, size=20, **more), kept_order(name, same, size=20, **more))


def test_every_selector_has_an_oracle():
    assert set(KEEPING) == set(oracles_selection.SELECTORS)
    assert set(SELECTORS) - set(KEEPING) == set(oracles_selection.EPOCHS)


@pytest.mark.parametrize("name", KEEPING)
@pytest.mark.parametrize("kind", ["distinct", "ties", "constant"])
@pytest.mark.parametrize("size", [1, 13, 40, N])
def test_selectors_agree_with_their_definition(name, kind, size):
    scores, more = pool(kind)
    more |= options_of(name, size) | {"balance": "none"}
    order = kept_order(name, scores, size=size, seed=1, **more)
    kept = dd.select(name, scores, size=size, seed=1, **more)
    assert kept.dtype == order.dtype == np.int32
    assert len(set(kept.tolist())) == size
    assert (np.diff(kept) > 0).all()
    np.testing.assert_array_equal(kept, np.sort(order))
    np.testing.assert_array_equal(order, kept_order(name, scores, size=size, seed=1, **more))
    if name == "d2" and kind != "distinct":
        return  # which of equally distant examples are neighbours is for the seed to say
    parameters = parameters_of(name, {k: v for k, v in more.items() if k not in ("labels", "features")})
    check = oracles_selection.SELECTORS[name]
    assert check(scores.tolist(), more["labels"].tolist(), more["features"], order.tolist(), parameters)
    if size == 13 and kind == "distinct" and name != "random":
        others = [[*order[:-1].tolist(), i] for i in set(range(N)) - set(order.tolist())]
        passed = [check(scores.tolist(), more["labels"].tolist(), more["features"], o, parameters) for o in others]
        assert not all(passed), "the check lets anything pass"


def test_moderate_by_medians_agrees_with_its_definition():
    scores, more = pool()
    order = kept_order("moderate", scores, size=20, center="median", **more)
    parameters = parameters_of("moderate", {"center": "median"})
    assert oracles_selection.SELECTORS["moderate"](scores, more["labels"].tolist(), more["features"], order, parameters)


@pytest.mark.parametrize("name", KEEPING)
@pytest.mark.parametrize("balance", ["proportional", "equal"])
@pytest.mark.parametrize("size", [1, 3, 20, 47, N])
def test_any_selector_can_be_balanced(name, balance, size):
    scores, more = pool()
    more |= options_of(name, size)
    kept = kept_order(name, scores, size=size, seed=2, balance=balance, **more)
    assert len(set(kept.tolist())) == size
    counts, quotas = (np.bincount(more["labels"][i], minlength=4).tolist() for i in (np.arange(N), kept))
    check = {"proportional": oracles_selection.in_proportion, "equal": oracles_selection.evenly}[balance]
    assert check(counts, size, quotas)
    if name == "keep_max":  # the best of each class, in turn
        for c in range(4):
            own = [i for i in kept if more["labels"][i] == c]
            members = np.flatnonzero(more["labels"] == c)
            assert own == members[np.argsort(-scores[members])][: len(own)].tolist()


@pytest.mark.parametrize("size", [1, 13, 40, N])
def test_a_random_subset_can_be_like_another_in_the_numbers_of_each_class(size):
    scores, more = pool()
    like = kept_order("keep_max", scores, size=size)
    kept = kept_order("random", scores, size=size, seed=6, labels=more["labels"], like=like)
    assert len(set(kept.tolist())) == size
    expected = [sum(more["labels"][i] == c for i in like) for c in range(4)]
    assert [sum(more["labels"][i] == c for i in kept) for c in range(4)] == expected
    for seed in range(5) if size == 13 else ():
        other = kept_order("random", scores, size=size, seed=seed, labels=more["labels"], like=like)
        assert set(other.tolist()) != set(like.tolist()), "drawn anew, whatever the other keeps"


def test_a_subset_like_another_draws_each_member_of_a_class_equally_often():
    scores, more = pool()
    like = kept_order("keep_max", scores, size=20)
    draws = [dd.select("random", scores, size=20, seed=s, labels=more["labels"], like=like) for s in range(400)]
    counts = sum(np.bincount(kept, minlength=N) for kept in draws)
    for c in range(4):
        own = more["labels"] == c
        share = (more["labels"][like] == c).sum() / own.sum()
        assert abs(counts[own] - 400 * share).max() <= 5 * np.sqrt(400 * share * (1 - share)) + 1e-9


def test_a_subset_cannot_be_like_one_of_another_size_or_have_a_balance_too():
    with pytest.raises(UserError, match="size=4: like keeps 3 examples"):
        dd.select("random", np.zeros(9), size=4, labels=np.zeros(9, int), like=np.arange(3))
    with pytest.raises(UserError, match="balance=equal: like keeps 3 examples, and says how many of each class"):
        dd.select("random", np.zeros(9), size=3, labels=np.zeros(9, int), like=np.arange(3), balance="equal")
    with pytest.raises(UserError, match="selector=random needs labels"):
        dd.select("random", np.zeros(9), size=3, like=np.arange(3))


@pytest.mark.parametrize("seed", range(20))
def test_shares_are_exact(seed):
    random = np.random.RandomState(seed)
    counts = random.randint(0, 30, random.randint(1, 12)) + (random.rand() < 0.5)
    for size in {0, 1, int(counts.sum()), int(random.randint(counts.sum() + 1))} if counts.sum() else {0}:
        for share, check in ((in_proportion, oracles_selection.in_proportion), (evenly, oracles_selection.evenly)):
            if counts.sum() and size <= counts.sum():
                quotas = share(counts, size, seed)
                assert (quotas <= counts).all()
                assert check(counts.tolist(), size, quotas.tolist()), (share, counts, size, quotas)


@pytest.mark.parametrize("name", sorted(set(KEEPING) - {"random", "ccs"}))
@pytest.mark.parametrize("balance", ["none", "proportional"])
def test_the_order_of_the_examples_changes_nothing(name, balance):
    """Where nothing is drawn and nothing is tied."""
    scores, more = pool()
    arrays, given = dict(more), options_of(name, 20) | {"balance": balance}
    kept = dd.select(name, scores, size=20, **arrays, **given)
    place = np.random.RandomState(4).permutation(N)
    moved = dd.select(name, scores[place], size=20, **{k: v[place] for k, v in arrays.items()}, **given)
    assert set(place[moved].tolist()) == set(kept.tolist())


@pytest.mark.parametrize("name", ["k_center", "herding", "d2"])
def test_greedy_selections_are_nested(name):
    scores, more = pool()
    whole = kept_order(name, scores, size=40, seed=5, balance="none", **more)
    np.testing.assert_array_equal(kept_order(name, scores, size=15, seed=5, balance="none", **more), whole[:15])


@pytest.mark.parametrize(("rows", "columns", "group"), [(1, 1, 1), (7, 12, 3), (N, 64, 16), (1000, 4, 4)])
@pytest.mark.parametrize("count", [1, 4, N - 1])
def test_neighbours_do_not_depend_on_the_block(rows, columns, group, count, monkeypatch):
    _, more = pool()
    points = more["features"]
    gaps = np.linalg.norm(points[:, None] - points, axis=-1) + np.diag(np.full(N, np.inf))
    for name, value in (("SEARCHED", rows), ("COLUMNS", columns), ("GROUP", group)):
        monkeypatch.setattr(distances, name, value)
    found = np.sort(distances.nearest(points, count), axis=1)
    np.testing.assert_array_equal(found, np.sort(np.argsort(gaps, axis=1)[:, :count], axis=1))


@pytest.mark.parametrize("value", [np.nan, np.inf, 1e30])
@pytest.mark.parametrize("name", ["k_center", "herding", "d2"])
def test_features_without_distances_are_refused(name, value):
    scores, more = pool()
    more["features"][7, 1] = value
    with np.errstate(invalid="ignore"), pytest.raises(UserError, match="features: expected finite numbers"):
        kept_order(name, scores, size=9, balance="none", **more)


@pytest.mark.parametrize("farthest", [1, 3, 50, 1024])
def test_k_center_takes_what_one_step_after_the_other_takes_ties_included(farthest, monkeypatch):
    """On whole numbers of mean 0, whose distances are exact; a fifth of the examples is there twice."""
    half = np.random.RandomState(0).randint(-4, 5, (300, 3))
    features = np.concatenate([half, -half, half[:120]]).astype(np.float32)
    features[-120:] *= np.where(np.arange(120) % 2, 1, -1)[:, None]
    features[-1] -= features.sum(0)
    monkeypatch.setattr(coresets, "FARTHEST", farthest)
    found = kept_order("k_center", np.zeros(720), size=720, seed=4, features=features)
    points = features[shuffled := np.random.RandomState(4).permutation(720)]
    taken, gaps = [int(np.square(points).sum(1).argmin())], np.full(720, np.inf)
    while len(taken) < 720:
        gaps = np.minimum(gaps, np.square(points - points[taken[-1]]).sum(1))
        gaps[taken[-1]] = -1
        taken.append(int(gaps.argmax()))
    np.testing.assert_array_equal(found, shuffled[taken])


@pytest.mark.parametrize("name", sorted(set(KEEPING) - {"random"}))
def test_ties_depend_on_the_seed_not_on_the_position(name):
    scores = np.zeros(1000)
    more = {"labels": np.zeros(1000, int), "features": np.ones((1000, 2), np.float32)}
    picks = [dd.select(name, scores, size=100, seed=seed, **more) for seed in range(20)]
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
    with pytest.raises(UserError, match="1 of 2 are infinite"):
        dd.select("ccs", np.array([1, np.inf]), size=1)


@pytest.mark.parametrize(
    ("name", "given", "message"),
    [
        ("ccs", {"cutoff": 0.6}, "cutoff=0.6 leaves 24 of 60 examples, fewer than size=30: .* at most 0.5"),
        ("keep_max", {"balance": "fair"}, "balance=fair: expected one of none, proportional, equal"),
        ("moderate", {"center": "mode"}, "center=mode: expected mean or median"),
        ("moderate", {"features": None}, "selector=moderate needs features"),
        ("herding", {"labels": None}, "selector=herding needs labels"),
        ("moderate", {"features": np.full((60, 2), np.nan)}, "features: expected finite numbers"),
        ("k_center", {"features": np.ones((59, 2))}, "features: expected 2-dimensional, of 60 examples"),
    ],
)
def test_impossible_parameters_are_refused(name, given, message):
    scores, more = pool()
    with pytest.raises(UserError, match=message):
        dd.select(name, scores, size=30, **more | given)


def test_parameters_are_options_with_the_same_defaults():
    for selector in SELECTORS:
        for name, default in parameters_of(selector, {}).as_dict().items():
            assert find_option(name).default == default, name
    assert set().union(*(selector.options for selector in SELECTORS.values())) == {*option_names()} - {"balance"}


def test_an_option_that_a_selector_does_not_use_is_refused():
    with pytest.raises(UserError, match="strata=7 is used by selector=ccs only"):
        dd.select("keep_max", np.arange(9.0), size=3, strata=7)
    with pytest.raises(UserError, match="'stratum' is no option"):
        dd.select("ccs", np.arange(9.0), size=3, stratum=7)
    with pytest.raises(UserError, match="strata=0: expected a whole number of at least 1"):
        dd.select("ccs", np.arange(9.0), size=3, strata=0)
    with pytest.raises(AttributeError, match="no option 'cutoff' among those declared: offset, balance"):
        _ = parameters_of("offset", {}).cutoff


def test_the_facts_of_a_selector_are_true():
    for name, chosen in SELECTORS.items():
        assert chosen.entry_point in (None, *COMMANDS), name
        told = (chosen.words or "{count}").format(count="9", score="score")
        assert "9" in told, name
        assert ("score" in told) == (chosen.scores and chosen.words is not None), name


@pytest.mark.parametrize("name", [name for name in KEEPING if SELECTORS[name].features])
@pytest.mark.parametrize("balance", ["none", "proportional"])
@pytest.mark.parametrize("size", [1, 20, N])
def test_what_takes_long_tells_how_far_it_is(name, balance, size):
    scores, more = pool()
    told: list[int] = []
    more |= options_of(name, size) | {"balance": balance, "progress": told.append}
    kept_order(name, scores, size=size, **more)
    assert sum(told) == size
    assert min(told) >= 0


# Bytes beside what is given, of 64 features: a copy of them takes 256 of each example. See docs/scores.md.
@pytest.mark.parametrize(
    ("name", "most", "count"),  # fewer for d2, whose time grows with their square
    [("moderate", 150, 8_000), ("k_center", 340, 8_000), ("herding", 620, 8_000), ("d2", 1100, 4_000)],
)
def test_selectors_of_features_take_as_little_memory_as_is_said(name, most, count, monkeypatch):
    monkeypatch.setattr(coresets, "FARTHEST", 64)
    monkeypatch.setattr(coresets, "CELLS", 1024)
    for block in ("ROWS", "COLUMNS", "SEARCHED"):
        monkeypatch.setattr(distances, block, 16)
    random = np.random.default_rng(0)
    given = {"labels": np.zeros(count, np.int32), "features": random.standard_normal((count, 64), np.float32)}
    values = random.random(count, np.float32)
    kept_order(name, values[:100], size=9, **{what: array[:100] for what, array in given.items()})
    tracemalloc.start()
    try:
        kept_order(name, values, size=40, **given)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak <= most * count, f"{peak / count:.0f} bytes of each example"
