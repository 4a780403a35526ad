"""The kept set as a product: one table per subset, for users who have neither JAX nor datadiet."""

from __future__ import annotations

import io
import re
from pathlib import Path

import numpy as np
import pandas as pd

from datadiet.errors import UserError
from datadiet.report.evidence import CellResult, Study
from datadiet.selectors import selection
from datadiet.storage.files import make_subfolder, write_bytes, write_text
from datadiet.storage.manifests import manifest_ids
from datadiet.storage.tables import harmless


def table(study: Study, cell: CellResult) -> pd.DataFrame:
    """Every training example in canonical order, and whether the subset keeps it.

    Columns: example_id; index, from 0, the position in the data set's own order; label, as trained on; score_mean
    and score_standard_error over the scored runs (missing for a subset chosen without a score; the error also for
    one run); rank, 1 for the largest mean, ties as the run drew them; kept. Random subsets differ between runs:
    this is the one of the first evaluation run.

    Raises:
        UserError: the data set cannot be had, or a run kept examples that it does not have.
    """
    dataset = study.dataset
    if dataset is None:
        raise UserError(f"The kept sets need the data set: {study.no_dataset}")
    run = study.run(cell.paths[0])
    ids = pd.Series(np.arange(dataset.num_examples), index=dataset.example_ids.astype(str))
    kept = np.zeros(dataset.num_examples, bool)
    kept[manifest_ids(run.input("kept.csv"), dataset)] = True
    score = study.score_of(cell)
    nothing = np.full(dataset.num_examples, np.nan)
    rank = pd.array([pd.NA] * dataset.num_examples, dtype="Int32")
    if score:
        order = selection.descending(score.mean, run.config.random_subset_seed)
        rank[order] = np.arange(1, dataset.num_examples + 1)
    return pd.DataFrame({
        "example_id": ids.index,
        "index": ids.to_numpy(np.int32),
        "label": (study.noise.labels if study.noise else dataset.train_labels).astype(np.int32),
        "score_mean": score.mean.astype(np.float64) if score else nothing,
        "score_standard_error": score.stderr.astype(np.float64) if score else nothing,
        "rank": rank,
        "kept": kept,
    })  # fmt: skip


def path_of(study: Study, cell: CellResult, suffix: str) -> Path:
    """exps/<exp>/kept/<arm>_<size>.<suffix>, spaces of the arm's name as '_'."""
    name = re.sub(r"[^\w.+-]+", "_", cell.arm)
    return study.exps / study.exp / "kept" / f"{name}_{cell.size}.{suffix}"


def write(study: Study, cell: CellResult) -> list[Path]:
    """A subset's table as .csv and as .parquet."""
    found = table(study, cell)
    make_subfolder(study.exps / study.exp / "kept")
    csv, parquet = path_of(study, cell, "csv"), path_of(study, cell, "parquet")
    write_text(csv, found.assign(example_id=found["example_id"].map(harmless)).to_csv(index=False, lineterminator="\n"))
    buffer = io.BytesIO()
    found.to_parquet(buffer, index=False)
    write_bytes(parquet, buffer.getvalue())
    return [csv, parquet]
