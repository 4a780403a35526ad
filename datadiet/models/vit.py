"""Vision transformers (Dosovitskiy et al. 2021), plain as in Beyer, Zhai and Kolesnikov 2022: fixed positions, a mean
over patches, no class token, no dropout."""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

HEAD = 64  # channels of an attention head, as published


def heads_of(width: int) -> int:
    """Attention heads: of HEAD channels, or as many as divide the width below that."""
    return next(heads for heads in range(max(1, width // HEAD), 0, -1) if width % heads == 0)


def positions(height: int, width: int, channels: int) -> np.ndarray:
    """Sines and cosines of the row and the column of each patch, float32 [height * width, channels]."""
    quarter = -(-channels // 4)
    rates = 1 / 10_000 ** (np.arange(quarter) / max(1, quarter - 1))
    rows, columns = (axis.reshape(-1, 1) * rates for axis in np.mgrid[:height, :width])
    waves = np.concatenate([np.sin(columns), np.cos(columns), np.sin(rows), np.cos(rows)], axis=1)
    return waves[:, :channels].astype(np.float32)


class TransformerBlock(nn.Module):
    """Attention and two dense layers, each after a layer norm and beside a skip connection."""

    width: int
    dtype: Any

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        norm, dense = partial(nn.LayerNorm, dtype=self.dtype), partial(nn.Dense, dtype=self.dtype)
        heads = heads_of(self.width)
        y = dense(3 * self.width, name="qkv")(norm(name="LayerNorm_0")(x))
        query, key, value = jnp.split(y.reshape(*y.shape[:2], heads, -1), 3, axis=-1)
        y = nn.dot_product_attention(query, key, value)
        x = x + dense(self.width, name="out")(y.reshape(x.shape))
        y = nn.gelu(dense(4 * self.width, name="Dense_0")(norm(name="LayerNorm_1")(x)))
        return x + dense(self.width, name="Dense_1")(y)


class ViT(nn.Module):
    """Patches as tokens through `depth` blocks."""

    patch: int
    depth: int
    num_classes: int
    width: int
    dtype: Any

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        size = (self.patch, self.patch)
        x = nn.Conv(self.width, size, size, padding="VALID", dtype=self.dtype, name="embedding")(x)
        batch, height, width, _ = x.shape
        x = x.reshape(batch, height * width, -1) + positions(height, width, self.width).astype(x.dtype)
        for block in range(self.depth):
            x = TransformerBlock(self.width, self.dtype, name=f"TransformerBlock_{block}")(x)
        x = nn.LayerNorm(dtype=self.dtype, name="LayerNorm_0")(x)
        return nn.Dense(self.num_classes, name="Dense_0")(x.astype(jnp.float32).mean(1))
