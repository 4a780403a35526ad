"""Click options made from TrainConfig, and what every command shares."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import Field
from pathlib import Path
from typing import Any

import click
from click.core import ParameterSource
from tqdm import tqdm

from datadiet import commands
from datadiet.config import FIELDS, MAX_RUNS, TrainConfig, check_text
from datadiet.errors import Interrupted, UserError
from datadiet.runs.context import Context, Output, Tracker
from datadiet.runs.signals import EXIT_CODE
from datadiet.selectors.coresets import Parameters
from datadiet.selectors.options import FEATURE_FIELDS
from datadiet.storage.layout import ExperimentLayout


class Optional(click.ParamType):
    """A value, or 'auto' (or nothing) for the derived default."""

    def __init__(self, kind: click.ParamType) -> None:
        self.kind = kind
        self.name = kind.name

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        return None if value in ("auto", "") else self.kind.convert(value, param, ctx)


class Steps(click.ParamType):
    """Comma-separated whole numbers, or 'none'."""

    name = "steps"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if value == "none":
            return ()
        try:
            return tuple(int(part) for part in value.split(","))
        except ValueError:
            self.fail(f"{value!r}: expected comma-separated whole numbers, or 'none'.", param, ctx)


class Location(click.Path):
    """The path of a file or folder that may be there or not."""

    def __init__(self) -> None:
        super().__init__(path_type=Path)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if not str(value):
            self.fail("expected a path, got nothing.", param, ctx)
        try:
            check_text("path", str(value))  # before the system is asked: of NUL it makes a ValueError
        except UserError as error:
            self.fail(str(error), param, ctx)
        return super().convert(value, param, ctx)


class Runs(click.ParamType):
    """Indices of runs: comma-separated whole numbers and ranges, both ends included."""

    name = "runs"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if isinstance(value, tuple):
            return value
        runs: list[int] = []
        for part in value.split(","):
            match = re.fullmatch(r"([0-9]{1,9})(?:-([0-9]{1,9}))?", part.strip())
            if not match or (match[2] and int(match[2]) < int(match[1])):
                self.fail(f"{value!r}: expected indices and rising ranges, as in 0-9 or 0,2,5.", param, ctx)
            if (last := int(match[2] or match[1])) > MAX_RUNS:
                self.fail(f"{last}: expected at most {MAX_RUNS}: seeds go no further.", param, ctx)
            runs += range(int(match[1]), last + 1)
        if len(set(runs)) < len(runs):
            self.fail(f"{value!r}: expected each run once.", param, ctx)
        return tuple(runs)


class Names(click.ParamType):
    """Comma-separated names, or 'none'."""

    name = "names"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        return value if isinstance(value, tuple) else tuple(value.split(",")) if value != "none" else ()


TYPES = {"int": click.INT, "float": click.FLOAT, "bool": click.BOOL, "str": click.STRING}
TYPES |= {"tuple[int, ...]": Steps(), "tuple[str, ...]": Names()}


def _click_type(field: Field) -> click.ParamType:
    """The type of a TrainConfig field; one that can be derived also takes 'auto'."""
    kind = TYPES[str(field.type).removesuffix(" | None")]
    return Optional(kind) if field.default is None else kind


def field_option(field: Field, default: Any, kind: click.ParamType, names: tuple[str, ...] = ()) -> Callable:
    """The click option of a field made by `config.option`."""
    text = field.metadata["help"] + (f" One of: {', '.join(names)}." if names else "")
    if default is None:
        shown = f"[default: {field.metadata['auto']}]"
    elif isinstance(default, tuple):
        shown = f"[default: {','.join(map(str, default))}]"
    else:
        shown = f"[default: {default if isinstance(default, str) else repr(default).lower()}]"
    return click.option(f"--{field.name}", type=kind, default=default, help=f"{text}  {shown}")


def config_option(name: str, default: Any, names: tuple[str, ...] = ()) -> Callable:
    """The click option of a TrainConfig field."""
    return field_option(FIELDS[name], default, _click_type(FIELDS[name]), names)


def required_option(name: str, names: tuple[str, ...] = ()) -> Callable:
    field = FIELDS[name]
    text = field.metadata["help"] + (f" One of: {', '.join(names)}." if names else "")
    return click.option(f"--{name}", type=_click_type(field), required=True, help=text)


# An entry point's own.
NOT_TRAINING = ("selector", "size", "scores", "manifest", *Parameters._fields, *FEATURE_FIELDS)


def training_options(without: tuple[str, ...] = (), **defaults: Any) -> Callable:
    """Every training option of the contract, with other defaults where given."""
    from datadiet.data.registry import KNOWN
    from datadiet.models.registry import MODELS

    known = {"dataset": KNOWN, "model": tuple(MODELS)}

    def decorate(command: Callable) -> Callable:
        for name in reversed([n for n in FIELDS if n not in (*NOT_TRAINING, *without)]):
            default = defaults.get(name, FIELDS[name].default)
            command = config_option(name, default, known.get(name, ()))(command)
        return command

    return decorate


ROOT = click.option("--root", type=Location(), default=".", help="Folder of exps/.  [default: .]")
EXP = click.option("--exp", type=Optional(click.STRING), help="Experiment folder below exps/.  [default: see above]")
OVERWRITE = click.option("--overwrite", type=click.BOOL, default=False, help="Replace old results.  [default: false]")
OFFLINE = click.option(
    "--offline", type=click.BOOL, default=False, help="Do not call MLflow: all that it has to know stays in exps/, and "
    "`sync` tells it later.  [default: false]",
)  # fmt: skip

RUNS = click.option(
    "--runs",
    type=Optional(Runs()),
    help="Indices of several runs instead of run, as in 0-9 or 0,2,5: each with its own seeds, folder and MLflow run, "
    "trained at the same time where that is faster.  [default: the one of run]",
)

RESUME = click.option(
    "--resume",
    type=click.BOOL,
    default=False,
    help="Continue an unfinished run from its last good checkpoint; start where there is none, and leave a finished "
    "one as it is.  [default: false]",
)


def place_options(command: Callable) -> Callable:
    """root, exp, overwrite and offline."""
    return ROOT(EXP(OVERWRITE(OFFLINE(command))))


SCORE_EXP = click.option(
    "--score_exp", type=Optional(click.STRING), help="Experiment that holds the scored runs.  [default: full_data]"
)


class Console:
    """Reporter on a terminal; without one, only the lines that stay."""

    @contextmanager
    def counter(self, total: int, label: str) -> Iterator[Callable[[int], Any]]:
        with tqdm(total=total, desc=label, leave=False, disable=None, dynamic_ncols=True) as bar:
            yield bar.update

    def say(self, text: str) -> None:
        tqdm.write(text)


def typed_command(ctx: click.Context) -> str:
    """The command that repeats this one: its options that differ from their defaults and from a plan's."""
    values = {}
    for param in ctx.command.params:
        value, planned = ctx.params[param.name], param.name in (ctx.default_map or {})
        given = ctx.get_parameter_source(param.name) not in (ParameterSource.DEFAULT, ParameterSource.DEFAULT_MAP)
        if given and (planned or value not in (None, param.get_default(ctx))):
            values[param.opts[0].lstrip("-")] = "auto" if value is None else value
    return commands.caller().spell(str(ctx.info_name), values)


# Where an option has these values, a command that leaves it out means the same; `main` has other defaults of its own.
_UNSAID = {name: FIELDS[name].default for name in ("dataset", "model", "data_dir")} | {"root": Path(), "offline": False}


def _caller(ctx: click.Context) -> commands.Caller:
    """How the user called; the program is the console script's where none was told."""
    shared = {name: ctx.params[name] for name in _UNSAID if ctx.params.get(name, _UNSAID[name]) != _UNSAID[name]}
    return commands.Caller(ctx.find_root().obj or commands.DATADIET, shared)


def make_context(
    root: Path, overwrite: bool = False, names_selector: bool = False, resume: bool = False, offline: bool = False
) -> Context:
    """Where the current command writes and how it reports; see `ExperimentLayout` for names_selector.

    Raises:
        UserError: root is no folder.
    """
    if root.exists() and not root.is_dir():
        raise UserError(f"root={root}: expected a folder.")
    output = Output(ExperimentLayout(root, names_selector), overwrite, resume)
    reporter = Console()
    tracker = Tracker(root, typed_command(click.get_current_context()), reporter.say, offline=offline)
    return Context(output, reporter, tracker)


def make_config(values: dict[str, Any], **fixed: Any) -> TrainConfig:
    """A TrainConfig from click's values."""
    return TrainConfig(**{name: value for name, value in values.items() if name in FIELDS}, **fixed)


class Repairable(click.ClickException):
    """A UserError as one message, without a traceback."""

    exit_code = 2


class Stopped(click.ClickException):
    """An Interrupted as one message; the exit code tells a scheduler to try again."""

    exit_code = EXIT_CODE


def _check_texts(ctx: click.Context) -> None:
    for param in ctx.command.params:
        value = ctx.params.get(param.name or "")
        for text in value if isinstance(value, tuple) else (value,):
            if isinstance(text, str):
                check_text(param.opts[0].lstrip("-"), text)


def repairable(command: Callable) -> Callable:
    """Show a UserError as one message with exit code 2, an Interrupted with EXIT_CODE, without a traceback."""

    @functools.wraps(command)
    def wrapped(*args: Any, **kwargs: Any) -> Any:
        ctx = click.get_current_context()
        try:
            with commands.calling(_caller(ctx)):
                _check_texts(ctx)
                return command(*args, **kwargs)
        except UserError as error:
            raise Repairable(str(error)) from None
        except Interrupted as error:
            raise Stopped(str(error)) from None

    return wrapped
