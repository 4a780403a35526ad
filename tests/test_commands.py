"""Commands in messages: spelled as the user called, quoted, and good when pasted."""

from __future__ import annotations

import ast
import pickle
import re
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import CliRunner
from conftest import PROJECT, QUICK, call, datadiet
from mlflow.projects.utils import load_project

from datadiet import commands
from datadiet.commands import MLFLOW, SHARED, Caller
from datadiet.config import find_option
from datadiet.data.reading import NAMES as READING
from datadiet.runs.console import Console
from datadiet.runs.context import Output
from datadiet.storage.layout import ExperimentLayout
from entrypoints.__main__ import COMMANDS, LazyGroup
from entrypoints.__main__ import main as group

AS_BY_DEFAULT = {name: find_option(name).default for name in READING}

CALLERS = [Caller(), Caller("python -m entrypoints"), Caller(MLFLOW), Caller(f"{MLFLOW} --env-manager local")]
NASTY = [
    "plain", "with space", "it's", 'say "so"', "$(touch owned)", "`touch owned`", "a;b&c|d>e", "-x", "--exp", "--a=b",
    "name=value", "naïve/数据/é", "*?[a]{b,c}", "~", "#no", "!1", "back\\slash", "$HOME", "%s {run}", "no\u00a0break",
]  # fmt: skip
TINY = QUICK | {"num_steps": 22}


def parse(line: str, program: str = commands.DATADIET) -> tuple[str, dict[str, Any]]:
    """Entry point and values of a printed command, as the shell, MLflow and click read it."""
    words = shlex.split(line)
    for word in shlex.split(program):
        assert words.pop(0) == word, line
    if program.startswith(MLFLOW):
        name = words[1] if words[:1] == ["-e"] else "main"
        words = words[2:] if words[:1] == ["-e"] else words
        assert words[::2] == ["-P"] * (len(words) // 2), line
        given = dict(word.split("=", 1) for word in words[1::2])  # as MLflow takes them apart
        words = shlex.split(load_project(str(PROJECT)).get_entry_point(name).compute_command(given, None))
        assert words[:4] == ["python", "-m", "entrypoints", name]
        words = words[3:]
    name, *words = words
    assert isinstance(group, LazyGroup)
    command = group.get_command(click.Context(group), name)
    assert command is not None, line
    params = command.make_context(name, words).params
    return name, {str(p.opts[0]).lstrip("-"): params[p.name] for p in command.params if p.name in params}


def printed(text: str) -> list[str]:
    """The commands in a message: between backticks, or up to the end of their line."""
    return re.findall(rf"(?:[A-Z_]+=\S+ )?datadiet (?:{'|'.join(COMMANDS)})\b[^\n`]*", text)


# --- quoting ------------------------------------------------------------------------------------


@pytest.mark.parametrize("caller", CALLERS, ids=lambda caller: caller.program)
@pytest.mark.parametrize("text", NASTY)
def test_any_name_comes_through_shell_mlflow_and_click(caller, text):
    line = caller.command("prepare_data", dataset=text, data_dir=f"{text}/data")
    assert parse(line, caller.program) == (
        "prepare_data",
        {"dataset": text, "data_dir": f"{text}/data", "archive": None, "download": True} | AS_BY_DEFAULT,
    )
    name, values = parse(caller.command("full_data", run=3, root=text), caller.program)
    assert (name, values["run"], values["root"]) == ("full_data", 3, Path(text))


def test_a_real_shell_reads_the_same_and_runs_nothing(tmp_path):
    line = commands.shell(*NASTY)
    done = subprocess.run(["bash", "-c", f"printf '%s\\0' {line}"], capture_output=True, cwd=tmp_path, check=True)
    assert done.stdout.decode().split("\0")[:-1] == NASTY
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "text", ["a\nrm -r x", "a\rb", "\x1b[2Jb", "a\x00b", "a\u202eb", "\x9b1mb", "a\u2028b", "\udcff"]
)
def test_what_a_terminal_would_obey_is_not_printed(text):
    for caller in CALLERS:
        line = caller.command("report", exp=text)
        assert line.isprintable()
        assert "\ufffd" in line
        line.encode()


def test_a_name_like_an_option_is_joined_to_its_own():
    assert commands.command("report", exp="--root") == "datadiet report --exp=--root"
    assert Caller(MLFLOW).command("report", exp="--root") == "mlflow run . -e report -P exp=--root"


def test_values_are_typed_as_options_take_them():
    values = {"fractions": (0.5, 0.3), "decay_steps": (), "resume": True, "augment": False, "width": None, "lr": 1e-4}
    assert commands.caller().spell("study", values) == (
        "datadiet study --fractions 0.5,0.3 --decay_steps none --resume true --augment false --lr 0.0001"
    )


def test_what_stands_for_a_value_stays_as_it_is():
    assert [commands.option("size", "N"), commands.option("manifest", "PATH/kept.csv")] == [
        "--size N",
        "--manifest PATH/kept.csv",
    ]
    assert Caller(MLFLOW).option("root", "FOLDER") == "-P root=FOLDER"


# --- how the user called ------------------------------------------------------------------------


def test_what_commands_share_is_what_they_take():
    assert list(SHARED) == list(COMMANDS)
    for name, shared in SHARED.items():
        command = group.get_command(click.Context(group), name)
        taken = {str(param.name) for param in command.params}
        assert taken & {"dataset", "model", "data_dir", *READING, "root", "offline"} == set(shared), name


def test_shared_options_are_added_where_they_are_taken():
    caller = Caller(shared={"root": Path("a b"), "offline": True, "dataset": "digits", "model": "mlp", "data_dir": "d"})
    assert caller.command("score", run=0, type="l2_error") == (
        "datadiet score --run 0 --type l2_error --root 'a b' --offline true"
    )
    assert caller.command("select", size=9, dataset="cinic10") == (
        "datadiet select --size 9 --dataset cinic10 --root 'a b' --offline true --data_dir d"
    )
    assert caller.command("prepare_data", data_dir=None) == "datadiet prepare_data --dataset digits"
    assert caller.command("report", exp="x", root=Path(".")) == "datadiet report --exp x"


def test_the_program_is_the_one_that_was_called(tmp_path, monkeypatch):
    monkeypatch.chdir(PROJECT)
    made = tmp_path / f"mlflow-{'0a' * 20}"
    made.mkdir()
    assert commands.module_program("entrypoints", PROJECT, tmp_path) == "mlflow run . --env-manager local"
    assert commands.module_program("entrypoints", PROJECT, made) == "mlflow run ."
    (made / "pyvenv.cfg").write_text("home = /usr/bin\n")
    assert commands.module_program("entrypoints", PROJECT, made) == "mlflow run . --env-manager virtualenv"
    (made / "pyvenv.cfg").write_text("home = /usr/bin\nuv = 0.9.1\n")
    assert commands.module_program("entrypoints", PROJECT, made) == "mlflow run . --env-manager uv"
    monkeypatch.chdir(tmp_path)
    assert commands.module_program("entrypoints", PROJECT, made) == "python -m entrypoints"
    assert commands.module_program("datadiet.entrypoints", tmp_path, made) == "python -m datadiet.entrypoints"


@pytest.fixture
def clone(tmp_path, monkeypatch) -> Path:
    """A project where `mlflow run` puts its clone of a git URL, entered as it does."""
    folder = tmp_path / "tmpab12cd34" / "inner"
    (folder.parent / ".git").mkdir(parents=True)
    folder.mkdir()
    (folder / "MLproject").touch()
    (folder.parent / ".git/config").write_text(
        '[core]\n\tbare = false\n[remote "origin"]\n\turl = https://ann:secret@host/a b.git\n'
        "\tfetch = +refs/heads/*:refs/remotes/origin/*\n"
    )
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.chdir(folder)
    return folder


def test_a_clone_of_a_git_url_is_run_again_by_its_url(clone, tmp_path, monkeypatch):
    program = commands.module_program("entrypoints", clone, tmp_path)
    assert program == "mlflow run 'https://ann:***@host/a b.git#inner' --env-manager local"
    assert Caller(program).command("score", run=0) == f"{program} -e score -P run=0"
    (clone.parent / ".git/config").write_text("[core]\n")
    assert commands.module_program("entrypoints", clone, tmp_path) == "mlflow run . --env-manager local"
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "elsewhere"))
    assert not commands.in_temporary_folder(clone)


@pytest.mark.parametrize("temporary", [True, False])
def test_below_mlflow_run_files_are_named_from_anywhere_and_a_temporary_project_is_said(
    clone, tmp_path, monkeypatch, temporary
):
    if not temporary:
        monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "elsewhere"))
    program = commands.module_program("entrypoints", clone, tmp_path)
    for root, said in [(".", temporary), ("out", temporary), (str(tmp_path / "stays"), False)]:
        words = ["full_data", "--root", root, "--offline", "true", "--dataset", "digits", "--model", "mlp"]
        words += ["--num_steps", "1", "--augment", "false", "--width", "8"]
        done = CliRunner().invoke(group, words, obj=program)
        assert done.exit_code == 0, done.output
        assert ("This project lies in a temporary folder" in done.output) == said
        assert ("Name a folder that stays: -P root=/FOLDER" in done.output) == said
        assert f" -> {(clone / root / 'exps/full_data/run_0').resolve()}\n" in done.output
        again = CliRunner().invoke(group, words, obj=program)
        assert f"{(clone / root / 'exps/full_data/run_0').resolve()}" in again.stderr


def test_a_module_called_elsewhere_than_in_the_checkout_names_itself(tmp_path):
    """Called in the checkout: test_the_program_is_the_one_that_was_called."""
    words = [sys.executable, "-m", "entrypoints", "score", "--run", "9", "--root", "a b"]
    done = call(words, tmp_path, tmp_path, expect=2)
    assert "python -m entrypoints full_data --run 9 --exp full_data --root 'a b'" in done.stderr


def test_an_experiment_of_mlflow_is_named_in_each_form():
    assert Caller().within("a b").command("results") == "MLFLOW_EXPERIMENT_NAME='a b' datadiet results"
    assert Caller(MLFLOW).within("a b").command("results") == "mlflow run . --experiment-name 'a b' -e results"


def test_a_caller_holds_for_a_block_only():
    with pytest.raises(ZeroDivisionError), commands.calling(Caller(MLFLOW)):
        1 / (commands.command("main") != "mlflow run .")
    assert commands.caller() == Caller()


def test_a_worker_prints_as_its_study_does(tmp_path, monkeypatch):
    from datadiet.study import engine

    @dataclass(frozen=True)
    class Parent:
        experiment_id: str | None = None

    monkeypatch.setattr(engine, "attach", lambda *_: Parent())
    caller = Caller(MLFLOW, {"root": tmp_path})
    output, store = Output(ExperimentLayout(tmp_path)), f"sqlite:///{tmp_path}/mlflow.db"
    sent = engine.Setting(output, "again", True, store, tmp_path, None, caller)
    with commands.calling(Caller()):
        pickle.loads(pickle.dumps(sent)).context(Console())
        assert commands.command("sync") == f"mlflow run . -e sync -P root={tmp_path}"


# --- mistakes, and what repairs them ------------------------------------------------------------


@pytest.fixture(scope="module")
def here(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("here")


@pytest.fixture(scope="module")
def root(here) -> Path:
    """A root that no shell reads as it stands, with three scored runs and their mean, made as a message says."""
    root = here / "it's a $(root)"
    refused = datadiet("keep_max", here, expect=2, root=root, size=700, **TINY)
    lines = printed(refused.stderr)
    names = [parse(line)[0] for line in lines]
    assert names == ["full_data", "score"] * 3 + ["mean_score"]
    for line in lines:
        name, values = parse(line)
        assert values["root"] == root
        if name == "full_data":
            assert (values["dataset"], values["model"], values["width"]) == ("digits", "mlp", 32)
            assert (values["num_steps"], values["augment"]) == (22, False)
        paste(line, here)
    datadiet("keep_max", here, root=root, size=700, **TINY)
    return root


def paste(line: str, folder: Path) -> None:
    """Run a printed command as it stands."""
    _, name, *words = shlex.split(line)
    datadiet(name, folder, **dict(zip((word.lstrip("-") for word in words[::2]), words[1::2], strict=True)))


def test_a_missing_run_to_score_is_trained_like_the_others(here, root):
    done = datadiet("score", here, expect=2, root=root, run=7)
    (line,) = printed(done.stderr)
    name, values = parse(line)
    assert (name, values["run"], values["exp"], values["root"]) == ("full_data", 7, "full_data", root)
    paste(line, here)
    datadiet("score", here, root=root, run=7)


def test_scores_of_missing_runs_are_made_by_what_is_printed(here, root):
    done = datadiet("mean_score", here, expect=2, root=root, n_runs=4, type="entropy")
    made = [parse(line) for line in printed(done.stderr)]
    assert [(name, values["run"]) for name, values in made] == [
        ("score", 0), ("score", 1), ("score", 2), ("full_data", 3), ("score", 3)
    ]  # fmt: skip
    for name, values in made:
        assert (values.get("type", ("entropy",)), values["root"]) == (("entropy",), root), name
    done = datadiet("mean_score", here, expect=2, root=root, n_runs=1, type="aum")
    for line in printed(done.stderr):  # as the run there is has gathered other scores
        paste(line, here)
    assert list(root.glob("exps/full_data_aum/aum_scores/ckpt_*.npy"))


def test_features_are_of_a_run_like_this_one(here, root):
    given = {"selector": "herding", "size": 9, "score_exp": "none", "exp": "x", "offline": "true"}
    done = datadiet("subset", here, expect=2, root=root, **given, **TINY)
    (line,) = printed(done.stderr)
    name, values = parse(line)
    assert (name, values["exp"], values["root"], values["offline"]) == ("full_data", "none", root, True)
    assert (values["dataset"], values["model"], values["num_steps"]) == ("digits", "mlp", 22)


def test_an_unfinished_run_is_continued_by_the_option_that_is_printed(here, root):
    given = {"root": root, "run": 5, "exp": "halfway", **TINY}
    datadiet("full_data", here, **given)
    (root / "exps/halfway/run_5/summary.json").unlink()
    done = datadiet("full_data", here, expect=2, **given)
    assert options(done.stderr) == {"resume": "true", "run": "N", "exp": "EXP", "overwrite": "true"}
    datadiet("full_data", here, **given, resume="true")


def options(text: str) -> dict[str, str]:
    """The options in a message."""
    return dict(re.findall(r"(?<= )--(\w+) ([\w/]+)", text))


def test_another_dataset_than_that_of_the_scored_runs(here, root):
    done = datadiet("keep_max", here, expect=2, root=root, size=25_000)
    assert options(done.stderr) == {"dataset": "digits", "score_exp": "EXP", "scores": "PATH"}


def test_no_study_to_report(here, root):
    done = datadiet("report", here, expect=2, root=root, exp="-x y;")
    (line,) = printed(done.stderr)
    name, values = parse(line)
    assert (name, values["exp"], values["root"]) == ("study", "-x y;", root)


def test_a_dataset_that_is_not_prepared(here, root):
    folder = here / 'my "data" $(here)'
    done = datadiet("full_data", here, expect=2, root=root, dataset="cifar10", data_dir=folder, exp="y")
    (line,) = printed(done.stderr)
    assert parse(line) == (
        "prepare_data",
        {"dataset": "cifar10", "data_dir": str(folder), "archive": None, "download": True} | AS_BY_DEFAULT,
    )


def test_no_finished_run_for_the_table(here, tmp_path):
    done = datadiet("results", here, expect=2, root=tmp_path / "a b", exps_path=tmp_path)
    train, named = printed(done.stderr.replace("`", "\n"))
    assert parse(train)[1]["root"] == parse(named.split(" ", 1)[1])[1]["root"] == tmp_path / "a b"


def test_the_command_that_repeats_this_one_overrides_a_plan_as_it_did(here, tmp_path):
    (tmp_path / "a plan.yaml").write_text("dataset: digits\nmodel: mlp\nwidth: 8\noverwrite: true\n")
    words = ["--plan", str(tmp_path / "a plan.yaml"), "--width", "auto", "--overwrite", "false", "--score_runs", "2"]
    command = group.get_command(click.Context(group), "study")
    from entrypoints.options import typed_command

    line = typed_command(command.make_context("study", words))
    name, values = parse(line)
    assert (name, values["width"], values["overwrite"], values["score_runs"]) == ("study", None, False, 2)
    assert (values["dataset"], values["model"]) == ("digits", "mlp")
    assert "digits" not in line, "the plan says it"


# --- no other place -----------------------------------------------------------------------------


def literals(path: Path) -> Iterator[tuple[int, str]]:
    """Text in a file that may be printed: all but docstrings, which the program never shows in an error.

    Those of commands are their help, so they are here too.
    """
    tree = ast.parse(path.read_text())
    documented = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    hidden = set()
    for node in ast.walk(tree):
        if isinstance(node, documented) and not any("click.command" in ast.unparse(d) for d in decorators(node)):
            first = node.body[0] if node.body else None
            if isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant):
                hidden.add(first.value)
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and node not in hidden:
            yield node.lineno, node.value


def decorators(node: ast.AST) -> list[ast.expr]:
    return getattr(node, "decorator_list", [])


def test_commands_are_spelled_in_one_place_only():
    spelled = re.compile(rf"mlflow run|(?:^|[\s(`])-P\b|datadiet (?:{'|'.join(COMMANDS)})\b|python -m entrypoints")
    own = PROJECT / "datadiet" / "commands.py"
    for path in [*(PROJECT / "datadiet").rglob("*.py"), *(PROJECT / "entrypoints").glob("*.py")]:
        found = [f"{path}:{line}: {text!r}" for line, text in literals(path) if spelled.search(text)]
        assert path == own or not found, found
    assert any(spelled.search(text) for _, text in literals(own)), "the search finds nothing"
