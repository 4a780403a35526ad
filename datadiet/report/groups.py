"""What `analyze` is asked for, and the groups of examples that it compares; no JAX."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from datadiet.option import option


@dataclass(frozen=True)
class Analysis:
    """What is asked for."""

    groups: int = option(5, "Groups of equally many examples, by ascending score.", group="", first=True, min=2, max=20)
    kernel_examples: int = option(
        20, "Examples drawn from each group for its kernel.", group="", first=True, min=2, max=500
    )
    barrier_examples: int = option(1000, "Examples drawn from each group for its errors.", group="", first=True, min=1)
    points: int = option(
        11, "Points on the line between two children, ends included.", group="", first=True, min=3, max=101
    )
    seed: int = option(0, "Draws the examples of each group.", group="", first=True, min=0)
    steps: tuple[int, ...] = option(
        (),
        "Checkpoints between which kernels are compared; none: all that the run has.",
        group="",
        first=True,
        min=0,
    )
    spawn: tuple[int, ...] | None = option(None, "Checkpoints that two children each are trained on from, to the end; "
                                           "none: no children.", auto="0 and the step that is scored",
                                           group="", first=True, min=0)  # fmt: skip


@dataclass(frozen=True)
class Group:
    """Examples of neighbouring scores."""

    low: float
    high: float
    kernel_ids: np.ndarray  # sorted
    barrier_ids: np.ndarray


def groups_of(scores: np.ndarray, asked: Analysis) -> list[Group]:
    """Groups by ascending score, each with a sample of its examples; equal scores are told apart by chance.

    Args:
        scores: [N], finite.
    """
    random = np.random.RandomState(asked.seed)
    shuffled = random.permutation(len(scores))
    order = shuffled[np.argsort(scores[shuffled], kind="stable")]
    found = []
    for ids in np.array_split(order, asked.groups):
        drawn = random.permutation(ids)
        samples = (np.sort(drawn[:size]) for size in (asked.kernel_examples, asked.barrier_examples))
        found.append(Group(float(scores[ids[0]]), float(scores[ids[-1]]), *samples))
    return found
