"""Files written whole or not at all, sealed with a hash of what they say."""

from __future__ import annotations

import errno
import hashlib
import io
import json
import os
import reprlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from filelock import Timeout

from datadiet import commands, intake
from datadiet.errors import UserError
from datadiet.temporary import putting

SEAL = "record_sha256"  # name of the hash in a sealed record
DIGITS = 20  # of a whole number; no float, count or time needs more


# --- whole files ------------------------------------------------------------------------------


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """For the length of a `with` block, what keeps `path` from being written is an error that tells what to do.

    Raises:
        UserError: the disk is full, the folder is read-only, …
    """
    try:
        yield
    except Timeout:  # of a lock; no failure to write, though an OSError
        raise
    except (OSError, ValueError) as error:  # ValueError: a path that no system has
        raise UserError(f"{path} cannot be written: {_reason(error)}.") from error


def _reason(error: Exception) -> str:
    """What stood in the way of writing, and what helps."""
    code = getattr(error, "errno", None)
    text = os.strerror(code) if code else str(error)
    if code in (errno.ENOSPC, errno.EDQUOT) or "No space left" in text or "Disk quota" in text:
        return f"{text}. Nothing half-written is left. Free some space, then repeat the command, with " \
               f"{commands.option('resume', True)} where it trains"  # fmt: skip
    if code == errno.ENOENT:
        return f"{text}. Its folder is gone: it was moved or deleted while this was at work, and is not made anew"
    if code in (errno.EROFS, errno.EACCES, errno.EPERM):
        return f"{text}. Make the folder writable, or choose another with {commands.option('root', 'FOLDER')}"
    return text


def sync_folder(path: Path) -> None:
    """Have a folder's entries (or a file) on disk: a file renamed into it is there after a power failure too."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def make_folder(path: Path) -> None:
    """A folder and those above it, on disk; for work that begins, and claims its place."""
    missing = [folder for folder in (path, *path.parents) if not folder.exists()]
    path.mkdir(parents=True, exist_ok=True)
    for folder in reversed(missing):
        sync_folder(folder.parent)


def make_subfolder(path: Path) -> None:
    """A folder below one that is there, on disk; for work that goes on in a place that was claimed.

    Raises:
        UserError: it cannot be made, as where the one above it is gone.
    """
    with writing(path):
        if not path.is_dir():
            path.mkdir(exist_ok=True)
            sync_folder(path.parent)


def write_bytes(path: Path, *parts: bytes | memoryview) -> None:
    """Write a file, one part after the other, so that a reader sees the old one or the new one, never less.

    Its folder has to be there: one that was deleted or moved while something writes into it is not made anew.

    Raises:
        UserError: it cannot be written; the old one is still there.
    """
    with writing(path):
        with putting(path) as file:
            for part in parts:
                file.write(part)
        sync_folder(path.parent)


def write_text(path: Path, text: str) -> None:
    write_bytes(path, text.encode())


def write_json(path: Path, value: Any) -> None:
    """Indented, but for lists of plain values in an object: with an entry for every example, only the encoder without
    indentation is fast."""
    write_text(path, json_text(value) + "\n")


def json_text(value: Any) -> str:
    if not isinstance(value, dict) or not value:
        return json.dumps(value, indent=1)
    lines = (f" {json.dumps(name)}: {_json_member(member)}" for name, member in value.items())
    return "{\n" + ",\n".join(lines) + "\n}"


def _json_member(value: Any) -> str:
    if isinstance(value, list) and value and isinstance(value[0], str | int | float):
        return json.dumps(value)
    return json.dumps(value, indent=1).replace("\n", "\n ")


def read_json(path: Path) -> Any:
    """Raises UserError where the file is missing, no JSON, or sealed and not what was written."""
    try:
        value = _parsed(intake.read_bytes(path))
        changed = isinstance(value, dict) and SEAL in value and value[SEAL] != sealed(value)[SEAL]
    except FileNotFoundError:
        raise UserError(f"No file {path}.") from None
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: not readable as JSON ({error}); it is damaged.") from error
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}.") from error
    if changed:
        raise UserError(f"{path}: not what was written there (its hash differs); it is damaged.")
    return value


def _parsed(text: bytes) -> Any:
    """A value of JSON; raises ValueError also for whole numbers that no file of the mirror has."""
    return json.loads(text, parse_int=_whole)


def _whole(digits: str) -> int:
    if len(digits) > DIGITS:
        raise ValueError(f"a whole number of {len(digits)} digits")
    return int(digits)


def read_record(path: Path, /, **expected: Any) -> dict[str, Any]:
    """A JSON object that has some keys.

    Args:
        expected: Type (or tuple of types) of the value under each key.
    Raises:
        UserError: missing, no JSON, no object, or a key of it is missing or of another type.
    """
    record = read_json(path)
    if not isinstance(record, dict):
        raise UserError(f"{path}: expected a JSON object, got {type(record).__name__}; it is damaged.")
    for name, kind in expected.items():
        value = record.get(name)
        if not isinstance(value, kind) or (isinstance(value, bool) and kind is int):
            raise UserError(f"{path}: {name}={reprlib.repr(value)} is not what was written there; it is damaged.")
    return record


def npy_parts(array: np.ndarray) -> tuple[bytes, memoryview]:
    """A .npy file in two parts, the second of which is the array itself, not copied."""
    array, header = np.ascontiguousarray(array), io.BytesIO()
    np.lib.format.write_array_header_1_0(header, np.lib.format.header_data_from_array_1_0(array))
    return header.getvalue(), array.reshape(-1).view(np.uint8).data


def sha256(parts: Iterable[bytes | memoryview]) -> str:
    """Of what `write_bytes` makes of them."""
    found = hashlib.sha256()
    for part in parts:
        found.update(part)
    return found.hexdigest()


def sealed(record: dict[str, Any]) -> dict[str, Any]:
    """A record with the hash of all else that it says, which `read_json` verifies."""
    rest = {name: value for name, value in record.items() if name != SEAL}
    text = json.dumps(rest, sort_keys=True)
    return rest | {SEAL: hashlib.sha256(text.encode()).hexdigest()}


def append_line(path: Path, value: dict[str, Any]) -> None:
    """Append one JSON line, sealed for the run whose args.json lies beside it, on disk when this returns; a line that
    an earlier process left torn is cut off.

    Raises:
        UserError: it cannot be written; the file is as it was.
    """
    with writing(path), open(path, "a+b", opener=_without_links) as file:
        whole = end = file.seek(0, os.SEEK_END)
        while whole and (file.seek(whole - 1), file.read(1))[1] != b"\n":
            whole -= 1
        if whole < end:
            file.truncate(whole)
        try:
            file.write(_line(value, _run_beside(path)).encode())
            file.flush()
            os.fsync(file.fileno())
        except OSError:
            os.ftruncate(file.fileno(), whole)
            raise
    if not whole:
        sync_folder(path.parent)


def _without_links(path: str, flags: int) -> int:
    """As `open` opens, but for a link in the file's place."""
    return os.open(path, flags | os.O_NOFOLLOW, 0o666)


def read_lines(path: Path, last: int | None = None, run: str | None = None) -> list[dict[str, Any]]:
    """JSON lines of a file without their seals; none where there is no file. A last line that an earlier process left
    torn does not count.

    Args:
        last: Step of the last line, where it has to be there.
        run: See `seal_of_run`; None: that of the args.json beside the file.
    Raises:
        UserError: a line is not what was written there, or the last one is missing.
    """
    values, damaged = _verified_lines(path, run)
    if damaged is not None:
        raise UserError(f"{path}: line {damaged} is not what was written there; it is damaged.")
    if last is not None and [value["step"] for value in values[-1:]] != [last]:
        raise UserError(f"{path}: the line of the last step, {last}, is missing; it is damaged.")
    return values


def good_lines(path: Path) -> list[dict[str, Any]]:
    """As `read_lines`, up to the first line that is damaged."""
    return _verified_lines(path)[0]


def _verified_lines(path: Path, run: str | None = None) -> tuple[list[dict[str, Any]], int | None]:
    """Lines up to the first damaged one, and the number of that, from 1. Files of before lines had seals have none at
    all and nothing but numbers; there are none in a run that tells its place."""
    lines = intake.read_bytes(path).split(b"\n")[:-1] if path.exists() else []
    run = _run_beside(path) if lines and run is None else run
    old, values = not (run or any(SEAL.encode() in line for line in lines)), []
    for number, line in enumerate(lines, start=1):
        try:
            value = _parsed(line)
            seal = value.pop(SEAL, None)
            whole = isinstance(value["step"], int) and (
                all(isinstance(v, int | float) for v in value.values()) if old else seal == _line_seal(value, run)
            )
        except (ValueError, RecursionError, AttributeError, TypeError, KeyError):
            whole = False
        if not whole:
            return values, number
        values.append(value)
    return values, None


def _line(value: dict[str, Any], run: str) -> str:
    return json.dumps(value | {SEAL: _line_seal(value, run)}) + "\n"


def _line_seal(value: dict[str, Any], run: str | None) -> str:
    return sealed(value | {"run": run} if run else value)[SEAL]


def seal_of_run(arguments: dict[str, Any]) -> str:
    """What the seal of each line of a run covers beside the line, so that the lines of another are refused: the seal of
    its args.json. '' where that tells no place, as of runs made before it did."""
    return arguments.get(SEAL, "") if "made_as" in arguments.get("data", {}) else ""


def _run_beside(path: Path) -> str:
    arguments = path.with_name("args.json")
    return seal_of_run(read_record(arguments)) if arguments.is_file() else ""


def write_lines(path: Path, values: Iterable[dict[str, Any]]) -> None:
    """The inverse of `read_lines`."""
    run = _run_beside(path)
    write_text(path, "".join(_line(value, run) for value in values))
