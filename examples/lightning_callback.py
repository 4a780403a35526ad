"""Scores from PyTorch Lightning: a callback tells a recorder each batch; the half that `aum` calls hardest is kept.

    python examples/lightning_callback.py

`training_step` returns the ids of its batch, its logits and its labels beside the loss.
"""

from __future__ import annotations

import lightning
import torch
from sklearn.datasets import load_digits
from torch.utils.data import DataLoader, TensorDataset

import datadiet as dd


class Record(lightning.Callback):
    """Tells a recorder what `training_step` returned. The step is done by then, the logits are those before it."""

    def __init__(self, recorder: dd.Recorder) -> None:
        self.recorder = recorder

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx) -> None:
        self.recorder.update(outputs["ids"], outputs["logits"], outputs["labels"])


class Net(lightning.LightningModule):
    """A small network."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = torch.nn.Sequential(torch.nn.Linear(64, 64), torch.nn.ReLU(), torch.nn.Linear(64, 10))

    def training_step(self, batch, batch_idx):
        ids, images, labels = batch
        logits = self.layers(images)
        loss = torch.nn.functional.cross_entropy(logits, labels)
        return {"loss": loss, "ids": ids, "logits": logits.detach(), "labels": labels}

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1, momentum=0.9)


def train(epochs: int = 15, seed: int = 0) -> dd.Recorder:
    """Train it; what was recorded."""
    lightning.seed_everything(seed, verbose=False)
    pixels, digits = load_digits(return_X_y=True)
    images, labels = torch.tensor(pixels / 16, dtype=torch.float32), torch.tensor(digits)
    data = TensorDataset(torch.arange(len(labels)), images, labels)
    recorder = dd.Recorder(len(labels), num_classes=10, scores=("forget", "aum"))
    trainer = lightning.Trainer(
        max_epochs=epochs, accelerator="cpu", callbacks=[Record(recorder)], logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False,
    )  # fmt: skip
    trainer.fit(Net(), DataLoader(data, batch_size=64, shuffle=True))
    return recorder


if __name__ == "__main__":
    kept = dd.select("keep_max", train().values("aum"), size=0.5)
    print(f"kept {len(kept)}, the first: {kept[:5].tolist()}")
