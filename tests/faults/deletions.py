"""Runs of MLflow that are deleted while they are written."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from datadiet.errors import UserError
from datadiet.tracking import record

from .harness import Tally, asked
from .scenes import RUN, Stage, _hits


def change(uri: str, run_id: str, what: str) -> str:
    """Call delete_run or restore_run of MLflow's own client."""
    import mlflow

    getattr(mlflow.MlflowClient(uri), what)(run_id)
    return what


def _id(root: Path) -> str | None:
    """Of the MLflow run of a training, once it is known."""
    try:
        return record.load(root / RUN / record.NAME).id
    except UserError:
        return None


def deleted_run(stage: Stage, count: int, restored: bool) -> Tally:
    """In the middle of a training its run is deleted in MLflow, as in the UI; it ends well, and `sync`, done twice,
    brings it to the restored run or to a new one."""
    way = "and restored" if restored else "for ever"
    tally = Tally(f"the run is deleted in MLflow while it trains, {way}")
    wrong: dict[Path, list[str]] = {}
    assert stage.whole
    for k in _hits(tally, count):
        root = stage.base / f"deleted_{way.split()[-1]}_{k}"
        ckpts, after = root / RUN / "ckpts", stage.random.randrange(0, 9)
        child = stage.train(root)
        while child.running() and not (_id(root) and len(list(ckpts.glob("[0-9]*/files.json"))) >= after):
            time.sleep(0.01)
        run_id: Any = _id(root)
        asked(change, stage.uri, run_id, "delete_run", log=stage.log(f"delete_{root.name}"))
        code = child.wait()
        if "takes no more of" not in child.text:  # it had told everything before
            tally.not_hit += 1
            continue
        wrong[root] = [f"{root}: {child.text[-400:]}"] if code or child.text.count("Warning: MLflow") != 1 else []
        if restored:
            asked(change, stage.uri, run_id, "restore_run", log=stage.log(f"restore_{root.name}"))
        for again in ("sync", "sync_again"):
            stage.done(f"{root.name}_{again}", "sync", root=root)
        if (_id(root) == run_id) != restored:
            wrong[root].append(f"{root}: run {run_id} became {_id(root)}")
    stage.judge(tally, wrong)
    return tally
