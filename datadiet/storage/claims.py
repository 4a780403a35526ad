"""Run folders while work is done in them: locked, free or taken, claimed."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from datadiet import commands
from datadiet.errors import Busy, UserError
from datadiet.storage.files import make_folder, writing
from datadiet.temporary import is_temporary


def check_free(path: Path, overwrite: bool) -> None:
    """Refuse a run folder that holds something, unless it may be replaced.

    Raises:
        UserError: it exists already.
    """
    if overwrite or not path.exists() or all(map(is_temporary, path.iterdir())):
        return
    if (path / "summary.json").exists():
        found, way_on = "a finished run", ""
    elif (path / "args.json").exists():
        found, way_on = "an unfinished run", f"Continue it with {commands.option('resume', True)}. "
    else:
        found, way_on = "files, but no run (no args.json)", ""
    raise UserError(
        f"{path} holds {found}, which would be lost. {way_on}Choose another with {commands.option('run', 'N')} or "
        f"{commands.option('exp', 'EXP')}, or replace it with {commands.option('overwrite', True)}."
    )


@contextmanager
def lock_run(path: Path) -> Iterator[None]:
    """Keep other processes out of a run folder; the system releases the lock whichever way this process ends.

    The lock file lies beside the folder, because replacing a run removes the folder, and stays there.

    Raises:
        Busy: another process works there.
        UserError: the lock cannot be made.
    """
    file = path.with_name(f".{path.name}.lock")
    try:
        with writing(file):
            make_folder(path.parent)
            lock = FileLock(file, blocking=False)
            lock.acquire()
    except Timeout:
        raise Busy(
            f"{path}: another process is training this run (it holds {file}). Wait until it ends, or choose another "
            f"with {commands.option('run', 'N')} or {commands.option('exp', 'EXP')}."
        ) from None
    try:
        yield
    finally:
        lock.release()


def claim(path: Path, overwrite: bool) -> None:
    """Make an empty run folder; an existing one is replaced only with `overwrite`: see `check_free`."""
    check_free(path, overwrite)
    with writing(path):
        if path.exists():
            shutil.rmtree(path)
        make_folder(path)
