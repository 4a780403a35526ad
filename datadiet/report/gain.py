"""What a chosen arm gains, estimated on runs and test examples that it was not chosen on.

Of several arms the best looking one looks better than it is. So runs and test examples are halved at random; in each
of the four blocks (half of the runs by half of the examples) the arm of the largest difference is chosen, and its
difference is taken in the block that shares neither runs nor examples with it. With a for an arm, 0 for the opponent
and -b for the block opposite to b,

    gain = mean over splits and blocks b of (acc[a(b), -b] - acc[0, -b]),   a(b) = argmax over a of acc[a, b].

Chance of b and of -b is independent, so the mean over studies is what an arm chosen so is truly worth; where all arms
are equal it is 0. It is chosen on a quarter of what there is, so the gain comes out too small rather than too large.
Source: cross-validation, Stone 1974, over both factors of a crossed design (Owen 2007).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

SPLITS = 20


def regained(arms: Sequence[np.ndarray], opponent: np.ndarray, seed: int = 0) -> float:
    """Difference of accuracies, -1 to 1, of the best of several arms to an opponent, freed from the choice.

    Args:
        arms: Right or wrong, [S, M] each, of runs S and test examples M; of one run only examples are halved, and of
            accuracies [S, 1] only runs.
        opponent: [S, M], runs in pairs with those of the arms.
        seed: Of the splits.
    Returns:
        NaN for one run of one column, where there is nothing to halve.
    """
    other = np.asarray(opponent, np.float32)
    differences = np.stack([np.asarray(arm, np.float32) - other for arm in arms])  # [K, S, M]
    _, runs, examples = differences.shape
    if runs == examples == 1:
        return math.nan
    random = np.random.default_rng(seed)
    of_runs, of_examples = _halves(random, runs), _halves(random, examples)
    found = []
    for e in (0, 1):  # which half of the examples chooses
        chosen_on, judged_on = (np.tensordot(differences, of_examples[half], 1) for half in (e, 1 - e))
        for r in (0, 1):
            best = (chosen_on * of_runs[r]).sum(axis=1).argmax(axis=0)
            judged = (judged_on * of_runs[1 - r]).sum(axis=1)
            found.append(judged[best, np.arange(SPLITS)])
    return float(np.mean(found))


def _halves(random: np.random.Generator, count: int) -> np.ndarray:
    """Weights [2, count, SPLITS] of the means over two halves of every split; of one, it is both."""
    if count == 1:
        return np.ones((2, 1, SPLITS), np.float32)
    first = np.stack([random.permutation(count) for _ in range(SPLITS)], axis=1) < count // 2
    halves = np.stack([first, ~first]).astype(np.float32)
    return halves / halves.sum(axis=1, keepdims=True)
