"""Selectors of features at growing numbers of examples, 30 % kept: `python -m benchmarks.selectors [--most N]`.

Processor seconds of this process, beside the plain form of the same work in turn with it where that is not too long,
medians of up to TURNS turns, after one with few examples, which imports:
one step after the other for k_center and herding, exact neighbours by scikit-learn for d2, a pass for each class for
moderate. Noise of 64 features in 10 classes, in which nothing can be left out that is compared. The exponent is that of
the number of examples times the number kept (those of each class, where classes are chosen from apart).
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from datadiet.selectors.coresets import Pool
from datadiet.selectors.distances import in_threads
from datadiet.selectors.selection import kept_order

COUNTS = (10_000, 30_000, 100_000, 300_000, 1_000_000)
CLASSES, FEATURES, SHARE = 10, 64, 0.3
FEW, TURNS, SECONDS = 1000, 7, 5.0  # no other turn begins after so many seconds
PLAIN = {
    "k_center": 30_000,
    "herding": 30_000,
    "d2": 30_000,
    "moderate": 1_000_000,
}  # the most that the plain form does


def plain_k_center(pool: Pool, size: int) -> Any:
    points = pool.features - pool.features.mean(0)
    squares = np.square(points).sum(1)
    gaps, taken = np.full(len(points), np.inf, np.float32), int(squares.argmin())
    for _ in range(size):
        np.minimum(gaps, squares + squares[taken] - 2 * (points @ points[taken]), out=gaps)
        gaps[taken] = -np.inf
        taken = int(gaps.argmax())


def plain_herding(pool: Pool, size: int) -> Any:
    for label in range(CLASSES):
        points = pool.features[pool.labels == label]
        points -= points.mean(0)
        halves, total = np.square(points).sum(1) / 2, np.zeros(FEATURES, np.float32)
        for _ in range(size // CLASSES):
            taken = (points @ total + halves).argmin()
            halves[taken] = np.inf
            total += points[taken]


def library_d2(pool: Pool, size: int) -> Any:
    from sklearn.neighbors import NearestNeighbors

    for label in range(CLASSES):
        points = pool.features[pool.labels == label]
        NearestNeighbors(n_neighbors=5, algorithm="brute").fit(points).kneighbors(return_distance=False)


def plain_moderate(pool: Pool, size: int) -> Any:
    gaps = np.empty(len(pool))
    for label in range(CLASSES):
        members = pool.labels == label
        center = pool.features[members].mean(0, dtype=np.float64)
        gaps[members] = np.linalg.norm(pool.features[members] - center, axis=1)
    np.argsort(gaps)


BESIDE: dict[str, Callable[[Pool, int], Any]] = {
    "k_center": plain_k_center, "herding": plain_herding, "d2": library_d2, "moderate": plain_moderate,
}  # fmt: skip


def pool_of(count: int) -> Pool:
    random = np.random.default_rng(0)
    features = random.standard_normal((count, FEATURES), np.float32)
    return Pool(random.random(count, np.float32), 0, random.integers(0, CLASSES, count).astype(np.int32), features)


def processor_seconds(work: Callable[[], Any]) -> float:
    start = time.process_time()
    work()
    return time.process_time() - start


def beside(name: str, pool: Pool, size: int) -> float:
    """With one thread of BLAS, whose own threads cost more than they gain on a busy machine."""
    with in_threads():
        return processor_seconds(lambda: BESIDE[name](pool, size))


def in_turns(name: str, count: int) -> tuple[list[float], list[float]]:
    """Processor seconds of every turn of the selector, and of its plain form where that does not take too long."""
    pool, size = pool_of(count), round(SHARE * count)
    given = {"size": size, "labels": pool.labels, "features": pool.features}
    spent, plain, began = [], [], time.process_time()
    while not spent or (len(spent) < TURNS and time.process_time() - began < SECONDS):
        spent.append(processor_seconds(lambda: kept_order(name, pool.values, **given)))
        if count <= PLAIN[name]:
            plain.append(beside(name, pool, size))
    return spent, plain


def rows_of(name: str, most: int) -> list[str]:
    """One row for each number of examples, and the exponent."""
    rows, works, medians = [], [], []
    in_turns(name, FEW)
    for count in (count for count in COUNTS if count <= most):
        spent, plain = in_turns(name, count)
        works.append(float(count * round(SHARE * count)))
        medians.append(statistics.median(spent))
        ratio = statistics.median(one / other for one, other in zip(spent, plain)) if plain else 0
        told = f"{statistics.median(plain):.3f} | {ratio:.2f}" if plain else "– | –"
        rows.append(f"| {name} | {count:,} | {medians[-1]:.3f} | {told} |")
        print(rows[-1], flush=True)
    slope = np.polyfit(np.log(works), np.log(medians), 1)[0]
    rows.append(f"| {name} | exponent | {slope:.2f} | | |")
    print(rows[-1], flush=True)
    return rows


def main() -> None:
    """Measure, and print the rows of the table in results/million.md."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", nargs="+", choices=list(BESIDE), default=list(BESIDE))
    parser.add_argument("--most", type=int, default=COUNTS[-1], help="examples; a million take some half an hour")
    given = parser.parse_args()
    for name in given.only:
        rows_of(name, given.most)


if __name__ == "__main__":
    main()
