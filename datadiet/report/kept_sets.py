"""The kept set as a product: one table per subset, for users who have neither JAX nor datadiet."""

from __future__ import annotations

import io
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from datadiet.data.dataset import Dataset
from datadiet.data.sources.base import Origins
from datadiet.errors import UserError
from datadiet.printable import visible
from datadiet.report.evidence import CellResult, Study
from datadiet.selectors import selection
from datadiet.storage.files import make_subfolder, write_bytes, write_text
from datadiet.storage.tables import csv_text

if TYPE_CHECKING:
    import pandas as pd

COLUMNS = ("example_id", "index", "label", "class", "split", "path", "score", "stderr", "rank", "kept")


def examples(
    dataset: Dataset, origins: Origins, kept: np.ndarray, labels: np.ndarray | None = None,
    scores: np.ndarray | None = None, stderr: np.ndarray | None = None, seed: int = 0,
) -> pd.DataFrame:  # fmt: skip
    """Every training example in canonical order, and whether a subset keeps it.

    Columns: example_id, the source's own name; index, from 0, the position in *datadiet's* order of the training set,
    which other libraries need not share; label and class, the number and the name of the class trained on; split,
    that it is of; path of its file below the data's folder, missing where it is no file; score; stderr, of that over
    runs; rank, 1 for the largest score; kept.

    Args:
        kept: Ids, int [M].
        labels: int [N], those trained on; None: the data's own.
        scores, stderr: float [N]; None: missing.
        seed: Of the order among equal scores.
    """
    import pandas as pd  # here, because it takes long to import

    labels = dataset.train_labels if labels is None else labels
    names = dataset.classes
    paths = [origins.path(str(one)) for one in dataset.example_ids]
    nothing = np.full(dataset.num_examples, np.nan)
    rank = pd.array([pd.NA] * dataset.num_examples, dtype="Int32")
    if scores is not None:
        rank[selection.descending(scores, seed)] = np.arange(1, dataset.num_examples + 1)
    member = np.zeros(dataset.num_examples, bool)
    member[kept] = True
    columns = (
        dataset.example_ids.astype(str), np.arange(dataset.num_examples, dtype=np.int32), labels.astype(np.int32),
        [str(names[label]) for label in labels], origins.split,
        pd.array([None if path is None else visible(path) for path in paths], dtype="str"),
        nothing if scores is None else scores.astype(np.float64),
        nothing if stderr is None else stderr.astype(np.float64), rank, member,
    )  # fmt: skip
    return pd.DataFrame(dict(zip(COLUMNS, columns, strict=True)))


def table(study: Study, cell: CellResult) -> pd.DataFrame:
    """The examples of a study and whether a subset keeps them; see `examples`.

    Scores are means over the scored runs, and missing for a subset chosen without a score; their standard error also
    for one run. Random subsets differ between runs: this is the one of the first evaluation run.

    Raises:
        UserError: the data set cannot be had, or a run kept examples that it does not have.
    """
    dataset = study.dataset
    if dataset is None:
        raise UserError(f"The kept sets need the data set: {study.no_dataset}")
    kept, score = study.kept(cell), study.score_of(cell)
    if kept is None:
        raise UserError(f"Which examples {cell.arm} keeps was not told.")
    return examples(
        dataset, study.origins, kept.ids, study.noise.labels if study.noise else None, score and score.mean,
        score and score.stderr, kept.seed,
    )  # fmt: skip


def as_csv(found: pd.DataFrame, columns: Sequence[str] = COLUMNS) -> str:
    """A table as text; what is missing is nothing."""
    cells = (found[name].astype(object).where(found[name].notna(), None).tolist() for name in columns)
    return csv_text(columns, zip(*cells))


def path_of(study: Study, cell: CellResult, suffix: str) -> Path:
    """exps/<exp>/kept/<arm>_<size>.<suffix>, spaces of the arm's name as '_'."""
    name = re.sub(r"[^\w.+-]+", "_", cell.arm)
    return study.exps / study.exp / "kept" / f"{name}_{cell.size}.{suffix}"


def write(study: Study, cell: CellResult) -> list[Path]:
    """A subset's table as .csv and as .parquet."""
    found = table(study, cell)
    make_subfolder(study.exps / study.exp / "kept")
    csv, parquet = path_of(study, cell, "csv"), path_of(study, cell, "parquet")
    write_text(csv, as_csv(found))
    buffer = io.BytesIO()
    found.to_parquet(buffer, index=False)
    write_bytes(parquet, buffer.getvalue())
    return [csv, parquet]
