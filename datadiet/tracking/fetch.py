"""Files that MLflow has, where a path may stand: runs:/ID/PATH and models:/NAME/VERSION/PATH, brought to this machine.

They lie in the user's cache, with the records that stood beside them, by which whoever reads them verifies them.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import tempfile
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from datadiet import commands
from datadiet.errors import UserError
from datadiet.home import CACHE, cache_folder
from datadiet.intake import private_folder
from datadiet.printable import printable
from datadiet.storage import runs
from datadiet.storage.files import writing
from datadiet.storage.runs import StoredRun
from datadiet.tracking import mlflow_store
from datadiet.tracking.failures import reason
from datadiet.tracking.mlflow_store import Unusable

LISTED = 40  # files of a run that an error names


class Named(NamedTuple):
    """What a text names."""

    home: str  # runs:/ID, models:/NAME/VERSION, models:/NAME@ALIAS or models:/m-ID
    path: str  # of a file there, with '/'


def is_remote(text: str | Path | None) -> bool:
    """Whether it names a file of MLflow, and no path."""
    return text is not None and re.match("(runs|models):/", str(text)) is not None


def refuse_offline(offline: bool, **texts: str | Path | None) -> None:
    """Refuse files of MLflow for work that never calls it.

    Args:
        offline: Whether it is such work.
        texts: Values of options, by name.
    Raises:
        UserError: it names the options.
    """
    if offline and (remote := [f"{name}={text}" for name, text in texts.items() if is_remote(text)]):
        raise UserError(
            f"{', '.join(remote)}: a file that MLflow has, but {commands.option('offline', True)} never calls it. "
            "Leave that out, or name a file of this machine."
        )


def local_file(text: str | Path, option: str) -> Path:
    """The file that a text names: the path that it is, or, of a run or model of MLflow, a copy on this machine.

    Args:
        text: A path, runs:/ID/PATH, models:/NAME/VERSION/PATH, models:/NAME@ALIAS/PATH or models:/m-ID/PATH.
        option: Whose value it is, for errors.
    Returns:
        The path; whether a file of this machine is there is left to who reads it.
    Raises:
        UserError: MLflow cannot be reached, or has no such run, model or file (with those that there are).
    """
    if not is_remote(text):
        return Path(text)
    named = _parsed(str(text), option)
    folder = _folder(named.home)
    target = folder / named.path
    try:
        with mlflow_store.usable(needed=True):
            _bring(named, folder, f"{option}={text}")
    except Unusable:
        raise
    except UserError as error:
        if not target.is_file():
            raise
        warnings.warn(f"{error}\n{option}={text} is taken as it was when it was brought here before.", stacklevel=2)
    if target.name == "kept.csv" and target.with_name("args.json").is_file():
        runs.open_run(target.parent).input("kept.csv")  # the hash of what the run was trained on
    return target


def local_run(text: str | Path, option: str = "run") -> Path:
    """The folder of a run: the path that it is, or, of a model of MLflow that datadiet logged, a copy on this machine.

    Args:
        text: A path, runs:/ID/model, models:/NAME/VERSION, models:/NAME@ALIAS or models:/m-ID.
        option: Whose value it is, for errors.
    Raises:
        UserError: MLflow cannot be reached, or has no such model.
    """
    if not is_remote(text):
        return Path(text)
    named, told = _parsed(str(text), option), f"{option}={text}"
    target = _folder(f"{named.home}/{named.path}") / "exps"
    inside = f"{named.path}/artifacts/exps".lstrip("/")
    with mlflow_store.usable(needed=True):
        mlflow_store.connect()
        there = _there(named.home, told)
        if not there.list_artifacts(inside):
            has = ", ".join(_all_files(there)) or "no files"
            raise Unusable(printable(f"{told}: expected a model that log_model=true made; {named.home} has: {has}."))
        with tempfile.TemporaryDirectory(dir=target.parent) as temporary:
            brought = there.download_artifacts(inside, temporary)
            with writing(target):
                shutil.rmtree(target, ignore_errors=True)
                os.replace(brought, target)
    (arguments,) = target.rglob("args.json")
    return arguments.parent


def open_run(path: str | Path) -> StoredRun:
    """A training run: its folder, or a model of MLflow that was made of it (see `local_run`).

    Raises:
        UserError: there is none, or one that was made in another place below exps.
    """
    return runs.open_run(local_run(path))


def _parsed(text: str, option: str) -> Named:
    """Raises UserError where a text names no file of a run or model."""
    found = re.fullmatch(r"(runs:/\w+|models:/(?:m-\w+|[^/@]+/\w+|[^/@]+@[^/@]+))(?:/(.*))?", text)
    if not found or {".", "..", ""} & set((found[2] or "file").split("/")):
        raise UserError(
            f"{option}={printable(text)}: expected a file that MLflow has, as runs:/RUN_ID/PATH, models:/NAME/VERSION/"
            "PATH, models:/NAME@ALIAS/PATH or models:/MODEL_ID/PATH."
        )
    return Named(found[1], found[2] or "")


def _folder(home: str) -> Path:
    """Where files of a run or model are brought to."""
    told = hashlib.sha256(f"{mlflow_store.absolute_store()} {home}".encode()).hexdigest()
    path = cache_folder() / "mlflow" / told[:16]
    with writing(path):
        return private_folder(path, ours=not os.environ.get(CACHE))


def _bring(named: Named, folder: Path, told: str) -> None:
    """Copy a file of MLflow, and what ties it to its data, into a folder.

    Raises:
        Unusable: there is no such run, model or file.
        one of AWAY.
    """
    mlflow_store.connect()
    there = _there(named.home, told)
    *parents, name = named.path.split("/")
    beside = {info.path for info in there.list_artifacts("/".join(parents) or None) if not info.is_dir}
    if named.path not in beside:
        has = ", ".join(_all_files(there)) or "no files"
        raise Unusable(printable(f"{told}: expected a file of {named.home}, which has: {has}."))
    stem = named.path.removesuffix(name)
    records = {f"{stem}{Path(name).stem}.json", f"{stem}{name}.json", f"{stem}args.json", f"{stem}summary.json"}
    records &= beside
    if parents[-1:] == ["kept"]:  # tables of a study
        above = "/".join(parents[:-1])
        records |= {i.path for i in there.list_artifacts(above or None) if Path(i.path).name == "study.json"}
    with tempfile.TemporaryDirectory(dir=folder) as temporary:
        for path in (*sorted(records - {named.path}), named.path):
            brought = there.download_artifacts(path, temporary)
            with writing(folder / path):
                (folder / path).parent.mkdir(mode=0o700, parents=True, exist_ok=True)
                os.replace(brought, folder / path)


def _there(home: str, told: str) -> Any:
    """What lists and downloads the files of a run or model; raises Unusable where there is none of this name."""
    try:
        return mlflow_store.artifacts(home)
    except mlflow_store.AWAY as error:
        if not mlflow_store.refused(error):
            raise
        raise Unusable(
            f"{told}: MLflow ({mlflow_store.store_name()}) has no {home} ({reason(error)}). Name the store that has it "
            "with MLFLOW_TRACKING_URI."
        ) from error


def _all_files(there: Any) -> list[str]:
    """Paths of the files of a run or model, LISTED at most."""

    def walk(folder: str | None) -> Iterator[str]:
        for info in there.list_artifacts(folder):
            if info.is_dir:
                yield from walk(info.path)
            else:
                yield info.path

    paths = [path for path, _ in zip(walk(None), range(LISTED + 1))]
    return paths if len(paths) <= LISTED else [*paths[:LISTED], "…"]
