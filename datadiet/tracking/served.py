"""A trained network as MLflow loads and serves it.

MLflow copies this file into the model and runs it there. Beside it lie what the mirror has of one checkpoint, as
exps/<run>/, and the code of datadiet: nothing is pickled, and every leaf is verified when the model is loaded.
"""

from __future__ import annotations

import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
from mlflow.models import set_model
from mlflow.pyfunc.model import PythonModel

from datadiet.data.batches import Fitted, normalize
from datadiet.storage.runs import open_run

BATCH = 256  # images on the device at once


class Classifier(PythonModel):
    """Images as the data set has them -> class, its number, and the probabilities of all classes."""

    _skip_type_hint_validation = True  # MLflow would ask for hints: the signature says more than they can

    def load_context(self, context) -> None:
        """Open the run that lies in the model."""
        told = json.loads(Path(context.artifacts["told"]).read_text())
        run = open_run(Path(context.artifacts["exps"]) / told["run"], told["run"])
        variables, network = run.variables(told["step"]), run.network
        mean, std = jnp.asarray(run.data.mean), jnp.asarray(run.data.std)
        self.shape, self.fitted = tuple(told["image_shape"]), network.image_shape
        self.dtype, self.classes = np.dtype(told["dtype"]), np.array(told["classes"], object)
        self.probabilities = jax.jit(
            lambda images: jax.nn.softmax(network.apply(variables, normalize(images, mean, std)))
        )

    def predict(self, context, model_input, params=None):
        """A line for each image.

        Args:
            model_input: [B, H, W, D] or [B, D], of the type and shape that the signature names.
        Returns:
            Columns class (its name), index (from 0) and probabilities, float64 [C] in the order of the classes.
        """
        images = np.asarray(model_input)
        if images.shape[1:] != self.shape or images.dtype != self.dtype:
            raise ValueError(f"expected {self.dtype} [B, {', '.join(map(str, self.shape))}], got {images.dtype} "
                             f"{list(images.shape)}")  # fmt: skip
        if self.shape != self.fitted:
            images = Fitted(images, self.fitted)
        parts = [self._batch(images[start : start + BATCH]) for start in range(0, len(images), BATCH)]
        found = np.concatenate([np.empty((0, len(self.classes)), np.float32), *parts])
        index = found.argmax(axis=1)
        return pd.DataFrame(
            {"class": self.classes[index], "index": index, "probabilities": list(found.astype(np.float64))}
        )

    def _batch(self, images: np.ndarray) -> np.ndarray:
        """Probabilities [B, C]; of few sizes, each of which is compiled once."""
        count = 1 << (len(images) - 1).bit_length()
        padded = np.pad(images, [(0, count - len(images)), *[(0, 0)] * (images.ndim - 1)])
        return np.asarray(self.probabilities(jnp.asarray(padded)))[: len(images)]


set_model(Classifier())
