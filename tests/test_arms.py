"""What a reviewer asks to compare with: random subsets of the same classes, and examples chosen anew in each epoch."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import studies
from conftest import datadiet

from datadiet.config import TrainConfig, saved_steps
from datadiet.data.registry import load_dataset
from datadiet.errors import UserError
from datadiet.report.decision import Decision
from datadiet.report.given import read_study
from datadiet.report.page import numbers
from datadiet.report.price import price
from datadiet.report.text import headline, which
from datadiet.storage.files import read_json
from datadiet.storage.layout import ExperimentLayout
from datadiet.storage.manifests import manifest_ids
from datadiet.study.plan import Plan
from datadiet.study.spec import TrainJob, compile_study

GIVEN = TrainConfig(dataset="digits", model="mlp", width=16, num_steps=44, augment=False)
LAYOUT = ExperimentLayout(Path("root"))
PLAN = Plan(
    score_runs=2, eval_runs=2, score_types=("l2_error", "forget"), fractions=(0.5, 0.3),
    selectors=("keep_max", "random:like=keep_max", "rs2", "rs2:replacement=true", "infobatch"),
)  # fmt: skip


# --- what is made -----------------------------------------------------------------------------


def test_every_arm_that_is_meant_gets_a_random_one_like_it_which_waits_for_it_run_by_run():
    spec = compile_study(PLAN, GIVEN, "s", LAYOUT, 1438)
    assert [cell.arm.name for cell in spec.cells if cell.fraction > 0.4] == [
        "full data", "keep_max l2_error", "keep_max forget", "rs2", "rs2 replacement True", "infobatch",
        "random like keep_max l2_error", "random like keep_max forget", "random",
    ]  # fmt: skip
    cells = {(cell.arm.name, cell.size): cell for cell in spec.cells}
    for size in (719, 431):
        for kind in ("l2_error", "forget"):
            like, kept = cells[f"random like keep_max {kind}", size], cells[f"keep_max {kind}", size]
            for job, other in zip(like.jobs, kept.jobs, strict=True):
                assert job.after == (other.name,)
                assert job.config.like == f"root/exps/{other.name}/kept.csv"
                assert (job.config.selector, job.config.scores, job.config.run) == ("random", None, other.config.run)
    names = [job.name for job in spec.jobs]
    assert len(set(names)) == len(names)
    for position, job in enumerate(spec.jobs):
        assert set(job.after) <= set(names[:position])


def test_arms_that_choose_anew_have_the_steps_of_the_others():
    for budget in ("iterations", "epochs"):
        spec = compile_study(PLAN, replace(GIVEN, budget=budget), "s", LAYOUT, 1438)
        jobs = [job for job in spec.jobs if isinstance(job, TrainJob) and job.config.size == 431]
        assert {job.config.num_steps for job in jobs} == {44 if budget == "iterations" else 13}
        assert len({job.cost for job in jobs}) == 1
        assert {job.config.selector for job in jobs} == {"keep_max", "random", "rs2", "infobatch"}
        assert not {job.after for job in jobs if job.config.selector in ("rs2", "infobatch")} - {()}


@pytest.mark.parametrize(
    ("selectors", "message"),
    [
        (("random:like=keep_max",), "random:like=keep_max: expected an arm, or its first words; there are: none"),
        (("keep_max", "random:like=keep"), "there are: keep_max l2_error, keep_max forget"),
        (("rs2", "random:like=rs2"), "there are: none"),
        (("keep_max", "random:like=random"), "there are: keep_max l2_error"),
        (("keep_max", "keep_max:like=keep_max"), "got 'like=keep_max', expected option=value with one of balance"),
        (("rs2", "rs2:replacement=false"), "rs2 and rs2:replacement=false are the same"),
        (("rs2:balance=equal",), "got 'balance=equal', expected option=value with one of replacement"),
        (("rs2:replacement=maybe",), "got 'replacement=maybe', expected one of type bool"),
        (("infobatch:full_from=2",), "full_from=2.0: expected a finite number from 0 to 1"),
    ],
)
def test_arms_that_cannot_be_are_refused(selectors, message):
    with pytest.raises(UserError, match=message):
        compile_study(replace(PLAN, selectors=selectors), GIVEN, "s", LAYOUT, 1438)


# --- a study of all ---------------------------------------------------------------------------


@pytest.fixture(scope="module")
def done(tmp_path_factory, no_pictures) -> Path:
    """exps of a study with all three arms, and equal epochs."""
    root = tmp_path_factory.mktemp("arms")
    datadiet(
        "study", root, exp="s", dataset="digits", model="mlp", width=16, num_steps=66, augment="false", workers=1,
        score_runs=1, eval_runs=2, score_types="l2_error", fractions=0.5, budget="epochs", margin=30,
        selectors="keep_max,random:like=keep_max,rs2,infobatch",
    )  # fmt: skip
    return root / "exps"


def test_a_random_arm_keeps_as_many_of_each_class_as_the_one_it_is_like_and_others_of_them(done):
    digits = load_dataset("digits")
    for run in (1, 2):
        like, kept = (
            manifest_ids(done / f"s/{arm}/run_{run}/kept.csv", digits)
            for arm in ("random.like.keep_max_l2_error/size_719.like", "keep_max.l2_error.6/size_719")
        )
        counts = [np.bincount(digits.train_labels[ids], minlength=10).tolist() for ids in (like, kept)]
        assert counts[0] == counts[1]
        assert len(set(like) & set(kept)) < 0.9 * len(kept)


def test_all_arms_are_in_the_table_the_report_and_the_decision(done):
    names = ["random", "random like keep_max l2_error", "rs2", "infobatch", "keep_max l2_error"]
    described = read_json(done / "s/statistics.json")
    assert {cell["arm"] for cell in described["cells"]} == {*names, "full data"}
    assert all(cell["verdict"] for cell in described["cells"] if cell["arm"] != "full data")
    page = (done / "s/report.html").read_text()
    assert all(name in page for name in names)
    scored_by = [line.split(",")[2] for line in (done / "s/results.csv").read_text().splitlines()[1:]]
    assert {by: scored_by.count(by) for by in scored_by} == {
        "full data": 3, "l2_error": 2, "random (like l2_error)": 2, "rs2": 2, "infobatch": 2, "random": 2,
    }  # fmt: skip
    kept = {path.name for path in (done / "s/kept").iterdir()}
    assert "random_like_keep_max_l2_error_719.csv" in kept
    assert not any(name.startswith(("rs2", "infobatch")) for name in kept), "they keep no set"


def test_what_each_arm_costs_is_an_entry(done):
    cost = read_json(done / "s/statistics.json")["cost"]
    arms = {one["arm"]: one for one in cost["arms"]}
    assert {one["steps"] for arm, one in arms.items() if arm != "full data"} == {33}
    assert arms["full data"]["steps"] == 66
    assert all(one["rate"] > 0 and one["subset_training"]["mean"] > 0 for one in arms.values())
    assert arms["rs2"]["saved"]["examples"] == arms["infobatch"]["saved"]["examples"] == 0
    assert arms["keep_max l2_error"]["saved"]["examples"] == 719
    assert [arm for arm, one in arms.items() if one["saved"]["labels"]] == ["random"]
    assert arms["random like keep_max l2_error"]["train"] == arms["keep_max l2_error"]["train"] > 0
    study = cost["study"]
    assert study["total"] == pytest.approx(sum(study[part] for part in ("scored", "score", "judged", "select")))


def test_a_training_can_be_like_a_file_of_kept_examples(done, tmp_path):
    short = {"dataset": "digits", "model": "mlp", "width": 16, "num_steps": 2, "augment": "false", "offline": "true"}
    kept = done / "s/keep_max.l2_error.6/size_719/run_1/kept.csv"
    datadiet("random_subset", tmp_path, size=719, like=kept, **short)
    folder = tmp_path / "exps/random_subset/size_719.like/run_0"
    summary = read_json(folder / "summary.json")
    assert summary["scored_by"] == "random (like l2_error)"
    assert summary["kept_per_class"] == read_json(kept.with_name("summary.json"))["kept_per_class"]
    for more, message in (
        ({"like": "no.csv"}, "like=no.csv: no such file; expected a file of kept examples (kept.csv)"),
        ({"like": kept, "size": 700}, "size=700: like keeps 719 examples, and says how many of each class"),
        ({"like": kept, "balance": "equal"}, "balance=equal: like keeps 719 examples"),
    ):
        refused = datadiet("random_subset", tmp_path, 2, **{"size": 719, "run": 1} | short | more)
        assert message in " ".join(refused.stderr.split())
    refused = datadiet("subset", tmp_path, 2, selector="moderate", size=719, like=kept, **short)
    assert "is used by selector=random only" in " ".join(refused.stderr.split())
    assert [path.name for path in (tmp_path / "exps/random_subset").rglob("args.json")] == ["args.json"]


# --- what is concluded ------------------------------------------------------------------------


def decide(root: Path, losses: dict, margin: float = 0.5, **options) -> Decision:
    return Decision(read_study(studies.write_study(root, losses, **options), "demo"), margin)


def test_what_drops_nothing_is_never_what_may_be_dropped(tmp_path):
    losses = {"rs2": (0.0, 0.0), "keep_max l2_error": (0.001, 0.08), "random": (0.01, 0.05)}
    decision = decide(tmp_path, losses)
    assert headline(decision) == (
        "20 % of the training examples can be dropped: test accuracy falls by less than 0.5 points."
    )
    assert len(decision.verdicts.passed["rs2"]) == 2, "it is judged like the others"
    told = " ".join(price(decision))
    assert "rs2 drops nothing: each epoch takes other examples of all. With budget=iterations that takes" in told
    only = decide(tmp_path / "b", {"rs2": (0.0, 0.0), "random": (0.06, 0.08)})
    assert headline(only).startswith("Nothing can be dropped")
    equal = decide(tmp_path / "c", losses, budget="epochs")
    assert "rs2 does with 40 % of the steps, " in " ".join(price(equal))


def test_difficulty_is_told_apart_from_the_balance_of_classes(tmp_path):
    losses = {
        "keep_max l2_error": (0.001, 0.08), "random like keep_max l2_error": (0.004, 0.06), "random": (0.01, 0.05),
    }  # fmt: skip
    decision = decide(tmp_path, losses)
    told = " ".join(which(decision))
    assert "Against a random subset with as many of each class: +0.30 points" in told
    assert "that is what the choice within classes does" in told
    (one,) = (c for c in numbers(decision)["cells"] if (c["arm"], c["size"]) == ("keep_max l2_error", 1150))
    assert one["minus_like"]["mean"] == pytest.approx(0.003, abs=1e-4)


# --- what it costs ----------------------------------------------------------------------------


def test_labels_are_saved_by_a_random_choice_alone(tmp_path):
    losses = {"keep_max l2_error": (0.001, 0.08), "random": (0.01, 0.05)}
    text = " ".join(price(decide(tmp_path, losses)))
    assert "What is saved: 288 examples to store and to load (18.4 kB of 92 kB). Labels are not saved" in text
    text = " ".join(price(decide(tmp_path / "b", losses | {"random": (0.0005, 0.05)})))
    assert "288 examples to store and to load" in text
    assert "the labels of the others are saved too" in text


def test_energy_is_told_where_every_run_has_it(tmp_path):
    exps = studies.write_study(tmp_path, {"keep_max l2_error": (0.001, 0.08), "random": (0.01, 0.05)})
    assert "kJ" not in " ".join(price(Decision(read_study(exps, "demo"), 0.5)))
    for path in exps.rglob("summary.json"):
        studies.rewrite(path, joules=2500.0 if "full_data" in path.parts else 1500.0)
    told = " ".join(price(Decision(read_study(exps, "demo"), 0.5)))
    assert "It takes 1.5 kJ of the GPUs, 2.5 kJ on all of the data." in told


def test_a_study_saves_no_more_than_it_scores_where_that_is_asked_for():
    plan = replace(PLAN, every_checkpoint=False, score_types=("l2_error", "forget"))
    for given, saved in ((GIVEN, [0, 4, 44]), (replace(GIVEN, save_steps=22), [0, 22, 44])):
        spec = compile_study(plan, given, "s", LAYOUT, 1438)
        trained = [job for job in spec.jobs if isinstance(job, TrainJob)]
        assert {tuple(saved_steps(job.config)) for job in trained if job.tags["role"] == "scoring"} == {tuple(saved)}
        judging = [job.config for job in trained if job.tags["role"] == "evaluation"]
        assert {(tuple(saved_steps(config)), config.trajectory) for config in judging} == {((), ())}
