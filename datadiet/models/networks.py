"""Networks as pure functions: `Network` hides Flax Linen; MODELS names them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from datadiet.data.dataset import Dataset
from datadiet.errors import UserError
from datadiet.models.conv import conv_general_dilated

Variables = dict[str, Any]

SAMPLE = 5000  # training images that a network may look at before the first step

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
    return dict(module.init(key, jnp.zeros((1, *image_shape), jnp.float32), train=False))


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
        return cast(Any, self.module).num_classes  # every entry of MODELS has it

    def init(self, key: jax.Array) -> Variables:
        """Fresh float32 variables from a JAX random key."""
        variables = _init(self.module, self.image_shape, key)
        return {"params": variables["params"], "batch_stats": variables.get("batch_stats", {})}

    def begun(self, variables: Variables, dataset: Dataset, kept: np.ndarray) -> Variables:
        """Variables with what the network takes from its training data before the first step, as the module's `begun`
        says, (batch_stats, images, mean, std) -> batch_stats; as they are where it has none.

        Args:
            dataset: As the model takes it.
            kept: ids of the training examples, of which the first are looked at, sorted int32 [M].
        """
        begin = getattr(self.module, "begun", None)
        if begin is None:
            return variables
        images = dataset.train_images[kept[:SAMPLE]]
        return {**variables, "batch_stats": begin(variables["batch_stats"], images, dataset.mean, dataset.std)}

    def apply(self, variables: Variables, images: jax.Array) -> jax.Array:
        """Evaluation mode: normalised images float32 [B, H, W, D] -> logits float32 [B, C]."""
        return cast(jax.Array, self.module.apply(variables, images, train=False))  # alone: nothing is mutable

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
        result = self.module.apply(variables, images, train=True, mutable=["batch_stats"])
        logits, updated = cast(tuple[jax.Array, Variables], result)  # a pair: something is mutable
        return logits, updated.get("batch_stats", {})
