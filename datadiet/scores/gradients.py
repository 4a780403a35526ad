"""Norms of per-example gradients in one backward pass.

Every layer with a rule has its output tagged: an identity whose backward pass sees the layer's input a and the gradient
g of its output, and adds the squared norm of each example's parameter gradient to an accumulator [B]. The accumulator
is all that is differentiated, so no gradient of a parameter is ever computed.
"""

from __future__ import annotations

import math
import warnings
from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import linen as nn
from jax.extend.core import Literal

from datadiet.models.conv import Pads, conv_general_dilated, on_cpu, patches, window_shifts
from datadiet.models.fast_cnn import Shift
from datadiet.models.networks import Network, Variables

Squares = Callable[[Any, jax.Array], jax.Array]  # (what the rule kept, g [B, …]) -> float32 [B]

FALLBACK_BATCH = 8  # examples whose whole gradients are held at once where a parameter has no rule
TRACED_BATCH = 7919  # a prime above any axis of a network: an axis of this length is the batch


def grad_norms(network: Network, variables: Variables, images: jax.Array, labels: jax.Array) -> jax.Array:
    """L2 norm of each example's gradient over all trainable parameters; high means that the example moves them far.

    Evaluation mode, cross-entropy without weight decay, so that examples do not mix. One backward pass where every
    parameter belongs to a layer with a rule (RULES) that is called once; otherwise, with a warning, example by example.

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
        with nn.intercept_methods(partial(tag_layer, squares)):
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


def tag_layer(squares: jax.Array, call: Callable, args: tuple, kwargs: dict, context: Any) -> Any:
    """Flax interceptor: calls the method and tags what it returns, where it is a layer with a rule."""
    output = call(*args, **kwargs)
    applied = apply_rule(context, args, kwargs)
    return output if applied is None else tagged(applied.squares, output, applied.kept, squares)


class AppliedRule(NamedTuple):
    """A rule for one call of a layer."""

    squares: Squares
    kept: Any  # arrays that it needs in the backward pass


def apply_rule(context: Any, args: tuple, kwargs: dict) -> AppliedRule | None:
    """The rule for this call; None where there is none for its class, options or input."""
    rule = RULES.get(type(context.module)) if context.method_name == "__call__" and args else None
    return None if rule is None else rule(context.module, args[0], **kwargs)


def parameters_without_rule(network: Network, variables: Variables, images: jax.Array) -> list[str]:
    """Names of the parameters that rules do not account for: no rule, or a layer that is used more than once.

    The network is traced, not run, with a stand-in for every layer with a rule: it has the layer's input and output
    shape but no parameters. A parameter that still reaches the logits is used outside the rules. Whatever the trace
    cannot see into (jit, scan or remat within the network) counts as using all it is given: slower, never wrong.
    """
    calls: Counter[tuple[str, ...]] = Counter()

    def forward(params: Any, others: Variables, images: jax.Array) -> jax.Array:
        with nn.intercept_methods(partial(_stand_in, calls, type(images))):
            return network.apply({**others, "params": params}, images)

    others = {name: value for name, value in variables.items() if name != "params"}
    traced = jax.ShapeDtypeStruct((TRACED_BATCH, *images.shape[1:]), images.dtype)
    shapes = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), (variables["params"], others))
    jaxpr = jax.make_jaxpr(forward)(*shapes, traced).jaxpr
    paths = [tuple(key.key for key in path) for path, _ in jax.tree.leaves_with_path(variables["params"])]
    live = _live_inputs(jaxpr)
    return ["/".join(path) for path, used in zip(paths, live) if used or calls[path] > 1]


def _stand_in(calls: Counter, tracer: type, call: Callable, args: tuple, kwargs: dict, context: Any) -> Any:
    """Flax interceptor: counts the parameters of a layer with a rule and hides them from what follows."""
    output = call(*args, **kwargs)
    # Under a vmap the input is another kind of tracer; without the batch in front, examples are not told apart.
    leading = [isinstance(x, tracer) and x.ndim > 1 and x.shape[0] == TRACED_BATCH for x in (*args[:1], output)]
    if not all(leading) or apply_rule(context, args, kwargs) is None:
        return output
    scope = context.module.scope
    calls.update((*scope.path, name) for name in context.module.variables.get("params", {}))
    return jnp.broadcast_to(jnp.sum(args[0]), output.shape).astype(output.dtype)


def _live_inputs(jaxpr: Any) -> list[bool]:
    """For every input of a jaxpr: does an output depend on it? Nested computations count as depending on all inputs."""
    live = {variable for variable in jaxpr.outvars if not isinstance(variable, Literal)}
    for equation in reversed(jaxpr.eqns):
        if not live.isdisjoint(equation.outvars):
            live.update(variable for variable in equation.invars if not isinstance(variable, Literal))
    return [variable in live for variable in jaxpr.invars]


# --- Rules: squared norm of each example's parameter gradient, from input a and output gradient g ---------------------


def dense_rule(module: nn.Dense, inputs: jax.Array) -> AppliedRule | None:
    """Dense on [B, I] or, with positions, [B, …, I]."""
    if module.dot_general or module.dot_general_cls:
        return None
    return AppliedRule(partial(dense_squares, module.use_bias), inputs)


def conv_rule(module: nn.Conv, inputs: jax.Array) -> AppliedRule | None:
    """Two-dimensional convolution on [B, H, W, D], neither grouped, dilated nor masked."""
    size = module.kernel_size
    dilated = any(dilation not in (None, 1, (1, 1)) for dilation in (module.input_dilation, module.kernel_dilation))
    plain = module.feature_group_count == 1 and not dilated and module.mask is None
    replaced = module.conv_general_dilated_cls or module.conv_general_dilated not in (None, conv_general_dilated)
    if isinstance(size, int) or len(size) != 2 or inputs.ndim != 4 or not plain or replaced:
        return None
    if isinstance(module.padding, str) and module.padding not in ("SAME", "VALID"):
        return None
    strides = module.strides or 1
    strides = (strides, strides) if isinstance(strides, int) else _pair(strides)
    padding = nn.linear.canonicalize_padding(module.padding, 2)
    if isinstance(padding, str):
        padding = jax.lax.padtype_to_pads(inputs.shape[1:3], size, strides, padding)
    rows, columns = padding
    window = Window(_pair(size), strides, (_pair(rows), _pair(columns)))
    return AppliedRule(partial(conv_squares, window, module.use_bias), inputs)


def _pair(values: Sequence[int]) -> tuple[int, int]:
    first, second = values
    return first, second


def batch_norm_rule(module: nn.BatchNorm, inputs: jax.Array, use_running_average: bool | None = None, mask: Any = None):
    """Batch norm of the last axis by its running statistics (evaluation mode), where it is affine for each example."""
    if not (module.use_running_average or use_running_average) or module.axis not in (-1, inputs.ndim - 1):
        return None
    stats = module.variables["batch_stats"]
    kept = (inputs, stats["mean"], jax.lax.rsqrt(stats["var"] + module.epsilon))
    return AppliedRule(partial(batch_norm_squares, module.use_scale, module.use_bias), kept)


def shift_rule(module: Shift, inputs: jax.Array) -> AppliedRule:
    """One number added to each channel."""
    return AppliedRule(lambda kept, g: bias_squares(g), ())


RULES: dict[type[nn.Module], Callable[..., AppliedRule | None]] = {
    nn.Dense: dense_rule,
    nn.Conv: conv_rule,
    nn.BatchNorm: batch_norm_rule,
    Shift: shift_rule,
}


def batch_norm_squares(use_scale: bool, use_bias: bool, kept: tuple, g: jax.Array) -> jax.Array:
    """Scale: |Σ_p g (a - mean) / sd|²; bias: |Σ_p g|². kept: a like g [B, …, C], mean [C], 1/sd [C] -> [B]."""
    a, mean, inverse_sd = kept
    positions = tuple(range(1, g.ndim - 1))
    scale = jnp.sum(g * (a - mean), positions, jnp.float32) * inverse_sd if use_scale else jnp.zeros((g.shape[0], 1))
    return jnp.sum(scale**2, axis=1) + (bias_squares(g) if use_bias else 0)


def bias_squares(g: jax.Array) -> jax.Array:
    """|Σ_p g|² of g [B, …, O] -> [B]."""
    return jnp.sum(jnp.sum(g, tuple(range(1, g.ndim - 1)), jnp.float32) ** 2, axis=1)


def dense_squares(use_bias: bool, a: jax.Array, g: jax.Array) -> jax.Array:
    """Kernel and bias of a dense layer: a [B, …, I], g [B, …, O] -> [B]."""
    bias = bias_squares(g) if use_bias else 0
    if a.ndim == 2:
        a, g = a.astype(jnp.float32), g.astype(jnp.float32)
        return jnp.sum(a**2, axis=1) * jnp.sum(g**2, axis=1) + bias
    a, g = (x.reshape(x.shape[0], -1, x.shape[-1]) for x in (a, g))
    positions, inputs, outputs = a.shape[1], a.shape[2], g.shape[2]
    gram_is_cheaper = positions * (inputs + outputs) < inputs * outputs
    return over_examples(_gram_square if gram_is_cheaper else _product_square, a, g) + bias


class Window(NamedTuple):
    """Where a convolution looks: (height, width) each."""

    size: tuple[int, int]
    strides: tuple[int, int]
    padding: Pads


def conv_squares(window: Window, use_bias: bool, a: jax.Array, g: jax.Array) -> jax.Array:
    """Kernel and bias of a convolution: a [B, H, W, I], g [B, h, w, O] -> [B]."""
    forms = {"product": _patch_product_square, "gram": _patch_gram_square, "shifts": _shifted_gram_square}
    form = forms[cheapest_form(window, a.shape[1:], g.shape[1:])]
    return over_examples(partial(form, window), a, g) + (bias_squares(g) if use_bias else 0)


def cheapest_form(window: Window, inputs: tuple[int, ...], outputs: tuple[int, ...]) -> str:
    """Which form needs the fewest multiplications: with k² window positions, P = h w and Q = padded H W,

    product: the gradient itself, P k² I O; gram: inner products of patches and of g, P² (k² I + O);
    shifts: inner products of padded pixels and of g, the former summed over the window's shifts, Q² I + P² (k² + O).
    On two CPU cores it chose the fastest form of every layer of ResNet-18 where all were timed (to 16 x 16 positions).
    """
    (height, width, channels), positions, features = inputs, outputs[0] * outputs[1], outputs[2]
    taps = math.prod(window.size)
    padded = math.prod(n + low + high for n, (low, high) in zip((height, width), window.padding))
    counts = {
        "product": positions * taps * channels * features,
        "gram": positions**2 * (taps * channels + features),
        "shifts": padded**2 * channels + positions**2 * (taps + features),
    }
    return min(counts, key=counts.__getitem__)


def over_examples(square: Callable[[jax.Array, jax.Array], jax.Array], a: jax.Array, g: jax.Array) -> jax.Array:
    """square(a, g) of every example -> float32 [B].

    XLA runs a batched product on a CPU several times slower than a loop over plain ones, which also stay in the cache.
    """
    if on_cpu():
        return jax.lax.map(lambda pair: square(*pair), (a, g))
    return jax.vmap(square)(a, g)


def _dot(x: jax.Array, y: jax.Array, axis: int, precision: Any = None) -> jax.Array:
    contract = (((axis,), (axis,)), ((), ()))
    return jax.lax.dot_general(x, y, contract, precision=precision, preferred_element_type=jnp.float32)


def _product_square(a: jax.Array, g: jax.Array) -> jax.Array:
    """|gᵀ a|² of a [P, I] and g [P, O]."""
    return jnp.sum(_dot(g, a, axis=0) ** 2)


def _gram_square(a: jax.Array, g: jax.Array) -> jax.Array:
    """The same as Σ_pq (a_p · a_q)(g_p · g_q). Its terms may cancel, which TF32 would not survive."""
    gram = partial(_dot, axis=1, precision=jax.lax.Precision.HIGHEST)
    return jnp.sum(gram(a, a) * gram(g, g))


def _patch_product_square(window: Window, a: jax.Array, g: jax.Array) -> jax.Array:
    return _product_square(_patches(window, a, g), g.reshape(-1, g.shape[-1]))


def _patch_gram_square(window: Window, a: jax.Array, g: jax.Array) -> jax.Array:
    return _gram_square(_patches(window, a, g), g.reshape(-1, g.shape[-1]))


def _shifted_gram_square(window: Window, a: jax.Array, g: jax.Array) -> jax.Array:
    """`_patch_gram_square` without patches: shift by shift, from the inner products of the padded pixels."""
    gram = partial(_dot, axis=1, precision=jax.lax.Precision.HIGHEST)
    padded = jnp.pad(a, (*window.padding, (0, 0)))
    height, width, channels = padded.shape
    pixels = padded.reshape(-1, channels)
    pixels = gram(pixels, pixels).reshape(height, width, height, width)
    inner = sum(
        pixels[rows, columns, rows, columns]
        for rows, columns in window_shifts(window.size, window.strides, g.shape[:2])
    )
    g = g.reshape(-1, g.shape[-1])
    return jnp.sum(jnp.asarray(inner).reshape(len(g), len(g)) * gram(g, g))


def _patches(window: Window, a: jax.Array, g: jax.Array) -> jax.Array:
    return patches(a[None], *window, g.shape[:2])[0]
