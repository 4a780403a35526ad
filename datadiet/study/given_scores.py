"""Scores that a study chooses by and does not make: named in the plan, kept in the mirror, tied to the data."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from datadiet.data.dataset import Dataset
from datadiet.errors import UserError
from datadiet.runs.context import Context
from datadiet.runs.inputs import no_scores, read_scores
from datadiet.runs.scored import check_replaceable
from datadiet.scores.registry import score_names, training_score_names
from datadiet.storage.files import make_folder
from datadiet.storage.layout import ExperimentLayout, score_file
from datadiet.storage.records import MeanRecord
from datadiet.storage.score_files import save_scores
from datadiet.tracking.fetch import local_file, refuse_offline

STEP = 0  # in the names of their files: it is not known which step they are of


def named_scores(given: Iterable[str]) -> dict[str, str]:
    """Paths by name, from NAME=PATH, or PATH, whose name is that of the file.

    Raises:
        UserError: a name that cannot be, or is another score's.
    """
    found: dict[str, str] = {}
    for text in given:
        name, sign, path = text.partition("=")
        if not sign:
            name, path = Path(text).stem, text
        known = (*score_names(), *training_score_names(), *found)
        if not re.fullmatch(r"\w[\w.-]*", name) or name in known or not path:
            raise UserError(
                f"scores={text}: expected NAME=PATH with a name of letters, digits, '_', '-', '.' that no other score "
                f"has; {name!r} is {'taken' if name in known else 'none'}."
            )
        found[name] = path
    return found


class GivenScore(NamedTuple):
    """A score as it will lie in the mirror."""

    path: Path  # where a study looks for mean scores
    values: np.ndarray  # [N], in the order of the data
    provenance: dict[str, Any]  # as `ScoreRecord` has it


def read_given(given: Iterable[str], dataset: Dataset, source: str, context: Context) -> list[GivenScore]:
    """Read scores, before anything is written.

    Args:
        source: Experiment folder of the runs on all data.
    Raises:
        UserError: a file is not there, or not of a score for each example of this data; or other scores of that name
            are in the mirror.
    """
    found = []
    for name, text in named_scores(given).items():
        refuse_offline(context.tracker.offline, scores=text)
        path = local_file(text, "scores").expanduser()
        if not path.is_file():
            raise no_scores(path)
        values, _ = read_scores(path, dataset, context.reporter.say)
        if not np.isfinite(values).all():
            raise UserError(f"scores={text}: {int((~np.isfinite(values)).sum())} values are not finite.")
        told = {"type": name, "step": STEP, "source": f"given, sha256 {hashlib.sha256(values.tobytes()).hexdigest()}"}
        target = score_file(context.output.layout.experiment(source), name, STEP)
        check_replaceable(target, told, context.output.overwrite)
        found.append(GivenScore(target, values, told))
    return found


def given_means(given: Iterable[str], source: str) -> list[MeanRecord]:
    """What study.json says of them; source: experiment folder of the runs on all data."""
    return [MeanRecord(name, STEP, score_file(Path(source), name, STEP).as_posix()) for name in named_scores(given)]


def write_given(found: Iterable[GivenScore], dataset: Dataset, layout: ExperimentLayout) -> None:
    """Put them where a study looks for mean scores."""
    for path, values, told in found:
        make_folder(path.parent)
        save_scores(path, values, dataset.identity(), told, name=layout.name(path))
