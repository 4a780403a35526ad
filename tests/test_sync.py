"""MLflow away: from the start, in the middle, for ever; the mirror alone is enough to make up for it."""

from __future__ import annotations

import errno
import json
import os
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import MappingProxyType
from typing import Any

import mlflow
import pytest
from conftest import QUICK, datadiet
from mlflow.exceptions import MlflowException

from datadiet.errors import UserError
from datadiet.storage import checkpoints
from datadiet.storage.checkpoints import checkpoint_steps
from datadiet.storage.files import append_line, read_json, read_lines, write_json
from datadiet.tracking import mlflow_store, record, sync
from datadiet.tracking.run import TrackedRun, track_run
from datadiet.tracking.views import Told, tell_trainings

FAST = QUICK | {"save_steps": 22, "width": 16}


@pytest.fixture(scope="module")
def new_store(tmp_path_factory) -> Path:
    """An empty store, to be copied: making one takes seconds."""
    file = tmp_path_factory.mktemp("store") / "mlflow.db"
    mlflow.set_tracking_uri(f"sqlite:///{file}")
    mlflow_store.connected()
    return file


def in_mlflow(uri_of: Path) -> dict[str, mlflow.entities.Run]:
    """Every run, by kind and path; each once."""
    mlflow.set_tracking_uri(f"sqlite:///{uri_of}/mlflow.db")
    found = mlflow.search_runs(experiment_names=["datadiet"], output_format="list")
    named = {f"{run.data.tags['datadiet.kind']} {run.data.tags['datadiet.path']}": run for run in found}
    assert len(named) == len(found), "a run is there twice"
    return named


def histories(run: mlflow.entities.Run) -> dict[str, list[tuple[int, float]]]:
    client = mlflow.MlflowClient()
    return {
        name: sorted((p.step, p.value) for p in client.get_metric_history(run.info.run_id, name))
        for name in run.data.metrics
    }


def noted(one: record.Record) -> dict[str, list[tuple[int, float]]]:
    expected: dict[str, list[tuple[int, float]]] = {}
    for step, _, values in one.points():
        for name, value in values.items():
            expected.setdefault(name, []).append((step, float(value)))
    return {name: sorted(points) for name, points in expected.items()}


def in_run(run: mlflow.entities.Run, folder: str | None, name: str) -> Path:
    """An artifact of a run, in the store's own folder."""
    return Path(run.info.artifact_uri.removeprefix("file://")) / (folder or "") / name


def check_told(root: Path) -> dict[str, mlflow.entities.Run]:
    """MLflow has what the records say, each run and each point once."""
    found = in_mlflow(root)
    for path in sync.record_files(root / "exps"):
        one = record.load(path)
        run = found[f"{one.kind} {one.name}"]
        assert (run.info.run_id, run.info.status) == (one.id, one.status)
        assert histories(run) == noted(one)
        assert one.params.keys() <= run.data.params.keys()
        files = list(one.files())
        assert all(in_run(run, folder, file.name).read_bytes() == file.read_bytes() for file, folder in files)
        assert files or one.kind == "study" or one.parent
    return found


def tables(root: Path) -> tuple[bytes, bytes]:
    datadiet("results", root, root=root, output="by_mlflow.csv")
    datadiet("results", root, root=root, output="by_mirror.csv", exps_path="exps")
    return (root / "by_mlflow.csv").read_bytes(), (root / "by_mirror.csv").read_bytes()


def test_what_was_made_offline_is_told_once_however_often_it_is_synced(tmp_path):
    datadiet("full_data", tmp_path, offline="true", **FAST)
    datadiet("score", tmp_path, offline="true", step=22)
    datadiet("mean_score", tmp_path, offline="true", step=22, n_runs=1)
    options = {"params": {"lr": 0.1}, "note": "n", "root": str(tmp_path.resolve())}
    folder = tmp_path / "exps/s"
    with track_run("study", "s", "s", mirror=folder / record.NAME, offline=True, **options) as study:
        mirror = folder / f"ckpt_4.{record.NAME}"
        with track_run("score", "s", "s/ckpt_4", mirror=mirror, parent=study, **options) as run:
            run.log_metrics({"score/mean": 0.5}, 4)
    assert not (tmp_path / "mlflow.db").exists(), "offline means offline"
    assert "5 written" in datadiet("sync", tmp_path, root=tmp_path).stdout
    first = check_told(tmp_path)
    assert len(first) == 5
    study_id = first["study s"].info.run_id
    assert first["score s/ckpt_4"].data.tags["mlflow.parentRunId"] == study_id
    assert "5 there already" in datadiet("sync", tmp_path, root=tmp_path).stdout
    assert {name: run.info.run_id for name, run in check_told(tmp_path).items()} == {
        name: run.info.run_id for name, run in first.items()
    }
    summary = json.loads((tmp_path / "exps/full_data/run_0/summary.json").read_text())
    assert summary["mlflow_run_id"] == first["train full_data/run_0"].info.run_id
    by_mlflow, by_mirror = tables(tmp_path)
    assert by_mlflow == by_mirror


@pytest.mark.parametrize("after", [0, 2])
def test_training_goes_on_while_mlflow_is_away_and_sync_repairs(tmp_path, new_store, monkeypatch, after):
    shutil.copy(new_store, tmp_path / "mlflow.db")
    calls = []

    def refuse(client, run_id: str, points, params=MappingProxyType({})) -> None:
        points = list(points)
        calls.extend([points] if points else [])
        if len(calls) > after:
            raise MlflowException("connection refused")
        told(client, run_id, points, params)

    told = mlflow_store.log_values
    with monkeypatch.context() as patch:
        patch.setattr(mlflow_store, "log_values", refuse)
        patch.setattr("datadiet.tracking.run.SEND_SECONDS", 0)  # each report is told at once
        done = datadiet("full_data", tmp_path, **FAST)
    assert done.output.count("Warning: MLflow") == 1
    assert len(calls) == after + 2, "after a failure there is one attempt more, at the end"
    one = record.load(tmp_path / "exps/full_data/run_0" / record.NAME)
    assert (one.status, one.synced) == ("FINISHED", False)
    assert in_mlflow(tmp_path)["train full_data/run_0"].info.status == "RUNNING"
    assert "1 written" in datadiet("sync", tmp_path, root=tmp_path).stdout
    check_told(tmp_path)
    by_mlflow, by_mirror = tables(tmp_path)
    assert by_mlflow == by_mirror


def test_a_run_is_finished_in_mlflow_only_when_it_has_its_files_and_sync_brings_those_that_are_missing(
    tmp_path, new_store, monkeypatch
):
    shutil.copy(new_store, tmp_path / "mlflow.db")
    told, kind = [], "train full_data/run_0"

    def refuse_after_two(client, run_id: str, path: str, folder: str | None = None) -> None:
        told.append(Path(path).name)
        if len(told) > 2:
            raise MlflowException("connection refused")
        log_artifact(client, run_id, path, folder)

    log_artifact = mlflow.MlflowClient.log_artifact
    with monkeypatch.context() as patch:
        patch.setattr(mlflow.MlflowClient, "log_artifact", refuse_after_two)
        datadiet("full_data", tmp_path, **FAST)
    assert told == ["args.json", "test_correct.npy", "summary.json", "args.json"], "with one attempt more, at the end"
    assert (tmp_path / "exps/full_data/run_0/summary.json").exists()
    assert in_mlflow(tmp_path)[kind].info.status == "RUNNING"
    for missing in (None, "summary.json", "forget_scores/ckpt_44.npy"):
        if missing:
            in_run(in_mlflow(tmp_path)[kind], None, missing).unlink()
        assert "1 written" in datadiet("sync", tmp_path, root=tmp_path).stdout
        assert check_told(tmp_path)[kind].info.status == "FINISHED"
        assert "1 there already" in datadiet("sync", tmp_path, root=tmp_path).stdout


def test_files_are_noted_before_a_summary_says_that_the_run_is_finished(tmp_path, new_store, monkeypatch):
    shutil.copy(new_store, tmp_path / "mlflow.db")
    with monkeypatch.context() as patch:  # its process dies when the summary is written
        patch.setattr(TrackedRun, "log_artifacts", lambda run, files: None)
        patch.setattr(TrackedRun, "end", lambda run, status, error=None: None)
        datadiet("full_data", tmp_path, **FAST)
    assert in_mlflow(tmp_path)["train full_data/run_0"].info.status == "RUNNING"
    datadiet("full_data", tmp_path, resume="true", **FAST)
    run = check_told(tmp_path)["train full_data/run_0"]
    assert run.info.status == "FINISHED"
    assert in_run(run, "forget_scores", "ckpt_44.json").exists()


def test_a_diverged_run_is_failed_in_the_mirror_and_not_continued(tmp_path, new_store):
    shutil.copy(new_store, tmp_path / "mlflow.db")
    given = FAST | {"lr": 1e30}
    done = datadiet("full_data", tmp_path, expect=2, offline="true", **given)
    assert "Training diverged" in done.stderr
    one = record.load(tmp_path / "exps/full_data/run_0" / record.NAME)
    assert (one.status, one.diverged) == ("FAILED", True)
    again = datadiet("full_data", tmp_path, expect=2, offline="true", resume="true", **given)
    assert "cannot be continued" in again.stderr
    both = datadiet("full_data", tmp_path, expect=2, offline="true", resume="true", runs="0,1", **given)
    assert "full_data/run_0: exps/full_data/run_0 cannot be continued" in " ".join(both.stderr.split())
    assert "full_data/run_1: Training diverged" in " ".join(both.stderr.split()), "the others are trained"
    datadiet("sync", tmp_path, root=tmp_path)
    assert in_mlflow(tmp_path)["train full_data/run_0"].info.status == "FAILED"


@pytest.fixture
def no_space(monkeypatch):
    """A function after which nothing can be flushed to disk any more."""

    def fill() -> None:
        def refuse(descriptor: int) -> None:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        monkeypatch.setattr(os, "fsync", refuse)

    return fill


def test_a_torn_line_is_cut_off_before_the_next(tmp_path):
    path = tmp_path / "metrics.jsonl"
    append_line(path, {"step": 1})
    with open(path, "ab") as file:
        file.write(b'{"step": 2, "tr')
    append_line(path, {"step": 3})
    assert read_lines(path) == [{"step": 1}, {"step": 3}]


def test_a_full_disk_leaves_every_file_as_it_was(tmp_path, no_space):
    path, lines = tmp_path / "a.json", tmp_path / "metrics.jsonl"
    write_json(path, {"old": 1})
    append_line(lines, {"step": 1})
    no_space()
    for write in (lambda: write_json(path, {"new": 2}), lambda: append_line(lines, {"step": 2})):
        with pytest.raises(UserError, match=r"cannot be written: No space left(.|\n)*Nothing half-written is left"):
            write()
    assert read_json(path) == {"old": 1}
    assert read_lines(lines) == [{"step": 1}]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.json", "metrics.jsonl"]


def test_a_run_that_filled_the_disk_goes_on_when_there_is_room(tmp_path, monkeypatch):
    saves, write = [], checkpoints._write

    def no_room(folder: Path, *contents: Any) -> None:
        saves.append(folder)
        if len(saves) > 1:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        write(folder, *contents)

    with monkeypatch.context() as patch:
        patch.setattr(checkpoints, "_write", no_room)
        done = datadiet("full_data", tmp_path, expect=2, offline="true", **FAST)
    assert "cannot be written: No space left on device" in done.stderr
    assert "Traceback" not in done.output
    run = tmp_path / "exps/full_data/run_0"
    assert checkpoint_steps(run) == [0]
    done = datadiet("full_data", tmp_path, offline="true", resume="true", **FAST)
    assert "continued from step 0 of 44" in done.stdout
    assert checkpoint_steps(run) == [0, 22, 44]


def test_what_a_study_says_of_a_training_that_mlflow_has_is_brought_too(tmp_path, new_store):
    shutil.copy(new_store, tmp_path / "mlflow.db")
    path, root = tmp_path / "exps/s/run_0" / record.NAME, str(tmp_path.resolve())
    mlflow.set_tracking_uri(f"sqlite:///{tmp_path}/mlflow.db")

    def say(step: int, offline: bool) -> None:
        given = {"params": {}, "note": "n", "root": root, "offline": offline}
        with track_run("study", "s", "s", mirror=tmp_path / "exps/s" / record.NAME, reopens=True, **given) as study:
            if not path.exists():
                with track_run("score", "s", "s/run_0", mirror=path, parent=study, **given):
                    pass
            tell_trainings(study, {path: Told({"decision/accuracy": step / 10}, {"datadiet.arm": "a"})}, step)

    say(2, offline=False)
    assert "2 there already" in datadiet("sync", tmp_path, root=tmp_path).stdout, "it was told at once"
    say(3, offline=True)
    assert "2 written" in datadiet("sync", tmp_path, root=tmp_path).stdout
    check_told(tmp_path)
    assert histories(in_mlflow(tmp_path)["score s/run_0"]) == {"decision/accuracy": [(2, 0.2), (3, 0.3)]}
    assert "2 there already" in datadiet("sync", tmp_path, root=tmp_path).stdout


def test_a_score_whose_process_died_before_mlflow_heard_of_its_end_is_one_run(tmp_path, new_store, monkeypatch):
    shutil.copy(new_store, tmp_path / "mlflow.db")
    datadiet("full_data", tmp_path, run=0, **FAST)
    with monkeypatch.context() as patch:
        patch.setattr(TrackedRun, "end", lambda run, status, error=None: run.record.end(status))
        datadiet("score", tmp_path, run=0, step=22)
    name = "score full_data/run_0/error_l2_norm_scores/ckpt_22"
    assert in_mlflow(tmp_path)[name].info.status == "RUNNING"
    datadiet("score", tmp_path, run=0, step=22)
    assert in_mlflow(tmp_path)[name].info.status == "FINISHED"
    check_told(tmp_path)


def test_runs_that_name_the_same_new_data_at_once_all_have_it(tmp_path, new_store):
    shutil.copy(new_store, tmp_path / "mlflow.db")
    mlflow.set_tracking_uri(f"sqlite:///{tmp_path}/mlflow.db")
    client = mlflow_store.connect()
    runs = [client.create_run("0").info.run_id for _ in range(4)]
    rounds = [{"name": f"data {i}", "digest": str(i), "context": "train", "profile": {}} for i in range(10)]
    with ThreadPoolExecutor(len(runs)) as pool:
        for one in rounds:
            list(pool.map(lambda run_id, told=one: mlflow_store.log_inputs(client, run_id, [told]), runs))
    for run_id in runs:
        assert len(client.get_run(run_id).inputs.dataset_inputs) == len(rounds)
