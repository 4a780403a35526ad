"""Leaves of saved trees: their names, what they are like, and their hashes."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from datadiet.errors import UserError


def leaf_name(path: tuple[Any, ...]) -> str:
    """Of a leaf: its tree's, and its place there."""
    return f"{path[0].key}{jax.tree_util.keystr(path[1:])}"


def named_leaves(trees: Mapping[str, Any], is_leaf: Callable[[Any], bool] | None = None) -> dict[str, Any]:
    return {leaf_name(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(trees, is_leaf)}


def leaf_hash(leaf: Any) -> str:
    """sha256 (hex) of dtype, shape and bytes."""
    array = np.asarray(leaf)
    digest = hashlib.sha256(f"{array.dtype}{array.shape}".encode())
    digest.update(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)
    return digest.hexdigest()


def leaf_facts(array: np.ndarray) -> dict[str, Any]:
    return {"dtype": str(array.dtype), "shape": list(array.shape), "sha256": leaf_hash(array)}


def check_like(path: Path, trees: Mapping[str, Any], like: Mapping[str, Any]) -> None:
    """Raises UserError, naming the leaf, where trees differ in structure, shape or dtype from those expected."""
    if not like:
        return

    def shapes(trees: Mapping[str, Any]) -> dict[str, str]:
        leaves = named_leaves(trees, is_leaf=lambda node: isinstance(node, dict) and not node)
        return {k: "an empty dict" if isinstance(v, dict) else f"{v.dtype}{list(v.shape)}" for k, v in leaves.items()}

    held, wanted = (_statistics(one) for one in (trees, like))
    if held != wanted:
        raise UserError(f"{path} has statistics {held}; expected {wanted}: train the run again.")
    found, expected = shapes(trees), shapes(like)
    for name in [*expected, *found]:
        if found.get(name) != expected.get(name):
            raise UserError(
                f"{path}: {name} is {found.get(name, 'missing')}; expected {expected.get(name, 'no such leaf')}. It is "
                "of another network, optimizer or version of datadiet: train the run again."
            )


def _statistics(trees: Mapping[str, Any]) -> str:
    """Names of the statistics in a state's trees."""
    return ", ".join(sorted(trees.get("training", {}).get("trajectory", {}))) or "none"
