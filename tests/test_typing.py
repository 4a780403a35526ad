"""A type checker knows the public names, though they are imported when they are first used."""

from __future__ import annotations

import json
import subprocess
import sys
from importlib.util import find_spec

import pytest
from conftest import PROJECT

USE = """import datadiet

reveal_type(datadiet.select)
datadiet.selct
datadiet.select(0, [])
"""


@pytest.mark.skipif(find_spec("pyright") is None, reason="pyright is not installed")
def test_a_type_checker_knows_the_public_names(tmp_path):
    (tmp_path / "use.py").write_text(USE)
    (tmp_path / "pyrightconfig.json").write_text(json.dumps({"extraPaths": [str(PROJECT)]}))
    assert (PROJECT / "datadiet" / "py.typed").exists()
    command = [sys.executable, "-m", "pyright", "--outputjson", "--pythonpath", sys.executable]
    result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    try:
        told = json.loads(result.stdout)["generalDiagnostics"]
    except ValueError:
        pytest.skip(f"pyright does not run here: {result.stdout}{result.stderr}")
    found = {(d["range"]["start"]["line"], d["severity"], d.get("rule")): d["message"] for d in told}
    assert "size: float" in found.pop((2, "information", None))
    assert '"selct"' in found.pop((3, "error", "reportAttributeAccessIssue"))
    assert {line for line, severity, _ in found if severity == "error"} == {4}
