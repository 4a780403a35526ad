"""Files below folders, each real file once."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from datadiet.data.reading import remark
from datadiet.errors import UserError

# Folders that systems put beside files of people: macOS into archives, Synology, Windows, and ext4.
SYSTEM = frozenset({"__MACOSX", "@eaDir", "#recycle", "$RECYCLE.BIN", "System Volume Information", "lost+found"})


def walk(name: str, *folders: Path) -> list[list[str]]:
    """Paths of the regular files below each folder, relative to it, with '/', sorted as plain strings in every locale.

    Each real file once, over all the folders: where it really lies, else at the first link to it. So links in circles
    end, and none gives a file a second label. What is hidden, and folders of SYSTEM, are passed over; links to what is
    counted already or to folders above, pipes, sockets and devices too, with a warning.

    Args:
        name: Dataset, for messages.
    Raises:
        UserError: a folder cannot be read, or a link leads nowhere.
    """
    found = _Walk(folders)
    if found.lost:
        raise UserError(
            f"{name}: {len(found.lost)} links lead nowhere, the first is {min(found.lost)}; expected files."
        )
    for paths, what in (
        (found.again, "links lead to files or folders that count already, and are not followed"),
        (found.odd, "are pipes, sockets or devices, and are not read"),
    ):
        if paths:
            remark(f"{name}: {len(paths)} {what}: {min(paths)} …")
    return [sorted(paths) for paths in found.files]


def is_hidden(name: str) -> bool:
    """Whether a file or folder is hidden, or put there by a system."""
    return name.startswith(".") or name in SYSTEM


class _Walk:
    """Plain strings, because a quarter of a million Path objects take seconds."""

    def __init__(self, folders: Sequence[Path]) -> None:
        self.roots = [os.path.realpath(folder) for folder in folders]
        self.files: list[list[str]] = [[] for _ in folders]  # by folder, relative to it
        self.again: list[str] = []
        self.odd: list[str] = []
        self.lost: list[str] = []
        self._links: list[tuple[int, str, str]] = []  # of which folder, path below it, whole path
        self._entered: set[str] = set()  # real folders
        for which, root in enumerate(self.roots):
            self._enter(which, "", root)
        self._real = {f"{root}/{path}" for root, paths in zip(self.roots, self.files) for path in paths if self._links}
        while self._links:  # at last, so that what really lies somewhere comes first
            links, self._links = sorted(self._links), []
            for link in links:
                self._follow(*link)

    def _enter(self, which: int, below: str, real: str) -> None:
        """All below a real folder; links are put aside."""
        waiting = [(below, real)]
        while waiting:
            below, real = waiting.pop()
            if real in self._entered:
                self.again.append(real)
                continue
            self._entered.add(real)
            for entry in entries(real):
                path = below + entry.name
                if entry.is_symlink():
                    self._links.append((which, path, entry.path))
                elif entry.is_dir():
                    waiting.append((f"{path}/", entry.path))
                elif entry.is_file():
                    self.files[which].append(path)
                else:
                    self.odd.append(entry.path)

    def _follow(self, which: int, path: str, link: str) -> None:
        real = os.path.realpath(link)
        if os.path.isdir(real):
            inside = f"{real.rstrip('/')}/"
            if real in self._entered or any(root.startswith(inside) for root in self.roots):
                self.again.append(link)
            else:
                self._enter(which, f"{path}/", real)
        elif os.path.isfile(real):
            if real in self._real:
                self.again.append(link)
            else:
                self._real.add(real)
                self.files[which].append(path)
        else:
            (self.odd if os.path.exists(real) else self.lost).append(link)


def entries(folder: str) -> list[os.DirEntry[str]]:
    """What is in a folder and not hidden. Raises UserError where it cannot be read."""
    try:
        with os.scandir(folder) as found:
            return [entry for entry in found if not is_hidden(entry.name)]
    except OSError as error:
        raise UserError(f"{folder} cannot be read: {error.strerror}.") from None
