"""Indices of runs as they are typed."""

from __future__ import annotations

import re
from typing import Any

import click

from datadiet.config import MAX_RUNS


class Runs(click.ParamType):
    """Indices of runs: comma-separated whole numbers and ranges, both ends included."""

    name = "runs"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if isinstance(value, tuple):
            return value
        runs: list[int] = []
        for part in value.split(","):
            match = re.fullmatch(r"([0-9]{1,9})(?:-([0-9]{1,9}))?", part.strip())
            if not match or (match[2] and int(match[2]) < int(match[1])):
                self.fail(f"{value!r}: expected indices and rising ranges, as in 0-9 or 0,2,5.", param, ctx)
            if (last := int(match[2] or match[1])) > MAX_RUNS:
                self.fail(f"{last}: expected at most {MAX_RUNS}: seeds go no further.", param, ctx)
            runs += range(int(match[1]), last + 1)
        if len(set(runs)) < len(runs):
            self.fail(f"{value!r}: expected each run once.", param, ctx)
        return tuple(runs)
