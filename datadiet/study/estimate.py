"""What a study will take, told before anything starts: trainings, time, disk and memory."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from functools import cache, partial
from multiprocessing import get_context
from pathlib import Path

import jax

from datadiet.config import ResolvedConfig, saved_steps
from datadiet.data.dataset import Dataset
from datadiet.data.inspect import memory
from datadiet.data.registry import dataset_of
from datadiet.intake import shown
from datadiet.models.registry import network_of
from datadiet.progress import duration
from datadiet.runs.timing import Timing, measure
from datadiet.study.spec import PASSES, Job, MeanJob, ScoreJob, TrainJob
from datadiet.training.state import initial_state

BESIDE = 0.5  # seconds that a training takes beside its steps: files, evaluation, MLflow; measured on two cores
FILES = 50_000  # bytes of a run beside its checkpoints and scores
TABLE_ROW = 40  # bytes of an example in kept.csv


@dataclass(frozen=True)
class Estimate:
    """What is left to do of a study, and what that takes."""

    trainings: int  # left
    finished: int  # trainings that are there
    at_most: int  # trainings left if eval_runs=auto takes as many runs as it may
    seconds: float  # of all that is left, about
    at_once: int  # jobs
    device: str  # where steps were timed; empty: nothing is left to train
    disk: int  # bytes that will be written
    disk_free: int  # bytes
    memory: int  # bytes of images, weights and the optimizer, in each process

    def __str__(self) -> str:
        if not self.trainings:
            return f"All {self.finished} trainings are done."
        more = f", {self.at_most} if the verdict takes all runs" if self.at_most > self.trainings else ""
        before = f" ({self.finished} are done{more})" if self.finished else f" ({more[2:]})" if more else ""
        at_once = "one after the other" if self.at_once == 1 else f"up to {self.at_once} at once"
        return (
            f"{self.trainings} trainings{before}, {at_once}: about {duration(self.seconds)} on this {self.device}, "
            f"{shown(self.disk)} of disk ({shown(self.disk_free)} are free), and {shown(self.memory)} of memory for "
            "images and weights in each process."
        )

    def as_json(self) -> str:
        return json.dumps(asdict(self), indent=2)


def estimate(
    config: ResolvedConfig, dataset: Dataset, jobs: list[Job], left: list[Job], at_most: int, at_once: tuple[int, str],
    gpus: int, exps: Path,
) -> Estimate:  # fmt: skip
    """Of a study.

    Args:
        config: Options of the first run that is scored, some steps of which are timed.
        jobs: All jobs of the first round.
        left: Those that are not done.
        at_most: Trainings left at the last look.
        at_once: Jobs at once, and devices of each.
        gpus: That they share; 0: they share one CPU, and finish no sooner for being several.
    """
    trained = [job for job in left if isinstance(job, TrainJob)]
    finished = sum(isinstance(job, TrainJob) for job in jobs) - len(trained)
    count, devices = at_once
    timing = _timing(config, dataset, devices, apart=bool(gpus) and count > 1) if trained else None
    seconds = BESIDE * len(trained)
    if timing is not None:
        batch = min(trained[0].config.train_batch_size, dataset.num_examples)
        rate = PASSES["train"] * batch * timing.steps / timing.seconds  # examples passed forward in a second
        seconds += sum(job.cost for job in left) / rate + timing.compile_seconds
    state = cache(partial(_state_bytes, dataset))
    first = next(job.config for job in jobs if isinstance(job, TrainJob))
    images = memory(dataset, network_of(first, dataset.num_classes, dataset.image_shape).image_shape)
    return Estimate(
        len(trained), finished, at_most, seconds / max(1, min(gpus, count)), count,
        timing.device if timing else "", sum(_disk(job, dataset, state) for job in left),
        _free(exps.absolute()), images + state(first),
    )  # fmt: skip


def _free(folder: Path) -> int:
    """Bytes that are free where a folder is, or will be."""
    return shutil.disk_usage(next(path for path in (folder, *folder.parents) if path.exists())).free


def _timing(config: ResolvedConfig, dataset: Dataset, devices: str, apart: bool) -> Timing:
    """Some steps, timed; apart: in a process of its own, because one that only hands out work takes no GPU."""
    if not apart:
        return measure(config, dataset, devices)
    with ProcessPoolExecutor(1, get_context("spawn")) as pool:
        return pool.submit(_measure_again, config, devices).result()


def _measure_again(config: ResolvedConfig, devices: str) -> Timing:
    return measure(config, dataset_of(config), devices)


def _state_bytes(dataset: Dataset, config: ResolvedConfig) -> int:
    """Of what a checkpoint holds."""
    network = network_of(config, dataset.num_classes, dataset.image_shape)
    state = jax.eval_shape(lambda: initial_state(network, config, dataset.num_examples))
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(state))


def _disk(job: Job, dataset: Dataset, state: Callable[[ResolvedConfig], int]) -> int:
    """Bytes that a job writes."""
    scores = 4 * dataset.num_examples
    match job:
        case TrainJob(config=config):
            gathered = len(config.trajectory) * scores
            kept = TABLE_ROW * (config.size or 0)
            return len(saved_steps(config)) * (state(config) + gathered) + kept + FILES
        case ScoreJob():
            return scores
        case MeanJob(n_runs=runs):
            return (runs + 2) * scores
    return 0
