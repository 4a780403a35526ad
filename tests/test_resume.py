"""A run that was killed, stopped or damaged ends like one that was left alone, byte by byte."""

from __future__ import annotations

import functools
import json
import os
import shlex
import signal
import subprocess
from pathlib import Path

import jax
import mlflow
import numpy as np
import pytest
from conftest import PROJECT, QUICK, begin, datadiet, end_of, store_in, wait

from datadiet.config import resolve, saved_steps
from datadiet.data.registry import load_dataset
from datadiet.models.registry import build_model
from datadiet.runs import train
from datadiet.scores.trajectory import TRAJECTORIES
from datadiet.storage.checkpoints import checkpoint_steps, load_state
from datadiet.storage.files import SEAL, read_json, read_lines, sealed, write_json, write_lines, write_text
from datadiet.storage.layout import score_file
from datadiet.storage.runs import open_run
from datadiet.storage.score_files import load_scores
from datadiet.tracking.record import is_timing
from datadiet.training.state import initial_state

# Most reports come between two checkpoints.
SHORT = QUICK | {"num_steps": 90, "save_steps": 20, "log_steps": 15, "trajectory": "all", "trajectory_window": 4}
LONG = SHORT | {"num_steps": 300}
PARTS = ("train", "eval", "select", "compile", "total")
TIMED = {f"{name}_seconds" for name in PARTS} | {"seconds", "joules", "mlflow_run_id"}


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> Path:
    """A folder with one MLflow store and the runs that were left alone."""
    base = tmp_path_factory.mktemp("resume")
    datadiet("full_data", base, root=base / "short_whole", **SHORT)
    datadiet("full_data", base, root=base / "long_whole", **LONG)
    return base


def folder(root: Path) -> Path:
    return root / "exps/full_data/run_0"


def reports(run: Path) -> list[dict]:
    return read_lines(run / "metrics.jsonl")


def untimed(record: dict) -> dict:
    return {k: v for k, v in record.items() if k not in {*TIMED, SEAL} and not is_timing(k)}


def content(run: Path) -> dict[str, object]:
    """Every file of a run: bytes, or what is left without timings; of a checkpoint the verified state."""
    files = [p for p in run.rglob("*") if p.is_file() and "ckpts" not in p.relative_to(run).parts]
    found: dict[str, object] = {p.relative_to(run).as_posix(): p.read_bytes() for p in files}
    noted = json.loads(found["mlflow_run.json"])
    changing = ("uid", "id", "begun", "ended", "tags", "record_sha256")
    found["mlflow_run.json"] = {k: v for k, v in noted.items() if k not in changing} | {"tags": sorted(noted["tags"])}
    found["metrics.jsonl"] = list(map(untimed, reports(run)))
    found["summary.json"] = untimed(json.loads(found["summary.json"]))
    found["ckpts"] = sorted(p.name for p in (run / "ckpts").iterdir())
    stored = open_run(run)
    config, digits = resolve(stored.config, 1438), load_dataset("digits")
    like = initial_state(build_model("mlp", 10, digits.image_shape, config.width), config, 1438)
    for step in checkpoint_steps(run):
        leaves = jax.tree_util.tree_leaves_with_path(load_state(run, step, like))
        found |= {f"{step}{jax.tree_util.keystr(path)}": np.asarray(leaf).tobytes() for path, leaf in leaves}
    assert checkpoint_steps(run) == saved_steps(config)
    return found


content_of_whole = functools.cache(content)  # it does not change


def check_equal(base: Path, root: Path, whole: str) -> None:
    """The same run as the one left alone, in the mirror; the same in MLflow as in the mirror, each point once."""
    one, other = content_of_whole(folder(base / whole)), content(folder(root))
    assert one.keys() == other.keys()
    assert {name: (one[name], other[name]) for name in one if one[name] != other[name]} == {}
    lines = reports(folder(root))
    seconds = [line["time/train_seconds"] for line in lines]
    assert seconds == sorted(seconds), "an earlier part counts"
    run_id = json.loads((folder(root) / "summary.json").read_text())["mlflow_run_id"]
    assert json.loads((folder(root) / "mlflow_run.json").read_text())["id"] == run_id
    client = mlflow.MlflowClient()
    assert client.get_run(run_id).info.status == "FINISHED"
    for name in lines[0].keys() - {"step"}:
        points = [(m.step, m.value) for m in client.get_metric_history(run_id, name)]
        assert sorted(points) == [(line["step"], line[name]) for line in lines], name
    assert len(client.get_run(run_id).inputs.dataset_inputs) == 1


def runs_of(root: Path) -> list[mlflow.entities.Run]:
    found = mlflow.search_runs(experiment_names=["datadiet"], output_format="list")
    return [run for run in found if run.data.tags["datadiet.root"] == str(root)]


def begin_long(base: Path, root: Path) -> subprocess.Popen:
    """`resume=true` also where there is nothing yet, as a scheduler would say it."""
    return begin("full_data", PROJECT, base, resume="true", root=root, **LONG)


def stop_at(monkeypatch, step: int) -> None:
    """SIGTERM seems to come when training has done so many steps."""
    real = train.fit_runs

    def fit_runs(network, training, test, entrants, advance, stopping):
        reached = [int(entrants[0].state.step)]

        def progress(steps: int) -> None:
            reached[0] += steps
            advance(steps)

        return real(network, training, test, entrants, progress, lambda: reached[0] >= step)

    monkeypatch.setattr(train, "fit_runs", fit_runs)


@pytest.fixture
def stopped(base, tmp_path, monkeypatch) -> Path:
    """A run stopped at step 45, where metrics were due and no checkpoint was."""
    with monkeypatch.context() as patch:
        stop_at(patch, 45)
        done = datadiet("full_data", base, expect=75, root=tmp_path, **SHORT)
    assert "Stopped after step 45 of 90, all saved. Continue: datadiet full_data " in done.stderr
    assert "--resume true" in done.stderr
    assert checkpoint_steps(folder(tmp_path)) == [0, 20, 40, 45]
    (run,) = runs_of(tmp_path)
    assert run.info.status == "KILLED"
    return tmp_path


def test_a_run_killed_again_and_again_ends_the_same(base):
    root = base / "killed"
    run = folder(root)
    moments = (
        (run / "mlflow_run.json").exists,
        lambda: len(list((run / "ckpts").glob("*"))) > 6 and any((run / "ckpts").glob("*tmp*")),  # while saving
    )
    for moment in moments:
        process = begin_long(base, root)
        wait(process, moment, every=0.001)
        os.kill(process.pid, signal.SIGKILL)
        end_of(process)
    (found,) = runs_of(root)
    assert found.info.status == "RUNNING", "nobody could say otherwise"
    done = datadiet("full_data", base, root=root, resume="true", **LONG)
    assert "continued from step" in done.stdout
    check_equal(base, root, "long_whole")
    assert len(runs_of(root)) == 1


def test_sigterm_saves_and_ends_with_75_and_a_second_process_is_refused(base):
    root = base / "terminated"
    process = begin_long(base, root)
    wait(process, (folder(root) / "mlflow_run.json").exists)
    for more in ({}, {"resume": "true"}, {"overwrite": "true"}):
        second = datadiet("full_data", base, expect=2, root=root, **LONG, **more)
        assert "another process is training this run" in second.stderr
    wait(process, (folder(root) / "ckpts/40").exists)
    process.send_signal(signal.SIGTERM)
    _, errors = end_of(process)
    assert process.returncode == 75, errors
    assert "Stopped" in errors
    assert "Traceback" not in errors
    assert runs_of(root)[0].info.status == "KILLED"
    datadiet("full_data", base, root=root, resume="true", **LONG)
    check_equal(base, root, "long_whole")
    assert len(runs_of(root)) == 1


def test_a_stopped_run_has_the_scores_gathered_up_to_its_checkpoint(base, stopped):
    """What was gathered is there as of the checkpoint; before the first step nothing was."""
    run = folder(stopped)
    config = resolve(open_run(run).config, 1438)
    like = initial_state(build_model("mlp", 10, (8, 8, 1), config.width), config, 1438)
    state = load_state(run, 45, like)
    for name, entry in TRAJECTORIES.items():
        values, made = load_scores(score_file(run, name, 45))
        np.testing.assert_array_equal(values, entry.values(state.trajectory[name], np.ones(1438, bool)))
        assert made is not None
        assert (made.step, made.type) == (45, name)
        steps = sorted(int(path.stem.split("_")[1]) for path in score_file(run, name, 0).parent.glob("*.npy"))
        assert steps == [20, 40, 45]
    assert np.load(run / "never_learned/ckpt_45.npy").shape == (1438,)


def test_a_run_without_checkpoints_goes_on_where_it_was_stopped_and_leaves_none(base, tmp_path, monkeypatch):
    given = {name: value for name, value in SHORT.items() if name != "trajectory_window"}
    lean = given | {"trajectory": "none", "checkpoints": "false"}
    with monkeypatch.context() as patch:
        stop_at(patch, 45)
        datadiet("full_data", base, expect=75, root=tmp_path, **lean)
    assert checkpoint_steps(folder(tmp_path)) == [45]
    done = datadiet("full_data", base, root=tmp_path, resume="true", **lean)
    assert "continued from step 45 of 90" in done.stdout
    assert checkpoint_steps(folder(tmp_path)) == []
    for name in ("step", "train_loss", "test_acc"):
        expected = [line[name] for line in reports(folder(base / "short_whole"))]
        assert [line[name] for line in reports(folder(tmp_path))] == pytest.approx(expected, rel=1e-4)
    refused = datadiet("score", base, expect=2, root=tmp_path)
    assert "checkpoints=false: expected true" in refused.stderr


def test_a_stopped_run_is_stopped_again_and_ends_the_same(base, stopped, monkeypatch):
    with monkeypatch.context() as patch:
        stop_at(patch, 60)
        datadiet("full_data", base, expect=75, root=stopped, resume="true", **SHORT)
    assert checkpoint_steps(folder(stopped)) == [0, 20, 40, 60], "the unplanned one went with the next planned one"
    done = datadiet("full_data", base, root=stopped, resume="true", **SHORT)
    assert "continued from step 60 of 90" in done.stdout
    check_equal(base, stopped, "short_whole")


@pytest.mark.parametrize(("damaged", "told"), [((45,), "continued from step 40"), ((0, 20, 40, 45), "anew at step 0")])
def test_a_damaged_checkpoint_is_passed_over_and_named(base, stopped, damaged, told):
    run = folder(stopped)
    for step in damaged:
        blob = run / f"ckpts/{step}/arrays.npz"
        blob.write_bytes(blob.read_bytes()[: blob.stat().st_size // 2])
    (run / "ckpts/60.orbax-checkpoint-tmp").mkdir()
    (run / ".kept.csv.1.tmp").touch()
    with open(run / "metrics.jsonl", "a") as file:
        file.write('{"step": 60, "train_l')
    done = datadiet("full_data", base, root=stopped, resume="true", **SHORT)
    assert told in done.stdout
    for step in damaged:
        assert f"Not continued from step {step}: " in done.stdout
    check_equal(base, stopped, "short_whole")
    assert len(runs_of(stopped)) == 1, "MLflow had points later than the checkpoint"


def test_metrics_that_are_missing_are_made_again(base, stopped):
    path = folder(stopped) / "metrics.jsonl"
    write_lines(path, reports(folder(stopped))[:-1])
    done = datadiet("full_data", base, root=stopped, resume="true", **SHORT)
    assert "metrics.jsonl is damaged" in done.stdout
    assert "continued from step 40" in done.stdout
    check_equal(base, stopped, "short_whole")


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({}, "Continue it with --resume true"),
        ({"resume": "true", "lr": 0.2, "beta": 0.5}, "(beta: 0.9 there, 0.5 asked for; lr: 0.1 there, 0.2 asked for)"),
        ({"resume": "true", "overwrite": "true"}, "exclude each other"),
    ],
)
def test_what_cannot_be_continued_is_refused(base, stopped, more, message):
    before = {p: p.stat().st_mtime_ns for p in folder(stopped).rglob("*")}
    done = datadiet("full_data", base, expect=2, root=stopped, **SHORT | more)
    assert message in done.stderr
    assert before == {p: p.stat().st_mtime_ns for p in folder(stopped).rglob("*")}


def test_other_data_or_examples_are_refused(base, tmp_path, monkeypatch):
    given = {"root": tmp_path, "size": 700} | SHORT
    with monkeypatch.context() as patch:
        stop_at(patch, 15)
        datadiet("random_subset", base, expect=75, **given)
    run = tmp_path / "exps/random_subset/size_700/run_0"
    arguments, kept = read_json(run / "args.json"), (run / "kept.csv").read_text()
    arguments["data"]["fingerprint"] = "0" * 64
    write_json(tmp_path / "args.json", sealed(arguments))
    write_text(run / "kept.csv", kept.replace("\n", " \n", 1))
    assert "kept.csv has other lines" in datadiet("random_subset", base, expect=2, resume="true", **given).stderr
    write_text(run / "kept.csv", kept)
    os.replace(tmp_path / "args.json", run / "args.json")
    assert "data: 000000000000 there" in datadiet("random_subset", base, expect=2, resume="true", **given).stderr


def test_what_is_advised_for_a_run_that_was_made_otherwise_is_that_run(tmp_path):
    given = {"dataset": "digits", "model": "mlp", "width": 8, "augment": "false", "offline": "true", "size": "50%"}

    def advised(command: str, **options) -> list[str]:
        told = datadiet(command, tmp_path, expect=2, resume="true", **given | options).stderr
        assert "holds a run made otherwise" in told
        return shlex.split(told.partition(" As it was made: datadiet ")[2])

    def check(exp: str, made: dict, now: dict, is_told: bool) -> None:
        datadiet("random_subset", tmp_path, exp=exp, **given | made)
        words = advised("random_subset", exp=exp, **now)
        assert bool(words) == is_told
        if words:
            typed = dict(zip((word.removeprefix("--") for word in words[1::2]), words[2::2]))
            assert "taken as it is" in datadiet(words[0], tmp_path, **typed).output

    check("epochs", {"epochs": 2}, {"epochs": 3}, is_told=True)
    check("steps", {"num_steps": 20}, {"num_steps": 30, "lr": 0.2}, is_told=True)
    check("budget", {"num_steps": 40, "budget": "epochs"}, {"num_steps": 60, "budget": "epochs"}, is_told=False)
    check("made", {"num_steps": 20, "lr": 0.2}, {"num_steps": 20}, is_told=True)


def test_a_finished_run_is_left_as_it_is(base):
    root = base / "short_whole"
    mlflow.set_tracking_uri(store_in(base))
    client, (run,) = mlflow.MlflowClient(), runs_of(root)
    client.update_run(run.info.run_id, status="RUNNING")  # as if killed between mirror and MLflow
    before = {p: p.stat().st_mtime_ns for p in root.rglob("*")}
    done = datadiet("full_data", base, root=root, resume="true", **SHORT)
    assert "full_data/run_0: finished before, taken as it is" in done.stdout
    assert before == {p: p.stat().st_mtime_ns for p in root.rglob("*")}
    assert client.get_run(run.info.run_id).info.status == "FINISHED"


def test_a_finished_run_killed_while_its_record_was_put_in_place_leaves_nothing_behind(base):
    root = base / "short_whole"
    before = sorted(root.rglob("*"))
    (folder(root) / ".mlflow_run.json.1.tmp").touch()
    datadiet("full_data", base, root=root, resume="true", **SHORT)
    assert before == sorted(root.rglob("*"))


def test_the_project_run_of_a_continuation_points_to_the_run_continued(base, stopped, monkeypatch):
    (run,) = runs_of(stopped)
    project = mlflow.MlflowClient().create_run(run.info.experiment_id, tags={"datadiet.root": ""})
    monkeypatch.setenv("MLFLOW_RUN_ID", project.info.run_id)
    datadiet("full_data", base, root=stopped, resume="true", **SHORT)
    check_equal(base, stopped, "short_whole")
    launcher = mlflow.MlflowClient().get_run(project.info.run_id)
    assert launcher.info.run_name == "launcher of full_data/run_0"
    assert run.info.run_id in launcher.data.tags["mlflow.note.content"]
    assert not launcher.data.metrics


def test_a_run_that_mlflow_lost_is_told_again_in_full(base, stopped):
    (run,) = runs_of(stopped)
    mlflow.MlflowClient().delete_run(run.info.run_id)
    done = datadiet("full_data", base, root=stopped, resume="true", **SHORT)
    assert f"MLflow run {run.info.run_id} is not in" in done.stdout
    check_equal(base, stopped, "short_whole")


def test_a_study_continues_the_run_it_was_stopped_in(tmp_path, monkeypatch):
    few = {"score_runs": 1, "eval_runs": 1, "score_types": "forget", "fractions": 0.5}
    params = {**few, "num_steps": 22, "log_steps": 11, "width": 16}
    with monkeypatch.context() as patch:
        stop_at(patch, 11)
        done = datadiet("main", tmp_path, expect=75, **params)
    assert "Continue: datadiet main --score_runs 1 --eval_runs 1 " in done.stderr
    (study,) = runs_of_kind("study")
    assert study.info.status == "KILLED"
    done = datadiet("main", tmp_path, **params)
    assert "exps/main/full_data/run_0: continued from step 11 of 22" in done.stdout
    (again,) = runs_of_kind("study")
    assert (again.info.run_id, again.info.status) == (study.info.run_id, "FINISHED")
    trained = runs_of_kind("train")
    assert len(trained) == 4
    assert {run.info.status for run in trained} == {"FINISHED"}
    assert {run.data.tags["mlflow.parentRunId"] for run in trained} == {study.info.run_id}


def runs_of_kind(kind: str) -> list[mlflow.entities.Run]:
    found = mlflow.search_runs(experiment_names=["datadiet"], output_format="list")
    return [run for run in found if run.data.tags["datadiet.kind"] == kind]
