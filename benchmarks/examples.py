"""A training step of mlp (batch 128, 64 features) by the number of examples: `python -m benchmarks.examples`.

Processor time of 900 steps through the loop that trains, without reports, the numbers of examples in turn; medians, and
ratios to the smallest within a turn.
"""

from __future__ import annotations

import argparse
import statistics
import time

import jax
import numpy as np

from datadiet import config as options
from datadiet.data.dataset import Dataset
from datadiet.models.registry import build_model
from datadiet.training.loop import fit
from datadiet.training.state import initial_state, on_device

COUNTS = (1_438, 100_000, 1_000_000)
STEPS, FIRST, BATCH, WIDTH, SHAPE = 1024, 100, 128, 128, (8, 8, 1)


class Case:
    """Trainings of one number of examples, timed from step FIRST on."""

    def __init__(self, count: int, trajectory: tuple[str, ...]) -> None:
        random = np.random.default_rng(0)
        images = random.integers(0, 256, (count, *SHAPE), np.uint8)
        labels, constants = random.integers(0, 10, count).astype(np.int32), (np.full(1, 0.5, np.float32),) * 2
        names = np.arange(count).astype(str)
        self.data = Dataset("noise", images, labels, images[:1000], labels[:1000], names, 10, *constants, "0" * 64)
        self.splits, self.trajectory = (on_device(self.data, "train"), on_device(self.data, "test")), trajectory
        self.network = build_model("mlp", 10, SHAPE, WIDTH)

    def seconds(self) -> float:
        """Processor seconds of a step."""
        given = options.TrainConfig(
            dataset="digits", model="mlp", width=WIDTH, augment=False, num_steps=STEPS, log_steps=STEPS,
            save_steps=STEPS, train_batch_size=BATCH, trajectory=self.trajectory,
        )  # fmt: skip
        count = self.data.num_examples
        config = options.resolve(given, count)
        state = jax.block_until_ready(initial_state(self.network, config, count))
        ids, done = np.arange(count, dtype=np.int32), [(0, 0.0)]
        progress = lambda steps: done.append((done[-1][0] + steps, time.process_time()))  # noqa: E731
        for _ in fit(self.network, *self.splits, ids, config, state, progress):
            pass
        first, last = next(one for one in done if one[0] > FIRST), done[-1]
        return (last[1] - first[1]) / (last[0] - first[0])


def main() -> None:
    """Measure, and print the rows of the table in results/million.md."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--turns", type=int, default=7)
    given = parser.parse_args()
    for trajectory in ((), ("forget",), ("forget", "aum", "el2n_epochs")):
        cases = {count: Case(count, trajectory) for count in COUNTS}
        spent: dict[int, list[float]] = {count: [] for count in COUNTS}
        for turn in range(given.turns + 1):
            for count, case in cases.items():
                seconds = case.seconds()
                if turn:  # the first compiles
                    spent[count].append(seconds)
        for count, seconds in spent.items():
            ratios = [one / base for one, base in zip(seconds, spent[COUNTS[0]])]
            print(
                f"| {', '.join(trajectory) or 'none'} | {count:,} | {1000 * statistics.median(seconds):.2f} | "
                f"{statistics.median(ratios):.2f} ({min(ratios):.2f}–{max(ratios):.2f}) |",
                flush=True,
            )


if __name__ == "__main__":
    main()
