"""Whatever is typed: one message, exit code 2, no traceback, nothing written, no data loaded."""

from __future__ import annotations

import contextlib
import functools
from pathlib import Path
from typing import Any

import click
import mlflow
import pytest
from click.testing import CliRunner, Result
from conftest import QUICK
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from entrypoints.__main__ import COMMANDS, main
from entrypoints.options import Amount, Listed, Location, Optional

TRAINED = ("full_data", "random_subset", "keep_max", "offset_subset", "subset", "study", "main")
VALID: dict[str, dict[str, Any]] = {name: dict(QUICK) for name in TRAINED}  # what is right but for one option
VALID |= {name: {**QUICK, "size": 9} for name in ("random_subset", "keep_max", "offset_subset")}
VALID |= {"subset": {**QUICK, "selector": "keep_max", "size": 9}, "prepare_data": {"dataset": "digits"}}
VALID |= {"select": {"dataset": "digits", "selector": "keep_max", "size": 9}}
VALID |= {"export": {"kept": "kept.csv", "output": "x.csv", "dataset": "digits"}, "inspect": {"dataset": "digits"}}
VALID |= {"predictions": {"dataset": "digits", "files": "x.npy", "step": 9}, "decide": {"results": "x.csv"}}
# Any text, as far as is known.
FREE = {"archive", "ray_address", "score_type", "manifest", "features_run", "scores", "like"}

NOT_WHOLE = st.sampled_from(["x", "1.5", "nan", "inf", "1e3", "0x10", "--", "1 2", "½", "\x00", "9" * 5000]) | st.text(
    st.characters(categories=["L", "P", "S"]), min_size=1
).filter(lambda text: text != "auto")
NEGATIVE = st.integers(max_value=-1).map(str)
HUGE = st.integers(min_value=10**9 + 1).map(str)
NOT_REAL = st.sampled_from(["x", "nan", "-nan", "inf", "-inf", "1e999", "1e300", "1,5", "\x00", "--"])
NEGATIVE_REAL = st.floats(max_value=-1e-300, allow_infinity=False).map(str)
NOT_BOOLEAN = st.sampled_from(["maybe", "2", "nan", "-1", "truefalse", "\x00"])
NOT_TEXT = st.sampled_from(["\x00", "a\x00b", "a\nb", "\x1b[31m", "x" * 300, "/".join(["x"] * 2000), "\ud800"])
OUTSIDE = st.sampled_from(["../../x", "/tmp/x", "..", "a/../../b", "a//b", "./a", "~", ".hidden", "a b", "-x", "a\\b"])
UNKNOWN = st.text(min_size=1, max_size=9).map(lambda text: f"no such {text}")


@functools.cache
def commands() -> dict[str, click.Command]:
    context = click.Context(main)
    found = {name: main.get_command(context, name) for name in COMMANDS}
    return {name: command for name, command in found.items() if command}


def bad_values(command: str, option: click.Parameter) -> st.SearchStrategy[str] | None:
    """Texts that this option has to refuse; None where all are right."""
    kind = option.type.kind if isinstance(option.type, Optional) else option.type
    if isinstance(kind, click.IntRange) or option.name == "workers":
        return NOT_WHOLE | NEGATIVE
    if kind is click.INT:
        return NOT_WHOLE | NEGATIVE | HUGE
    if isinstance(kind, Amount):
        return (
            NOT_WHOLE
            | NEGATIVE
            | HUGE
            | NOT_REAL
            | st.sampled_from(["1.0", "0.0", "150%", "100%", "0%", "%", "50 50%"])
        )
    if kind is click.FLOAT:
        return NOT_REAL | NEGATIVE_REAL
    if kind is click.BOOL and isinstance(option, click.Option) and option.flag_value == "true":
        return NOT_BOOLEAN.filter(lambda text: text != "-1")  # another option, to click: the value may be left out
    if kind is click.BOOL:
        return NOT_BOOLEAN
    if isinstance(kind, Listed):
        return bad_values(command, click.Option(["--x"], type=kind.kind))
    if isinstance(kind, Location):
        return NOT_TEXT
    if option.name in ("exp", "score_exp"):
        return OUTSIDE | NOT_TEXT
    if option.name == "data_dir":
        return NOT_TEXT | st.just("~nouser/x")
    free = option.name in FREE or (command, option.name) == ("decide", "model")  # a name for the report
    return NOT_TEXT if free else UNKNOWN | NOT_TEXT


PAIRS = [
    (name, option.name, bad)
    for name, command in commands().items()
    for option in command.params
    if option.name and (bad := bad_values(name, option)) is not None
]


def typed(command: str, folder: Path, options: dict[str, Any]) -> Result:
    mlflow.set_tracking_uri(f"sqlite:///{folder}/mlflow.db")
    with contextlib.chdir(folder):
        return CliRunner().invoke(main, [command, *(f"--{name}={value}" for name, value in options.items())])


def refused(done: Result, folder: Path) -> None:
    assert done.exit_code == 2, (done.exit_code, done.output, done.exception)
    assert isinstance(done.exception, SystemExit), done.exception
    assert done.stderr.count("Error: ") == 1
    assert not done.stdout
    assert "Traceback" not in done.output
    assert not list(folder.iterdir()), "something was written"


def flag(command: str, name: str) -> str:
    (option,) = [option for option in commands()[command].params if option.name == name]
    return option.opts[0].lstrip("-")


@pytest.mark.parametrize(("command", "name", "bad"), PAIRS, ids=[f"{c}-{n}" for c, n, _ in PAIRS])
def test_what_an_option_cannot_be_is_refused_by_its_name(tmp_path, monkeypatch, command, name, bad):
    monkeypatch.setattr("datadiet.data.registry.build_dataset", lambda *_: pytest.fail("data were loaded"))
    option = flag(command, name)

    @settings(
        max_examples=6, deadline=None, derandomize=True, database=None, phases=[Phase.explicit, Phase.generate],
        suppress_health_check=list(HealthCheck),
    )  # fmt: skip
    @given(value=bad)
    def holds(value: str) -> None:
        done = typed(command, tmp_path, VALID.get(command, {}) | {option: value})
        refused(done, tmp_path)
        assert option.removeprefix("score_") in done.stderr, (value, done.stderr)

    holds()
