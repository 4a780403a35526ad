"""A size is a number of examples, or a fraction of all of them, and never one taken for the other."""

from __future__ import annotations

import json

import numpy as np
import pytest
from conftest import datadiet

import datadiet as dd
from datadiet import config as options
from datadiet.config import TrainConfig
from datadiet.errors import UserError
from datadiet.option import amount
from datadiet.study.plan import Plan, sizes


@pytest.mark.parametrize(
    ("text", "number"),
    [("1", 1), ("900", 900), ("0.5", 500), ("50%", 500), (" 50 % ", 500), (".5", 500), ("5e-1", 500), ("33.3%", 333),
     ("0.1%", 1), ("0.9999", 1000), ("0.0025", 2), ("0.0035", 4), ("99.9%", 999)],
)  # fmt: skip
def test_a_fraction_is_resolved_to_the_nearest_number_of_examples(text, number):
    resolved = options.resolve(TrainConfig(selector="random", size=amount(text)), 1000)
    assert (resolved.size, type(resolved.size)) == (number, int)
    assert options.from_dict(json.loads(json.dumps(options.as_dict(resolved)))) == resolved


@pytest.mark.parametrize("size", [1.0, 0, 0.0, 1.5, -0.5, float("nan"), float("inf"), 0.0004, "0.5"])
def test_what_is_neither_is_refused_by_name(size):
    with pytest.raises(UserError, match="size=.*: expected at least 1|size=.*: expected a fraction"):
        options.resolve(TrainConfig(selector="random", size=size), 1000)


@pytest.mark.parametrize("share", [0.9, 0.7, 0.5, 0.35, 0.3, 0.1, 1 / 3, 0.0007])
@pytest.mark.parametrize("count", [1438, 1797, 50_000, 59_999])
def test_a_size_is_rounded_as_the_fractions_of_a_study_are(share, count):
    assert [options.number_kept(share, count)] == sizes(Plan(fractions=(share,)), count)
    assert options.number_kept(amount(f"{100 * share!r}%"), count) == round(amount(f"{100 * share!r}%") * count)


def test_python_selects_a_fraction_too():
    values = np.arange(11.0)
    assert dd.select("keep_max", values, size=0.25).tolist() == dd.select("keep_max", values, size=3).tolist()
    assert dd.select("keep_max", values, size=1).tolist() == [10]
    for same in ("25%", "0.25", "3", np.float32(0.25)):
        assert dd.select("keep_max", values, size=same).tolist() == [8, 9, 10]
    for none in (1.0, "100%", "half", np.float32(1.5), None):
        with pytest.raises(UserError, match=f"size={none}: expected a fraction"):
            dd.select("keep_max", values, size=none)


@pytest.mark.parametrize("text", ["50%", "0.5", "719"])
def test_folder_and_record_show_the_number(tmp_path, text):
    done = datadiet("select", tmp_path, dataset="digits", selector="random", size=text, offline="true")
    path = tmp_path / "exps/select/size_719.random/run_0/kept.csv"
    assert str(path.relative_to(tmp_path)) in done.output
    assert len(path.read_text().splitlines()) == 720
    assert json.loads(path.with_suffix(".json").read_text())["size"] == 719


@pytest.mark.parametrize("text", ["1.0", "0", "150%", "0.0", "100%", "-1", "-50%", "half", "%", "0,5", "1e3"])
def test_the_command_line_names_what_it_refuses(tmp_path, text):
    done = datadiet("select", tmp_path, expect=2, dataset="digits", selector="random", size=text)
    assert f"size={text}: expected at least 1 example to keep, or a fraction of all (above 0, below 1)" in done.output
    assert not (tmp_path / "exps").exists()
