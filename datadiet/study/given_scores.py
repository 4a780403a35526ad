"""Scores that a study chooses by and does not make: named in the plan, kept in the mirror, tied to the data."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np

from datadiet.data.dataset import Dataset
from datadiet.errors import UserError
from datadiet.runs.context import Output
from datadiet.runs.inputs import read_scores
from datadiet.runs.scored import check_replaceable
from datadiet.scores.registry import score_names, training_score_names
from datadiet.storage.files import make_folder
from datadiet.storage.layout import score_file
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


def read_given(
    given: Iterable[str], dataset: Dataset, say: Callable[[str], None], offline: bool
) -> dict[str, np.ndarray]:
    """Scores [N] in the order of the data, by name.

    Raises:
        UserError: a file is not there, or not of a score for each example of this data.
    """
    found = {}
    for name, path in named_scores(given).items():
        refuse_offline(offline, scores=path)
        values, _ = read_scores(local_file(path, "scores").expanduser(), dataset, say)
        if not np.isfinite(values).all():
            raise UserError(f"scores={path}: {int((~np.isfinite(values)).sum())} values are not finite.")
        found[name] = values
    return found


def given_means(given: Iterable[str], source: str) -> list[MeanRecord]:
    """What study.json says of them; source: experiment folder of the runs on all data."""
    return [MeanRecord(name, STEP, score_file(Path(source), name, STEP).as_posix()) for name in named_scores(given)]


def write_given(found: dict[str, np.ndarray], dataset: Dataset, source: str, output: Output) -> None:
    """Put them where a study looks for mean scores.

    Args:
        source: Experiment folder of the runs on all data.
    Raises:
        UserError: other scores of that name are there.
    """
    for name, values in found.items():
        path = score_file(output.layout.experiment(source), name, STEP)
        told = {"type": name, "step": STEP, "source": f"given, sha256 {hashlib.sha256(values.tobytes()).hexdigest()}"}
        check_replaceable(path, told, output.overwrite)
        make_folder(path.parent)
        save_scores(path, values, dataset.identity(), told, name=output.layout.name(path))
