"""What a command says: an estimate, how far it is, an answer; on a terminal, in a file, for programs."""

from __future__ import annotations

import io
import json
import re
import time
from types import SimpleNamespace

import pytest
from conftest import PATIENCE, datadiet

from datadiet import progress
from datadiet.data.registry import load_dataset
from datadiet.progress import Standing, counting
from datadiet.runs import timing
from datadiet.runs.console import Console, Level
from datadiet.train_config import TrainConfig

STUDY = {
    "dataset": "digits", "model": "mlp", "width": 8, "num_steps": 22, "augment": "false", "score_runs": 2,
    "eval_runs": 2, "fractions": 0.5, "score_types": "l2_error", "workers": 1, "offline": "true", "margin": 5,
}  # fmt: skip
TRAININGS = 2 + 2 * 3  # scored; full data, l2_error and random


@pytest.fixture(scope="module")
def told(tmp_path_factory, no_pictures):
    """A folder with a small study, and what its command said into a file, all of it and dry."""
    here = tmp_path_factory.mktemp("told")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(progress, "PERIOD", 0.05)
        patch.setattr(progress, "LEAST", 0.0)
        dry = datadiet("study", here, dry_run="true", **STUDY)
        left = sorted(path.name for path in here.iterdir())
        done = datadiet("study", here, **STUDY)
    return here, dry, left, done


def test_a_dry_run_says_what_it_takes_and_writes_nothing(told):
    _, dry, left, done = told
    assert re.match(rf"{TRAININGS} trainings, one after the other: about [\d.]+ s on this cpu, .* of disk", dry.stdout)
    (_, outlook) = dry.stdout.splitlines()
    assert re.search(r"the test set alone, 359 examples, .* no margin below [\d.]+ points can be\.$", outlook)
    assert left == []
    assert done.stdout.splitlines()[0].startswith(f"{TRAININGS} trainings, one after the other")
    assert done.stdout.splitlines()[1] == outlook, "what is known before is said before anything is trained"


def test_the_estimate_of_disk_is_near_what_is_written(told):
    here, *_ = told
    estimate = json.loads(datadiet("study", here, dry_run="true", json="true", exp="other", **STUDY).stdout)
    assert (estimate["trainings"], estimate["finished"], estimate["at_once"]) == (TRAININGS, 0, 1)
    runs = [path for path in (here / "exps").rglob("*") if path.is_file() and "/run_" in str(path)]
    written = sum(path.stat().st_size for path in runs)
    assert written / 2 < estimate["disk"] < 2 * written
    assert not (here / "exps/other").exists()
    again = json.loads(datadiet("study", here, dry_run="true", json="true", **STUDY).stdout)
    assert (again["trainings"], again["finished"], again["seconds"]) == (0, TRAININGS, 0)


def test_a_line_says_what_came_of_each_subset_and_no_path_is_said_in_between(told):
    *_, done = told
    lines = done.stdout.splitlines()
    cells = [line for line in lines if ": test accuracy " in line]
    assert [line.split(":")[0] for line in cells] == ["full data", "keep_max l2_error at 50%", "random at 50%"]
    assert all(re.search(r"test accuracy \d+\.\d\d ± \d+\.\d\d %, 2 runs$", line) for line in cells)
    assert [line for line in lines if "run_" in line] == []
    assert lines[-2].startswith("Report: ")


def test_in_a_file_how_far_it_is_stands_in_plain_lines(told):
    *_, done = told
    assert done.output.replace("\n", "").isprintable()
    far = [line for line in done.stderr.splitlines() if line.startswith("study: ")]
    assert re.search(rf"study: trainings 0 of {TRAININGS} \([\d.]+ %\), .*all of the data, run 0 \(scored\)", far[0])
    assert re.search(rf"trainings [1-{TRAININGS}] of {TRAININGS} \([\d.]+ %\), ", far[-1])
    assert any(re.search(r", about [\d.]+ (s|min) left, ", line) for line in far)


def test_quiet_says_the_answer_alone_and_verbose_every_path(told):
    here, *_, done = told
    quiet = datadiet("study", here, quiet="true", **STUDY).stdout
    assert quiet in done.stdout
    assert 0 < len(quiet.splitlines()) <= 2
    assert "can be dropped" in quiet or "Not decided" in quiet
    verbose = datadiet("study", here, verbose="true", **STUDY).stdout
    assert verbose.count("finished before, taken as it is") == TRAININGS
    assert datadiet("report", here, quiet="true").stdout == f"{quiet.splitlines()[0]}\n"


def test_json_is_what_report_says_to_programs(told):
    here, *_ = told
    said = datadiet("study", here, json="true", **STUDY)
    assert json.loads(said.stdout)["format"] == 1
    assert said.stdout == datadiet("report", here, format="json").stdout
    both = datadiet("study", here, expect=2, json="true", quiet="true", **STUDY)
    assert "exclude each other" in both.stderr


# --- how far work is --------------------------------------------------------------------------


class Tty(io.StringIO):
    def isatty(self) -> bool:
        return True


def terminal_of(monkeypatch) -> Tty:
    """What this test writes to, which pytest would set back before a test if a fixture set it."""
    out = Tty()
    for name in ("stdout", "stderr"):
        monkeypatch.setattr(f"sys.{name}", out)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "60")
    monkeypatch.setattr(progress, "DELAY", 0.0)
    return out


def test_on_a_terminal_one_line_is_live_and_what_is_said_stays_whole_above_it(monkeypatch):
    terminal = terminal_of(monkeypatch)
    command = "datadiet " + "word " * 40
    with counting(90, "main\x1b[2J", lambda: Standing("trainings 53 of 90", "random at 50%, run 7")) as advance:
        advance(53)
        Console().say(command)
        end = time.monotonic() + PATIENCE
        while "━" not in terminal.getvalue() and time.monotonic() < end:
            time.sleep(0.05)
    shown = terminal.getvalue()
    assert f"{command}\n" in shown
    live = [line for line in re.split(r"[\r\n]|\x1b\[[0-9;?]*[A-Za-z]", shown) if line.startswith("main")]
    assert live
    assert all(len(line) < 60 for line in live), "a line that wraps cannot be replaced"
    assert any("━" in line and "trainings 53 of 90" in line for line in live)
    assert "main\x1b[2J" not in shown, "what a terminal would obey"
    assert shown.rindex("\x1b[?25h") > shown.rindex("\x1b[?25l"), "the cursor is there"


def test_a_terminal_shows_nothing_of_what_takes_no_time(monkeypatch):
    terminal = terminal_of(monkeypatch)
    monkeypatch.setattr(progress, "DELAY", 60.0)
    with counting(3, "short") as advance:
        advance(3)
        time.sleep(0.3)
    assert "short" not in terminal.getvalue()


def test_a_reporter_says_as_much_as_was_asked_for(capsys):
    for level, expected in zip(Level, ([], ["answer"], ["said", "answer"], ["detail", "said", "answer"])):
        console = Console(level)
        console.detail("detail")
        console.say("said")
        console.answer("answer")
        assert capsys.readouterr().out.splitlines() == expected


def test_a_notebook_has_a_bar_whose_text_is_no_markup(monkeypatch):
    """As IPython would: handles that are updated."""
    shown = []

    class Handle:
        def update(self, page) -> None:
            shown.append(page)

    class Display:
        HTML = staticmethod(str)

        @staticmethod
        def display(page, display_id):
            shown.append(page)
            return Handle()

    class ZMQInteractiveShell:
        pass

    class IPython:
        display = Display
        get_ipython = staticmethod(ZMQInteractiveShell)

    monkeypatch.setitem(__import__("sys").modules, "IPython", IPython)
    with counting(4, "<b>mine") as advance:
        advance(4)
    assert shown[0] == '<progress max="1" value="0.0000"></progress> &lt;b&gt;mine: 0 of 4 (0.0 %), none just now'
    assert 'value="1.0000"' in shown[-1]


@pytest.mark.parametrize(("batch", "taken"), [(32, 100), (600, 600)])
def test_time_is_measured_with_whole_batches(monkeypatch, batch, taken):
    """A batch that is cut to fewer examples would take less time than those of the training."""
    seen = []

    def fit(network, train, test, kept, config, state, **more):
        seen.append(len(kept))
        yield SimpleNamespace(step=1, seconds={"train": 1.0, "compile": 0.0})

    monkeypatch.setattr(timing, "fit", fit)
    monkeypatch.setattr(timing, "EXAMPLES", 100)
    config = TrainConfig(dataset="digits", model="mlp", width=8, augment=False, num_steps=22, train_batch_size=batch)
    assert timing.measure(config, load_dataset("digits")).training == 22
    assert seen == [taken]
