"""What happens to gradients and weights beside SGD: rates of biases of their own, and Lookahead."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

PULL = 0.95  # of Lookahead, for each step between two returns


def norm_biases(params: Any) -> Any:
    """Which parameters are biases of a norm, as a tree of bool: those called bias in a layer without a kernel."""

    def walk(tree: Any) -> Any:
        return {
            name: walk(value) if isinstance(value, dict) else name == "bias" and "kernel" not in tree
            for name, value in tree.items()
        }

    return walk(params)


def scale_norm_biases(factor: float) -> optax.GradientTransformation:
    """Gradients of the biases of norms times `factor`. Before weight decay is added: then their learning rate is
    `factor` times, and their weight decay 1 / `factor` of that of others."""

    def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
        return jax.tree.map(lambda g, chosen: factor * g if chosen else g, updates, norm_biases(updates)), state

    return optax.GradientTransformation(lambda params: optax.EmptyState(), update)


class Slow(NamedTuple):
    """What Lookahead carries from step to step."""

    count: jax.Array  # int32 []: steps done
    weights: Any  # the running mean, as the parameters


def lookahead(every: int, num_steps: int) -> optax.GradientTransformation:
    """After every `every` steps, and after the last, the weights and their running mean become the same: with
    d = 0.95^every (t / num_steps)^3 after step t, d times the mean and 1 - d times the weights.

    Source: Zhang et al. 2019, with the rising d of Jordan 2024 (arXiv 2404.00498).
    """

    def init(params: Any) -> Slow:
        return Slow(jnp.int32(0), jax.tree.map(jnp.copy, params))  # buffers of its own: those of params are given away

    def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, Slow]:
        count = state.count + 1
        due = (count % every == 0) | (count == num_steps)
        pull = PULL**every * (count / num_steps) ** 3
        fast = optax.apply_updates(params, updates)
        met = jax.tree.map(lambda slow, weight: pull * slow + (1 - pull) * weight, state.weights, fast)
        slow = jax.tree.map(lambda new, old: jnp.where(due, new, old), met, state.weights)
        moved = jax.tree.map(lambda new, old, update: jnp.where(due, new - old, update), met, params, updates)
        return moved, Slow(count, slow)

    return optax.GradientTransformation(init, update)
