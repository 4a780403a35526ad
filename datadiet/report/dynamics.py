"""What `analyze` does: how a run's training treats groups of examples, from the lowest score to the highest.

The velocity of the data-dependent neural tangent kernel of each group, and the error barrier of each group between two
networks that were trained on from one checkpoint with other noise.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import matplotlib
import numpy as np
from matplotlib.figure import Figure

from datadiet import commands
from datadiet.config import default_score_step
from datadiet.data.batches import Normalizer, fit_images
from datadiet.data.dataset import Dataset
from datadiet.data.registry import dataset_of
from datadiet.errors import Interrupted, UserError
from datadiet.option import check_values
from datadiet.report.figures import COLOURS, MARKERS, RC, WIDTH, png
from datadiet.report.groups import Analysis, Group, groups_of
from datadiet.runs.children import train_child
from datadiet.runs.context import Context
from datadiet.runs.inputs import ScoreChoice, default_scores, read_scores
from datadiet.runs.labels import labels_of
from datadiet.runs.scored import find_run
from datadiet.runs.signals import listen
from datadiet.scores.kernel import kernel_distance, tangent_kernel
from datadiet.storage.files import make_folder, write_bytes, write_json, write_text, writing
from datadiet.storage.runs import StoredRun
from datadiet.storage.tables import csv_text
from datadiet.tracking import record
from datadiet.tracking.fetch import local_file
from datadiet.training.connectivity import barrier, between, with_own_statistics, wrong
from datadiet.training.device import check_device
from datadiet.training.placing import place

STATISTICS_BATCHES = 50  # that statistics of batch norm are taken of; what they were before has 0.9 ** 50 of the weight
VELOCITY = ("group", "score_low", "score_high", "step", "next_step", "epochs", "distance", "velocity")
BARRIERS = ("group", "score_low", "score_high", "spawn_step", "alpha", "error", "barrier")


class Material:
    """A run with its data, as analyses take them."""

    def __init__(self, run: StoredRun, dataset: Dataset) -> None:
        self.run, self.dataset = run, dataset
        self.labels, self.prepare = labels_of(run, dataset), Normalizer.of(dataset)

    def images(self, ids: np.ndarray) -> np.ndarray:
        """uint8 [n, H, W, D], or float32 [n, D]."""
        return np.asarray(self.dataset.train_images[ids])

    def batches(self, seed: int) -> list[np.ndarray]:
        """Training images, not augmented, in batches as large as in training."""
        random, size = np.random.RandomState(seed), min(self.run.config.train_batch_size, self.dataset.num_examples)
        return [
            self.images(np.sort(random.choice(self.dataset.num_examples, size, replace=False)))
            for _ in range(STATISTICS_BATCHES)
        ]


def velocities(
    material: Material, groups: Sequence[Group], steps: Sequence[int], advance: Callable[[int], Any]
) -> list[list[Any]]:
    """Rows of velocity.csv: kernel distance of each group between checkpoints in a row, and that by epoch."""
    run, before, rows = material.run, [], []
    length = material.dataset.num_examples / min(run.config.train_batch_size, material.dataset.num_examples)
    for position, step in enumerate(steps):
        variables = run.variables(step)
        kernels = [
            tangent_kernel(
                run.network, variables, material.prepare(jnp.asarray(material.images(g.kernel_ids))), advance
            )
            for g in groups
        ]
        for number, (group, old, new) in enumerate(zip(groups, before, kernels), start=1):
            epochs, distance = (step - steps[position - 1]) / length, kernel_distance(old, new)
            at = (steps[position - 1], step, epochs, distance, distance / epochs)
            rows.append([number, group.low, group.high, *at])
        before = kernels
    return rows


def barriers(
    material: Material, groups: Sequence[Group], asked: Analysis, spawn: Sequence[int], context: Context,
    advance: Callable[[int], Any], stopping: Callable[[], bool],
) -> list[list[Any]]:  # fmt: skip
    """Rows of barriers.csv: the error of each group on the line between two children of a checkpoint.

    Raises:
        Interrupted: `stopping` said yes.
    """
    run, rows = material.run, []
    splits = place(material.dataset, material.labels, context.data_on, context.reporter.say)
    batches = material.batches(asked.seed) if run.variables(run.steps[0])["batch_stats"] else []
    for step in spawn:
        one, other = (train_child(run, step, number, splits, advance, stopping) for number in (0, 1))
        errors = np.empty((asked.points, len(groups)))
        alphas = np.linspace(0, 1, asked.points)
        for position, alpha in enumerate(alphas):
            mixed = with_own_statistics(run.network, between(one, other, alpha), batches, material.prepare)
            for number, group in enumerate(groups):
                ids = group.barrier_ids
                found = wrong(run.network, mixed, material.images(ids), material.labels[ids], material.prepare)
                errors[position, number] = found.mean()
        heights = barrier(errors)
        rows += [
            [number + 1, group.low, group.high, step, float(alpha), float(errors[at, number]), float(heights[number])]
            for number, group in enumerate(groups) for at, alpha in enumerate(alphas)
        ]  # fmt: skip
    return rows


def picture(moved: list[list[Any]], crossed: list[list[Any]], count: int) -> Figure:
    """Velocity of each group against training, and its barrier against the step at which children were spawned."""
    with matplotlib.rc_context(RC):
        figure = Figure(figsize=(WIDTH, 2.6 * (bool(moved) + bool(crossed))), layout="constrained")
        axes = iter(np.atleast_1d(figure.subplots(bool(moved) + bool(crossed), 1)))
        panels = (
            (moved, "kernel velocity (1/epoch)", "optimizer steps", lambda row: ((row[3] + row[4]) / 2, row[7])),
            (crossed, "error barrier (%)", "children spawned at step", lambda row: (row[3], 100 * row[6])),
        )
        for rows, name, along, point in panels:
            if not rows:
                continue
            panel = next(axes)
            for group in range(1, count + 1):
                points = sorted({point(row) for row in rows if row[0] == group})
                label = f"group {group}" + (" (easiest)" if group == 1 else " (hardest)" if group == count else "")
                look = {"color": COLOURS[(group - 1) % len(COLOURS)], "marker": MARKERS[(group - 1) % len(MARKERS)]}
                panel.plot(*zip(*points), label=label, markersize=4, linewidth=1.1, **look)
            panel.set(xlabel=along, ylabel=name)
        panel.legend(frameon=False, fontsize=7, ncols=2)
    return figure


def analyze_run(
    run: int, asked: Analysis, source_exp: str, exp: str, context: Context, choice: ScoreChoice, scores: str | None
) -> Path:
    """Analyse the training of a run on all examples, and write tables and a picture below exps/<exp>/run_<run>/.

    Args:
        run: Index of the run in `source_exp`.
        choice: The mean score that groups the examples, where `scores`, its file, is None.
    Returns:
        The folder.
    Raises:
        UserError: no such run, checkpoints or scores, or an analysis in the way.
        Interrupted: it was stopped; nothing is written.
    """
    check_values(asked)
    layout = context.output.layout
    stored = find_run(layout, source_exp, run)
    folder = layout.inside(layout.experiment(exp) / f"run_{run}")
    steps, spawn = _steps(stored, asked)
    _check_free(folder, context.output.overwrite)
    path = local_file(scores, "scores") if scores else default_scores(layout, stored.config, choice)
    _check_scores(path, choice)
    check_device(context.reporter.say)
    context.tracker.check()
    published = dataset_of(stored.config)
    dataset = fit_images(published, stored.network.image_shape)
    if dataset.fingerprint != stored.data.fingerprint:
        raise UserError(f"{dataset.name} has changed since {stored.path} was trained on it; train the run again.")
    values, kind = read_scores(path, published, context.reporter.say)
    if missing := int(np.isnan(values).sum()):
        raise UserError(f"{path}: {missing} of {len(values)} values are NaN; expected a score of every example.")
    groups, material = groups_of(values, asked), Material(stored, dataset)
    moved, crossed = _measured(material, groups, asked, steps, spawn, context)
    told = {**asdict(asked), "steps": steps, "spawn": spawn, "run": layout.name(stored.path), "scores": str(path),
            "score_type": kind, "dataset": dataset.name, "fingerprint": dataset.fingerprint}  # fmt: skip
    _write(folder, told, groups, moved, crossed, exp, context)
    return folder


def _steps(run: StoredRun, asked: Analysis) -> tuple[list[int], list[int]]:
    """Checkpoints to compare, and those to spawn at.

    Raises:
        UserError: the run has no such checkpoint, is not of all examples, or nothing is asked.
    """
    if run.config.selector != "all":
        raise UserError(f"{run.path} was trained on a part of the examples; expected a run on all of them.")
    there = run.steps
    steps = sorted(asked.steps) or there
    scored = default_score_step(run.config)
    spawn = sorted({0, scored} & {*there}) if asked.spawn is None else sorted(asked.spawn)
    if missing := sorted({*steps, *spawn} - {*there}):
        lacking, known = (", ".join(map(str, some)) for some in (missing, there))
        raise UserError(f"{run.path} has no checkpoint of step {lacking}; there are {known}.")
    return steps, spawn


def _check_scores(path: Path, choice: ScoreChoice) -> None:
    if not path.exists():
        repair = commands.command("mean_score", score_exp=choice.exp, type=choice.type)
        raise UserError(
            f"No score file {path}, which groups the examples. Name one with {commands.option('scores', 'PATH')}, or "
            f"make it: {repair}"
        )


def _check_free(folder: Path, overwrite: bool) -> None:
    if (folder / "analysis.json").exists() and not overwrite:
        raise UserError(
            f"{folder} holds an analysis. Choose another place with {commands.option('exp', 'EXP')}, or replace it "
            f"with {commands.option('overwrite', True)}."
        )


def _measured(
    material: Material, groups: Sequence[Group], asked: Analysis, steps: Sequence[int], spawn: Sequence[int],
    context: Context,
) -> tuple[list[list[Any]], list[list[Any]]]:  # fmt: skip
    """Rows of both tables."""
    run, name = material.run, context.output.layout.name(material.run.path)
    again, say = f"Repeat: {context.tracker.command}", context.reporter.say
    with listen(say, "without tables: there is no part of them", again) as stopping:

        def heard(advance: Callable[[int], Any]) -> Callable[[int], Any]:
            def progress(units: int) -> None:
                if stopping():
                    raise Interrupted(f"Stopped; nothing is written. {again}")
                advance(units)

            return progress

        moved, crossed = [], []
        try:
            if len(steps) > 1:
                total = len(steps) * sum(len(group.kernel_ids) for group in groups)
                with context.reporter.counter(total, f"kernels of {name}") as advance:
                    moved = velocities(material, groups, steps, heard(advance))
            if spawn:
                total = 2 * sum(run.config.num_steps - step for step in spawn)
                with context.reporter.counter(total, f"children of {name}") as advance:
                    crossed = barriers(material, groups, asked, spawn, context, advance, stopping)
        except Interrupted:
            raise Interrupted(f"Stopped; nothing is written. {again}") from None
    if not moved and not crossed:
        raise UserError("Nothing to analyse: expected two checkpoints, or one to spawn children at.")
    return moved, crossed


def _write(
    folder: Path, told: dict[str, Any], groups: Sequence[Group], moved: list[list[Any]], crossed: list[list[Any]],
    exp: str, context: Context,
) -> None:  # fmt: skip
    name, paths = context.output.layout.name(folder), [folder / "dynamics.png"]
    note = f"Training dynamics of {told['run']} in {len(groups)} groups by {told['score_type'] or 'score'}."
    with writing(folder):
        make_folder(folder)
    with context.tracker.track("analyze", exp, name, folder / record.NAME, params=told, note=note) as run:
        write_bytes(paths[0], png(picture(moved, crossed, len(groups))))
        for table, header, rows in (("velocity.csv", VELOCITY, moved), ("barriers.csv", BARRIERS, crossed)):
            if rows:
                write_text(folder / table, csv_text(header, rows))
                paths.append(folder / table)
        for row in moved:
            run.log_metrics({f"ntk_velocity/group_{row[0]}": row[7]}, row[4])
        for group, step, height in sorted({(row[0], row[3], row[6]) for row in crossed}):
            run.log_metrics({f"error_barrier/group_{group}": height}, step)
        for path in paths:
            run.log_artifact(path)
        write_json(folder / "analysis.json", told)  # last: it says that all else is there
    for line in _summary(groups, moved, crossed):
        context.reporter.say(line)
    context.reporter.say(f"-> {folder}")


def _summary(groups: Sequence[Group], moved: list[list[Any]], crossed: list[list[Any]]) -> list[str]:
    """A line for each group."""
    lines = []
    for number, group in enumerate(groups, start=1):
        speed = [row[7] for row in moved if row[0] == number]
        heights = sorted({(row[3], row[6]) for row in crossed if row[0] == number})
        told = [f"group {number} (score {group.low:.3g} to {group.high:.3g})"]
        told += [f"kernel velocity {speed[0]:.3g} to {speed[-1]:.3g} an epoch"] if speed else []
        told += [f"error barrier {100 * height:.1f} % from step {step:,}" for step, height in heights]
        lines.append(", ".join(told))
    return lines
