"""Where the time of a training step goes: ResNet-18's convolutions by kind and size of image, here and in PyTorch.

The base is what PyTorch takes for the same convolutions, times how often a step has them; a row tells which keep the
step behind.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from itertools import product
from typing import Any

import jax
import jax.numpy as jnp

from benchmarks import peer_torch
from benchmarks.timing import Row, interleaved_seconds, row
from datadiet.models import conv

BATCH = 128
# (side of the input, channels in, out, kernel, stride) -> how many there are
SLOWEST = (32, 64, 64, 3, 1)
LAYERS = Counter({
    (32, 3, 64, 3, 1): 1, (32, 64, 64, 3, 1): 4, (32, 64, 128, 3, 2): 1, (32, 64, 128, 1, 2): 1,
    (16, 128, 128, 3, 1): 3, (16, 128, 256, 3, 2): 1, (16, 128, 256, 1, 2): 1, (8, 256, 256, 3, 1): 3,
    (8, 256, 512, 3, 2): 1, (8, 256, 512, 1, 2): 1, (4, 512, 512, 3, 1): 3,
})  # fmt: skip
KINDS = ("forward", "input gradient", "kernel gradient")


def ours(layer: tuple[int, ...]) -> dict[str, Callable[[], Any]]:
    """The three operations of a layer as models.conv has them."""
    side, inputs, outputs, size, stride = layer
    strides = (stride, stride)
    low, high = jax.lax.padtype_to_pads((side,), (size,), (stride,), "SAME")[0]
    pads = ((low, high), (low, high))
    keys = jax.random.split(jax.random.key(0), 3)
    a = jax.random.normal(keys[0], (BATCH, side, side, inputs))
    kernel = jax.random.normal(keys[1], (size, size, inputs, outputs))
    g = jax.random.normal(keys[2], (BATCH, side // stride, side // stride, outputs))
    forward = jax.jit(lambda a, kernel: conv.convolve(strides, pads, None, a, kernel))
    by_input = jax.jit(lambda kernel, g: conv.input_gradient(strides, pads, None, kernel, g, a.shape))
    by_kernel = jax.jit(lambda a, g: conv.kernel_gradient(strides, pads, None, a, g, kernel.shape))
    return dict(zip(KINDS, (lambda: forward(a, kernel), lambda: by_input(kernel, g), lambda: by_kernel(a, g))))


def theirs(layer: tuple[int, ...]) -> dict[str, Callable[[], Any]]:
    """The same by PyTorch, channels last."""
    import torch

    side, inputs, outputs, size, stride = layer

    def random(*shape: int) -> Any:
        return torch.randn(*shape).to(peer_torch.device(), memory_format=torch.channels_last)

    a, kernel = random(BATCH, inputs, side, side), random(outputs, inputs, size, size)
    g, pad = random(BATCH, outputs, side // stride, side // stride), size // 2

    def backward(*wanted: bool) -> Any:
        return torch.ops.aten.convolution_backward(
            g, a, kernel, None, (stride,) * 2, (pad,) * 2, (1, 1), False, (0, 0), 1, (*wanted, False)
        )

    forward = torch.nn.functional.conv2d
    works = (
        lambda: forward(a, kernel, None, stride, pad),
        lambda: backward(True, False),
        lambda: backward(False, True),
    )
    return {kind: peer_torch.finished(work) for kind, work in zip(KINDS, works)}


def bound(rounds: int) -> Row:
    """The forward pass of SLOWEST against a product of the same size: what its windows, copied, take to be multiplied.

    A convolution that XLA computed as that product could not be faster.
    """
    side, inputs, outputs, size, _ = SLOWEST
    windows = jax.random.normal(jax.random.key(3), (BATCH * side * side, size * size * inputs))
    kernel = jax.random.normal(jax.random.key(4), (size * size * inputs, outputs))
    product, kind = jax.jit(jnp.matmul), KINDS[0]
    runs = {"PyTorch": theirs(SLOWEST)[kind], "models.conv": ours(SLOWEST)[kind]}
    runs["XLA's product alone"] = lambda: product(windows, kernel)
    name = f"{kind} of one convolution, {side}x{side}, {inputs} to {outputs} channels"
    return row(name, BATCH, interleaved_seconds(runs, rounds), "PyTorch")


def measure(rounds: int, quick: bool) -> Iterator[Row]:
    """Rows of each kind, where PyTorch is installed; quick: none."""
    if quick or not peer_torch.INSTALLED:
        return
    totals: dict[tuple[str, str], dict[str, list[float]]] = {}
    for layer, count in LAYERS.items():
        one, other, stage = ours(layer), theirs(layer), f"{layer[0]}x{layer[0]}"
        for kind in KINDS if layer[1] > 3 else ("forward", "kernel gradient"):  # images have no gradient
            seconds = interleaved_seconds({"PyTorch": other[kind], "models.conv": one[kind]}, 3)
            for place, (name, values) in product(((kind, "all"), (kind, stage)), seconds.items()):
                so_far = totals.setdefault(place, {}).get(name, [0.0] * 3)
                totals[place][name] = [total + count * v for total, v in zip(so_far, values)]
    for (kind, stage), seconds in sorted(totals.items(), key=lambda item: KINDS.index(item[0][0])):
        yield row(f"{kind} of convolutions, {stage} of a resnet18_lowres step", BATCH, seconds, "PyTorch")
    yield bound(rounds)
