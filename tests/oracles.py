"""Naive NumPy versions of every score, selector and statistic, written from the definitions."""

from __future__ import annotations

import math

import jax
import numpy as np
import optax


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
    "entropy": _per_example(lambda p, y: -sum(v * math.log(v) for v in p if v > 0)),
    "least_confidence": _per_example(lambda p, y: 1 - max(p)),
    "margin": _per_example(lambda p, y: 1 - sorted(p)[-1] + sorted(p)[-2]),
    "loss": _per_example(lambda p, y: -math.log(p[y])),
}


def _norm(vector):
    return math.sqrt(sum(float(v) ** 2 for v in np.ravel(vector)))


def grand_last(features, logits, labels):
    """Norm of the gradient of the last layer, entry by entry: kernel (p - y) h, bias p - y."""
    norms = []
    for h, p, y in zip(features, softmax(logits), labels):
        error = _error(p, int(y))
        norms.append(_norm([e * float(v) for e in error for v in h] + error))
    return np.array(norms)


def gradient_norms(network, variables, images, labels):
    """GraNd by its definition: a Python loop of jax.grad over single examples."""

    @jax.jit
    @jax.grad
    def gradient(params, image, label):
        logits = network.apply({**variables, "params": params}, image[None])[0]
        return optax.losses.softmax_cross_entropy_with_integer_labels(logits, label)

    gradients = [gradient(variables["params"], image, label) for image, label in zip(images, labels)]
    return np.array([np.sqrt(sum(np.sum(np.float64(x) ** 2) for x in jax.tree.leaves(g))) for g in gradients])


def input_norm(images):
    return np.array([_norm(image) for image in images])


def prototype(features, labels):
    """k-means from the class means, point by point; then 1 - cosine to the nearest center."""
    points = [np.asarray(h, float) for h in features]
    centers = [np.mean([h for h, y in zip(points, labels) if y == c], axis=0) for c in sorted(set(labels.tolist()))]
    own = None
    while True:
        found = [min(range(len(centers)), key=lambda k: _norm(h - centers[k])) for h in points]
        if found == own:
            break
        own = found
        members = [[h for h, k in zip(points, own) if k == c] for c in range(len(centers))]
        centers = [np.mean(m, axis=0) if m else center for m, center in zip(members, centers)]
    return np.array([1 - max(h @ c / _norm(h) / _norm(c) for c in centers) for h in points])


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


def median_ignoring_nan(rows: np.ndarray) -> np.ndarray:
    medians = []
    for column in np.asarray(rows).T:
        found = sorted(v for v in column if not math.isnan(v))
        middle = len(found) // 2
        medians.append((found[middle] + found[~middle]) / 2 if found else math.nan)
    return np.array(medians)


def rank_mean(rows: np.ndarray) -> np.ndarray:
    """Mean of (examples below + half of those equal, itself included, + 1/2) / examples measured."""
    ranked = []
    for row in rows:
        found = [v for v in row if not math.isnan(v)]
        ranks = {v: sum(w < v for w in found) + (found.count(v) + 1) / 2 for v in found}
        ranked.append([ranks[v] / len(found) if v in ranks else math.nan for v in row])
    return mean_ignoring_nan(np.array(ranked))


COMBINATIONS = {"mean": mean_ignoring_nan, "median": median_ignoring_nan, "rank_mean": rank_mean}


def batch_ids(kept: np.ndarray, batch_size: int, seed: int, first_step: int, num_steps: int) -> np.ndarray:
    """Ids of the batches of some steps, counted from 1: epoch by epoch a shuffle of what is kept, in whole batches."""
    size, found, epoch = min(batch_size, len(kept)), [], 0
    while len(found) < first_step - 1 + num_steps:
        order = kept[np.random.RandomState([seed, epoch]).permutation(len(kept))]
        found += [order[i : i + size] for i in range(0, len(kept) - size + 1, size)]
        epoch += 1
    return np.array(found[first_step - 1 : first_step - 1 + num_steps], np.int32)
