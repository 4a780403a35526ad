"""Checkpoints of a run, ckpts/<step>/: put there by Orbax whole or not at all, verified leaf by leaf when read.

The only module that knows Orbax, which makes the folder, renames it into place and writes _CHECKPOINT_METADATA. The
rest is plain, and written by `_write`, which Orbax calls:

arrays.npz        the leaves by name, as np.load reads them; bfloat16, which NumPy lacks, as uint16 of the same bits
checkpoint.json   the format; the trees, with names in place of leaves; dtype, shape and hash of each leaf; the seconds
files.json        the hash of every file: it comes last, and without it a checkpoint is incomplete
"""

from __future__ import annotations

import errno
import hashlib
import os
import shutil
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from types import MappingProxyType, SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from datadiet.errors import UserError
from datadiet.models.networks import Variables
from datadiet.storage import files
from datadiet.storage.records import check_format
from datadiet.training.state import TrainState

FORMAT = 1  # of checkpoint.json and arrays.npz; checkpoints of before there was a number have neither
RECORD, ARRAYS, FILES = "checkpoint.json", "arrays.npz", "files.json"
Read = tuple[dict[str, Any], dict[str, float]]  # trees by name, and the seconds


def save_checkpoint(run_dir: Path, state: TrainState, seconds: Mapping[str, float] = MappingProxyType({})) -> None:
    """Write ckpts/<step>/: two trees (variables, training), the hash of every leaf, and the seconds spent so far.

    Returns when all is on disk, at last files.json.

    Raises:
        UserError: it cannot be written; nothing of it is left.
    """
    state = jax.device_get(state)
    path = _folder(run_dir, int(state.step))
    with files.writing(path):
        if path.exists():
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST))
        try:
            files.make_folder(path.parent)
            orbax = _orbax()
            _apart(partial(orbax.checkpointer().save, path, args=orbax.Save(_trees(state), dict(seconds))))
            _seal(path)
        except BaseException:
            for left in (path, *path.parent.glob(f"{path.name}.*")):
                shutil.rmtree(left, ignore_errors=True)
            raise


def checkpoint_steps(run_dir: Path) -> list[int]:
    """Steps that have a checkpoint, ascending."""
    folder = run_dir / "ckpts"
    return sorted(int(p.name) for p in folder.iterdir() if p.name.isdigit()) if folder.is_dir() else []


def load_variables(run_dir: Path, step: int) -> Variables:
    """Network variables saved at a step, verified leaf by leaf.

    Raises:
        UserError: no such checkpoint (with those there are), a damaged one, or one of a newer format.
    """
    return _load(run_dir, step, "variables")[0]["variables"]


def load_state(run_dir: Path, step: int, like: TrainState) -> TrainState:
    """The whole state saved at a step, in the structure of `like`; verified leaf by leaf.

    Raises:
        UserError: as for `load_variables`, or one with other statistics or leaves than `like`.
    """
    trees, _ = _load(run_dir, step, "variables", "training")
    variables, training = trees["variables"], trees["training"]
    gathered = training.get("trajectory", {})
    if gathered.keys() != like.trajectory.keys():
        held, expected = (", ".join(sorted(names)) or "none" for names in (gathered, like.trajectory))
        raise UserError(f"{run_dir}: step {step} has statistics {held}; expected {expected}: train the run again.")
    _check_like(_folder(run_dir, step), trees, _trees(like))
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
    """Seconds spent up to a checkpoint, by name; raises as `load_variables`."""
    return _load(run_dir, step)[1]


# --- trees and leaves -------------------------------------------------------------------------


def _trees(state: TrainState) -> dict[str, Any]:
    """What is saved of a state: trees of dicts and lists."""
    training = {"step": state.step, "sums": state.sums, "opt_state": jax.tree.leaves(state.opt_state)}
    if state.trajectory:
        training["trajectory"] = {name: stats._asdict() for name, stats in state.trajectory.items()}
    return {"variables": state.variables, "training": training}


def _name(path: tuple[Any, ...]) -> str:
    """Of a leaf: its tree's, and its place there."""
    return f"{path[0].key}{jax.tree_util.keystr(path[1:])}"


def _leaves(trees: Mapping[str, Any], is_leaf: Callable[[Any], bool] | None = None) -> dict[str, Any]:
    return {_name(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(trees, is_leaf)}


def leaf_hash(leaf: Any) -> str:
    """sha256 (hex) of dtype, shape and bytes."""
    array = np.asarray(leaf)
    digest = hashlib.sha256(f"{array.dtype}{array.shape}".encode())
    digest.update(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)
    return digest.hexdigest()


def _facts(array: np.ndarray) -> dict[str, Any]:
    return {"dtype": str(array.dtype), "shape": list(array.shape), "sha256": leaf_hash(array)}


def _check_like(path: Path, trees: Mapping[str, Any], like: Mapping[str, Any]) -> None:
    """Raises UserError, naming the leaf, where trees differ in structure, shape or dtype from those expected."""

    def shapes(trees: Mapping[str, Any]) -> dict[str, str]:
        leaves = _leaves(trees, is_leaf=lambda node: isinstance(node, dict) and not node)
        return {k: "an empty dict" if isinstance(v, dict) else f"{v.dtype}{list(v.shape)}" for k, v in leaves.items()}

    found, expected = shapes(trees), shapes(like)
    for name in [*expected, *found]:
        if found.get(name) != expected.get(name):
            raise UserError(
                f"{path}: {name} is {found.get(name, 'missing')}; expected {expected.get(name, 'no such leaf')}. It is "
                "of another network, optimizer or version of datadiet: train the run again."
            )


# --- the files --------------------------------------------------------------------------------


def _folder(run_dir: Path, step: int) -> Path:
    return (run_dir / "ckpts" / str(step)).absolute()  # Orbax takes no other


def _write(folder: Path, trees: Mapping[str, Any], seconds: Mapping[str, float]) -> None:
    """arrays.npz and checkpoint.json."""
    leaves = {name: np.asarray(leaf) for name, leaf in _leaves(trees).items()}
    plain = {k: a if a.dtype.isbuiltin == 1 else a.view(f"u{a.dtype.itemsize}") for k, a in leaves.items()}
    np.savez(folder / ARRAYS, allow_pickle=False, **plain)
    named = jax.tree_util.tree_map_with_path(lambda path, _: _name(path), trees)
    facts = {name: _facts(array) for name, array in leaves.items()}
    record = {"format": FORMAT, "trees": named, "leaves": facts, "seconds": seconds}
    (folder / RECORD).write_text(files.json_text(files.sealed(record)) + "\n")


def _read(folder: Path, names: tuple[str, ...]) -> Read:
    """Some trees by name, and the seconds, as `_write` got them; raises UserError where a leaf is not."""
    record = files.read_record(folder / RECORD, trees=dict, leaves=dict, seconds=dict)
    with np.load(folder / ARRAYS, allow_pickle=False) as arrays:

        def verified(name: str) -> np.ndarray:
            array, facts = arrays[name], record["leaves"][name]
            array = array.view(facts["dtype"])
            if _facts(array) != facts:
                raise UserError(f"{folder}: {name} is not what was saved (its hash differs); train the run again.")
            return array

        trees = {name: jax.tree.map(verified, record["trees"][name]) for name in names}
    return trees, record["seconds"]


def _seal(path: Path) -> None:
    """Have all of a checkpoint on disk, then say so with the hash of every file."""
    for each in (*path.rglob("*"), path):
        files.sync_folder(each)
    files.write_json(path / FILES, files.sealed(_file_hashes(path)))
    files.sync_folder(path.parent)


def _file_hashes(path: Path) -> dict[str, str]:
    """sha256 (hex) of every file of a checkpoint, by its path there."""
    hashes = {}
    for file in sorted(p for p in path.rglob("*") if p.is_file() and p != path / FILES):
        with open(file, "rb") as opened:
            hashes[file.relative_to(path).as_posix()] = hashlib.file_digest(opened, "sha256").hexdigest()
    return hashes


def _check_files(path: Path) -> None:
    """Raises UserError, naming the file, where one of a checkpoint is missing or not what was written."""
    if not (path / FILES).is_file():
        raise UserError(f"{path / FILES} is missing: this checkpoint is incomplete; train the run again.")
    expected, found = files.read_record(path / FILES), _file_hashes(path)
    if files.SEAL not in expected:
        raise UserError(f"{path / FILES} is not what was written: this checkpoint is damaged; train the run again.")
    for name, digest in expected.items():
        if name != files.SEAL and found.get(name) != digest:
            state = "is not what was written (its hash differs)" if name in found else "is missing"
            raise UserError(f"{path / name} {state}: this checkpoint is damaged; train the run again.")


def _load(run_dir: Path, step: int, *names: str) -> Read:
    """Some trees of a checkpoint by name, and the seconds, verified."""
    path = _folder(run_dir, step)
    if not path.is_dir():
        known = ", ".join(map(str, checkpoint_steps(run_dir))) or "none"
        raise UserError(f"No checkpoint of step {step} in {run_dir / 'ckpts'}; there is: {known}.")
    if numbered := (path / RECORD).exists():
        record = files.read_record(path / RECORD)
        check_format(path / RECORD, record.get("format"), FORMAT)  # first: another format may have other files
    _check_files(path)
    try:
        if not numbered:
            return _apart(partial(_read_unnumbered, path, names))
        orbax = _orbax()
        return _apart(partial(orbax.checkpointer().restore, path, args=orbax.Restore(names)))
    except UserError:
        raise
    except Exception as error:  # Orbax and its storage raise many kinds for a damaged folder
        raise UserError(f"{path}: this checkpoint is incomplete or damaged ({error}); train the run again.") from error


# --- Orbax ------------------------------------------------------------------------------------


def _apart(call: Callable[[], Any]) -> Any:
    """What a call of Orbax gives, done in a thread of its own: Orbax runs event loops, which would take the place of
    the caller's, or fail within one that runs already, as in a notebook."""
    with ThreadPoolExecutor(1, "datadiet-checkpoint") as pool:
        return pool.submit(call).result()


@cache
def _orbax() -> SimpleNamespace:
    """checkpointer() makes one that leaves arrays to `_write` and `_read`; Save and Restore are its arguments."""
    import orbax.checkpoint as ocp

    class Handler(ocp.CheckpointHandler):
        def save(self, directory: Any, args: Any) -> None:
            _write(Path(directory), args.trees, args.seconds)

        def restore(self, directory: Any, args: Any) -> Read:
            return _read(Path(directory), args.names)

        @classmethod
        def typestr(cls) -> str:  # in _CHECKPOINT_METADATA
            return "datadiet.checkpoints"

    @ocp.args.register_with_handler(Handler, for_save=True)
    @dataclass
    class Save(ocp.args.CheckpointArgs):
        trees: dict[str, Any]
        seconds: dict[str, float]

    @ocp.args.register_with_handler(Handler, for_restore=True)
    @dataclass
    class Restore(ocp.args.CheckpointArgs):
        names: tuple[str, ...]

    return SimpleNamespace(checkpointer=lambda: ocp.Checkpointer(Handler()), Save=Save, Restore=Restore)


def _read_unnumbered(path: Path, names: tuple[str, ...]) -> Read:
    """As `_read`, of a checkpoint of before formats had numbers: all of it is Orbax's own."""
    import orbax.checkpoint as ocp

    arguments = {name: ocp.args.StandardRestore() for name in names}
    arguments |= {name: ocp.args.JsonRestore() for name in ("hashes", "seconds")}
    checkpointer = ocp.Checkpointer(ocp.CompositeCheckpointHandler())
    found = checkpointer.restore(path, args=ocp.args.Composite(**arguments))
    trees = {name: found[name] for name in names}
    hashes = {name: leaf_hash(np.atleast_1d(leaf)) for name, leaf in _leaves(trees).items()}  # they knew no shape []
    for name, digest in ((f"{tree}{leaf}", d) for tree in names for leaf, d in found["hashes"][tree].items()):
        if hashes.get(name) != digest:
            raise UserError(f"{path}: {name} is not what was saved (its hash differs); train the run again.")
    return trees, found["seconds"]
