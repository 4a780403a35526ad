"""mirror.zip: a study without its checkpoints, as one file for those who have MLflow alone.

Extracted into an empty folder it is exps/, of which `report` says the same again.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from zipfile import ZIP_DEFLATED, ZipFile, ZipInfo

from datadiet.report.trained import TrainedStudy
from datadiet.runs.products import LARGEST
from datadiet.storage import answers
from datadiet.storage.files import writing
from datadiet.storage.layout import score_file
from datadiet.temporary import putting

NAME = "mirror.zip"
OF_STUDY = ("study.json", "results.csv")
OF_RUN = (
    "args.json", "kept.csv", "random_labels.csv", "given_labels.csv", "metrics.jsonl", answers.NAME, "summary.json"
)  # fmt: skip


def write_mirror(study: TrainedStudy) -> Path:
    """Write exps/<exp>/mirror.zip: options, kept sets, reports, answers and summaries of all runs, the scores that were
    compared, and kept tables; files that MLflow is given, and no larger ones."""
    path = study.exps / study.exp / NAME
    with writing(path), putting(path) as file, ZipFile(file, "w", ZIP_DEFLATED, compresslevel=1) as archive:
        for part in dict.fromkeys(_parts(study)):
            if part.is_file() and part.stat().st_size <= LARGEST:
                entry = ZipInfo(
                    f"exps/{part.relative_to(study.exps).as_posix()}"
                )  # of no time: equal files, equal bytes
                entry.compress_type = ZIP_DEFLATED
                with open(part, "rb") as source, archive.open(entry, "w") as target:
                    shutil.copyfileobj(source, target)
    return path


def _parts(study: TrainedStudy) -> Iterator[Path]:
    """Files, also such as a run need not have."""
    folder, record = study.exps / study.exp, study.record
    yield from (folder / name for name in OF_STUDY)
    yield from sorted((folder / "kept").glob("*.csv"))
    for run in (*record.score_runs, *(run for cell in record.cells for run in cell.runs)):
        yield from (study.exps / run / name for name in OF_RUN)
    for mean in record.means:
        scores = study.exps / mean.path
        yield from (scores.with_suffix(suffix) for suffix in (".npy", ".json", ".runs.npy", ".stderr.npy"))
    scored = [(mean.type, mean.step) for mean in record.means] + [("forget", study.config.num_steps)]
    for run in record.score_runs:
        for kind, step in scored:
            scores = score_file(study.exps / run, kind, step)
            yield from (scores, scores.with_suffix(".json"))
