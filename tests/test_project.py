"""The project's files say the same thing, and imports only go down the house."""

from __future__ import annotations

import ast
import tomllib

import pytest
import yaml
from conftest import PROJECT, call

# From top to bottom: a module may import only from those below it.
HOUSE = [
    "study", "cluster", "workers", "engine", "graph", "report", "wording", "kept", "figures", "decision", "evidence",
    "results", "sync", "selecting", "scoring", "pipeline", "tasks", "place", "choosing", "resume", "background",
    "tracking", "remote", "record", "stored_runs", "checkpoints", "store", "scores", "statistics", "search",
    "selection", "coresets", "train", "trajectory", "forgetting", "logits", "programs", "per_example", "models",
    "conv", "prepare", "tfds_builders", "fetch", "identity", "data", "cache", "sources", "config",
]  # fmt: skip
ENTRY_POINTS = {  # own parameters and defaults, from the contract; None: has to be given
    "main": {},
    "study": {},
    "full_data": {"run": 0},
    "random_subset": {"size": None, "run": 0},
    "keep_max": {"size": None, "scores": "auto", "run": 0},
    "offset_subset": {"size": None, "offset": 0, "scores": "auto", "run": 0},
    "subset": {"selector": None, "size": "auto", "scores": "auto", "run": 0},
    "select": {"selector": None, "size": None, "scores": "auto", "run": 0},
    "score": {"run": 0, "step": "auto", "batch_size": 512, "type": "l2_error"},
    "mean_score": {"n_runs": 10, "step": "auto", "type": "l2_error"},
    "report": {"exp": "study", "margin": "auto"},
    "prepare_data": {"dataset": "cifar10", "data_dir": "auto", "archive": "auto", "download": "true"},
    "sync": {},
    "results": {"exps_path": "auto", "output": "results.csv"},
}


def imported(path) -> set[str]:
    """Modules of this package that a file imports, and 'mlflow', 'orbax' where it does."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module == "datadiet":
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names.add(node.module.removeprefix("datadiet."))
        elif isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
    return {name.split(".")[0] for name in names}


def test_imports_only_go_down():
    package = PROJECT / "datadiet"
    modules = {path.stem: [path] for path in package.glob("*.py") if path.stem != "__init__"}
    modules |= {path.parent.name: [*path.parent.glob("*.py")] for path in package.glob("*/__init__.py")}
    assert set(modules) == set(HOUSE), "give a new module its place in the house"
    for position, name in enumerate(HOUSE):
        above = set(HOUSE[:position]) & set().union(*map(imported, modules[name]))
        assert not above, f"{name} imports {above}, which {'is' if len(above) == 1 else 'are'} not below it"


@pytest.mark.parametrize(("library", "owner"), [("mlflow", "remote"), ("orbax", "checkpoints")])
def test_a_library_has_one_owner(library, owner):
    for path in [*(PROJECT / "datadiet").glob("*.py"), *(PROJECT / "entrypoints").glob("*.py")]:
        assert path.stem == owner or library not in imported(path), path


def test_conda_and_pip_pin_the_same():
    project = tomllib.loads((PROJECT / "pyproject.toml").read_text())["project"]
    conda = yaml.safe_load((PROJECT / "conda.yaml").read_text())["dependencies"]
    assert conda[-1]["pip"] == project["dependencies"]
    python = next(entry for entry in conda if str(entry).startswith("python="))
    assert project["requires-python"] == python.replace("python=", ">=")


def test_mlproject_has_the_entry_points_of_the_contract():
    project = yaml.safe_load((PROJECT / "MLproject").read_text())
    assert project["conda_env"] == "conda.yaml"
    found = {
        name: {key: value.get("default") for key, value in (entry.get("parameters") or {}).items()}
        for name, entry in project["entry_points"].items()
    }
    assert found == ENTRY_POINTS
    for name, entry in project["entry_points"].items():
        assert entry["command"].startswith(f"python -m entrypoints {name}")
        assert '"' not in entry["command"], "values are quoted already"


@pytest.mark.parametrize("name", ENTRY_POINTS)
def test_every_entry_point_explains_itself(name, tmp_path):
    text = call(["python", "-m", "entrypoints", name, "--help"], PROJECT, tmp_path).stdout
    assert f"Usage: datadiet {name}" in text
    options = [line for line in text.splitlines() if line.strip().startswith("--")]
    assert len(options) >= 2
    assert text.count("[default:") + text.count("[required]") >= len(options) - 1  # --help has none
