"""Modules of the user's own, looked at before any work is done with them: what is called here is only traced."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from datadiet.errors import UserError
from datadiet.models.forms import Form, LinenForm, Variables, mode_argument

EXPECTED = "a Flax Linen module, a Flax NNX module or a dd.Network"
BATCH = 2
SHOWN = 400  # characters of another library's message


def form_of(module: Any) -> Form:
    """A module of whichever kind as pure functions.

    Raises:
        UserError: it is none.
    """
    if isinstance(module, nn.Module):
        return LinenForm(module)
    if isinstance(module, type) or not (is_nnx(module) or callable(module)):
        raise UserError(f"got {told(module)}; expected {EXPECTED}.")
    from datadiet.models.nnx_form import NnxForm, nnx

    if not isinstance(module, nnx.Module):
        make: Any = module
        return NnxForm.of(make)
    graph, state = nnx.split(module)
    return NnxForm.of(lambda key: nnx.merge(graph, state))


def is_nnx(module: Any) -> bool:
    """Whether it is an NNX module; NNX is not imported for that."""
    return (nnx := sys.modules.get("flax.nnx")) is not None and isinstance(module, nnx.Module)


def told(value: Any) -> str:
    """A value by its kind, for a message."""
    return f"the class {value.__name__}" if isinstance(value, type) else f"a value of type {type(value).__name__}"


def traced(name: str, function: Callable, *arguments: Any) -> Any:
    """What a function of arrays gives, by its shapes; whatever goes wrong is a UserError that names it."""
    try:
        return jax.eval_shape(function, *arguments)
    except UserError:
        raise
    except Exception as error:
        raise UserError(f"{name}: {cause(error)}") from error


def cause(error: BaseException) -> str:
    """An error of the user's code or of a library under it, in a line."""
    return f"{type(error).__name__}: {' '.join(str(error).split())[:SHOWN]}"


def classes_of(form: Form, image_shape: tuple[int, ...]) -> int:
    """C of a form that gives logits float32 [B, C] of images [B, …] in both modes.

    Raises:
        UserError: it does not.
    """
    mode_argument(form.kind)
    images = jax.ShapeDtypeStruct((BATCH, *image_shape), jnp.float32)
    on = f"{form.name} on images of shape {list(images.shape)}"
    key = jax.eval_shape(lambda: jax.random.key(0))
    variables = traced(on, lambda key: form.init(key, jnp.zeros((1, *image_shape), jnp.float32)), key)
    _check_parameters(form, variables)
    logits = traced(on, form.evaluate, variables, images)
    if not isinstance(logits, jax.ShapeDtypeStruct) or logits.ndim != 2 or len(logits) != BATCH:
        raise UserError(
            f"{on} gives {_shapes(logits)}; expected logits float32 [{BATCH}, C], one value for each class."
        )
    if logits.dtype != jnp.float32:
        raise UserError(
            f"{on} gives logits of type {logits.dtype}; expected float32: let its last layer compute in float32, "
            "whatever the dtype of the others."
        )
    trained, stats = traced(f"{on}, in training mode", form.train, variables, images, key)
    if _shapes(trained) != _shapes(logits):
        raise UserError(f"{on} gives {_shapes(logits)} in evaluation mode, {_shapes(trained)} in training mode.")
    if _shapes(stats) != _shapes(variables["batch_stats"]):
        raise UserError(f"{on} changes the shapes of its batch_stats while it trains; expected the same.")
    return logits.shape[1]


def _check_parameters(form: Form, variables: Variables) -> None:
    """Raises UserError where there are none, or where some are not float32."""
    leaves = jax.tree_util.tree_leaves_with_path(variables["params"])
    if not leaves:
        raise UserError(f"{form.name} has no parameters, so nothing of it can be trained.")
    others = {
        "/".join(str(part.key) for part in path): leaf.dtype for path, leaf in leaves if leaf.dtype != jnp.float32
    }
    if others:
        shown = ", ".join(f"{name} ({dtype})" for name, dtype in list(others.items())[:3])
        raise UserError(f"{form.name}: parameters that are not float32: {shown}. Layers take dtype, param_dtype stays.")


def _shapes(tree: Any) -> str:
    """Shapes of a result, as text."""
    return str(jax.tree.map(lambda leaf: list(getattr(leaf, "shape", ())), tree))
