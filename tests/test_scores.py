"""Scores agree with the original and with their formulas, whatever the batch size."""

from __future__ import annotations

import jax
import numpy as np
import oracles
import pytest
from conftest import GOLDENS, Golden, drawn_variables

from datadiet.errors import UserError
from datadiet.models.registry import MODELS, build_model
from datadiet.scores.checkpoint import (
    FEATURE_SCORES,
    LOGIT_SCORES,
    NETWORK_SCORES,
    compute_features,
    compute_many,
    compute_scores,
    score_names,
)
from datadiet.scores.combine import COMBINATIONS, mean_over_runs, standard_error
from datadiet.scores.trajectory import TRAJECTORIES


def test_golden_logits(golden):
    logits = jax.jit(golden.network.apply)(golden.variables, golden.images)
    np.testing.assert_allclose(logits, golden.arrays["logits"], atol=1e-4)


@pytest.fixture(scope="module")
def whole(golden) -> dict[str, np.ndarray]:
    """All scores, by one program."""
    return compute_many(score_names(), *arguments_of(golden), batch_size=24)


def arguments_of(golden) -> tuple:
    return golden.network, golden.variables, golden.images, golden.labels


@pytest.mark.parametrize("kind", ["l2_error", "l1_error", "max_margin", "sum_margin", "grad_norm"])
def test_golden_scores(golden, whole, kind):
    assert whole[kind].dtype == np.float32
    assert whole[kind].shape == (64,)
    np.testing.assert_allclose(whole[kind], golden.arrays[f"score/{kind}"], rtol=1e-4, atol=1e-5)


def test_every_score_has_an_oracle():
    assert set(LOGIT_SCORES) == set(oracles.LOGIT_SCORES)
    assert set(NETWORK_SCORES) == {"grad_norm", "grand_last", "input_norm"}, "give a new one a case below"
    assert set(FEATURE_SCORES) == {"prototype"}, "give a new one a case below"
    assert set(COMBINATIONS) == set(oracles.COMBINATIONS)
    assert not set(score_names()) & set(TRAJECTORIES), "one name, one score"


def test_scores_of_features_and_inputs_equal_their_formula(golden, whole):
    features = np.asarray(jax.jit(golden.network.features)(golden.variables, golden.images))
    expected = {
        "grand_last": oracles.grand_last(features, golden.arrays["logits"], golden.labels),
        "input_norm": oracles.input_norm(golden.images),
        "prototype": oracles.prototype(features, golden.labels),
    }
    for kind, values in expected.items():
        np.testing.assert_allclose(whole[kind], values, rtol=1e-3, atol=1e-5, err_msg=kind)
    assert (whole["grand_last"] <= whole["grad_norm"] * (1 + 1e-4)).all(), "a part of the whole gradient"
    found = compute_features(*arguments_of(golden)[:3], batch_size=7)
    np.testing.assert_allclose(found, features, rtol=1e-4, atol=1e-5)


def test_prototypes_move_from_the_class_means():
    """Two clusters, one label wrong in each: the prototypes end in the clusters, whatever the labels say."""
    random = np.random.RandomState(0)
    features = np.concatenate([random.normal([9, 1], 0.5, (20, 2)), random.normal([1, 9], 0.5, (20, 2))])
    labels = np.repeat([0, 1], 20)
    right = FEATURE_SCORES["prototype"](features, labels)
    labels[[0, 20]] = labels[[20, 0]]
    np.testing.assert_allclose(FEATURE_SCORES["prototype"](features, labels), right, rtol=1e-6)


def test_a_prototype_without_points_moves_to_the_farthest_one():
    """The mean of the third class lies between two clusters and is nearest to none; an odd example is far from all."""
    features = np.array([[9, 1], [9, 1.1], [9, 0.9], [1, 9], [1.1, 9], [0.9, 9], [9, 1], [1, 9], [14, -4]])
    labels = np.array([0, 0, 0, 1, 1, 1, 2, 2, 0])
    values = FEATURE_SCORES["prototype"](features, labels)
    np.testing.assert_allclose(values, 0, atol=1e-3)
    assert values[-1] == pytest.approx(0, abs=1e-7), "its own prototype"


@pytest.mark.parametrize(("value", "score"), [(0, 1), (2, 0)])
def test_prototypes_of_equal_features_are_one(value, score):
    features = np.full((9, 4), value, np.float32)
    np.testing.assert_allclose(FEATURE_SCORES["prototype"](features, np.arange(9) % 3), score, atol=1e-6)


def test_prototypes_are_the_same_bytes_with_any_number_of_threads():
    """A library's threads add in the order in which they end, which shows with 3 of them or more."""
    from threadpoolctl import threadpool_limits

    random = np.random.RandomState(0)
    features, labels = random.normal(size=(4000, 16)).astype(np.float32), random.randint(0, 10, 4000)
    found = set()
    for threads in (1, 4, 4, 4):
        with threadpool_limits(threads):
            found.add(FEATURE_SCORES["prototype"](features, labels).tobytes())
    assert len(found) == 1


@pytest.mark.parametrize("model", MODELS)
def test_the_last_layer_maps_features_to_logits(model):
    network = build_model(model, 3, (32, 32, 3), width=2)
    variables = drawn_variables(network)
    images = np.random.RandomState(0).normal(size=(2, 32, 32, 3)).astype(np.float32)
    logits, features = jax.jit(network.apply_with_features)(variables, images)
    last = variables["params"][max(name for name in variables["params"] if name.startswith("Dense_"))]
    np.testing.assert_allclose(features @ last["kernel"] + last["bias"], logits, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", LOGIT_SCORES)
@pytest.mark.parametrize("classes", [2, 7])
def test_logit_scores_equal_their_formula(kind, classes):
    random = np.random.RandomState(0)
    logits = random.normal(0, 4, (50, classes)).astype(np.float32)
    labels = random.randint(0, classes, 50).astype(np.int32)
    np.testing.assert_allclose(
        LOGIT_SCORES[kind](logits, labels), oracles.LOGIT_SCORES[kind](logits, labels), rtol=1e-4, atol=1e-6
    )


@pytest.mark.parametrize("batch_size", [1, 7, 1000])
def test_batch_size_changes_nothing(golden, whole, batch_size):
    if "ResNet" in str(golden.network.module) and batch_size < 1000:
        pytest.skip("another program of the larger network only costs time")
    values = compute_many(["l2_error", "grad_norm"], *arguments_of(golden), batch_size=batch_size)
    for kind, found in values.items():
        np.testing.assert_allclose(found, whole[kind], rtol=1e-4, atol=1e-6)


def test_order_of_examples_changes_nothing(golden, whole):
    order = np.random.RandomState(1).permutation(64)
    network, variables, images, labels = arguments_of(golden)
    moved = compute_many(score_names(), network, variables, images[order], labels[order], batch_size=24)
    for kind in score_names():
        np.testing.assert_allclose(moved[kind], whole[kind][order], rtol=1e-3, atol=1e-5, err_msg=kind)


def test_impossible_requests_are_refused(golden):
    arguments = (golden.network, golden.variables, golden.images, golden.labels)
    with pytest.raises(UserError, match=r"type='el2n': expected one of l2_error"):
        compute_scores("el2n", *arguments)
    with pytest.raises(UserError, match="use mean_score"):
        compute_scores("forget", *arguments)
    with pytest.raises(UserError, match="batch_size=0"):
        compute_scores("l2_error", *arguments, batch_size=0)
    with pytest.raises(UserError, match="63 images but 64 labels"):
        compute_scores("l2_error", golden.network, golden.variables, golden.images[1:], golden.labels)
    with pytest.raises(UserError, match="labels are from 5 to 14: expected classes from 0 to 9"):
        compute_scores("l2_error", golden.network, golden.variables, golden.images, golden.labels + 5)
    params = golden.variables["params"]
    diverged = {**params, "Dense_0": {**params["Dense_0"], "bias": np.full(10, np.nan, np.float32)}}
    with pytest.raises(UserError, match="64 of 64 values are not finite"):
        compute_scores("l2_error", golden.network, {**golden.variables, "params": diverged}, *arguments[2:])


def test_mean_over_runs_leaves_out_what_a_run_did_not_measure():
    rows = np.array([[1, np.nan, np.nan], [2, 5, np.nan], [6, 7, np.nan]])
    np.testing.assert_allclose(mean_over_runs(rows), oracles.mean_ignoring_nan(rows))
    assert mean_over_runs(rows).tolist()[:2] == [3, 6]


@pytest.mark.parametrize("combine", COMBINATIONS)
def test_combinations_over_runs_equal_their_definition(combine):
    random = np.random.RandomState(0)
    rows = random.randint(0, 6, (5, 40)).astype(float)  # with ties
    rows[random.rand(5, 40) < 0.3] = np.nan
    rows[:, 0] = np.nan
    np.testing.assert_allclose(COMBINATIONS[combine](rows), oracles.COMBINATIONS[combine](rows))
    whole = np.nan_to_num(rows)
    order = random.permutation(40)
    np.testing.assert_allclose(COMBINATIONS[combine](whole[:, order]), COMBINATIONS[combine](whole)[order])


def test_ranks_do_not_see_the_scale_of_a_run():
    rows = np.random.RandomState(0).rand(3, 20)
    scaled = rows * [[1], [1e6], [1e-6]]
    np.testing.assert_array_equal(COMBINATIONS["rank_mean"](scaled), COMBINATIONS["rank_mean"](rows))
    assert np.abs(np.argsort(mean_over_runs(scaled)) - np.argsort(mean_over_runs(rows))).max() > 0


def test_the_standard_error_is_that_of_the_mean():
    rows = np.array([[1, np.nan, np.nan], [2, 5, np.nan], [6, 7, 4]])
    expected = [np.sqrt(7) / np.sqrt(3), np.sqrt(2) / np.sqrt(2), np.nan]
    np.testing.assert_allclose(standard_error(rows), expected)


def test_no_examples_have_no_scores(golden):
    for kind in score_names():
        found = compute_scores(kind, golden.network, golden.variables, golden.images[:0], golden.labels[:0])
        assert (found.shape, found.dtype) == ((0,), np.float32)


def test_pixels_of_another_shape_than_in_training_are_said(golden):
    with pytest.warns(UserWarning, match=r"images are \[28, 28, 3\]; the network takes \[32, 32, 3\]"):
        compute_scores("l2_error", golden.network, golden.variables, golden.images[:, 2:-2, 2:-2], golden.labels)


def test_pixels_that_are_not_normalised_are_refused_or_said(golden):
    raw = (np.abs(golden.images) * 50).astype(np.uint8)
    with pytest.raises(UserError, match=r"images are uint8 \[\d+, 32, 32, 3\]; expected normalised float32"):
        compute_scores("input_norm", golden.network, golden.variables, raw, golden.labels)
    with pytest.raises(UserError, match="images are int32"):
        compute_scores("input_norm", golden.network, golden.variables, raw.astype(np.int32), golden.labels)
    with pytest.warns(UserWarning, match=r"images are from 0 to \d+; expected normalised float32"):
        compute_scores("input_norm", golden.network, golden.variables, raw.astype(np.float32), golden.labels)


# The last of this file: programs are compiled as users have them from here on.
@pytest.mark.parametrize(("given", "rtol"), zip(GOLDENS, (0, 1e-5)), ids=["simple_cnn", "resnet18"])
def test_one_score_is_what_it_is_among_others(as_users_have, given, rtol):
    """To the last byte, but for a deep network, whose two programs add in other orders."""
    of = arguments_of(Golden(*given))
    alone = compute_scores("l2_error", *of, batch_size=24)
    np.testing.assert_allclose(alone, compute_many(score_names(), *of, batch_size=24)["l2_error"], rtol=rtol)
