"""The quick study against the steps, evaluations and scores that it is made of: what files and tracking cost."""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np

from benchmarks.timing import Row, goal, row
from datadiet.config import TrainConfig
from datadiet.data.batches import Normalizer
from datadiet.data.dataset import Dataset
from datadiet.data.registry import load_dataset
from datadiet.models.registry import network_of
from datadiet.runs.console import Console, Level
from datadiet.scores.checkpoint import compute_many
from datadiet.storage.layout import ExperimentLayout
from datadiet.study.options import EngineOptions
from datadiet.study.plan import Plan
from datadiet.study.spec import ScoreJob, StudySpec, TrainJob, compile_study
from datadiet.training.loop import fit
from datadiet.training.state import initial_state, on_device
from entrypoints.study import QUICK, QUICK_PLAN

CONFIG, PLAN = TrainConfig(**QUICK), Plan(**QUICK_PLAN)
SMALL = replace(PLAN, score_runs=2, eval_runs=2, score_types=("l2_error",), fractions=(0.5,))


def bare(spec: StudySpec, dataset: Dataset) -> None:
    """All trainings, evaluations and scorings, one after the other, on examples that nobody chose; nothing is kept."""
    network = network_of(spec.config, dataset.num_classes, dataset.image_shape)
    splits, prepare = (on_device(dataset, "train"), on_device(dataset, "test")), Normalizer.of(dataset)
    for job in spec.jobs:
        if isinstance(job, TrainJob):
            state = initial_state(network, job.config, dataset.num_examples)
            kept = np.arange(job.config.size or dataset.num_examples, dtype=np.int32)
            for report in fit(network, *splits, kept, job.config, state):
                state = report.state
        elif isinstance(job, ScoreJob):
            images, labels = dataset.train_images, dataset.train_labels
            compute_many([job.type], network, state.variables, images, labels, prepare=prepare)


def processor_seconds(call: Callable[[], object]) -> float:
    """Of this process, all threads together."""
    before = time.process_time()
    call()
    return time.process_time() - before


def measure(rounds: int, quick: bool) -> Iterator[Row]:
    """One row, in processor seconds, compiled before: the study that `main` makes; quick: of fewer trainings."""
    import mlflow

    from datadiet.runs.context import Context, Output, Tracker
    from datadiet.study.study import run_study

    plan, dataset = SMALL if quick else PLAN, load_dataset("digits")
    silence, before = Console(Level.SILENT), mlflow.get_tracking_uri()
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        mlflow.set_tracking_uri(f"sqlite:///{root}/mlflow.db")
        output = Output(ExperimentLayout(root), overwrite=True)
        context = Context(output, silence, Tracker(root, "benchmark", silence.say))
        few = replace(plan, score_runs=1, eval_runs=1, fractions=plan.fractions[:1])
        run_study(CONFIG, "first", context, few, EngineOptions(workers=1))  # compiles, and imports
        spec = compile_study(plan, CONFIG, "benchmark", output.layout, dataset.num_examples)
        calls = {
            "bare": lambda: bare(spec, dataset),
            "study": lambda: run_study(CONFIG, "benchmark", context, plan, EngineOptions(workers=1)),
        }
        seconds: dict[str, list[float]] = {each: [] for each in calls}
        for _ in range(min(rounds, 3)):
            for each, call in calls.items():
                seconds[each].append(processor_seconds(call))
        mlflow.set_tracking_uri(before)
    steps = [job.config for job in spec.jobs if isinstance(job, TrainJob)]
    examples = sum(one.num_steps * min(one.train_batch_size, one.size or dataset.num_examples) for one in steps)
    goals = [goal("quick study ≤ 1.4 bare steps", seconds, "study", "bare", 1.4)]
    spent = f"{statistics.median(seconds['bare']):.0f} s bare"
    case = f"study as main makes it, {len(steps)} trainings (processor time, {spent})"
    yield row(case, 128, seconds, "bare", examples, goals)
