"""Help: options in groups, the few that matter first, examples that work."""

from __future__ import annotations

import re
import shlex

import click
import pytest
from click.shell_completion import ShellComplete
from click.testing import CliRunner

from datadiet.commands import MLFLOW
from datadiet.option import fields_of
from datadiet.study.options import EngineOptions
from datadiet.study.plan import Plan
from datadiet.train_config import TrainConfig
from entrypoints.__main__ import COMMANDS, main
from entrypoints.examples import EXAMPLES
from entrypoints.known import GROUPS


def said(*words: str, program: str | None = None) -> str:
    done = CliRunner().invoke(main, list(words), prog_name="datadiet", obj=program)
    assert done.exit_code == 0, done.output
    return done.output


def sections(text: str) -> dict[str, list[str]]:
    """Names of the options by the heading that they stand below."""
    found: dict[str, list[str]] = {}
    for line in text.splitlines():
        if head := re.fullmatch(r"(\w+):", line):
            found[head[1]] = []
        elif option := re.match(r"  (?:-\w, )?--([\w-]+)", line):
            found[list(found)[-1]].append(option[1])
    return found


def test_options_stand_in_groups_and_the_few_that_matter_come_first():
    few, all_of_them = sections(said("study", "--help")), sections(said("study", "--help-all"))
    titles = list(GROUPS.values())
    assert [title for title in all_of_them if title in titles] == [t for t in titles if all_of_them.get(t)]
    assert few["Study"][0] == "plan"
    assert few["Data"][0] == "dataset"
    assert few["Subset"] == ["selectors", "fractions"]
    assert "cutoff" in all_of_them["Subset"]
    shown, known = sum(map(len, few.values())), sum(map(len, all_of_them.values()))
    assert shown < known / 2
    assert f"{known - shown} more options: datadiet study --help-all" in said("study", "--help")


@pytest.mark.parametrize("options", [TrainConfig, Plan, EngineOptions])
def test_every_option_is_in_a_group_that_there_is(options):
    assert {option.group for option in fields_of(options).values()} <= set(GROUPS)


@pytest.mark.parametrize("name", COMMANDS)
def test_each_command_has_two_examples_that_it_reads(name):
    assert len(EXAMPLES[name]) == 2
    lines = re.split(r"Examples:\n", said(name, "--help"))[1].strip().splitlines()
    assert len(lines) == 2
    command = main.get_command(click.Context(main), name)
    assert command is not None
    for line in lines:
        words = shlex.split(line)
        assert words[:2] == ["datadiet", name]
        if "plan.yaml" not in words:
            command.make_context(name, words[2:])
    by_mlflow = said(name, "--help", program=MLFLOW)
    assert by_mlflow.split("Examples:\n")[1].strip().startswith("mlflow run .")


def test_a_shell_completes_commands_and_options():
    complete = ShellComplete(main, {}, "datadiet", "_DATADIET_COMPLETE")
    assert [item.value for item in complete.get_completions([], "rep")] == ["report"]
    assert "--fractions" in [item.value for item in complete.get_completions(["study"], "--fr")]
