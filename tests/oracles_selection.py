"""Naive checks of every selector, written from the definitions: is what was kept, in this order, right?

Each takes values [N], labels [N], features [N, F], the kept ids in kept order, and the parameters.
"""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np

CLOSE = 1e-3  # relative: features are float32


def _extreme(key, largest):
    """Whether `kept` holds the most extreme values: nothing outside beats anything inside."""

    def is_right(values, labels, features, kept, parameters):
        keys = [key(v) for v in values]
        inside, outside = [keys[i] for i in kept], [k for i, k in enumerate(keys) if i not in set(kept)]
        return not outside or (min(inside) >= max(outside) if largest else max(inside) <= min(outside))

    return is_right


def _window(values, labels, features, kept, parameters):
    first = parameters.offset
    return sorted(values[i] for i in kept) == sorted(values)[first : first + len(kept)]


def _ccs(values, labels, features, kept, parameters):
    """No value beyond the cutoff; from each stratum what the published budget says (strata of one size may swap)."""
    rest = sorted(values)[: min(len(values) - int(parameters.cutoff * len(values)), len(values))]
    low, width = rest[0], (rest[-1] - rest[0]) / parameters.strata

    def stratum(v):
        return min(int((v - low) / width), parameters.strata - 1) if width else 0

    populations, found = [0] * parameters.strata, [0] * parameters.strata
    for v in rest:
        populations[stratum(v)] += 1
    for i in kept:
        found[stratum(values[i])] += 1
    expected, left = [], len(kept)
    for visited, population in enumerate(sorted(populations)):
        expected.append((population, min(population, left // (parameters.strata - visited))))
        left -= expected[-1][1]
    return max(values[i] for i in kept) <= rest[-1] and sorted(zip(populations, found)) == sorted(expected)


def _distance(a, b):
    return math.sqrt(sum((float(x) - float(y)) ** 2 for x, y in zip(a, b)))


def _moderate(values, labels, features, kept, parameters):
    average = {"mean": np.mean, "median": np.median}[parameters.center]
    centers = {c: average([h for h, y in zip(features, labels) if y == c], axis=0) for c in set(labels)}
    distances = [_distance(h, centers[y]) for h, y in zip(features, labels)]
    first = (len(values) - len(kept)) // 2
    return np.allclose(sorted(distances[i] for i in kept), sorted(distances)[first : first + len(kept)], rtol=CLOSE)


def _k_center(values, labels, features, kept, parameters):
    """Step by step: no example is farther from those kept before than the one taken."""
    mean = np.mean(features, axis=0, dtype=np.float64)
    gaps = [_distance(h, mean) for h in features]
    right = gaps[kept[0]] <= min(gaps) + CLOSE
    gaps = [math.inf] * len(features)
    for before, taken in pairwise(kept):
        gaps = [min(gap, _distance(h, features[before])) for gap, h in zip(gaps, features)]
        right &= gaps[taken] >= max(gaps) - CLOSE * (1 + max(gaps))
    return right


def _herding(values, labels, features, kept, parameters):
    """Step by step: no example brings the mean of those kept nearer to the mean of all."""
    points = features.astype(np.float64)
    mean, right = points.mean(0), True
    for m, taken in enumerate(kept):
        wanted = (m + 1) * mean - points[list(kept[:m])].sum(0)
        gaps = [_distance(wanted, h) if i not in set(kept[:m]) else math.inf for i, h in enumerate(points)]
        right &= gaps[taken] <= min(gaps) + CLOSE * (1 + min(gaps))
    return right


def _d2(values, labels, features, kept, parameters):
    """Step by step, on the whole matrix of distances. Only where neighbours are not tied."""
    dropped = sorted(range(len(values)), key=lambda i: -values[i])[: int(parameters.cutoff * len(values))]
    ids = [i for i in range(len(values)) if i not in dropped]
    distance = {i: {j: _distance(features[i], features[j]) for j in ids if j != i} for i in ids}
    near = {i: sorted(distance[i], key=distance[i].__getitem__)[: parameters.neighbors] for i in ids}
    joined = {i: {j for j in ids if j != i and (j in near[i] or i in near[j])} for i in ids}
    shifted = {i: values[i] - min(values[j] for j in ids) for i in ids}
    weight = {i: shifted[i] + sum(math.exp(-distance[i][j]) * shifted[j] for j in joined[i]) for i in ids}
    left = set(ids)
    for taken in kept:
        if taken not in left or weight[taken] < max(weight[i] for i in left) - CLOSE:
            return False
        left.remove(taken)
        for j in joined[taken]:
            weight[j] -= math.exp(-parameters.gamma * distance[taken][j]) * weight[taken]
    return True


SELECTORS = {
    "keep_max": _extreme(lambda v: v, True),
    "keep_min": _extreme(lambda v: v, False),
    "keep_max_abs": _extreme(abs, True),
    "keep_min_abs": _extreme(abs, False),
    "offset": _window,
    "random": lambda values, labels, features, kept, parameters: True,
    "ccs": _ccs,
    "moderate": _moderate,
    "k_center": _k_center,
    "herding": _herding,
    "d2": _d2,
}


def _rs2(epoch, size, count, seed, losses, keep, done, parameters):
    """The pieces of one shuffle after the other, or the first of a new shuffle each time; all have weight 1."""
    pieces = []
    for shuffle in range(epoch + 1):
        ids = np.random.RandomState([seed, shuffle]).permutation(count).tolist()
        while len(ids) >= size:
            pieces.append(ids[:size])
            ids = [] if parameters.replacement else ids[size:]
    return sorted(pieces[epoch]), [1.0] * count


def _infobatch(epoch, size, count, seed, losses, keep, done, parameters):
    """Each example below the mean loss is left out where its draw is not below `keep`, and counts 1 / keep if it is
    not; at the end nothing is left out."""
    draws = np.random.RandomState([seed, epoch, 1]).random_sample(count).tolist()
    mean = sum(map(float, losses)) / count
    below = [done < parameters.full_from and float(loss) < mean for loss in losses]
    kept = [i for i in range(count) if not below[i] or draws[i] < keep]
    return kept, [1 / keep if low else 1.0 for low in below]


EPOCHS = {"rs2": _rs2, "infobatch": _infobatch}  # -> sorted ids of an epoch, and the weight of every example


def in_proportion(counts, size, quotas):
    """Whether quotas are those of the largest remainder."""
    exact = [size * count / sum(counts) for count in counts]
    above = [q - math.floor(e + 1e-9) for q, e in zip(quotas, exact)]
    remainders = [e - math.floor(e + 1e-9) for e in exact]
    up, down = ([r for r, a in zip(remainders, above) if a == k] for k in (1, 0))
    return sum(quotas) == size and set(above) <= {0, 1} and (not up or not down or min(up) >= max(down) - 1e-9)


def evenly(counts, size, quotas):
    """Whether no group could give one less so that a group that gave at least two less gives one more."""
    starved = [q for q, count in zip(quotas, counts) if q < count]
    return sum(quotas) == size and (not starved or max(quotas) - min(starved) <= 1)
