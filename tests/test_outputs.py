"""Logits and probabilities that a program has already have the scores of a checkpoint, or are refused."""

from __future__ import annotations

import warnings
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
import oracles
import pytest

import datadiet as dd
from datadiet.errors import UserError
from datadiet.scores.logits import LOGIT_SCORES
from datadiet.scores.registry import grand_last

C = 5


def some_logits(count: int = 40) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.RandomState(1)
    return random.normal(0, 3, (count, C)).astype(np.float32), random.randint(0, C, count)


def probabilities(logits) -> np.ndarray:
    return np.array(oracles.softmax(logits))


@pytest.mark.parametrize("kind", LOGIT_SCORES)
def test_scores_of_logits_and_of_probabilities_equal_their_definition(kind):
    logits, labels = some_logits()
    expected = oracles.LOGIT_SCORES[kind](logits, labels)
    found = dd.scores_from_logits(kind, logits, labels)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(
        found, LOGIT_SCORES[kind](jnp.asarray(logits), jnp.asarray(labels)), rtol=1e-5, atol=1e-6
    )
    given = probabilities(logits)
    np.testing.assert_allclose(dd.scores_from_logits(kind, given, labels, probabilities=True), expected, 1e-4, 1e-6)
    half = dd.scores_from_logits(kind, np.asarray(given, np.float16), labels, probabilities=True)
    np.testing.assert_allclose(half, expected, rtol=2e-2, atol=2e-3)


@pytest.mark.parametrize("kind", LOGIT_SCORES)
def test_probabilities_of_0_and_1_give_finite_scores(kind):
    sure = dd.scores_from_logits(kind, np.eye(C), np.arange(C), probabilities=True)
    wrong = dd.scores_from_logits(kind, np.eye(C), (np.arange(C) + 1) % C, probabilities=True)
    assert np.isfinite([sure, wrong]).all()
    np.testing.assert_allclose(sure, {"max_margin": -1, "sum_margin": 1 - C}.get(kind, 0), atol=1e-6)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (some_logits()[0], "probabilities: they go from -.* Logits are given without probabilities=True"),
        (probabilities(some_logits()[0]) * 100, "expected numbers from 0 to 1"),
        (
            probabilities(some_logits()[0]) * 0.99,
            "40 of 40 rows do not have the sum 1, the first of them row 0 with 0.99",
        ),
        (np.full((40, C), np.nan), "probabilities: 40 of 40 rows are not finite"),
        (np.ones((40, 1)), r"shape \[40, 1\]; expected \[examples, C\] with C of at least 2. Of one logit z"),
    ],
)
def test_what_are_no_probabilities_is_refused(given, message):
    with pytest.raises(UserError, match=message):
        dd.scores_from_logits("l2_error", given, some_logits()[1], probabilities=True)


def test_features_give_the_gradient_of_the_last_layer():
    """As its definition, and as our own score of a network with the same last layer."""
    random, (logits, labels) = np.random.RandomState(2), some_logits()
    features = random.normal(0, 2, (len(logits), 7)).astype(np.float32)
    expected = oracles.grand_last(features, logits, labels)
    found = dd.scores_from_logits("grand_last", logits, labels, features=features)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    ours = grand_last(Fixed(logits, features), {}, jnp.zeros(len(logits)), jnp.asarray(labels))  # type: ignore[arg-type]
    np.testing.assert_allclose(found, ours, rtol=1e-6)
    given = probabilities(logits)
    of_probabilities = dd.scores_from_logits("grand_last", given, labels, probabilities=True, features=features)
    np.testing.assert_allclose(of_probabilities, expected, rtol=1e-4)


class Fixed(NamedTuple):
    """A network whose logits and features are known."""

    logits: np.ndarray
    features: np.ndarray

    def apply_with_features(self, variables, images):
        return jnp.asarray(self.logits), jnp.asarray(self.features)


@pytest.mark.parametrize(
    ("kind", "features", "message"),
    [
        ("grand_last", None, "without features; expected features"),
        ("l2_error", np.ones((40, 3)), "with features; expected none: grand_last alone"),
        ("grand_last", np.ones((39, 3)), r"features are float64 \[39, 3\]; expected real numbers \[40, F\]"),
        ("grand_last", np.full((40, 3), np.inf), "features: 40 of 40 rows are not finite"),
    ],
)
def test_features_that_cannot_be_are_refused(kind, features, message):
    with pytest.raises(UserError, match=message):
        dd.scores_from_logits(kind, *some_logits(), features=features)


def test_an_unknown_score_of_logits_is_refused():
    with pytest.raises(UserError, match="kind='grad_norm': expected one of l2_error, l1_error"):
        dd.scores_from_logits("grad_norm", *some_logits())


def test_probabilities_in_place_of_logits_are_taken_as_said_with_a_warning():
    logits, labels = some_logits()
    given = probabilities(logits)
    with pytest.warns(UserWarning, match="These logits look like probabilities"):
        found = dd.scores_from_logits("l2_error", given, labels)
    np.testing.assert_allclose(found, oracles.LOGIT_SCORES["l2_error"](given, labels), rtol=1e-4)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        dd.scores_from_logits("l2_error", logits, labels)
        dd.scores_from_logits("l2_error", np.log(given), labels)
        dd.scores_from_logits("l2_error", np.eye(C)[labels], labels)  # what a toy may have as logits
