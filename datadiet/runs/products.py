"""What is told of a run beside its reports: what it trained on, its summary, and its small files.

A run of its own has those as artifacts. The runs of a study share one file, the study's mirror.zip: a hundred trainings
would leave MLflow as many hundred files, and as many requests.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from datadiet import commands
from datadiet.config import TrainConfig, default_score_step
from datadiet.data.batches import as_read
from datadiet.errors import UserError
from datadiet.intake import shown
from datadiet.models.registry import MODELS
from datadiet.models.source import FORMS, carried, find_source, is_own, requirements
from datadiet.runs.task import Task, noted
from datadiet.storage import answers
from datadiet.storage.layout import score_file
from datadiet.storage.records import Summary
from datadiet.tracking.record import Artifact
from datadiet.tracking.run import TrackedRun
from datadiet.training.loop import class_metric

LARGEST = 32 * 2**20  # bytes of a file that MLflow is given


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


def small(files: Sequence[Path], say: Callable[[str], None]) -> list[Artifact]:
    """Files that belong together, with their folder in MLflow; none where one of them is too large, which is said."""
    size = max((file.stat().st_size for file in files if file.exists()), default=0)
    if size > LARGEST:
        say(f"{files[0]} stays in exps/ alone: MLflow is given files up to {shown(LARGEST)}, this has {shown(size)}.")
        return []
    return [(file, file.parent.name) for file in files]


def products(task: Task, tracked: TrackedRun, say: Callable[[str], None]) -> list[Artifact]:
    """The small files of a training: options, inputs, answers, summary (not there yet), and the scores gathered up to
    the step that is scored by default and to the last one; none for a part of a study."""
    if tracked.parent is not None:
        return []
    config, run_dir = task.config, task.run_dir
    found: list[Artifact] = [
        (run_dir / name, None) for name in ("args.json", *task.inputs, answers.NAME, "summary.json")
    ]
    for kind in config.trajectory:
        for step in dict.fromkeys((default_score_step(config), config.num_steps)) if config.checkpoints else ():
            path = score_file(run_dir, kind, step)
            if path.exists():
                found += small([path, path.with_suffix(".json")], say)
    return found


def check_carried(config: TrainConfig) -> None:
    """Refuse, where MLflow is to be given the network, a training that leaves none, or whose code it would lack.

    Raises:
        UserError: it saves no checkpoint, or code of its model can be had here alone.
    """
    if not config.checkpoints:
        raise UserError("log_model=true takes the last checkpoint; got checkpoints=false: leave out one of them.")
    model = config.model
    if is_own(model):
        _, lacking = requirements(find_source(model))
        if lacking:
            raise UserError(
                f"log_model=true: model={model} imports {', '.join(lacking)}, which would not be in what MLflow is "
                "given: it lies neither in the folder or package of the model, nor in an installed package. Leave "
                "log_model out: the checkpoints are kept as they are."
            )
        return
    build = MODELS[model].build if model in MODELS else None
    module = getattr(getattr(build, "func", build), "__module__", "")
    if not module.startswith("datadiet."):
        raise UserError(
            f"log_model=true: the code of model={model} would not be in what MLflow is given; expected a model of "
            f"datadiet, or {FORMS}. Leave it out: the checkpoints are kept as they are."
        )


def model_facts(task: Task) -> dict[str, Any]:
    """What a model of MLflow is made of beside the checkpoint of the last step: images as the data set has them, and
    the code of a model of the user's own with what that requires.

    Raises:
        UserError: that code is not what it was.
    """
    config = task.config
    own = {}
    if is_own(config.model):
        source = find_source(config.model)
        if source.sha256 != config.model_sha256:
            raise UserError(
                f"model={config.model}: its code ({source.told}) has changed since it was trained, and log_model=true "
                f"gives it away. Put it back, and go on: {commands.option('resume', True)}."
            )
        own = {"code": carried(source), "requires": requirements(source)[0]}
    images = np.asarray(as_read(task.dataset.test_images)[:1])
    return {
        "step": config.num_steps,
        "classes": [str(name) for name in task.dataset.classes],
        "image_shape": list(images.shape[1:]),
        "dtype": str(images.dtype),
        "example": images.tolist(),
        **own,
    }


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
