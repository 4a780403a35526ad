"""recipe: values of several options under one name."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import click
from click.core import ParameterSource

from datadiet.recipes import NONE, RECIPES, recipe_values

from .known import own_option

RECIPE = own_option(
    "recipe",
    "training",
    click.STRING,
    "Values of several options under one name, where they are not given: "
    f"{'; '.join(f'{name}: {known.text}' for name, known in RECIPES.items())}.  [default: {NONE}]",
)


def from_recipe(ctx: click.Context, values: dict[str, Any], say: Callable[[str], None]) -> dict[str, Any]:
    """The values of the recipe that is asked for, without those that the command line or a plan gives.

    Args:
        values: Of all options, as click has them; recipe may be missing.
        say: Told of what the recipe sets, and of what is given instead.
    Raises:
        UserError: there is no such recipe.
    """
    name = values.get("recipe")
    given = {key: value for key, value in values.items() if ctx.get_parameter_source(key) != ParameterSource.DEFAULT}
    taken = recipe_values(name, given)
    instead = {key: value for key, value in given.items() if key in RECIPES[name].values} if name in RECIPES else {}
    if taken or instead:
        say(f"recipe={name}: {_told(taken)}{f'; given instead: {_told(instead)}' if instead else ''}.")
    return taken


def _told(values: dict[str, Any]) -> str:
    parts = {key: ",".join(map(str, value)) if isinstance(value, tuple) else value for key, value in values.items()}
    return " ".join(f"{key}={value}" for key, value in parts.items() if value is not None)
