"""The quick study against the steps, evaluations and scores that it is made of: what files and tracking cost."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from benchmarks.timing import Row, goal, row
from benchmarks.whole import Silence
from datadiet.config import TrainConfig
from datadiet.data.batches import Normalizer
from datadiet.data.dataset import Dataset
from datadiet.data.registry import load_dataset
from datadiet.models.registry import build_model
from datadiet.scores.checkpoint import compute_many
from datadiet.storage.layout import ExperimentLayout
from datadiet.study.options import EngineOptions
from datadiet.study.plan import Plan
from datadiet.study.spec import ScoreJob, StudySpec, TrainJob, compile_study
from datadiet.training.loop import fit
from datadiet.training.state import initial_state, on_device

CONFIG = TrainConfig(dataset="digits", model="mlp", num_steps=330, decay_steps=(99, 198, 264), augment=False)
PLAN = Plan(score_runs=5, fractions=(0.7, 0.5, 0.3, 0.1), margin=1.5, every_checkpoint=False)
QUICK = Plan(score_runs=2, eval_runs=2, score_types=("l2_error",), fractions=(0.5,), margin=1.5, every_checkpoint=False)


def bare(spec: StudySpec, dataset: Dataset) -> None:
    """All trainings and scorings, one after the other, on examples that nobody chose; nothing is kept."""
    network = build_model(CONFIG.model, dataset.num_classes, dataset.image_shape)
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
    """One row, in processor seconds: a study of digits as `main` makes it."""
    import mlflow

    from datadiet.runs.context import Context, Output, Tracker
    from datadiet.study.study import run_study

    plan, dataset, silence = QUICK if quick else PLAN, load_dataset("digits"), Silence()
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        mlflow.set_tracking_uri(f"sqlite:///{root}/mlflow.db")
        output = Output(ExperimentLayout(root), overwrite=True)
        context = Context(output, silence, Tracker(root, "benchmark", silence.say))
        spec = compile_study(plan, CONFIG, "benchmark", output.layout, dataset.num_examples)
        calls = {
            "bare": lambda: bare(spec, dataset),
            "study": lambda: run_study(CONFIG, "benchmark", context, plan, EngineOptions(workers=1)),
        }
        for call in calls.values():
            call()  # compiles
        seconds: dict[str, list[float]] = {name: [] for name in calls}
        for _ in range(min(rounds, 3)):
            for name, call in calls.items():
                seconds[name].append(processor_seconds(call))
    trained = sum(isinstance(job, TrainJob) for job in spec.jobs)
    goals = [goal("quick study ≤ 1.4 bare steps", seconds, "study", "bare", 1.4)]
    case = f"study of {trained} trainings of digits, mlp (processor time)"
    yield row(case, 128, seconds, "bare", trained * CONFIG.num_steps * 128 if CONFIG.num_steps else None, goals)
