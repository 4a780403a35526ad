"""Scores from Keras: after each epoch a callback tells a recorder what the network says of every training example.

    KERAS_BACKEND=jax python examples/keras_callback.py

`fit` does not tell callbacks which examples a batch has, so all are looked at once an epoch, in evaluation mode: one
forward pass of the training set more.
"""

from __future__ import annotations

import keras
import numpy as np
from sklearn.datasets import load_digits

import datadiet as dd


class Record(keras.callbacks.Callback):
    """Tells a recorder the logits of all training examples after each epoch."""

    def __init__(self, recorder: dd.Recorder, images: np.ndarray, labels: np.ndarray) -> None:
        super().__init__()
        self.recorder, self.images, self.labels = recorder, images, labels

    def on_epoch_end(self, epoch, logs=None) -> None:
        logits = self.model.predict(self.images, batch_size=1024, verbose=0)
        self.recorder.update(np.arange(len(self.labels)), logits, self.labels)


def train(epochs: int = 15, seed: int = 0) -> dd.Recorder:
    """Train a small network; what was recorded."""
    keras.utils.set_random_seed(seed)
    pixels, labels = load_digits(return_X_y=True)
    images = (pixels / 16).astype(np.float32)
    model = keras.Sequential([keras.layers.Dense(64, activation="relu"), keras.layers.Dense(10)])  # 10 logits
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.SGD(0.1, momentum=0.9), loss)
    recorder = dd.Recorder(len(labels), num_classes=10, scores=("forget", "aum"))
    model.fit(images, labels, batch_size=64, epochs=epochs, callbacks=[Record(recorder, images, labels)], verbose=0)
    return recorder


if __name__ == "__main__":
    kept = dd.select("keep_max", train().values("aum"), size=0.5)
    print(f"kept {len(kept)}, the first: {kept[:5].tolist()}")
