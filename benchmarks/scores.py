"""Every score and every selector on Fashion-MNIST: `python -m benchmarks.scores [--minutes 8]`.

Trains scoring runs of a small network, compares all scores with the mean EL2N, and trains five networks on what every
selector keeps of the 60,000 examples at 10, 30, 50 and 70 %. The cutoff of ccs is found by `datadiet.search`, by a
tenth of the training set. Prints the tables and writes them into docs/scores.md. What is done is kept in
benchmarks/results/scores.json, so the same command goes on where an earlier one ended. The data is Debian's package
dataset-fashion-mnist.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from functools import lru_cache
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from scipy.stats import spearmanr

from datadiet.config import TrainConfig, resolve
from datadiet.data.batches import Normalizer
from datadiet.data.registry import load_dataset
from datadiet.models.registry import build_model
from datadiet.scores import trajectory
from datadiet.scores.checkpoint import compute_features, compute_many
from datadiet.scores.registry import score_names, training_score_names
from datadiet.selectors import selection
from datadiet.selectors.window_search import window_search
from datadiet.storage.files import read_json, write_json, write_text
from datadiet.training.loop import Entrant, fit, fit_runs
from datadiet.training.state import DeviceData, initial_state, on_device

HERE = Path(__file__).parent
STATE, PAGE = HERE / "results" / "scores.json", HERE.parent / "docs" / "scores.md"
MARKS = ("<!-- measured: python -m benchmarks.scores -->", "<!-- end of what was measured -->")
EPOCH = 60_000 // 128
SCORED_AT = EPOCH  # checkpoint scores; those gathered while training and the features are of the end
GIVEN = TrainConfig(
    dataset="fashion_mnist", model="mlp", num_steps=5 * EPOCH, lr=0.05, decay_steps=(1170, 1755), augment=False,
    save_steps=5 * EPOCH, log_steps=5 * EPOCH, trajectory=(),
)  # fmt: skip
SCORE_RUNS, RUNS = 5, 5
FRACTIONS = (0.1, 0.3, 0.5, 0.7)
CUTOFFS = (0.0, 0.1, 0.2, 0.3, 0.5)
SEARCH_RUNS = 2


class Arm(NamedTuple):
    """One way to choose examples."""

    selector: str
    type: str | None = None
    options: Mapping[str, Any] = {}

    @property
    def name(self) -> str:
        told = [f"{name}={value}" for name, value in self.options.items()]
        return " ".join([self.selector, *([self.type] if self.type else []), *told])


ARMS = [
    Arm("random"), Arm("keep_max", "l2_error"), Arm("ccs", "l2_error"), Arm("moderate"), Arm("keep_max", "aum"),
    Arm("keep_max", "grad_norm"), Arm("keep_max", "forget"), Arm("keep_max", "l2_error", {"balance": "proportional"}),
    Arm("ccs", "aum"), Arm("d2", "l2_error"), Arm("herding"), Arm("k_center", options={"balance": "proportional"}),
]  # fmt: skip


class Bench:
    """The data on the device, and trainings on parts of it."""

    def __init__(self) -> None:
        self.dataset = load_dataset("fashion_mnist")
        self.network = build_model("mlp", self.dataset.num_classes, self.dataset.image_shape)
        self.train, self.test = on_device(self.dataset, "train"), on_device(self.dataset, "test")
        self.count = self.dataset.num_examples

    def config(self, run: int, **changes: Any) -> TrainConfig:
        return resolve(replace(GIVEN, run=run, **changes), self.count)

    def accuracies(self, kept: Callable[[TrainConfig], np.ndarray], runs: range, test: Any = None) -> list[float]:
        """Test accuracies of runs at the same time, by what each keeps."""
        entrants = []
        for config in map(self.config, runs):
            entrants.append(Entrant(config, kept(config), initial_state(self.network, config, self.count)))
        found = {}
        for run, report in fit_runs(self.network, self.train, test or self.test, entrants):
            found[run] = report.metrics.get("test_acc")
        return [found[run] for run in range(len(runs))]

    def part(self, ids: np.ndarray) -> DeviceData:
        """Training examples that judge."""
        return self.train._replace(images=self.train.images[ids], labels=self.train.labels[ids])


def scored(bench: Bench, cache: Path) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """All scores, float32 [R, N] by type, and the features of run 0."""
    if cache.exists():
        kept = dict(np.load(cache, allow_pickle=False))
        return kept, kept.pop("features")
    found: dict[str, list[np.ndarray]] = {}
    features, everything = np.empty(0), np.arange(bench.count, dtype=np.int32)
    images, labels = bench.dataset.train_images, bench.dataset.train_labels
    prepare = Normalizer.of(bench.dataset)
    for run in range(SCORE_RUNS):
        config = bench.config(run, trajectory=tuple(trajectory.TRAJECTORIES), trajectory_window=3, save_steps=SCORED_AT)
        state = initial_state(bench.network, config, bench.count)
        for report in fit(bench.network, bench.train, bench.test, everything, config, state):
            if report.step == SCORED_AT:
                values = compute_many(
                    score_names(), bench.network, report.state.variables, images, labels, prepare=prepare
                )
                for kind, each in values.items():
                    found.setdefault(kind, []).append(each)
            if report.step == config.num_steps:
                for kind, stats in report.state.trajectory.items():
                    each = trajectory.TRAJECTORIES[kind].values(stats, np.ones(bench.count, bool))
                    found.setdefault(kind, []).append(each)
                if run == 0:
                    features = compute_features(bench.network, report.state.variables, images, prepare=prepare)
        print(f"scoring run {run} done", flush=True)
    stacked = {kind: np.stack(each).astype(np.float32) for kind, each in found.items()}
    cache.parent.mkdir(parents=True, exist_ok=True)
    np.savez(cache, features=features, **stacked)  # pyright: ignore[reportArgumentType]
    return stacked, features


def costs(bench: Bench) -> dict[str, float]:
    """Seconds of each checkpoint score of all examples over those of one training, median of three, turn by turn."""
    variables = bench.network.init(jax.random.key(0))
    images, labels, prepare = bench.dataset.train_images, bench.dataset.train_labels, Normalizer.of(bench.dataset)

    def score(kind: str) -> None:
        compute_many([kind], bench.network, variables, images, labels, prepare=prepare)

    def plain() -> None:
        config = bench.config(0)
        state = initial_state(bench.network, config, bench.count)
        for _ in fit(bench.network, bench.train, bench.test, np.arange(bench.count, dtype=np.int32), config, state):
            pass

    work = {"training": plain} | {kind: (lambda kind=kind: score(kind)) for kind in score_names()}
    spent: dict[str, list[float]] = {name: [] for name in work}
    for _ in range(4):
        for name, run in work.items():
            start = time.perf_counter()
            run()
            spent[name].append(time.perf_counter() - start)
    return {name: statistics.median(a / b for a, b in zip(spent[name][1:], spent["training"][1:])) for name in work}


def spearman(one: np.ndarray, other: np.ndarray) -> float:
    """Rank correlation of the examples that both measured."""
    both = np.isfinite(one) & np.isfinite(other)
    return float(spearmanr(one[both], other[both])[0])  # pyright: ignore[reportArgumentType]


def cutoff(bench: Bench, means: Mapping[str, np.ndarray], arm: Arm, fraction: float) -> dict[float, float]:
    """Accuracy on a tenth of the training set by the cutoff of ccs, best first."""

    def judge(kept: np.ndarray, held: np.ndarray) -> float:
        return statistics.mean(bench.accuracies(lambda _: kept, range(SEARCH_RUNS), bench.part(held)))

    grid = [{"cutoff": cutoff} for cutoff in CUTOFFS if cutoff <= 1 - fraction]
    assert arm.type is not None
    trials = window_search(arm.selector, means[arm.type], grid, judge, fraction=fraction)
    return {trial.setting["cutoff"]: trial.accuracy for trial in trials}


def keep(bench: Bench, means: Mapping[str, np.ndarray], features: np.ndarray, arm: Arm, fraction: float,
         options: Mapping[str, Any]) -> Callable[[TrainConfig], np.ndarray]:  # fmt: skip
    """What an arm keeps for a run. Selectors of features decide nothing but ties by their seed: they choose once."""
    chosen_from = np.arange(bench.count) if arm.type is None else means[arm.type]
    looks = selection.SELECTORS[arm.selector].features

    @lru_cache
    def chosen(seed: int) -> np.ndarray:
        return selection.select(
            arm.selector, chosen_from, size=round(fraction * bench.count), seed=seed,
            labels=bench.dataset.train_labels, features=features if looks else None, **options,
        )  # fmt: skip

    return lambda config: chosen(0 if looks else config.random_subset_seed)


def left(state: dict[str, Any], bench: Bench, values: Mapping[str, np.ndarray], features: np.ndarray) -> Iterator[str]:
    """Do one thing that is not done, tell what, and go on."""
    means = {kind: np.nanmean(each, axis=0) for kind, each in values.items()}
    judging = range(SCORE_RUNS, SCORE_RUNS + RUNS)
    if "spearman" not in state:
        state["spearman"] = {kind: spearman(means["l2_error"], each) for kind, each in means.items()}
        yield "correlations"
    if "full data" not in state["cells"]:
        everything = np.arange(bench.count, dtype=np.int32)
        state["cells"]["full data"] = bench.accuracies(lambda _: everything, judging)
        yield "full data"
    order = [pair for group in (ARMS[:4], ARMS[4:9], ARMS[9:]) for pair in product(FRACTIONS, group)]  # the slow last
    for fraction, arm in order:
        place, options = f"{arm.name} at {fraction}", dict(arm.options)
        if place in state["cells"]:
            continue
        if arm.selector == "ccs":
            found = cutoff(bench, means, arm, fraction)
            state["search"][place] = {str(value): accuracy for value, accuracy in found.items()}
            options["cutoff"] = next(iter(found))
        kept = keep(bench, means, features, arm, fraction, options)
        start = time.perf_counter()
        first = kept(bench.config(judging[0]))
        state["seconds"][place] = time.perf_counter() - start
        state["kept_per_class"][place] = np.bincount(bench.dataset.train_labels[first]).tolist()
        state["cells"][place] = bench.accuracies(kept, judging)
        yield f"{place}: {100 * statistics.mean(state['cells'][place]):.2f}"


def tables(state: Mapping[str, Any]) -> str:
    """What was measured, as Markdown."""
    costs, header = state.get("costs", {}), ["score", "gathered", "Spearman with mean EL2N"]
    header += ["scoring all examples / one training"] if costs else []  # --costs
    lines = [f"| {' | '.join(header)} |", "|---" * len(header) + "|"]
    for kind, value in sorted(state["spearman"].items(), key=lambda item: -abs(item[1])):
        when = "while training" if kind in training_score_names() else f"at step {SCORED_AT}"
        cells = [f"`{kind}`", when, f"{value:+.3f}"]
        cells += [f"{costs[kind]:.3f}" if kind in costs else ""] if costs else []
        lines.append(f"| {' | '.join(cells)} |")
    shown = [fraction for fraction in sorted(FRACTIONS, reverse=True)]
    lines += ["", f"| selector | {' | '.join(f'{f:.0%} kept' for f in shown)} |", "|---" * (1 + len(shown)) + "|"]
    whole = _accuracy(state["cells"].get("full data"))
    lines.append(f"| full data: {whole} | {' | '.join('' for _ in shown)} |")
    for arm in ARMS:
        cells = [state["cells"].get(f"{arm.name} at {fraction}") for fraction in shown]
        lines.append(f"| `{arm.name}` | {' | '.join(map(_accuracy, cells))} |")
    if state["search"]:
        lines += ["", f"Accuracy on the tenth held out, mean of {SEARCH_RUNS} runs, by cutoff; the best was taken:", ""]
        lines += [f"| ccs | {' | '.join(map(str, CUTOFFS))} |", "|---" * (1 + len(CUTOFFS)) + "|"]
        for place, found in sorted(state["search"].items()):
            cells = [f"{100 * found[str(c)]:.2f}" if str(c) in found else "" for c in CUTOFFS]
            lines.append(f"| `{place}` | {' | '.join(cells)} |")
    return "\n".join(lines)


def _accuracy(values: list[float] | None) -> str:
    return f"{100 * statistics.mean(values):.2f} ± {100 * statistics.stdev(values):.2f}" if values else "not measured"


def publish(state: Mapping[str, Any]) -> None:
    """Put the tables into docs/scores.md, between its marks."""
    text = PAGE.read_text() if PAGE.exists() else f"# Scores and selectors\n\n{MARKS[0]}\n{MARKS[1]}\n"
    before, rest = text.split(MARKS[0])
    after = rest.split(MARKS[1])[1]
    write_text(PAGE, f"{before}{MARKS[0]}\n\n{tables(state)}\n\n{MARKS[1]}{after}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=1e9, help="begin nothing after so long (no limit)")
    parser.add_argument("--cache", type=Path, default=Path("data/benchmark_scores.npz"), help="file of the scores")
    parser.add_argument("--costs", action="store_true", help="measure the cost of scores alone, on a quiet machine")
    given, began = parser.parse_args(), time.monotonic()
    bench = Bench()
    empty = {"cells": {}, "search": {}, "seconds": {}, "kept_per_class": {}}
    state = read_json(STATE) if STATE.exists() else empty
    if given.costs:
        state["costs"] = costs(bench)
        write_json(STATE, state)
    else:
        for told in left(state, bench, *scored(bench, given.cache)):
            write_json(STATE, state)
            print(f"{time.monotonic() - began:6.0f} s  {told}", flush=True)
            if time.monotonic() - began > 60 * given.minutes:
                break
    publish(state)
    print(tables(state))


if __name__ == "__main__":
    main()
