"""What the environment names of MLflow: a run and an experiment that exist, and a run that becomes only one work's."""

from __future__ import annotations

from pathlib import Path

import mlflow
import pytest
from conftest import QUICK, datadiet, store_in

from datadiet.errors import UserError
from datadiet.tracking import mlflow_store, push, record, run, sync
from datadiet.tracking.run import track_run

TINY = QUICK | {"num_steps": 2, "width": 8}


@pytest.fixture
def client(tmp_path) -> mlflow.MlflowClient:
    mlflow.set_tracking_uri(store_in(tmp_path))
    return mlflow.MlflowClient()


def project_run(client: mlflow.MlflowClient, monkeypatch, experiment: str = "mine", **options):
    """The run that `mlflow run` would make, and what it would tell its command."""
    known = client.get_experiment_by_name(experiment)
    experiment_id = known.experiment_id if known else client.create_experiment(experiment)
    made = client.create_run(experiment_id, **options)
    monkeypatch.setenv("MLFLOW_RUN_ID", made.info.run_id)
    monkeypatch.setenv("MLFLOW_EXPERIMENT_ID", experiment_id)
    return made


def inherit(monkeypatch, made) -> None:
    """As a second command of the same shell would."""
    monkeypatch.setenv("MLFLOW_RUN_ID", made.info.run_id)


def runs_of(client: mlflow.MlflowClient, made) -> list[mlflow.entities.Run]:
    found = client.search_runs([made.info.experiment_id], order_by=["attributes.start_time ASC"])
    return [client.get_run(one.info.run_id) for one in found]


def test_two_commands_that_inherit_one_run_are_two_runs_each_with_its_own_options(tmp_path, client, monkeypatch):
    made = project_run(client, monkeypatch, run_name="tuesday")
    datadiet("full_data", tmp_path, run=0, **TINY)
    inherit(monkeypatch, made)
    done = datadiet("full_data", tmp_path, run=1, **TINY)
    assert f"MLflow run {made.info.run_id} (MLFLOW_RUN_ID) is used already: full_data/run_1 is run " in done.output
    found = {r.data.tags["datadiet.path"]: r for r in runs_of(client, made)}
    assert {path: r.data.params["cfg.run"] for path, r in found.items()} == {
        "full_data/run_0": "0",
        "full_data/run_1": "1",
    }
    assert found["full_data/run_0"].info.run_id == made.info.run_id
    for path, one in found.items():
        assert one.info.run_name == path
        assert one.info.status == "FINISHED"
        assert one.data.tags["datadiet.run_name"] == "tuesday", "the name that the user gave"


@pytest.mark.parametrize(
    "used", [{"tags": {"datadiet.kind": "train"}}, {"params": {"cfg.lr": "1"}}, {"status": "FAILED"}]
)
def test_a_run_that_something_has_used_is_left_as_it_is(client, monkeypatch, used):
    made = project_run(client, monkeypatch, tags=used.get("tags"))
    for key, value in used.get("params", {}).items():
        client.log_param(made.info.run_id, key, value)
    if "status" in used:
        client.set_terminated(made.info.run_id, used["status"])
    before = client.get_run(made.info.run_id).to_dictionary()
    with track_run("score", "e", "e/x", params={"lr": 2}, note="n", say=lambda text: None) as one:
        assert one.id != made.info.run_id
    assert client.get_run(made.info.run_id).to_dictionary() == before
    assert len(runs_of(client, made)) == 2


def test_of_commands_at_once_one_gets_the_run(client, monkeypatch):
    made = project_run(client, monkeypatch)
    seen = client.get_run(made.info.run_id)  # both have looked before either has written
    both = [record.Record(None, "score", name, {}, {}) for name in ("e/a", "e/b")]
    assert [push._adopt(client, seen, one) for one in both] == [True, False]


def test_without_an_experiment_name_the_launcher_tells_of_every_run_and_keeps_its_name(client, monkeypatch):
    made = project_run(client, monkeypatch, "Default", run_name="tuesday")
    ids = []
    for name in ("e/a", "e/b"):
        inherit(monkeypatch, made)
        with track_run("score", "e", name, params={}, note="n") as one:
            ids.append(one.id)
    tags = client.get_run(made.info.run_id).data.tags
    assert len({*ids, made.info.run_id}) == 3
    assert all(one in tags["mlflow.note.content"] for one in ids)
    assert tags["datadiet.run_name"] == "tuesday"
    for one, name in zip(ids, ("e/a", "e/b")):
        tags = client.get_run(one).data.tags
        assert (tags["mlflow.runName"], tags["datadiet.run_name"], tags["mlflow.note.content"]) == (
            name,
            "tuesday",
            "n",
        )


def test_sync_makes_no_run_of_the_mirror_out_of_its_own(tmp_path, client, monkeypatch):
    mirror = tmp_path / "exps/e/ckpt_1.mlflow_run.json"
    with track_run("score", "e", "e/ckpt_1", params={}, note="n", mirror=mirror, offline=True, root=str(tmp_path)):
        pass
    made = project_run(client, monkeypatch)
    datadiet("sync", tmp_path, root=tmp_path)
    assert record.load(mirror).id != made.info.run_id
    assert "datadiet.uid" not in client.get_run(made.info.run_id).data.tags


@pytest.mark.parametrize(
    ("command", "variable", "value"),
    [
        ("full_data", "MLFLOW_RUN_ID", "0" * 32),
        ("full_data", "MLFLOW_RUN_ID", "a'b"),
        ("full_data", "MLFLOW_EXPERIMENT_ID", "4711"),
        ("full_data", "MLFLOW_EXPERIMENT_ID", "mine"),
        ("study", "MLFLOW_EXPERIMENT_ID", "4711"),
        ("results", "MLFLOW_RUN_ID", "0" * 32),
    ],
)
def test_what_the_environment_names_and_is_not_there_is_refused_before_anything_is_written(
    tmp_path, monkeypatch, command, variable, value
):
    monkeypatch.setenv(variable, value)
    done = datadiet(command, tmp_path, expect=2, **({} if command == "results" else TINY))
    assert f"{variable}={value}: no such {'run' if 'RUN' in variable else 'experiment'} in sqlite:///" in done.stderr
    assert f"Unset {variable}" in done.stderr
    assert not (tmp_path / "exps").exists()
    assert not (tmp_path / "results.csv").exists()


@pytest.mark.parametrize("by", ["name", "id", "run"])
def test_what_was_deleted_is_refused_with_the_command_that_restores_it(tmp_path, client, monkeypatch, by):
    made = project_run(client, monkeypatch)
    experiment_id, run_id = made.info.experiment_id, made.info.run_id
    if by == "run":
        client.delete_run(run_id)
    else:
        monkeypatch.delenv("MLFLOW_RUN_ID")
        client.delete_experiment(experiment_id)
    if by == "name":
        monkeypatch.delenv("MLFLOW_EXPERIMENT_ID")
        monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "mine")
    done = datadiet("full_data", tmp_path, expect=2, **TINY)
    command = (
        f"runs restore --run-id {run_id}" if by == "run" else f"experiments restore --experiment-id {experiment_id}"
    )
    assert f"mlflow {command}" in done.stderr
    assert not (tmp_path / "exps").exists()


def test_a_server_that_is_away_is_not_taken_for_a_run_that_does_not_exist(client, monkeypatch):
    monkeypatch.setenv("MLFLOW_RUN_ID", "0" * 32)

    def away(self, run_id: str):
        raise ConnectionError("nobody there")

    monkeypatch.setattr(mlflow.MlflowClient, "get_run", away)
    with pytest.raises(UserError, match="cannot be used: nobody there"):
        run.check_store()


def test_nothing_is_asked_of_mlflow_offline(tmp_path, monkeypatch):
    monkeypatch.setenv("MLFLOW_RUN_ID", "0" * 32)
    with track_run("score", "e", "e/x", params={}, note="n", offline=True):
        pass
    assert list(sync.record_files(Path(tmp_path))) == []
    assert mlflow_store.refused(mlflow_store.Unusable("x"))
