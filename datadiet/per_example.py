"""Norms of per-example gradients."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import optax

from datadiet.models import Network, Variables


def grad_norms(network: Network, variables: Variables, images: jax.Array, labels: jax.Array) -> jax.Array:
    """L2 norm of each example's gradient over all trainable parameters.

    Evaluation mode, cross-entropy without weight decay, so that examples do not mix.

    Args:
        network: Any network.
        variables: Its variables.
        images: Normalised, float32 [B, H, W, D].
        labels: int32 [B].
    Returns:
        float32 [B].
    """

    def loss(params, image, label):
        logits = network.apply({**variables, "params": params}, image[None])[0]
        return optax.losses.softmax_cross_entropy_with_integer_labels(logits, label)

    grads = jax.vmap(jax.grad(loss), in_axes=(None, 0, 0))(variables["params"], images, labels)
    squares = [jnp.sum(g.reshape(g.shape[0], -1) ** 2, axis=1) for g in jax.tree.leaves(grads)]
    return jnp.sqrt(sum(squares))
