"""How data is read, where it may be read in several ways; and what is said of it."""

from __future__ import annotations

import warnings
from dataclasses import dataclass, fields
from typing import Any, Self

from datadiet.option import refuse
from datadiet.train_config import FIELDS, TrainConfig


@dataclass(frozen=True)
class Reading:
    """What the options of a training say of its data; by default it is read as it is.

    Its fields are options of every command that loads data, by the same names.
    """

    image_size: str | None = None  # N or HxW
    test_fraction: float | None = None
    test_split: str | None = None
    labels: str | None = None  # path of a csv file
    skip_bad: bool = False

    def __post_init__(self) -> None:
        """Raises UserError for a value that cannot be."""
        for name in NAMES:
            FIELDS[name].check(getattr(self, name))
        if self.test_fraction is not None and self.test_split is not None:
            raise refuse(
                "test_fraction", self.test_fraction, f"none where test_split={self.test_split} is the test set"
            )

    @classmethod
    def of(cls, config: TrainConfig) -> Self:
        return cls(**{f.name: getattr(config, f.name) for f in fields(cls)})

    @classmethod
    def asked(cls, image_size: str | int | None = None, **options: Any) -> Self:
        """From values by name; image_size may be a number.

        Raises:
            UserError: an option that there is not, or a value that cannot be.
        """
        for name in options.keys() - set(NAMES):
            raise refuse(name, options[name], f"one of {', '.join(NAMES)}")
        return cls(None if image_size is None else str(image_size), **options)

    def given(self) -> dict[str, Any]:
        """Those that are not as by default, by name."""
        return {f.name: getattr(self, f.name) for f in fields(self) if getattr(self, f.name) != f.default}

    @property
    def shape(self) -> tuple[int, int] | None:
        """Height and width that images are to have; None: those they have."""
        if self.image_size is None:
            return None
        height, _, width = self.image_size.partition("x")
        return int(height), int(width or height)

    @property
    def exact(self) -> bool:
        """Whether images are stretched to `shape`; else the shorter side is made to fit, and the centre is taken."""
        return self.image_size is not None and "x" in self.image_size


NAMES = tuple(f.name for f in fields(Reading))

AS_IT_IS = Reading()


class Remark(UserWarning):
    """What was decided or found when data was read: kept with it, and told whenever it is loaded."""


def remark(text: str) -> None:
    """Say so of the data that is being read."""
    warnings.warn(text, Remark, stacklevel=2)
