"""A training step on one batch: with and without models.conv, alone and in a loop, against PyTorch's.

PyTorch takes the step channels last, with its own number of threads, and compiled where torch.compile works. On a GPU
both also compute in bfloat16, and an epoch of 50,000 images is timed.
"""

from __future__ import annotations

import statistics
import tempfile
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from benchmarks import peer_torch
from benchmarks.timing import Goal, Row, Seconds, goal, interleaved_seconds, row
from benchmarks.whole import synthetic
from datadiet.config import TrainConfig, resolve
from datadiet.data.registry import build_dataset
from datadiet.models import conv
from datadiet.models.registry import build_model
from datadiet.training.loop import fit
from datadiet.training.state import initial_state, on_device

MODEL = "resnet18_lowres"
SCANNED_STEPS = 2
PLAIN_UP_TO = 16  # beyond, the plain convolution takes minutes on a CPU
EPOCH_EXAMPLES, EPOCH_SECONDS = 50_000, 3.0  # the goal for ResNet-18 on an H100


def step(network: Any, optimizer: optax.GradientTransformation, state: tuple, batch: tuple) -> tuple[tuple, jax.Array]:
    """One training step: (params, batch_stats, optimizer state), (images, labels) -> the new state and the loss."""
    params, stats, memory = state

    def loss(params):
        logits, updated = network.apply_training({"params": params, "batch_stats": stats}, batch[0])
        return optax.losses.softmax_cross_entropy_with_integer_labels(logits, batch[1]).mean(), updated

    (value, stats), gradient = jax.value_and_grad(loss, has_aux=True)(params)
    updates, memory = optimizer.update(gradient, memory, params)
    return (optax.apply_updates(params, updates), stats, memory), value


def compiled(
    batch_size: int, scanned: bool, chunked: bool = True, dtype: str = "float32", model: str = MODEL,
    steps: int = SCANNED_STEPS,
) -> Callable[[], Any]:  # fmt: skip
    """One step; scanned: `steps` of them."""
    network = build_model(model, 10, (32, 32, 3), compute_dtype=dtype)
    variables = network.init(jax.random.key(0))
    optimizer = optax.chain(optax.add_decayed_weights(5e-4), optax.sgd(0.1, 0.9, nesterov=True))
    state = (variables["params"], variables["batch_stats"], optimizer.init(variables["params"]))
    images = jax.random.normal(jax.random.key(1), (batch_size, 32, 32, 3))
    batch = (images, jnp.arange(batch_size, dtype=jnp.int32) % 10)
    run = partial(step, network, optimizer)
    if scanned:
        run, batch = partial(jax.lax.scan, run), jax.tree.map(lambda x: jnp.stack([x] * steps), batch)
    on_cpu = conv.on_cpu
    conv.on_cpu = on_cpu if chunked else lambda: False
    try:
        program = jax.jit(run).lower(state, batch).compile()
    finally:
        conv.on_cpu = on_cpu
    return lambda: program(state, batch)


def per_step(seconds: dict[str, list[float]]) -> dict[str, list[float]]:
    """Seconds of single steps, where a candidate scans several."""
    return {k: [v / SCANNED_STEPS for v in values] if "scan" in k else values for k, values in seconds.items()}


def against_torch(seconds: Seconds, name: str, most: float, text: str) -> Iterator[Goal]:
    """A goal against the fastest of PyTorch's ways, where it is installed."""
    peers = [peer for peer in seconds if peer.startswith("PyTorch")]
    if peers:
        best = min(peers, key=lambda peer: statistics.median(seconds[peer]))
        yield goal(f"{text} ≤ {most} PyTorch (its best: {best})", seconds, name, best, most)


def peers(batch_size: int, half: bool = False) -> dict[str, Callable[[], Any]]:
    if not peer_torch.INSTALLED:
        return {}
    return peer_torch.training_steps(MODEL, batch_size, True, half)


def cpu_rows(rounds: int, quick: bool) -> Iterator[Row]:
    for batch_size in (16,) if quick else (16, 128):
        runs = {"step": compiled(batch_size, False), "step in a scan": compiled(batch_size, True)}
        if batch_size <= PLAIN_UP_TO:
            runs["without models.conv"] = compiled(batch_size, False, chunked=False)  # in a scan: about 50 times
        seconds = per_step(
            interleaved_seconds(runs | peers(batch_size), rounds if batch_size < 128 else min(rounds, 3))
        )
        goals = against_torch(seconds, "step in a scan", 1.2, "training step") if batch_size == 128 else ()
        yield row(f"training step, {MODEL}", batch_size, seconds, "step in a scan", goals=goals)


def gpu_rows(rounds: int, quick: bool) -> Iterator[Row]:
    for half in (False, True):
        scan = compiled(128, True, dtype="bfloat16" if half else "float32")
        seconds = per_step(interleaved_seconds({"step in a scan": scan} | peers(128, half), rounds))
        goals = against_torch(seconds, "step in a scan", 1.0, "training step in bfloat16") if half else ()
        yield row(f"training step, {MODEL}, {'bfloat16' if half else 'float32'}", 128, seconds, "step in a scan",
                  goals=goals)  # fmt: skip
        yield epoch(rounds, "bfloat16" if half else "float32", 5120 if quick else EPOCH_EXAMPLES)


def epoch(rounds: int, dtype: str, count: int) -> Row:
    """An epoch of ResNet-18 with augmentation and forgetting, as `fit` trains it."""
    with tempfile.TemporaryDirectory() as folder:
        dataset = build_dataset(f"npz:{synthetic(folder, count, 1000)}")
    steps = count // 128
    network = build_model(MODEL, 10, dataset.image_shape, compute_dtype=dtype)
    given = TrainConfig(model=MODEL, compute_dtype=dtype, num_steps=steps, log_steps=steps, save_steps=steps)
    config = resolve(given, count)
    splits = on_device(dataset, "train"), on_device(dataset, "test")
    everything = np.arange(count, dtype=np.int32)
    spent = []
    for _ in range(min(rounds, 3) + 1):
        state = initial_state(network, config, count)
        *_, last = fit(network, *splits, everything, config, state)
        spent.append(last.seconds["train"])
    seconds = {"epoch": spent[1:]}
    goals = []
    if dtype == "bfloat16" and count == EPOCH_EXAMPLES:
        goals = [Goal("seconds of an epoch of 50,000 images on an H100", statistics.median(spent[1:]), EPOCH_SECONDS)]
    return row(f"epoch of {count:,} images, {MODEL}, {dtype}", 128, seconds, "epoch", count, goals)


def measure(rounds: int, quick: bool) -> Iterator[Row]:
    """Rows of the table; quick: batch 16 only, or a tenth of an epoch on a GPU."""
    yield from cpu_rows(rounds, quick) if conv.on_cpu() else gpu_rows(rounds, quick)
