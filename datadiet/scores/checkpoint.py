"""Scores of training examples by a checkpoint: one value each; larger means harder, kept first by keep_max."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any

import jax
import numpy as np

from datadiet.data.batches import Fitted, expect_normalised
from datadiet.devices import ONE, Devices
from datadiet.errors import UserError
from datadiet.models.conv import on_cpu
from datadiet.models.networks import Network, Variables
from datadiet.scores.registry import FEATURE_SCORES, LOGIT_SCORES, NETWORK_SCORES, check_score
from datadiet.scores.registry import score_names as score_names

FEATURES = "features"  # what a batch gives beside its scores


def _as_given(images: jax.Array) -> jax.Array:
    return images


def _rows(array: np.ndarray | jax.Array, first: int, size: int) -> np.ndarray | jax.Array:
    """Rows of an array where it lies: a view in the memory of a CPU or of a file, one compiled slice on a device."""
    if isinstance(array, jax.Array) and not on_cpu():
        return jax.lax.dynamic_slice_in_dim(array, first, size)
    return (array if isinstance(array, np.ndarray | Fitted) else np.asarray(array))[first : first + size]


@lru_cache(maxsize=8)
def _batch_scorer(
    kinds: tuple[str, ...], functions: tuple[Callable | None, ...], network: Network, prepare: Callable,
    devices: Devices,
) -> Callable:  # fmt: skip
    """Compiled (variables, images [B, …], labels [B]) -> by kind scores [B], or features [B, F].

    The scores of logits are a program of their own: joined to a forward pass, their sums made XLA put all of mlp into
    one kernel for the CPU, which took twice the time.

    Args:
        functions: Those that the registries have under `kinds`, so that one put in another's place is not missed.
    """
    of_logits = [kind for kind in kinds if kind in LOGIT_SCORES]

    def see(variables: Variables, images: jax.Array, labels: jax.Array) -> tuple[dict[str, jax.Array], Any]:
        images = prepare(images)
        values = {
            kind: NETWORK_SCORES[kind](network, variables, images, labels) for kind in kinds if kind in NETWORK_SCORES
        }
        if len(values) == len(kinds):
            return values, None
        logits, features = network.apply_with_features(variables, images)
        return values | ({FEATURES: features} if FEATURES in kinds else {}), logits

    def judge(logits: jax.Array, labels: jax.Array) -> dict[str, jax.Array]:
        return {kind: LOGIT_SCORES[kind](logits, labels) for kind in of_logits}

    seen, judged = jax.jit(devices.apart(see)), jax.jit(judge)

    def score(variables: Variables, images: jax.Array, labels: jax.Array) -> dict[str, jax.Array]:
        values, logits = seen(variables, images, labels)
        return values | (judged(logits, labels) if of_logits else {})

    return score


def _by_batch(kinds: tuple[str, ...], network: Network, variables: Variables, images: Any, labels: np.ndarray,
              batch_size: int, prepare: Callable, progress: Callable[[int], Any], devices: Devices,
              ) -> dict[str, np.ndarray]:  # fmt: skip
    """What `_batch_scorer` gives, of all examples: arrays [N, …] by kind."""
    count = len(labels)
    devices = devices if count >= devices.count else ONE
    size = min(batch_size, count // devices.count) * devices.count
    variables = devices.put(variables)
    joined: dict[str, np.ndarray] = {}
    functions = tuple(LOGIT_SCORES.get(kind, NETWORK_SCORES.get(kind)) for kind in kinds)
    score = _batch_scorer(kinds, functions, network, prepare, devices)
    waiting: list[tuple[int, int, dict[str, jax.Array]]] = []

    def fetch() -> None:
        start, first, found = waiting.pop()
        for kind, values in found.items():
            if kind not in joined:
                joined[kind] = np.empty((count, *values.shape[1:]), np.float32)
            joined[kind][first : first + size] = values
        progress(first + size - start)

    for start in range(0, count, size or 1):
        first = min(start, count - size)  # the last batch reaches back, so that all have one shape
        found = score(variables, _rows(images, first, size), _rows(labels, first, size))
        if waiting:  # one batch behind, so that the device computes meanwhile
            fetch()
        waiting.append((start, first, found))
    if waiting:
        fetch()
    for kind, values in joined.items():
        if bad := int((~np.isfinite(values.reshape(count, -1)).all(1)).sum()):
            raise UserError(f"{kind}: {bad} of {count} values are not finite; the network has diverged at this step.")
    return joined


def compute_many(
    kinds: Sequence[str], network: Network, variables: Variables, images: np.ndarray | jax.Array,
    labels: np.ndarray | jax.Array, batch_size: int = 512, *,
    prepare: Callable[[jax.Array], jax.Array] = _as_given, progress: Callable[[int], Any] = lambda done: None,
    devices: Devices = ONE,
) -> dict[str, np.ndarray]:  # fmt: skip
    """Several scores of the same examples; the logit scores share one forward pass.

    Args:
        kinds: Names in `score_names`.
        network, variables: What is scored, in evaluation mode.
        images: [N, H, W, D], what `prepare` maps to normalised float32.
        labels: int [N].
        batch_size: Examples on a device at once; any, for any N. No value depends on it.
        prepare: Applied to each batch inside jit; hashable.
        progress: Called with the number of examples just scored.
        devices: Each of them scores its part of the examples.
    Returns:
        float32 [N] for each kind.
    Raises:
        UserError: unknown kind, batch_size below 1, unequal lengths, labels of no class, or a value that is not finite.
    """
    for kind in kinds:
        check_score(kind)
    if batch_size < 1:
        raise UserError(f"batch_size={batch_size}: expected at least 1.")
    labels = np.asarray(labels, np.int32)
    count = len(labels)
    if len(images) != count:
        raise UserError(f"{len(images)} images but {count} labels.")
    if not count:
        return {kind: np.zeros(0, np.float32) for kind in kinds}
    if labels.min() < 0 or labels.max() >= network.num_classes:
        last = network.num_classes - 1
        raise UserError(f"labels are from {labels.min()} to {labels.max()}: expected classes from 0 to {last}.")
    by_batch = dict.fromkeys(FEATURES if kind in FEATURE_SCORES else kind for kind in kinds)
    found = _by_batch(tuple(by_batch), network, variables, images, labels, batch_size, prepare, progress, devices)
    return {
        kind: FEATURE_SCORES[kind](found[FEATURES], labels) if kind in FEATURE_SCORES else found[kind] for kind in kinds
    }


def compute_features(
    network: Network, variables: Variables, images: np.ndarray | jax.Array, batch_size: int = 512, *,
    prepare: Callable[[jax.Array], jax.Array] = _as_given, progress: Callable[[int], Any] = lambda done: None,
) -> np.ndarray:  # fmt: skip
    """Penultimate features in evaluation mode, float32 [N, F]; arguments as of `compute_many`."""
    labels = np.zeros(len(images), np.int32)
    given = network, variables, images, labels, batch_size, prepare, progress, ONE
    return _by_batch((FEATURES,), *given)[FEATURES]


def compute_scores(
    kind: str, network: Network, variables: Variables, images, labels, batch_size: int = 512
) -> np.ndarray:
    """One score of normalised float32 images, float32 [N]; see `compute_many`.

    Raises:
        UserError: as `compute_many`, or images of whole numbers; a warning tells of those from 0 to 255, or of another
            shape than in training.
    """
    expect_normalised(images, network.image_shape)
    return compute_many([kind], network, variables, images, labels, batch_size)[kind]
