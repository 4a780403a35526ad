"""The user's folders, and what stands in for them where there is no home or it cannot be written: in a container that
runs under any number, in a batch job, on a read-only disk."""

from __future__ import annotations

import atexit
import os
import pwd
import shutil
import tempfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from datadiet.intake import private_folder

CACHE = "DATADIET_CACHE"  # built datasets
PROGRAMS = "JAX_COMPILATION_CACHE_DIR"  # compiled programs; JAX reads it when it is first imported
DRAWING = "MPLCONFIGDIR"  # where matplotlib keeps its list of fonts
STAND_IN = "DATADIET_HOME"  # the temporary folder that $HOME names for libraries that do not work without any


def home() -> Path | None:
    """The user's home; None where the system knows none."""
    if os.environ.get("HOME") in ("", os.environ.get(STAND_IN, "")):
        return None
    try:
        return Path.home()
    except RuntimeError:  # no $HOME, and a number that is no user's
        return None


def expanded(path: str | Path) -> Path:
    """A path with ~ expanded; where there is no home, ~ is the current folder."""
    path = Path(path)
    if path.parts[:1] == ("~",) and home() is None:
        return Path.cwd().joinpath(*path.parts[1:])
    return path.expanduser()


def cache_folder() -> Path:
    """$DATADIET_CACHE, or datadiet in the user's cache folder.

    Where there is no home it is a folder of this process, which goes with it.
    """
    if chosen := os.environ.get(CACHE):
        return expanded(chosen)
    if user := home():
        return user / ".cache" / "datadiet"
    os.environ[CACHE] = str(temporary := _temporary_folder())
    return temporary


def settle(say: Callable[[str], Any]) -> None:
    """Name, for this process and those it begins, folders for what is cached that can be written, and a home and a
    user where the system knows none.

    What the user has named stays, if it can be written. For what cannot, a private temporary folder stands in, which
    goes with this process.

    Args:
        say: Told once where one stands in.
    """
    _settle_user()
    homeless, named = not os.environ.get(CACHE) and home() is None, os.environ.get(PROGRAMS)
    data = cache_folder()
    lacking = [] if _usable(data, ours=not os.environ.get(CACHE)) else [data]
    if lacking:
        data = _temporary_folder()
        os.environ[CACHE] = str(data)
    programs = Path(named) if named else data / "xla"
    if not _usable(programs, ours=not named):
        lacking.append(programs)
        programs = _temporary_folder()
    os.environ[PROGRAMS] = str(programs)
    if DRAWING not in os.environ and not ((user := home()) and os.access(user, os.W_OK | os.X_OK)):
        os.environ[DRAWING] = str(data / "matplotlib")
    if homeless or lacking:
        reason = f"{' and '.join(map(str, lacking))} cannot be written" if lacking else "there is no home directory"
        say(f"Warning: {reason}; what is cached is kept until this ends. {CACHE}=FOLDER names a place that lasts.")


def _settle_user() -> None:
    """MLflow cannot be imported without a home, and asks for the name of the user."""
    try:
        pwd.getpwuid(os.getuid())
    except KeyError:
        os.environ.setdefault("USER", str(os.getuid()))
    if home() is None and STAND_IN not in os.environ:
        os.environ["HOME"] = os.environ[STAND_IN] = str(_temporary_folder())


def _usable(folder: Path, ours: bool) -> bool:
    """Whether files can be put into a folder, made where there is none.

    Args:
        ours: The user has not named it, so it is this user's alone: a compiled program is run as it is found.
    """
    with suppress(OSError):
        if ours:
            private_folder(folder, ours=True)
        else:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        return os.access(folder, os.W_OK | os.X_OK)
    return False


def _temporary_folder() -> Path:
    """A private one that goes with this process."""
    made, owner = tempfile.mkdtemp(prefix="datadiet-"), os.getpid()
    atexit.register(lambda: shutil.rmtree(made, ignore_errors=True) if os.getpid() == owner else None)
    return Path(made)
