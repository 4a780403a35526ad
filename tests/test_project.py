"""The project's files say the same thing, and imports only go down the house."""

from __future__ import annotations

import ast
import tomllib
from pathlib import Path

import pytest
import yaml
from click.testing import CliRunner
from conftest import PROJECT, call

PACKAGE = PROJECT / "datadiet"
LONG = {"fit_runs"}  # functions of more than 40 lines, each for a reason
# From top to bottom: a file imports only from rooms above its own and, in its own, from files above itself.
HOUSE = {
    "": [
        "printable", "errors", "temporary", "intake", "processors", "progress", "notebook", "commands", "home",
        "plugins", "option", "hosts", "devices", "registries", "train_config", "config", "recipes", "__main__",
    ],
    "data": [
        "dataset", "reading", "doubts", "order", "batches", "cache", "sources.base", "sources.published",
        "sources.splits", "sources.walk", "sources.images", "sources.encoded", "sources.embedded", "sources.arrays",
        "sources.folder", "sources.npz_file", "sources.columns", "sources.parquet", "sources.delimited",
        "sources.csv_file", "sources.idx", "sources.cinic10", "sources.tfds_folder", "sources.cifar", "align", "labels",
        "registry", "objects", "inspect", "download", "tfds_builders", "prepare",
    ],
    "models": [
        "conv", "onednn", "forms", "nnx_form", "checked", "networks", "wide_resnet", "vit", "fast_cnn", "source", "own",
        "registry",
    ],
    "scores": [
        "names", "arrays", "logits", "forgetting", "trajectory", "outputs", "recorded", "recorder", "rules",
        "gradients", "kernel", "registry", "checkpoint", "combine",
    ],
    "selectors": ["distances", "coresets", "epochs", "selection", "options", "window_search"],
    "training": [
        "device", "energy", "compiled", "schedule", "updates", "state", "feed", "placing", "step", "loop",
        "connectivity",
    ],
    "storage": [
        "files", "tables", "arrays", "records", "layout", "score_files", "score_tables", "answers", "evaluations",
        "leaves", "checkpoints", "manifests", "claims", "runs",
    ],
    "tracking": [
        "record", "failures", "mlflow_store", "fetch", "served", "logged_model", "push", "link", "run", "views",
        "bring", "sync",
    ],
    "runs": [
        "background", "signals", "context", "console", "features", "inputs", "labels", "task", "resume", "saving",
        "products", "folders", "follow", "train", "scored", "score", "mean", "outputs", "predictions", "select",
        "timing", "unrecorded", "children",
    ],
    "report": [
        "statistics", "words", "comparison", "sequential", "gain", "verdicts", "evidence", "trained", "given", "cost",
        "decision", "price", "outlook", "text", "summary", "figures", "pictures", "kept_sets", "kept_files",
        "archive", "export", "page", "frames", "data_page", "inspection", "groups",
        "dynamics", "results_table",
    ],
    "study": [
        "plan_file", "plan", "given_scores", "arms", "spec", "estimate", "options", "engine", "local_engine",
        "ray_engine", "engines", "scheduler", "rounds", "study", "evaluations", "deciding", "program",
    ],
}  # fmt: skip
FLOORS = [f"{room}.{file}".lstrip(".") for room, files in HOUSE.items() for file in files]
ENTRY_POINTS = {  # own parameters and defaults, from the contract; None: has to be given
    "main": {},
    "study": {},
    "full_data": {"run": 0},
    "random_subset": {"size": None, "run": 0},
    "keep_max": {"size": None, "scores": "auto", "run": 0},
    "offset_subset": {"size": None, "offset": 0, "scores": "auto", "run": 0},
    "subset": {"selector": None, "size": "auto", "scores": "auto", "run": 0},
    "select": {"selector": None, "size": None, "scores": "auto", "run": 0},
    "export": {"kept": None, "output": None, "format": "csv"},
    "score": {"run": 0, "step": "auto", "batch_size": 512, "type": "l2_error"},
    "mean_score": {"n_runs": 10, "step": "auto", "type": "l2_error"},
    "analyze": {"run": 0},
    "predictions": {"files": None, "step": None, "type": "l2_error", "probabilities": "false"},
    "report": {"exp": "study", "margin": "auto", "format": "html", "output": "auto"},
    "decide": {"results": None, "margin": 0.5},
    "inspect": {"dataset": "cifar10", "data_dir": "auto", "model": "auto"},
    "prepare_data": {"dataset": "cifar10", "data_dir": "auto", "archive": "auto", "download": "true"},
    "sync": {},
    "results": {"exps_path": "auto", "output": "results.csv"},
}


def name_of(path: Path) -> str:
    """data.sources.base for datadiet/data/sources/base.py."""
    return ".".join(path.relative_to(PACKAGE).with_suffix("").parts).removesuffix("__init__").rstrip(".")


def imported(path: Path) -> set[str]:
    """What a file imports, by whole names: modules of this package without `datadiet.`, and of other libraries."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: a relative import"
            names |= {f"{node.module}.{alias.name}" for alias in node.names} | {str(node.module)}
    return {name.removeprefix("datadiet.") for name in names}


def test_imports_only_go_up_the_house():
    files = {name_of(path): path for path in PACKAGE.rglob("*.py")}
    assert {name for name in files if files[name].stem != "__init__"} == set(FLOORS), "give a new file its place"
    for position, name in enumerate(FLOORS):
        below = imported(files[name]) & set(FLOORS[position:])
        assert not below, f"{name} imports {below}, which {'is' if len(below) == 1 else 'are'} not above it"
    for name, path in files.items():
        calls = name in ("", "study")  # the package, and the room that `dd.study(…)` calls
        assert calls or path.stem != "__init__" or not path.read_text(), f"{name} is a room: it holds no code"


@pytest.mark.parametrize(
    ("library", "owner"),
    [("mlflow", "tracking"), ("orbax", "storage.checkpoints"), ("ray", "study.ray_engine")],
)
def test_a_library_has_one_owner(library, owner):
    for path in [*PACKAGE.rglob("*.py"), *(PROJECT / "entrypoints").glob("*.py")]:
        users = {name.split(".")[0] for name in imported(path)} if path.is_relative_to(PACKAGE) else set()
        assert library not in users or f"{name_of(path)}.".startswith(f"{owner}."), path


def test_files_and_functions_are_short():
    """A file is read in one go, a function on one screen."""
    for path in [*PACKAGE.rglob("*.py"), *(PROJECT / "entrypoints").glob("*.py")]:
        text = path.read_text()
        assert len(text.splitlines()) < 350, path
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef):
                length = (node.end_lineno or 0) - node.lineno + 1
                assert length <= 40 or node.name in LONG, f"{path}: {node.name} has {length} lines"


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


def explained(name: str) -> str:
    """What `datadiet NAME --help-all` says, without the start-up of a process."""
    from entrypoints.__main__ import main

    return CliRunner().invoke(main, [name, "--help-all"], prog_name="datadiet").output


def options_in(text: str) -> list[str]:
    return [line.split()[0] for line in text.splitlines() if line.strip().startswith("--")]


def test_a_process_of_its_own_explains_the_same(tmp_path):
    text = call(["python", "-m", "entrypoints", "full_data", "--help-all"], PROJECT, tmp_path).stdout
    assert "Usage: datadiet full_data" in text
    assert options_in(text) == options_in(explained("full_data"))


def test_help_imports_no_library_that_computes_or_tracks(tmp_path):
    script = (
        "import sys; from click.testing import CliRunner; from entrypoints.__main__ import COMMANDS, main;"
        "assert all(CliRunner().invoke(main, [name, '--help']).exit_code == 0 for name in COMMANDS);"
        "heavy = ('jax', 'flax', 'mlflow', 'scipy', 'sklearn', 'pandas', 'pyarrow', 'matplotlib', 'orbax', 'PIL');"
        "print([name for name in heavy if name in sys.modules])"
    )
    assert call(["python", "-c", script], PROJECT, tmp_path).stdout == "[]\n"


def test_a_decision_is_read_without_what_trains_draws_or_tracks(tmp_path):
    script = (
        "import sys; import datadiet.report.page;"
        "heavy = ('jax', 'flax', 'optax', 'orbax', 'matplotlib', 'mlflow');"
        "print([name for name in heavy if name in sys.modules])"
    )
    assert call(["python", "-c", script], PROJECT, tmp_path).stdout == "[]\n"


@pytest.mark.parametrize("name", ENTRY_POINTS)
def test_every_entry_point_explains_itself(name):
    text = explained(name)
    assert f"Usage: datadiet {name}" in text
    options = options_in(text)
    assert len(options) >= 2
    assert text.count("[default:") + text.count("[required]") >= len(options) - 1  # --help has none
