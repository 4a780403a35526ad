"""Distances of many examples in features: products of matrices by blocks, one thread of BLAS for each processor.

Nothing of size N x N is ever held, and no thread waits for another within a product."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import lru_cache
from typing import Any

import numpy as np

from datadiet.errors import UserError
from datadiet.processors import processors
from datadiet.progress import Advance

ROWS = 512  # examples of a block: what is computed of it stays in the cache
SEARCHED = 128  # … whose neighbours are searched, for which some numbers of each other are held
COLUMNS = 512  # … and others that it is compared with at once, in whole groups
GROUP = 16  # examples of which first only the nearest counts

LARGEST = 1e15  # of a feature: sums of their squares are far from the end of float32

Map = Callable[[Callable[[Any], None], Sequence[Any]], None]


@lru_cache(maxsize=1)
def _blas() -> Any:
    from threadpoolctl import ThreadpoolController

    return ThreadpoolController()


@contextmanager
def in_threads() -> Iterator[Map]:
    """A function that calls another with each of several arguments, in as many threads as there are processors; BLAS
    has one in each, because its own wait for each other by spinning, for longer than a small product takes."""
    with _blas().limit(limits=1, user_api="blas"), ThreadPoolExecutor(len(processors())) as pool:

        def each(work: Callable[[Any], None], arguments: Sequence[Any]) -> None:
            for _ in (pool.map if len(arguments) > 1 else map)(work, arguments):
                pass

        yield each


def blocks(count: int, rows: int = ROWS) -> list[slice]:
    """All of `count` examples, `rows` at once."""
    return [slice(first, min(first + rows, count)) for first in range(0, count, rows)]


def centered(features: np.ndarray, ids: np.ndarray) -> np.ndarray:
    """Features of some examples minus their mean, float32 [M, F]: small numbers, whose squares lose little.

    Raises:
        UserError: some are not finite, or so large that distances would not be.
    """
    mean, points = np.zeros(features.shape[1]), np.empty((len(ids), features.shape[1]), np.float32)
    for block in blocks(len(ids), COLUMNS):
        mean += features[ids[block]].sum(0, dtype=np.float64) / len(ids)
    for block in blocks(len(ids), COLUMNS):
        points[block] = features[ids[block]] - mean
    check_reach(max(float(points.max()), -float(points.min())))
    return points


def check_reach(largest: float) -> None:
    """Raises UserError where features are not finite, or so far from their mean that distances would not be."""
    if not largest < LARGEST:  # or NaN
        raise UserError(f"features: expected finite numbers, up to {LARGEST:g} from their mean; got {largest:g}.")


def squared_norms(points: np.ndarray) -> np.ndarray:
    """float32 [N]"""
    return np.einsum("nf,nf->n", points, points)


def approach(each: Map, squares: np.ndarray, points: np.ndarray, others: np.ndarray, gaps: np.ndarray) -> None:
    """Lower `gaps`, squared distances [N], to those to the nearest of `others`, ids [K], where that is nearer."""
    near, halves = np.ascontiguousarray(points[others].T), squares[others] / 2

    def lower(block: slice) -> None:
        products = points[block] @ near
        products -= halves
        np.minimum(gaps[block], squares[block] - 2 * products.max(1), out=gaps[block])

    each(lower, blocks(len(points)))


def nearest(points: np.ndarray, count: int, done: Advance = lambda units: None) -> np.ndarray:
    """The `count` nearest other points of each, int [N, count], unordered.

    Two passes for each block of points: the nearest of every group of GROUP others, then all members of the `count`
    groups where that is nearest, among which the `count` nearest of all must be.

    Args:
        points: float32 [N, F], N above `count`, which may be 0.
        done: Told of points whose neighbours are found.
    """
    total = len(points)
    groups = -(-total // GROUP)
    halves = np.full(groups * GROUP, np.inf, np.float32)  # those that fill the last group are infinitely far
    halves[:total] = squared_norms(points) / 2
    found = np.empty((total, count), np.int64)
    few = min(count, groups)

    def search(block: slice) -> None:
        ours, own = points[block], np.arange(block.start, block.stop)
        best = np.full((groups, len(ours)), -np.inf, np.float32)
        for tile in blocks(total, COLUMNS):
            products = np.full((-(-(tile.stop - tile.start) // GROUP) * GROUP, len(ours)), -np.inf, np.float32)
            np.matmul(points[tile], ours.T, out=products[: tile.stop - tile.start])
            products -= halves[tile.start : tile.start + len(products), None]
            here = own[(own >= tile.start) & (own < tile.stop)]
            products[here - tile.start, here - block.start] = -np.inf
            at = slice(tile.start // GROUP, tile.start // GROUP + len(products) // GROUP)
            best[at] = products.reshape(-1, GROUP, len(ours)).max(1)
        likely = np.argpartition(np.ascontiguousarray(best.T), groups - few, axis=1)[:, groups - few :]
        members = (likely[:, :, None] * GROUP + np.arange(GROUP)).reshape(len(ours), -1)
        gaps = halves[members] - np.matmul(points[np.minimum(members, total - 1)], ours[:, :, None])[:, :, 0]
        gaps[members == own[:, None]] = np.inf
        found[block] = np.take_along_axis(members, np.argpartition(gaps, count - 1, axis=1)[:, :count], axis=1)
        done(len(ours))

    with in_threads() as each:
        each(search if count else lambda block: done(block.stop - block.start), blocks(total, SEARCHED))
    return found
