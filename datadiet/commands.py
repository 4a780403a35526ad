"""Every command and option that a message prints: spelled as the user called, quoted for a shell, ready to be pasted.

What is called is the process's, not a context's: threads that log and workers of a study print commands too.
"""

from __future__ import annotations

import configparser
import difflib
import re
import shlex
import sys
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from datadiet.printable import UNSEEN, masked

DATADIET = "datadiet"
MLFLOW_RUN = "mlflow run"
MLFLOW = f"{MLFLOW_RUN} ."

_DATA = ("dataset", "data_dir", "image_size", "test_fraction", "test_split", "labels", "skip_bad")
_TRAINING = (*_DATA, "model", "root", "offline")
# Entry point -> those of the options that commands of one session share which it takes.
SHARED = {
    **dict.fromkeys(("main", "study", "full_data", "random_subset", "keep_max", "offset_subset", "subset"), _TRAINING),
    "select": (*_DATA, "root", "offline"),
    "export": (*_DATA, "root", "offline"),
    "score": ("root", "offline"),
    "mean_score": ("root", "offline"),
    "analyze": ("root", "offline"),
    "predictions": (*_DATA, "root", "offline"),
    "report": ("root",),
    "decide": _TRAINING,
    "inspect": _TRAINING,
    "prepare_data": _DATA,
    "sync": ("root",),
    "results": ("root", "offline"),
}


def shell(*words: object) -> str:
    """Words as one line for a shell; a character that cannot be shown becomes U+FFFD, so that no line breaks."""
    return " ".join(shlex.quote(UNSEEN.sub("\N{REPLACEMENT CHARACTER}", str(word))) for word in words)


def of_mlflow(*words: object) -> str:
    """A command of MLflow's own."""
    return shell("mlflow", *words)


def typed(value: Any) -> str:
    """A value as it is typed, before quoting: true or false, and several joined by commas ('none' without any)."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list | tuple):
        return ",".join(map(typed, value)) or "none"
    return str(value)


@dataclass(frozen=True)
class Caller:
    """How the user called, which a printed command repeats.

    Attributes:
        program: What stands before the name of an entry point: DATADIET, MLFLOW with options of its own, or
            python -m and a package.
        shared: Options that other commands have to repeat, by name; those that `SHARED` lists.
        entry_point: Of the command that was typed; None: none was, as in a program.
        typed: Its options, by name.
    """

    program: str = DATADIET
    shared: Mapping[str, Any] = field(default_factory=dict)
    entry_point: str | None = None
    typed: Mapping[str, Any] = field(default_factory=dict)

    @property
    def by_mlflow(self) -> bool:
        return self.program.startswith(f"{MLFLOW.split()[0]} ")

    def option(self, name: str, value: Any) -> str:
        """One option with its value, or with what stands for one, as in `--size N`."""
        text = typed(value)
        if self.by_mlflow:
            return f"-P {shell(f'{name}={text}')}"
        return shell(f"--{name}={text}") if text.startswith("-") else shell(f"--{name}", text)

    def spell(self, entry_point: str, values: Mapping[str, Any]) -> str:
        """A whole command with these options and no others; None: left out."""
        words = [self.program, *(["-e"] if self.by_mlflow else []), entry_point]
        if self.by_mlflow and entry_point == "main":  # which `mlflow run` runs where none is named
            words = [self.program]
        options = [self.option(name, value) for name, value in values.items() if value is not None]
        return " ".join([*words, *options])

    def command(self, entry_point: str, /, **values: Any) -> str:
        """A whole command with these options, and with the shared ones that the entry point takes; None: left out."""
        shared = {name: value for name, value in self.shared.items() if name in SHARED.get(entry_point, ())}
        wanted = {**values, **{name: value for name, value in shared.items() if name not in values}}
        return self.spell(entry_point, {k: v for k, v in wanted.items() if k != "root" or Path(v) != Path(".")})

    def again(self, **changes: Any) -> str:
        """The command that was typed, with some options changed; where none was, these options alone. None: auto."""
        changed = {name: "auto" if value is None else value for name, value in changes.items()}
        if self.entry_point is None:
            return " ".join(self.option(name, value) for name, value in changed.items())
        return self.spell(self.entry_point, {**self.typed, **changed})

    def goes_on(self) -> str:
        """The command that was typed, where it is to replace nothing: neither by itself nor by its plan."""
        return self.without("overwrite").again(**{"overwrite": False} if "plan" in self.typed else {})

    def without(self, name: str) -> Caller:
        """The same, as if an option had not been typed."""
        return replace(self, typed={typed: value for typed, value in self.typed.items() if typed != name})

    def typed_again(self, entry_point: str, words: Sequence[str]) -> str:
        """A whole command with these words behind it, as a program was given them."""
        if not self.by_mlflow:
            return f"{self.program} {shell(entry_point, *words)}"
        values = dict(zip((word.lstrip("-") for word in words[::2]), words[1::2]))  # as MLflow gives them
        return self.spell(entry_point, values)

    def within(self, experiment: str) -> Caller:
        """The same, for commands in an experiment of MLflow."""
        name = shell(experiment)
        if self.by_mlflow:
            return replace(self, program=f"{self.program} --experiment-name {name}")
        return replace(self, program=f"MLFLOW_EXPERIMENT_NAME={name} {self.program}")


_caller = Caller()


def caller() -> Caller:
    """How this process was called; one that nobody told is a library's, where `datadiet` is what may be typed."""
    return _caller


def become(caller: Caller) -> None:
    """Print commands as `caller` calls: in a worker, as the study does that it works for."""
    global _caller
    _caller = caller


@contextmanager
def calling(caller: Caller) -> Iterator[None]:
    """Print commands as `caller` calls, for the length of a `with` block."""
    before = _caller
    become(caller)
    try:
        yield
    finally:
        become(before)


def option(name: str, value: Any) -> str:
    """See `Caller.option`."""
    return _caller.option(name, value)


def command(entry_point: str, /, **values: Any) -> str:
    """See `Caller.command`."""
    return _caller.command(entry_point, **values)


def again(**changes: Any) -> str:
    """See `Caller.again`."""
    return _caller.again(**changes)


def goes_on() -> str:
    """See `Caller.goes_on`."""
    return _caller.goes_on()


def meant(name: str, given: str, known: Iterable[str]) -> str:
    """The command with the value that was probably meant, behind a message that lists what is known; empty where none
    of that is like what was given."""
    close = difflib.get_close_matches(given[:80], list(known), 1)
    return f" Did you mean {close[0]}? {again(**{name: close[0]})}" if close else ""


def module_program(package: str, project: Path, prefix: Path | None = None) -> str:
    """The program of a process that was begun as `python -m <package>`, which is how MLproject begins it.

    Args:
        package: That holds the entry points.
        project: Folder of the package, where a checkout has MLproject.
        prefix: Of the Python environment; None: of this one.
    Returns:
        MLFLOW in the checkout itself, or the same with the URL that MLflow made the checkout of; elsewhere there is
        nothing that `mlflow run .` could run.
    """
    if not (project / "MLproject").is_file() or project != Path.cwd():
        return f"python -m {package}"
    manager = _env_manager(Path(sys.prefix) if prefix is None else prefix)
    program = shell(*MLFLOW_RUN.split(), _source(project))
    return program if manager is None else f"{program} --env-manager {manager}"


def in_temporary_folder(project: Path) -> bool:
    """Whether a project lies where MLflow puts the clone that it makes of a git URL, or beside it."""
    return project.resolve().is_relative_to(Path(tempfile.gettempdir()).resolve())


def _source(project: Path) -> str:
    """What `mlflow run` is told to run: the URL that MLflow made its temporary clone of, or '.'."""
    clone = next((folder for folder in (project, *project.parents) if (folder / ".git").exists()), project)
    by_mlflow = clone.resolve().parent == Path(tempfile.gettempdir()).resolve() and clone.name.startswith("tmp")
    config = configparser.ConfigParser(strict=False, interpolation=None)
    try:
        config.read(clone / ".git" / "config", encoding="utf-8")
        url = masked(config['remote "origin"']["url"])
    except (KeyError, configparser.Error, UnicodeError):
        return "."
    inside = project.relative_to(clone).as_posix()
    return "." if not by_mlflow else url if inside == "." else f"{url}#{inside}"


def _env_manager(prefix: Path) -> str | None:
    """--env-manager of `mlflow run`, which tells it to no process; None: the project's own.

    An environment that MLflow made bears its name, and uv leaves its mark; any other is one that the user made.
    """
    if not re.fullmatch("mlflow-[0-9a-f]{40}", prefix.name):
        return "local"
    if not (prefix / "pyvenv.cfg").is_file():
        return None  # conda's
    return "uv" if re.search(r"^uv = ", (prefix / "pyvenv.cfg").read_text(), re.MULTILINE) else "virtualenv"
