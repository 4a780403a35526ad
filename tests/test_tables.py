"""Tables hold every text of a user as it was, and nothing in them is obeyed by what reads or shows them."""

from __future__ import annotations

import csv
import dataclasses
import io
import random

import numpy as np
import pandas as pd
import pytest
import studies

from datadiet.data.registry import load_dataset
from datadiet.errors import UserError
from datadiet.printable import UNSEEN, escaped, printable, unescaped
from datadiet.report import evidence
from datadiet.report.page import read_decision, write_report
from datadiet.storage.manifests import manifest_ids, manifest_text, write_manifest
from datadiet.storage.tables import csv_text, read_csv

NAMES = [
    "Pepper,_bell", 'a "quote"', "two\nlines", "NA", "null", "nan", "", "007", "=1+1", "+1", "-1", "@x", "'=1", "''-",
    "\t=1", "\r", "\x1b[31m", "\x9b1m", "\u202egpj", "\udcff", r"\x0a", r"a\b", r"\x5cx0a", "$x$", "日本", " lead", "'",
]  # fmt: skip


def test_every_text_comes_back_and_no_cell_is_a_formula_or_a_control_character(tmp_path):
    draw = random.Random(0)
    names = NAMES + ["".join(draw.choices("'=+-@\\x05cu\n\t, \"ab", k=6)) for _ in range(500)]
    text = csv_text(("example_id", "score"), ((name, -0.5) for name in names))
    assert UNSEEN.sub("", text) == text.replace("\n", "")
    cells = [row[0] for row in csv.reader(io.StringIO(text), strict=True)]
    assert len(cells) == 1 + len(names)
    assert not [cell for cell in cells if cell[:1] in tuple("=+-@\t\r")]
    (tmp_path / "t.csv").write_text(text)
    assert [row["example_id"] for row in read_csv(tmp_path / "t.csv", "example_id")] == names
    assert {row["score"] for row in read_csv(tmp_path / "t.csv")} == {"-0.5"}
    found = pd.read_csv(tmp_path / "t.csv", keep_default_na=False, dtype={"example_id": str})
    assert found["example_id"].tolist() == cells[1:], "others read the same cells"
    assert [unescaped(escaped(name)) for name in names] == names
    assert printable("a\nb\x1b[2J\u2028") == "a\nb\\x1b[2J\\u2028"


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("id,score\n1,2\n", "expected a csv file with a column example_id; got id, score"),
        ("example_id,example_id\n1,2\n", "which has not one example_id"),
        ("example_id,score\n1,2\n3\n", "line 3 has 1 cells; expected 2"),
        ("example_id,score\n1,2,3\n", "line 2 has 3 cells"),
        ('example_id\n"1\n', "expected a csv file"),
        ("", "got nothing"),
        ("example_id,kept\n1,maybe\n", "kept='maybe' of '1'; expected true, false, 1 or 0"),
        ("example_id,kept\n1,False\n", "keeps no example"),
        ("example_id,kept_order\n1,first\n", "kept_order counts"),
    ],
)
def test_what_is_no_table_of_kept_examples_is_refused_by_line(tmp_path, text, complaint):
    (tmp_path / "kept.csv").write_text(text)
    with pytest.raises(UserError, match=complaint):
        manifest_ids(tmp_path / "kept.csv", load_dataset("digits"))


@pytest.fixture(scope="module")
def named():
    """digits, its examples and classes with names as users have them."""
    digits = load_dataset("digits")
    whole = [name for name in NAMES if name.isprintable() or name.isascii()]  # data sets have no halves of characters
    ids = [f"{whole[i % len(whole)]}{i // len(whole)}" for i in range(digits.num_examples)]
    return dataclasses.replace(digits, example_ids=np.array(ids))


def test_a_manifest_names_examples_whatever_they_are_called(tmp_path, named):
    kept = np.random.RandomState(0).permutation(named.num_examples)[:300].astype(np.int32)
    write_manifest(tmp_path / "kept.csv", named, kept, None, {}, "random")
    np.testing.assert_array_equal(manifest_ids(tmp_path / "kept.csv", named), kept)


@pytest.mark.parametrize("written", ["as it is", "by a spreadsheet", "as numbers"])
def test_the_kept_rows_of_a_table_are_a_manifest(tmp_path, written):
    digits = load_dataset("digits")
    kept = np.random.RandomState(0).rand(digits.num_examples) < 0.3
    table = pd.DataFrame({"example_id": digits.example_ids, "index": np.arange(len(kept)), "kept": kept})
    if written == "as numbers":
        table["kept"] = table["kept"].astype(int)
    text = table.to_csv(index=False)
    if written == "by a spreadsheet":
        text = "\ufeff" + text.replace("True", "TRUE").replace("False", "FALSE").replace("\n", "\r\n")
    (tmp_path / "t.csv").write_text(text, newline="")
    np.testing.assert_array_equal(manifest_ids(tmp_path / "t.csv", digits), np.flatnonzero(kept))


@pytest.mark.filterwarnings("error")
def test_a_study_reports_whatever_examples_and_classes_are_called(tmp_path, named, monkeypatch):
    """Nothing warns either: no glyph is missing, no layout fails, no name is taken for a formula."""
    names = ["$x_1$", "a$b", r"\$\frac{", "<b>", "日本語", "x" * 150, *NAMES[:4]]  # 10
    named = dataclasses.replace(named, class_names=tuple(names))
    monkeypatch.setattr(evidence, "dataset_of", lambda *_: named)
    exps = studies.write_study(tmp_path, {"keep_max l2_error": (0.001, 0.08), "random": (0.01, 0.05)})
    for path in exps.rglob("kept.csv"):  # as a study of this data would have written them
        path.write_text(manifest_text(named, manifest_ids(path, load_dataset("digits")), None))
    written = write_report(read_decision(exps, "demo"))
    page = next(path for path in written if path.name == "report.html").read_text()
    assert "<b>" not in page.replace("&lt;b&gt;", "")
    table = next(path for path in written if path.suffix == ".csv")
    rows = read_csv(table, "example_id", "kept")
    assert [row["example_id"] for row in rows] == named.example_ids.tolist()
    assert len(manifest_ids(table, named)) == sum(row["kept"] == "True" for row in rows)
