"""Long work shows that it goes on, also where there is no terminal; it uses the processors it was given."""

from __future__ import annotations

import io
import os
import sys
import time
from importlib.util import find_spec
from pathlib import Path

import pytest
from conftest import PROJECT, call

from datadiet import progress
from datadiet.processors import processors
from datadiet.progress import Count, counting


@pytest.fixture
def clock(monkeypatch) -> list[float]:
    now = [100.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    return now


def test_a_line_has_what_is_done_the_pace_and_the_time_left(clock):
    count = Count(78_000, "full_data/run_0")
    assert count.line() == "full_data/run_0: 0 of 78,000 (0.0 %), none just now"
    count.advance(0)
    clock[0] += 60
    count.advance(600)
    assert count.line() == "full_data/run_0: 600 of 78,000 (0.8 %), 10 a second, about 2.1 h left"
    count.mark()
    clock[0] += 60
    count.advance(30_000)
    assert count.line() == "full_data/run_0: 30,600 of 78,000 (39.2 %), 500 a second, about 95 s left"
    count.mark()
    clock[0] += 60
    assert count.line().endswith("none just now")


def test_what_was_done_before_is_no_pace(clock):
    count = Count(1000, "resumed")
    clock[0] += 30  # compiling
    count.advance(900)
    clock[0] += 10
    count.advance(10)
    assert count.line() == "resumed: 910 of 1,000 (91.0 %), 1 a second, about 90 s left"


def test_sizes_are_told_in_bytes_and_their_pace(clock):
    count = Count(11_433_560, "train.gz", size=True)
    count.advance(1_000_000)
    clock[0] += 2
    count.advance(5_706_904)
    assert count.line() == "train.gz: 6.71 MB of 11.4 MB (58.7 %), 2.85 MB/s, about 1.7 s left"


def test_off_a_terminal_lines_come_while_nothing_returns_and_end_with_the_work(monkeypatch):
    monkeypatch.setattr(progress, "PERIOD", 0.01)
    monkeypatch.setattr(sys, "stderr", told := io.StringIO())
    with counting(10, "a\x1bname") as advance:
        advance(4)
        while told.getvalue().count("\n") < 2:
            time.sleep(0.005)
    time.sleep(0.05)
    lines = told.getvalue().splitlines()
    assert all(line.startswith("a") and ": 4 of 10 (40.0 %)" in line for line in lines)
    assert "\x1b" not in told.getvalue(), "text of users"
    time.sleep(0.05)
    assert told.getvalue().splitlines() == lines


def test_short_work_tells_nothing(capsys):
    with counting(10, "short") as advance:
        advance(10)
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
    installed = find_spec("datadiet.entrypoints")
    if installed is not None and not Path(str(installed.origin)).is_relative_to(PROJECT):
        pytest.skip("the command line that is installed is that of another checkout")
    done = call([sys.executable, "-m", "datadiet", "score", "--run", "3"], PROJECT, tmp_path, expect=2)
    assert "Train it: python -m datadiet full_data --run 3" in done.stderr
