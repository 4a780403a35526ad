"""Naive NumPy versions of every score, selector and statistic, written from the definitions."""

from __future__ import annotations

import math

import numpy as np


def softmax(logits: np.ndarray) -> list[list[float]]:
    rows = []
    for row in np.asarray(logits, np.float64):
        exponentials = [math.exp(z - max(row)) for z in row]
        rows.append([e / sum(exponentials) for e in exponentials])
    return rows


def _per_example(formula):
    def oracle(logits, labels):
        return np.array([formula(p, int(y)) for p, y in zip(softmax(logits), labels)])

    return oracle


def _error(p, y):
    return [p[c] - (c == y) for c in range(len(p))]


LOGIT_SCORES = {
    "l2_error": _per_example(lambda p, y: math.sqrt(sum(e * e for e in _error(p, y)))),
    "l1_error": _per_example(lambda p, y: sum(abs(e) for e in _error(p, y))),
    "max_margin": _per_example(lambda p, y: max(p[c] for c in range(len(p)) if c != y) - p[y]),
    "sum_margin": _per_example(lambda p, y: sum(p[c] - p[y] for c in range(len(p)) if c != y)),
}


def forgetting(ids: np.ndarray, correct: np.ndarray, num_examples: int) -> np.ndarray:
    """Toneva et al. 2019: right-to-wrong turns; never right: presentations; never presented: NaN."""
    history: dict[int, list[int]] = {i: [] for i in range(num_examples)}
    for row_ids, row_correct in zip(ids, correct):
        for i, right in zip(np.atleast_1d(row_ids), np.atleast_1d(row_correct)):
            history[int(i)].append(int(right))
    scores = []
    for seen in history.values():
        if not seen:
            scores.append(math.nan)
        elif not any(seen):
            scores.append(len(seen))
        else:
            scores.append(sum(seen[k - 1] and not seen[k] for k in range(1, len(seen))))
    return np.array(scores, float)


def _extreme(key, largest):
    """Whether `kept` holds the `size` most extreme values: nothing outside beats anything inside."""

    def is_right(values, kept, size, offset):
        keys = [key(v) for v in values]
        inside, outside = [keys[i] for i in kept], [k for i, k in enumerate(keys) if i not in set(kept.tolist())]
        return not outside or (min(inside) >= max(outside) if largest else max(inside) <= min(outside))

    return is_right


def _window(values, kept, size, offset):
    return sorted(values[i] for i in kept) == sorted(values)[offset : offset + size]


SELECTORS = {
    "keep_max": _extreme(lambda v: v, True),
    "keep_min": _extreme(lambda v: v, False),
    "keep_max_abs": _extreme(abs, True),
    "keep_min_abs": _extreme(abs, False),
    "offset": _window,
    "random": lambda values, kept, size, offset: True,
}


def sgd(params, grads, lrs, beta, weight_decay, nesterov):
    """Parameters after each step of SGD with coupled weight decay, for given gradients."""
    velocity, seen = np.zeros_like(params), []
    for gradient, lr in zip(grads, lrs):
        gradient = gradient + weight_decay * params
        velocity = beta * velocity + gradient
        params = params - lr * (gradient + beta * velocity if nesterov else velocity)
        seen.append(params)
    return seen


def mean_ignoring_nan(rows: np.ndarray) -> np.ndarray:
    means = []
    for column in np.asarray(rows).T:
        found = [v for v in column if not math.isnan(v)]
        means.append(sum(found) / len(found) if found else math.nan)
    return np.array(means)
