"""What is told of a training run beside its reports: what it trained on, and its summary."""

from __future__ import annotations

import numpy as np

from datadiet.runs.task import Task, noted
from datadiet.storage import answers
from datadiet.storage.records import Summary
from datadiet.tracking.run import TrackedRun
from datadiet.training.loop import class_metric


def log_inputs(task: Task, tracked: TrackedRun) -> None:
    """What is trained on, to MLflow; saying it again changes nothing."""
    config, dataset = task.config, task.dataset
    tracked.log_params({"data.num_examples": dataset.num_examples, "data.num_kept": task.num_kept, **noted(dataset)})
    digest = dataset.fingerprint if "kept.csv" not in task.inputs else dataset.subset_digest(task.kept)
    tracked.log_input(dataset.name, digest, "training", num_rows=len(task.kept), kept_by=task.kept_by)
    if config.random_label_fraction:
        changed = int((task.labels != dataset.train_labels).sum())
        tracked.log_metrics({"random_labels/touched": len(task.touched), "random_labels/changed": changed})
    if config.labels is not None:
        tracked.log_metrics({"given_labels/changed": len(task.touched)})


def summarize(task: Task, tracked: TrackedRun, last: dict[str, float]) -> Summary:
    """summary.json of a finished run, from its last metrics."""
    classes = range(task.dataset.num_classes)
    kept_per_class = np.bincount(task.labels[task.kept], minlength=len(classes))
    return Summary(
        path=task.name,
        dataset=task.dataset.name,
        model=task.config.model,
        scored_by=task.kept_by,
        num_kept=task.num_kept,
        num_examples=task.dataset.num_examples,
        **{key: last[key] for key in ("train_acc", "test_acc", "train_loss", "test_loss")},
        test_acc_per_class=[last.get(class_metric(c)) for c in classes],
        kept_per_class=kept_per_class.tolist(),
        budget=task.config.budget,
        select_seconds=task.select_seconds,
        seconds=last["time/train_seconds"] + last["time/eval_seconds"],
        **{f"{name}_seconds": last[f"time/{name}_seconds"] for name in ("train", "eval", "compile", "total")},
        fingerprint=task.dataset.fingerprint,
        num_test=len(task.dataset.test_labels),
        test_correct_sha256=answers.digest(task.run_dir),
        mlflow_run_id=tracked.id,
    )
