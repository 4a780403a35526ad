"""The documents name what there is: every file of the house, every entry of a registry, and nothing else."""

from __future__ import annotations

import re
import tomllib
from importlib import import_module

import click
import numpy as np
import pytest
import yaml
from click.testing import CliRunner
from conftest import PROJECT, datadiet
from test_project import FLOORS

import datadiet as dd
from datadiet.data.registry import DATASETS, PREFIXES
from datadiet.models.registry import MODELS
from datadiet.option import fields_of
from datadiet.plugins import VARIABLE
from datadiet.recipes import RECIPES
from datadiet.registries import ENTRY_POINTS
from datadiet.report.pictures import FIGURES
from datadiet.scores.combine import COMBINATIONS
from datadiet.scores.logits import LOGIT_SCORES
from datadiet.scores.registry import FEATURE_SCORES, NETWORK_SCORES, score_names
from datadiet.scores.trajectory import TRAJECTORIES
from datadiet.selectors.options import MANIFEST
from datadiet.selectors.selection import BALANCES, SELECTORS
from datadiet.study.engines import ENGINES
from datadiet.study.evaluations import ROLES
from datadiet.study.options import EngineOptions
from datadiet.study.plan import Plan
from entrypoints.__main__ import COMMANDS, main

DOCUMENTS = (
    "README.md",
    "ARCHITECTURE.md",
    "CONTRIBUTING.md",
    "docs/scores.md",
    "docs/decision.md",
    "docs/own_loop.md",
    "docs/terminal.md",
    "docs/models.md",
    "docs/data.md",
    "docs/files.md",
    "docs/how-to/kept-sets.md",
    "docs/how-to/own-images.md",
    "docs/analyze.md",
)
TEXT = {name: (PROJECT / name).read_text() for name in (*DOCUMENTS, "CHANGELOG.md")}
README, SCORES = TEXT["README.md"], TEXT["docs/scores.md"]
REGISTRIES = (
    LOGIT_SCORES, NETWORK_SCORES, FEATURE_SCORES, TRAJECTORIES, COMBINATIONS, SELECTORS, MODELS, DATASETS, ENGINES,
    FIGURES, ENTRY_POINTS, RECIPES,
)  # fmt: skip


def rows(text: str, head: str) -> list[list[str]]:
    """Cells of every row of the table whose header begins so."""
    (after,) = text.split(f"\n| {head}")[1:]
    lines = after.split("\n\n")[0].splitlines()[2:]
    return [[cell.strip() for cell in line.strip("|").split(" | ")] for line in lines]


def named(text: str) -> list[str]:
    """What stands in backticks, blocks of code aside."""
    return re.findall(r"`([^`]+)`", re.sub(r"```.*?```", "", text, flags=re.DOTALL))


def firsts(table: list[list[str]]) -> list[str]:
    """Every name in the first column."""
    return [name for row in table for name in named(row[0])]


def sentence(begin: str) -> list[str]:
    """Names in the sentence of the README that begins so, up to a colon or full stop at the end of a line."""
    (after,) = README.split(begin)[1:]
    return named(re.split(r"[:.]\n", after)[0])


def command_of(name: str) -> click.Command:
    found = main.get_command(click.Context(main), name)
    assert found is not None
    return found


# --- files ------------------------------------------------------------------------------------


def tree() -> list[str]:
    """Paths of the tree in ARCHITECTURE.md, in its order; folders end with '/'."""
    block = TEXT["ARCHITECTURE.md"].split("```\n")[1]
    folders, found = [], []
    for line in block.splitlines():
        name, depth = line.split()[0], (len(line) - len(line.lstrip())) // 2
        folders[depth:] = [name]
        found.append("".join(folders))
    return found


def test_the_tree_is_the_house():
    files = [path for path in tree() if path.endswith(".py")]
    assert files == [f"datadiet/{floor.replace('.', '/')}.py" for floor in FLOORS]
    rooms = {f"{path.rsplit('/', 1)[0]}/" for path in files}
    assert rooms <= set(tree()), "a room without a phrase"
    for path in tree():
        assert (PROJECT / path).exists(), path


@pytest.mark.parametrize("document", DOCUMENTS)
def test_what_a_document_names_exists(document):
    text = TEXT[document]
    here = (PROJECT / document).parent
    for path in re.findall(r"\]\((?!http)([^)#]+)\)", text):
        assert (here / path).exists(), f"{document}: a link to {path}"
    for path in re.findall(r"`((?:[\w.]+/)*[\w.]+\.(?:py|md|yaml|toml|jinja))`", text):
        places = (PROJECT, PROJECT / "datadiet", here)
        assert path in ("mine.py", "path/to/file.py", "conda.yaml") or any((p / path).exists() for p in places), path


def test_the_flows_name_what_there_is():
    """Every line `-> name  file` of the diagrams: the file says the name."""
    found = re.findall(r"^(?:  -> )?([A-Za-z_][\w, ]*?)(?:\[\w+\])? {2,}(\w+/\w+\.py) ", TEXT["ARCHITECTURE.md"], re.M)
    assert len(found) >= 15
    for names, path in found:
        text = (PROJECT / "datadiet" / path).read_text()
        for name in names.split(", "):
            assert re.search(rf"\b{name}\b", text), f"{path} has no {name}"


def test_public_names_are_those_of_the_package():
    for document, text in TEXT.items():
        for name in re.findall(r"\bdd\.(\w+)", text):
            assert name in dd.__all__, f"{document}: dd.{name}"


def test_registries_that_contributing_names_are_there():
    found = {
        (name, path) for row in rows(TEXT["CONTRIBUTING.md"], "kind ") for name, path in re.findall(
            r"`([A-Z]\w*[A-Z])`(?:[^`]*| in )`((?:datadiet|entrypoints)/[\w/]+\.py)`", row[2])
    }  # fmt: skip
    modules = {name: import_module(path.removesuffix(".py").replace("/", ".")) for name, path in found}
    assert all(hasattr(module, name) for name, module in modules.items()), modules
    listed = [getattr(module, name) for name, module in modules.items()]
    for registry in REGISTRIES:
        assert any(registry is one for one in listed), f"no way to add to {list(registry)}"


def test_the_checks_are_the_same_everywhere():
    checks = ["ruff check", "ruff format --check", "pyright", "mkdocs build --strict --quiet", "pytest"]
    ran = (PROJECT / ".ci/run").read_text().splitlines()[-len(checks) :]
    assert ran == checks
    for text, install in (
        (README, "pip install -e '.[test]'"),
        (TEXT["CONTRIBUTING.md"], "pip install -e '.[test,docs]'"),
    ):
        assert all(check.removesuffix(" --quiet") in text for check in (*checks, install, ".ci/run"))
    hooks = yaml.safe_load((PROJECT / ".pre-commit-config.yaml").read_text())["repos"][0]["hooks"]
    assert [hook["name"] for hook in hooks] == ["ruff check", "ruff format", "pyright"]


def test_versions_are_the_same_everywhere():
    """A release is the newest section of the changelog that has a number; .ci/package compares its tag."""
    pyproject = tomllib.loads((PROJECT / "pyproject.toml").read_text())
    citation = yaml.safe_load((PROJECT / "CITATION.cff").read_text())
    assert citation["version"] == re.findall(r"^## \[(\d[^]]*)\]", TEXT["CHANGELOG.md"], re.M)[0]
    assert citation["version"] == pyproject["tool"]["setuptools_scm"]["fallback_version"]
    assert citation["license"] == pyproject["project"]["license"]


# --- registries -------------------------------------------------------------------------------


def test_every_entry_point_has_its_row():
    assert sorted(firsts(rows(README, "entry point "))) == sorted(COMMANDS)


def test_own_parameters_are_those_of_mlproject():
    project = yaml.safe_load((PROJECT / "MLproject").read_text())["entry_points"]
    above = ""
    for cells in rows(README, "entry point "):
        (name,), told = named(cells[0]), cells[2]
        told = above = above if told == "the same" else told
        options = {parameter.name: parameter for parameter in command_of(name).params}
        options |= {str(parameter.opts[0]).lstrip("-"): parameter for parameter in options.values()}
        declared = project[name].get("parameters", {})
        listed = named(told)
        if name in ("study", "main"):
            declared = {one: {} for one in ("plan", *fields_of(Plan), *fields_of(EngineOptions))}
            assert set(listed) == set(declared)
        assert set(declared) <= set(listed) <= set(options), name
        if name == "main":
            continue  # other defaults, as its help says
        for one, default in re.findall(r"`(\w+)` \(([^);]+)", told):
            value = declared.get(one, {}).get("default", options[one].default)
            if value == "auto":
                continue  # derived: the table says in words
            shown = ",".join(map(str, value)) if isinstance(value, tuple) else str(value)
            assert default.removesuffix(" points") == shown.lower().replace("0.5 points", "0.5"), (name, one)


@pytest.mark.parametrize("text", ["README.md", "docs/scores.md"])
def test_every_score_has_its_row(text):
    heads = {
        "README.md": ["`type` "],
        "docs/scores.md": ["type | measures | high means | cost", "type | measures | high means | use"],
    }
    found = [name for head in heads[text] for row in rows(TEXT[text], head) for name in named(row[0])]
    assert sorted(found) == sorted([*score_names(), *TRAJECTORIES])


def test_every_selector_has_its_place():
    found = [n for row in rows(SCORES, "selector | keeps") for n in named(row[0]) if not n.startswith("balance")]
    assert sorted(set(found) - {"equal"}) == sorted(SELECTORS)
    told = [name for name in sentence("Selectors: ") if not name.startswith("balance") and name not in BALANCES]
    assert sorted(told) == sorted([*SELECTORS, MANIFEST])


def test_options_of_entries_stand_in_their_rows():
    table = {name: " ".join(row) for row in rows(SCORES, "selector | keeps") for name in named(row[0])}
    table |= {
        name: " ".join(row) for row in rows(SCORES, "type | measures | high means | use") for name in named(row[0])
    }
    for name, entry in [*SELECTORS.items(), *TRAJECTORIES.items()]:
        for own in entry.options:
            assert f"`{own}`" in table[name], f"docs/scores.md says nothing of {own} of {name}"


def test_every_dataset_has_its_row():
    found = firsts(rows(TEXT["docs/data.md"], "`dataset` "))
    plain = [name for name in found if not name.startswith(tuple(PREFIXES))]
    assert sorted(plain) == sorted(DATASETS)
    assert sorted(p for name in found for p in PREFIXES if name.startswith(p)) == sorted(PREFIXES)


def test_models_engines_combinations_and_balances_are_named():
    assert all(f"`recipe={name}`" in README for name in RECIPES)
    (models,) = re.findall(r"`model` \(([^)]+)\)", README)
    assert re.split(r"[;,]\s*", models) == list(MODELS)
    assert all(re.search(rf"\b{engine}\b", README) for engine in ENGINES)
    for text in (README, SCORES):
        told = set(named(text)) | {name.partition("=")[2] for name in named(text)}
        assert set(COMBINATIONS) <= told
        assert set(BALANCES) - {"none"} <= told


# --- examples ---------------------------------------------------------------------------------


@pytest.fixture
def plugins(tmp_path, monkeypatch):
    """The examples of CONTRIBUTING.md as plugins; the registries are as before afterwards."""
    blocks = re.findall(r"```python\n(.*?)```", TEXT["CONTRIBUTING.md"], re.DOTALL)
    before = [dict(registry) for registry in REGISTRIES]
    for name, block in zip(("mine", "others"), blocks, strict=True):
        (tmp_path / f"{name}.py").write_text(block)
    monkeypatch.setenv(VARIABLE, f"{tmp_path}/mine.py,{tmp_path}/others.py")
    yield
    for registry, entries in zip(REGISTRIES, before):
        registry.clear()
        registry.update(entries)  # type: ignore[arg-type]


def test_the_examples_of_contributing_work(tmp_path, plugins):
    training = {"dataset": "noise", "model": "linear", "augment": "false", "num_steps": 4, "save_steps": 4}
    datadiet("full_data", tmp_path, trajectory="faded,squared_doubt", half_life=5, **training)
    for kind in ("brier", "largest_logit", "from_mean"):
        datadiet("score", tmp_path, type=kind, step=4)
        assert np.load(tmp_path / f"exps/full_data/run_0/{kind}_scores/ckpt_4.npy").shape == (200,)
    datadiet("mean_score", tmp_path, type="brier", step=4, n_runs=1)
    given = {"score_type": "brier", "score_step": 4, "level": 0.7, "size": 50}
    datadiet("select", tmp_path, dataset="noise", selector="band", **given)
    assert (tmp_path / "exps/select/size_50.band.level_0.7/run_0/kept.csv").exists()
    assert datadiet("hello", tmp_path).stdout == "A command of mine.\n"
    added = [set(registry) for registry in REGISTRIES]
    assert {"here"} <= added[REGISTRIES.index(ENGINES)]
    assert {"arms"} <= added[REGISTRIES.index(FIGURES)]


@pytest.mark.parametrize("page", sorted((PROJECT / "docs").rglob("*.md")), ids=lambda page: page.stem)
def test_commands_of_the_pages_have_the_options_that_they_are_given(page):
    text = page.read_text().replace("\\\n", " ")
    lines = [
        line.split("#")[0] for block in re.findall(r"```sh\n(.*?)```", text, re.DOTALL) for line in block.splitlines()
    ]
    for words in (line.split("datadiet ", 1)[1].split() for line in lines if re.search(r"(^|&& )datadiet ", line)):
        known = {text for option in command_of(words[0]).params for text in option.opts}
        assert {word for word in words if word.startswith("--")} <= known, words


def test_the_short_help_lists_what_the_readme_does():
    shown = CliRunner().invoke(main, ["--help"]).output
    assert all(re.search(rf"^  {name} ", shown, re.M) for name in COMMANDS)


def test_what_is_advised_for_own_images_does_what_it_says():
    """A margin in percentage points, and against mislabelled examples a selector that drops the hardest alone."""
    text = TEXT["docs/how-to/own-images.md"]
    assert [float(margin) for margin in re.findall(r"--margin ([\d.]+)", text)] == [1]
    ((cutoff, percent),) = re.findall(r"keep_max,ccs:cutoff=([\d.]+)`.*?drops the hardest (\d+) %", text, re.DOTALL)
    kept = dd.select("ccs", np.arange(1000.0), size=500, cutoff=float(cutoff))
    assert kept.min() < 20 < 950 < kept.max() < 1000 * (1 - int(percent) / 100)


def test_the_recorder_of_the_readme_runs():
    """With the data of its first block, and outputs for a batch of all examples."""
    (block,) = [block for block in re.findall(r"```python\n(.*?)```", README, re.DOTALL) if "dd.Recorder(" in block]
    data = dd.load_dataset("digits")
    logits = np.random.RandomState(0).normal(size=(data.num_examples, 10)).astype(np.float32)
    names = {"dd": dd, "data": data, "ids": np.arange(data.num_examples), "logits": logits, "labels": data.train_labels}
    exec(block, names)
    assert len(names["ids"]) == data.num_examples // 2
    assert names["scores"].shape == (data.num_examples,)


def test_the_examples_of_own_loop_run():
    """Its Python, one block after the other; its table has columns that `decide` knows."""
    text, names = TEXT["docs/own_loop.md"], {}
    blocks = re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL)
    assert len(blocks) == 2
    for block in blocks:
        exec(block, names)
    assert (len(names["kept"]), names["scores"].shape) == (3, (6,))
    (header,) = re.findall(r"```\n(arm,.*)\n", text)
    told = named("\n".join(row[0] for row in rows(text, "column ")))
    assert set(header.split(",")) <= set(told)
    assert {*told} == {*ROLES} - {"correct", "predicted"}
