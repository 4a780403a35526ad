"""A ResNet-18 training step on a CPU, with and without datadiet.conv, alone and in a loop.

PyTorch takes the same step (channels last, its own number of threads) in the same rounds, where it is installed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from importlib.util import find_spec
from typing import Any

import jax
import jax.numpy as jnp
import optax

from benchmarks.timing import Row, interleaved_seconds, row
from datadiet import conv
from datadiet.models import build_model

SCANNED_STEPS = 2
SCAN_OF_PLAIN_UP_TO = 16  # beyond, the plain convolution in a loop takes minutes


def step(network: Any, optimizer: optax.GradientTransformation, state: tuple, batch: tuple) -> tuple[tuple, jax.Array]:
    """One training step: (params, batch_stats, optimizer state), (images, labels) -> the new state and the loss."""
    params, stats, memory = state

    def loss(params):
        logits, updated = network.apply_training({"params": params, "batch_stats": stats}, batch[0])
        return optax.losses.softmax_cross_entropy_with_integer_labels(logits, batch[1]).mean(), updated

    (value, stats), gradient = jax.value_and_grad(loss, has_aux=True)(params)
    updates, memory = optimizer.update(gradient, memory, params)
    return (optax.apply_updates(params, updates), stats, memory), value


def compiled_steps(batch_size: int, chunked: bool) -> tuple[Callable[[], Any], Callable[[], Any]]:
    """One step, and a scan of SCANNED_STEPS steps."""
    network = build_model("resnet18_lowres", 10, (32, 32, 3))
    variables = network.init(jax.random.key(0))
    optimizer = optax.chain(optax.add_decayed_weights(5e-4), optax.sgd(0.1, 0.9, nesterov=True))
    state = (variables["params"], variables["batch_stats"], optimizer.init(variables["params"]))
    images = jax.random.normal(jax.random.key(1), (batch_size, 32, 32, 3))
    batch = (images, jnp.arange(batch_size, dtype=jnp.int32) % 10)
    batches = jax.tree.map(lambda x: jnp.stack([x] * SCANNED_STEPS), batch)
    on_cpu = conv.on_cpu
    conv.on_cpu = on_cpu if chunked else lambda: False
    try:
        one = jax.jit(lambda s, b: step(network, optimizer, s, b)).lower(state, batch)
        scanned = jax.jit(lambda s, b: jax.lax.scan(lambda s, b: step(network, optimizer, s, b), s, b))
        scanned = scanned.lower(state, batches)
    finally:
        conv.on_cpu = on_cpu
    one = one.compile()
    scan = None if not chunked and batch_size > SCAN_OF_PLAIN_UP_TO else scanned.compile()
    return lambda: one(state, batch), lambda: scan(state, batches) if scan else None


def torch_step(batch_size: int) -> Callable[[], Any]:
    """PyTorch's step of the same network."""
    import torch
    from torch import nn

    class Block(nn.Module):
        def __init__(self, inputs: int, filters: int, stride: int):
            super().__init__()
            layers = [nn.Conv2d(inputs, filters, 3, stride, 1, bias=False), nn.BatchNorm2d(filters), nn.ReLU()]
            layers += [nn.Conv2d(filters, filters, 3, 1, 1, bias=False), nn.BatchNorm2d(filters)]
            self.branch = nn.Sequential(*layers)
            projection = (nn.Conv2d(inputs, filters, 1, stride, bias=False), nn.BatchNorm2d(filters))
            self.skip = nn.Identity() if inputs == filters else nn.Sequential(*projection)

        def forward(self, x):
            return torch.relu(self.branch(x) + self.skip(x))

    layers, inputs = [nn.Conv2d(3, 64, 3, 1, 1, bias=False), nn.BatchNorm2d(64), nn.ReLU()], 64
    for stage in range(4):
        for position in range(2):
            layers.append(Block(inputs, 64 << stage, 2 if stage and not position else 1))
            inputs = 64 << stage
    model = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(512, 10))
    model = model.to(memory_format=torch.channels_last).train()
    optimizer = torch.optim.SGD(model.parameters(), 0.1, 0.9, nesterov=True, weight_decay=5e-4)
    images = torch.randn(batch_size, 3, 32, 32).to(memory_format=torch.channels_last)
    labels = torch.arange(batch_size) % 10

    def run():
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(images), labels).backward()
        optimizer.step()

    return run


def measure(rounds: int, quick: bool) -> Iterator[Row]:
    """Rows of the table, with PyTorch where it is installed; quick: batch 16 only."""
    for batch_size in (16,) if quick else (16, 64, 128):
        plain, plain_scan = compiled_steps(batch_size, chunked=False)
        fast, fast_scan = compiled_steps(batch_size, chunked=True)
        runs = {"plain": plain, "datadiet.conv": fast, "datadiet.conv scan": fast_scan}
        runs |= {"plain scan": plain_scan} if batch_size <= SCAN_OF_PLAIN_UP_TO else {}
        runs |= {"PyTorch": torch_step(batch_size)} if find_spec("torch") else {}
        seconds = interleaved_seconds(runs, rounds)
        for name in seconds:
            if name.endswith("scan"):
                seconds[name] = [value / SCANNED_STEPS for value in seconds[name]]
        yield row("training step, resnet18_lowres", batch_size, seconds, "plain")
