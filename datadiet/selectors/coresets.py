"""Selectors that look beyond the order of the scores: strata, distances between features, neighbourhoods.

Each takes a pool and a size and returns positions in the pool, int [size], in the order in which it keeps them. What a
seed decides (draws, and the order among equals) is the same for the same pool; nothing depends on positions. Beside a
copy of the features none holds more than some numbers of each example.
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from datadiet.errors import UserError
from datadiet.option import Parameters
from datadiet.progress import Advance
from datadiet.selectors.distances import approach, blocks, centered, check_reach, in_threads, nearest, squared_norms

CELLS = 2**22  # features of which centers are taken at once: fewer, and each row is read several times
PART = 2**16  # examples that herding measures in one thread
FARTHEST = 1024  # examples among which k_center chooses before it looks at all others again


@dataclass(frozen=True, eq=False)
class Pool:
    """What a selector chooses from, in canonical order."""

    values: np.ndarray  # scores, real [N]; of a selector without scores only their number counts
    seed: int | Sequence[int]
    labels: Any = None  # int [N], for a selector that needs them
    features: Any = None  # float32 [N, F], for a selector that needs them
    progress: Advance = lambda units: None  # told of examples just kept, by what takes long

    def __len__(self) -> int:
        return len(self.values)

    def part(self, ids: np.ndarray, number: int) -> Pool:
        """Some of it, with a seed of its own."""
        parts = {name: getattr(self, name) for name in ("values", "labels", "features")}
        seed = [*np.atleast_1d(self.seed).tolist(), number]
        return replace(self, seed=seed, **{k: v if v is None else v[ids] for k, v in parts.items()})

    def shuffled(self) -> np.ndarray:
        """All positions in an order drawn from the seed, int [N]."""
        return np.random.RandomState(self.seed).permutation(len(self))


def ascending(keys: np.ndarray, seed: int | Sequence[int]) -> np.ndarray:
    """Ids by ascending key, int [N]; equal keys in an order drawn from `seed`, never by position."""
    shuffled = np.random.RandomState(seed).permutation(len(keys))
    return shuffled[np.argsort(keys[shuffled], kind="stable")]


def descending(keys: np.ndarray, seed: int | Sequence[int]) -> np.ndarray:
    """As `ascending`, by descending key: what it would be of -keys, which unsigned and small integers do not have."""
    backwards = np.random.RandomState(seed).permutation(len(keys))[::-1]
    return backwards[np.argsort(keys[backwards], kind="stable")][::-1]


# --- sharing a number out ---------------------------------------------------------------------


def in_proportion(counts: np.ndarray, size: int, seed: int | Sequence[int] = 0) -> np.ndarray:
    """How many of each group to take, int [G], summing to `size`: proportional to their counts, by largest remainder.

    Equal remainders are served in an order drawn from `seed`. No group gives more than it has.
    """
    shares = size * counts.astype(np.int64)
    quotas, remainders = shares // counts.sum(), shares % counts.sum()
    quotas[descending(remainders, seed)[: size - quotas.sum()]] += 1
    return quotas


def evenly(counts: np.ndarray, size: int, seed: int | Sequence[int] = 0) -> np.ndarray:
    """How many of each group to take, int [G], summing to `size`: as equal as the counts allow.

    From the smallest group on, each gives an equal share of what is left to take, or all it has.
    """
    quotas = np.zeros(len(counts), np.int64)
    for visited, group in enumerate(ascending(counts, seed)):
        quotas[group] = min(counts[group], (size - quotas.sum()) // (len(counts) - visited))
    return quotas


# --- strata of scores -------------------------------------------------------------------------


def ccs(pool: Pool, size: int, parameters: Parameters) -> np.ndarray:
    """Coverage-centric selection: the `cutoff` hardest are dropped, the rest is drawn evenly from strata of the score.

    `strata` bins of equal width span the scores that are left. From the least populated on, each gives an equal share
    of what is left to take, or all it has, drawn uniformly. Source: Zheng et al. 2023, with AUM as the score.
    """
    dropped = min(int(parameters.cutoff * len(pool)), len(pool) - size)
    rest = descending(pool.values, pool.seed)[dropped:]
    values = _finite(pool.values[rest])
    width = np.ptp(values) / parameters.strata
    strata = (
        np.minimum((values - values.min()) / width, parameters.strata - 1).astype(int) if width else np.zeros_like(rest)
    )
    budgets = evenly(np.bincount(strata, minlength=parameters.strata), size, pool.seed)
    order = np.random.RandomState([*np.atleast_1d(pool.seed), len(pool)]).permutation(len(rest))
    rank = np.empty_like(order)  # of each example among those of its stratum
    for stratum in np.unique(strata):
        members = order[strata[order] == stratum]
        rank[members] = np.arange(len(members))
    return rest[order[rank[order] < budgets[strata[order]]]]


def _finite(values: np.ndarray) -> np.ndarray:
    """Scores to calculate with, float64 [N].

    Raises:
        UserError: some are infinite; for those of the largest there is `cutoff`.
    """
    if infinite := int(np.isinf(values).sum()):
        raise UserError(
            f"scores: {infinite} of {len(values)} are infinite; expected finite numbers, to calculate with, or a "
            "cutoff that leaves the infinite ones out."
        )
    return values.astype(np.float64)


# --- features ---------------------------------------------------------------------------------


def moderate(pool: Pool, size: int, parameters: Parameters) -> np.ndarray:
    """Those whose distance to the center of their class is nearest to the median distance, by rank.

    The ranks [(N - size) / 2, (N + size) / 2) are kept, the middle first. Source: Xia et al. 2023, whose centers are
    means (center=mean), in their code medians (center=median).
    """
    features, distances = pool.features, np.empty(len(pool))
    average = {"mean": np.mean, "median": np.median}[parameters.center]
    by_label = np.argsort(pool.labels, kind="stable")
    for members in np.split(by_label, np.flatnonzero(np.diff(pool.labels[by_label])) + 1):
        center = np.empty(features.shape[1])
        for some in blocks(len(center), max(1, CELLS // len(members))):
            center[some] = average(features[members, some].astype(np.float64), axis=0)
        for block in blocks(len(members)):
            distances[members[block]] = np.linalg.norm(features[members[block]] - center, axis=1)
    check_reach(float(distances.max()))
    first = (len(pool) - size) // 2
    kept = ascending(distances, pool.seed)[first : first + size]
    pool.progress(size)
    return kept[np.argsort(np.abs(np.arange(size) - (size - 1) / 2), kind="stable")]


def k_center(pool: Pool, size: int, parameters: Parameters) -> np.ndarray:
    """Greedy k-center: begins with the example nearest to the mean, then always takes the one farthest from those kept.

    Sizes are nested: a smaller selection begins a larger one. Source: Sener & Savarese 2018. It chooses among the
    FARTHEST examples as long as their largest distance is above what any other had, which since can only have become
    nearer, so that one product of matrices serves many choices, and these are those of one step after the other.
    """
    shuffled = pool.shuffled()  # so that argmax decides ties by the seed
    points = centered(pool.features, shuffled)
    squares = squared_norms(points)
    gaps, kept = np.full(len(pool), np.inf, np.float32), np.array([squares.argmin()])
    chosen, last = [kept], kept
    with in_threads() as each:
        while (left := size - sum(map(len, chosen))) > 0:
            pool.progress(len(last))
            approach(each, squares, points, last, gaps)
            gaps[last] = -np.inf
            last = _farthest(squares, points, gaps)[:left]
            chosen.append(last)
    pool.progress(len(last))
    return shuffled[np.concatenate(chosen)]


def _farthest(squares: np.ndarray, points: np.ndarray, gaps: np.ndarray) -> np.ndarray:
    """The next ids that the greedy rule takes, int [K], as many as are certain: at least one.

    Args:
        gaps: Squared distances to those kept, float32 [N]; of equal ones the first is taken.
    """
    likely = first_largest(gaps, FARTHEST + 1)
    others = likely[-1] if len(likely) > FARTHEST else None  # the first of those that are not looked at
    ids = np.sort(likely[:FARTHEST])
    near, own = points[ids], gaps[ids]
    between = squares[ids][:, None] + squares[ids] - 2 * near @ near.T
    taken: list[int] = []
    while len(taken) < len(ids):
        one = int(own.argmax())
        if own[one] == -np.inf or (others is not None and (-own[one], ids[one]) > (-gaps[others], others)):
            break
        taken.append(one)
        np.minimum(own, between[one], out=own)
        own[one] = -np.inf
    return ids[taken]


def first_largest(keys: np.ndarray, count: int) -> np.ndarray:
    """Positions of the `count` largest, or of all, largest first and of equal ones the first, int [count]."""
    count = min(count, len(keys))
    least = np.partition(keys, len(keys) - count)[len(keys) - count]
    equal = np.flatnonzero(keys == least)
    above = np.flatnonzero(keys > least)
    found = np.concatenate([above, equal[: count - len(above)]])
    return found[np.argsort(-keys[found], kind="stable")]


def herding(pool: Pool, size: int, parameters: Parameters) -> np.ndarray:
    """Always takes the example that brings the mean of those kept nearest to the mean of all.

    argmin over x not kept of ||(m + 1) mean - sum of the m kept - x||. Sizes are nested. Source: Welling 2009; within
    classes as in Rebuffi et al. 2017 (iCaRL).
    """
    shuffled = pool.shuffled()
    points = centered(pool.features, shuffled)  # their mean is 0
    half_squares = squared_norms(points) / 2
    total, kept = np.zeros(points.shape[1]), np.empty(size, np.int64)
    rounded, losses = total.astype(np.float32), np.empty(len(pool), np.float32)
    parts = [(points[part], half_squares[part], losses[part]) for part in blocks(len(pool), PART)]

    def measure(part: tuple[np.ndarray, np.ndarray, np.ndarray]) -> None:
        np.dot(part[0], rounded, out=part[2])
        np.add(part[2], part[1], out=part[2])

    with in_threads() as each:
        for position in range(size):
            each(measure, parts)
            kept[position] = taken = losses.argmin()
            half_squares[taken] = np.inf
            rounded[:] = total = total + points[taken]
            pool.progress(1)
    return shuffled[kept]


def d2(pool: Pool, size: int, parameters: Parameters) -> np.ndarray:
    """D2 pruning: difficulty is passed to neighbours, then the hardest is taken and its neighbours are discounted.

    The graph joins each example to its `neighbors` nearest in features, in both directions, at distances d. Difficulty
    is the score, shifted to 0 or more. Forward: x_i + sum over its neighbours of exp(-d) x_j. Then, `size` times: take
    the largest x, and subtract exp(-gamma d) of it from those of its neighbours. The `cutoff` hardest are dropped
    first. Source: Maharana et al. 2024, as their code has it (the paper has squared distances).
    """
    dropped = min(int(parameters.cutoff * len(pool)), len(pool) - size)
    rest = np.sort(descending(pool.values, pool.seed)[dropped:])
    ids = rest[np.random.RandomState(pool.seed).permutation(len(rest))]  # so that rank decides ties by the seed
    one, other, lengths = _graph(centered(pool.features, ids), parameters.neighbors, size, pool.progress)
    values = _finite(pool.values[ids])
    difficulty = values - values.min()
    weights = difficulty + np.bincount(one, np.exp(-lengths) * difficulty[other], minlength=len(ids))
    discounts, starts = np.exp(-parameters.gamma * lengths), np.searchsorted(one, np.arange(len(ids) + 1))
    return ids[_take_and_discount(weights.tolist(), size, starts, other, discounts)]


def _graph(
    points: np.ndarray, neighbors: int, size: int, progress: Advance
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Which two points are joined, in both directions: one and other, int [E], by `one`, and distances, float64 [E].

    Args:
        size: Examples that d2 keeps, which are told here: this takes its time.
    """
    total, found = len(points), 0

    def tell(count: int) -> None:
        nonlocal found
        found += count
        progress(size * found // total - size * (found - count) // total)

    count = min(neighbors, total - 1)
    near = nearest(points, count, tell).ravel()
    own = np.repeat(np.arange(total), count)
    edges = np.unique(np.concatenate([own * total + near, near * total + own]))
    one, other = edges // total, edges % total
    lengths = np.empty(len(edges))
    for block in blocks(len(edges)):
        lengths[block] = np.linalg.norm(points[one[block]] - points[other[block]], axis=1)
    return one, other, lengths


def _take_and_discount(
    weights: list[float], size: int, starts: np.ndarray, other: np.ndarray, discounts: np.ndarray
) -> np.ndarray:
    """The reverse pass of `d2`; the neighbours of i are other[starts[i] : starts[i + 1]]. A heap of current and old
    weights: what is popped counts only if it is current."""
    heap = [(-weight, i) for i, weight in enumerate(weights)]
    heapq.heapify(heap)
    kept, taken = [], [False] * len(weights)
    while len(kept) < size:
        weight, i = heapq.heappop(heap)
        if taken[i] or -weight != weights[i]:
            continue
        kept.append(i)
        taken[i] = True
        for edge in range(starts[i], starts[i + 1]):
            if not taken[j := int(other[edge])]:
                weights[j] -= float(discounts[edge]) * weights[i]
                heapq.heappush(heap, (-weights[j], j))
    return np.array(kept, np.int64)
