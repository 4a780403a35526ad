"""Checkpoints of a run, ckpts/<step>/: put there by Orbax whole or not at all, verified leaf by leaf when read.

The only module that knows Orbax, which makes the folder, renames it into place and writes _CHECKPOINT_METADATA. The
rest is plain: written by `_write`, which Orbax calls, and read without it:

arrays.npz        the leaves by name, as np.load reads them; bfloat16, which NumPy lacks, as uint16 of the same bits
checkpoint.json   the format; the run and the step; the trees, with names in place of leaves; dtype, shape and hash of
                  each leaf; the seconds
files.json        the hash of every file: it comes last, and without it a checkpoint is incomplete
"""

from __future__ import annotations

import errno
import hashlib
import math
import os
import re
import shutil
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from types import MappingProxyType, SimpleNamespace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from datadiet.errors import UserError
from datadiet.models.networks import Variables
from datadiet.storage import files
from datadiet.storage.layout import check_place
from datadiet.storage.leaves import check_like, leaf_facts, leaf_hash, leaf_name, named_leaves
from datadiet.storage.records import Arguments, check_format
from datadiet.training.state import TrainState

FORMAT = 1  # of checkpoint.json and arrays.npz; checkpoints of before there was a number have neither
RECORD, ARRAYS, FILES = "checkpoint.json", "arrays.npz", "files.json"
STEP = "training['step']"  # the leaf
HEADER = 1024  # bytes at most before the data of an array


class Read(NamedTuple):
    """What a checkpoint says."""

    trees: dict[str, Any]  # by name
    seconds: dict[str, float]
    step: int | None
    identity: dict[str, Any] | None  # None: made before it was noted


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
            files.make_subfolder(path.parent)
            orbax, facts = _orbax(), {"seconds": dict(seconds), "identity": _identity(run_dir, int(state.step))}
            _apart(partial(orbax.checkpointer().save, path, args=orbax.Save(_trees(state), facts)))
            _seal(path)
        except BaseException:
            for left in (path, *path.parent.glob(f"{path.name}.*")):
                shutil.rmtree(left, ignore_errors=True)
            raise


def checkpoint_steps(run_dir: Path) -> list[int]:
    """Steps that have a checkpoint, ascending."""
    folder = run_dir / "ckpts"
    named = (p.name for p in folder.iterdir() if re.fullmatch("0|[1-9][0-9]*", p.name)) if folder.is_dir() else ()
    return sorted(map(int, named))


def load_variables(run_dir: Path, step: int, like: Variables | None = None) -> Variables:
    """Network variables saved at a step, verified leaf by leaf.

    Args:
        like: Of their structure, shapes and dtypes; None: whatever they are.
    Raises:
        UserError: no such checkpoint (with those there are), a damaged one, one of another step, run or network, or one
            of a newer format.
    """
    return _load(run_dir, step, {"variables": like})[0]["variables"]


def load_state(run_dir: Path, step: int, like: TrainState) -> TrainState:
    """The whole state saved at a step, in the structure of `like`; verified leaf by leaf.

    Raises:
        UserError: as for `load_variables`.
    """
    trees, _ = _load(run_dir, step, _trees(like))
    variables, training = trees["variables"], trees["training"]
    gathered = training.get("trajectory", {})
    restored = TrainState(
        step=training["step"],
        params=variables["params"],
        batch_stats=variables["batch_stats"],
        opt_state=jax.tree.unflatten(jax.tree.structure(like.opt_state), training["opt_state"]),
        sums=training["sums"],
        trajectory={name: type(stats)(**gathered[name]) for name, stats in like.trajectory.items()},
        losses=like.losses and type(like.losses)(**training["losses"]),
    )
    return jax.tree.map(jnp.array, restored)


def load_seconds(run_dir: Path, step: int) -> dict[str, float]:
    """Seconds spent up to a checkpoint, by name; raises as `load_variables`."""
    return _load(run_dir, step, {})[1]


def _trees(state: TrainState) -> dict[str, Any]:
    """What is saved of a state: trees of dicts and lists."""
    training = {"step": state.step, "sums": state.sums, "opt_state": jax.tree.leaves(state.opt_state)}
    if state.trajectory:
        training["trajectory"] = {name: stats._asdict() for name, stats in state.trajectory.items()}
    if state.losses:
        training["losses"] = state.losses._asdict()
    return {"variables": state.variables, "training": training}


# --- whose it is ------------------------------------------------------------------------------


def _identity(run_dir: Path, step: int) -> dict[str, Any] | None:
    """What binds a checkpoint to its place: the run's path below exps, the seal of its args.json, which has all options
    and the data, and the step; None where args.json does not tell a path."""
    if not (run_dir / "args.json").is_file():
        return None
    told = Arguments.read(run_dir / "args.json")
    return {"run": told.path, "arguments": told.seal, "step": step} if told.path else None


def _check_identity(path: Path, run_dir: Path, step: int, found: Read) -> None:
    """Raises UserError where a checkpoint is of another step or run than its place; older ones tell the step alone."""
    told, expected = found.identity, _identity(run_dir, step)
    if told is None and expected is not None:
        raise UserError(f"{path} does not say which run it is of, as every checkpoint of {expected['run']} does: it "
                        "was copied or moved here. Train the run again.")  # fmt: skip
    if told is not None and expected is None:
        check_place(run_dir, told.get("run"))
    elif told is not None and told != expected:
        assert expected is not None
        same = all(told.get(name) == expected[name] for name in ("run", "step"))
        raise UserError(
            f"{path} is step {told.get('step')} of {told.get('run')}{', with other options or data' if same else ''}; "
            f"expected step {step} of {expected['run']}. It was copied or moved here from exps/{told.get('run')}/ckpts/"
            f"{told.get('step')}: take it there, or train this run again."
        )
    if found.step != step:
        raise UserError(f"{path} is of step {found.step}; expected step {step}. It was copied or moved here: take it "
                        f"under its own number, or train the run again.")  # fmt: skip


# --- the files --------------------------------------------------------------------------------


def _folder(run_dir: Path, step: int) -> Path:
    return (run_dir / "ckpts" / str(step)).absolute()  # Orbax takes no other


def _write(folder: Path, trees: Mapping[str, Any], facts: Mapping[str, Any]) -> None:
    """arrays.npz and checkpoint.json, in a folder that nobody else has put files into.

    Args:
        facts: More of checkpoint.json.
    """
    leaves = {name: np.asarray(leaf) for name, leaf in named_leaves(trees).items()}
    plain = {k: a if a.dtype.isbuiltin == 1 else a.view(f"u{a.dtype.itemsize}") for k, a in leaves.items()}
    with open(folder / ARRAYS, "xb") as file:  # x: follows no link
        np.savez(file, allow_pickle=False, **plain)
    named = jax.tree_util.tree_map_with_path(lambda path, _: leaf_name(path), trees)
    described = {name: leaf_facts(array) for name, array in leaves.items()}
    record = {"format": FORMAT, **facts, "trees": named, "leaves": described}
    with open(folder / RECORD, "x") as file:
        file.write(files.json_text(files.sealed(record)) + "\n")


def _read(folder: Path, wanted: Mapping[str, Any]) -> Read:
    """A checkpoint as `_write` got it; raises UserError where a leaf is not.

    Args:
        wanted: Names of the trees to read, each with what it has to be like (None: anything).
    """
    record = files.read_record(folder / RECORD, trees=dict, leaves=dict, seconds=dict)
    places = named_leaves({name: record["trees"][name] for name in wanted})
    if wrong := [name for name, held in places.items() if name != held]:
        raise UserError(f"{folder}: {wrong[0]} is not what was saved; train the run again.")
    like = {name: expected for name, expected in wanted.items() if expected is not None}
    told = {name: record["trees"][name] for name in like}
    check_like(folder, jax.tree.map(lambda leaf: SimpleNamespace(**record["leaves"][leaf]), told), like)
    with np.load(folder / ARRAYS, allow_pickle=False) as arrays:

        def verified(name: str) -> np.ndarray:
            facts = record["leaves"][name]
            expected = math.prod(facts["shape"]) * np.dtype(facts["dtype"]).itemsize
            if arrays.zip.getinfo(f"{name}.npy").file_size > expected + HEADER:  # before memory is taken
                raise UserError(f"{folder}: {name} is larger than {expected} bytes; train the run again.")
            array = arrays[name].view(facts["dtype"])
            if leaf_facts(array) != facts:
                raise UserError(f"{folder}: {name} is not what was saved (its hash differs); train the run again.")
            return array

        trees = {name: jax.tree.map(verified, record["trees"][name]) for name in wanted}
        step = int(verified(STEP)) if STEP in record["leaves"] else None
    return Read(trees, record["seconds"], step, record.get("identity"))


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


def _load(run_dir: Path, step: int, wanted: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, float]]:
    """Some trees of a checkpoint by name, and the seconds, verified; for `wanted` see `_read`."""
    path = _folder(run_dir, step)
    if not path.is_dir():
        known = ", ".join(map(str, checkpoint_steps(run_dir))) or "none"
        raise UserError(f"No checkpoint of step {step} in {run_dir / 'ckpts'}; there is: {known}.")
    if numbered := (path / RECORD).exists():
        record = files.read_record(path / RECORD)
        check_format(path / RECORD, record.get("format"), FORMAT)  # first: another format may have other files
    _check_files(path)
    try:
        found = _read(path, wanted) if numbered else _apart(partial(_read_unnumbered, path, wanted))
        _check_identity(path, run_dir, step, found)
        return found.trees, {name: float(value) for name, value in found.seconds.items()}
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
    """checkpointer() makes one that leaves what is in a folder to `_write`; Save is its argument."""
    import orbax.checkpoint as ocp

    class Handler(ocp.CheckpointHandler):
        def save(self, directory: Any, args: Any) -> None:
            _write(Path(directory), args.trees, args.facts)

        def restore(self, directory: Any, args: Any) -> Read:
            raise NotImplementedError("read by `_read`, which needs no Orbax")

        @classmethod
        def typestr(cls) -> str:  # in _CHECKPOINT_METADATA
            return "datadiet.checkpoints"

    @ocp.args.register_with_handler(Handler, for_save=True, for_restore=True)
    @dataclass
    class Save(ocp.args.CheckpointArgs):
        trees: dict[str, Any]
        facts: dict[str, Any]

    def checkpointer() -> ocp.Checkpointer:
        alone = jax.process_index()  # whichever others compute: they write nothing, and are not waited for
        options = ocp.options.MultiprocessingOptions(primary_host=alone, active_processes={alone})
        return ocp.Checkpointer(Handler(), multiprocessing_options=options)

    return SimpleNamespace(checkpointer=checkpointer, Save=Save)


def _read_unnumbered(path: Path, wanted: Mapping[str, Any]) -> Read:
    """As `_read`, of a checkpoint of before formats had numbers: all of it is Orbax's own."""
    import orbax.checkpoint as ocp

    names = list(dict.fromkeys([*wanted, "training"]))  # which has the step
    arguments = {name: ocp.args.StandardRestore() for name in names}
    arguments |= {name: ocp.args.JsonRestore() for name in ("hashes", "seconds")}
    checkpointer = ocp.Checkpointer(ocp.CompositeCheckpointHandler())
    found = checkpointer.restore(path, args=ocp.args.Composite(**arguments))
    trees = {name: found[name] for name in names}
    hashes = {
        name: leaf_hash(np.atleast_1d(leaf)) for name, leaf in named_leaves(trees).items()
    }  # they knew no shape []
    for name, digest in ((f"{tree}{leaf}", d) for tree in names for leaf, d in found["hashes"][tree].items()):
        if hashes.get(name) != digest:
            raise UserError(f"{path}: {name} is not what was saved (its hash differs); train the run again.")
    like = {name: expected for name, expected in wanted.items() if expected is not None}
    check_like(path, {name: trees[name] for name in like}, like)
    return Read(trees, found["seconds"], int(trees["training"]["step"]), None)
