"""Networks as pure functions: `Network` hides Flax Linen; MODELS names them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from datadiet.data.dataset import Dataset
from datadiet.errors import UserError
from datadiet.models.checked import classes_of, form_of
from datadiet.models.conv import conv_general_dilated
from datadiet.models.forms import Form, Hook, Layer, LinenForm, Variables

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


ResNet18 = partial(ResNet, ResNetBlock, (2, 2, 2, 2))

ResNet50 = partial(ResNet, BottleneckResNetBlock, (3, 4, 6, 3))


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
def _init(form: Form, image_shape: tuple[int, ...], key: jax.Array) -> Variables:
    return form.init(key, jnp.zeros((1, *image_shape), jnp.float32))


@dataclass(frozen=True)
class Network:
    """An architecture as pure functions. Hashable, so that it can be a static argument of jit.

    `variables` is {"params": …, "batch_stats": …}; batch_stats is {} without batch norm. Make one of a module of your
    own by `Network.of`, which checks it.
    """

    module: Any  # a Linen module, or another Form
    image_shape: tuple[int, ...]
    classes: int | None = field(default=None, compare=False, repr=False)  # C, where it is known

    @classmethod
    def of(cls, module: Any, image_shape: Sequence[int]) -> Network:
        """A network of a Flax module: logits float32 [B, C] of images [B, …].

        Args:
            module: A Linen module, called with images, and with `train`, `training` or `deterministic` where it takes
                one; or an NNX module, or a function of a random key that makes one. An NNX module keeps the weights
                that it has, whatever key `init` is given; a function makes new ones.
            image_shape: (H, W, D), or (D,) for vectors.
        Raises:
            UserError: it cannot be called so, or gives something else than logits.
        """
        form, shape = form_of(module), tuple(int(n) for n in image_shape)
        return cls(form.module if isinstance(form, LinenForm) else form, shape, classes_of(form, shape))

    @property
    def form(self) -> Form:
        """What it is made of."""
        return LinenForm(self.module) if isinstance(self.module, nn.Module) else self.module

    @property
    def num_classes(self) -> int:
        """C."""
        return self.classes or classes_of(self.form, self.image_shape)

    def init(self, key: jax.Array) -> Variables:
        """Fresh float32 variables from a JAX random key."""
        return _init(self.form, self.image_shape, key)

    def begun(self, variables: Variables, dataset: Dataset, kept: np.ndarray) -> Variables:
        """Variables with what the network takes from its training data before the first step, as the module's `begun`
        says, (batch_stats, images, mean, std) -> batch_stats; as they are where it has none.

        Args:
            dataset: As the model takes it.
            kept: ids of the training examples, of which SAMPLE are looked at, evenly spaced: classes may come one after
                the other; sorted int32 [M].
        """
        begin = getattr(self.module, "begun", None)
        if begin is None:
            return variables
        count = min(SAMPLE, len(kept))
        images = dataset.train_images[kept[np.arange(count) * len(kept) // count]]
        return {**variables, "batch_stats": begin(variables["batch_stats"], images, dataset.mean, dataset.std)}

    def apply(self, variables: Variables, images: jax.Array) -> jax.Array:
        """Evaluation mode: normalised images float32 [B, H, W, D] -> logits float32 [B, C]."""
        return self.form.evaluate(variables, images)

    def watched(self, hook: Hook) -> AbstractContextManager[Any]:
        """While it lasts, `hook` stands around every layer that `apply` calls."""
        return self.form.watched(hook)

    def apply_with_features(self, variables: Variables, images: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Evaluation mode: logits [B, C], and what the last dense layer makes them of, float32 [B, F].

        Raises:
            UserError: the network has no dense layer, or its last one does not end in one value for each class.
        """
        logits, features, _ = self._traced_to_features(variables, images)
        return logits, features

    def feature_layer(self) -> str:
        """The last dense layer, whose input is what features are, in words.

        Raises:
            UserError: as `apply_with_features`.
        """
        found: list[str] = []

        def trace(key: jax.Array) -> jax.Array:
            images = jnp.zeros((2, *self.image_shape))
            _, features, layer = self._traced_to_features(self.init(key), images)
            path = layer.params()[0][:-1]
            found.append(f"{'/'.join(path) or self.form.name}, of {features.shape[1]:,} values")
            return features

        jax.eval_shape(trace, jax.random.key(0))
        return found[0]

    def _traced_to_features(self, variables: Variables, images: jax.Array) -> tuple[jax.Array, jax.Array, Layer]:
        taken: list[tuple[jax.Array, jax.Array, Layer]] = []

        def keep_input(layer: Layer, args: tuple, kwargs: dict, call: Callable[[], Any]) -> Any:
            output = call()
            if args and issubclass(layer.kind, nn.Dense):
                taken.append((args[0], output, layer))
            return output

        with self.watched(keep_input):
            logits = self.apply(variables, images)
        if not taken:
            raise UserError(f"{self.form.name} has no dense layer, so no features before it.")
        features, output, layer = taken[-1]
        if features.ndim != 2 or output.shape != logits.shape:
            raise UserError(
                f"{self.form.name}: its last dense layer makes {list(output.shape)} of {list(features.shape)}, the "
                f"logits are {list(logits.shape)}; features are what a dense layer makes the logits of."
            )
        return logits, features.astype(jnp.float32), layer

    def features(self, variables: Variables, images: jax.Array) -> jax.Array:
        """Evaluation mode: penultimate features, float32 [B, F]; see `apply_with_features`."""
        return self.apply_with_features(variables, images)[1]

    def apply_training(
        self, variables: Variables, images: jax.Array, key: jax.Array | None = None
    ) -> tuple[jax.Array, Variables]:
        """Training mode (statistics of the batch): logits [B, C] and the new batch_stats.

        Args:
            key: Of dropout and the like; None: a fixed one.
        """
        return self.form.train(variables, images, jax.random.key(0) if key is None else key)
