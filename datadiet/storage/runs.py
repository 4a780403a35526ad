"""Run folders as they lie on disk, opened."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from datadiet import commands, notebook
from datadiet.config import ResolvedConfig
from datadiet.errors import UserError
from datadiet.models.registry import network_of
from datadiet.printable import visible
from datadiet.storage.files import read_lines
from datadiet.storage.layout import MODEL_CODE, check_place
from datadiet.storage.records import Arguments, DataFacts, Summary

if TYPE_CHECKING:  # a report needs no JAX
    import jax

    from datadiet.models.networks import Network, Variables


@dataclass(frozen=True)
class StoredRun:
    """A training run as it lies on disk."""

    path: Path
    arguments: Arguments  # args.json: options, and what was trained on

    def __repr__(self) -> str:
        return f"StoredRun({', '.join(f'{name}: {value}' for name, value in self._facts().items())})"

    def _repr_html_(self) -> str:
        """In a notebook."""
        return notebook.facts(str(self.path), self._facts())

    def _facts(self) -> dict[str, object]:
        """What it is, and how it ended."""
        config, made = self.config, self.summary
        kept = "all of the data" if config.size is None else f"{config.size:,} examples by {config.selector}"
        ended = f"{made.test_acc:.4f}" if made else "not finished"
        return {
            "path": self.path, "dataset": config.dataset, "model": config.model, "trained on": kept,
            "steps": f"{config.num_steps:,}", "test accuracy": ended,
            "checkpoints": ", ".join(map(str, self.steps)) or "none",
        }  # fmt: skip

    @property
    def config(self) -> ResolvedConfig:
        return self.arguments.config

    @property
    def data(self) -> DataFacts:
        """What it was trained on."""
        return self.arguments.data

    @cached_property
    def summary(self) -> Summary | None:
        """summary.json; None while the run is not finished.

        Raises:
            UserError: it is damaged, or that of another run.
        """
        path = self.path / "summary.json"
        if not path.exists():
            return None
        found = Summary.read(path)
        check_place(self.path, found.path, self.arguments.path)
        return found

    def input(self, name: str) -> Path:
        """kept.csv, random_labels.csv or given_labels.csv, as the run wrote it.

        Raises:
            UserError: it is missing, or not what the run was trained on.
        """
        path, made_as = self.path / name, self.arguments.made_as
        expected = made_as.inputs.get(name) if made_as else None
        if not path.is_file() or (expected and sha256(path.read_bytes()).hexdigest() != expected):
            state = "is missing" if not path.is_file() else "is not what this run was trained on (its hash differs)"
            raise UserError(f"{path} {state}; train the run again with {commands.option('overwrite', True)}.")
        return path

    @cached_property
    def reports(self) -> list[dict[str, Any]]:
        """Lines of metrics.jsonl of a finished run, at least one.

        Raises:
            UserError: they are damaged, or those of another run.
        """
        return read_lines(self.path / "metrics.jsonl", self.config.num_steps, self.arguments.seal)

    @cached_property
    def network(self) -> Network:
        """What was trained; the code of a model of the user's own is imported.

        Raises:
            UserError: that is not what it was.
        """
        copy = self.path / MODEL_CODE if (self.path / MODEL_CODE).is_dir() else None
        try:
            return network_of(self.config, self.data.num_classes, tuple(self.data.image_shape), copy)
        except UserError as error:
            if self.config.model_sha256 is None:
                raise
            repair = f"Put its code back as it was, or train the run again with {commands.option('overwrite', True)}"
            raise UserError.of_shown(f"{visible(str(self.path))} was trained with {error} {repair}.") from None

    @property
    def steps(self) -> list[int]:
        """Steps that have a checkpoint, ascending."""
        from datadiet.storage.checkpoints import checkpoint_steps

        return checkpoint_steps(self.path)

    def variables(self, step: int) -> Variables:
        """Network variables at a step; see `load_variables`."""
        import jax

        from datadiet.storage.checkpoints import load_variables

        expected = jax.eval_shape(self.network.init, jax.random.key(0))  # of the network that args.json tells
        return load_variables(self.path, step, expected)

    def logits(self, images: np.ndarray | jax.Array, step: int) -> jax.Array:
        """Logits float32 [B, C] in evaluation mode at a step.

        Args:
            images: [B, H, W, D], normalised float32; or uint8, which are padded and normalised as in training.
        Raises:
            UserError: other whole numbers, or uint8 that are larger than in training.
        """
        return self.network.apply(self.variables(step), self._normalized(images))

    def features(self, images: np.ndarray | jax.Array, step: int) -> jax.Array:
        """Penultimate features float32 [B, F] in evaluation mode at a step; images as for `logits`."""
        return self.network.features(self.variables(step), self._normalized(images))

    def _normalized(self, images: np.ndarray | jax.Array) -> jax.Array:
        import jax.numpy as jnp

        from datadiet.data.batches import expect_normalised, fitted, normalize

        images, shape = jnp.asarray(images), self.network.image_shape
        if images.dtype != jnp.uint8:
            expect_normalised(images, shape)
            return images
        return normalize(fitted(images, shape), jnp.asarray(self.data.mean), jnp.asarray(self.data.std))


def open_run(path: str | Path, name: str | None = None) -> StoredRun:
    """A training run's folder.

    Args:
        name: Its path below exps, where that is known.
    Raises:
        UserError: there is no training run in it, or one that was made in another place below exps.
    """
    path = Path(path)
    if not (path / "args.json").is_file():
        repair = commands.command("full_data", run=0)
        raise UserError(f"{path} holds no training run (no args.json). Train one: {repair}")
    arguments = Arguments.read(path / "args.json")
    check_place(path, arguments.path, name)
    return StoredRun(path, arguments)
