"""Logits, labels and ids as people have them in a program of their own, looked at before they count; scores of them.

Tensors are known by what they can do, so that no library is imported for them; nothing here needs JAX.
"""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np

from datadiet.errors import UserError
from datadiet.scores.logits import LOGIT_SCORES, of_last_layer

OFF = 1e-3  # by how much the probabilities of an example may miss 1 in sum
OFF_HALF = 1e-2  # where they have been rounded to half precision
ENOUGH = 8  # examples whose logits do not look like probabilities by chance
LAST = "grand_last"  # which the last layer's inputs give in closed form
SMALLEST = float(np.finfo(np.float32).tiny)


def scores_from_logits(
    kind: str, logits: Any, labels: Any, probabilities: bool = False, features: Any = None
) -> np.ndarray:
    """One score of a checkpoint, of outputs that a program has already; NumPy computes it.

    Args:
        kind: A key of LOGIT_SCORES; or 'grand_last', with features.
        logits: [N, C], C at least 2: an array, a tensor or nested lists, finite.
        labels: Classes [N], whole numbers from 0 to C - 1.
        probabilities: The outputs are probabilities, each row of sum 1. One of 0 counts as the smallest float32, so
            that no loss is infinite.
        features: [N, F], what the last layer (with a bias) was given, finite; for 'grand_last' alone.
    Returns:
        float32 [N]; larger is harder.
    Raises:
        UserError: unknown kind, wrong shapes or labels, NaN, or rows that are no probabilities where they should be.
    """
    if kind not in (*LOGIT_SCORES, LAST):
        raise UserError(f"kind={kind!r}: expected one of {', '.join((*LOGIT_SCORES, LAST))}.")
    if (features is None) == (kind == LAST):
        expected = (
            "features [N, F], what the last layer was given" if kind == LAST else f"none: {LAST} alone takes them"
        )
        raise UserError(f"kind={kind!r} {'without' if kind == LAST else 'with'} features; expected {expected}.")
    outputs = logits_from(logits, probabilities=probabilities)
    count, classes = outputs.shape
    numbers = numbers_from("labels", labels, count, classes)
    if kind == LAST:
        return np.asarray(of_last_layer(outputs, numbers, _features_from(features, count)), np.float32)
    return np.asarray(LOGIT_SCORES[kind](outputs, numbers), np.float32)


def _features_from(given: Any, count: int) -> Any:
    """float32 [N, F]."""
    array = array_from("features", given)
    if array.ndim != 2 or len(array) != count or array.dtype.kind not in "fiu":
        raise UserError(f"features are {array.dtype} {list(array.shape)}; expected real numbers [{count}, F].")
    if bad := int((~np.isfinite(array).all(1)).sum()):
        raise UserError(f"features: {bad} of {count} rows are not finite.")
    return array.astype(np.float32)


def array_from(what: str, given: Any) -> np.ndarray:
    """An array of NumPy of an array, a tensor on any device, or lists.

    Raises:
        UserError: it is none, as lists of several lengths.
    """
    if hasattr(given, "detach"):  # a tensor of torch
        given = given.detach().cpu()
        given = given.float() if "bfloat16" in str(given.dtype) else given  # which NumPy does not have
        given = given.numpy()
    try:
        array = np.asarray(given)
    except (TypeError, ValueError) as error:
        raise UserError(f"{what}: no array ({error}); expected an array or a tensor.") from None
    return array.astype(np.float32) if array.dtype.name == "bfloat16" else array


def numbers_from(what: str, given: Any, count: int | None, below: int) -> Any:
    """Whole numbers from 0 to `below` - 1, int32 [count]; None: any count.

    Raises:
        UserError: of another shape or type, or one of them is outside.
    """
    array = array_from(what, given)
    if array.dtype.kind not in "iu" and array.size:
        raise UserError(f"{what} are {array.dtype}; expected whole numbers from 0 to {below - 1}.")
    if array.ndim != 1 or (count is not None and len(array) != count):
        expected = "one dimension" if count is None else f"[{count}], one for each row of the logits"
        raise UserError(f"{what} have the shape {list(array.shape)}; expected {expected}.")
    if bad := array[(array < 0) | (array >= below)].tolist():
        raise UserError(f"{what}: {bad[0]} is among them; expected whole numbers from 0 to {below - 1}.")
    return array.astype(np.int32)


def logits_from(given: Any, classes: int | None = None, *, probabilities: bool = False) -> Any:
    """Finite logits, float32 [N, C].

    Args:
        classes: C; None: any number from 2 on.
        probabilities: What is given are probabilities; their logarithms are logits.
    Raises:
        UserError: of another shape or type, not finite, or no probabilities where they should be.
    """
    what = "probabilities" if probabilities else "logits"
    array = array_from(what, given)
    if array.dtype.kind not in "fiu":
        raise UserError(f"{what} are {array.dtype}; expected real numbers.")
    if array.ndim != 2 or array.shape[1] != (classes or max(2, array.shape[1])):
        hint = "" if array.ndim < 2 or array.shape[1] != 1 else " Of one logit z for two classes make [0, z]."
        expected = "C of at least 2" if classes is None else f"C = {classes}"
        raise UserError(f"{what} have the shape {list(array.shape)}; expected [examples, C] with {expected}.{hint}")
    with np.errstate(over="ignore"):  # it is found below
        floats = array.astype(np.float32, copy=False)
    if not np.isfinite(floats).all():
        rows = np.flatnonzero(~np.isfinite(floats).all(1))
        raise UserError(f"{what}: {len(rows)} of {len(floats)} rows are not finite, the first of them row {rows[0]}.")
    if probabilities:
        return _logarithms(floats, OFF_HALF if array.dtype.itemsize == 2 else OFF)
    if len(floats) >= ENOUGH and _are_probabilities(floats):
        warnings.warn(
            "These logits look like probabilities: no row has a negative number, each has the sum 1. Expected what "
            "the last layer gives, before softmax, or the logarithms of the probabilities.", stacklevel=3,
        )  # fmt: skip
    return floats


def _are_probabilities(rows: np.ndarray) -> bool:
    """Whether they are nothing else, for all that can be seen; rows of 0 and a single 1 are left in doubt."""
    if float(rows[0].min()) < 0 or rows.min() < 0:  # the first tells it of most logits
        return False
    return bool((abs(rows.sum(1) - 1) < OFF).all() and ((rows > 0) & (rows < 1)).any())


def _logarithms(rows: np.ndarray, off: float) -> np.ndarray:
    if rows.min(initial=0) < 0 or rows.max(initial=0) > 1 + off:
        raise UserError(
            f"probabilities: they go from {rows.min():g} to {rows.max():g}; expected numbers from 0 to 1. "
            "Logits are given without probabilities=True."
        )
    sums = rows.sum(1, dtype=np.float64)
    if len(bad := np.flatnonzero(abs(sums - 1) > off)):
        raise UserError(
            f"probabilities: {len(bad)} of {len(rows)} rows do not have the sum 1, the first of them row {bad[0]} "
            f"with {sums[bad[0]]:.6g}; expected each row divided by its sum."
        )
    return np.log(np.maximum(rows, SMALLEST))
