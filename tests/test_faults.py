"""A short part of the proof; all of it: python -m tests.faults. Kills in the middle of a training: test_resume.py."""

from __future__ import annotations

import sys

from conftest import PROJECT, call


def test_a_few_faults_lose_nothing(tmp_path):
    command = ["-m", "tests.faults", "--part", "0.03", "--only", "saving,damage", "--output", str(tmp_path / "t.md")]
    done = call([sys.executable, *command], PROJECT, tmp_path)
    total = (tmp_path / "t.md").read_text().split("| all ")[1].split("\n")[0].split("|")[1:-1]
    tried, detected, wrongly, survived, lost, _ = map(int, total)
    assert tried == detected + wrongly + survived + lost >= 12, done.stdout
    assert (wrongly, lost) == (0, 0)
