"""Checkpoints, verified leaf by leaf. The only module that knows Orbax."""

from __future__ import annotations

import errno
import hashlib
import os
import re
import shutil
import tempfile
import threading
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from types import MappingProxyType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from datadiet.errors import UserError
from datadiet.models.networks import Variables
from datadiet.storage import loops
from datadiet.storage.files import SEAL, make_folder, read_record, sealed, sync_folder, write_json, writing
from datadiet.training.state import TrainState


def _leaf_hashes(tree: Any) -> dict[str, str]:
    """sha256 (hex) of dtype, shape and bytes of every leaf, by its path."""
    hashes = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        array = np.ascontiguousarray(leaf)
        digest = hashlib.sha256(f"{array.dtype}{array.shape}".encode())
        digest.update(array)
        hashes[jax.tree_util.keystr(path)] = digest.hexdigest()
    return hashes


@contextmanager
def _orbax() -> Iterator[Any]:
    """A checkpointer for the length of a `with` block. Afterwards nothing of it is at work, also where it failed."""
    import orbax.checkpoint as ocp

    # One by one: the threads that write into folders would wait for minutes where these could not be made.
    options = ocp.CompositeOptions(async_options=ocp.AsyncOptions(create_directories_asynchronously=False))
    with loops.patient():
        try:
            yield ocp.Checkpointer(ocp.CompositeCheckpointHandler(composite_options=options))
        finally:
            for thread in threading.enumerate():
                if type(thread).__module__.startswith("orbax."):
                    threading.Thread.join(thread, loops.PATIENCE)  # its own would raise what it failed of


def save_checkpoint(run_dir: Path, state: TrainState, seconds: Mapping[str, float] = MappingProxyType({})) -> None:
    """Write ckpts/<step>/: two items (variables, training), the hash of every leaf, and the seconds spent so far.

    At last comes files.json, the hash of every file: without it a checkpoint is incomplete. Returns when all is on
    disk.

    Raises:
        UserError: it cannot be written; nothing of it is left.
    """
    import orbax.checkpoint as ocp

    state = jax.device_get(state)
    training = {"step": state.step, "sums": state.sums, "opt_state": jax.tree.leaves(state.opt_state)}
    if state.trajectory:
        training["trajectory"] = {name: stats._asdict() for name, stats in state.trajectory.items()}
    items = {"variables": state.variables, "training": training}
    hashes = {name: _leaf_hashes(item) for name, item in items.items()}
    arguments = {name: ocp.args.StandardSave(item) for name, item in items.items()}
    arguments |= {"hashes": ocp.args.JsonSave(hashes), "seconds": ocp.args.JsonSave(dict(seconds))}
    path = (run_dir / "ckpts" / str(int(state.step))).absolute()
    with writing(path):
        try:
            make_folder(path.parent)
            _check_space(path.parent, sum(np.asarray(leaf).nbytes for leaf in jax.tree.leaves(items)))
            with _orbax() as checkpointer:
                checkpointer.save(path, args=ocp.args.Composite(**arguments))
            _seal(path)
        except BaseException as error:  # Orbax's storage raises a ValueError where the disk is full
            for left in path.parent.glob(f"{path.name}*"):
                if left.name.split(".")[0] == path.name:
                    shutil.rmtree(left, ignore_errors=True)
            if isinstance(error, ValueError) and (code := re.search(r"os_error_code='(\d+)'", str(error))):
                raise OSError(int(code[1]), os.strerror(int(code[1]))) from error
            raise


def _check_space(folder: Path, num_bytes: int) -> None:
    """Raises OSError where a checkpoint of so many bytes could not be written: Orbax's threads die noisily of that."""
    with tempfile.TemporaryFile(dir=folder):  # fails in a folder that is read-only
        pass
    if shutil.disk_usage(folder).free < num_bytes + 2**18:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def _file_hash(file: Path) -> str:
    with open(file, "rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


def _file_hashes(path: Path) -> dict[str, str]:
    """sha256 (hex) of every file of a checkpoint, by its path there."""
    files = sorted(p for p in path.rglob("*") if p.is_file() and p != path / "files.json")
    return {file.relative_to(path).as_posix(): _file_hash(file) for file in files}


def _seal(path: Path) -> None:
    """Have all of a checkpoint on disk, then say so with the hash of every file."""
    with ThreadPoolExecutor(8) as pool:  # together, they cost little more than one
        list(pool.map(sync_folder, [path, *path.rglob("*")]))
    write_json(path / "files.json", sealed(_file_hashes(path)))
    sync_folder(path.parent)


def _check_files(path: Path) -> None:
    """Raises UserError, naming the file, where one of a checkpoint is missing or not what was written."""
    if not (path / "files.json").is_file():
        raise UserError(f"{path / 'files.json'} is missing: this checkpoint is incomplete; train the run again.")
    expected, found = read_record(path / "files.json"), _file_hashes(path)
    if SEAL not in expected:
        raise UserError(
            f"{path / 'files.json'} is not what was written: this checkpoint is damaged; train the run again."
        )
    for name, digest in expected.items():
        if name != SEAL and found.get(name) != digest:
            state = "is not what was written (its hash differs)" if name in found else "is missing"
            raise UserError(f"{path / name} {state}: this checkpoint is damaged; train the run again.")


def checkpoint_steps(run_dir: Path) -> list[int]:
    """Steps that have a checkpoint, ascending."""
    folder = run_dir / "ckpts"
    return sorted(int(p.name) for p in folder.iterdir() if p.name.isdigit()) if folder.is_dir() else []


def _load_item(run_dir: Path, step: int, item: str) -> Any:
    import orbax.checkpoint as ocp

    path = (run_dir / "ckpts" / str(step)).absolute()
    if not path.is_dir():
        known = ", ".join(map(str, checkpoint_steps(run_dir))) or "none"
        raise UserError(f"No checkpoint of step {step} in {run_dir / 'ckpts'}; there is: {known}.")
    _check_files(path)
    arguments = {item: ocp.args.StandardRestore(), "hashes": ocp.args.JsonRestore()}
    try:
        with _orbax() as checkpointer:
            restored = checkpointer.restore(path, args=ocp.args.Composite(**arguments))
        tree, expected = restored[item], restored["hashes"][item]
    except Exception as error:  # Orbax and its storage raise many kinds for a damaged folder
        raise UserError(f"{path}: this checkpoint is incomplete or damaged ({error}); train the run again.") from error
    found = _leaf_hashes(tree)
    if damaged := [name for name in expected if found.get(name) != expected[name]]:
        raise UserError(f"{path}: {item}{damaged[0]} is not what was saved (its hash differs); train the run again.")
    return tree


def load_variables(run_dir: Path, step: int) -> Variables:
    """Network variables saved at a step, verified leaf by leaf.

    Raises:
        UserError: no such checkpoint (with those there are), or a damaged one.
    """
    return _load_item(run_dir, step, "variables")


def load_state(run_dir: Path, step: int, like: TrainState) -> TrainState:
    """The whole state saved at a step, in the structure of `like`; verified leaf by leaf.

    Raises:
        UserError: no such checkpoint, a damaged one, or one with other statistics than `like`.
    """
    variables, training = load_variables(run_dir, step), _load_item(run_dir, step, "training")
    gathered = training.get("trajectory", {})
    if gathered.keys() != like.trajectory.keys():
        held, expected = (", ".join(sorted(names)) or "none" for names in (gathered, like.trajectory))
        raise UserError(f"{run_dir}: step {step} has statistics {held}; expected {expected}: train the run again.")
    restored = TrainState(
        step=training["step"],
        params=variables["params"],
        batch_stats=variables["batch_stats"],
        opt_state=jax.tree.unflatten(jax.tree.structure(like.opt_state), training["opt_state"]),
        sums=training["sums"],
        trajectory={name: type(stats)(**gathered[name]) for name, stats in like.trajectory.items()},
    )
    return jax.tree.map(jnp.array, restored)


def load_seconds(run_dir: Path, step: int) -> dict[str, float]:
    """Seconds spent up to a checkpoint, by name."""
    import orbax.checkpoint as ocp

    path = (run_dir / "ckpts" / str(step)).absolute()
    _check_files(path)
    try:
        with _orbax() as checkpointer:
            return checkpointer.restore(path, args=ocp.args.Composite(seconds=ocp.args.JsonRestore()))["seconds"]
    except Exception as error:  # as in _load_item
        raise UserError(f"{path}: this checkpoint is incomplete or damaged ({error}); train the run again.") from error
