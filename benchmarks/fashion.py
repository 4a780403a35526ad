"""What the method costs and gives on a GPU, in one command: `python -m benchmarks.fashion`.

Ten ResNet-18 scoring runs of 20 epochs on Fashion-MNIST, scored by EL2N and GraNd at the end of epoch 2; then keep_max
by mean EL2N and random subsets at 70, 50 and 30 %. Prints the table with device seconds and writes it to
benchmarks/results/fashion_<device>.md. Everything is resumed: the same command with the same --root goes on where an
earlier one was stopped. The data is Debian's package dataset-fashion-mnist, or lies in --data_dir.
"""

from __future__ import annotations

import argparse
import shlex
import statistics
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax

from benchmarks.timing import file_stem
from datadiet.config import TrainConfig
from datadiet.runs.console import Console
from datadiet.runs.context import Context, Output, Tracker
from datadiet.runs.inputs import ScoreChoice
from datadiet.runs.inputs import resolve_config as resolve_options
from datadiet.runs.mean import mean_run
from datadiet.runs.score import score_run
from datadiet.runs.train import train_runs
from datadiet.storage.files import read_json
from datadiet.storage.layout import ExperimentLayout

EPOCH = 60_000 // 128
FRACTIONS = (0.7, 0.5, 0.3)
TYPES = ("l2_error", "grad_norm")


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", type=Path, default=Path("fashion"), help="folder of exps/ (fashion)")
    parser.add_argument("--data_dir", help="folder of the four idx files (where Debian puts them)")
    parser.add_argument("--score_runs", type=int, default=10, help="scoring runs (10)")
    parser.add_argument("--runs", type=int, default=2, help="evaluation runs of every subset (2)")
    parser.add_argument("--steps", type=int, default=20 * EPOCH, help=f"optimizer steps of every run (20 x {EPOCH})")
    parser.add_argument("--model", default="resnet18_lowres", help="network (resnet18_lowres)")
    parser.add_argument("--width", type=int, help="channels of its first layer (the model's own)")
    parser.add_argument("--dtype", default="bfloat16", help="compute_dtype (bfloat16)")
    return parser.parse_args()


def line(name: str, summaries: Sequence[dict[str, Any]]) -> str:
    """One line of the table."""
    accuracies = [100 * summary.test_acc for summary in summaries]
    spread = f" ± {statistics.stdev(accuracies):.2f}" if len(accuracies) > 1 else ""
    seconds = sum(summary.seconds for summary in summaries)
    kept = summaries[0].num_kept
    return f"| {name} | {kept:,} | {statistics.mean(accuracies):.2f}{spread} | {len(summaries)} | {seconds:.1f} |"


def main() -> None:
    given = arguments()
    reporter = Console()
    tracker = Tracker(given.root, "python -m benchmarks.fashion", reporter.say)
    context = Context(Output(ExperimentLayout(given.root), resume=True), reporter, tracker)
    config = resolve_options(
        TrainConfig(
            dataset="fashion_mnist", data_dir=given.data_dir, model=given.model, width=given.width,
            compute_dtype=given.dtype, num_steps=given.steps, save_steps=max(1, given.steps // 10),
            decay_steps=tuple(round(given.steps * part) for part in (0.3, 0.6, 0.8) if given.steps > 10),
        ),
        60_000,
    )  # fmt: skip
    config = replace(config, model_seed=None, train_seed=None, random_subset_seed=None)  # derived from each run
    scored = train_runs(config, range(given.score_runs), "full_data", context)
    lines, seconds = [line("full data (the scoring runs)", scored)], {}
    for kind in TYPES:
        paths = [score_run(kind, run, None, 512, "full_data", "full_data", context) for run in range(given.score_runs)]
        mean_run(kind, given.score_runs, None, "full_data", "full_data", context)
        seconds[kind] = sum(read_json(path.with_suffix(".json"))["seconds"] for path in paths)
    evaluated = range(given.score_runs, given.score_runs + given.runs)
    for fraction in FRACTIONS:
        subset = replace(config, size=round(60_000 * fraction), save_steps=given.steps)
        for name, selector in (("keep_max l2_error", "keep_max"), ("random", "random")):
            chosen = train_runs(replace(subset, selector=selector), evaluated, selector, context, ScoreChoice())
            lines.append(line(f"{name}, {fraction:.0%}", chosen))
    device = jax.devices()[0].device_kind
    head = (
        "| trained on | examples | test accuracy % | runs | seconds of training and evaluation |\n|---|---|---|---|---|"
    )
    costs = [f"Scoring {given.score_runs} networks by {kind}: {value:.1f} s." for kind, value in seconds.items()]
    title = f"# Fashion-MNIST, {given.model}, {given.steps:,} steps, {given.dtype}, {device}"
    command = shlex.join(["python", "-m", "benchmarks.fashion", *sys.argv[1:]])
    text = "\n".join([title, "", f"`{command}`", "", head, *lines, "", *costs]) + "\n"
    stem = file_stem(device)
    for folder in (given.root, Path(__file__).parent / "results"):
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"fashion_{stem}.md").write_text(text)
    print(f"\n{text}")


if __name__ == "__main__":
    main()
