"""The report of a study: decisions in words, one self-contained page, pictures and kept sets, from known numbers."""

from __future__ import annotations

import base64
import json
import math
import os
import sys
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import mlflow
import numpy as np
import pandas as pd
import pytest
import studies
from conftest import datadiet
from PIL import Image

from datadiet.data.registry import load_dataset
from datadiet.errors import UserError
from datadiet.report import kept_sets
from datadiet.report.cost import spent
from datadiet.report.decision import Decision, noise_audit
from datadiet.report.given import read_study
from datadiet.report.page import html, read_decision, write_report
from datadiet.report.price import price
from datadiet.report.text import headline, how_sure, table, warnings, which
from datadiet.storage.answers import digest, write_answers
from datadiet.storage.files import sealed, write_lines

GOOD = {"keep_max l2_error": (0.001, 0.08), "random": (0.01, 0.05)}


def decide(root: Path, losses=GOOD, margin: float = 0.5, **options) -> Decision:
    return Decision(read_study(studies.write_study(root, losses, **options), "demo"), margin)


def words(decision: Decision) -> str:
    parts = (which, how_sure, price, warnings)
    return "\n".join([headline(decision), *(line for part in parts for line in part(decision))])


@pytest.fixture(scope="module")
def noisy(tmp_path_factory) -> Path:
    """exps of a study with randomised labels and two scores, and its report."""
    root = tmp_path_factory.mktemp("noisy")
    losses = {**GOOD, "keep_max grad_norm": (0.02, 0.09)}
    exps = studies.write_study(root, losses, noise=0.1, types=("l2_error", "grad_norm"))
    write_report(read_decision(exps, "demo"))
    return exps


# --- what is read -----------------------------------------------------------------------------


hearers: list[Callable[[str, tuple], None]] = []  # an audit hook stays for ever: one for all


@sys.addaudithook
def _hear(event: str, given: tuple) -> None:
    for hear in hearers:
        hear(event, given)


def test_a_report_reads_each_file_of_the_mirror_at_most_once(tmp_path):
    losses = {**GOOD, "keep_max grad_norm": (0.02, 0.09)}
    exps = studies.write_study(tmp_path, losses, noise=0.1, types=("l2_error", "grad_norm", "forget"))
    opened: Counter[str] = Counter()

    def count(event: str, given: tuple) -> None:
        if event == "open" and isinstance(given[0], str | bytes | os.PathLike):
            path, written = os.fsdecode(given[0]), given[2] & (os.O_WRONLY | os.O_RDWR | os.O_DIRECTORY)
            if not written and Path(path).is_relative_to(exps) and not Path(path).is_dir():
                opened[Path(path).relative_to(exps).as_posix()] += 1

    hearers.append(count)
    try:
        write_report(read_decision(exps, "demo"))
    finally:
        hearers.remove(count)
    names = {Path(path).name for path in opened}
    assert names >= {"study.json", "args.json", "summary.json", "metrics.jsonl", "kept.csv", "ckpt_10.npy"}
    assert {path: times for path, times in opened.items() if times > 1} == {}


# --- the decision -----------------------------------------------------------------------------


def test_what_may_be_dropped_is_said_first(tmp_path):
    decision = decide(tmp_path)
    told = "20 % of the training examples can be dropped: test accuracy falls by less than 0.5 points."
    assert headline(decision) == told
    text = words(decision)
    assert "Keep the 1,150 examples of largest error vector length early in training (EL2N, step 10)." in text
    assert "95.30 % against 95.40 % with all of the data: -0.10 points (95 % interval -0." in text
    assert "the score is worth having" in text


def test_undecided_is_not_nothing_and_says_what_it_takes(tmp_path):
    decision = decide(tmp_path, margin=0.05)
    assert headline(decision) == "Not decided: what can be dropped while test accuracy falls by less than 0.05 points."
    assert decision.best is None
    text = words(decision)
    assert "The most accurate subset is the 1,150 examples" in text
    assert "As nothing can be dropped at this margin, nothing pays it back." in text
    assert "Neither is it shown that something may go, nor that nothing may." in text
    assert f"about {decision.nearest.runs_needed} evaluation runs a subset would show it" in text


def test_nothing_can_be_dropped_where_every_arm_is_shown_to_lose(tmp_path):
    decision = decide(tmp_path, {"keep_max l2_error": (0.02, 0.08), "random": (0.02, 0.05)})
    told = "Nothing can be dropped: every way to choose is shown to lose more than 0.5 points of test accuracy."
    assert headline(decision) == told
    assert {line.verdict for line in decision.lines[1:]} == {"worse"}
    assert "Neither" not in words(decision)


def test_one_run_has_an_interval_of_the_test_set_and_is_warned_of(tmp_path):
    decision = decide(tmp_path, runs=1, score_runs=1)
    lines = decision.lines[1:]
    assert all(line.minus_full and line.minus_full.known and line.accuracy.n == 1 for line in lines)
    text = words(decision)
    assert "One run does not tell how much whole runs shift" in text
    assert "Only 1 evaluation run per subset; take 5 or more." in text
    assert "comes from one run" in text


def test_runs_that_did_not_record_their_answers_give_wider_intervals(tmp_path):
    exps = studies.write_study(tmp_path, GOOD)
    one = Decision(read_study(exps, "demo"), 0.5).lines[1].minus_full
    for path in exps.rglob("summary.json"):
        values = json.loads(path.read_text())
        del values["test_correct_sha256"], values["num_test"]
        path.write_text(json.dumps(sealed(values)))
    untold = Decision(read_study(exps, "demo"), 0.5)
    other = untold.lines[1].minus_full
    assert one is not None
    assert other is not None
    assert other.high - other.low > 5 * (one.high - one.low), "digits has 359 test examples"
    assert headline(untold) == "Not decided: what can be dropped while test accuracy falls by less than 0.5 points."
    assert "These runs are of an earlier version" in words(untold)
    assert "The 359 test examples are the limit: where nothing is lost, they show margins of" in words(untold)


def test_damaged_answers_are_refused(tmp_path):
    exps = studies.write_study(tmp_path, GOOD)
    path = exps / "demo/random/size_575/run_6/test_correct.npy"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"run_6/test_correct.npy: not what was written there"):
        _ = Decision(read_study(exps, "demo"), 0.5).lines
    path.unlink()
    with pytest.raises(UserError, match=r"run_6/test_correct.npy cannot be read"):
        _ = Decision(read_study(exps, "demo"), 0.5).lines


def test_a_random_subset_is_recommended_where_no_score_is_better(tmp_path):
    decision = decide(tmp_path, {"keep_max l2_error": (0.001, 0.08), "random": (0.0005, 0.05)})
    assert decision.best is not None
    assert decision.best.cell.arm == "random"
    text = words(decision)
    assert "No score is needed" in text
    assert "A random choice costs nothing." in text


def test_the_correction_for_many_arms_is_told_where_it_matters(tmp_path):
    arms = {f"keep_max {kind}": (0.02, 0.08) for kind in ("grad_norm", "l1_error", "max_margin")}
    close = {"keep_max l2_error": (0.0045, 0.08), "random": (0.02, 0.05), **arms}
    types = ("l2_error", *(arm.split()[1] for arm in arms))
    decision = decide(tmp_path, close, types=types)
    low_arm = "keep_max l2_error"
    low = next(line for line in decision.lines if line.cell.arm == low_arm).minus_full
    assert low is not None
    margin = -100 * low.low + 0.001  # just enough for one arm
    told = Decision(decision.study, margin)
    assert headline(told).startswith("Not decided")
    assert "is at most 2.5 %, for 5 arms together" in words(told)
    alone = replace(
        decision.study.record, cells=[c for c in decision.study.record.cells if c.arm in ("full data", low_arm)]
    )
    assert headline(Decision(replace(decision.study, record=alone, _runs={}), margin)).startswith("20 %")


def test_cliffs_and_emptied_classes_are_warned_of(tmp_path):
    text = "\n".join(warnings(decide(tmp_path)))
    assert "Cliff: at 40 % kept, keep_max l2_error is worse than a random subset: -3.00 points" in text
    assert "Nearly emptied: keep_max l2_error at 80 %" in text
    assert "random at" not in text


def test_a_run_that_collapses_is_told(tmp_path):
    """Five points in one of ten runs, which a margin of 1.5 points lets pass."""
    exps = studies.write_study(tmp_path, {**GOOD, "random": (0.06, 0.08)}, runs=10)
    path = exps / "demo/keep_max.l2_error/size_1150/run_9"
    accuracy = json.loads((path / "summary.json").read_text())["test_acc"] - 0.05
    write_answers(path, np.arange(studies.NUM_TEST) < accuracy * studies.NUM_TEST)
    studies.rewrite(path / "summary.json", test_acc=accuracy, test_correct_sha256=digest(path))
    decision = Decision(read_study(exps, "demo"), 2.5)
    assert decision.best is not None
    assert "One of 10 runs on the recommended subset loses 5." in words(decision)
    assert "which the mean hides" not in words(
        Decision(read_study(studies.write_study(tmp_path / "b", GOOD), "demo"), 1.5)
    )


def test_an_unfair_opponent_is_told(tmp_path):
    text = words(decide(tmp_path))
    assert "The learning rate never decays within the 100 steps" in text
    assert "the largest class always" not in text
    better = decide(tmp_path / "b", {"keep_max l2_error": (-0.02, 0.08), "random": (0.01, 0.05)})
    assert "keep_max l2_error at 80 % is shown to be more accurate than all of the data" in words(better)
    exps = studies.write_study(tmp_path / "c", GOOD)
    for path in exps.rglob("metrics.jsonl"):
        lines = [json.loads(line) for line in path.read_text().splitlines()]
        write_lines(path, [{**line, "train_loss": 10 / line["step"]} for line in lines])
    studies.rewrite(exps / "demo/full_data/run_4/args.json", decay_steps=[50])
    falling = words(Decision(read_study(exps, "demo"), 0.5))
    assert "the training loss is still falling at the end (0.133 to 0.1 in the last report)" in falling
    assert "never decays" not in falling


def test_with_equal_steps_the_diet_never_pays_in_time(tmp_path):
    decision = decide(tmp_path)
    cost = decision.cost(decision.shown)
    steps = studies.STEP / studies.NUM_STEPS
    assert cost.train == pytest.approx(studies.SCORE_RUNS * studies.TRAIN_SECONDS * steps)
    assert cost.score == pytest.approx(studies.SCORE_RUNS * studies.SCORE_SECONDS)
    assert cost.pays_after is None
    assert "It never pays in training time" in words(decision)
    assert "is measured by budget=epochs, not here" in words(decision), "nothing is projected"


def test_with_equal_epochs_it_pays_after_as_many_trainings_as_are_said(tmp_path):
    decision = decide(tmp_path, budget="epochs")
    cost, whole = decision.cost(decision.shown), spent(decision.study)
    assert cost.pays_after == 3
    assert whole.scored == studies.SCORE_RUNS * studies.TRAIN_SECONDS
    assert whole.judged > 5 * studies.TRAIN_SECONDS
    assert cost.study_pays_after == math.ceil(whole.total / cost.saving.mean) > 60
    text = words(decision)
    assert f"the diet pays after 3 trainings, the whole study after {cost.study_pays_after} trainings" in text
    assert "Who decides this for the first time pays for the whole study, 7 min: 80 s for 4 networks that are" in text
    assert price(decision)[0].startswith("Choosing, 9 s in all")


def test_the_noise_audit_finds_the_changed_labels(noisy):
    study = read_study(noisy, "demo")
    audit = {row["score"]: row for row in noise_audit(study)}
    assert study.noise is not None
    assert audit["l2_error at 10"]["k"] == study.noise.changed.sum() > 100
    assert audit["l2_error at 10"]["auroc"] > 0.85
    assert audit["l2_error at 10"]["precision"] > 0.5
    assert abs(audit["input norm"]["auroc"] - 0.5) < 0.1
    assert audit["l2_error at 10"]["best_removed"] > 0.7
    assert noise_audit(read_study(studies.write_study(noisy.parent / "clean", GOOD), "demo")) == []


def test_an_unfinished_or_absent_study_is_refused_with_the_way_on(tmp_path):
    exps = studies.write_study(tmp_path, GOOD)
    (exps / "demo/random/size_575/run_6/summary.json").unlink()
    with pytest.raises(UserError, match=r"run_6 is not finished; the same study command continues it"):
        write_report(read_decision(exps, "demo"))
    with pytest.raises(UserError, match=r"there is: demo"):
        write_report(read_decision(exps, "other"))
    with pytest.raises(UserError, match="margin=0: expected percentage points"):
        read_decision(exps, "demo", margin=0)


def test_the_printed_table_is_in_per_cent(tmp_path):
    lines = table(decide(tmp_path)).splitlines()
    assert len(lines) == 2 + 2 * 2
    assert lines[1].split() == ["full", "data", "1,438", "100%", "95.40", "±", "0.32", "5"]
    scored = lines[2].split()
    assert scored[:4] == ["keep_max", "l2_error", "1,150", "80%"]
    assert scored[4:8] == ["95.30", "±", scored[6], "5"]
    assert scored[8:] == ["+0.90", "-0.10", "not", "worse"]
    assert lines[-1].split()[-2:] == ["-5.00", "worse"], "random has no difference to itself"


def test_seconds_that_were_not_recorded_are_no_zeros(tmp_path):
    exps = studies.write_study(tmp_path, GOOD, budget="epochs")
    for path in exps.rglob("ckpt_*.json"):
        record = json.loads(path.read_text())
        del record["seconds"]
        path.write_text(json.dumps(sealed(record)))
    decision = Decision(read_study(exps, "demo"), 0.5)
    cost = decision.cost(decision.shown)
    assert math.isnan(cost.score)
    assert not math.isnan(cost.train)
    assert (cost.pays_after, cost.recorded) == (None, False)
    assert "not recorded to score" in words(decision)
    assert "When it pays is not known" in words(decision)
    cells = html(decision, [], []).split('id="cost"')[1]
    assert "<td>not recorded</td>" in cells
    assert "not known" in cells
    for path in exps.rglob("metrics.jsonl"):
        lines = [json.loads(line) for line in path.read_text().splitlines()]
        write_lines(path, [{k: v for k, v in line.items() if k != "time/train_seconds"} for line in lines])
    assert "How long a training takes was not recorded" in words(Decision(read_study(exps, "demo"), 0.5))


# --- the page ---------------------------------------------------------------------------------


class Page(HTMLParser):
    """What a browser would fetch or run, and the parts of the page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.fetched, self.ids, self.tags, self.images, self.open = [], [], [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        values = dict(attrs)
        self.tags.append(tag)
        self.fetched += [values[k] for k in ("src", "href", "srcset", "action", "data", "poster") if k in values]
        self.ids += [values["id"]] if "id" in values else []
        self.images += [values] if tag == "img" else []
        if tag not in ("img", "meta", "br"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def test_the_page_is_whole_and_asks_for_nothing(noisy):
    text = (noisy / "demo/report.html").read_text()
    page = Page(text)
    assert not page.open
    assert all(source.startswith("data:image/png;base64,") for source in page.fetched)
    assert "url(" not in text
    assert "@import" not in text
    assert not {"script", "link", "iframe", "object"} & set(page.tags)
    assert not [word for word in ("http://", "https://") if word in text]
    pictures = ["accuracy", "training_curves", "kept_per_class", "score_histograms", "stability", "extremes"]
    assert [i for i in page.ids if i in pictures] == pictures
    assert {"decision", "sure", "accuracies", "scores", "noise", "classes", "cost", "repeat"} <= set(page.ids)
    assert all(image["alt"] for image in page.images)
    assert text.index("can be dropped") < text.index("<img") < text.index("mlflow run . -e study")
    assert 'name="viewport" content="width=device-width' in text


def test_the_page_shows_the_files_that_lie_beside_it(noisy):
    page = Page((noisy / "demo/report.html").read_text())
    files = sorted(path.read_bytes() for path in (noisy / "demo/figures").iterdir())
    assert sorted(base64.b64decode(i["src"].partition(",")[2]) for i in page.images) == files
    for path in (noisy / "demo/figures").iterdir():
        with Image.open(path) as picture:
            assert picture.width < 900, "readable on a phone only if it is not shrunk much"


def test_the_same_mirror_gives_the_same_bytes(noisy):
    files = [noisy / "demo/report.html", noisy / "demo/statistics.json"]
    files += [*(noisy / "demo/figures").iterdir(), *(noisy / "demo/kept").iterdir()]
    before = {path: path.read_bytes() for path in files}
    write_report(read_decision(noisy, "demo"))
    assert {path: path.read_bytes() for path in files} == before


def test_names_are_escaped(tmp_path):
    exps = studies.write_study(tmp_path, GOOD)
    studies.rewrite(exps / "demo/study.json", model="<script>alert(1)</script>")
    write_report(read_decision(exps, "demo"))
    text = (exps / "demo/report.html").read_text()
    assert "<script" not in text
    assert "&lt;script&gt;" in text


def test_the_numbers_of_the_page_are_a_file_too(noisy):
    found = json.loads((noisy / "demo/statistics.json").read_text())
    assert (found["margin"], found["arm"]) == (0.5, "keep_max l2_error")
    assert found["smallest_kept"]["random"] is None
    full = found["cells"][0]
    assert full["accuracy"]["mean"] == pytest.approx(studies.full_accuracies().mean())
    assert len(full["per_class"]) == studies.CLASSES
    assert sum(full["kept_per_class"]) == load_dataset("digits").num_examples


def test_without_the_data_set_a_report_is_made_and_says_what_is_missing(tmp_path):
    exps = studies.write_study(tmp_path, GOOD)
    studies.rewrite(exps / "demo/study.json", fingerprint="0" * 64)
    write_report(read_decision(exps, "demo"))
    text = (exps / "demo/report.html").read_text()
    assert "digits has changed since the study" in text
    assert "kept_per_class" in Page(text).ids
    assert not (exps / "demo/kept").exists()


# --- kept sets --------------------------------------------------------------------------------


def test_kept_tables_tell_every_example(noisy):
    study, digits = read_study(noisy, "demo"), load_dataset("digits")
    cell = study.cell("keep_max l2_error", 575)
    assert cell is not None
    table = pd.read_parquet(kept_sets.path_of(study, cell, "parquet"))
    assert list(table.columns) == [
        "example_id", "index", "label", "class", "split", "path", "score", "stderr", "rank", "kept",
    ]  # fmt: skip
    own = pd.read_csv(noisy / cell.paths[0] / "kept.csv")
    assert set(table.example_id[table.kept]) == set(own.example_id)
    assert (table["rank"] <= 575).equals(table.kept.astype("boolean"))
    np.testing.assert_array_equal(table["index"], np.arange(digits.num_examples))
    assert study.noise is not None
    np.testing.assert_array_equal(table.label, study.noise.labels)
    assert table["class"].tolist() == [str(label) for label in study.noise.labels]
    assert set(table.split) == {"train"}
    assert table.path.isna().all(), "no files"
    runs = studies.own_scores(digits, study.noise.labels, studies.SCORE_RUNS)
    np.testing.assert_allclose(table.score, runs.mean(axis=0), rtol=1e-5)
    np.testing.assert_allclose(table.stderr, runs.std(axis=0, ddof=1) / 2, rtol=1e-4)
    same = pd.read_csv(kept_sets.path_of(study, cell, "csv"), dtype={"class": str, "path": str})
    pd.testing.assert_frame_equal(same, table, check_dtype=False)


def test_a_random_subset_has_no_scores(noisy):
    table = pd.read_csv(noisy / "demo/kept/random_575.csv")
    assert table.kept.sum() == 575
    assert table[["score", "stderr", "rank"]].isna().all().all()


def test_pytorch_takes_a_kept_set(noisy):
    utils = pytest.importorskip("torch.utils.data")
    table = pd.read_csv(noisy / "demo/kept/keep_max_l2_error_575.csv")
    images = load_dataset("digits").train_images
    subset = utils.Subset(images, table.index[table.kept].tolist())
    assert len(subset) == 575
    np.testing.assert_array_equal(subset[7], images[table["index"][table.kept].iloc[7]])


# --- the entry point --------------------------------------------------------------------------


def test_the_entry_point_makes_it_again_and_logs_it(tmp_path):
    exps = studies.write_study(tmp_path, GOOD)
    done = datadiet("report", tmp_path, exp="demo", margin=0.05)
    assert "Not decided: what can be dropped while test accuracy falls by less than 0.05 points." in done.output
    assert "Another question than was planned: the study asked for a margin of 0.5 points" in done.output
    client = mlflow.MlflowClient(f"sqlite:///{tmp_path}/mlflow.db")
    experiment = client.get_experiment_by_name("datadiet")
    assert experiment is not None
    (run,) = client.search_runs([experiment.experiment_id])
    assert (run.data.tags["datadiet.kind"], run.data.params["cfg.margin"]) == ("report", "0.05")
    told = run.data.tags
    assert (told["datadiet.decision.answer"], told["datadiet.decision.arm"]) == ("not decided", "none")
    assert f"run_uuid={run.info.run_id}" in told["mlflow.note.content"]
    assert "    datadiet report --exp demo --margin 0.05" in told["mlflow.note.content"]
    assert run.data.metrics["decision/kept_fraction"] == 1.0
    assert {"decision/smallest_margin", "accuracy/random"} <= run.data.metrics.keys()
    names = {a.path for a in client.list_artifacts(run.info.run_id)}
    assert names == {"report.html", "statistics.json", "figures", "kept"}
    assert (exps / "demo/report.html").exists()
    done = datadiet("report", tmp_path, exp="none", expect=2)
    assert "there is: demo" in done.output
