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
from conftest import PATIENCE, PROJECT, datadiet, store_in

from datadiet.errors import UserError
from datadiet.tracking import mlflow_store, record
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


def heard(monkeypatch, *names: str) -> list[str]:
    """Calls of the client of MLflow from now on."""
    calls: list[str] = []
    for name in names:
        real = getattr(mlflow.MlflowClient, name)

        def method(self, *args, _name=name, _real=real, **kwargs):
            calls.append(_name)
            return _real(self, *args, **kwargs)

        monkeypatch.setattr(mlflow.MlflowClient, name, method)
    return calls


def test_a_short_part_of_a_study_is_told_as_a_whole_in_four_calls(tmp_path, monkeypatch):
    uri = store_in(tmp_path)
    mlflow.set_tracking_uri(uri)
    mirror = tmp_path / "exps/s/ckpt_1.mlflow_run.json"
    with track_run("study", "s", "s", params={}, note="n") as study:
        told = ("create_run", "log_batch", "log_inputs", "set_terminated", "search_runs", "get_run", "set_tag")
        calls = heard(monkeypatch, *told)
        with track_run("score", "s", "s/ckpt_1", params={"lr": 1}, note="n", parent=study, mirror=mirror) as part:
            part.log_params({"data.num_kept": 3})
            part.log_input("toy", "f" * 64, "scoring", num_rows=3)
            for step in range(3):
                part.log_metrics({"score/mean": 1.0 + step}, step)
            assert calls == [], "the mirror has it"
            assert record.load(mirror).metrics[-1][2] == {"score/mean": 3.0}
        assert calls == ["create_run", "log_batch", "log_inputs", "set_terminated"]
    (found,) = (run for run in runs(uri) if run.info.run_name == "s/ckpt_1")
    assert (found.info.run_id, found.info.status) == (record.load(mirror).id, "FINISHED")
    assert (found.data.params, found.data.metrics) == ({"cfg.lr": "1", "data.num_kept": "3"}, {"score/mean": 3.0})
    assert found.data.tags["mlflow.parentRunId"] == study.id
    assert len(mlflow.MlflowClient().get_metric_history(found.info.run_id, "score/mean")) == 3
    assert record.load(mirror).synced


def test_a_part_of_a_study_that_lasts_is_told_while_it_lasts(tmp_path, monkeypatch):
    mlflow.set_tracking_uri(store_in(tmp_path))
    with track_run("study", "s", "s", params={}, note="n") as study:
        monkeypatch.setattr("datadiet.tracking.run.SEND_SECONDS", 0)
        with track_run("score", "s", "s/ckpt_1", params={}, note="n", parent=study) as part:
            part.log_metrics({"score/mean": 1.0})
            found = mlflow.MlflowClient().get_run(str(part.id))
            assert (found.info.status, found.data.metrics) == ("RUNNING", {"score/mean": 1.0})


def test_a_part_of_a_study_that_dies_before_mlflow_heard_of_it_is_brought_by_sync(tmp_path):
    uri = store_in(tmp_path)
    mlflow.set_tracking_uri(uri)
    root, study = {"root": str(tmp_path.resolve())}, tmp_path / "exps/s" / record.NAME
    with track_run("study", "s", "s", params={}, note="n", mirror=study, **root) as parent:
        pass
    mirror, tags = tmp_path / "exps/s/ckpt_1.mlflow_run.json", {"datadiet.root": root["root"]}
    left = record.Record(mirror, "score", "s/ckpt_1", {"cfg.lr": 1}, tags, parent=parent.record.uid)
    left.metrics.append([1, left.begun, {"score/mean": 1.0}])
    record.begin(left)  # and its process is killed
    datadiet("sync", tmp_path, root=tmp_path)
    (found,) = (run for run in runs(uri) if run.info.run_name == "s/ckpt_1")
    assert (found.info.status, found.data.metrics) == ("KILLED", {"score/mean": 1.0})
    assert found.data.tags["mlflow.parentRunId"] == parent.id


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


def test_a_machine_without_git_is_not_alarmed(tmp_path):
    code = "from datadiet.tracking import mlflow_store; print(sorted(mlflow_store.resolve_tags()))"
    bare = {"PATH": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=PROJECT, env=bare, capture_output=True, text=True, check=True
    )
    assert "mlflow.source.name" in done.stdout
    assert not done.stderr
