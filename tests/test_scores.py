"""Scores agree with the original and with their formulas, whatever the batch size."""

from __future__ import annotations

import numpy as np
import oracles
import pytest

from datadiet.config import UserError
from datadiet.scores import GRADIENT_SCORES, LOGIT_SCORES, SCORES, compute_many, compute_scores, mean_over_runs


def test_golden_logits(golden):
    logits = golden.network.apply(golden.variables, golden.images)
    np.testing.assert_allclose(logits, golden.arrays["logits"], atol=1e-4)


@pytest.mark.parametrize("kind", SCORES)
def test_golden_scores(golden, kind):
    values = compute_scores(kind, golden.network, golden.variables, golden.images, golden.labels, batch_size=24)
    assert values.dtype == np.float32
    assert values.shape == (64,)
    np.testing.assert_allclose(values, golden.arrays[f"score/{kind}"], rtol=1e-4, atol=1e-5)


def test_every_score_has_an_oracle():
    assert set(LOGIT_SCORES) == set(oracles.LOGIT_SCORES)
    assert set(GRADIENT_SCORES) == {"grad_norm"}, "give a new gradient score a golden case or an oracle"


@pytest.mark.parametrize("kind", LOGIT_SCORES)
@pytest.mark.parametrize("classes", [2, 7])
def test_logit_scores_equal_their_formula(kind, classes):
    random = np.random.RandomState(0)
    logits = random.normal(0, 4, (50, classes)).astype(np.float32)
    labels = random.randint(0, classes, 50).astype(np.int32)
    np.testing.assert_allclose(
        LOGIT_SCORES[kind](logits, labels), oracles.LOGIT_SCORES[kind](logits, labels), rtol=1e-4, atol=1e-6
    )


@pytest.mark.parametrize("batch_size", [1, 7, 63, 64, 1000])
def test_batch_size_changes_nothing(golden, batch_size):
    arguments = (golden.network, golden.variables, golden.images, golden.labels)
    if "ResNet" in str(golden.network.module) and batch_size == 1:
        pytest.skip("64 single batches of the larger network only cost time")
    values = compute_many(["l2_error", "grad_norm"], *arguments, batch_size=batch_size)
    whole = compute_many(["l2_error", "grad_norm"], *arguments, batch_size=64)
    for kind, expected in whole.items():
        np.testing.assert_allclose(values[kind], expected, rtol=1e-4, atol=1e-6)


def test_order_of_examples_changes_nothing(golden):
    order = np.random.RandomState(1).permutation(64)
    values = compute_scores("l2_error", golden.network, golden.variables, golden.images, golden.labels)
    moved = compute_scores("l2_error", golden.network, golden.variables, golden.images[order], golden.labels[order])
    np.testing.assert_allclose(moved, values[order], rtol=1e-5)


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
    params = golden.variables["params"]
    diverged = {**params, "Dense_0": {**params["Dense_0"], "bias": np.full(10, np.nan, np.float32)}}
    with pytest.raises(UserError, match="64 of 64 values are not finite"):
        compute_scores("l2_error", golden.network, {**golden.variables, "params": diverged}, *arguments[2:])


def test_mean_over_runs_leaves_out_what_a_run_did_not_measure():
    rows = np.array([[1, np.nan, np.nan], [2, 5, np.nan], [6, 7, np.nan]])
    np.testing.assert_allclose(mean_over_runs(rows), oracles.mean_ignoring_nan(rows))
    assert mean_over_runs(rows).tolist()[:2] == [3, 6]
