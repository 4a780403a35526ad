"""Networks by name."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax.numpy as jnp
from flax import linen as nn

from datadiet.errors import UserError
from datadiet.models.fast_cnn import FastCNN
from datadiet.models.networks import MLP, BottleneckResNetBlock, Network, ResNet, ResNetBlock, SimpleCNN


class Model(NamedTuple):
    """One entry of MODELS: how to build the module, and the smallest image it takes."""

    build: Callable[[int, int, Any], nn.Module]  # (num_classes, width, dtype)
    width: int
    least_image_shape: tuple[int, int, int] | None  # None: takes the data as it is, vectors too
    # Several runs are faster side by side, since a step keeps neither all cores nor a GPU busy: measured by
    # `python -m benchmarks --only runs`. On a CPU it changes no result.
    side_by_side: bool = False


MODELS: dict[str, Model] = {
    "resnet18_lowres": Model(partial(ResNet, ResNetBlock, (2, 2, 2, 2)), 64, (32, 32, 3)),
    "resnet50_lowres": Model(partial(ResNet, BottleneckResNetBlock, (3, 4, 6, 3)), 64, (32, 32, 3)),
    "simple_cnn_0": Model(SimpleCNN, 32, (32, 32, 3), side_by_side=True),
    "fast_cnn": Model(FastCNN, 64, (32, 32, 3)),
    "mlp": Model(MLP, 256, None, side_by_side=True),
}


def check_model(name: str) -> None:
    """Raises UserError, listing the known names, where `name` is not in MODELS."""
    if name not in MODELS:
        raise UserError(f"model={name!r}: expected one of {', '.join(MODELS)}.")


def gains_together(name: str) -> bool:
    """Whether several runs of a model are faster side by side."""
    return MODELS[name].side_by_side


def input_shape(name: str, image_shape: tuple[int, ...]) -> tuple[int, ...]:
    """Shape in which a model takes images of `image_shape`: padded up to its least shape.

    Raises:
        UserError: unknown model, or vectors given to a convolutional one.
    """
    check_model(name)
    least = MODELS[name].least_image_shape
    if least is None:
        return tuple(image_shape)
    if len(image_shape) != 3:
        raise UserError(f"model={name} takes images [H, W, D]; got data of shape {image_shape}: use model=mlp.")
    return tuple(max(got, want) for got, want in zip(image_shape, least, strict=True))


def build_model(
    name: str,
    num_classes: int,
    image_shape: tuple[int, ...],
    width: int | None = None,
    compute_dtype: str = "float32",
) -> Network:
    """A network by name.

    Args:
        name: A key of MODELS.
        num_classes: C.
        image_shape: (H, W, D) of the images it will be given, or (D,) for vectors.
        width: Channels of the first layer (units of each hidden layer for mlp); None: the model's own.
        compute_dtype: Type in which layers compute, all but the last; parameters, statistics of batch norm, gradients
            and logits are float32 with every one.
    Raises:
        UserError: unknown name.
    """
    check_model(name)
    model = MODELS[name]
    return Network(model.build(num_classes, width or model.width, jnp.dtype(compute_dtype)), tuple(image_shape))
