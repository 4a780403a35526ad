"""Arms of a study: the ways to choose examples that it compares. Pure functions of its plan."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from datadiet.errors import UserError
from datadiet.selectors import selection
from datadiet.selectors.options import LIKE, RANDOM
from datadiet.study.given_scores import STEP, named_scores
from datadiet.study.plan import Plan, named, steps_of

FULL_FOLDER = "full_data"  # of the runs on all examples, below the study's own


@dataclass(frozen=True)
class Arm:
    """One way to choose examples; by the mean score of a type and step, or without scores."""

    name: str
    selector: str
    type: str | None
    step: int | None
    folder: str  # below the study's
    options: tuple[tuple[str, Any], ...] = ()  # of the selector, beside those given to all arms
    control: bool = False  # takes no option that is given to all arms


def arms(plan: Plan, scored_at: tuple[int, ...]) -> list[Arm]:
    """All data, a random choice, and every selector with every score it needs."""
    made = [
        Arm("full data", "all", None, None, FULL_FOLDER),
        Arm("random", "random", None, None, "random", control=True),
    ]
    chosen = [named(text) for text in plan.selectors]
    for selector, own in (pair for pair in chosen if LIKE not in pair[1]):
        told, given = "".join(f" {name} {value}" for name, value in own.items()), tuple(own.items())
        if not selection.SELECTORS[selector].scores:
            if f"{selector}{told}" != "random":
                made.append(Arm(f"{selector}{told}", selector, None, None, selector, given))
            continue
        for kind in plan.score_types:
            for step in (of_kind := steps_of(kind, scored_at)):
                name = f"{selector} {kind}{told}" + (f" step {step}" if len(of_kind) > 1 else "")
                made.append(Arm(name, selector, kind, step, f"{selector}.{kind}.{step}", given))
        made += [Arm(f"{selector} {own}{told}", selector, own, STEP, f"{selector}.{own}.{STEP}", given)
                 for own in named_scores(plan.scores)]  # fmt: skip
    for wanted in (own[LIKE] for _, own in chosen if LIKE in own):
        made += [arm for arm in _random_like(wanted, made) if arm not in made]
    return made


def _random_like(wanted: str, made: list[Arm]) -> list[Arm]:
    """Random subsets with as many of each class as an arm keeps, or as every arm whose name begins so.

    Raises:
        UserError: there is none.
    """
    apart = ("all", RANDOM)
    others = [arm.name for arm in made if arm.selector not in apart and not selection.chooses_anew(arm.selector)]
    meant = [name for name in others if f"{name} ".startswith(f"{wanted} ")]
    if not meant:
        known = ", ".join(others) or "none"
        raise UserError(f"selectors={RANDOM}:{LIKE}={wanted}: expected an arm, or its first words; there are: {known}.")
    return [
        Arm(
            f"{RANDOM} {LIKE} {name}", RANDOM, None, None, re.sub(r"[^\w.+-]+", "_", f"{RANDOM}.{LIKE}.{name}"),
            ((LIKE, name),), control=True,
        )
        for name in meant
    ]  # fmt: skip
