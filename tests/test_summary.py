"""A decision in short: what a report begins with, what programs read, what MLflow shows; on every kind of paper."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace
from zipfile import ZipFile

import mlflow
import numpy as np
import pytest
import studies
from conftest import PROJECT, datadiet
from PIL import Image

from datadiet.errors import UserError
from datadiet.report import summary
from datadiet.report.archive import write_mirror
from datadiet.report.decision import Decision
from datadiet.report.given import read_study
from datadiet.report.page import html, read_decision, write_decision, write_report
from datadiet.report.pictures import pictures
from datadiet.report.text import headline, warnings
from datadiet.runs.context import Context, Output
from datadiet.scores.checkpoint import score_names
from datadiet.scores.logits import LOGIT_SCORES
from datadiet.scores.names import NAMES, names_of
from datadiet.scores.trajectory import TRAJECTORIES
from datadiet.storage.layout import ExperimentLayout
from datadiet.study.study import conclude

GOOD = {"keep_max l2_error": (0.001, 0.08), "random": (0.01, 0.05)}
HOSTILE = '<img src=x onerror=alert(1)>|[a](http://x.y)*b*_c_`d`"&amp;$x$\n# e'


@pytest.fixture(scope="module")
def exps(tmp_path_factory) -> Path:
    """Of a study with a report."""
    exps = studies.write_study(tmp_path_factory.mktemp("summary"), GOOD)
    write_report(read_decision(exps, "demo"))
    return exps


@pytest.fixture(scope="module")
def decision(exps) -> Decision:
    return read_decision(exps, "demo")


@pytest.fixture(scope="module")
def page(exps) -> str:
    return (exps / "demo/report.html").read_text()


def strict(text: str) -> dict:
    """JSON as the standard has it: neither NaN nor Infinity."""
    return json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))


# --- names ------------------------------------------------------------------------------------


def test_every_score_is_named_for_readers():
    assert set(NAMES) == {*score_names(), *TRAJECTORIES}
    for names in zip(*NAMES.values()):
        assert len(set(names)) == len(NAMES)
        assert not [name for name in names if "_" in name or len(name) > 50]
    assert NAMES["l2_error"].at(" early in training") == "error vector length early in training (EL2N)"


def test_a_score_from_elsewhere_is_called_by_its_type(monkeypatch, tmp_path):
    monkeypatch.setitem(LOGIT_SCORES, "squared_doubt", LOGIT_SCORES["loss"])
    assert names_of("squared_doubt").at("", "step 3") == "squared doubt (step 3)"
    losses = {"keep_max squared_doubt": (0.001, 0.08), "random": (0.01, 0.05)}
    found = read_decision(studies.write_study(tmp_path, losses, types=("squared_doubt",)), "demo")
    told = "Keep the 1,150 examples of largest squared doubt early in training (step 10)."
    assert told in html(found, [], [])
    assert found.study.short("keep_max squared_doubt") == "largest squared doubt"


def test_a_report_calls_scores_by_words_papers_and_commands(page, decision):
    assert "the 1,150 examples of largest error vector length early in training (EL2N, step 10)" in page
    assert "largest EL2N<br><small>keep_max l2_error</small>" in page
    assert decision.study.short("random like keep_max l2_error step 10") == "random like largest EL2N step 10"


# --- the first screen -------------------------------------------------------------------------


def first_screen(page: str) -> str:
    return page[page.index('id="decision"') : page.index("</section>")]


def test_the_first_screen_has_answer_picture_warning_and_cost_and_nothing_else(page, decision):
    first, rest = first_screen(page), page[page.index("</section>") :]
    parts = [headline(decision), '<figure id="accuracy"', "Keep the 1,150 examples", 'id="beware"', "What it costs"]
    places = [first.index(part) for part in parts]
    assert places == sorted(places)
    assert first.count("<img") == 1
    assert "<table" not in first
    assert 'id="accuracy"' not in rest
    assert rest.index('id="sure"') < rest.index("<table")


def test_only_warnings_of_the_subset_to_keep_are_on_the_first_screen(page, decision):
    first = first_screen(page)
    of_it, others = summary.beware(decision), summary.beware_too(decision)
    assert any("It keeps less than a fifth of the share of class 0 (" in warning for warning in of_it)
    assert "Keep no less: at 40 % the same choice breaks down." in of_it
    assert any("The learning rate never decays" in warning for warning in others)
    assert all(warning in first for warning in of_it)
    assert not [warning for warning in others if warning in first]
    assert set(warnings(decision)) <= {*of_it, *others}, "no warning is lost"


def test_nothing_to_keep_has_no_warning_above(exps):
    undecided = Decision(read_study(exps, "demo"), 0.05)
    assert summary.beware(undecided) == []
    assert set(summary.beware_too(undecided)) == set(warnings(undecided))


def test_how_sure_it_is_comes_next_with_both_intervals(page, decision):
    near, sure = decision.nearest, page[page.index('id="sure"') : page.index('id="accuracies"')]
    low, high = near.this_test_set
    for ends in ((near.low, near.high), (low, high)):
        assert "{:+.2f} to {:+.2f} points</dd>".format(*(100 * end for end in ends)) in sure
    assert f"<dd>{100 * near.smallest_margin:.2f} points, where nothing is lost, with any number of runs</dd>" in sure


def test_the_correlation_of_pairs_is_shown_and_pairs_are_those_of_the_plan(tmp_path, page, decision):
    (cell,) = (line.cell for line in decision.lines if (line.cell.arm, line.cell.fraction) == ("random", 575 / 1438))
    expected = np.corrcoef(cell.accuracies, decision.study.full.accuracies)[0, 1]
    assert decision.pair_correlation(cell) == pytest.approx(expected)
    assert f"<td>{expected:.2f}</td>" in page
    assert "pairs of runs that share their seeds" in page
    # Pairs that go against each other are compared as pairs all the same: nothing is chosen by what they show.
    exps = studies.write_study(tmp_path, GOOD)
    before = read_decision(exps, "demo").lines[1].minus_full
    studies.rewrite(exps / "demo/random/size_575/run_6/args.json", train_seed=1)
    after = read_decision(exps, "demo")
    assert after.lines[1].minus_full == before
    assert "pairs of runs, which share no seeds" in html(after, [], [])


# --- paper, phones, darkness ------------------------------------------------------------------


def test_the_page_prints_whole_on_a4(page, tmp_path):
    assert "@page { size: A4" in page
    printed = re.sub(r"\s+", " ", page[page.index("@media print") : page.index("</style>")])
    assert ".scroll, .long { overflow: visible; max-height: none;" in printed
    assert "<details" not in page, "what is folded does not print"
    types = tuple([*LOGIT_SCORES, "grad_norm", "grand_last", "input_norm", "prototype", "forget", "aum"])
    losses = {**GOOD, **{f"keep_max {kind}": (0.02, 0.09) for kind in types[1:3]}}
    many = html(read_decision(studies.write_study(tmp_path, losses, types=types), "demo"), [], [])
    heads = [len(re.findall("<th[ >]", head)) for head in re.findall(r"<thead>.*?</thead>", many, re.S)]
    assert len(types) + 1 > 12
    assert max(heads) <= 13, "no table is wider than paper"
    assert heads.count(13) == 3, "three manners of agreement, of which the second half follows below"


def test_the_page_is_dark_where_the_browser_is_and_pictures_stay_readable(page, decision):
    assert "@media screen and (prefers-color-scheme: dark)" in page
    style = page[page.index("<style>") : page.index("</style>")]
    light, dark = (set(re.findall(r"(--\w+):", part)) for part in style.split("prefers-color-scheme: dark")[:2])
    assert dark == light >= set(re.findall(r"var\((--\w+)\)", style))
    for picture in pictures(decision):
        path = Path(decision.study.exps / f"demo/figures/{picture.name}.png")
        with Image.open(path) as image:
            corner = image.convert("RGBA").getpixel((0, 0))
            assert corner == (255, 255, 255, 255), "a background of its own"


def test_tables_scroll_on_a_phone_and_not_the_page(page):
    assert page.count("<table") == page.count('<div class="scroll"><table') + page.count('<div class="long"')
    assert 'name="viewport" content="width=device-width, initial-scale=1"' in page


# --- JSON -------------------------------------------------------------------------------------


def named(facts: dict, above: str = "") -> set[str]:
    """Names of all entries, with those that they stand in."""
    found = set()
    for name, value in facts.items():
        inside = value[0] if isinstance(value, list) and value and isinstance(value[0], dict) else value
        found |= {f"{above}{name}"} | (named(inside, f"{above}{name}.") if isinstance(inside, dict) else set())
    return found


def test_programs_get_the_decision_and_nothing_else_happens(exps, decision, tmp_path):
    before = {path: path.stat().st_mtime_ns for path in exps.rglob("*")}
    done = datadiet("report", tmp_path, root=exps.parent, exp="demo", format="json")
    found = strict(done.stdout)
    assert done.stdout.isascii()
    assert (found["answer"], found["arm"], found["kept"]) == ("can", "keep_max l2_error", 1150)
    assert (found["runs"], found["margin"]) == (5, 0.5)
    assert found["sentence"] == headline(decision)
    assert (found["accuracy_full"], found["test_examples"]) == (pytest.approx(0.954), studies.NUM_TEST)
    assert {path: path.stat().st_mtime_ns for path in exps.rglob("*")} == before
    assert mlflow.search_runs(experiment_names=["datadiet"], output_format="list") == []
    write_decision(decision, tmp_path / "new/decision.json")
    assert strict((tmp_path / "new/decision.json").read_text()) == found
    given = {"exp": "demo", "format": "json", "output": "new/decision.json", "margin": 0.05}
    datadiet("report", tmp_path, root=exps.parent, **given)
    written = strict((tmp_path / "new/decision.json").read_text())
    assert (written["answer"], written["arm"], written["kept_fraction"]) == ("not decided", None, 1.0)


def test_a_file_that_is_no_decision_is_not_replaced(tmp_path, decision):
    for text in ("dear diary", '{"format": 1}', "[]"):
        (tmp_path / "mine").write_text(text)
        with pytest.raises(UserError, match=r"mine holds no decision of a study"):
            write_decision(decision, tmp_path / "mine")
        assert (tmp_path / "mine").read_text() == text
    with pytest.raises(UserError, match=r"is a folder"):
        write_decision(decision, tmp_path)
    done = datadiet("report", tmp_path, exp="demo", output="mine", expect=2)
    assert "output=mine: only --format json" in done.output


def test_statistics_have_the_same_decision_and_every_entry_is_documented(exps, decision):
    found = strict((exps / "demo/statistics.json").read_text())["decision"]
    assert found == strict(summary.as_json(decision))
    lines = (PROJECT / "docs/decision.md").read_text().splitlines()
    rows = [line.split("|")[1] for line in lines if line.startswith("| `")]
    told = {name for row in rows for name in re.findall(r"`([\w.]+)`", row)}
    names = {name for name in named(found) if not name.startswith("subset.") or name == "subset.this_test_set"}
    assert told == names - {"cost"}


def test_one_run_without_intervals_is_still_json(tmp_path):
    one = read_decision(studies.write_study(tmp_path, GOOD, runs=1, score_runs=1), "demo")
    assert strict(summary.as_json(one))["subset"]["this_test_set"] == [None, None]


# --- MLflow -----------------------------------------------------------------------------------


class Tracked:
    """A run that remembers what it is told."""

    experiment_id = None

    def __init__(self, id: str | None) -> None:
        self.id, self.tags, self.metrics, self.artifacts, self.note = id, {}, {}, [], ""

    def set_tag(self, key, value):
        self.tags[key] = value

    def describe(self, note):
        self.note = note

    def log_metrics(self, metrics, step=0):
        self.metrics |= {(name, step): value for name, value in metrics.items()}

    def log_artifacts(self, files):
        self.artifacts += [f"{folder or ''}/{path.name}".lstrip("/") for path, folder in files]


def concluded(exps: Path) -> Tracked:
    """What MLflow is told at the end of a study."""
    tracked, said = Tracked("abc123"), []
    reporter = SimpleNamespace(say=said.append, answer=said.append, detail=said.append)
    tracker = SimpleNamespace(command="datadiet study --exp demo")
    context = Context(Output(ExperimentLayout(exps.parent)), reporter, tracker)  # type: ignore[arg-type]
    conclude("demo", 0.5, tracked, context)  # type: ignore[arg-type]
    return tracked


def test_mlflow_is_told_the_decision_as_tags_metrics_curves_and_one_page(tmp_path):
    exps = studies.write_study(tmp_path, GOOD)
    told = concluded(exps)
    decision = read_decision(exps, "demo")
    own = {name.removeprefix("datadiet.decision."): value for name, value in told.tags.items()}
    assert own.pop("datadiet.decision") == headline(decision)
    assert own == {"answer": "can", "arm": "keep_max l2_error", "kept": "80 %", "margin": "0.5 points"}
    metrics = {name: value for (name, step), value in told.metrics.items() if name.startswith("decision/")}
    assert metrics == {
        "decision/kept_fraction": pytest.approx(1150 / 1438), "decision/accuracy": pytest.approx(0.953),
        "decision/accuracy_full": pytest.approx(0.954),
        "decision/smallest_margin": pytest.approx(100 * decision.nearest.smallest_margin),
    }  # fmt: skip
    assert [step for name, step in told.metrics if name == "accuracy/keep_max_l2_error"] == [100, 80, 40]
    parts = [headline(decision), "Beware: ", "| chosen by |", "![Accuracy", "    datadiet study --exp demo"]
    places = [told.note.index(part) for part in parts]
    assert places == sorted(places)
    assert len(told.note) < 5000, "MLflow takes no more"
    (source,) = re.findall(r"!\[.*?\]\((.*?)\)", told.note)
    assert source == "get-artifact?path=figures%2Faccuracy.png&run_uuid=abc123"
    assert "figures/accuracy.png" in told.artifacts
    unheard = summary.markdown(decision, "datadiet study --exp demo", None)
    assert "artifact `figures/accuracy.png`" in unheard, "before MLflow has heard of the run"


def test_a_colleague_who_has_mlflow_alone_reads_the_same_out_of_one_file(tmp_path):
    exps = studies.write_study(tmp_path / "ours", GOOD)
    assert "mirror.zip" in concluded(exps).artifacts
    before = (exps / "demo/mirror.zip").read_bytes()
    with ZipFile(exps / "demo/mirror.zip") as archive:
        archive.extractall(tmp_path / "theirs")
    ours, theirs = (read_decision(place, "demo") for place in (exps, tmp_path / "theirs/exps"))
    assert summary.as_json(theirs) == summary.as_json(ours)
    assert (write_report(theirs)[1]).read_bytes() == (exps / "demo/statistics.json").read_bytes()
    assert write_mirror(ours.study).read_bytes() == before


# --- text of users ----------------------------------------------------------------------------


class Elements(HTMLParser):
    """Tags and sources of a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags, self.sources = [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.sources += [value for name, value in attrs if name in ("src", "href") or name.startswith("on")]


@pytest.fixture(scope="module")
def hostile(tmp_path_factory) -> Decision:
    """A study whose data set, model, arms and classes have names that want to be markup."""
    exps = studies.write_study(tmp_path_factory.mktemp("hostile"), GOOD)
    record = json.loads((exps / "demo/study.json").read_text())
    for cell in record["cells"]:
        cell["arm"] = cell["arm"].replace("keep_max", HOSTILE)
    studies.rewrite(exps / "demo/study.json", dataset=HOSTILE, model=HOSTILE, cells=record["cells"])
    study = read_study(exps, "demo")
    vars(study)["class_names"] = [HOSTILE + str(c) for c in range(studies.CLASSES)]
    return Decision(study, 0.5)


def test_text_of_users_is_no_html(hostile, page):
    text = html(hostile, pictures(hostile), [])
    found = Elements(text)
    assert set(found.tags) <= set(Elements(page).tags)
    assert all(source.startswith("data:image/png;base64,") for source in found.sources)
    assert "&lt;img src=x" in text


def test_text_of_users_is_no_markdown(hostile, decision):
    note = summary.markdown(hostile, "datadiet report", None)
    assert "onerror" in note
    assert "<" not in note
    assert not re.findall(r"(?<!\\)[\[\]](?!\()", note), "no links but that of the picture"
    assert "://" not in note
    plain = summary.markdown(decision, "datadiet report", None)
    assert note.count("\n") == plain.count("\n"), "no line is broken or begun"
    bars = [[line.count("|") for line in text.splitlines() if line.startswith("|")] for text in (note, plain)]
    assert bars[0] == bars[1] == [6] * len(bars[0])
    for marked in ("*b*", "_c_", "`d`"):
        assert marked not in note
    for given in ("a*b", "&lt;b&gt;", "www.x.y", "x@y.z", "![a](b)", "~~a~~", "# a", "back\\slash"):
        assert summary.inert(given) != given
    ours = "Keep 80 % (95 % interval -0.10 to +0.20): best."
    assert summary.inert(ours) == ours


def test_text_of_users_is_no_markup_in_pictures(hostile):
    """Nothing warns, which tests take for errors, and no formula is set: the same picture without its dollars."""
    assert {picture.name for picture in pictures(hostile)} >= {"accuracy", "kept_per_class"}
