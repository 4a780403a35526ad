"""What comes from outside: regular files, of a size that is known before memory is taken; folders of one's own."""

from __future__ import annotations

import math
import os
import stat
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import IO, Any

from datadiet.errors import UserError

KINDS = {
    stat.S_IFIFO: "a pipe (FIFO)", stat.S_IFSOCK: "a socket", stat.S_IFCHR: "a device", stat.S_IFBLK: "a device",
    stat.S_IFDIR: "a folder",
}  # fmt: skip

VARIABLE = "DATADIET_MAX_GB"  # what one file may take when it is read, in place of what follows
SMALL = 2**28  # bytes of memory that any file may take
TIMES = 100  # bytes that each byte of a larger one may take; arrays seldom reach 10
TEXT = 2**30  # bytes of a file of JSON or text
CGROUPS = (  # limit of a container's memory, and what is taken of it
    ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory.current"),
    ("/sys/fs/cgroup/memory/memory.limit_in_bytes", "/sys/fs/cgroup/memory/memory.usage_in_bytes"),
)


# --- files ------------------------------------------------------------------------------------


def size_of(path: str | Path) -> int:
    """Bytes of a regular file. Whatever else it is, it is never opened: a pipe would be waited for.

    Raises:
        UserError: it is something else.
        OSError: it is not there.
    """
    status = os.stat(path)
    if not stat.S_ISREG(status.st_mode):
        kind = KINDS.get(stat.S_IFMT(status.st_mode), "something else")
        raise UserError(f"{path} is {kind}; expected a regular file.")
    return status.st_size


def read_bytes(path: Path, most: int = TEXT) -> bytes:
    """All of a regular file of at most so many bytes.

    Raises:
        UserError: it is larger, or no regular file.
        OSError: it is not there, or cannot be read.
    """
    check_text_size(str(path), size_of(path), most)
    return path.read_bytes()


def read_text(path: Path, most: int = TEXT) -> str:
    """The same as text in UTF-8. Raises UnicodeDecodeError too."""
    return read_bytes(path, most).decode()


def check_text_size(what: str, size: int, most: int) -> None:
    if size > (allowed := max(most, _chosen() or 0)):
        raise UserError(f"{what}: {shown(size)}; expected at most {shown(allowed)}. {_remedy(size)}")


# --- memory -----------------------------------------------------------------------------------


def check_size(what: str, needed: int, stored: int, *, times: int = TIMES, small: int | None = None) -> None:
    """Refuse what would take more memory than there is, or than its size can explain, before it is taken.

    Args:
        what: Name for the error.
        needed: Bytes that it says it has.
        stored: Bytes of its file.
        times: Bytes of memory that a byte of the file may stand for.
        small: Bytes that are taken whatever the file's size; None: SMALL.
    """
    if needed > (allowed := _chosen() or max(SMALL if small is None else small, times * stored)):
        raise UserError(
            f"{what}: {shown(needed)} when read, out of {shown(stored)}; expected at most {shown(allowed)}. "
            f"{_remedy(needed)}"
        )
    check_memory(what, needed)


def check_memory(what: str, needed: int) -> None:
    """Refuse what would take more memory than there is, before it is taken."""
    if needed > (allowed := _chosen() or memory()):
        raise UserError(f"{what}: {shown(needed)} of memory; there are {shown(allowed)}. {_remedy(needed)}")


def check_npy(what: str, file: IO[bytes], held: int, stored: int) -> None:
    """Refuse an array in NumPy's format whose header says more than it holds; else as `check_size`.

    Args:
        what: Name for the error.
        file: At its begin.
        held: Bytes that it holds, unpacked.
        stored: Bytes of it on disk.
    Raises:
        ValueError: it is no such array, of objects, or holds less than it says.
    """
    shape, _, dtype = _npy_header(file, held)
    if dtype.hasobject:
        raise ValueError(
            f"{what} holds Python objects, which are never loaded: save numbers or texts, as of .astype(str)"
        )
    check_size(what, math.prod(shape) * dtype.itemsize, stored)


def npy_map(path: Path, file: IO[bytes], held: int) -> Any:
    """An array in NumPy's format, mapped from a part of a file, read-only.

    Args:
        path: Of the file.
        file: The same, where the array begins.
        held: Bytes of the part.
    Raises:
        ValueError: it is no such array, of objects, or holds less than it says.
    """
    import numpy as np  # here, because --help needs no NumPy

    shape, columns, dtype = _npy_header(file, held)
    if dtype.hasobject:
        raise ValueError("Object arrays cannot be mapped")
    return np.memmap(path, dtype, "r", file.tell(), shape, "F" if columns else "C")


def _npy_header(file: IO[bytes], held: int) -> tuple[tuple[int, ...], bool, Any]:
    """Shape, whether it lies column by column, and type of an array of `held` bytes, from its begin on."""
    from numpy.lib import format as npy  # here, because --help needs no NumPy

    headers = {(1, 0): npy.read_array_header_1_0, (2, 0): npy.read_array_header_2_0}
    if (version := npy.read_magic(file)) not in headers:
        raise ValueError(f"its format is {version}")
    shape, columns, dtype = headers[version](file)
    if max(count := math.prod(shape), needed := count * dtype.itemsize) > held:
        raise ValueError(f"its header says {dtype} {list(shape)}, which is {shown(needed)}, but it has {shown(held)}")
    return shape, columns, dtype


@cache
def memory() -> int:
    """Bytes of memory that this process may use: of the machine, or of its container."""
    limits = [os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")]
    for path, _ in CGROUPS:
        with suppress(OSError, ValueError):  # not there, or 'max'
            limits.append(int(Path(path).read_text()))
    return min(limits)


def free_memory() -> int:
    """Bytes of it that are free now, as the machine, its container and the limits of this process say."""
    free = [memory()]
    with suppress(OSError, ValueError, StopIteration):
        lines = Path("/proc/meminfo").read_text().splitlines()
        free.append(1024 * int(next(line for line in lines if line.startswith("MemAvailable")).split()[1]))
    for limit, used in CGROUPS:
        with suppress(OSError, ValueError):
            free.append(int(Path(limit).read_text()) - int(Path(used).read_text()))
    with suppress(OSError, ValueError, IndexError, ImportError):
        import resource  # not everywhere

        pages = Path("/proc/self/statm").read_text().split()
        for kind, used in ((resource.RLIMIT_AS, pages[0]), (resource.RLIMIT_DATA, pages[5])):
            if (most := resource.getrlimit(kind)[0]) != resource.RLIM_INFINITY:
                free.append(most - int(used) * os.sysconf("SC_PAGE_SIZE"))
    return max(0, min(free))


def is_much(needed: int) -> bool:
    """Whether so many bytes are more than half of the memory that is free, and better stay on disk."""
    return needed > free_memory() // 2 and not is_limited()


def is_limited() -> bool:
    """Whether the environment says how much memory may be taken."""
    return _chosen() is not None


def _chosen() -> int | None:
    """Bytes that the environment variable allows; None where it is not set."""
    text = os.environ.get(VARIABLE, "").strip()
    if not text:
        return None
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 < value < math.inf:
        raise UserError(f"{VARIABLE}={text}: expected a number of gigabytes above 0.")
    return int(value * 1e9)


def _remedy(needed: int) -> str:
    return f"If it is right, allow it with the environment variable {VARIABLE}={math.ceil(needed / 1e8) / 10:g}."


def shown(size: int) -> str:
    """Bytes in words, as in '5.1 GB'."""
    for unit, factor in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if size >= factor:
            return f"{size / factor:.3g} {unit}" if size < 1000 * factor else f"{size / factor:.0f} {unit}"
    return f"{size} bytes"


# --- folders of one's own ---------------------------------------------------------------------


def private_folder(path: Path, *, ours: bool) -> Path:
    """A folder that nobody but its owner may read or write, made where there is none, whatever the umask.

    Args:
        ours: It is this program's own: one that an earlier version left open to others is closed.
    Raises:
        OSError: it cannot be made; NotOurs where it is another's, or others may write to it.
    """
    for folder in reversed([folder for folder in (path, *path.parents) if not os.path.lexists(folder)]):
        with suppress(FileExistsError):  # another process made it meanwhile
            folder.mkdir(mode=0o700)
            folder.chmod(0o700)  # of which the umask may have taken some
    if ours and not path.is_symlink() and path.stat().st_uid == os.geteuid():
        with suppress(OSError):  # a file system that is read-only
            path.chmod(0o700)
    check_ours(path)
    return path


class NotOurs(OSError):
    """What is there may have been written by somebody else."""


def check_ours(*paths: Path) -> None:
    """Raises NotOurs, naming it, for a file or folder of another user, or that others may write to."""
    for path in paths:
        link, status = os.lstat(path), os.stat(path)
        for owner, trusted in ((status.st_uid, (os.geteuid(),)), (link.st_uid, (os.geteuid(), 0))):
            if owner not in trusted:
                raise NotOurs(f"{path} belongs to another user (uid {owner})")
        if status.st_mode & 0o022:
            raise NotOurs(f"others may write to {path} (mode {stat.S_IMODE(status.st_mode):o})")
