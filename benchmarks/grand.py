"""Gradient norms against their limits and peers.

The base is one plain batched gradient of the mean loss over the same examples, in evaluation mode, which gives
one gradient instead of B norms. Peers: the gradient by the images alone (the backward pass without parameters), and at
batch 16 vmap(grad), PyTorch's vmap(grad), and the published algorithm, jacrev of the vector of losses.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import optax

from benchmarks import peer_torch
from benchmarks.timing import Goal, Row, goal, interleaved_seconds, row
from datadiet.models.networks import Network
from datadiet.models.registry import build_model
from datadiet.scores.gradients import grad_norms, grad_norms_by_vmap

CASES = (("resnet18_lowres", 16), ("resnet18_lowres", 64), ("simple_cnn_0", 16), ("simple_cnn_0", 256))
CASES += (("mlp", 16), ("mlp", 1024))
PEERS_UP_TO = 16  # the largest batch at which the slow peers run


def losses(network: Network, params: Any, variables: Any, images: jax.Array, labels: jax.Array) -> jax.Array:
    """Cross-entropy of each example in evaluation mode [B]."""
    logits = network.apply({**variables, "params": params}, images)
    return optax.losses.softmax_cross_entropy_with_integer_labels(logits, labels)


def candidates(model: str, batch_size: int) -> dict[str, Callable[[], Any]]:
    """Compiled computations by name; the base comes first."""
    network = build_model(model, 10, (32, 32, 3))
    variables = network.init(jax.random.key(0))
    images = jax.random.normal(jax.random.key(1), (batch_size, 32, 32, 3))
    data = (variables, images, jnp.arange(batch_size, dtype=jnp.int32) % 10)

    def gradient(variables, images, labels):
        return jax.value_and_grad(lambda p: losses(network, p, variables, images, labels).mean())(variables["params"])

    def image_gradient(variables, images, labels):
        return jax.grad(lambda x: losses(network, variables["params"], variables, x, labels).sum())(images)

    def published(variables, images, labels):
        jacobian = jax.jacrev(lambda p: losses(network, p, variables, images, labels))(variables["params"])
        return jnp.sqrt(sum(jnp.sum(x.reshape(batch_size, -1) ** 2, 1) for x in jax.tree.leaves(jacobian)))

    functions = {
        "gradient": gradient,
        "grad_norms": lambda *data: grad_norms(network, *data),
        "image gradient": image_gradient,
    }
    if batch_size <= PEERS_UP_TO:
        functions |= {"vmap(grad)": lambda *data: grad_norms_by_vmap(network, *data), "published": published}
    runs = {name: _bind(jax.jit(function), data) for name, function in functions.items()}
    if batch_size <= PEERS_UP_TO and peer_torch.INSTALLED:
        runs |= peer_torch.gradient_norms(model, batch_size)
    return runs


def _bind(function: Callable, data: tuple) -> Callable[[], Any]:
    return lambda: function(*data)


def goals(model: str, batch_size: int, seconds: dict[str, list[float]]) -> Iterator[Goal]:
    """Against one batched gradient everywhere; the published algorithm is the one for ResNet-18 at batch 16."""
    yield goal("grad_norms ≤ 1.3 batched gradient", seconds, "grad_norms", "gradient", 1.3)
    if model.startswith("resnet") and "published" in seconds:
        yield goal("grad_norms ≤ 1/10 published", seconds, "grad_norms", "published", 0.1)


def measure(rounds: int, quick: bool) -> Iterator[Row]:
    """Rows of the table; quick: the smallest batch of the small models only."""
    for model, batch_size in CASES:
        if not quick or (batch_size == 16 and not model.startswith("resnet")):
            few = min(rounds, 3) if model.startswith("resnet") else rounds
            seconds = interleaved_seconds(candidates(model, batch_size), few)
            found = goals(model, batch_size, seconds)
            yield row(f"grad_norm, {model}", batch_size, seconds, "gradient", goals=found)
