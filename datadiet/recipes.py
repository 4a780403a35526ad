"""RECIPES: values of several options under one name. What is given besides wins."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from datadiet.errors import UserError


class Recipe(NamedTuple):
    """One entry of RECIPES."""

    text: str  # line of help
    values: Mapping[str, Any]  # of fields of TrainConfig; None: derived


# Values that are left out where another option is given, or given so: both together would be refused.
YIELDING = {
    "num_steps": lambda value: ("epochs",) if value is not None else (),
    "augment": lambda value: () if value else ("pad", "flip"),
    "lr_vitaly": lambda value: ("lr_triangle",) if value else (),
}

NONE = "none"  # takes back the recipe of a plan

RECIPES: dict[str, Recipe] = {
    "fast": Recipe(
        "fast_cnn in 11 epochs, for CIFAR-10; of arXiv 2404.00498",
        {
            "model": "fast_cnn", "num_steps": None, "epochs": 11.0, "train_batch_size": 1024, "lr": 1.5, "beta": 0.85,
            "nesterov": True, "weight_decay": 0.00133, "norm_bias_lr": 64.0, "lr_vitaly": False, "decay_steps": None,
            "lr_triangle": (0.2, 0.23, 0.07), "lookahead": 5, "label_smoothing": 0.2, "augment": True, "pad": 2,
            "flip": "alternating",
        },
    ),
}  # fmt: skip


def recipe_values(name: str | None, given: Mapping[str, Any]) -> dict[str, Any]:
    """The values of a recipe for those options that are not given.

    Args:
        name: Of the recipe; None or 'none': no recipe, no values.
        given: Options that are given, by name; others may be among them.
    Raises:
        UserError: there is no such recipe.
    """
    if name in (None, "", NONE):
        return {}
    if name not in RECIPES:
        raise UserError(f"recipe={name}: expected one of {', '.join(RECIPES)}, or {NONE}.")
    yielded = {other for option, yields in YIELDING.items() if option in given for other in yields(given[option])}
    return {name: value for name, value in RECIPES[name].values.items() if name not in yielded | given.keys()}
