"""Features of the training examples, by a checkpoint of a run."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from datadiet.config import default_score_step
from datadiet.data.batches import Normalizer, fit_images
from datadiet.data.dataset import Dataset
from datadiet.errors import UserError
from datadiet.scores.checkpoint import compute_features
from datadiet.storage.runs import open_run
from datadiet.tracking.fetch import local_run
from datadiet.train_config import TrainConfig

_last: dict[tuple[Path, int, int, str], np.ndarray] = {}  # one: the runs of a study share it; it is never written


def features(config: TrainConfig, dataset: Dataset) -> np.ndarray:
    """Penultimate features [N, F] of the training examples.

    They are by the checkpoint that `runs.inputs.find_features` found; where nobody looked for one, by the one that it
    would have found.

    Raises:
        UserError: the run was trained on other data, or has no such checkpoint.
    """
    assert config.features_run is not None
    path = local_run(config.features_run, "features_run")
    stored = open_run(path)
    step = default_score_step(stored.config) if config.features_step is None else config.features_step
    if stored.data.fingerprint != dataset.fingerprint:
        raise UserError(f"features_run={path} was trained on other data than {dataset.name}: name a run on that.")
    folder = path / "ckpts" / str(step)
    key = path.resolve(), step, folder.stat().st_mtime_ns if folder.exists() else 0, dataset.fingerprint
    found = _last.get(key)
    if found is None:
        fitted = fit_images(dataset, stored.network.image_shape)
        variables = stored.variables(step)
        found = compute_features(stored.network, variables, fitted.train_images, prepare=Normalizer.of(fitted))
        _last.clear()
        _last[key] = found
    return found
