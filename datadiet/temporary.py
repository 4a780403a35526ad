"""Files and folders beside the place that they are put in when they are complete.

Their names are drawn, and they are made only where nothing has the name: nobody can have prepared a file or a link.
"""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

SUFFIX = ".tmp"


def temporary_path(path: Path) -> Path:
    """A name beside `path` that nobody can know before."""
    return path.with_name(f".{path.name}.{secrets.token_hex(8)}{SUFFIX}")


def is_temporary(path: Path) -> bool:
    """Whether a process that was killed left this."""
    return path.name.startswith(".") and path.name.endswith(SUFFIX)


def left_beside(path: Path) -> list[Path]:
    """What processes left that were killed before they had put it at `path`."""
    return [p for p in path.parent.iterdir() if is_temporary(p) and p.name.startswith(f".{path.name}.")]


@contextmanager
def putting(path: Path) -> Iterator[BinaryIO]:
    """A new file to write to, which is put at `path` when the `with` block ends well, and removed where it does not.

    A link at `path` is replaced, never followed.
    """
    temporary = temporary_path(path)
    with open(temporary, "xb") as file:  # x: made by this call, else an error; follows no link
        try:
            yield file
            file.flush()
            os.fsync(file.fileno())
            os.replace(temporary, path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
