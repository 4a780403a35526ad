"""One option: its default, help text, type and bounds, how it is read from text, and what it refuses."""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cache
from numbers import Integral, Real
from types import NoneType
from typing import Any, NamedTuple, get_args, get_origin, get_type_hints

from datadiet.errors import UserError
from datadiet.printable import UNSEEN

LARGEST = 10**9  # of whole numbers; steps and ids are int32

LARGEST_REAL = 1e38  # float32 has no more

NOUNS = {
    int: "a whole number",
    float: "a finite number",
    bool: "true or false",
    str: "text",
}  # for values of a type, where an option names none

NUMBERS = {int: Integral, float: Real}  # those of NumPy too


class Bounds(NamedTuple):
    """What values an option takes; None: not bounded there."""

    min: float | None = None
    max: float | None = None
    above: float | None = None
    below: float | None = None
    choices: tuple[str, ...] | None = None
    form: str | None = None  # of a text, as a regular expression

    def __contains__(self, value: object) -> bool:
        if isinstance(value, str):
            fits = self.form is None or re.fullmatch(self.form, value) is not None
            return fits and (self.choices is None or value in self.choices)
        if not isinstance(value, Real) or self.form is not None:
            return False
        value = float(value) if not isinstance(value, int) else value
        return (
            (self.min is None or value >= self.min)
            and (self.max is None or value <= self.max)
            and (self.above is None or value > self.above)
            and (self.below is None or value < self.below)
        )

    def __str__(self) -> str:
        """In words, as in 'from 0 to 1', 'above 0, at most 1', 'one of mean, median'; empty where there are none."""
        if self.choices is not None:
            return f"one of {', '.join(self.choices)}"
        if self.min is not None and self.max is not None:
            return f"from {self.min} to {self.max}"
        told = (("above", self.above), ("below", self.below), ("at least", self.min), ("at most", self.max))
        return ", ".join(f"{word} {bound}" for word, bound in told if bound is not None)


def option(
    default: Any, text: str, *, auto: str | None = None, min: float | None = None, max: float | None = None,
    above: float | None = None, below: float | None = None, choices: Iterable[str] | None = None,
    form: str | None = None, noun: str | None = None, kind: Any = None, group: str = "training", first: bool = False,
) -> Any:  # fmt: skip
    """A field of a dataclass of options, or an option that an entry of a registry brings.

    Args:
        default: None: it is derived, or there is none.
        text: Help.
        auto: Words for the default where it is None.
        min, max: Bounds that are allowed themselves, of each value where there are several.
        above, below: Bounds that are not.
        choices: The texts there are.
        form: Of a text, as a regular expression; `noun` tells it in words.
        noun: What is expected, for the message that refuses a value: 'a momentum' (below 1), or a unit as in (at
            least 3) 'presentations'.
        kind: The type, as an annotation; only outside a dataclass, where the default does not tell it. `int | float` is
            an amount: a whole number, or a fraction of all there are.
        group: Under which help lists it.
        first: Whether it is among the few that help lists first.
    """
    bounds = Bounds(min, max, above, below, None if choices is None else tuple(choices), form)
    return field(
        default=default,
        metadata={
            "help": text,
            "auto": auto,
            "bounds": bounds,
            "noun": noun,
            "kind": kind,
            "group": group,
            "first": first,
        },
    )


SHARES = Bounds(above=0, below=1)  # of all there are
SHARE = f"a fraction of all ({SHARES}), as in 0.5 or 50%"


def amount(text: str) -> int | float:
    """A whole number, or a fraction of all there are, as in 900, 0.5 and 50%.

    Raises:
        ValueError: neither. Fractions may be out of `SHARES`.
    """
    text = text.strip()
    if text.endswith("%"):
        return float(f"{text[:-1].strip()}e-2")
    try:
        return int(text)
    except ValueError:
        return float(text)


@dataclass(frozen=True)
class Option:
    """What is known of an option."""

    name: str
    type: type  # bool, int, float or str: of the value, of each where there are many
    many: bool  # a tuple of any length
    optional: bool  # takes None
    default: Any
    help: str
    auto: str | None
    bounds: Bounds
    noun: str | None
    group: str = "training"  # under which help lists it
    first: bool = False  # among the few that help lists first
    amount: bool = False  # a whole number, or a fraction of all there are; see `amount`

    @classmethod
    def of(cls, name: str, made: dataclasses.Field, kind: Any = None) -> Option:
        """From what `option` made.

        Args:
            kind: The type, as an annotation; None: found from the default.
        """
        told, kind = made.metadata, kind or made.metadata["kind"] or type(made.default)
        parts = [part for part in get_args(kind) if part is not NoneType]
        optional = made.default is None or NoneType in get_args(kind)
        if amount := parts == [int, float]:
            kind = int
        elif get_origin(kind) is not tuple and len(parts) == 1:  # X | None
            kind, parts = parts[0], [part for part in get_args(parts[0]) if part is not Ellipsis]
        many = get_origin(kind) is tuple
        one = parts[0] if many else kind
        if one not in (bool, int, float, str):
            raise UserError(f"option {name}: its type is {one}; expected bool, int, float, str or a tuple of such.")
        described = (told[key] for key in ("help", "auto", "bounds", "noun", "group", "first"))
        return cls(name, one, many, optional, made.default, *described, amount=amount)

    @property
    def expected(self) -> str:
        """What values there are, for a message that refuses another."""
        range_, noun = str(self.bounds), self.noun or NOUNS.get(self.type, "")
        if self.bounds.choices is not None:
            return self.noun or range_
        if not noun.startswith("a "):  # a unit
            return f"{range_} {noun}{f', or {SHARE}' if self.amount else ''}".strip()
        return f"{noun} {'of ' if range_.startswith('at ') else ''}{range_}".strip()

    def parse(self, text: str) -> Any:
        """A value from text: comma-separated where there are many, 'auto' for None.

        Raises:
            ValueError: not of this type.
        """
        if text in ("auto", "") and self.optional:
            return None
        if self.many:
            return () if text == "none" else tuple(self._parse(part.strip()) for part in text.split(","))
        return self._parse(text)

    def _parse(self, text: str) -> Any:
        if self.amount:
            return amount(text)
        if self.type is not bool:
            return self.type(text)
        if text.lower() not in ("true", "false"):
            raise ValueError(f"{text!r}: expected true or false")
        return text.lower() == "true"

    def _is_of_type(self, part: Any) -> bool:
        """Whether one value has the type of this option: a whole number is a number, true is none."""
        if self.type is bool or isinstance(part, bool):
            return self.type is type(part)
        return isinstance(part, NUMBERS.get(self.type, str)) or (self.amount and isinstance(part, float))

    def check(self, value: Any) -> None:
        """Refuse a value that this option does not take.

        Raises:
            UserError: names the option, its value and what was expected.
        """
        if value is None and self.optional:
            return
        if self.many and not isinstance(value, list | tuple):
            raise refuse(self.name, value, f"a tuple, each {self.expected}")
        parts: Any = value if self.many else (value,)
        for part in parts:
            if isinstance(part, str):
                check_text(self.name, part)
            bounds = SHARES if self.amount and isinstance(part, float) else self.bounds
            infinite = isinstance(part, float) and not math.isfinite(part)
            if not self._is_of_type(part) or infinite or part not in bounds:
                raise refuse(self.name, part, self.expected)
            largest = {int: LARGEST, float: LARGEST_REAL}.get(self.type)
            if largest and self.bounds.max is None and part not in Bounds(-largest, largest):
                raise refuse(self.name, part, f"at most {largest if self.type is int else format(largest, 'g')}")


@cache
def fields_of(kind: type) -> dict[str, Option]:
    """The options of a dataclass by name, in its order; a field that a subclass only types anew stays what it was."""
    hints, found = get_type_hints(kind), {}
    for base in filter(dataclasses.is_dataclass, reversed(kind.__mro__)):
        found |= {f.name: f for f in dataclasses.fields(base) if "bounds" in f.metadata}
    return {name: Option.of(name, made, hints[name]) for name, made in found.items()}


def check_values(record: Any) -> None:
    """Check every value of a dataclass of options by itself.

    Raises:
        UserError: names the option, its value and what was expected.
    """
    for name, known in fields_of(type(record)).items():
        known.check(getattr(record, name))


def refuse(name: str, got: Any, expected: str) -> UserError:
    """The error for a value that cannot be."""
    return UserError(f"{name}={got}: expected {expected}.")


def check_text(name: str, text: str) -> None:
    """Refuse text that no file system, database or terminal takes, wherever it is used.

    Raises:
        UserError: control characters or half a character in it, or too long (as a path: a part of it).
    """
    try:
        parts = text.encode().split(b"/")
    except UnicodeEncodeError:
        raise refuse(name, repr(text[:80]), "text in UTF-8") from None
    if UNSEEN.search(text):
        raise refuse(name, repr(text[:80]), "text without control characters")
    if len(text) > 3000 or max(map(len, parts)) > 200:
        raise refuse(name, f"{text[:40]}… ({len(text)} characters)", "at most 200 bytes between two '/'")


@dataclass(frozen=True)
class Parameters:
    """Values of options by name, read as attributes; compared and hashed by what it holds."""

    items: tuple[tuple[str, Any], ...] = ()

    @classmethod
    def of(cls, values: Mapping[str, Any] | None = None, **more: Any) -> Parameters:
        return cls(tuple({**(values or {}), **more}.items()))

    def __getattr__(self, name: str) -> Any:
        if not name.startswith("_") and name != "items" and name in self:
            return dict(self.items)[name]
        raise AttributeError(f"there is no option {name!r} among those declared: {', '.join(self.as_dict())}")

    def __contains__(self, name: object) -> bool:
        return any(name == known for known, _ in self.items)

    def as_dict(self) -> dict[str, Any]:
        return dict(self.items)

    def only(self, names: Iterable[str]) -> Parameters:
        """Those with these names, in this order."""
        return Parameters.of({name: getattr(self, name) for name in names})
