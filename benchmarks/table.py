"""`results` over 2,000 training runs, from the mirror and from an sqlite store that say the same."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks.timing import Row, interleaved_seconds, row, within
from datadiet import config as options
from datadiet.storage.files import write_json
from datadiet.tracking import mlflow_store

RUNS = 2000
CHECKPOINTS, FILES = 11, 16  # of each run in the mirror: a reader that looks into them pays for it
SECONDS = 10.0  # at most, from either source


def build(root: Path, count: int) -> None:
    """`count` finished runs below <root>/exps and in MLflow, as training leaves them."""
    import mlflow
    from mlflow.entities import Metric, Param, RunTag

    pass
    pass
    from datadiet.storage.layout import ExperimentLayout

    layout = ExperimentLayout(root)
    client = mlflow.MlflowClient()
    experiment = client.create_experiment(mlflow_store.EXPERIMENT)
    for run in range(count):
        config = options.resolve(options.TrainConfig(run=run, num_steps=100, selector="random", size=900), 1000)
        folder = layout.run("study", config)
        accuracy, seconds = 0.9 + run / 1e6, 10 + run / 7
        last = {"train_acc": accuracy, "test_acc": accuracy, "time/train_seconds": seconds, "time/eval_seconds": 0.5}
        last |= {f"test_acc/class_{c}": accuracy for c in range(10)}
        given = {f"cfg.{k}": str(v) for k, v in options.as_dict(config).items()}
        given |= {"data.num_kept": "900", "data.num_examples": "1000"}
        tags = {"kind": "train", "exp": "study", "path": layout.name(folder), "root": str(root.resolve())}
        made = client.create_run(experiment, run_name=layout.name(folder)).info.run_id
        client.log_batch(
            made,
            [Metric(k, v, int(time.time() * 1000), 100) for k, v in last.items()],
            [Param(k, v) for k, v in given.items()],
            [RunTag(f"datadiet.{k}", v) for k, v in (tags | {"scored_by": "random"}).items()],
        )
        client.set_terminated(made)
        summary: dict[str, Any] = {
            "path": layout.name(folder), "dataset": config.dataset, "model": config.model, "scored_by": "random",
            "num_kept": 900, "num_examples": 1000, "train_acc": accuracy, "test_acc": accuracy,
            "seconds": seconds + 0.5,
        }  # fmt: skip
        for step in range(CHECKPOINTS):
            held = folder / "ckpts" / str(step) / "d"
            held.mkdir(parents=True)
            for file in range(FILES):
                (held / str(file)).touch()
        write_json(folder / "args.json", {"exp": "study", **options.as_dict(config)})
        write_json(folder / "summary.json", summary)


def measure(rounds: int, quick: bool) -> Iterator[Row]:
    """One row; quick: a tenth of the runs."""
    import mlflow

    from datadiet.report.results_table import from_mirror, from_mlflow, to_csv

    count = RUNS // 10 if quick else RUNS
    with tempfile.TemporaryDirectory() as folder:
        root, before = Path(folder), mlflow.get_tracking_uri()
        mlflow.set_tracking_uri(f"sqlite:///{root}/mlflow.db")
        try:
            build(root, count)
            if to_csv(from_mirror(root / "exps")) != to_csv(from_mlflow(root)):
                raise AssertionError("the two sources do not say the same")
            sources = {"mirror": lambda: from_mirror(root / "exps"), "MLflow": lambda: from_mlflow(root)}
            seconds = interleaved_seconds(sources, min(rounds, 3))
        finally:
            mlflow.set_tracking_uri(before)
    goals = [within(f"seconds from {name} for {count} runs", values, SECONDS) for name, values in seconds.items()]
    yield row(f"results of {count} runs", 1, seconds, "mirror", count, goals)
