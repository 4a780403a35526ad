"""Rules of layers: the squared norm of each example's parameter gradient, from a layer's input a and output gradient g.

A rule sees a layer and its input, and gives what is to be kept of it for the backward pass; None where the layer's
options are beyond it.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn

from datadiet.models.conv import Pads, conv_general_dilated, on_cpu, patches, window_shifts
from datadiet.models.fast_cnn import Shift
from datadiet.models.forms import Layer

Squares = Callable[[Any, jax.Array], jax.Array]  # (what the rule kept, g [B, …]) -> float32 [B]


class AppliedRule(NamedTuple):
    """A rule for one call of a layer."""

    squares: Squares
    kept: Any  # arrays that it needs in the backward pass


def dense_rule(module: Any, inputs: jax.Array) -> AppliedRule | None:
    """Dense on [B, I] or, with positions, [B, …, I]."""
    return None if _replaced(module) else AppliedRule(partial(dense_squares, module.use_bias), inputs)


def _replaced(module: Any) -> bool:
    """Whether a dense layer multiplies in a way of its own; NNX's layers name the usual one."""
    return module.dot_general not in (None, jax.lax.dot_general) or getattr(module, "dot_general_cls", None) is not None


def dense_general_rule(module: Any, inputs: jax.Array) -> AppliedRule | None:
    """The same over the last axes of the input, to one or several axes, as attention has it."""
    axes, batch_axes, features = (
        next(getattr(module, name) for name in names if hasattr(module, name))
        for names in (("axis",), ("batch_dims", "batch_axis"), ("features", "out_features"))
    )
    axes = sorted(axis % inputs.ndim for axis in (axes if isinstance(axes, Sequence) else (axes,)))
    first = inputs.ndim - len(axes)
    if _replaced(module) or len(batch_axes) or axes != list(range(first, inputs.ndim)) or first == 0:
        return None
    outputs = len(features) if isinstance(features, Sequence) else 1

    def squares(a: jax.Array, g: jax.Array) -> jax.Array:
        return dense_squares(module.use_bias, a, g.reshape(*g.shape[: g.ndim - outputs], -1))

    return AppliedRule(squares, inputs.reshape(*inputs.shape[:first], -1))


def conv_rule(module: Any, inputs: jax.Array) -> AppliedRule | None:
    """Two-dimensional convolution on [B, H, W, D], neither grouped, dilated nor masked."""
    size = module.kernel_size
    dilated = any(dilation not in (None, 1, (1, 1)) for dilation in (module.input_dilation, module.kernel_dilation))
    plain = module.feature_group_count == 1 and not dilated and module.mask is None
    usual = (None, conv_general_dilated, jax.lax.conv_general_dilated)
    replaced = getattr(module, "conv_general_dilated_cls", None) or module.conv_general_dilated not in usual
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


def batch_norm_rule(module: Any, inputs: jax.Array, use_running_average: bool | None = None) -> AppliedRule | None:
    """Batch norm of the last axis by its running statistics (evaluation mode), where it is affine for each example."""
    if not (module.use_running_average or use_running_average) or module.axis not in (-1, inputs.ndim - 1):
        return None
    if isinstance(module, nn.Module):
        mean, var = (module.variables["batch_stats"][name] for name in ("mean", "var"))
    else:
        mean, var = module.mean[...], module.var[...]
    kept = (inputs, mean, jax.lax.rsqrt(var + module.epsilon))
    return AppliedRule(partial(norm_squares, module.use_scale, module.use_bias), kept)


def layer_norm_rule(module: Any, inputs: jax.Array) -> AppliedRule | None:
    """Layer norm over the last axis; the batch is not it."""
    last = (-1, inputs.ndim - 1)
    if module.reduction_axes not in last or module.feature_axes not in last or module.axis_name or inputs.ndim < 2:
        return None
    a = inputs.astype(jnp.float32)
    mean, var = a.mean(-1, keepdims=True), a.var(-1, keepdims=True)
    return AppliedRule(
        partial(norm_squares, module.use_scale, module.use_bias), (a, mean, jax.lax.rsqrt(var + module.epsilon))
    )


def shift_rule(module: Shift, inputs: jax.Array) -> AppliedRule:
    """One number added to each channel."""
    return AppliedRule(lambda kept, g: bias_squares(g), ())


RULES: dict[type[nn.Module], Callable[..., AppliedRule | None]] = {
    nn.Dense: dense_rule,
    nn.DenseGeneral: dense_general_rule,
    nn.Conv: conv_rule,
    nn.BatchNorm: batch_norm_rule,
    nn.LayerNorm: layer_norm_rule,
    Shift: shift_rule,
}


def apply_rule(layer: Layer, args: tuple, kwargs: dict) -> AppliedRule | None:
    """The rule for this call; None where there is none for its class, options or arguments."""
    rule, given = RULES.get(layer.kind), {name: value for name, value in kwargs.items() if value is not None}
    try:
        return None if rule is None else rule(*inspect.signature(rule).bind(layer.module, *args, **given).args)
    except TypeError:  # it is called with what the rule does not know
        return None


def norm_squares(use_scale: bool, use_bias: bool, kept: tuple, g: jax.Array) -> jax.Array:
    """Scale: |Σ_p g (a - mean) / sd|²; bias: |Σ_p g|².

    kept: a like g [B, …, C]; mean and 1/sd, of each channel [C] or of each position [B, …, 1] -> [B].
    """
    a, mean, inverse_sd = kept
    positions = tuple(range(1, g.ndim - 1))
    scale = jnp.sum(g * (a - mean) * inverse_sd, positions, jnp.float32) if use_scale else jnp.zeros((g.shape[0], 1))
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
