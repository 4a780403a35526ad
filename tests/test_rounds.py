"""A study that is looked at again, or adds runs until its verdict stands."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import mlflow
import pytest
import studies
from conftest import datadiet
from test_report import GOOD
from test_study import LAYOUT, OPTIONS, tables

from datadiet.config import TrainConfig
from datadiet.errors import Interrupted, UserError
from datadiet.report.decision import Decision
from datadiet.report.given import read_study
from datadiet.report.outlook import asked, bound, freed_from_choice, looked, reachable
from datadiet.report.page import numbers
from datadiet.report.text import how_sure, warnings, which
from datadiet.storage.records import LookRecord, StudyRecord
from datadiet.study import rounds
from datadiet.study.plan import Plan, check_names
from datadiet.study.rounds import Rounds, looks_before, next_runs, note_look
from datadiet.study.spec import compile_study

TINY = OPTIONS | {"score_types": "l2_error", "score_runs": 1, "fractions": 0.5, "workers": 1, "exp": "s"}


def decide(root: Path, losses=GOOD, margin: float = 0.5, looks: tuple[int, ...] = (), planned: int = 5, **options):
    """A finished study of known numbers that was looked at before."""
    exps = studies.write_study(root, losses, **options)
    record = StudyRecord.read(exps / "demo/study.json")
    record.looks = [LookRecord(runs, planned, 0.5, "not decided", 1.0, []) for runs in looks]
    record.write(exps / "demo/study.json")
    return Decision(read_study(exps, "demo"), margin)


def line(done, beginning: str) -> str:
    """What a command said that begins so."""
    (found,) = (told for told in (done.stdout + done.stderr).splitlines() if told.startswith(beginning))
    return found


# --- what is said -----------------------------------------------------------------------------


def test_looks_are_paid_for_and_told(tmp_path):
    once, again = decide(tmp_path / "a"), decide(tmp_path / "b", looks=(3,), planned=3)
    assert looked(once) == []
    assert once.looks.runs == (5,)
    assert again.looks.runs == (3, 5)
    assert again.level(0.01) < once.level(0.01) == pytest.approx(0.01)
    assert again.nearest.level < once.nearest.level
    assert again.nearest.smallest_margin > once.nearest.smallest_margin
    told = " ".join(how_sure(again))
    assert "looked at with 3 and 5 runs a subset, of 3 planned" in told
    assert "a second 2.5 %: so far the chance is at most 3.5 %, and below 5 %" in told
    numbered = numbers(again)
    assert numbered["looks"] == {"runs": [3, 5], "planned": 3, "spent": pytest.approx(1.4)}
    assert "second" not in " ".join(looked(decide(tmp_path / "c", looks=(3,), planned=30)))


def test_a_look_is_noted_once_and_before_anything_is_told(tmp_path):
    decision = decide(tmp_path)
    path = tmp_path / "exps/demo/study.json"
    assert note_look(decision)
    (look,) = StudyRecord.read(path).looks
    assert (look.runs, look.planned, look.margin, look.answer, look.kept_fraction) == (5, 5, 0.5, "can", 1150 / 1438)
    assert look.cells == ["keep_max l2_error 0.7997", "random 0.7997", "keep_max l2_error 0.3999", "random 0.3999"]
    before = path.read_bytes()
    assert not note_look(Decision(read_study(tmp_path / "exps", "demo"), 0.5))
    assert path.read_bytes() == before


def test_another_margin_is_another_question(tmp_path):
    exps = studies.write_study(tmp_path, GOOD)
    assert asked(Decision(read_study(exps, "demo"), 0.5)) == []
    other = Decision(read_study(exps, "demo"), 1.0)
    assert "the study asked for a margin of 0.5 points, this is an answer for 1" in asked(other)[0]
    assert warnings(other)[0] == asked(other)[0]
    assert numbers(other)["planned_margin"] == 0.5
    first = decide(tmp_path / "b", looks=(5,))
    first.study.record.plan["margin"] = 2.0  # given anew, after the first look
    assert asked(Decision(first.study, 2.0)), "the question is the one that was asked first"


def test_the_gain_of_a_chosen_arm_is_told_where_it_was_not_chosen(tmp_path):
    losses = {**GOOD, "keep_max grad_norm": (0.0012, 0.08)}
    decision = decide(tmp_path, losses, types=("l2_error", "grad_norm"))
    (told,) = freed_from_choice(decision)
    assert told in which(decision)
    assert re.search(r"\+0\.\d\d points against a random subset and -0\.1\d points against all of the data", told)
    assert numbers(decision)["gain"] == {
        "over_random": pytest.approx(0.009, abs=0.001), "over_full": pytest.approx(-0.001, abs=0.0005), "worth": True,
    }  # fmt: skip
    assert freed_from_choice(decide(tmp_path / "b")) == [], "of one arm there is no choice"
    assert "worth having (said falsely with a chance of at most 2.5 %)" in " ".join(which(decision))


def test_before_anything_is_trained_there_is_a_bound():
    told = bound(359, 0.5, 1)
    assert "no margin below 1.02 points can be shown, and 0.5 was asked for" in told
    assert "no margin below 1.21 points" in bound(359, 0.5, 2), "arms share the chance"
    assert "differ on at most 2.4 % of the test examples" in bound(10_000, 0.5, 1)
    assert "at most 1e+02 %" in bound(10_000, 40, 1) or "at most 100 %" in bound(10_000, 40, 1)


# --- whether more runs are asked for ----------------------------------------------------------


def test_no_more_runs_are_asked_for_when_the_verdict_stands(tmp_path):
    assert next_runs(decide(tmp_path / "a"), 30) == (None, next_runs(decide(tmp_path / "a2"), 30)[1])
    lost = {"keep_max l2_error": (0.02, 0.08), "random": (0.02, 0.05)}
    runs, told = next_runs(decide(tmp_path / "b", lost), 30)
    assert runs is None
    assert told.endswith("The verdict stands.")
    assert told.startswith("Looked at with 5 runs a subset: Nothing can be dropped")


def test_no_more_runs_are_asked_for_where_the_test_set_is_the_limit(tmp_path):
    close = {"keep_max l2_error": (0.00003, 0.08), "random": (0.00003, 0.05)}  # 3 of 100,000 examples
    runs, told = next_runs(decide(tmp_path, close, margin=0.003), 30)
    assert runs is None
    assert told.endswith("The test set is the limit: more runs would not decide it.")


def test_half_as_many_more_are_asked_for_until_there_are_the_most(tmp_path):
    decision = decide(tmp_path, margin=0.1)  # what is lost is 0.1 points
    assert decision.verdicts.open
    assert next_runs(decision, 30)[0] == 8
    assert next_runs(decision, 6)[0] == 6
    runs, told = next_runs(decision, 5)
    assert runs is None
    assert told.endswith("There are 5 runs a subset, the most that were planned.")
    seen = [3]
    while seen[-1] < 30:
        seen.append(min(30, -(-3 * seen[-1] // 2)))
    assert seen == [3, 5, 8, 12, 18, 27, 30], "as benchmarks/decision.py simulates"


@pytest.mark.parametrize(
    ("given", "complaint"),
    [
        ({"eval_runs": 5, "max_eval_runs": 9}, "max_eval_runs=9 is used with eval_runs=auto only"),
        ({"eval_runs": None, "max_eval_runs": 2}, "max_eval_runs=2: expected"),
        ({"eval_runs": 0}, "eval_runs=0"),
    ],
)
def test_numbers_of_runs_that_cannot_be_are_refused(given, complaint):
    with pytest.raises(UserError, match=complaint):
        check_names(Plan(**given))


def test_a_round_has_the_runs_of_those_before_and_more():
    config = TrainConfig(dataset="digits", model="mlp", width=16, num_steps=44, augment=False)
    plan = Plan(score_runs=1, eval_runs=None, score_types=("l2_error",), fractions=(0.5,))
    first, more = (compile_study(plan, config, "s", LAYOUT, 1438, runs) for runs in (None, 5))
    assert [len(cell.jobs) for cell in first.cells] == [3, 3, 3]
    assert [job.name for job in first.jobs] == [job.name for job in more.jobs if job in first.jobs]
    assert len(more.jobs) == len(first.jobs) + 3 * 2
    assert first._plan()["eval_runs"] == "auto"
    assert first._plan()["max_eval_runs"] == 30
    assert "max_eval_runs" not in compile_study(replace(plan, eval_runs=5), config, "s", LAYOUT, 1438)._plan()


def test_looks_of_other_trainings_do_not_count_and_those_that_were_not_noted_do(tmp_path):
    exps = studies.write_study(tmp_path, GOOD)
    record = StudyRecord.read(exps / "demo/study.json")
    assert looks_before(exps / "demo", record) == [], "nobody has looked"
    (exps / "demo/statistics.json").write_text("{}")
    (look,) = looks_before(exps / "demo", record)
    assert (look.runs, look.planned, look.margin) == (5, 5, 0.5)
    assert looks_before(exps / "demo", replace(record, plan=record.plan | {"num_steps": 200})) == []
    assert looks_before(exps / "demo", replace(record, plan=record.plan | {"margin": 9.0, "eval_runs": 50}))
    old = record.plan | {"test_batch_size": 500, "data_dir": "a", "cutoff": 0.1, "features_step": 4}
    replace(record, plan=old).write(exps / "demo/study.json")
    for name, value in {"test_batch_size": 200, "data_dir": "b", "cutoff": 0.2, "features_step": 8}.items():
        others = replace(record, plan=old | {name: value})
        assert looks_before(exps / "demo", others) == [look], f"{name}: runs on all of the data are taken as they are"
    (exps / "demo/study.json").write_text("{}")
    with pytest.raises(UserError, match="how often this study was looked at"):
        looks_before(exps / "demo", record)


# --- whole studies ----------------------------------------------------------------------------


def test_auto_stops_where_the_test_set_is_the_limit_and_who_extends_it_pays(tmp_path, no_pictures):
    done = datadiet("study", tmp_path, eval_runs="auto", margin=0.1, **TINY)
    assert "no margin below 1.21 points can be shown, and 0.1 was asked for" in line(done, "A bound")
    assert line(done, "Looked at with 3 runs").endswith("The test set is the limit: more runs would not decide it.")
    assert [len(cell.runs) for cell in StudyRecord.read(tmp_path / "exps/s/study.json").cells] == [3, 3, 3]
    assert reachable(Decision(read_study(tmp_path / "exps", "s"), 0.1).nearest) in done.stdout + done.stderr
    done = datadiet("study", tmp_path, eval_runs=4, margin=0.1, **TINY)
    assert line(done, "By 3 runs of 2 of 2 subsets, which are finished: Where nothing is lost, this test set")
    record = StudyRecord.read(tmp_path / "exps/s/study.json")
    assert [(look.runs, look.planned) for look in record.looks] == [(3, 30), (4, 30)]
    assert "looked at with 3 and 4 runs a subset, of 30 planned" in (tmp_path / "exps/s/report.html").read_text()
    done = datadiet("study", tmp_path, expect=2, eval_runs=2, **TINY)
    assert "eval_runs=2: 2 runs, of a study that was looked at with 4" in " ".join(done.stderr.split())


def test_auto_ends_the_same_when_it_was_stopped_between_rounds(tmp_path, no_pictures, monkeypatch):
    monkeypatch.setattr(rounds, "next_runs", lambda decision, most: (4, "on to 4") if len(
        decision.study.full.paths) == 3 else (None, "The verdict stands."))  # fmt: skip
    auto = TINY | {"eval_runs": "auto", "max_eval_runs": 9, "margin": 60}
    for folder in ("whole", "again"):
        (tmp_path / folder).mkdir()
    done = datadiet("study", tmp_path / "whole", **auto)
    assert line(done, "on to 4")
    begin = Rounds.jobs

    def stopped(self, runs, before):
        made = begin(self, runs, before)
        if before:
            raise Interrupted("stopped")
        return made

    with monkeypatch.context() as patch:
        patch.setattr(Rounds, "jobs", stopped)
        datadiet("study", tmp_path / "again", expect=75, **auto)
    assert [len(cell.runs) for cell in StudyRecord.read(tmp_path / "again/exps/s/study.json").cells] == [4] * 3
    datadiet("study", tmp_path / "again", **auto)
    one, other = tables(tmp_path / "whole", "s"), tables(tmp_path / "again", "s")
    assert [name for name in one | other if one.get(name) != other.get(name)] == []
    record = StudyRecord.read(tmp_path / "again/exps/s/study.json")
    assert [(look.runs, look.planned, look.margin) for look in record.looks] == [(3, 9, 60.0), (4, 9, 60.0)]
    assert record.plan["eval_runs"] == "auto"
    before = tables(tmp_path / "again", "s")
    datadiet("study", tmp_path / "again", **auto)
    assert tables(tmp_path / "again", "s") == before, "the same again changes nothing"
    (run,) = (r for r in mlflow.search_runs(experiment_names=["datadiet"], output_format="list")
              if r.data.tags["datadiet.kind"] == "study")  # fmt: skip
    found = mlflow.MlflowClient().get_metric_history(run.info.run_id, "look/kept_fraction")
    assert [metric.step for metric in found] == [3, 4]
    assert "eval_runs=auto -P max_eval_runs=9" in (tmp_path / "again/exps/s/report.html").read_text()
