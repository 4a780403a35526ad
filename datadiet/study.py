"""The quick study: score, prune, retrain, compare; one parent run with everything below it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np

from datadiet import config as options
from datadiet import data, record, results, store
from datadiet.config import TrainConfig, UserError
from datadiet.pipeline import Place, ScoreChoice, resolve, train_run
from datadiet.scores import TRAINING_SCORES
from datadiet.scoring import mean_run, score_run

BASELINES = ("full data", "random")


@dataclass(frozen=True)
class Plan:
    """What the study compares."""

    score_types: tuple[str, ...] = ("l2_error", "grad_norm", "forget")
    score_runs: int = 5  # runs 0 … 4 are scored
    runs: int = 5  # and runs 5 … 9 evaluate, so that no seed serves both
    fractions: tuple[float, ...] = (0.7, 0.5, 0.3, 0.1)


class Cell(NamedTuple):
    """Test accuracies [R] of one way to choose so many examples; equal positions share seeds."""

    scored_by: str
    size: int
    accuracies: np.ndarray


class Line(NamedTuple):
    """One line of the study's table; accuracies 0 to 1."""

    scored_by: str
    size: int
    fraction: float
    mean: float
    std: float  # over runs, n - 1 in the denominator
    n: int
    minus_random: float  # mean of paired differences; NaN without a peer
    minus_full: float


def paired_difference(cell: Cell, peer: Cell | None) -> float:
    """Mean of the differences between runs that share their seeds; NaN without a peer."""
    return float(np.mean(cell.accuracies - peer.accuracies)) if peer else float("nan")


def table(cells: Sequence[Cell]) -> list[Line]:
    """Mean, spread and paired differences of every cell."""
    by_key = {(cell.scored_by, cell.size): cell for cell in cells}
    full = next(cell for cell in cells if cell.scored_by == "full data")
    lines = []
    for cell in cells:
        count = len(cell.accuracies)
        std = float(np.std(cell.accuracies, ddof=1)) if count > 1 else float("nan")
        random = by_key.get(("random", cell.size)) if cell.scored_by not in BASELINES else None
        lines.append(Line(
            cell.scored_by, cell.size, cell.size / full.size, float(np.mean(cell.accuracies)), std, count,
            paired_difference(cell, random), paired_difference(cell, full if cell is not full else None),
        ))  # fmt: skip
    return lines


def as_text(lines: Sequence[Line]) -> str:
    """The table for a terminal, accuracies in per cent."""
    head = f"{'scored by':<12}{'examples':>9}{'kept':>7}{'test acc %':>16}{'n':>4}{'- random':>10}{'- full':>9}"
    rows = [
        f"{r.scored_by:<12}{r.size:>9,}{r.fraction:>7.0%}{100 * r.mean:>9.2f} ± {100 * r.std:4.2f}{r.n:>4}"
        f"{_signed(r.minus_random):>10}{_signed(r.minus_full):>9}"
        for r in lines
    ]
    return "\n".join([head, *rows])


def _signed(value: float) -> str:
    return "" if np.isnan(value) else f"{100 * value:+.2f}"


def plot_accuracy(lines: Sequence[Line], path: Path) -> None:
    """Accuracy against the fraction kept: mean and one standard deviation over runs."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4.5), layout="constrained")
    axes = figure.subplots()
    full = next(line for line in lines if line.scored_by == "full data")
    axes.axhline(100 * full.mean, color="black", linestyle="--", label="full data")
    axes.axhspan(100 * (full.mean - full.std), 100 * (full.mean + full.std), color="black", alpha=0.1)
    others = list(dict.fromkeys(line.scored_by for line in lines if line is not full))
    for name, marker in zip(others, "osD^vP*X" * len(others)):
        own = sorted((r for r in lines if r.scored_by == name), key=lambda r: r.fraction)
        x, y, spread = ([100 * getattr(r, f) for r in own] for f in ("fraction", "mean", "std"))
        axes.errorbar(x, y, spread, marker=marker, capsize=3, label=name)
    axes.set(xlabel="training examples kept (%)", ylabel="test accuracy (%)", title=f"mean ± std, n = {full.n}")
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(path, dpi=120)


def plot_histograms(means: dict[str, Path], path: Path) -> None:
    """Histogram of each mean score, counts on a logarithmic axis."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4 * len(means), 3.2), layout="constrained")
    for axes, (kind, file) in zip(np.atleast_1d(figure.subplots(1, len(means))), means.items()):
        values, record = store.load_scores(file)
        axes.hist(values[~np.isnan(values)], bins=40, log=True)
        runs = len(record["runs"]) if record else "?"
        axes.set(xlabel=f"{kind}, mean of {runs} runs", ylabel="examples")
    figure.savefig(path, dpi=120)


def score_all(config: TrainConfig, exp: str, plan: Plan, place: Place) -> dict[str, Path]:
    """Train the scoring runs on all examples and score them; the mean score file of each type."""
    for run in range(plan.score_runs):
        train_run(replace(config, run=run), f"{exp}/full_data", place)
    source = f"{exp}/full_data"
    means = {}
    for kind in plan.score_types:
        if kind not in TRAINING_SCORES:
            for run in range(plan.score_runs):
                score_run(kind, run, None, 512, source, source, place)
        means[kind] = mean_run(kind, plan.score_runs, None, source, source, place)
    return means


def evaluate_all(config: TrainConfig, exp: str, plan: Plan, place: Place, sizes: Sequence[int]) -> list[Cell]:
    """Train on every subset with every evaluation seed; subsets need no checkpoint but the last."""

    def cell(kept_by: str, selector: str, size: int | None, folder: str) -> Cell:
        runs = range(plan.score_runs, plan.score_runs + plan.runs)
        chosen = replace(config, selector=selector, size=size, save_steps=config.num_steps)
        choice = ScoreChoice(f"{exp}/full_data", kept_by)
        summaries = [train_run(replace(chosen, run=run), f"{exp}/{folder}", place, choice) for run in runs]
        return Cell(kept_by, summaries[0]["num_kept"], np.array([s["test_acc"] for s in summaries]))

    cells = [cell("full data", "all", None, "full_data")]
    for size in sizes:
        cells += [cell(kind, "keep_max", size, f"keep_max_{kind}") for kind in plan.score_types]
        cells.append(cell("random", "random", size, "random_subset"))
    return cells


def run_study(config: TrainConfig, exp: str, place: Place, plan: Plan = Plan()) -> list[Line]:
    """The whole study; finished runs with the same options are taken as they are, unfinished ones continued.

    Args:
        config: Training options; its run and subset options are set by the study.
        exp: Experiment folder that everything is written below.
        place: Where and how to report.
        plan: What to compare.
    Returns:
        The table, also printed, written as table.csv and logged with the plots to MLflow.
    """
    resolved = resolve(config)
    config = replace(config, num_steps=resolved.num_steps)
    count = data.count_examples(config.dataset, config.data_dir)
    sizes = [round(fraction * count) for fraction in plan.fractions]
    if min(sizes) < 1:
        raise UserError(f"{config.dataset} has {count} examples: too few to keep {min(plan.fractions):.0%} of them.")
    folder = place.layout.experiment(exp)
    note = f"Study of {config.model} on {config.dataset}."
    params = options.as_dict(resolved) | {"score_runs": plan.score_runs, "runs": plan.runs, "sizes": sizes}
    with place.track("study", exp, exp, folder / record.NAME, params=params, note=note) as tracked:
        inner = replace(place, parent=tracked, resume=not place.overwrite)
        means = score_all(config, exp, plan, inner)
        lines = table(evaluate_all(config, exp, plan, inner, sizes))
        store.write_csv(folder / "table.csv", ",".join(Line._fields), lines)
        plot_accuracy(lines, folder / "accuracy.png")
        plot_histograms(means, folder / "scores.png")
        found = [r for r in results.from_mirror(place.layout.exps) if r.path.startswith(f"{exp}/")]
        store.write_text(folder / "results.csv", results.to_csv(found))
        for name in ("table.csv", "accuracy.png", "scores.png", "results.csv"):
            tracked.log_artifact(folder / name)
        best = {f"study/{r.scored_by.replace(' ', '_')}/{r.fraction:.0%}".replace("%", "pct"): r.mean for r in lines}
        tracked.log_metrics(best)
    place.progress.say(f"\n{as_text(lines)}\n\nTable, plots and results.csv: {folder}")
    return lines
