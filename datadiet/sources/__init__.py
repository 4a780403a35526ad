"""Where data comes from: one module per kind of source, each imported only when it is asked for.

A source turns files into `Splits`, arrays as published in canonical order; `check` judges them.
"""

from __future__ import annotations

import os
import shlex
from pathlib import Path
from typing import NamedTuple

import numpy as np

from datadiet.config import UserError

DATA_ROOT = Path("~/tensorflow_datasets")  # where tensorflow-datasets keeps its data, and so do we


class Splits(NamedTuple):
    """What a source returns: arrays as published, and the names of the training examples.

    train_images, test_images: uint8 [N, H, W, D], or float32 [N, D] for vectors.
    train_labels, test_labels: int32 [N]. example_ids: str [N]. class_names: C names, or ().
    """

    train_images: np.ndarray
    train_labels: np.ndarray
    test_images: np.ndarray
    test_labels: np.ndarray
    example_ids: np.ndarray
    class_names: tuple[str, ...] = ()


def prepare_command(name: str, data_dir: Path | str | None) -> str:
    """The two spellings of the command that prepares a dataset."""
    parameters = {"dataset": name} | ({"data_dir": str(data_dir)} if data_dir else {})
    mlflow = " ".join(f"-P {shlex.quote(f'{key}={value}')}" for key, value in parameters.items())
    plain = " ".join(f"--{key} {shlex.quote(value)}" for key, value in parameters.items())
    return f"`mlflow run . -e prepare_data {mlflow}` (or `datadiet prepare_data {plain}`)"


def walk(folder: Path) -> list[str]:
    """Paths of all files below a folder, relative to it, with '/', sorted as plain strings in every locale.

    Strings, because a quarter of a million Path objects take seconds. Hidden files and folders are passed over.
    """
    found = []
    start = len(str(folder)) + 1
    for here, folders, files in os.walk(str(folder), followlinks=True):
        folders[:] = [name for name in folders if not name.startswith(".")]
        relative = here[start:].replace(os.sep, "/")
        prefix = f"{relative}/" if relative else ""
        found += [prefix + name for name in files if not name.startswith(".")]
    return sorted(found)


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


def check(name: str, splits: Splits) -> int:
    """Refuse data that nothing sensible can be learned from.

    Returns:
        C, the number of classes.
    Raises:
        UserError: no examples or no test split, unequal lengths, images of different sizes,
            NaN or infinite features, one class, labels other than 0..C-1, a class only in test.
    """
    for which, images, labels in (
        ("train", splits.train_images, splits.train_labels),
        ("test", splits.test_images, splits.test_labels),
    ):
        if len(images) != len(labels):
            raise UserError(f"{name}: {len(images)} {which} examples but {len(labels)} labels; expected equal lengths.")
        if not len(images):
            raise UserError(f"{name}: the {which} split is empty; a data diet needs a training and a test split.")
        if images.dtype == np.float32 and not np.isfinite(images).all():
            rows = np.flatnonzero(~np.isfinite(images).all(axis=tuple(range(1, images.ndim))))
            raise UserError(
                f"{name}: NaN or infinite features in {len(rows)} {which} examples (the first: {rows[0]}); "
                "expected finite numbers: drop or repair these rows."
            )
    if splits.train_images.shape[1:] != splits.test_images.shape[1:]:
        shapes = splits.train_images.shape[1:], splits.test_images.shape[1:]
        raise UserError(f"{name}: train examples of shape {shapes[0]} but test examples of shape {shapes[1]}.")
    if len(splits.example_ids) != len(splits.train_labels):
        raise UserError(f"{name}: {len(splits.example_ids)} ids for {len(splits.train_labels)} training examples.")
    if len(np.unique(splits.example_ids)) != len(splits.example_ids):
        raise UserError(f"{name}: the ids of the training examples repeat; expected one name per example.")
    return _check_classes(name, splits.train_labels, splits.test_labels)


def _check_classes(name: str, train_labels: np.ndarray, test_labels: np.ndarray) -> int:
    present = np.unique(train_labels)
    if len(present) == 1:
        raise UserError(f"{name}: every training example has label {present[0]}; expected at least two classes.")
    if present[0] != 0 or present[-1] != len(present) - 1:
        shown = ", ".join(map(str, present[:8])) + (" …" if len(present) > 8 else "")
        raise UserError(
            f"{name}: {len(present)} different training labels, {shown} (largest {present[-1]}); expected 0 to "
            f"{len(present) - 1} without gaps (renumber them: np.unique(labels, return_inverse=True)[1])."
        )
    unknown = np.setdiff1d(test_labels, present)
    if len(unknown):
        raise UserError(
            f"{name}: label {unknown[0]} is present only in the test split; expected test labels from 0 to "
            f"{len(present) - 1}: drop these examples or add some to the training split."
        )
    return len(present)
