"""Every hash of a copy is right: what lies where it was not made is refused by name, or passed over with a line."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import mlflow
import numpy as np
import pytest
from conftest import QUICK, datadiet
from studies import write_study

import datadiet as dd
from datadiet.errors import Misplaced, UserError
from datadiet.report.given import read_study
from datadiet.runs import train
from datadiet.storage.files import SEAL, read_json, read_lines, sealed, write_json, write_lines
from datadiet.storage.layout import check_place
from datadiet.storage.score_files import load_scores

TINY = QUICK | {"num_steps": 22, "save_steps": 11, "width": 8, "offline": "true"}
FULL = "exps/full_data"
SCORES = "error_l2_norm_scores/ckpt_11.npy"


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    """Runs 0 and 1, their scores, the mean of those, and a subset."""
    root = tmp_path_factory.mktemp("made")
    for run in (0, 1):
        datadiet("full_data", root, run=run, **TINY)
        datadiet("score", root, run=run, step=11, offline="true")
    datadiet("mean_score", root, n_runs=2, step=11, offline="true")
    for run in (0, 1):
        datadiet("random_subset", root, run=run, size=700, **TINY)
    return root


@pytest.fixture
def root(made, tmp_path) -> Path:
    shutil.copytree(made / "exps", tmp_path / "exps")
    return tmp_path


def put(source: Path, target: Path) -> None:
    """A copy in place of what is there."""
    if source.is_dir():
        shutil.rmtree(target, ignore_errors=True)
        shutil.copytree(source, target)
    else:
        for suffix in (source.suffix, ".json"):
            target.parent.mkdir(exist_ok=True)
            if source.with_suffix(suffix).exists():
                shutil.copyfile(source.with_suffix(suffix), target.with_suffix(suffix))


def said(words: str) -> str:
    """A message of several lines as one."""
    return " ".join(words.split())


@pytest.mark.parametrize(
    ("source", "target", "told"),
    [
        ("run_0/ckpts/22", "run_1/ckpts/22", "is step 22 of full_data/run_0; expected step 22 of full_data/run_1"),
        ("run_0/ckpts/11", "run_0/ckpts/22", "is step 11 of full_data/run_0; expected step 22 of full_data/run_0"),
        ("run_1/ckpts/0", "run_0/ckpts/7", "is step 0 of full_data/run_1; expected step 7 of full_data/run_0"),
    ],
)
def test_a_checkpoint_of_another_run_or_step_is_refused(root, source, target, told):
    put(root / FULL / source, root / FULL / target)
    run, _, step = target.split("/")
    with pytest.raises(UserError, match=f"{target} {told}"):
        dd.open_run(root / FULL / run).variables(int(step))
    done = datadiet("score", root, expect=2, run=run[-1], step=step, offline="true")
    assert f"{target} {told}" in said(done.stderr)
    assert not (root / FULL / run / f"error_l2_norm_scores/ckpt_{step}.npy").exists()


def test_a_checkpoint_from_before_a_run_was_replaced_is_refused(root):
    put(root / FULL / "run_0/ckpts/22", root / "kept")
    datadiet("full_data", root, **TINY | {"lr": 0.05}, overwrite="true")
    put(root / "kept", root / FULL / "run_0/ckpts/22")
    with pytest.raises(UserError, match="step 22 of full_data/run_0, with other options or data; expected"):
        dd.open_run(root / FULL / "run_0").variables(22)


def test_a_run_is_not_continued_from_the_state_of_another_step_or_run(root):
    run = root / FULL / "run_0"
    right = dd.open_run(run).variables(22)
    (run / "summary.json").unlink()
    put(run / "ckpts/11", run / "ckpts/22")
    done = datadiet("full_data", root, **TINY, resume="true")
    assert "Not continued from step 22: " in done.stdout
    assert "ckpts/22 is step 11 of full_data/run_0; expected step 22" in done.stdout
    assert "continued from step 11 of 22" in done.stdout
    again = dd.open_run(run).variables(22)
    np.testing.assert_array_equal(*(v["params"]["Dense_0"]["kernel"] for v in (right, again)))


@pytest.mark.parametrize("copy", ["run_0_copy", "run_2", "old/full_data/run_0"])
def test_a_copy_of_a_run_counts_once(root, copy):
    put(root / FULL / "run_0", root / FULL / copy)
    done = datadiet("results", root, exps_path="exps", exp="full_data", offline="true")
    assert "2 finished training runs" in done.output
    assert f"Not counted: exps/full_data/{copy} was made as full_data/run_0" in done.output
    assert len((root / "results.csv").read_text().splitlines()) == 3
    done = datadiet("results", root, exps_path="exps/full_data", offline="true")
    assert "2 finished training runs" in done.output
    done = datadiet("sync", root, root=root)
    assert (
        f"Passed over: {root}/exps/full_data/{copy}/mlflow_run.json was made as full_data/run_0/mlflow_run"
        in done.output
    )
    mlflow.set_tracking_uri(f"sqlite:///{root}/mlflow.db")
    trained = mlflow.search_runs(
        experiment_names=["datadiet"], filter_string="tags.`datadiet.kind` = 'train'", output_format="list"
    )
    assert len(trained) == 4


def test_a_copy_of_a_run_is_no_other_run(root):
    put(root / FULL / "run_0", root / FULL / "run_2")
    told = "run_2 was made as full_data/run_0"
    with pytest.raises(UserError, match=told):
        dd.open_run(root / FULL / "run_2")
    assert told in said(datadiet("score", root, expect=2, run=2, step=11, offline="true").stderr)
    assert told in said(datadiet("full_data", root, expect=2, run=2, resume="true", **TINY).stderr)
    done = datadiet("mean_score", root, expect=2, n_runs=3, step=11, offline="true")
    assert f"run_2/{SCORES} was made as full_data/run_0/{SCORES}" in said(done.stderr)


@pytest.mark.parametrize(
    "target", [f"run_1/{SCORES}", "run_0/error_l2_norm_scores/ckpt_22.npy", "run_0/grad_norm_scores/ckpt_11.npy"]
)
def test_a_score_file_of_another_run_step_or_type_is_refused(root, target):
    put(root / FULL / "run_0" / SCORES, root / FULL / target)
    told = f"{target} was made as full_data/run_0/{SCORES}"
    with pytest.raises(UserError, match=told):
        load_scores(root / FULL / target)
    kind = "grad_norm" if "grad" in target else "l2_error"
    given = {"n_runs": 2, "step": 22 if "22" in target else 11, "type": kind, "offline": "true"}
    if "run_1" not in target:
        put(root / FULL / "run_1" / SCORES, root / FULL / target.replace("run_0", "run_1"))
    assert told in said(datadiet("mean_score", root, expect=2, **given).stderr)


def test_older_scores_tell_their_run_step_and_type_as_well(root):
    path = root / FULL / "run_0" / SCORES
    record = read_json(path.with_suffix(".json"))
    del record["path"]
    write_json(path.with_suffix(".json"), sealed(record))
    assert load_scores(path, f"full_data/run_0/{SCORES}")[1].type == "l2_error"
    for place in (f"run_1/{SCORES}", "run_0/error_l2_norm_scores/ckpt_22.npy", "run_0/forget_scores/ckpt_11.npy"):
        put(path, root / FULL / place)
        with pytest.raises(Misplaced, match=f"{place} was made as"):
            load_scores(root / FULL / place, f"full_data/{place}")


def test_scores_that_lie_outside_the_mirror_are_taken_for_what_they_say(root):
    for name in ("ckpt_11.npy", "mine.npy"):
        put(root / FULL / SCORES, root / name)
        datadiet("keep_max", root, size=700, scores=name, exp=f"by_{name[:4]}", **TINY | {"num_steps": 1})


def test_the_reports_of_another_run_are_not_taken(root):
    for name in ("run_0", "run_1"):
        assert len(dd.open_run(root / FULL / name).reports) == 2
    shutil.copyfile(root / FULL / "run_0/metrics.jsonl", root / FULL / "run_1/metrics.jsonl")
    with pytest.raises(UserError, match=r"run_1/metrics\.jsonl: line 1 is not what was written there"):
        _ = dd.open_run(root / FULL / "run_1").reports


def test_the_examples_of_another_run_are_not_taken(root):
    runs = [root / f"exps/random_subset/size_700/run_{run}" for run in (0, 1)]
    assert dd.open_run(runs[1]).input("kept.csv") == runs[1] / "kept.csv"
    shutil.copyfile(runs[0] / "kept.csv", runs[1] / "kept.csv")
    with pytest.raises(UserError, match=r"run_1/kept\.csv is not what this run was trained on"):
        dd.open_run(runs[1]).input("kept.csv")


def test_the_summary_of_another_run_is_not_taken(root):
    shutil.copyfile(root / FULL / "run_0/summary.json", root / FULL / "run_1/summary.json")
    with pytest.raises(UserError, match="run_1 was made as full_data/run_0"):
        _ = dd.open_run(root / FULL / "run_1").summary


def test_a_copied_study_is_not_reported_as_another(tmp_path):
    exps = write_study(tmp_path, {"random": (0.01, 0.02)}, runs=2, score_runs=1)
    assert read_study(exps, "demo").exp == "demo"
    put(exps / "demo", exps / "again")
    with pytest.raises(UserError, match=r"again/study\.json is of another study than again: it names demo/full_data"):
        read_study(exps, "again")


def test_a_mirror_may_be_moved_and_linked_to_as_a_whole(root, tmp_path):
    (tmp_path / "deep/er").mkdir(parents=True)
    (tmp_path / "exps").rename(tmp_path / "deep/er/renamed")
    (tmp_path / "linked").mkdir()
    (tmp_path / "linked/exps").symlink_to(tmp_path / "deep/er/renamed")
    for exps in ("deep/er/renamed", "linked/exps"):
        done = datadiet("results", tmp_path, exps_path=exps, offline="true")
        assert "4 finished training runs" in done.output
        assert "Not counted" not in done.output
        run = dd.open_run(tmp_path / exps / "full_data/run_1")
        assert (run.summary.path, len(run.reports)) == ("full_data/run_1", 2)
        assert run.variables(22)
        assert load_scores(tmp_path / exps / f"full_data/run_1/{SCORES}")[1].runs == [1]
    given = {"root": "linked", "offline": "true"}
    datadiet("score", tmp_path, run=1, step=22, **given)
    datadiet("mean_score", tmp_path, n_runs=2, step=11, **given)
    assert "taken as it is" in datadiet("full_data", tmp_path, resume="true", **TINY | given).output
    assert "Passed over" not in datadiet("sync", tmp_path, root="linked").output


def test_subsets_go_on_where_exps_was_moved_or_is_named_by_another_path(root, tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "exps").rename(tmp_path / "a/exps")
    given = TINY | {"size": 700, "score_step": 11}
    datadiet("keep_max", tmp_path / "a", **given)
    (tmp_path / "a").rename(tmp_path / "b")
    for place in ("b", tmp_path / "b"):
        done = datadiet("keep_max", tmp_path, root=place, resume="true", **given)
        assert "finished before, taken as it is" in done.output
    mean, other = tmp_path / f"b/{FULL}/{SCORES}", tmp_path / f"b/{FULL}/run_0/{SCORES}"
    datadiet("mean_score", tmp_path, root="b", n_runs=1, step=11, overwrite="true", offline="true")
    for file, told in {other: "(scores: ", mean: "kept.csv has other lines"}.items():
        done = datadiet("keep_max", tmp_path, root="b", resume="true", expect=2, scores=file, **given)
        assert told in said(done.stderr)


@pytest.mark.parametrize(
    ("place", "right"),
    [
        ("a/exps/e/run_0", True), ("a/renamed/e/run_0", True), ("a/my_run", True), ("a/run_0", True),
        ("a/run_1", False), ("a/renamed/e/run_1", False), ("a/exps/f/run_0", False), ("a/exps/e/x", False),
        ("a/exps/e/x/run_0", False),
    ],
)  # fmt: skip
def test_a_run_is_what_it_says_unless_its_place_says_otherwise(place, right):
    if right:
        check_place(Path(place), "e/run_0")
    else:
        with pytest.raises(Misplaced, match=f"^{place} was made as e/run_0"):
            check_place(Path(place), "e/run_0")
    with pytest.raises(Misplaced, match="is not f/run_0"):
        check_place(Path(place), "e/run_0", "f/run_0")


def test_a_run_of_before_places_were_noted_is_read(root):
    run = root / FULL / "run_0"
    arguments, lines = read_json(run / "args.json"), read_lines(run / "metrics.jsonl")
    del arguments["data"]["made_as"]
    write_json(run / "args.json", sealed(arguments))
    write_lines(run / "metrics.jsonl", lines)
    stored = dd.open_run(run)
    assert (stored.arguments.path, stored.reports) == (None, lines)
    assert stored.variables(22)
    assert SEAL in (run / "metrics.jsonl").read_text()


# --- what goes away while it trains ---------------------------------------------------------------


def at_step(monkeypatch, step: int, act: Callable[[], object]) -> None:
    """Do something once the report of a step is written."""
    written = train.Lane.record

    def record(lane, report) -> None:
        written(lane, report)
        if report.step == step:
            act()

    monkeypatch.setattr(train.Lane, "record", record)


def status(root: Path) -> str:
    mlflow.set_tracking_uri(f"sqlite:///{root}/mlflow.db")
    (run,) = mlflow.search_runs(experiment_names=["datadiet"], output_format="list")
    return run.info.status


TRACKED = TINY | {"offline": "false"}


@pytest.mark.parametrize("what", ["exps/random_subset/size_700/run_0", "exps"])
@pytest.mark.parametrize("step", [11, 22])
def test_a_folder_that_goes_away_while_it_trains_is_an_error_and_not_made_anew(tmp_path, monkeypatch, what, step):
    at_step(monkeypatch, step, lambda: (tmp_path / what).rename(tmp_path / "taken"))
    done = datadiet("random_subset", tmp_path, expect=2, size=700, **TRACKED)
    assert "exps/random_subset/size_700/run_0" in done.stderr
    assert ("Its folder is gone" if step == 11 else "is not complete after its last step") in done.stderr
    assert not (tmp_path / what).exists()
    assert status(tmp_path) == "FAILED"


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("args.json", "no args.json"),
        ("kept.csv", "kept.csv is missing"),
        ("metrics.jsonl", "lines of metrics.jsonl"),
        ("ckpts/22", "ckpts/22/files.json is missing"),
        ("forget_scores", "forget_scores/ckpt_22.npy, forget_scores/ckpt_22.json are missing"),
    ],
)
def test_a_run_that_lost_a_part_is_not_finished(tmp_path, monkeypatch, name, told):
    run = tmp_path / "exps/random_subset/size_700/run_0"
    at_step(monkeypatch, 22, lambda: (run / name).rename(tmp_path / "taken"))
    done = datadiet("random_subset", tmp_path, expect=2, size=700, **TRACKED)
    assert "run_0 is not complete after its last step: " in done.stderr
    assert told in said(done.stderr)
    assert not (run / "summary.json").exists()
    assert status(tmp_path) == "FAILED"


def test_a_study_that_loses_its_folder_makes_nothing_anew(tmp_path, monkeypatch):
    at_step(monkeypatch, 3, lambda: (tmp_path / "exps").rename(tmp_path / "taken"))
    params = {"score_runs": 1, "eval_runs": 1, "score_types": "forget", "fractions": 0.5, "num_steps": 11, "width": 8}
    done = datadiet("main", tmp_path, expect=2, log_steps=3, **params)
    assert "Its folder is gone" in done.stderr
    assert not (tmp_path / "exps").exists()
