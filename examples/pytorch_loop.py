"""Scores from a loop in PyTorch: train on digits, then keep the half that `aum` calls hardest.

    python examples/pytorch_loop.py

Two lines are datadiet's: the recorder, and telling it each batch. The recorder needs no JAX.
"""

from __future__ import annotations

import torch
from sklearn.datasets import load_digits
from torch.utils.data import DataLoader, TensorDataset

import datadiet as dd


def train(epochs: int = 15, seed: int = 0) -> dd.Recorder:
    """Train a small network; what it has recorded."""
    torch.manual_seed(seed)
    pixels, digits = load_digits(return_X_y=True)
    images, labels = torch.tensor(pixels / 16, dtype=torch.float32), torch.tensor(digits)
    data = TensorDataset(torch.arange(len(labels)), images, labels)  # ids: positions in the whole training set
    model = torch.nn.Sequential(torch.nn.Linear(64, 64), torch.nn.ReLU(), torch.nn.Linear(64, 10))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    recorder = dd.Recorder(len(labels), num_classes=10, scores=("forget", "aum"))
    for _ in range(epochs):
        for ids, x, y in DataLoader(data, batch_size=64, shuffle=True):
            logits = model(x)
            recorder.update(ids, logits, y)  # before the step
            optimizer.zero_grad()
            torch.nn.functional.cross_entropy(logits, y).backward()
            optimizer.step()
    return recorder


if __name__ == "__main__":
    recorder = train()
    print(f"saved: {recorder.save('recorder')}")
    kept = dd.select("keep_max", recorder.values("aum"), size=0.5)  # sorted: torch.utils.data.Subset(data, kept)
    print(f"kept {len(kept)} of {len(recorder.presentations)}, the first: {kept[:5].tolist()}")
