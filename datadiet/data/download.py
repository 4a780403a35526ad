"""Published files: what they are called, how to know them, and the only code that downloads."""

from __future__ import annotations

import shutil
import threading
import time
from pathlib import Path
from typing import NamedTuple

import pooch
from tqdm import tqdm

from datadiet import commands
from datadiet.data.sources.base import prepare_command
from datadiet.data.sources.embedded import IDX_FILES
from datadiet.errors import UserError
from datadiet.temporary import left_beside, putting

REACH_SECONDS = 8.0  # to hear from a server at all; without a network, the library's own wait is 3.5 minutes
STALL_SECONDS = 60.0  # of silence in a running download
BLOCK = 1 << 20
HEADERS = {"User-Agent": "datadiet", "Accept-Encoding": "identity"}  # packed files come as they are

CIFAR_URL = "https://www.cs.toronto.edu/~kriz/"


class Archive(NamedTuple):
    """A published file: where it is, and how to know it."""

    url: str
    file_name: str
    size: int  # bytes
    digest: str  # hex
    algorithm: str = "sha256"


def _idx_archives(url: str, files: tuple[tuple[int, str], ...]) -> tuple[Archive, ...]:
    return tuple(Archive(f"{url}{n}.gz", f"{n}.gz", *known) for n, known in zip(IDX_FILES, files, strict=True))


# Sizes and sha256 as in tensorflow-datasets 4.9.10's url_checksums. Of CINIC-10 only an md5 is published.
ARCHIVES: dict[str, tuple[Archive, ...]] = {
    "cifar10": (
        Archive(
            f"{CIFAR_URL}cifar-10-binary.tar.gz", "cifar-10-binary.tar.gz", 170052171,
            "c4a38c50a1bc5f3a1c5537f2155ab9d68f9f25eb1ed8d9ddda3db29a59bca1dd",
        ),
    ),
    "cifar100": (
        Archive(
            f"{CIFAR_URL}cifar-100-binary.tar.gz", "cifar-100-binary.tar.gz", 168513733,
            "58a81ae192c23a4be8b1804d68e518ed807d710a4eb253b1f2a199162a40d8ec",
        ),
    ),
    "cinic10": (
        Archive(
            "https://datashare.ed.ac.uk/bitstream/handle/10283/3192/CINIC-10.tar.gz", "CINIC-10.tar.gz", 687544992,
            "6ee4d0c996905fe93221de577967a372", "md5",
        ),
    ),
    "mnist": _idx_archives(
        "https://storage.googleapis.com/cvdf-datasets/mnist/",
        (
            (9912422, "440fcabf73cc546fa21475e81ea370265605f56be210a4024d2ca8f203523609"),
            (28881, "3552534a0a558bbed6aed32b30c495cca23d567ec52cac8be1a0730e8010255c"),
            (1648877, "8d422c7b0a1c1c79245a5bcf07fe86e33eeafee792b84584aec276f5a2dbc4e6"),
            (4542, "f7ae60f92e00ec6debd23a6088c31dbd2371eca3ffa0defaefb259924204aec6"),
        ),
    ),
    "kmnist": _idx_archives(
        "http://codh.rois.ac.jp/kmnist/dataset/kmnist/",
        (
            (18165135, "51467d22d8cc72929e2a028a0428f2086b092bb31cfb79c69cc0a90ce135fde4"),
            (29497, "e38f9ebcd0f3ebcdec7fc8eabdcdaef93bb0df8ea12bee65224341c8183d8e17"),
            (3041136, "edd7a857845ad6bb1d0ba43fe7e794d164fe2dce499a1694695a792adfac43c5"),
            (5120, "20bb9a0ef54c7db3efc55a92eef5582c109615df22683c380526788f98e42a1c"),
        ),
    ),
    "fashion_mnist": _idx_archives(
        "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/",
        (
            (26421880, "3aede38d61863908ad78613f6a32ed271626dd12800ba2636569512369268a84"),
            (29515, "a04f17134ac03560a47e3764e11b92fc97de4d1bfaf8ba1a3aa29af54cc90845"),
            (4422102, "346e55b948d973a97e58d2351dde16a484bd415d4595297633bb08f03db6a073"),
            (5148, "67da17c76eaffca5446c3361aaab5c3cd6d1c2608764d35dfb1850b086bf8dd5"),
        ),
    ),
}  # fmt: skip


def verify(path: Path, archive: Archive) -> None:
    """Raises UserError where a file is not, byte for byte, the one that was published."""
    if (got := pooch.file_hash(path, archive.algorithm)) != archive.digest:
        raise UserError(
            f"{path}: {path.stat().st_size} bytes with {archive.algorithm} {got}; expected {archive.size} bytes with "
            f"{archive.algorithm} {archive.digest}. Delete it and fetch it again from {archive.url}."
        )


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


def download(archive: Archive, path: Path) -> None:
    """Download to `path`, which appears only when it is complete and verified."""
    # Not by pooch.retrieve: it replaces a file of another digest, makes one that only its owner may read, and what a
    # killed process leaves is never used or deleted.
    for left in left_beside(path):
        if time.time() - left.stat().st_mtime > 10 * STALL_SECONDS:  # nobody is still writing there
            left.unlink()
    with putting(path) as part, tqdm(total=archive.size, unit="B", unit_scale=True, desc=archive.file_name) as bar:
        get = pooch.HTTPDownloader(
            bar,  # pyright: ignore[reportArgumentType]  documented, but its type knows only yes or no
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
