"""Files that MLflow has stand where a path may: copied with what ties them to their data, or refused by name."""

from __future__ import annotations

from pathlib import Path

import mlflow
import numpy as np
import pytest
from conftest import datadiet, store_in

import datadiet as dd
from datadiet.config import TrainConfig
from datadiet.errors import UserError
from datadiet.runs.inputs import choose, resolve_config
from datadiet.storage.score_files import save_scores
from datadiet.tracking.fetch import is_remote, local_file

PROVENANCE = {"type": "l2_error", "step": 4, "runs": [0, 1]}
SCORES = "error_l2_norm_scores/ckpt_4.npy"


@pytest.fixture
def run_id(tmp_path, own_cache) -> str:
    """A run that has score files, as a colleague's; its store is the one in use."""
    data = dd.load_dataset("digits")
    values = np.random.RandomState(0).rand(len(data.train_labels)).astype(np.float32)
    made = tmp_path / "theirs" / SCORES
    made.parent.parent.mkdir()
    save_scores(made, values, data.identity(), PROVENANCE, name=f"full_data/{SCORES}")
    mlflow.set_tracking_uri(store_in(tmp_path))
    client = mlflow.MlflowClient()
    location = (tmp_path / "artifacts").as_uri()
    run = client.create_run(client.create_experiment("theirs", artifact_location=location))
    client.log_artifacts(run.info.run_id, str(tmp_path / "theirs"))
    return run.info.run_id


def artifact(tmp_path: Path, run_id: str, path: str) -> Path:
    return tmp_path / "artifacts" / run_id / "artifacts" / path


@pytest.mark.parametrize("text", ["exps/full_data", "/a/runs:/x", "C:/runs", "", "runs", None])
def test_a_path_is_a_path(text):
    assert not is_remote(text)
    assert text is None or local_file(text, "scores") == Path(text)


def test_scores_of_a_run_keep_what_the_file_keeps_and_are_recorded_as_they_were_named(tmp_path, run_id):
    options = {"selector": "keep_max", "size": 500, "dataset": "digits"}
    datadiet("select", tmp_path, exp="by_run", scores=f"runs:/{run_id}/{SCORES}", **options)
    datadiet("select", tmp_path, exp="by_file", scores=tmp_path / "theirs" / SCORES, **options)
    kept = [tmp_path / f"exps/{exp}/size_500.keep_max/run_0/kept.csv" for exp in ("by_run", "by_file")]
    assert kept[0].read_bytes() == kept[1].read_bytes()
    assert f'"scores": "runs:/{run_id}/{SCORES}"' in kept[0].with_suffix(".json").read_text()


def test_a_kept_set_of_a_run_is_a_manifest_and_is_exported(tmp_path, run_id):
    datadiet("select", tmp_path, selector="random", size=300, dataset="digits")
    (theirs,) = mlflow.search_runs(
        search_all_experiments=True, filter_string="tags.`datadiet.kind` = 'select'", output_format="list"
    )
    kept = f"runs:/{theirs.info.run_id}/kept.csv"
    data = dd.load_dataset("digits")
    config = resolve_config(TrainConfig(dataset="digits", selector="manifest", manifest=kept), 1438)
    ids, _, _ = choose(config, data, data.train_labels, print)
    lines = (tmp_path / "exps/select/size_300.random/run_0/kept.csv").read_text().splitlines()[1:]
    assert data.example_ids[ids].tolist() == [line.split(",")[0] for line in lines]
    datadiet("export", tmp_path, kept=kept, output="mine.csv")
    assert len((tmp_path / "mine.csv").read_text().splitlines()) == 301


def test_what_is_not_there_is_refused_with_what_is(tmp_path, run_id):
    with pytest.raises(UserError) as caught:
        local_file(f"runs:/{run_id}/error_l2_norm_scores/ckpt_5.npy", "scores")
    assert f"scores=runs:/{run_id}/error_l2_norm_scores/ckpt_5.npy: expected a file of runs:/{run_id}" in (
        told := str(caught.value)
    )
    assert f"which has: {SCORES.removesuffix('.npy')}.json, {SCORES}." in told
    with pytest.raises(UserError, match=rf"scores=runs:/{run_id}: expected a file of .* which has: {SCORES[:5]}"):
        local_file(f"runs:/{run_id}", "scores")
    with pytest.raises(UserError, match=r"manifest=runs:/abc/kept.csv: MLflow \(sqlite.*\) has no runs:/abc"):
        local_file("runs:/abc/kept.csv", "manifest")
    with pytest.raises(UserError, match=r"has no models:/nobody/1"):
        local_file("models:/nobody/1/kept.csv", "manifest")


@pytest.mark.parametrize(
    "text", ["runs:/", "runs:/a//b", "runs:/a/../b", "runs:/a/.", "models:/a", "models:/a/b/../c", "runs:/a?/b"]
)
def test_a_text_that_names_no_file_is_refused_before_mlflow_is_asked(text, monkeypatch):
    mlflow.set_tracking_uri("http://127.0.0.1:9")
    with pytest.raises(UserError, match="expected a file that MLflow has, as runs:/RUN_ID/PATH"):
        local_file(text, "scores")


def test_a_file_that_was_changed_in_mlflow_is_refused(tmp_path, run_id):
    path = artifact(tmp_path, run_id, SCORES)
    path.write_bytes(path.read_bytes()[:-4] + b"\0\0\0\0")
    done = datadiet(
        "select", tmp_path, 2, selector="keep_max", size=500, dataset="digits", scores=f"runs:/{run_id}/{SCORES}"
    )
    assert "its content is not what ckpt_4.json was written for" in done.stderr


def test_what_was_brought_before_is_taken_when_mlflow_is_away_and_said(tmp_path, run_id):
    before = local_file(f"runs:/{run_id}/{SCORES}", "scores").read_bytes()
    store = Path(mlflow.get_tracking_uri().removeprefix("sqlite:///"))
    content = store.read_bytes()
    store.write_bytes(b"no database")
    with pytest.warns(UserWarning, match="is taken as it was when it was brought here before"):
        assert local_file(f"runs:/{run_id}/{SCORES}", "scores").read_bytes() == before
    with pytest.raises(UserError, match="cannot be used"):
        local_file(f"runs:/{run_id}/other.npy", "scores")
    store.write_bytes(content)


def test_a_file_of_mlflow_and_offline_exclude_each_other(tmp_path):
    scores = {"selector": "keep_max", "size": 500, "dataset": "digits", "scores": "runs:/abc/x.npy"}
    for command, options in (("select", scores), ("subset", scores), ("export", {"kept": "runs:/a/b", "output": "c"})):
        done = datadiet(command, tmp_path, 2, offline="true", **options)
        assert "a file that MLflow has, but --offline true never calls it" in done.stderr
    assert not (tmp_path / "mlflow.db").exists()
