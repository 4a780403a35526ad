"""The whole way in PyTorch, on digits: record, choose, train again on what was chosen, and save what `decide` reads.

    python examples/pytorch_decision.py
    datadiet decide --results own/results.csv --dataset digits --margin 1

With data of your own the ids are positions in an order of yours that never changes; say --num_examples N in place of
--dataset, and leave the column `kept` out.
"""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import torch

import datadiet as dd

DATA = dd.load_dataset("digits")
EVERYTHING = np.arange(DATA.num_examples)
FOLDER, STEPS = Path("own"), 330
SCORING, JUDGING = range(100, 103), range(5)  # seeds; runs that choose judge nothing


def tensor(images: np.ndarray) -> torch.Tensor:
    """float32 [N, H·W]."""
    return torch.tensor(images.reshape(len(images), -1) / 255, dtype=torch.float32)


def train(kept: np.ndarray, seed: int, recorder: dd.Recorder | None = None) -> torch.nn.Module:
    """Train on the examples `kept`, for as many steps however few they are; a recorder is told each batch."""
    torch.manual_seed(seed)
    images, labels = tensor(DATA.train_images), torch.tensor(DATA.train_labels).long()
    model = torch.nn.Sequential(torch.nn.Linear(images.shape[1], 64), torch.nn.ReLU(), torch.nn.Linear(64, 10))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    batches: list[torch.Tensor] = []
    for _ in range(STEPS):
        if not batches:  # the next epoch
            batches += torch.tensor(kept)[torch.randperm(len(kept))].split(64)
        ids = batches.pop()
        logits = model(images[ids])
        if recorder:
            recorder.update(ids, logits, labels[ids])  # before the step
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(logits, labels[ids]).backward()
        optimizer.step()
    return model


def scores() -> np.ndarray:
    """`aum`, float32 [N], the mean of several runs; the logits of each are saved, for `predictions`."""
    found = []
    for seed in SCORING:
        recorder = dd.Recorder(len(EVERYTHING), num_classes=10, scores=("aum",))
        model = train(EVERYTHING, seed, recorder)
        found.append(recorder.values("aum"))
        np.save(FOLDER / f"logits_{seed}.npy", model(tensor(DATA.train_images)).detach().numpy())
    return np.mean(found, axis=0)


def chosen(values: np.ndarray, seed: int) -> dict[tuple[str, float], np.ndarray]:
    """What is trained on, by arm and fraction: ids [M]. `random` is chance, which a score has to beat."""
    arms = {("full data", 1.0): EVERYTHING}
    for fraction in (0.7, 0.5):
        arms["hardest by aum", fraction] = dd.select("keep_max", values, size=fraction)
        arms["random", fraction] = dd.select("random", values, size=fraction, seed=seed)
    return arms


def judge(arm: str, fraction: float, kept: np.ndarray, seed: int) -> dict[str, object]:
    """Train on a subset; save which test examples are right, and what was kept. A row of results.csv."""
    name = f"{arm.replace(' ', '_')}_{fraction}_{seed}"
    predicted = train(kept, seed)(tensor(DATA.test_images)).argmax(1).numpy()
    np.save(FOLDER / f"{name}.npy", predicted == DATA.test_labels)
    (FOLDER / f"{name}.csv").write_text("\n".join(["example_id", *DATA.example_ids[kept]]) + "\n")
    return {"arm": arm, "fraction": fraction, "run": seed, "file": f"{name}.npy", "kept": f"{name}.csv"}


def main() -> None:
    torch.set_num_threads(1)  # which is faster for a network as small as this
    FOLDER.mkdir(exist_ok=True)
    values = scores()
    rows = [judge(*arm, kept, seed) for seed in JUDGING for arm, kept in chosen(values, seed).items()]
    with open(FOLDER / "results.csv", "w", newline="") as file:
        table = csv.DictWriter(file, rows[0].keys())
        table.writeheader()
        table.writerows(rows)
    print(f"{len(rows)} trainings -> {FOLDER / 'results.csv'}")


if __name__ == "__main__":
    main()
