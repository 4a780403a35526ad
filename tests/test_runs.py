"""Several runs at the same time: each is the run that it would have been alone."""

from __future__ import annotations

import shutil
from contextlib import contextmanager
from pathlib import Path

import jax
import jax.numpy as jnp
import mlflow
import numpy as np
import pytest
from conftest import QUICK, datadiet
from test_resume import SHORT, content, stop_at, untimed
from test_train import equal, setup

from datadiet.data.registry import load_dataset
from datadiet.runs import train
from datadiet.storage.checkpoints import checkpoint_steps
from datadiet.storage.score_files import load_scores
from datadiet.training.loop import Entrant, Report, fit, fit_runs

RUNS = (0, 2, 5)


# --- through the command line -------------------------------------------------------------------


def folder(root: Path, run: int) -> Path:
    return root / f"exps/random_subset/size_700/run_{run}"


def statuses(root: Path) -> dict[str, list[str]]:
    """Statuses of the MLflow runs by path."""
    found: dict[str, list[str]] = {}
    for run in mlflow.search_runs(experiment_names=["datadiet"], output_format="list"):
        if run.data.tags["datadiet.root"] == str(root):
            found.setdefault(run.data.tags["datadiet.path"], []).append(run.info.status)
    return found


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> Path:
    """A folder with one MLflow store and the runs trained by one command each."""
    base = tmp_path_factory.mktemp("runs")
    for run in RUNS:
        datadiet("random_subset", base, root=base / "alone", run=run, size=700, **SHORT)
    return base


def check_equal(base: Path, root: Path) -> None:
    for run in RUNS:
        one, other = content(folder(base / "alone", run)), content(folder(root, run))
        assert one.keys() == other.keys()
        assert [name for name in one if one[name] != other[name]] == []
    assert statuses(root) == {f"random_subset/size_700/run_{run}": ["FINISHED"] for run in RUNS}


@pytest.mark.parametrize("side_by_side", [True, False])
def test_one_command_trains_several_runs(base, tmp_path, monkeypatch, side_by_side):
    monkeypatch.setattr("datadiet.runs.train.gains_together", lambda model: side_by_side)
    datadiet("random_subset", base, root=tmp_path, runs="0,2,5", size=700, **SHORT)
    check_equal(base, tmp_path)


@pytest.mark.parametrize("side_by_side", [True, False])
def test_runs_that_were_stopped_go_on(base, tmp_path, monkeypatch, side_by_side):
    monkeypatch.setattr("datadiet.runs.train.gains_together", lambda model: side_by_side)
    with monkeypatch.context() as patch:
        stop_at(patch, 45)
        done = datadiet("random_subset", base, expect=75, root=tmp_path, runs="0,2,5", size=700, **SHORT)
    assert "--runs 0,2,5 " in done.stderr
    assert "--resume true" in done.stderr
    begun = RUNS if side_by_side else RUNS[:1]
    assert statuses(tmp_path) == {f"random_subset/size_700/run_{run}": ["KILLED"] for run in begun}
    assert {run: checkpoint_steps(folder(tmp_path, run)) for run in begun} == {run: [0, 20, 40, 45] for run in begun}
    if side_by_side:  # one of them was behind, as after a power cut
        shutil.rmtree(folder(tmp_path, 2) / "ckpts/45")
    done = datadiet("random_subset", base, root=tmp_path, resume="true", runs="0-0,2,5", size=700, **SHORT)
    check_equal(base, tmp_path)


def test_finished_runs_are_left_and_only_the_others_are_trained(base, tmp_path):
    datadiet("random_subset", base, root=tmp_path, run=2, size=700, **SHORT)
    refused = datadiet("random_subset", base, expect=2, root=tmp_path, runs="0,2,5", size=700, **SHORT)
    assert "run_2 holds a finished run" in refused.stderr
    assert not folder(tmp_path, 0).exists()
    done = datadiet("random_subset", base, root=tmp_path, resume="true", runs="0,2,5", size=700, **SHORT)
    assert "run_2: finished before" in done.stdout
    check_equal(base, tmp_path)


@pytest.mark.parametrize("runs", ["3-1", "0,0", "0-2,1", "x", "-1", "0,,2", "9" * 20])
def test_indices_that_say_nothing_are_refused(runs, tmp_path):
    done = datadiet("full_data", tmp_path, expect=2, runs=runs, **SHORT)
    assert repr(runs) in done.stderr


def test_an_index_beyond_all_seeds_is_refused(tmp_path):
    done = datadiet("full_data", tmp_path, expect=2, runs="0-999999999", **SHORT)
    assert "expected at most 10000" in done.stderr


def test_runs_side_by_side_keep_the_budget_of_their_subset(base, tmp_path):
    given = SHORT | {"budget": "epochs", "size": 700}
    datadiet("random_subset", base, root=tmp_path / "alone", run=2, **given)
    datadiet("random_subset", base, root=tmp_path, runs="0,2", **given)
    one, other = content(folder(tmp_path / "alone", 2)), content(folder(tmp_path, 2))
    assert one == other
    assert checkpoint_steps(folder(tmp_path, 0))[-1] == round(90 * 700 / 1438)


def test_many_runs_are_begun_a_few_at_a_time(tmp_path, monkeypatch):
    """So that the first report comes soon, and no more folders are held than files may be open."""
    held, most, begun_at_first_report = set(), [0], []
    lock_run, append_line = train.lock_run, train.append_line

    @contextmanager
    def lock(path):
        with lock_run(path):
            held.add(path)
            most[0] = max(most[0], len(held))
            yield
        held.remove(path)

    def append(path, line):
        if not begun_at_first_report:
            begun_at_first_report.append(len(list(path.parents[1].glob("run_*"))))
        append_line(path, line)

    monkeypatch.setattr(train, "lock_run", lock)
    monkeypatch.setattr(train, "append_line", append)
    monkeypatch.setattr(train, "AT_ONCE", 2)
    monkeypatch.setattr("datadiet.runs.train.processors", lambda: [0])
    told = datadiet("full_data", tmp_path, runs="0-4", offline="true", **QUICK | {"num_steps": 2}).stdout
    assert (most, begun_at_first_report) == ([2], [2])
    assert [line.split(":")[0] for line in told.splitlines()] == [f"full_data/run_{run}" for run in range(5)]


def test_a_run_of_many_that_was_made_otherwise_is_refused_before_any_is_trained(tmp_path, monkeypatch):
    monkeypatch.setattr(train, "AT_ONCE", 1)
    monkeypatch.setattr("datadiet.runs.train.processors", lambda: [0])
    given = {"offline": "true", **QUICK, "num_steps": 2}
    datadiet("full_data", tmp_path, run=3, **given)
    done = datadiet("full_data", tmp_path, expect=2, runs="0-3", resume="true", **given | {"lr": 0.5})
    assert "run_3 holds a run made otherwise (lr: 0.1 there, 0.5 asked for)" in done.stderr
    assert [path.name for path in (tmp_path / "exps/full_data").glob("run_*")] == ["run_3"]


def test_several_runs_and_types_are_scored_in_one_process_by_one_program(tmp_path):
    """With the bytes of each alone."""
    given = {"root": tmp_path, "offline": "true", "step": 4}
    datadiet("full_data", tmp_path, runs="0-1", offline="true", **QUICK | {"num_steps": 4})
    kinds = "l2_error,margin,grad_norm"
    datadiet("score", tmp_path, runs="0-1", type=kinds, exp="together", score_exp="full_data", **given)
    found = sorted(path.relative_to(tmp_path / "exps/together") for path in (tmp_path / "exps/together").rglob("*.npy"))
    assert len(found) == 6
    for path in found:
        kind, run = load_scores(tmp_path / "exps/together" / path)[1].type, path.parts[0].removeprefix("run_")
        datadiet("score", tmp_path, run=run, type=kind, exp="alone", score_exp="full_data", **given)
        assert (tmp_path / "exps/alone" / path).read_bytes() == (tmp_path / "exps/together" / path).read_bytes()
    made = [load_scores(tmp_path / f"exps/together/run_{run}/margin_scores/ckpt_4.npy")[1] for run in (0, 1)]
    assert made[1].compile_seconds == 0.0, "run 0 compiled for both"
    tracked = list((tmp_path / "exps/together").rglob("*.mlflow_run.json"))
    assert len(tracked) == 6, "each is a run of MLflow's"


def test_all_that_keeps_runs_from_being_scored_is_named_at_once(tmp_path):
    datadiet("full_data", tmp_path, run=1, offline="true", **QUICK | {"num_steps": 2})
    done = datadiet("score", tmp_path, expect=2, runs="0-2", type="l2_error", step=2, root=tmp_path, offline="true")
    assert [f"run_{run}. Train it: " in done.stderr for run in range(3)] == [True, False, True]
    assert not list(tmp_path.rglob("error_l2_norm_scores"))
    done = datadiet("score", tmp_path, expect=2, run=1, type="l2_error,l2_error", step=2, root=tmp_path, offline="true")
    assert "type=l2_error,l2_error: expected each once." in done.stderr
    done = datadiet("mean_score", tmp_path, expect=2, type="aum", n_runs=1, step=0, score_exp="x", root=tmp_path)
    assert "none before the first step" in done.stderr


# --- in Python: programs are compiled as users have them from here on, because bytes are compared ---------


@pytest.fixture(scope="module")
def digits(as_users_have):
    return load_dataset("digits")


def entrants(digits, runs=RUNS, **given):
    """What `fit_runs` takes; random halves of the data."""
    lanes = []
    for run in runs:
        network, *splits, config, state = setup(digits, run=run, **given)
        kept = np.sort(np.random.RandomState(run).permutation(digits.num_examples)[:700]).astype(np.int32)
        lanes.append(Entrant(config, kept, state))
    return network, splits, lanes


def together(digits, lanes=None, **given) -> dict[int, list[Report]]:
    network, splits, made = entrants(digits, **given)
    found: dict[int, list[Report]] = {}
    for run, report in fit_runs(network, *splits, lanes or made):
        found.setdefault(run, []).append(report._replace(state=jax.device_get(report.state)))
    return found


def timeless(reports: list[Report]) -> list[tuple]:
    return [(r.step, r.save, untimed(r.metrics)) for r in reports]


@pytest.fixture(scope="module")
def alone(digits) -> list[list[Report]]:
    network, splits, lanes = entrants(digits, log_steps=10)
    found = []
    for config, kept, state, _ in lanes:
        reports = fit(network, *splits, kept, config, state)
        found.append([r._replace(state=jax.device_get(r.state)) for r in reports])
    return found


def test_runs_at_the_same_time_end_with_the_bytes_of_runs_alone(digits, alone):
    for run, reports in together(digits, log_steps=10).items():
        assert timeless(reports) == timeless(alone[run])
        jax.tree.map(equal, [r.state for r in reports], [r.state for r in alone[run]])


def test_the_program_of_other_devices_agrees_to_rounding(digits, alone, monkeypatch):
    monkeypatch.setattr("datadiet.training.loop.on_cpu", lambda: False)
    for run, reports in together(digits, log_steps=10).items():
        assert [r.step for r in reports] == [r.step for r in alone[run]]
        for name, value in untimed(reports[-1].metrics).items():
            assert value == pytest.approx(alone[run][-1].metrics[name], rel=1e-3, abs=0.01), name
        for one, other in zip(*(jax.tree.leaves(r[-1].state.params) for r in (reports, alone[run]))):
            np.testing.assert_allclose(one, other, rtol=1e-3, atol=1e-4)


def test_the_seconds_of_runs_add_up(digits):
    found = together(digits)
    spent = [reports[-1].seconds for reports in found.values()]
    assert sum(s["train"] + s["eval"] + s["compile"] for s in spent) <= spent[-1]["total"] * 1.001


def test_a_run_that_diverges_stops_no_other(digits, alone):
    *_, lanes = entrants(digits, log_steps=10)
    broken = lanes[1].state._replace(params=jax.tree.map(lambda leaf: leaf * jnp.nan, lanes[1].state.params))
    lanes[1] = lanes[1]._replace(state=broken)
    found = together(digits, lanes)
    assert "Training diverged: the loss was not finite between steps 1 and 10" in str(found[1][-1].error)
    assert (found[1][-1].step, found[1][-1].metrics, found[1][-1].save) == (10, {}, False)
    for run in (0, 2):
        assert timeless(found[run]) == timeless(alone[run])
