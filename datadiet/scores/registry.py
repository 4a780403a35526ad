"""Scores of a checkpoint by name: of logits (logits.py), of the network, which see a batch of images, and of features,
which see those of all examples at once. To add one: write the function, name it in LOGIT_SCORES, NETWORK_SCORES or
FEATURE_SCORES.

What computes is imported when it is called: names alone need no JAX.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from datadiet import commands
from datadiet.errors import UserError
from datadiet.registries import lazily
from datadiet.scores.logits import LOGIT_SCORES, of_last_layer
from datadiet.scores.trajectory import TRAJECTORIES

if TYPE_CHECKING:
    import jax

    from datadiet.models.networks import Network, Variables

KMEANS_STEPS = 100


def grand_last(network: Network, variables: Variables, images: jax.Array, labels: jax.Array) -> jax.Array:
    """GraNd of the last layer alone, in closed form; see `of_last_layer`."""
    logits, features = network.apply_with_features(variables, images)
    return of_last_layer(logits, labels, features)


def input_norm(network: Network, variables: Variables, images: jax.Array, labels: jax.Array) -> jax.Array:
    """L2 norm of the normalised input: a control that knows neither network nor label, close to GraNd at step 0."""
    import jax.numpy as jnp

    return jnp.sqrt((images.reshape(len(images), -1) ** 2).sum(-1))


def prototype(features: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """1 - cosine of the features [N, F] and the nearest of C prototypes, in [0, 2]; high is atypical.

    The prototypes are those of k-means (Lloyd) with k = C. It starts from the class means, so that nothing is drawn
    by chance; the labels serve for nothing else. A prototype that loses all its points moves to the one farthest from
    its own. Source: Sorscher et al. 2022, there with self-supervised features.
    """
    from sklearn.cluster import KMeans
    from sklearn.exceptions import ConvergenceWarning
    from threadpoolctl import threadpool_limits

    means = np.stack([features[labels == c].mean(0) for c in np.unique(labels)])
    start: dict[str, Any] = {"init": means, "n_init": 1}  # which without types would have to be names, as by default
    method = KMeans(len(means), **start, max_iter=KMEANS_STEPS, tol=0)
    # One thread: the sums of several are added in the order in which they end.
    with threadpool_limits(1), warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # fewer distinct points than prototypes
        centers = method.fit(features).cluster_centers_
        cosines = _unit(features) @ _unit(centers).T
    return (1 - cosines.max(1)).astype(np.float32)


def _unit(vectors: np.ndarray) -> np.ndarray:
    """Rows of length 1; a zero row stays zero."""
    return vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)


NETWORK_SCORES: dict[str, Callable[[Network, Variables, jax.Array, jax.Array], jax.Array]] = {
    "grad_norm": lazily("datadiet.scores.gradients", "grad_norms"),
    "grand_last": grand_last,
    "input_norm": input_norm,
}


FEATURE_SCORES: dict[str, Callable[[np.ndarray, np.ndarray], np.ndarray]] = {"prototype": prototype}

DATA_SCORES = frozenset({"input_norm"})  # the same at every step: no network has a part in them


def needs_features(kind: str) -> bool:
    """Whether a score looks at what the last dense layer of a network is given."""
    return kind in FEATURE_SCORES or kind == "grand_last"


def score_names() -> tuple[str, ...]:
    """Names of the scores of a checkpoint."""
    return (*LOGIT_SCORES, *NETWORK_SCORES, *FEATURE_SCORES)


def training_score_names() -> tuple[str, ...]:
    """Names of the scores gathered while training."""
    return tuple(TRAJECTORIES)


def check_score(kind: str, known: Sequence[str] | None = None) -> None:
    """Raises UserError, listing `known` (None: the scores of a checkpoint), where `kind` is not among them."""
    known = score_names() if known is None else known
    if kind not in known:
        hint = " It is gathered while training: use mean_score." if kind in TRAJECTORIES else ""
        hint = hint or commands.meant("type", kind, known)
        raise UserError(f"type={kind!r}: expected one of {', '.join(known)}.{hint}")
