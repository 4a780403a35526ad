"""Makes a dataset ready: fetches, unpacks, checks and caches it. Nothing else ever downloads."""

from __future__ import annotations

import shutil
import sys
import tarfile
import time
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from filelock import FileLock

from datadiet import commands
from datadiet.data.dataset import Dataset
from datadiet.data.download import ARCHIVES, Archive, by_hand, obtain, place, reachable
from datadiet.data.labels import given_labels
from datadiet.data.reading import Reading
from datadiet.data.registry import check_asked, data_folder, read_dataset, tell_notes
from datadiet.data.sources import cifar, cinic10, embedded, tfds_folder
from datadiet.data.sources.base import prepare_command
from datadiet.data.sources.published import CIFAR_PICKLES
from datadiet.errors import UserError

LEFTOVER_SECONDS = 3600.0
STOCK_FILES = 8  # named in an error; a few datasets have thousands


@contextmanager
def _locked(folder: Path, name: str) -> Iterator[None]:
    """One process at a time prepares `name` in `folder`; a killed one leaves no lock behind."""
    lock = FileLock(folder / f".prepare-{name.replace('/', '-')}.lock")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock.acquire()
    except OSError as error:
        other = commands.option("data_dir", "FOLDER")
        raise UserError(f"{name}: {folder} cannot be written ({error}); name another with {other}.") from error
    try:
        yield
    finally:
        lock.release()


def _exists(look: Callable[..., Any], *arguments: Any) -> bool:
    """Whether a function that finds files does not refuse."""
    try:
        look(*arguments)
    except UserError:
        return False
    return True


def _remove_leftovers(parent: Path) -> None:
    """Unfinished folders of killed preparations: those that nobody, tfds itself included, still writes to."""
    for folder in parent.glob("**/incomplete.*"):
        changed = max(path.stat().st_mtime for path in (folder, *folder.rglob("*")))
        if time.time() - changed > LEFTOVER_SECONDS:
            shutil.rmtree(folder, ignore_errors=True)


def _tfds_name(name: str) -> str | None:
    """What tensorflow-datasets calls a dataset that it prepares, else None."""
    if name in ("cifar10", "cifar100"):
        return name
    return name.removeprefix("tfds/") if name.startswith("tfds/") else None


def _check_stock(tfds_name: str, name: str, folder: Path, data_dir: Path | None, may_download: bool) -> None:
    """Refuse what tfds would download in vain: without a network it tries for minutes."""
    import tensorflow_datasets as tfds

    try:
        known = tfds.builder_cls(tfds_name).url_infos or {}
    except Exception:  # an unknown name, or a builder that cannot be imported: the attempt to build says so
        return
    archives = [Archive(url, i.filename or Path(url).name, int(i.size), i.checksum) for url, i in known.items()]
    missing = [archive for archive in archives if not (folder / archive.file_name).is_file()]
    if not missing:
        return
    problem = reachable(missing[0].url) if may_download else "download is off"
    if problem is not None:
        why = f"cannot download {missing[0].url} ({problem})"
        otherwise = (
            f"prepare it elsewhere with `tfds build {tfds_name} --file_format=array_record` and copy its folder to "
            f"{tfds_folder.root(data_dir)}"
        )
        raise by_hand(name, missing[:STOCK_FILES], folder, data_dir, why, otherwise)


def _run_builder(tfds_name: str, name: str, data_dir: Path | None, given: Path | None, may_download: bool) -> None:
    import tensorflow_datasets as tfds

    from datadiet.data.tfds_builders import BUILDERS, make_builder

    if not sys.stderr.isatty():
        tfds.disable_progress_bar()
    root = tfds_folder.root(data_dir)
    archives = ARCHIVES[tfds_name] if tfds_name in BUILDERS else ()
    # MNIST's four files have the same names as Fashion-MNIST's.
    folder = root / "downloads" / "manual" / (tfds_name if len(archives) > 1 else "")
    if not archives:
        if given is not None:
            folder = given if given.is_dir() else given.parent
        _check_stock(tfds_name, name, folder, data_dir, may_download)
    paths = obtain(name, archives, folder, data_dir=data_dir, given=given, may_download=may_download)
    archives = tuple(archive._replace(file_name=path.name) for archive, path in zip(archives, paths))
    config = tfds.download.DownloadConfig(
        manual_dir=paths[0].parent if paths else folder,
        try_download_gcs=False,
        force_checksums_validation=bool(archives),
    )
    try:
        builder = make_builder(tfds_name, root, archives, tfds_folder.COUNTS.get(tfds_name))
        builder.download_and_prepare(download_config=config, file_format="array_record")
    except UserError:
        raise
    except Exception as error:
        repair = _repair(error, tfds_name, root, paths)
        if repair is None:
            raise
        raise UserError(f"{name}: {repair}") from error


def _repair(error: Exception, tfds_name: str, root: Path, paths: list[Path]) -> str | None:
    """What is wrong where a builder failed, and what to do; None where only this package can be.

    Args:
        root: Folder that it was to write to.
        paths: Published files of a builder of this package; none: it is one of tfds.
    """
    first_line = f"{type(error).__name__}: {(str(error).splitlines() or [''])[0][:200]}"
    if not paths:
        build = commands.shell("tfds", "build", tfds_name, "--file_format=array_record")
        return (
            f"tensorflow-datasets could not prepare it here ({first_line}). Many of its builders need TensorFlow: "
            f"where that is installed, run `{build}` and copy the folder to {root}."
        )
    if isinstance(error, tarfile.TarError | EOFError | zlib.error):
        return f"{paths[0]} is damaged ({first_line}). Fetch it anew, into another folder."
    if isinstance(error, OSError):
        other = commands.option("data_dir", "FOLDER")
        return f"cannot be written to {root} ({first_line}); name another folder with {other}."
    return None


def _prepare_tfds(tfds_name: str, name: str, data_dir: Path | None, given: Path | None, may_download: bool) -> None:
    root = tfds_folder.root(data_dir)
    with _locked(root, tfds_name):
        _remove_leftovers(root / tfds_name)
        ready = partial(cifar.find, name) if name in CIFAR_PICKLES else partial(tfds_folder.find, tfds_name, name)
        if not _exists(ready, data_dir):
            _run_builder(tfds_name, name, data_dir, given, may_download)


def _prepare_cinic10(data_dir: Path | None, given: Path | None, may_download: bool) -> None:
    folder = cinic10.folder_of(data_dir)
    with _locked(folder, "cinic10"):
        if _exists(cinic10.find, data_dir):
            return
        archives = ARCHIVES["cinic10"]
        paths = obtain("cinic10", archives, folder, data_dir=data_dir, given=given, may_download=may_download)
        place(paths[0], folder / cinic10.FILE_NAME)


def _prepare_fashion_mnist(data_dir: Path | None, given: Path | None, may_download: bool) -> None:
    if _exists(embedded.fashion_mnist_files, data_dir):
        return
    folder = embedded.idx_folder(data_dir)
    with _locked(folder, "fashion_mnist"):
        archives = ARCHIVES["fashion_mnist"]
        paths = obtain("fashion_mnist", archives, folder, data_dir=data_dir, given=given, may_download=may_download)
        for path in paths:
            place(path, folder / path.name)


def prepare(
    name: str, data_dir: str | Path | None = None, archive: str | Path | None = None, download: bool = True,
    **reading: Any,
) -> Dataset:  # fmt: skip
    """Make a dataset ready, so that every later `data.load` finds it and is fast.

    What is ready already stays as it is. Any number of processes may do this at once, and what
    a killed one left is repaired by the next.

    Args:
        name: As for `data.load`.
        data_dir: Folder to prepare it in; None: where it is usually found.
        archive: The published file, or a folder that has it (needed where there are several);
            None: looked for in data_dir, then downloaded.
        download: Whether the network may be used.
        reading: As for `load_dataset`.
    Returns:
        The loaded dataset.
    Raises:
        UserError: unknown name; a file is missing that cannot be downloaded (says which, its
            digest, and where to place it); a file is not the one that was published; the data
            is damaged or not what it must be.
    """
    check_asked(name, data_dir, Reading.asked(**reading))
    folder = data_folder(data_dir)
    given = data_folder(archive)
    tfds_name = _tfds_name(name)
    if tfds_name:
        _prepare_tfds(tfds_name, name, folder, given, download)
    elif name == "cinic10":
        _prepare_cinic10(folder, given, download)
    elif name == "fashion_mnist":
        _prepare_fashion_mnist(folder, given, download)
    elif given is not None:
        raise UserError(f"{name}: takes no archive; run {prepare_command(name, folder)} without it.")
    dataset = read_dataset(name, data_dir, asked := Reading.asked(**reading))
    tell_notes(dataset, stacklevel=3)
    if asked.labels is not None:
        given_labels(asked.labels, dataset)  # which are checked here, and read by each training
    return dataset
