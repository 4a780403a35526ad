"""The table: exact header, exact order, the same bytes from both sources."""

from __future__ import annotations

import json

import mlflow
import pytest
from conftest import datadiet, store_in

from datadiet.config import TrainConfig
from datadiet.errors import UserError
from datadiet.report.results_table import Result, from_mirror, from_mlflow, of_one_budget, to_csv
from datadiet.runs.inputs import scored_by
from datadiet.tracking.run import track_run

HEADER = (
    "Dataset,Neural network,Scored by,No.of train datasamples,fraction of data trained on,"
    "Train acc,Test acc,Execution time (in secs)"
)


def result(path: str, **changes) -> Result:
    values = dict(
        zip(Result._fields, (path, "cifar10", "mlp", "l2_error", 25_000, 50_000, 0.99, 0.875, 12.345, "epochs"))
    )
    return Result(**values | changes)


def test_header_and_cells():
    text = to_csv([result("keep_max/size_25000/run_0")])
    assert text == f"{HEADER}\ncifar10,mlp,l2_error,25000,0.5,0.990000,0.875000,12.35\n"


def test_order_is_by_path_with_numbers_as_numbers():
    paths = ["b/size_10/run_0", "a/run_10", "a/run_9", "b/size_9/run_0"]
    lines = to_csv([result(p, dataset=p) for p in paths]).splitlines()[1:]
    assert [line.split(",")[0] for line in lines] == ["a/run_9", "a/run_10", "b/size_9/run_0", "b/size_10/run_0"]


def test_the_mirror_is_read_where_runs_are_finished(tmp_path):
    for name in ("a/run_0", "b/size_5/run_1"):
        (tmp_path / name).mkdir(parents=True)
        (tmp_path / name / "summary.json").write_text(json.dumps(result(name)._asdict() | {"more": 1}))
    (tmp_path / "a/run_1").mkdir()
    (tmp_path / "a/run_1/args.json").write_text("{}")
    assert {r.path for r in from_mirror(tmp_path)} == {"a/run_0", "b/size_5/run_1"}
    with pytest.raises(UserError, match="no such folder"):
        from_mirror(tmp_path / "none")


@pytest.mark.parametrize(
    ("config", "score_type", "words"),
    [
        ({}, None, "full data"),
        ({"selector": "random"}, None, "random"),
        ({"selector": "keep_max", "scores": "x/ckpt_1.npy"}, "l2_error", "l2_error"),
        ({"selector": "keep_max", "scores": "x/mine.npy"}, None, "mine"),
        ({"selector": "keep_min", "scores": "x"}, "forget", "forget (keep_min)"),
        ({"selector": "offset", "offset": 500, "scores": "x"}, "l2_error", "l2_error (offset 500)"),
    ],
)
def test_scored_by(config, score_type, words):
    assert scored_by(TrainConfig(**config), score_type) == words


def test_budgets_are_not_mixed():
    found = [result("a/run_0"), result("a/run_1", budget="iterations")]
    with pytest.raises(UserError, match=r"different budgets \(epochs, iterations\).* --budget epochs"):
        of_one_budget(found, None)
    assert of_one_budget(found, "epochs") == found[:1]
    assert of_one_budget(found[1:], None) == found[1:]
    with pytest.raises(UserError, match="budget=hours: expected one of iterations, epochs"):
        of_one_budget(found, "hours")


def test_runs_that_are_no_trainings_of_ours_are_passed_over_and_named(tmp_path):
    mlflow.set_tracking_uri(store_in(tmp_path))
    with track_run(
        "train", "e", "e/run_0", params={"dataset": "d", "model": "mlp"}, note="n", root=str(tmp_path), scored_by="x"
    ) as run:
        run.log_params({"data.num_kept": 5, "data.num_examples": 10})
        run.log_metrics({"train_acc": 0.5, "test_acc": 0.5, "time/train_seconds": 1, "time/eval_seconds": 1})
    real = mlflow.get_run(str(run.id))
    client = mlflow.MlflowClient()

    def foreign(tags: dict, params: dict, metrics: dict) -> str:
        made = client.create_run(real.info.experiment_id, tags=tags).info.run_id
        for name, value in params.items():
            client.log_param(made, name, value)
        for name, value in metrics.items():
            client.log_metric(made, name, value)
        client.set_terminated(made)
        return made

    tags, params, metrics = real.data.tags, real.data.params, {**real.data.metrics, "test_acc": 0.99}
    fresh = {name: value for name, value in tags.items() if name != "datadiet.uid"}
    made = [
        foreign({"datadiet.kind": "train"}, {}, {}),
        foreign({name: value for name, value in fresh.items() if name != "datadiet.root"}, params, metrics),
        foreign(fresh, {}, metrics),
        foreign(fresh, params, {}),
        foreign(fresh, params | {"data.num_kept": "many"}, metrics),
        foreign(fresh, params | {"data.num_kept": "11"}, metrics),
        foreign(tags, params, metrics),
    ]
    said: list[str] = []
    assert [(found.path, found.test_acc) for found in from_mlflow(None, said.append)] == [("e/run_0", 0.5)]
    (line,) = said
    assert f"Passed over {len(made)} runs of MLflow" in line
    assert sum(one in line for one in made) == 3, "the first are named"
    done = datadiet("results", tmp_path)
    assert done.output.count("Passed over 7 runs") == 1
    assert "1 finished training runs" in done.output
