"""What NumPy and JAX spell differently, so that a score has one definition for both.

JAX is imported when an array of it is met: statistics that are gathered by NumPy alone need none.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

if TYPE_CHECKING:
    from jax import Array
else:
    Array: TypeAlias = Any  # of JAX, where it is compiled; else of NumPy


def module_of(array: Any) -> Any:
    """numpy, or jax.numpy."""
    if isinstance(array, np.ndarray):
        return np
    import jax.numpy

    return jax.numpy


def zeros(count: int, *dtypes: Any, more: int | None = None) -> list[Any]:
    """An array of NumPy for each dtype, [count] or [count, more]."""
    return [np.zeros(count if more is None else (count, more), dtype) for dtype in dtypes]


def copied_to_jax(tree: Any) -> Any:
    """A tree of arrays, each with a buffer of its own on the device, which a training step may reuse."""
    import jax

    return jax.tree.map(jax.numpy.array, tree)


def softmax(logits: Array) -> Array:
    """Probabilities, as logits [B, C]."""
    if isinstance(logits, np.ndarray):
        powers = np.exp(logits - _largest(logits)[:, None])
        powers /= powers.sum(-1, keepdims=True)
        return powers
    import jax

    return jax.nn.softmax(logits)


def log_softmax(logits: Array) -> Array:
    """Their logarithms."""
    if isinstance(logits, np.ndarray):
        shifted = logits - _largest(logits)[:, None]
        return shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))
    import jax

    return jax.nn.log_softmax(logits)


def one_hot(outputs: Array, labels: Array, dtype: Any = np.float32) -> Array:
    """1 at the label, else 0, for outputs [B, C]."""
    classes = outputs.shape[-1]
    if isinstance(outputs, np.ndarray):
        return (np.asarray(labels)[..., None] == np.arange(classes)).astype(dtype)
    import jax

    return jax.nn.one_hot(labels, classes, dtype=dtype)


def other_and_own(outputs: Array, labels: Array) -> tuple[Array, Array]:
    """The largest of another class, and that of the label, of outputs [B, C]: each [B]."""
    if isinstance(outputs, np.ndarray):
        rows, others = np.arange(len(outputs)), outputs.copy()
        others[rows, labels] = -np.inf
        return _largest(others), outputs[rows, labels]
    import jax.numpy as jnp

    true = one_hot(outputs, labels, bool)
    return jnp.where(true, -jnp.inf, outputs).max(-1), jnp.where(true, outputs, 0).sum(-1)


def _largest(outputs: Any) -> Any:
    """The same as max(-1), which takes twice the time in NumPy."""
    return outputs[np.arange(len(outputs)), outputs.argmax(-1)]


def largest_two(outputs: Array) -> tuple[Array, Array]:
    """The largest and the second largest of outputs [B, C], each [B]."""
    if isinstance(outputs, np.ndarray):
        ordered: Any = np.partition(outputs, -2)
        return ordered[..., -1], ordered[..., -2]
    import jax

    first, second = jax.numpy.moveaxis(jax.lax.top_k(outputs, 2)[0], -1, 0)
    return first, second
