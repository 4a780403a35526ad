"""Click options made from TrainConfig, and what every command shares."""

from __future__ import annotations

import functools
import os
import re
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import click
from click.core import ParameterSource

from datadiet import commands
from datadiet.config import FIELDS, TrainConfig, find_option, given_config
from datadiet.data.reading import NAMES as READING
from datadiet.data.registry import known_datasets
from datadiet.errors import Interrupted, UserError
from datadiet.models.registry import MODELS
from datadiet.option import Option, check_text
from datadiet.runs.console import Console, Level
from datadiet.runs.context import DATA_ON as PLACES
from datadiet.runs.context import DEVICES as COUNT
from datadiet.runs.context import Context, Output, Tracker
from datadiet.scores import trajectory
from datadiet.selectors.options import FEATURE_FIELDS, LIKE, option_names
from datadiet.storage.layout import ExperimentLayout

from .amount import Amount as Amount
from .ends import Repairable as Repairable
from .ends import Stopped
from .indices import Runs
from .known import HELP_ALL, Grouped, Known, own_option
from .recipe import RECIPE, from_recipe
from .saying import JSON as JSON
from .saying import LEVEL, QUIET, VERBOSE
from .saying import is_json as is_json


class Optional(click.ParamType):
    """A value, or 'auto' (or nothing) for the derived default."""

    def __init__(self, kind: click.ParamType) -> None:
        self.kind = kind
        self.name = kind.name

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        return None if value in ("auto", "") else self.kind.convert(value, param, ctx)


class Listed(click.ParamType):
    """Comma-separated values of one type, or 'none'."""

    def __init__(self, kind: click.ParamType, words: str) -> None:
        self.kind, self.words = kind, words
        self.name = words.split()[-1]

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if value == "none":
            return ()
        parts = value if isinstance(value, list | tuple) else str(value).split(",")
        try:
            return tuple(self.kind.convert(str(part).strip(), param, ctx) for part in parts)
        except click.BadParameter as error:
            told = f"{value!r}: expected comma-separated {self.words}, or 'none': {error.message}"
            self.fail(told, param, ctx)


class Devices(click.ParamType):
    """How many devices, or all."""

    name = "devices"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        if not re.fullmatch(COUNT, str(value)):
            self.fail(f"devices={str(value)[:80]}: expected a whole number of at least 1, or all.", param, ctx)
        return str(value)


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


TYPES = {  # and what several are called
    int: (click.INT, "whole numbers"), float: (click.FLOAT, "numbers"), bool: (click.BOOL, "true or false"),
    str: (click.STRING, "names"),
}  # fmt: skip


def click_type(option: Option) -> click.ParamType:
    """How the command line reads an option; its bounds are checked with all others, by `config.validate`."""
    one, words = TYPES[option.type]
    kind = Amount(option) if option.amount else Listed(one, words) if option.many else one
    return Optional(kind) if option.optional else kind


def _one_of(names: tuple[str, ...]) -> str:
    return f" One of: {', '.join(names)}." if names else ""


def option_of(option: Option, default: Any, names: tuple[str, ...] = ()) -> Callable:
    """The click option of an option, with its bounds in its help."""
    if default is None:
        shown = option.auto or "none"
    elif isinstance(default, tuple):
        shown = ",".join(map(str, default)) or "none"
    else:
        shown = default if isinstance(default, str) else repr(default).lower()
    bounds = f"; {option.bounds}" if str(option.bounds) else ""
    return click.option(
        f"--{option.name}",
        type=click_type(option),
        default=default,
        help=f"{option.help}{_one_of(names)}  [default: {shown}{bounds}]",
        cls=Grouped,
        group=option.group,
        first=option.first,
    )


def config_option(name: str, default: Any, names: tuple[str, ...] = ()) -> Callable:
    """The click option of an option of TrainConfig, or of one that an entry of a registry brings."""
    return option_of(find_option(name), default, names)


def selector_options() -> list[Callable]:
    """Every option of selectors, as of now."""
    return [config_option(name, find_option(name).default) for name in option_names()]


def reading_options() -> list[Callable]:
    """How data is read."""
    return [config_option(name, find_option(name).default) for name in READING]


def required_option(name: str, names: tuple[str, ...] = ()) -> Callable:
    option = find_option(name)
    return click.option(
        f"--{name}",
        type=click_type(option),
        required=True,
        help=option.help + _one_of(names),
        cls=Grouped,
        group=option.group,
    )


def training_options(without: tuple[str, ...] = (), **defaults: Any) -> Callable:
    """Every training option of the contract and of statistics, as of now, with other defaults where given."""
    known = {"dataset": known_datasets(), "model": tuple(MODELS)}
    own = ("selector", "size", "scores", "manifest", LIKE, *option_names(), *FEATURE_FIELDS)  # of entry points
    names = [name for name in dict.fromkeys([*FIELDS, *trajectory.option_names()]) if name not in (*own, *without)]

    def decorate(command: Callable) -> Callable:
        for name in reversed(names):
            default = defaults.get(name, find_option(name).default)
            command = config_option(name, default, known.get(name, ()))(command)
        return RECIPE(command)

    return decorate


ROOT = own_option("root", "output", Location(), "Folder of exps/.  [default: .]", default=".")
EXP = own_option(
    "exp", "output", Optional(click.STRING), "Experiment folder below exps/.  [default: see above]"
)  # fmt: skip
ONE_EXP = click.option(
    "--exp", type=Optional(click.STRING), help="Only runs of this experiment folder.  [default: all]"
)
OVERWRITE = own_option("overwrite", "output", click.BOOL, "Replace old results.  [default: false]", default=False)
OFFLINE = own_option(
    "offline", "tracking", click.BOOL, "Do not call MLflow: all that it has to know stays in exps/, and `sync` tells "
    "it later.  [default: false]", default=False,
)  # fmt: skip
RUNS = own_option(
    "runs", "training", Optional(Runs()), "Indices of several runs instead of run, as in 0-9 or 0,2,5: each with its "
    "own seeds, folder and MLflow run, trained at the same time where that is faster.  [default: the one of run]",
)  # fmt: skip
DATA_ON = own_option(
    "data_on", "training", click.Choice(PLACES), "Where images lie while networks train: on the device, or on disk, "
    "from where they are read meanwhile; auto: on the device where they take at most half of what is free there. No "
    "result depends on it.  [default: auto]", default="auto", first=False,
)  # fmt: skip
DEVICES = own_option(
    "devices", "training", Devices(), "How many GPUs do the work together, each a part of every batch; or "
    "all. Results are equal to rounding.  [default: 1]", default="1", first=False,
)  # fmt: skip
HOSTS = own_option(
    "hosts", "training", Optional(click.STRING), "One training on several machines: ADDRESS:PORT,PROCESS,PROCESSES, "
    "where process 0 listens, which of them this is, and how many there are; the same command on each, with its own "
    "PROCESS. Or cluster, where Slurm, MPI or Kubernetes begin them. Process 0 alone writes.  [default: none]",
    default=None, first=False,
)  # fmt: skip


def place_options(command: Callable) -> Callable:
    """root, exp, overwrite and offline."""
    return ROOT(EXP(OVERWRITE(OFFLINE(command))))


SCORE_EXP = own_option(
    "score_exp", "score", Optional(click.STRING), "Experiment that holds the scored runs.  [default: full_data]"
)


def _placed(ctx: click.Context, text: str) -> str:
    """A message in which files below a relative root are named from anywhere: `mlflow run` works in the folder of the
    project, not in the user's. Commands, which name them after '=', are typed there too."""
    root = ctx.params.get("root")
    if root is None or root.is_absolute() or not _caller(ctx).by_mlflow:
        return text
    relative = re.escape(f"{(root / 'exps').as_posix()}/")
    return re.sub(rf"(?<![\w/.=-]){relative}", lambda _: f"{root.absolute().as_posix()}/exps/", text)


def console() -> Console:
    """Reports as much as the current command was asked to."""
    ctx = click.get_current_context()
    return Console(ctx.meta.get(LEVEL, Level.USUAL), partial(_placed, ctx))


def _typed(ctx: click.Context) -> dict[str, Any]:
    """Options that differ from their defaults and from a plan's, as they are typed."""
    values = {}
    for param in ctx.command.params:
        if param.name not in ctx.params:  # how much is said
            continue
        value, planned = ctx.params[param.name], param.name in (ctx.default_map or {})
        given = ctx.get_parameter_source(param.name) not in (ParameterSource.DEFAULT, ParameterSource.DEFAULT_MAP)
        if given and (planned or value not in (None, param.get_default(ctx))):
            values[param.opts[0].lstrip("-")] = "auto" if value is None else value
    return values


def typed_command(ctx: click.Context) -> str:
    """The command that repeats this one."""
    return commands.caller().spell(str(ctx.info_name), _typed(ctx))


# Where an option has these values, a command that leaves it out means the same; `main` has other defaults of its own.
_UNSAID = {name: FIELDS[name].default for name in ("dataset", "model", "data_dir", *READING)} | {
    "root": Path(),
    "offline": False,
}


def _caller(ctx: click.Context) -> commands.Caller:
    """How the user called; the program is the console script's where none was told."""
    shared = {name: ctx.params[name] for name in _UNSAID if ctx.params.get(name, _UNSAID[name]) != _UNSAID[name]}
    return commands.Caller(ctx.find_root().obj or commands.DATADIET, shared, ctx.info_name, _typed(ctx))


def make_context(
    root: Path, overwrite: bool = False, names_selector: bool = False, resume: bool = False, offline: bool = False,
    data_on: str = "auto", log_model: bool = False, devices: str = "1", hosts: str | None = None,
) -> Context:  # fmt: skip
    """Where the current command writes and how it reports; see `ExperimentLayout` for names_selector.

    Raises:
        UserError: root is no folder.
    """
    if root.exists() and not root.is_dir():
        raise UserError(f"root={root}: expected a folder.")
    output = Output(ExperimentLayout(root, names_selector), overwrite, resume)
    ctx = click.get_current_context()
    reporter = console()
    if commands.caller().by_mlflow and not root.is_absolute() and commands.in_temporary_folder(Path.cwd()):
        reporter.say(
            f"This project lies in a temporary folder, {Path.cwd()}, as MLflow makes one of a git URL: files go to "
            f"{root.absolute() / 'exps'}, where the next command does not look. Name a folder that stays: "
            f"{commands.option('root', '/FOLDER')}"
        )
    tracker = Tracker(root, typed_command(ctx), reporter.say, offline=offline, log_model=log_model)
    return Context(output, reporter, tracker, data_on, devices, hosts)


def make_config(values: dict[str, Any], **fixed: Any) -> TrainConfig:
    """A TrainConfig from click's values, and those of a recipe where one is asked for."""
    ctx = click.get_current_context()
    return given_config(values | from_recipe(ctx, values, console().say) | fixed)


def _check_texts(ctx: click.Context) -> None:
    try:
        (here := os.getcwd()).encode()
    except UnicodeEncodeError:
        raise UserError(
            f"{here}: expected to be called in a folder whose path is UTF-8; MLflow takes no other."
        ) from None
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
            raise Repairable(_placed(ctx, str(error))) from None
        except Interrupted as error:
            raise Stopped(_placed(ctx, str(error))) from None

    return wrapped


def make_command(name: str, function: Callable, *options: Callable, **attributes: Any) -> click.Command:
    """A command with options in this order; made anew at each call, because registries may have grown."""
    command = repairable(function)
    for decorate in reversed((*options, VERBOSE, QUIET, HELP_ALL)):
        command = decorate(command)
    return click.command(name, cls=Known, **attributes)(command)
