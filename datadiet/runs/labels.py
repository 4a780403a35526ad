"""The labels that a run trains on: the data's own, those of a file, or some of them drawn anew."""

from __future__ import annotations

import os
from collections.abc import Mapping
from functools import lru_cache
from hashlib import sha256
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from datadiet.config import TrainConfig
from datadiet.data.dataset import Dataset
from datadiet.data.labels import given_labels, randomize_labels
from datadiet.errors import UserError
from datadiet.storage.runs import StoredRun
from datadiet.storage.tables import csv_text, read_csv

DRAWN, GIVEN = "random_labels.csv", "given_labels.csv"  # in the folder of a run


class Labels(NamedTuple):
    """Of the training examples, for a run."""

    labels: np.ndarray  # int32 [N], those trained on
    touched: np.ndarray  # ids whose label was drawn anew, or is another than the data's own
    inputs: dict[str, str]  # the table of these, by the name of its file; {} where labels are the data's own


def labels_for(config: TrainConfig, dataset: Dataset) -> Labels:
    """The labels that a config asks for.

    Raises:
        UserError: its file of labels cannot be used; see `given_labels`.
    """
    own = dataset.train_labels
    if config.labels is not None:
        labels = _read(config.labels, _state(config.labels), dataset)
        touched = np.flatnonzero(labels != own).astype(np.int32)
        name, column = GIVEN, "given_label"
    else:
        labels, touched = randomize_labels(own, config.random_label_fraction, config.random_label_seed)
        if not config.random_label_fraction:
            return Labels(labels, touched, {})
        name, column = DRAWN, "random_label"
    rows = ((dataset.example_ids[i], i, own[i], labels[i]) for i in touched)
    return Labels(labels, touched, {name: csv_text(("example_id", "id", "label", column), rows)})


def labels_of(run: StoredRun, dataset: Dataset) -> np.ndarray:
    """The labels that a run was trained on, int32 [N]: given ones are those that it keeps, whatever became of the file.

    Raises:
        UserError: what it keeps is missing or damaged.
    """
    if run.config.labels is None:
        return labels_for(run.config, dataset).labels
    path, labels = run.input(GIVEN), np.array(dataset.train_labels)
    try:
        for row in read_csv(path, "id", "given_label"):
            labels[int(row["id"])] = int(row["given_label"])
    except (ValueError, IndexError) as error:
        raise UserError(f"{path} is not of this data ({error}).") from None
    return labels


def told_labels(config: TrainConfig, given: str | None) -> dict[str, Any]:
    """What the records of the scores of a run say of its labels, where they are not the data's own.

    Args:
        given: Hash of the table of given ones.
    """
    drawn = {"fraction": config.random_label_fraction, "seed": config.random_label_seed}
    return {"random_labels": drawn if config.random_label_fraction else None, "given_labels": given}


def table_digest(inputs: Mapping[str, str]) -> str | None:
    """The hash of the table of given labels among a run's own tables; None where there is none."""
    return sha256(inputs[GIVEN].encode()).hexdigest() if GIVEN in inputs else None


def given_digest(run: StoredRun) -> str | None:
    """The hash of the table of given labels that a run has; None where there are none."""
    made_as = run.arguments.made_as
    return made_as.inputs.get(GIVEN) if made_as else None


def _state(path: str) -> tuple[int, ...]:
    try:
        status = os.stat(Path(path).expanduser())
    except OSError as error:
        raise UserError(f"labels={path}: {error.strerror}; expected a csv file with example_id and label.") from None
    return status.st_size, status.st_mtime_ns, status.st_ctime_ns


@lru_cache(maxsize=1)  # the runs of a study share them; they are never written
def _read(path: str, state: tuple[int, ...], dataset: Dataset) -> np.ndarray:
    labels = given_labels(path, dataset)
    labels.flags.writeable = False
    return labels
