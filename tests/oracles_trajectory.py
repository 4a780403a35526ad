"""Naive versions of the statistics of training, one example at a time, written from the definitions.

Each takes the logits of an example's presentations, in order, its label, the window J and the decay.
"""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
import oracles


def _right(logits, y):
    return [int(np.argmax(z)) == y for z in logits]


def _of_label(logits, y):
    return [p[y] for p in oracles.softmax(logits)]


def _mean(values):
    return sum(values) / len(values)


def _standard_deviation(values, lost):
    return math.sqrt(sum((v - _mean(values)) ** 2 for v in values) / (len(values) - lost))


def _lead(row, y):
    return row[y] - max(v for c, v in enumerate(row) if c != y)


def _windows(values, length):
    return [values[k : k + length] for k in range(len(values) - length + 1)] or [values]


def forget(logits, y, window, decay):
    """Turns from right to wrong; the number of presentations where never right."""
    right = _right(logits, y)
    return len(right) if not any(right) else sum(a and not b for a, b in pairwise(right))


def first_learned(logits, y, window, decay):
    right = _right(logits, y)
    return right.index(True) + 1 if any(right) else len(right) + 1


def aum(logits, y, window, decay):
    return -_mean([_lead(row, y) for row in np.asarray(logits, np.float64)])


def aum_prob(logits, y, window, decay):
    return -_mean([_lead(row, y) for row in oracles.softmax(logits)])


def confidence(logits, y, window, decay):
    return 1 - _mean(_of_label(logits, y))


def variability(logits, y, window, decay):
    return _standard_deviation(_of_label(logits, y), lost=0)


def correctness(logits, y, window, decay):
    return 1 - _mean(_right(logits, y))


def el2n_epochs(logits, y, window, decay):
    return _mean([math.sqrt(sum((v - (c == y)) ** 2 for c, v in enumerate(p))) for p in oracles.softmax(logits)])


def dyn_unc(logits, y, window, decay):
    if len(logits) < 2:
        return math.nan
    return _mean([_standard_deviation(w, lost=1) for w in _windows(_of_label(logits, y), window)])


def dual(logits, y, window, decay):
    if len(logits) < 2:
        return math.nan
    return _mean([_standard_deviation(w, lost=1) * (1 - _mean(w)) for w in _windows(_of_label(logits, y), window)])


def tdds(logits, y, window, decay):
    """Sum over windows k = 0 … K of decay (1 - decay)^(K - k) times the norm of the differences around their mean."""
    if len(logits) < 3:
        return math.nan
    probabilities, epsilon = oracles.softmax(logits), 1e-8
    differences = [
        sum(abs(b * (math.log(b + epsilon) - math.log(a + epsilon))) for a, b in zip(before, after))
        for before, after in pairwise(probabilities)
    ]
    norms = [math.sqrt(sum((d - _mean(w)) ** 2 for d in w)) for w in _windows(differences, window - 1)]
    return sum(decay * (1 - decay) ** (len(norms) - 1 - k) * norm for k, norm in enumerate(norms))


TRAJECTORIES = {
    "forget": forget,
    "first_learned": first_learned,
    "aum": aum,
    "aum_prob": aum_prob,
    "confidence": confidence,
    "variability": variability,
    "correctness": correctness,
    "dyn_unc": dyn_unc,
    "dual": dual,
    "tdds": tdds,
    "el2n_epochs": el2n_epochs,
}


def values(name, ids, logits, labels, window, decay):
    """[N] from a history: ids [T, B], logits [T, B, C], labels [N]; NaN where an example was never presented."""
    seen = {i: [] for i in range(len(labels))}
    for row_ids, row_logits in zip(ids, logits):
        for i, z in zip(row_ids, row_logits):
            seen[int(i)].append(z)
    statistic = TRAJECTORIES[name]
    return np.array([statistic(seen[i], int(y), window, decay) if seen[i] else math.nan for i, y in enumerate(labels)])
