"""Norms of per-example gradients in one backward pass.

Every layer with a rule has its output tagged: an identity whose backward pass sees the layer's input a and the gradient
g of its output, and adds the squared norm of each example's parameter gradient to an accumulator [B]. The accumulator
is all that is differentiated, so no gradient of a parameter is ever computed.
"""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.extend.core import Literal

from datadiet.models.forms import Layer
from datadiet.models.networks import Network, Variables
from datadiet.scores.rules import Squares, apply_rule

FALLBACK_BATCH = 8  # examples whose whole gradients are held at once where a parameter has no rule
TRACED_BATCH = 7919  # a prime above any axis of a network: an axis of this length is the batch


def grad_norms(network: Network, variables: Variables, images: jax.Array, labels: jax.Array) -> jax.Array:
    """GraNd, the L2 norm of each example's gradient over all trainable parameters; high: the example moves them far.

    Evaluation mode, cross-entropy without weight decay, so that examples do not mix. One backward pass where every
    parameter belongs to a layer with a rule (RULES) that is called once; otherwise, with a warning, example by example.
    Source: Paul et al. 2021, definition 2.1.

    Args:
        network: Any network.
        variables: Its variables.
        images: Normalised, float32 [B, H, W, D].
        labels: int32 [B].
    Returns:
        float32 [B].

    Source: GraNd, Paul et al. 2021 (Deep Learning on a Data Diet), one network.
    """
    unruled = parameters_without_rule(network, variables, images)
    if not unruled:
        return grad_norms_by_layer(network, variables, images, labels)
    warnings.warn(
        f"grad_norm: no single-pass rule for {', '.join(unruled[:5])}{' …' if len(unruled) > 5 else ''}: "
        "every example's gradient is computed on its own, which is slower and gives the same values.",
        stacklevel=2,
    )
    return grad_norms_by_vmap(network, variables, images, labels)


def grad_norms_by_layer(network: Network, variables: Variables, images: jax.Array, labels: jax.Array) -> jax.Array:
    """`grad_norms` in one backward pass; only right where `parameters_without_rule` is empty."""

    def loss(squares: jax.Array) -> jax.Array:
        with network.watched(partial(tag_layer, squares)):
            logits = network.apply(variables, images)
        return optax.losses.softmax_cross_entropy_with_integer_labels(logits, labels).sum()

    squares = jax.grad(loss)(jnp.zeros(images.shape[0], jnp.float32))
    return jnp.sqrt(jnp.maximum(squares, 0))  # rounding may leave a Gram form just below zero


def grad_norms_by_vmap(network: Network, variables: Variables, images: jax.Array, labels: jax.Array) -> jax.Array:
    """`grad_norms` for any network: the gradients of FALLBACK_BATCH examples at a time."""

    def norm(example: tuple[jax.Array, jax.Array]) -> jax.Array:
        def loss(params: Any) -> jax.Array:
            logits = network.apply({**variables, "params": params}, example[0][None])[0]
            return optax.losses.softmax_cross_entropy_with_integer_labels(logits, example[1])

        return optax.tree.norm(jax.grad(loss)(variables["params"]))

    return jax.lax.map(norm, (images, labels), batch_size=min(FALLBACK_BATCH, len(images)))


# --- Tags ------------------------------------------------------------------------------------------------------------


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def tagged(rule: Squares, output: jax.Array, kept: Any, squares: jax.Array) -> jax.Array:
    """The output itself; its backward pass gives `squares` [B] the gradient rule(kept, g)."""
    return output


def _tagged_forward(rule, output, kept, squares):
    return output, kept


def _tagged_backward(rule, kept, g):
    return g, None, rule(kept, g)


tagged.defvjp(_tagged_forward, _tagged_backward)


def tag_layer(squares: jax.Array, layer: Layer, args: tuple, kwargs: dict, call: Callable[[], Any]) -> Any:
    """Hook: tags what a layer returns, where there is a rule for it."""
    output = call()
    applied = apply_rule(layer, args, kwargs)
    return output if applied is None else tagged(applied.squares, output, applied.kept, squares)


def parameters_without_rule(network: Network, variables: Variables, images: jax.Array) -> list[str]:
    """Names of the parameters that rules do not account for: no rule, or a layer that is used more than once.

    The network is traced, not run, with a stand-in for every layer with a rule: it has the layer's input and output
    shape but no parameters. A parameter that still reaches the logits is used outside the rules. Whatever the trace
    cannot see into (jit, scan or remat within the network) counts as using all it is given: slower, never wrong.
    """
    calls: Counter[tuple[str, ...]] = Counter()

    def forward(params: Any, others: Variables, images: jax.Array) -> jax.Array:
        with network.watched(partial(_stand_in, calls, type(images))):
            return network.apply({**others, "params": params}, images)

    others = {name: value for name, value in variables.items() if name != "params"}
    traced = jax.ShapeDtypeStruct((TRACED_BATCH, *images.shape[1:]), images.dtype)
    shapes = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), (variables["params"], others))
    jaxpr = jax.make_jaxpr(forward)(*shapes, traced).jaxpr
    paths = [tuple(key.key for key in path) for path, _ in jax.tree.leaves_with_path(variables["params"])]
    live = _live_inputs(jaxpr)
    return ["/".join(path) for path, used in zip(paths, live) if used or calls[path] > 1]


def _stand_in(calls: Counter, tracer: type, layer: Layer, args: tuple, kwargs: dict, call: Callable[[], Any]) -> Any:
    """Hook: counts the parameters of a layer with a rule and hides them from what follows."""
    output = call()
    # Under a vmap the input is another kind of tracer; without the batch in front, examples are not told apart.
    leading = [isinstance(x, tracer) and x.ndim > 1 and x.shape[0] == TRACED_BATCH for x in (*args[:1], output)]
    if not all(leading) or apply_rule(layer, args, kwargs) is None:
        return output
    calls.update(layer.params())
    return jnp.broadcast_to(jnp.sum(args[0]), output.shape).astype(output.dtype)


def _live_inputs(jaxpr: Any) -> list[bool]:
    """For every input of a jaxpr: does an output depend on it? Nested computations count as depending on all inputs."""
    live = {variable for variable in jaxpr.outvars if not isinstance(variable, Literal)}
    for equation in reversed(jaxpr.eqns):
        if not live.isdisjoint(equation.outvars):
            live.update(variable for variable in equation.invars if not isinstance(variable, Literal))
    return [variable in live for variable in jaxpr.invars]
