"""The only code that downloads: published files to where they are looked for."""

from __future__ import annotations

import shutil
import threading
import time
from dataclasses import dataclass
from pathlib import Path

import pooch

from datadiet import commands
from datadiet.data.sources.base import prepare_command
from datadiet.data.sources.published import ARCHIVES as ARCHIVES
from datadiet.data.sources.published import Archive, verify
from datadiet.errors import UserError
from datadiet.progress import Advance, counting
from datadiet.temporary import left_beside, putting

REACH_SECONDS = 8.0  # to hear from a server at all; without a network, the library's own wait is 3.5 minutes
STALL_SECONDS = 60.0  # of silence in a running download
BLOCK = 1 << 20
HEADERS = {"User-Agent": "datadiet", "Accept-Encoding": "identity"}  # packed files come as they are


def by_hand(
    name: str,
    missing: list[Archive],
    folder: Path,
    data_dir: Path | None,
    why: str,
    otherwise: str | None = None,
) -> UserError:
    """The error that says which files to place where."""
    archive = commands.option("archive", "PATH")
    files = "; ".join(f"{a.file_name} ({a.size} bytes, {a.algorithm} {a.digest}, from {a.url})" for a in missing)
    return UserError(
        f"{name}: {why}. Place in the folder {folder}: {files}; and run {prepare_command(name, data_dir)} again, "
        f"or {otherwise or f'say with {archive} where it is'}."
    )


def _cause(error: BaseException) -> str:
    """What lies below an error of requests, which wraps it in its own objects."""
    return _cause(error.__context__) if error.__context__ else str(error) or type(error).__name__


def reachable(url: str) -> str | None:
    """Whether a server answers within REACH_SECONDS, whatever it answers: None, or what went wrong."""
    answer: list[str | None] = ["no answer"]
    look = (pooch.FTPDownloader if url.startswith("ftp:") else pooch.HTTPDownloader)(timeout=REACH_SECONDS)

    def ask() -> None:
        try:
            look(url, None, None, check_only=True)
            answer[0] = None
        except Exception as error:
            answer[0] = _cause(error)

    # Resolving a name has no timeout of its own, so it is left behind in a thread.
    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(REACH_SECONDS)
    return answer[0]


@dataclass
class Received:
    """What pooch takes for a bar."""

    total: int  # which pooch sets again, by what the server says
    advance: Advance

    def update(self, units: int) -> None:
        self.advance(units)

    def reset(self) -> None:
        """When all is there, pooch begins again, and tells all of it at once."""
        self.advance = lambda units: None

    def close(self) -> None:
        pass


def download(archive: Archive, path: Path) -> None:
    """Download to `path`, which appears only when it is complete and verified."""
    # Not by pooch.retrieve: it replaces a file of another digest, makes one that only its owner may read, and what a
    # killed process leaves is never used or deleted.
    for left in left_beside(path):
        if time.time() - left.stat().st_mtime > 10 * STALL_SECONDS:  # nobody is still writing there
            left.unlink()
    with putting(path) as part, counting(archive.size, archive.file_name, size=True) as advance:
        get = pooch.HTTPDownloader(
            Received(archive.size, advance),  # pyright: ignore[reportArgumentType]  documented, but its type knows only yes or no
            BLOCK,
            timeout=(REACH_SECONDS, STALL_SECONDS),
            headers=HEADERS,
        )
        get(archive.url, part, None)
        part.flush()
        verify(Path(part.name), archive)


def place(source: Path, path: Path) -> None:
    """Copy a file, unless it is there already; `path` appears only when it is complete."""
    if path.exists():
        return
    with open(source, "rb") as given, putting(path) as part:
        shutil.copyfileobj(given, part)


def _said(name: str, archives: tuple[Archive, ...], given: Path) -> list[Path]:
    """Files where the user says they are: `given` itself, or in it.

    Raises:
        UserError: one is not there.
    """
    alone = given.is_file() and len(archives) == 1
    paths = [given] if alone else [given / archive.file_name for archive in archives]
    absent = [path for path in paths if not path.is_file()]
    if absent:
        names = ", ".join(archive.file_name for archive in archives)
        raise UserError(f"{name}: archive={given}: no file {absent[0]}; expected {names}, or a folder with it.")
    return paths


def obtain(
    name: str,
    archives: tuple[Archive, ...],
    folder: Path,
    *,
    data_dir: Path | None,
    given: Path | None,
    may_download: bool,
) -> list[Path]:
    """Verified local copies of published files.

    Args:
        name: Dataset, for errors.
        folder: Where they are looked for, and downloaded to.
        data_dir: As the user said it, for errors.
        given: Path of the file (where it is but one), or of a folder; None: look in `folder`.
        may_download: Whether the network may be used.
    Raises:
        UserError: one is not there and not to be had, within seconds and with what to place
            where; or is not the file that was published.
    """
    paths = [folder / archive.file_name for archive in archives] if given is None else _said(name, archives, given)

    def missing() -> list[Archive]:
        return [archive for archive, path in zip(archives, paths) if not path.is_file()]

    try:
        if missing() and (problem := reachable(missing()[0].url) if may_download else "download is off"):
            raise OSError(problem)
        for archive in missing():
            folder.mkdir(parents=True, exist_ok=True)
            download(archive, folder / archive.file_name)
    except OSError as error:
        why = f"cannot download {missing()[0].url} ({_cause(error)})"
        raise by_hand(name, missing(), folder, data_dir, why) from error
    for archive, path in zip(archives, paths):
        verify(path, archive)
    return paths
