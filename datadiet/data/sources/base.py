"""Where data comes from: one module per kind of source, each imported only when it is asked for.

A source turns files into `Splits`, arrays as published in canonical order; `check` judges them.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from datadiet import commands
from datadiet.errors import UserError
from datadiet.printable import as_named, visible

DATA_ROOT = Path("~/tensorflow_datasets")  # where tensorflow-datasets keeps its data, and so do we


class Origins(NamedTuple):
    """Where the training examples of a data set come from."""

    split: str = "train"  # the data's own name of it
    root: Path | None = None  # of the data; None: its examples are no files
    below: str = ""  # what stands between that and an example's name, with '/' at its end

    def path(self, example_id: str) -> str | None:
        """Of an example's file below the root, as the system has it."""
        return None if self.root is None else self.below + as_named(example_id)


def resolve_path(path: str, data_dir: Path | None) -> Path:
    """A path of the user's, taken from data_dir where one is given.

    Raises:
        UserError: the home of a user that there is not, what lies in a folder that others may not enter, or no path.
    """
    try:
        found = ((data_dir or Path()).expanduser() / Path(path).expanduser()).absolute()
        with suppress(FileNotFoundError, NotADirectoryError, ValueError):  # which the source tells, and what it expects
            os.stat(found)
    except (RuntimeError, OSError) as error:
        raise UserError(f"{path}: expected a path that can be read ({error}).") from None
    return found


def prepare_command(name: str, data_dir: Path | str | None) -> str:
    """The command that prepares a dataset."""
    return f"`{commands.command('prepare_data', dataset=name, data_dir=data_dir or None)}`"


class Obstacles:
    """What stands in the way of reading data, gathered so that all of it is named at once.

    Attributes:
        name: Of the data.
        found: Each in words that can be shown.
        options: That repair some of it, by name.
        parameters: Of the function that was called, which has these of the options alone; None: those of a command.
    """

    def __init__(self, name: str, parameters: tuple[str, ...] | None = None) -> None:
        self.name, self.parameters = name, parameters
        self.found: list[str] = []
        self.options: dict[str, Any] = {}

    def add(self, text: str, *, lines: Iterable[str] = (), **options: Any) -> None:
        """Add one.

        Args:
            text: In words, without a point.
            lines: That follow it, as they can be shown.
            options: That repair it, by name.
        """
        told = (visible(text), *lines)
        self.found.append("\n  ".join(line.replace("\n", r"\x0a") for line in told))  # as names of files may have it
        self.options |= options

    def check(self) -> None:
        """Raises UserError where there is any, with the options that repair it."""
        if not self.found:
            return
        several = len(self.found) > 1
        told = "".join(f"\n- {text}" for text in self.found) if several else f" {self.found[0]}"
        head = f" {len(self.found)} things stand in the way:" if several else ""
        repair = " ".join(commands.option(name, value) for name, value in self.options.items())
        if self.parameters is not None:
            repair = ", ".join(f"{name}={self.options[name]!r}" for name in self.parameters if name in self.options)
        end = ("\n" if several else ". ") + f"Add {repair}" if repair else ""
        raise UserError.of_shown(f"{visible(self.name)}:{head}{told}{end}.")


def integer_labels(name: str, which: str, values: np.ndarray) -> np.ndarray:
    """Labels as int32 [N] from integers [N] or [N, 1].

    Raises:
        UserError: another dtype or shape, such as one-hot rows.
    """
    labels = values[:, 0] if values.ndim == 2 and values.shape[1] == 1 else values
    if labels.ndim != 1 or not np.issubdtype(labels.dtype, np.integer):
        raise UserError(
            f"{name}: {which} labels are {values.dtype} {list(values.shape)}; expected integers [N] from 0 to C-1 "
            "(from one-hot rows: labels.argmax(axis=1))."
        )
    if labels.size and (labels.min() < -(2**31) or labels.max() >= 2**31):
        raise UserError(f"{name}: {which} labels reach {labels.max()}; expected 0 to C-1.")
    return labels.astype(np.int32)
