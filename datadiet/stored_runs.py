"""Training runs as they lie on disk: read without training anything."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from datadiet import data
from datadiet.checkpoints import checkpoint_steps, load_variables
from datadiet.config import TrainConfig, UserError, from_dict
from datadiet.models import Network, Variables, build_model
from datadiet.store import read_record


@dataclass(frozen=True)
class StoredRun:
    """A training run as it lies on disk."""

    path: Path

    @cached_property
    def arguments(self) -> dict[str, Any]:
        """args.json: options, and under "data" what was trained on."""
        return read_record(self.path / "args.json", data=dict)

    @cached_property
    def config(self) -> TrainConfig:
        return from_dict(self.arguments)

    @cached_property
    def summary(self) -> dict[str, Any] | None:
        """summary.json; None while the run is not finished."""
        path = self.path / "summary.json"
        return read_record(path) if path.exists() else None

    @cached_property
    def network(self) -> Network:
        facts = self.arguments["data"]
        config, shape = self.config, facts["image_shape"]
        return build_model(config.model, facts["num_classes"], shape, config.width, config.compute_dtype)

    @property
    def steps(self) -> list[int]:
        """Steps that have a checkpoint, ascending."""
        return checkpoint_steps(self.path)

    def variables(self, step: int) -> Variables:
        """Network variables at a step; see `load_variables`."""
        return load_variables(self.path, step)

    def logits(self, images: np.ndarray | jax.Array, step: int) -> jax.Array:
        """Logits float32 [B, C] in evaluation mode at a step.

        Args:
            images: [B, H, W, D], normalised float32; or uint8, which are normalised as in training.
        """
        return self.network.apply(self.variables(step), self._normalized(images))

    def features(self, images: np.ndarray | jax.Array, step: int) -> jax.Array:
        """Penultimate features float32 [B, F] in evaluation mode at a step; images as for `logits`."""
        return self.network.features(self.variables(step), self._normalized(images))

    def _normalized(self, images: np.ndarray | jax.Array) -> jax.Array:
        images = jnp.asarray(images)
        if images.dtype != jnp.uint8:
            return images
        facts = self.arguments["data"]
        return data.normalize(images, *(jnp.asarray(facts[name], jnp.float32) for name in ("mean", "std")))


def open_run(path: str | Path) -> StoredRun:
    """A training run's folder.

    Raises:
        UserError: there is no training run in it.
    """
    path = Path(path)
    if not (path / "args.json").is_file():
        raise UserError(f"{path} holds no training run (no args.json). Train one: mlflow run . -e full_data -P run=0")
    return StoredRun(path)
