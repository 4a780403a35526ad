"""A number of examples as it is typed."""

from __future__ import annotations

from typing import Any

import click

from datadiet.errors import UserError
from datadiet.option import Option, amount


class Amount(click.ParamType):
    """A whole number, or a fraction of all there are, as in 900, 0.5 and 50%."""

    name = "amount"

    def __init__(self, option: Option) -> None:
        self.option = option

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if not isinstance(value, str):
            return value
        try:
            found = amount(value)
            self.option.check(found)
        except (ValueError, UserError):
            self.fail(f"{self.option.name}={value[:80]}: expected {self.option.expected}.", param, ctx)
        return found
