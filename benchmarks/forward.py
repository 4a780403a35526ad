"""EL2N of one batch against the bare forward pass and PyTorch."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import jax
import numpy as np

from benchmarks import peer_torch
from benchmarks.timing import Row, goal, interleaved_seconds, row
from datadiet.models.conv import on_cpu
from datadiet.models.registry import build_model
from datadiet.scores.checkpoint import compute_many

# Model -> examples of a batch, batches of a call: enough of them to take a while.
CASES = {"resnet18_lowres": (128, 2), "simple_cnn_0": (512, 4), "mlp": (512, 32)}


def candidates(model: str, batch_size: int, count: int, dtype: str) -> dict[str, Callable[[], Any]]:
    network = build_model(model, 10, (32, 32, 3), compute_dtype=dtype)
    variables = network.init(jax.random.key(0))
    images = np.asarray(jax.random.normal(jax.random.key(1), (batch_size * count, 32, 32, 3)))
    labels = np.arange(len(images), dtype=np.int32) % 10
    on_device, forward = jax.device_put(images), jax.jit(network.apply)
    batches = [on_device[start : start + batch_size] for start in range(0, len(images), batch_size)]
    score = partial(compute_many, ["l2_error"], network, variables, on_device, labels, batch_size)
    return {"forward": lambda: [forward(variables, batch) for batch in batches], "l2_error": score}


def measure(rounds: int, quick: bool) -> Iterator[Row]:
    """Rows of the table; quick: mlp."""
    for model, (batch_size, count) in CASES.items():
        for dtype in ("float32",) if on_cpu() else ("float32", "bfloat16"):
            if quick and model != "mlp":
                continue
            runs = candidates(model, batch_size, count, dtype)
            if peer_torch.INSTALLED and dtype == "float32":
                for name, run in peer_torch.forward_passes(model, batch_size, not on_cpu()).items():
                    runs[name] = partial(_times, count, run)
            seconds = interleaved_seconds(runs, rounds)
            goals = [goal("l2_error ≤ 1.1 forward pass", seconds, "l2_error", "forward", 1.1)]
            yield row(f"EL2N, {model}, {dtype}", batch_size, seconds, "forward", batch_size * count, goals)


def _times(count: int, run: Callable[[], Any]) -> list[Any]:
    return [run() for _ in range(count)]
