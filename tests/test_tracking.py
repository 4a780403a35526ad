"""MLflow runs end in the right state, and processes that start at once share a new store."""

from __future__ import annotations

import multiprocessing
import os
import subprocess
import sys
import time
from concurrent.futures import ProcessPoolExecutor

import mlflow
import pytest
from conftest import PATIENCE, PROJECT

from datadiet.errors import UserError
from datadiet.tracking import mlflow_store
from datadiet.tracking.run import track_run


def open_one(uri: str, number: int) -> None:
    mlflow.set_tracking_uri(uri)
    with track_run("train", "e", f"e/run_{number}", params={"lr": 0.1, "steps": [1, 2]}, note="n") as run:
        for step in range(20):
            run.log_metrics({"train_loss": step / 2}, step)


def runs(uri: str) -> list[mlflow.entities.Run]:
    mlflow.set_tracking_uri(uri)
    return mlflow.search_runs(experiment_names=["datadiet"], output_format="list")


def test_processes_at_once_create_one_store_and_lose_nothing(tmp_path):
    uri = f"sqlite:///{tmp_path}/new.db"
    context = multiprocessing.get_context("forkserver")  # which imports MLflow once
    context.set_forkserver_preload(["mlflow", "datadiet.tracking.run"])
    with ProcessPoolExecutor(4, context, max_tasks_per_child=1) as pool:
        list(pool.map(open_one, [uri] * 4, range(4), timeout=PATIENCE))
    found = runs(uri)
    assert sorted(run.info.run_name for run in found) == [f"e/run_{k}" for k in range(4)]
    for run in found:
        assert run.data.params == {"cfg.lr": "0.1", "cfg.steps": "1,2"}
        history = mlflow.MlflowClient().get_metric_history(run.info.run_id, "train_loss")
        assert {m.step: m.value for m in history} == {step: step / 2 for step in range(20)}


@pytest.mark.parametrize(
    ("error", "status"), [(None, "FINISHED"), (UserError("x"), "FAILED"), (KeyboardInterrupt(), "KILLED")]
)
def test_a_run_ends_as_its_block_ends(tmp_path, error, status):
    uri = f"sqlite:///{tmp_path}/state.db"
    mlflow.set_tracking_uri(uri)
    try:
        with track_run("score", "e", "e/x", params={}, note="how") as run:
            run.log_input("toy", "f" * 64, "scoring", num_rows=3)
            if error:
                raise error
    except (UserError, KeyboardInterrupt) as caught:
        assert caught is error
    (found,) = runs(uri)
    assert found.info.status == status
    assert found.data.tags["mlflow.note.content"] == "how"
    dataset = found.inputs.dataset_inputs[0].dataset
    assert (dataset.name, dataset.digest, dataset.profile) == ("toy", "f" * 36, '{"num_rows": 3}')


def test_a_server_that_is_down_is_named_within_seconds():
    mlflow.set_tracking_uri("http://127.0.0.1:9")  # the discard port: nobody listens
    begin = time.monotonic()
    with pytest.raises(UserError, match=r"MLflow store http://127.0.0.1:9 cannot be used(.|\n)*MLFLOW_TRACKING_URI"):
        mlflow_store.finished_training_runs()
    assert time.monotonic() - begin < 100, "MLflow's own default is minutes"


def test_mlflow_reports_to_nobody():
    code = "import datadiet.tracking.mlflow_store; from mlflow.telemetry import client; "
    code += "print(client.get_telemetry_client())"
    clean = {"PATH": os.environ["PATH"]}  # a CI machine turns telemetry off by itself
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=PROJECT, env=clean, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "None"
