"""Python without a shell: data, runs, studies and decisions show themselves; the tutorial works."""

from __future__ import annotations

import contextlib
import json
import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from conftest import PROJECT
from studies import FRACTIONS, RUNS, SCORE_RUNS, write_study

import datadiet as dd
from datadiet.report.kept_sets import COLUMNS
from datadiet.report.pictures import FIGURES

LOSSES = {"keep_max l2_error": (0.0, 0.02), "random": (0.01, 0.03)}


@pytest.fixture(scope="module")
def exps(tmp_path_factory) -> Path:
    return write_study(tmp_path_factory.mktemp("frames"), LOSSES)


@pytest.fixture(scope="module")
def opened(exps) -> dd.Study:
    return dd.Study.open(exps / "demo")


def test_data_shows_itself_in_one_line_and_its_images_in_a_notebook():
    digits = dd.load_dataset("digits")
    assert repr(digits).startswith("Dataset(name: digits, training: 1,438, test: 359, shape: 8x8x1, classes: 10 (0, 1,")
    assert "\n" not in repr(digits)
    assert digits._repr_html_().count("<img ") == 3 * 10


def test_text_of_users_is_no_markup_in_a_notebook():
    images = np.random.default_rng(0).integers(0, 256, (8, 4, 4, 3)).astype(np.uint8)
    mine = dd.dataset_from((images, np.arange(8) % 2), (images, np.arange(8) % 2))
    object.__setattr__(mine, "class_names", ("<script>alert(1)</script>", '"><b>'))
    page = mine._repr_html_()
    assert "<script" not in page
    assert '"><b>' not in page
    assert "&lt;script&gt;" in page


def test_a_run_shows_what_it_is_and_how_it_ended(exps):
    run = dd.open_run(exps / "demo/keep_max.l2_error/size_1150/run_4")
    assert "trained on: 1,150 examples by keep_max" in repr(run)
    assert "test accuracy: 0.9" in repr(run)
    assert "1,150 examples by keep_max" in run._repr_html_()


def test_frames_have_a_row_for_each_run_cell_and_example(opened):
    cells = 1 + len(LOSSES) * len(FRACTIONS)
    assert len(opened.runs) == SCORE_RUNS + cells * RUNS
    assert opened.runs.test_acc.between(0, 1).all()
    assert len(opened.cells) == cells
    best = opened.cells[(opened.cells.arm == "keep_max l2_error") & (opened.cells.fraction > 0.7)].iloc[0]
    of_it = opened.runs[(opened.runs.arm == best.arm) & (opened.runs.fraction == best.fraction)]
    assert best.accuracy == pytest.approx(of_it.test_acc.mean())
    assert best.low < best.difference < best.high
    assert list(opened.scores.columns) == ["l2_error", "l2_error stderr"]
    assert list(opened.scores.index) == dd.load_dataset("digits").example_ids.tolist()


def test_the_decision_is_that_of_the_report(opened):
    decision = opened.decision
    assert (decision.kept_fraction, decision.arm) == (pytest.approx(0.8, abs=1e-3), "keep_max l2_error")
    assert repr(decision) == decision.sentence == decision.facts["sentence"]
    assert decision.sentence in opened._repr_html_()
    assert "<img " in opened._repr_html_()
    assert decision.sentence in repr(opened)
    assert "20 % of the training examples can be dropped" in decision._repr_html_()


def test_a_decision_of_ones_own_results_shows_itself():
    right = np.random.default_rng(0).random((3, 400)) < 0.9
    decided = dd.decide({("full data", 1.0): right, ("<mine>", 0.5): right, ("random", 0.5): right}, margin=0.3)
    assert repr(decided).startswith("Verdicts(answer: can, keep: 50% by ")
    assert "margin: 30 points" in repr(decided)
    assert "&lt;mine&gt; at 0.5" in decided._repr_html_()


def test_a_kept_set_is_the_table_of_its_subset(opened):
    table = opened.kept(0.4)
    assert tuple(table.columns) == COLUMNS
    assert table.kept.sum() == round(0.4 * 1438)
    hardest = table.sort_values("rank")
    assert hardest.kept.iloc[: table.kept.sum()].all(), "the largest scores"
    assert opened.kept().kept.sum() == round(0.8 * 1438)
    assert opened.kept(0.4, "random").kept.sum() == table.kept.sum()
    with pytest.raises(dd.UserError, match=r"no subset any arm at 0.5; there is: keep_max l2_error at 0.7997"):
        opened.kept(0.5)


def test_a_figure_is_one_of_the_report(opened):
    assert set(opened.figures) <= set(FIGURES)
    assert opened.figure("accuracy").axes
    with pytest.raises(dd.UserError, match="expected one of accuracy"):
        opened.figure("acuracy")


def test_a_study_opens_from_wherever_it_lies(exps, monkeypatch):
    monkeypatch.chdir(exps.parent)
    assert dd.Study.open("exps/demo").decision.arm == "keep_max l2_error"
    monkeypatch.chdir(exps / "demo")
    assert len(dd.Study.open(".").cells) == 5
    with pytest.raises(dd.UserError, match="holds no study"):
        dd.Study.open(exps)


def test_an_image_size_may_be_a_number(tmp_path):
    with pytest.raises(dd.UserError, match="folder:none: no folder"):
        dd.study("folder:none", root=tmp_path, offline=True, image_size=16, test_fraction=0.2)


def test_a_misspelt_option_is_named(tmp_path):
    with pytest.raises(dd.UserError, match="'fraction' is no option of a study. Did you mean fractions"):
        dd.study("digits", root=tmp_path, fraction=0.5)


# --- the tutorial -----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def tutorial(tmp_path_factory) -> dict:
    """What the cells of the tutorial leave, called one after the other in this process; by number what each shows."""
    book = json.loads((PROJECT / "docs/tutorial.ipynb").read_text())
    names: dict = {}
    shown = names.setdefault("shown", [])
    with contextlib.chdir(tmp_path_factory.mktemp("tutorial")):
        for cell in book["cells"]:
            if cell["cell_type"] != "code":
                continue
            *before, last = re.split(r"\n(?=\S)", "".join(cell["source"]))
            try:
                value = compile(last, "cell", "eval")
            except SyntaxError:
                exec("\n".join([*before, last]), names)
                continue
            exec("\n".join(before), names)
            shown.append(eval(value, names))
    return names


def test_the_tutorial_goes_from_data_to_a_kept_set(tutorial):
    kinds = [type(one).__name__ for one in tutorial["shown"]]
    assert kinds == [
        "Dataset", "Study", "Answer", "DataFrame", "Figure", "DataFrame", "Figure", "DataFrame", "StoredRun",
    ]  # fmt: skip
    kept = tutorial["kept"]
    assert isinstance(kept, pd.DataFrame)
    assert kept.kept.sum() == round(0.7 * 1438)


def test_a_study_from_python_is_that_of_the_command(tutorial):
    study = tutorial["study"]
    assert len(study.runs) == 2 + 3 * 5
    assert study.cells.fraction.tolist()[0] == 1
    assert study.decision.margin == 3


def test_the_tutorial_is_stored_without_what_it_shows():
    book = json.loads((PROJECT / "docs/tutorial.ipynb").read_text())
    assert all(not cell.get("outputs") and not cell.get("execution_count") for cell in book["cells"])
