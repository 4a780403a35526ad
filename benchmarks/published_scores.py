"""Our scores of CIFAR-10's training examples beside published ones: `python -m benchmarks.published_scores`.

Trains scoring networks on CIFAR-10 (--data, as `dataset` has it, in original order), scores every training example by
every score, and compares with --published, an npz of el2n_20, grand_20, grand_0, forget_200, input_norm (float [50000],
means of ten ResNet-18, in original order) and labels. Prints Spearman, overlap of the upper halves, and means of each
class, with 95 % intervals by resampling our runs, and GraNd of untrained full-width ResNet-18 against the input norm.
Writes the table to benchmarks/results/published_scores_<device>[_width<width>][_<option>_<value>…].md, and our scores,
float16, to <root>/published_scores.npz. What is done is kept below --root: the same command goes on where it was
stopped. The device decides the defaults.
"""

from __future__ import annotations

import argparse
import io
import shlex
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from benchmarks.fast import training_flops
from benchmarks.timing import file_stem
from datadiet.config import ResolvedConfig, TrainConfig, saved_steps
from datadiet.data.batches import Normalizer, fit_images
from datadiet.data.dataset import Dataset
from datadiet.data.registry import dataset_of
from datadiet.models.registry import build_model, input_shape
from datadiet.recipes import recipe_values
from datadiet.report.statistics import spearman_matrix
from datadiet.runs.console import Console
from datadiet.runs.context import Context, Output, Tracker
from datadiet.runs.inputs import resolve_config
from datadiet.runs.train import train_resolved
from datadiet.scores.checkpoint import compute_many
from datadiet.scores.combine import mean_over_runs
from datadiet.scores.logits import LOGIT_SCORES
from datadiet.scores.registry import NETWORK_SCORES
from datadiet.scores.trajectory import expand
from datadiet.storage.files import npy_parts, write_bytes
from datadiet.storage.layout import ExperimentLayout, score_file
from datadiet.storage.records import Summary
from datadiet.storage.runs import open_run
from datadiet.storage.score_files import load_scores
from datadiet.train_config import FIELDS

EXP = "published_scores"
UNTRAINED = 10  # networks of ResNet-18
RESAMPLED = 200
PAIRS = (  # ours, published
    ("l2_error", "el2n_20"), ("grad_norm", "grand_20"), ("forget", "forget_200"), ("input_norm", "input_norm"),
    ("l2_error", "grand_0"),
)  # fmt: skip
OWN = (("l2_error", "grad_norm"), ("l2_error", "forget"))


class Found(NamedTuple):
    """A number of all runs, and its interval, which one run has not."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        interval = f" ({self.low:.3f} to {self.high:.3f})" if np.isfinite(self.low) else ""
        return f"{self.value:.3f}{interval}"


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    small = jax.default_backend() == "cpu"
    add = parser.add_argument
    add("--data", default="cifar10", help="CIFAR-10 as `dataset` has it (cifar10)")
    add("--data_dir", help="its folder (where it is usually found)")
    add("--published", type=Path, required=True, help="npz of published scores")
    add("--root", type=Path, default=Path("published_scores"), help="folder of exps/ (published_scores)")
    add("--runs", type=int, default=3 if small else 10, help="scoring runs (3 on a CPU, else 10)")
    add("--recipe", default="fast", help="recipe; none: the defaults of trainings (fast)")
    add("--model", help="network (the recipe's)")
    add("--width", type=int, default=16 if small else None, help="channels of its first layer (16 on a CPU, else all)")
    add("--epochs", type=float, help="epochs of a run (the recipe's)")
    add("--set", nargs="+", default=[], metavar="NAME=VALUE", help="other options of the trainings, as in lr=0.5")
    add("--dtype", default="float32" if small else "bfloat16", help="compute_dtype (float32 on a CPU, else bfloat16)")
    add("--at", type=float, nargs="+", default=[0.1], help="parts of the training after which checkpoints are scored; "
        "the tables are of the first (0.1)")  # fmt: skip
    add("--untrained", type=int, default=200 if small else 50_000, help="examples that untrained networks score (200 "
        "on a CPU, else all)")  # fmt: skip
    return parser.parse_args()


def resolved(given: argparse.Namespace) -> ResolvedConfig:
    named = {"model": given.model, "width": given.width, "epochs": given.epochs}
    values = {name: value for name, value in named.items() if value is not None}
    values |= {} if given.recipe == "none" else recipe_values(given.recipe, values)
    values |= {name: FIELDS[name].parse(text) for name, _, text in (one.partition("=") for one in given.set)}
    config = TrainConfig(
        dataset=given.data, data_dir=given.data_dir, compute_dtype=given.dtype, trajectory=("all",), **values
    )
    return replace(resolve_config(config, 50_000), model_seed=None, train_seed=None, random_subset_seed=None)


def scores_of(config: ResolvedConfig, dataset: Dataset, root: Path, step: int) -> dict[str, np.ndarray]:
    """Every score of one finished run, [N]; those of a checkpoint are kept in a file beside it."""
    run_dir = ExperimentLayout(root).run(EXP, config)
    path = run_dir / f"all_scores_{step}.npz"
    if not path.exists():
        stored = open_run(run_dir)
        fitted = fit_images(dataset, stored.network.image_shape)
        kinds, variables = (*LOGIT_SCORES, *NETWORK_SCORES), stored.variables(step)
        found = compute_many(
            kinds, stored.network, variables, fitted.train_images, fitted.train_labels, prepare=Normalizer.of(fitted)
        )
        write_bytes(path, packed(found))
    gathered = {name: load_scores(score_file(run_dir, name, config.num_steps))[0] for name in expand(("all",))}
    return dict(np.load(path, allow_pickle=False)) | gathered


def packed(arrays: dict[str, np.ndarray]) -> bytes:
    held = io.BytesIO()
    np.savez_compressed(held, allow_pickle=False, **arrays)
    return held.getvalue()


def untrained(dataset: Dataset, count: int, root: Path) -> tuple[np.ndarray, np.ndarray]:
    """Ids of `count` examples drawn at random, and their mean GraNd over UNTRAINED networks, full-width ResNet-18; kept
    below `root` network by network."""
    ids = np.sort(np.random.RandomState(0).permutation(dataset.num_examples)[:count])
    fitted = fit_images(dataset, input_shape("resnet18_lowres", dataset.image_shape))
    network, found = build_model("resnet18_lowres", 10, fitted.image_shape), []
    images, labels = fitted.train_images[ids], fitted.train_labels[ids]
    for seed in range(UNTRAINED):
        path = root / f"untrained_{count}" / f"{seed}.npy"
        if not path.exists():
            given = (network, network.init(jax.random.key(seed)), images, labels, min(count, 100))
            path.parent.mkdir(parents=True, exist_ok=True)
            of_network = compute_many(["grad_norm"], *given, prepare=Normalizer.of(fitted))["grad_norm"]
            write_bytes(path, *npy_parts(of_network))
            print(f"untrained network {seed + 1} of {UNTRAINED} scored", flush=True)
        found.append(np.load(path, allow_pickle=False))
    return ids, np.mean(found, axis=0)


def spearman(one: np.ndarray, other: np.ndarray) -> float:
    """Of the examples that both measured."""
    measured = np.isfinite(one) & np.isfinite(other)
    return float(spearman_matrix(np.stack([one[measured], other[measured]]))[0, 1]) if measured.any() else np.nan


def overlap(one: np.ndarray, other: np.ndarray) -> float:
    """Part of the upper half of one score that is in the upper half of the other; ties as a stable sort has them."""
    half = len(one) // 2
    return len(np.intersect1d(np.argsort(one, kind="stable")[half:], np.argsort(other, kind="stable")[half:])) / half


def over_runs(values: list[np.ndarray], runs: int, measure: Any) -> Found:
    """measure(means of each of `values` [R, N] over runs), and its interval by drawing runs with replacement; values of
    one row are what they are in every draw."""
    draws = [np.arange(runs), *np.random.RandomState(0).randint(0, runs, (RESAMPLED if runs > 1 else 0, runs))]
    found = [measure(*(mean_over_runs(v[draw]) if len(v) == runs else v[0] for v in values)) for draw in draws]
    low, high = np.percentile(found[1:], (2.5, 97.5)) if runs > 1 else (np.nan, np.nan)
    return Found(found[0], low, high)


def tables(ours: dict[str, np.ndarray], published: dict[str, np.ndarray], runs: int) -> list[str]:
    """Markdown of all comparisons; `ours` [R, N] by name."""
    lines = ["| ours | published | Spearman | overlap of upper halves |", "|---|---|---|---|"]
    for name, other in PAIRS:
        pair = [ours[name], published[other][None]]
        lines.append(f"| {name} | {other} | {over_runs(pair, runs, spearman)} | {over_runs(pair, runs, overlap)} |")
    lines += ["", "| ours | ours | Spearman | published pair |", "|---|---|---|---|"]
    beside = (("el2n_20", "grand_20"), ("el2n_20", "forget_200"))
    for (one, other), pair in zip(OWN, beside):
        found = over_runs([ours[one], ours[other]], runs, spearman)
        theirs = spearman(published[pair[0]], published[pair[1]])
        lines.append(f"| {one} | {other} | {found} | {' – '.join(pair)}: {theirs:.3f} |")
    lines += ["", "| class | EL2N, ours | published | forgetting, ours | published |", "|---|---|---|---|---|"]
    for label in range(10):
        members = published["labels"] == label
        means = [ours["l2_error"].mean(0), published["el2n_20"], ours["forget"].mean(0), published["forget_200"]]
        lines.append(f"| {label} | {' | '.join(f'{mean[members].mean():.3f}' for mean in means)} |")
    lines += ["", "All our scores, Spearman with el2n_20 and with forget_200:", ""]
    lines += ["| ours | el2n_20 | forget_200 | examples measured |", "|---|---|---|---|"]
    for name, values in ours.items():
        mean = mean_over_runs(values)
        told = [f"{spearman(mean, published[other]):.3f}" for other in ("el2n_20", "forget_200")]
        lines.append(f"| {name} | {' | '.join(told)} | {np.isfinite(mean).sum():,} |")
    return lines


def step_table(by_step: dict[int, dict[str, np.ndarray]], published: dict[str, np.ndarray], runs: int) -> list[str]:
    """Markdown of Spearman at every step whose checkpoint was scored."""
    lines = ["| step | l2_error – el2n_20 | grad_norm – grand_20 | l2_error – grad_norm |", "|---|---|---|---|"]
    for step, ours in sorted(by_step.items()):
        el2n, grand = ours["l2_error"], ours["grad_norm"]
        pairs = [el2n, published["el2n_20"][None]], [grand, published["grand_20"][None]], [el2n, grand]
        lines.append(f"| {step} | {' | '.join(str(over_runs(pair, runs, spearman)) for pair in pairs)} |")
    return lines


def main() -> None:
    given = arguments()
    config, reporter = resolved(given), Console()
    published = dict(np.load(given.published, allow_pickle=False))
    dataset = dataset_of(config)
    if not np.array_equal(dataset.train_labels, published["labels"]):
        raise SystemExit(f"{given.data}: its labels are not those of {given.published} in the same order.")
    ids, grand = untrained(dataset, given.untrained, given.root)
    print(beside_input_norm(ids, grand, published), flush=True)
    command = shlex.join(["python", "-m", "benchmarks.published_scores", *sys.argv[1:]])
    output = Output(ExperimentLayout(given.root), resume=True)
    context = Context(output, reporter, Tracker(given.root, command, reporter.say, offline=True))
    configs = [replace(config, run=run) for run in range(given.runs)]
    saved, steps = saved_steps(config), [part * config.num_steps for part in given.at]
    steps = [min(saved, key=lambda t: abs(t - step)) for step in steps]
    summaries, found = [], {step: [] for step in steps}
    for one in configs:
        summaries += train_resolved([one], EXP, context)
        for step in found:
            found[step].append(scores_of(one, dataset, given.root, step))
    by_step = {step: {name: np.stack([each[name] for each in of]) for name in of[0]} for step, of in found.items()}
    ours = by_step[steps[0]]
    means = {name: mean_over_runs(values).astype(np.float16) for name, values in ours.items()}
    write_bytes(given.root / "published_scores.npz", packed(means))
    text = "\n".join([
        f"# Our scores beside published ones, on {jax.devices()[0].device_kind}", "", f"`{command}`", "",
        trained(config, summaries, steps[0]), "", *tables(ours, published, given.runs), "",
        *step_table(by_step, published, given.runs), "",
        beside_input_norm(ids, grand, published),
    ]) + "\n"  # fmt: skip
    width = [f"width{config.width}"] if config.width else []
    stem = file_stem(jax.devices()[0].device_kind, *width, *given.set)
    for folder in (given.root, Path(__file__).parent / "results"):
        write_bytes(folder / f"published_scores_{stem}.md", text.encode())
    print(f"\n{text}")


def trained(config: ResolvedConfig, summaries: list[Summary], step: int) -> str:
    """What was trained and scored, in words."""
    accuracies, seconds = [100 * one.test_acc for one in summaries], np.mean([one.seconds for one in summaries])
    spread = f" ± {np.std(accuracies, ddof=1):.2f}" if len(accuracies) > 1 else ""
    petaflop, runs = config.num_steps * training_flops(config) / 1e15, len(summaries)
    many = f"{runs} runs" if runs > 1 else "One run"
    drawn = f"Intervals: 95 %, our {runs} runs drawn with replacement." if runs > 1 else "One run has no intervals."
    return (
        f"{many} of {config.model}, width {config.width or 'its own'}, {config.num_steps} steps of "
        f"{config.train_batch_size} examples ({petaflop:.4f} PFLOP each), {config.compute_dtype}; test accuracy "
        f"{np.mean(accuracies):.2f}{spread} %, {seconds:.0f} s of training and evaluation each. Tables but the "
        f"last are of checkpoints at step {step}. {drawn} Published scores are as they are."
    )


def beside_input_norm(ids: np.ndarray, grand: np.ndarray, published: dict[str, np.ndarray]) -> str:
    """GraNd of untrained networks against the norm of the input, in words."""
    there = {name: published[name][ids] for name in ("input_norm", "grand_0")}
    return (
        f"GraNd of {UNTRAINED} untrained resnet18_lowres of full width, {len(ids):,} examples drawn at random: "
        f"Spearman {spearman(grand, there['input_norm']):.3f} with the published input norm (published grand_0 there: "
        f"{spearman(there['grand_0'], there['input_norm']):.3f}), {spearman(grand, there['grand_0']):.3f} with the "
        "published grand_0."
    )


if __name__ == "__main__":
    main()
