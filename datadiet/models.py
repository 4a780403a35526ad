"""Networks as pure functions: `Network` hides Flax Linen; MODELS names them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn

from datadiet.config import UserError
from datadiet.conv import conv_general_dilated

Variables = dict[str, Any]

BatchNorm = partial(nn.BatchNorm, momentum=0.9, epsilon=1e-5)
BiasedConv = partial(nn.Conv, conv_general_dilated=conv_general_dilated)
Conv = partial(BiasedConv, use_bias=False)


class ResNetBlock(nn.Module):
    """Two 3x3 convolutions and a skip connection (He et al. 2016, v1)."""

    filters: int
    stride: int
    train: bool
    dtype: Any

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        norm = partial(BatchNorm, use_running_average=not self.train, dtype=self.dtype)
        conv = partial(Conv, dtype=self.dtype)
        strides = (self.stride, self.stride)
        y = conv(self.filters, (3, 3), strides, name="Conv_0")(x)
        y = nn.relu(norm(name="BatchNorm_0")(y))
        y = conv(self.filters, (3, 3), name="Conv_1")(y)
        y = norm(name="BatchNorm_1")(y)
        if x.shape != y.shape:
            x = conv(self.filters, (1, 1), strides, name="conv_proj")(x)
            x = norm(name="norm_proj")(x)
        return nn.relu(x + y)


class BottleneckResNetBlock(nn.Module):
    """1x1, 3x3 (strided), 1x1 convolutions to 4x the filters; the last scale starts at zero."""

    filters: int
    stride: int
    train: bool
    dtype: Any

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        norm = partial(BatchNorm, use_running_average=not self.train, dtype=self.dtype)
        conv = partial(Conv, dtype=self.dtype)
        strides = (self.stride, self.stride)
        y = conv(self.filters, (1, 1), name="Conv_0")(x)
        y = nn.relu(norm(name="BatchNorm_0")(y))
        y = conv(self.filters, (3, 3), strides, name="Conv_1")(y)
        y = nn.relu(norm(name="BatchNorm_1")(y))
        y = conv(4 * self.filters, (1, 1), name="Conv_2")(y)
        y = norm(name="BatchNorm_2", scale_init=nn.initializers.zeros)(y)
        if x.shape != y.shape:
            x = conv(4 * self.filters, (1, 1), strides, name="conv_proj")(x)
            x = norm(name="norm_proj")(x)
        return nn.relu(x + y)


class ResNet(nn.Module):
    """ResNet v1 for low resolution: a 3x3 stem of stride 1, no max-pooling."""

    block: type[nn.Module]
    stages: tuple[int, ...]
    num_classes: int
    width: int
    dtype: Any

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        x = Conv(self.width, (3, 3), dtype=self.dtype, name="conv_init")(x)
        x = nn.relu(BatchNorm(use_running_average=not train, dtype=self.dtype, name="bn_init")(x))
        index = 0
        for stage, blocks in enumerate(self.stages):
            for position in range(blocks):
                stride = 2 if stage > 0 and position == 0 else 1
                name = f"{self.block.__name__}_{index}"
                x = self.block(self.width * 2**stage, stride, train, self.dtype, name=name)(x)
                index += 1
        return nn.Dense(self.num_classes, name="Dense_0")(x.astype(jnp.float32).mean((1, 2)))


class SimpleCNN(nn.Module):
    """Six 3x3 convolutions, every second one strided, then a global mean."""

    num_classes: int
    width: int
    dtype: Any

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        for level in range(3):
            for stride in (1, 2):
                x = nn.relu(BiasedConv(self.width * 2**level, (3, 3), (stride, stride), dtype=self.dtype)(x))
        return nn.Dense(self.num_classes)(x.astype(jnp.float32).mean((1, 2)))


class MLP(nn.Module):
    """Two hidden layers of `width` units on the flattened input."""

    num_classes: int
    width: int
    dtype: Any

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        x = x.reshape(x.shape[0], -1)
        for _ in range(2):
            x = nn.relu(nn.Dense(self.width, dtype=self.dtype)(x))
        return nn.Dense(self.num_classes)(x.astype(jnp.float32))


@partial(jax.jit, static_argnums=(0, 1))  # here, so that every run after the first finds it compiled
def _init(module: nn.Module, image_shape: tuple[int, ...], key: jax.Array) -> Variables:
    return module.init(key, jnp.zeros((1, *image_shape), jnp.float32), train=False)


@dataclass(frozen=True)
class Network:
    """An architecture as pure functions. Hashable, so that it can be a static argument of jit.

    `variables` is {"params": …, "batch_stats": …}; batch_stats is {} without batch norm.
    """

    module: nn.Module
    image_shape: tuple[int, ...]

    @property
    def num_classes(self) -> int:
        """C."""
        return self.module.num_classes  # type: ignore[attr-defined]

    def init(self, key: jax.Array) -> Variables:
        """Fresh float32 variables from a JAX random key."""
        variables = _init(self.module, self.image_shape, key)
        return {"params": variables["params"], "batch_stats": variables.get("batch_stats", {})}

    def apply(self, variables: Variables, images: jax.Array) -> jax.Array:
        """Evaluation mode: normalised images float32 [B, H, W, D] -> logits float32 [B, C]."""
        return self.module.apply(variables, images, train=False)

    def apply_with_features(self, variables: Variables, images: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Evaluation mode: logits [B, C], and what the last dense layer makes them of, float32 [B, F].

        Raises:
            UserError: the network has no dense layer.
        """
        taken: list[jax.Array] = []

        def keep_input(call: Callable, args: tuple, kwargs: dict, context: nn.module.InterceptorContext) -> Any:
            if isinstance(context.module, nn.Dense) and context.method_name == "__call__":
                taken.append(args[0])
            return call(*args, **kwargs)

        with nn.intercept_methods(keep_input):
            logits = self.apply(variables, images)
        if not taken:
            raise UserError(f"{type(self.module).__name__} has no dense layer, so no features before it.")
        return logits, taken[-1].astype(jnp.float32)

    def features(self, variables: Variables, images: jax.Array) -> jax.Array:
        """Evaluation mode: penultimate features, float32 [B, F]; see `apply_with_features`."""
        return self.apply_with_features(variables, images)[1]

    def apply_training(self, variables: Variables, images: jax.Array) -> tuple[jax.Array, Variables]:
        """Training mode (statistics of the batch): logits [B, C] and the new batch_stats."""
        logits, updated = self.module.apply(variables, images, train=True, mutable=["batch_stats"])
        return logits, updated.get("batch_stats", {})


class Model(NamedTuple):
    """One entry of MODELS: how to build the module, and the smallest image it takes."""

    build: Callable[[int, int, Any], nn.Module]  # (num_classes, width, dtype)
    width: int
    least_image_shape: tuple[int, int, int] | None  # None: takes the data as it is, vectors too


MODELS: dict[str, Model] = {
    "resnet18_lowres": Model(partial(ResNet, ResNetBlock, (2, 2, 2, 2)), 64, (32, 32, 3)),
    "resnet50_lowres": Model(partial(ResNet, BottleneckResNetBlock, (3, 4, 6, 3)), 64, (32, 32, 3)),
    "simple_cnn_0": Model(SimpleCNN, 32, (32, 32, 3)),
    "mlp": Model(MLP, 256, None),
}


def check_model(name: str) -> None:
    """Raises UserError, listing the known names, where `name` is not in MODELS."""
    if name not in MODELS:
        raise UserError(f"model={name!r}: expected one of {', '.join(MODELS)}.")


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
