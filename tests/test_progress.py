"""Long work shows that it goes on, also where there is no terminal; it uses the processors it was given."""

from __future__ import annotations

import io
import os
import sys
import time

import pytest
from conftest import PROJECT, call

from datadiet import progress as shown
from datadiet.processors import processors


@pytest.fixture
def clock(monkeypatch) -> list[float]:
    now = [100.0]
    monkeypatch.setattr(shown.time, "monotonic", lambda: now[0])
    return now


def test_a_line_has_what_is_done_the_pace_and_the_time_left(clock):
    lines = shown.Lines(78_000, "full_data/run_0")
    assert lines.line() == "full_data/run_0: 0 of 78,000 (0.0 %), none just now"
    lines.update(0)
    clock[0] += 60
    lines.update(600)
    assert lines.line() == "full_data/run_0: 600 of 78,000 (0.8 %), 10 a second, about 2.1 h left"
    clock[0] += 60
    lines.update(30_000)
    assert lines.line() == "full_data/run_0: 30,600 of 78,000 (39.2 %), 500 a second, about 95 s left"
    clock[0] += 60
    assert lines.line().endswith("none just now")


def test_what_was_done_before_is_no_pace(clock):
    lines = shown.Lines(1000, "resumed")
    clock[0] += 30  # compiling
    lines.update(900)
    clock[0] += 10
    lines.update(10)
    assert lines.line() == "resumed: 910 of 1,000 (91.0 %), 1 a second, about 90 s left"


def test_off_a_terminal_lines_come_while_nothing_returns_and_end_with_the_work(monkeypatch):
    monkeypatch.setattr(shown, "LINE_SECONDS", 0.01)
    monkeypatch.setattr(sys, "stderr", told := io.StringIO())
    with shown.progress(10, "a\x1bname") as bar:
        bar.update(4)
        while told.getvalue().count("\n") < 2:
            time.sleep(0.005)
    lines = told.getvalue().splitlines()
    assert all(line.startswith("a") and ": 4 of 10 (40.0 %)" in line for line in lines)
    assert "\x1b" not in told.getvalue(), "text of users"
    time.sleep(0.05)
    assert told.getvalue().splitlines() == lines


def test_short_work_tells_nothing(capsys):
    with shown.progress(10, "short") as bar:
        bar.update(10)
    assert capsys.readouterr() == ("", "")


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="this system has no affinity")
def test_processors_are_those_of_the_process():
    given = os.sched_getaffinity(0)
    try:
        os.sched_setaffinity(0, {max(given)})
        assert processors() == [max(given)]
    finally:
        os.sched_setaffinity(0, given)
    asking = [path.name for path in (PROJECT / "datadiet").rglob("*.py") if "cpu_count" in path.read_text()]
    assert asking == ["processors.py"]


def test_the_package_runs_as_the_command_does(tmp_path):
    """`python -m datadiet`, which names itself so."""
    done = call([sys.executable, "-m", "datadiet", "score", "--run", "3"], PROJECT, tmp_path, expect=2)
    assert "Train it: python -m datadiet full_data --run 3" in done.stderr
