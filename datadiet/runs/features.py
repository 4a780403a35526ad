"""Features of the training examples, by a checkpoint of a run."""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache
from pathlib import Path

import numpy as np

from datadiet.data.batches import Normalizer, fit_images
from datadiet.data.dataset import Dataset
from datadiet.data.reading import Reading
from datadiet.data.registry import load_dataset
from datadiet.errors import UserError
from datadiet.scores.checkpoint import compute_features
from datadiet.storage.runs import open_run
from datadiet.tracking.fetch import local_run
from datadiet.train_config import TrainConfig


def features(config: TrainConfig, dataset: Dataset) -> np.ndarray:
    """Penultimate features [N, F] of the training examples, by the checkpoint that `runs.inputs.find_features` found.

    Raises:
        UserError: the run was trained on other data, or has no such checkpoint.
    """
    assert config.features_run is not None
    assert config.features_step is not None
    path = local_run(config.features_run, "features_run")
    trained_on = open_run(path).data.fingerprint
    if trained_on != dataset.fingerprint:
        raise UserError(f"features_run={path} was trained on other data than {dataset.name}: name a run on that.")
    folder = path / "ckpts" / str(config.features_step)
    made = folder.stat().st_mtime_ns if folder.exists() else 0
    read = (config.dataset, config.data_dir, replace(Reading.of(config), labels=None))
    return _features(path.resolve(), config.features_step, made, *read)


@lru_cache(maxsize=1)  # the runs of a study share them; they are never written
def _features(path: Path, step: int, made: int, dataset: str, data_dir: str | None, reading: Reading) -> np.ndarray:
    stored = open_run(path)
    variables = stored.variables(step)
    fitted = fit_images(load_dataset(dataset, data_dir, **reading.given()), stored.network.image_shape)
    return compute_features(stored.network, variables, fitted.train_images, prepare=Normalizer.of(fitted))
