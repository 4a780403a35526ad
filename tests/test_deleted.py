"""Runs and experiments that are deleted while they are written, or made twice: no work ends."""

from __future__ import annotations

from pathlib import Path

import mlflow
import pytest
from conftest import QUICK, datadiet, store_in
from mlflow.exceptions import MlflowException

from datadiet.runs.train import Lane
from datadiet.tracking import mlflow_store, record
from datadiet.tracking.run import track_run

TINY = QUICK | {"num_steps": 44, "width": 8, "log_steps": 11}
RUN = "exps/full_data/run_0"


@pytest.fixture
def client(tmp_path) -> mlflow.MlflowClient:
    mlflow.set_tracking_uri(store_in(tmp_path))
    return mlflow.MlflowClient()


def all_runs(client: mlflow.MlflowClient) -> list[mlflow.entities.Run]:
    experiment = client.get_experiment_by_name("datadiet")
    assert experiment
    return list(client.search_runs([experiment.experiment_id]))


def points(client: mlflow.MlflowClient, run_id: str) -> list[int]:
    return sorted(point.step for point in client.get_metric_history(run_id, "train_loss"))


@pytest.mark.parametrize("what", ["run", "experiment"])
@pytest.mark.parametrize("then", ["restored", "left"])
def test_training_goes_on_when_its_run_is_deleted_and_sync_brings_it_to_a_restored_or_new_one(
    tmp_path, client, monkeypatch, what, then
):
    deleted = []

    def delete_then_record(lane: Lane, report) -> None:
        if report.step >= 22 and not deleted:
            (run,) = all_runs(client)
            deleted.append(run.info)
            client.delete_run(run.info.run_id) if what == "run" else client.delete_experiment(run.info.experiment_id)
        real(lane, report)

    real = Lane.record
    with monkeypatch.context() as patch:
        patch.setattr(Lane, "record", delete_then_record)
        done = datadiet("full_data", tmp_path, **TINY)
    (info,) = deleted
    flags = {"run": f"--run-id {info.run_id}", "experiment": f"--experiment-id {info.experiment_id}"}
    restore = f"mlflow {what}s restore {flags[what]}"
    assert done.output.count("Warning: ") == 1, done.output
    assert restore in done.output
    assert "is away" not in done.output, "it is there"
    assert (tmp_path / RUN / "summary.json").exists()
    assert not record.load(tmp_path / RUN / record.NAME).synced
    if what == "experiment":
        assert restore in datadiet("sync", tmp_path, expect=2, root=tmp_path).stderr
        client.restore_experiment(info.experiment_id)
    if what == "run" and then == "restored":
        client.restore_run(info.run_id)
    if what == "experiment" and then == "left":
        client.delete_run(info.run_id)
    done = datadiet("sync", tmp_path, root=tmp_path)
    (run,) = all_runs(client)
    if then == "restored":
        assert run.info.run_id == info.run_id
        assert f"MLflow run {info.run_id} was restored" in done.output
    else:
        assert run.info.run_id != info.run_id
        assert f"MLflow run {info.run_id} is not in " in done.output
        assert "another takes its place" in done.output
    assert "1 written" in done.output
    assert run.info.status == "FINISHED"
    assert points(client, run.info.run_id) == [11, 22, 33, 44]
    assert "1 there already" in datadiet("sync", tmp_path, root=tmp_path).output


def test_what_mlflow_refuses_for_another_reason_ends_no_work_and_is_not_called_its_absence(
    tmp_path, client, monkeypatch
):
    def refuse(*words) -> None:
        raise MlflowException.invalid_parameter_value("Invalid value of a metric")

    monkeypatch.setattr(mlflow_store, "log_values", refuse)
    mirror, said = tmp_path / "exps/e/ckpt_1.mlflow_run.json", []
    told = {"params": {}, "note": "n", "root": str(tmp_path.resolve())}
    with track_run("score", "e", "e/ckpt_1", mirror=mirror, say=said.append, **told) as run:
        run.log_metrics({"score/mean": 1.0})
        run.log_metrics({"score/std": 1.0})
    (line,) = said
    assert "takes no more of e/ckpt_1" in line
    assert "Invalid" in line
    assert "is away" not in line
    assert "does not take e/ckpt_1" in datadiet("sync", tmp_path, expect=2, root=tmp_path).stderr


def failing_once(monkeypatch, name: str, applied: bool) -> list[str]:
    """The first call of a method of the client fails as a server's error 500 does, after it was done or before."""
    calls, real = [], getattr(mlflow.MlflowClient, name)

    def method(self, *args, **kwargs):
        calls.append(name)
        if len(calls) > 1:
            return real(self, *args, **kwargs)
        if applied:
            real(self, *args, **kwargs)
        raise MlflowException("API request failed with error code 500")

    monkeypatch.setattr(mlflow.MlflowClient, name, method)
    return calls


@pytest.mark.parametrize("applied", [True, False])
@pytest.mark.parametrize("name", ["create_run", "log_batch", "set_terminated"])
def test_an_error_500_leaves_one_run(tmp_path, client, monkeypatch, applied, name):
    mirror = tmp_path / "exps/e/ckpt_1.mlflow_run.json"
    told = {"params": {"lr": 1}, "note": "n", "root": str(tmp_path.resolve())}
    calls = failing_once(monkeypatch, name, applied)
    with track_run("score", "e", "e/ckpt_1", mirror=mirror, say=lambda text: None, **told) as run:
        run.log_metrics({"score/mean": 1.0})
    datadiet("sync", tmp_path, root=tmp_path)
    assert calls
    (found,) = all_runs(client)
    assert (found.info.status, found.info.run_id) == ("FINISHED", record.load(mirror).id)
    assert found.data.metrics == {"score/mean": 1.0}
    assert found.data.params == {"cfg.lr": "1"}


def test_a_create_that_was_repeated_on_its_way_leaves_one_run(tmp_path, client, monkeypatch):
    real = mlflow.MlflowClient.create_run

    def twice(self, *args, **kwargs):
        real(self, *args, **kwargs)
        return real(self, *args, **kwargs)

    monkeypatch.setattr(mlflow.MlflowClient, "create_run", twice)
    monkeypatch.setattr(mlflow_store, "may_repeat", lambda: True)  # as of a server
    with track_run("score", "e", "e/ckpt_1", params={}, note="n", say=lambda text: None) as run:
        pass
    kept, other = sorted(all_runs(client), key=lambda one: one.info.run_id != run.id)
    assert (kept.info.status, other.info.status) == ("FINISHED", "KILLED")
    assert other.data.tags["datadiet.double_of"] == kept.info.run_id
    assert "datadiet.uid" not in other.data.tags


def test_sync_ends_doubles_says_which_is_kept_and_touches_no_run_of_somebody_else(tmp_path, client):
    mirror = tmp_path / "exps/e/ckpt_1.mlflow_run.json"
    told = {"params": {"lr": 1}, "note": "n", "root": str(tmp_path.resolve())}
    with track_run("score", "e", "e/ckpt_1", mirror=mirror, **told) as run:
        pass
    one = record.load(mirror)
    (kept,) = all_runs(client)
    made = mlflow_store.create_run(client, one, kept.info.experiment_id, {})
    copied = client.create_run(kept.info.experiment_id, tags=dict(kept.data.tags))  # by hand, with all of its tags
    done = datadiet("sync", tmp_path, root=tmp_path)
    assert f"MLflow run {made.info.run_id} was made twice and is ended; {run.id} is kept" in done.output
    states = {r.info.run_id: r.info.status for r in all_runs(client)}
    assert states == {run.id: "FINISHED", made.info.run_id: "KILLED", copied.info.run_id: "RUNNING"}
    assert "was made twice" not in datadiet("sync", tmp_path, root=tmp_path).output


def test_children_of_a_study_whose_run_was_deleted_are_nested_under_the_new_one(tmp_path, client):
    root, options = str(tmp_path.resolve()), {"params": {}, "note": "n"}
    study, child = tmp_path / "exps/s" / record.NAME, tmp_path / "exps/s/ckpt_1.mlflow_run.json"
    with track_run("study", "s", "s", mirror=study, say=lambda text: None, root=root, **options) as parent:
        with track_run("score", "s", "s/ckpt_1", mirror=child, parent=parent, root=root, **options):
            pass
        assert parent.id
        client.delete_run(parent.id)
    datadiet("sync", tmp_path, root=tmp_path)
    new = record.load(study).id
    assert new != parent.id
    assert client.get_run(str(record.load(child).id)).data.tags["mlflow.parentRunId"] == new


def evil(folder: Path, path: str) -> Path:
    """A record that was made elsewhere, with one artifact."""
    mirror = folder / "exps/e/ckpt_1.mlflow_run.json"
    told = {"params": {}, "note": "n", "root": str(folder.resolve())}
    with track_run("score", "e", "e/ckpt_1", mirror=mirror, offline=True, **told):
        pass
    one = record.load(mirror)
    one.artifacts.append([path, None])
    one.save()
    return mirror


@pytest.mark.parametrize("way", ["absolute", "dots", "inner dots", "link", "link to a folder"])
def test_sync_gives_no_file_away_that_lies_elsewhere(tmp_path, client, way):
    secret = tmp_path / "secret/key.txt"
    secret.parent.mkdir()
    secret.write_text("secret")
    paths = {"absolute": str(secret), "dots": "../../secret/key.txt", "inner dots": "x/../../../secret/key.txt"}
    path = paths.get(way, "key.txt" if way == "link" else "x/key.txt")
    mirror = evil(tmp_path, path)
    (mirror.parent / "x").mkdir() if way == "inner dots" else None
    if way == "link":
        (mirror.parent / "key.txt").symlink_to(secret)
    elif way == "link to a folder":
        (mirror.parent / "x").symlink_to(secret.parent)
    done = datadiet("sync", tmp_path, expect=2, root=tmp_path)
    assert f"{mirror}: its artifact '{path}' does not lie in" in done.stderr
    assert all_runs(client) == [], "nothing of such a record is told"


def test_files_of_the_run_itself_are_told(tmp_path, client):
    mirror = evil(tmp_path, "figures/a.csv")
    (mirror.parent / "figures").mkdir()
    (mirror.parent / "figures/a.csv").write_text("1")
    one = record.load(mirror)
    one.artifacts = [["figures/a.csv", "figures"], ["b.csv", None], ["gone.csv", None]]
    one.save()
    (mirror.parent / "b.csv").symlink_to("figures/a.csv")
    datadiet("sync", tmp_path, root=tmp_path)
    run_id = str(record.load(mirror).id)
    assert [a.path for a in client.list_artifacts(run_id)] == ["b.csv", "figures"]
    assert [a.path for a in client.list_artifacts(run_id, "figures")] == ["figures/a.csv"]
