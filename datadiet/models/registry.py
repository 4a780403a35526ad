"""Networks by name."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from datadiet import commands
from datadiet.config import FIELDS, TrainConfig
from datadiet.errors import UserError
from datadiet.models.source import FORMS, find_source, is_own
from datadiet.registries import lazily

if TYPE_CHECKING:
    from flax import linen as nn

    from datadiet.models.networks import Network

NETWORKS = "datadiet.models.networks"  # imported when one is built: names need no JAX


class Model(NamedTuple):
    """One entry of MODELS: how to build the module, and the smallest image it takes."""

    build: Callable[[int, int, Any], nn.Module]  # (num_classes, width, dtype)
    width: int
    least_image_shape: tuple[int, int, int] | None  # None: takes the data as it is, vectors too
    # Several runs are faster side by side, since a step keeps neither all cores nor a GPU busy: measured by
    # `python -m benchmarks --only runs`. On a CPU it changes no result.
    side_by_side: bool = False


MODELS: dict[str, Model] = {
    "resnet18_lowres": Model(lazily(NETWORKS, "ResNet18"), 64, (32, 32, 3)),
    "resnet50_lowres": Model(lazily(NETWORKS, "ResNet50"), 64, (32, 32, 3)),
    "simple_cnn_0": Model(lazily(NETWORKS, "SimpleCNN"), 32, (32, 32, 3), side_by_side=True),
    "fast_cnn": Model(lazily("datadiet.models.fast_cnn", "FastCNN"), 64, (16, 16, 3)),
    "mlp": Model(lazily(NETWORKS, "MLP"), 256, None, side_by_side=True),
    "wrn16_4": Model(lazily("datadiet.models.wide_resnet", "WideResNet", 16, 4), 16, (32, 32, 3)),
    "vit_ti_4": Model(lazily("datadiet.models.vit", "ViT", 4, 12), 192, (32, 32, 3)),
}


def check_model(name: str) -> None:
    """Raises UserError, listing the known names, where `name` is neither in MODELS nor where a function lies."""
    if name not in MODELS and not is_own(name):
        expected = f"expected one of {', '.join(MODELS)}; or a model of your own, {FORMS}."
        raise UserError(f"model={name!r}: {expected}{commands.meant('model', name, MODELS)}")


def code_of(name: str) -> str | None:
    """sha256 of the code of a model of the user's own; None for one of MODELS.

    Raises:
        UserError: there is no such model.
    """
    check_model(name)
    return None if name in MODELS else find_source(name).sha256


def gains_together(name: str) -> bool:
    """Whether several runs of a model are faster side by side."""
    return name in MODELS and MODELS[name].side_by_side


def input_shape(name: str, image_shape: tuple[int, ...]) -> tuple[int, ...]:
    """Shape in which one of MODELS takes images of `image_shape`: padded up to its least shape.

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
        name: A key of MODELS; or a function of your own, as `package.module:function` or `path/to/FILE.py:function`.
        num_classes: C.
        image_shape: (H, W, D) of the images it will be given, or (D,) for vectors.
        width: Channels of the first layer (units of each hidden layer for mlp); None: the model's own.
        compute_dtype: Type in which layers compute, all but the last; parameters, statistics of batch norm, gradients
            and logits are float32 with every one.
    Raises:
        UserError: unknown name, a width or number of classes below 1, or a function that gives no such network.
    """
    import jax.numpy as jnp

    from datadiet.models.networks import Network

    check_model(name)
    FIELDS["width"].check(width)
    if num_classes < 1:
        raise UserError(f"num_classes={num_classes}: expected at least 1.")
    if name not in MODELS:
        from datadiet.models.own import own_network

        return own_network(name, num_classes, tuple(image_shape), width, compute_dtype)
    model = MODELS[name]
    module = model.build(num_classes, width or model.width, jnp.dtype(compute_dtype))
    return Network(module, tuple(image_shape), num_classes)


def network_of(
    config: TrainConfig, num_classes: int, image_shape: tuple[int, ...], copy: Path | None = None
) -> Network:
    """The network of a config, as it takes data of `image_shape`: images are padded up to its own image_shape.

    Args:
        copy: A folder with a copy of the code of a model of the user's own, to be taken instead.
    Raises:
        UserError: there is no such network, it does not take such data, or its code is not what the config tells.
    """
    if config.model in MODELS:
        shape = input_shape(config.model, image_shape)
        return build_model(config.model, num_classes, shape, config.width, config.compute_dtype)
    from datadiet.models.own import own_network

    given = (config.width, config.compute_dtype, config.model_sha256, copy)
    network = own_network(config.model, num_classes, tuple(image_shape), *given)
    if network.image_shape == tuple(image_shape):
        return network
    shape = network.image_shape  # it is to be the same network where the data has its shape already
    again = own_network(config.model, num_classes, shape, *given)
    fits = len(shape) == len(image_shape) and all(want >= got for want, got in zip(shape, image_shape))
    if again.image_shape != shape or not fits:
        raise UserError(
            f"model={config.model} takes images {list(shape)}; the data has {list(image_shape)}, and is only padded: "
            f"scale it with {commands.option('image_size', 'N')}."
        )
    return again
