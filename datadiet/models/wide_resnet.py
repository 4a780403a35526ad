"""Wide residual networks (Zagoruyko and Komodakis 2016), without dropout."""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from datadiet.models.networks import BatchNorm, Conv


class WideBlock(nn.Module):
    """Norm, ReLU and a 3x3 convolution, twice, and a skip connection (He et al. 2016, v2)."""

    filters: int
    stride: int
    train: bool
    dtype: Any

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        norm = partial(BatchNorm, use_running_average=not self.train, dtype=self.dtype)
        conv, strides = partial(Conv, dtype=self.dtype), (self.stride, self.stride)
        y = nn.relu(norm(name="BatchNorm_0")(x))
        if x.shape[-1] != self.filters:
            x = conv(self.filters, (1, 1), strides, name="conv_proj")(y)
        y = conv(self.filters, (3, 3), strides, name="Conv_0")(y)
        y = nn.relu(norm(name="BatchNorm_1")(y))
        return x + conv(self.filters, (3, 3), name="Conv_1")(y)


class WideResNet(nn.Module):
    """WRN-d-k: three groups of (d - 4) / 6 blocks, k times as wide as the stem."""

    depth: int
    widening: int
    num_classes: int
    width: int
    dtype: Any

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        x = Conv(self.width, (3, 3), dtype=self.dtype, name="conv_init")(x)
        for group in range(3):
            for position in range((self.depth - 4) // 6):
                stride = 2 if group > 0 and position == 0 else 1
                filters, name = self.widening * self.width * 2**group, f"WideBlock_{group}_{position}"
                x = WideBlock(filters, stride, train, self.dtype, name=name)(x)
        x = nn.relu(BatchNorm(use_running_average=not train, dtype=self.dtype, name="bn_final")(x))
        return nn.Dense(self.num_classes, name="Dense_0")(x.astype(jnp.float32).mean((1, 2)))
