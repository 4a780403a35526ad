"""Convolution whose gradients are fast on a CPU: same values, other order of work.

Two things cost XLA's own gradients on a CPU (measured, jax 0.10.2):
- Inside a loop (`lax.scan`, `lax.map`) it does not bring them into the form that its fast kernel takes, and falls back
  to a plain one: a ResNet-18 training step in a scan took 33 times the time of the same step alone. Here they are
  written in that form: channels last, kernel [H, W, I, O].
- The gradient of the kernel is one product over all examples at once, whose time per example grows with the batch.
  Here it is a sum over chunks that stay in the cache.
On every other backend this is `jax.lax.conv_general_dilated`. Where `models.onednn` was imported, that computes.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial, wraps
from typing import Any, cast

import jax
import jax.numpy as jnp
from jax.core import ShapedArray

Pads = tuple[tuple[int, int], tuple[int, int]]

NHWC = ("NHWC", "HWIO", "NHWC")
CHUNK_POSITIONS = 2048  # output positions per chunk; 1024 to 4096 measured alike
MOST_KERNEL_ELEMENTS = 1 << 20  # above it (512 -> 512) re-reading the sum costs more than the chunks save
LIBRARY: dict[str, Callable[..., jax.Array]] = {}  # what computes float32 instead of XLA, by name: of models.onednn


def conv_general_dilated(
    lhs: jax.Array,
    rhs: jax.Array,
    window_strides: Any,
    padding: Any,
    lhs_dilation: Any = None,
    rhs_dilation: Any = None,
    dimension_numbers: Any = None,
    feature_group_count: int = 1,
    precision: Any = None,
) -> jax.Array:
    """`jax.lax.conv_general_dilated` for nn.Conv(conv_general_dilated=…).

    On a CPU, plain two-dimensional channels-last convolutions get the gradients of this module. Those have a reverse
    mode only: no jax.jvp.
    """
    numbers = jax.lax.conv_dimension_numbers(lhs.shape, rhs.shape, dimension_numbers)
    dilated = any(d != 1 for d in (*(lhs_dilation or ()), *(rhs_dilation or ())))
    plain = lhs.ndim == 4 and feature_group_count == 1 and not dilated
    if not plain or numbers != jax.lax.conv_dimension_numbers(lhs.shape, rhs.shape, NHWC) or not on_cpu():
        return jax.lax.conv_general_dilated(
            lhs,
            rhs,
            window_strides,
            padding,
            lhs_dilation,
            rhs_dilation,
            dimension_numbers,
            feature_group_count,
            precision=precision,
        )
    if isinstance(padding, str):
        padding = jax.lax.padtype_to_pads(lhs.shape[1:3], rhs.shape[:2], window_strides, padding)
    pads = tuple((low, high) for low, high in padding)
    return convolve(tuple(window_strides), pads, precision, lhs, rhs)


def on_cpu() -> bool:
    """Whether programs run on a CPU."""
    return jax.default_backend() == "cpu"


def replaceable(function: Callable[..., jax.Array]) -> Callable[..., jax.Array]:
    """A function of two arrays that LIBRARY may compute instead."""

    @wraps(function)
    def chosen(strides: Any, pads: Pads, precision: Any, first: jax.Array, second: jax.Array, *shape: Any) -> jax.Array:
        usual = first.dtype == second.dtype == jnp.float32 and min(map(min, pads)) >= 0
        computes = LIBRARY.get(function.__name__, function) if usual else function
        return computes(strides, pads, precision, first, second, *shape)

    return chosen


@partial(jax.custom_vjp, nondiff_argnums=(0, 1, 2))
def convolve(strides: tuple[int, int], pads: Pads, precision: Any, a: jax.Array, kernel: jax.Array) -> jax.Array:
    """a [B, H, W, I], kernel [k, l, I, O] -> [B, h, w, O]."""
    return forward(strides, pads, precision, a, kernel)


@replaceable
def forward(strides: tuple[int, int], pads: Pads, precision: Any, a: jax.Array, kernel: jax.Array) -> jax.Array:
    """As `convolve`."""
    return jax.lax.conv_general_dilated(a, kernel, strides, pads, dimension_numbers=NHWC, precision=precision)


def _forward(strides, pads, precision, a, kernel):
    # What nothing is differentiated by has no gradient to keep anything for.
    kept = (kernel.value if a.perturbed else None, a.value if kernel.perturbed else None)
    shapes = (jax.ShapeDtypeStruct(x.value.shape, x.value.dtype) for x in (a, kernel))
    return convolve(strides, pads, precision, a.value, kernel.value), (*kept, *map(_Static, shapes))


@jax.tree_util.register_static
class _Static:
    """A shape that travels with the arrays kept for the backward pass."""

    def __init__(self, value: jax.ShapeDtypeStruct):
        self.value = value

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Static) and self.value == other.value

    def __hash__(self) -> int:
        return hash(self.value)


def _backward(strides, pads, precision, kept, g):
    kernel, a, a_shape, kernel_shape = kept
    if isinstance(g, jax.custom_derivatives.SymbolicZero):
        aval = cast(ShapedArray, g.aval)  # of an array, whose shape and dtype an AbstractValue need not have
        g = jnp.zeros(aval.shape, aval.dtype)
    along_input = None if kernel is None else input_gradient(strides, pads, precision, kernel, g, a_shape.value.shape)
    along_kernel = None if a is None else kernel_gradient(strides, pads, precision, a, g, kernel_shape.value.shape)
    return along_input, along_kernel


convolve.defvjp(_forward, _backward, symbolic_zeros=True)


@replaceable
def input_gradient(
    strides: tuple[int, int], pads: Pads, precision: Any, kernel: jax.Array, g: jax.Array, shape: tuple[int, ...]
) -> jax.Array:
    """g [B, h, w, O] -> [B, H, W, I]: a convolution of g, spread by the strides, with the turned kernel."""
    spread = [(n - 1) * stride + 1 for n, stride in zip(g.shape[1:3], strides)]
    lows = [size - 1 - low for size, (low, _) in zip(kernel.shape[:2], pads)]
    highs = [n + size - 1 - s - low for n, size, s, low in zip(shape[1:3], kernel.shape[:2], spread, lows)]
    turned = jnp.flip(kernel, (0, 1)).swapaxes(2, 3)
    return jax.lax.conv_general_dilated(
        g, turned, (1, 1), list(zip(lows, highs)), strides, dimension_numbers=NHWC, precision=precision
    )


@replaceable
def kernel_gradient(
    strides: tuple[int, int], pads: Pads, precision: Any, a: jax.Array, g: jax.Array, shape: tuple[int, ...]
) -> jax.Array:
    """a [B, H, W, I], g [B, h, w, O] -> [k, l, I, O]: chunks of examples, or all at once where chunks do not pay."""
    chunk = chunk_size(len(g), math.prod(g.shape[1:3]))
    if chunk == len(g) or math.prod(shape) > MOST_KERNEL_ELEMENTS:
        return _kernel_gradient_at_once(strides, pads, precision, a, g, shape)

    def add(total: jax.Array, pair: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, None]:
        seen = patches(pair[0], shape[:2], strides, pads, g.shape[1:3]).reshape(-1, math.prod(shape[:3]))
        features = pair[1].reshape(-1, shape[3])
        contract = (((0,), (0,)), ((), ()))
        product = jax.lax.dot_general(features, seen, contract, precision, preferred_element_type=jnp.float32)
        return total + product, None

    start = jnp.zeros((shape[3], math.prod(shape[:3])), jnp.float32)
    pairs = a.reshape(-1, chunk, *a.shape[1:]), g.reshape(-1, chunk, *g.shape[1:])
    return jax.lax.scan(add, start, pairs)[0].T.reshape(shape).astype(jnp.result_type(a, g))


def chunk_size(examples: int, positions: int) -> int:
    """The largest divisor of `examples` with at most CHUNK_POSITIONS positions; all of them where it would be tiny."""
    sizes = (n for n in range(1, examples + 1) if examples % n == 0 and (n == 1 or n * positions <= CHUNK_POSITIONS))
    largest = max(sizes)
    return largest if largest * positions >= CHUNK_POSITIONS // 4 else examples


def _kernel_gradient_at_once(strides, pads, precision, a, g, shape):
    """A convolution of the input with g as its kernel: channels take the place of examples and examples of channels."""
    spread = [(n - 1) * stride + 1 for n, stride in zip(g.shape[1:3], strides)]
    sides = zip(pads, a.shape[1:3], shape[:2], spread)
    pads = [(low, size - 1 + s - n - low) for (low, _), n, size, s in sides]
    a, g = a.transpose(3, 1, 2, 0), g.transpose(1, 2, 0, 3)
    result = jax.lax.conv_general_dilated(
        a, g, (1, 1), pads, rhs_dilation=strides, dimension_numbers=NHWC, precision=precision
    )
    return result.transpose(1, 2, 0, 3)


def patches(
    a: jax.Array, size: tuple[int, ...], strides: tuple[int, ...], pads: Pads, outputs: tuple[int, ...]
) -> jax.Array:
    """What a window sees at each output position: a [B, H, W, I] -> [B, h w, k l I]."""
    padded = jnp.pad(a, ((0, 0), *pads, (0, 0)))
    seen = [padded[:, rows, columns] for rows, columns in window_shifts(size, strides, outputs)]
    return jnp.concatenate(seen, axis=-1).reshape(len(a), outputs[0] * outputs[1], -1)


def window_shifts(
    size: tuple[int, ...], strides: tuple[int, ...], outputs: tuple[int, ...]
) -> list[tuple[slice, slice]]:
    """For each place in a window: the rows and columns of the padded input that it meets."""

    def lines(axis: int) -> list[slice]:
        last = strides[axis] * (outputs[axis] - 1) + 1
        return [slice(start, start + last, strides[axis]) for start in range(size[axis])]

    return [(rows, columns) for rows in lines(0) for columns in lines(1)]
