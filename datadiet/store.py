"""The filesystem mirror: where things lie below exps/, written whole or not at all.

The only module that knows Orbax.
"""

from __future__ import annotations

import errno
import hashlib
import io
import json
import logging
import os
import re
import reprlib
import shutil
import tempfile
import threading
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from types import MappingProxyType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from filelock import FileLock, Timeout

import datadiet
from datadiet import data, loops
from datadiet.config import TrainConfig, UserError, check_text, from_dict
from datadiet.coresets import Parameters
from datadiet.models import Network, Variables, build_model
from datadiet.train import TrainState

SCORE_FOLDERS = {"l2_error": "error_l2_norm_scores"}  # of every other type: <type>_scores
SEAL = "record_sha256"  # name of the hash in a sealed record
logging.getLogger("absl").setLevel(logging.CRITICAL)  # Orbax warns of every save, and tells each error twice


class Busy(UserError):
    """Another process works on what was asked for."""


# --- places -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class ExperimentLayout:
    """Paths below <root>/exps. Nothing here writes."""

    root: Path
    names_selector: bool = False  # of every subset in its folder, also of those that have an entry point of their own

    @property
    def exps(self) -> Path:
        return self.root / "exps"

    def experiment(self, exp: str) -> Path:
        """Raises UserError where `exp` would lead out of the mirror or is no plain name."""
        parts = exp.split("/")
        if not all(re.fullmatch(r"[\w][\w.+-]*", part) for part in parts):
            raise UserError(f"exp={exp!r}: expected a name of letters, digits, '_', '-', '.' (parts joined by '/').")
        check_text("exp", exp)
        return self.inside(self.exps.joinpath(*parts))

    def inside(self, path: Path) -> Path:
        """The path, where no symbolic link on it leads out of the mirror.

        Raises:
            UserError: one does.
        """
        try:
            within = path.resolve().is_relative_to(self.exps.resolve())
        except (OSError, RuntimeError, ValueError):  # links in a circle
            within = False
        if not within:
            raise UserError(
                f"{path}: a symbolic link leads out of {self.exps}. Replace it by a folder; to keep the mirror "
                "elsewhere, choose another -P root=FOLDER, or let exps itself be the link."
            )
        return path

    def run(self, exp: str, config: TrainConfig) -> Path:
        """Folder of a training run."""
        folder = self.experiment(exp)
        if config.selector != "all":
            folder /= self.subset(config)
        return self.inside(folder / f"run_{config.run}")

    def subset(self, config: TrainConfig) -> str:
        """size_<size>, the selector where no entry point of its own stands for it, and its options that were given."""
        own = ("random", "keep_max", "offset") if not self.names_selector else ()
        selector = [] if config.selector in own else [config.selector]
        given = {name: getattr(config, name) for name in Parameters._fields}
        given = {k: v for k, v in given.items() if v != Parameters._field_defaults[k] or k == config.selector}
        return ".".join([f"size_{config.size}", *selector, *(f"{name}_{value}" for name, value in given.items())])

    def name(self, path: Path) -> str:
        """Path below exps, with '/': the name of a run; see `inside`."""
        return self.inside(path).relative_to(self.exps).as_posix()


def score_file(folder: Path, kind: str, step: int, combine: str = "mean") -> Path:
    """Score file of a type and step below a run's or an experiment's folder; there, how runs were combined."""
    manner = "" if combine == "mean" else f".{combine}"
    return folder / SCORE_FOLDERS.get(kind, f"{kind}_scores") / f"ckpt_{step}{manner}.npy"


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
        return f"{text}. Nothing half-written is left. Free some space, then repeat the command, with -P resume=true " \
               "where it trains"  # fmt: skip
    if code in (errno.EROFS, errno.EACCES, errno.EPERM):
        return f"{text}. Make the folder writable, or choose another with -P root=FOLDER"
    return text


def sync_folder(path: Path) -> None:
    """Have a folder's entries (or a file) on disk: a file renamed into it is there after a power failure too."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def make_folder(path: Path) -> None:
    """A folder and those above it, on disk."""
    missing = [folder for folder in (path, *path.parents) if not folder.exists()]
    path.mkdir(parents=True, exist_ok=True)
    for folder in reversed(missing):
        sync_folder(folder.parent)


def write_bytes(path: Path, content: bytes) -> None:
    """Write a file so that a reader sees the old one or the new one, never a part.

    Raises:
        UserError: it cannot be written; the old one is still there.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    with writing(path):
        make_folder(path.parent)
        try:
            with open(temporary, "wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
            sync_folder(path.parent)
        finally:
            with suppress(OSError):
                temporary.unlink(missing_ok=True)


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
        value = json.loads(path.read_bytes())
    except FileNotFoundError:
        raise UserError(f"No file {path}.") from None
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: not readable as JSON ({error}); it is damaged.") from error
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}.") from error
    if isinstance(value, dict) and value.get(SEAL, sealed(value)[SEAL]) != sealed(value)[SEAL]:
        raise UserError(f"{path}: not what was written there (its hash differs); it is damaged.")
    return value


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


def npy_bytes(array: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array, allow_pickle=False)
    return buffer.getvalue()


def csv_text(header: str, rows: Iterable[tuple]) -> str:
    return "\n".join([header, *(",".join(map(str, row)) for row in rows)]) + "\n"


def write_csv(path: Path, header: str, rows: Iterable[tuple]) -> None:
    write_text(path, csv_text(header, rows))


# --- scores -----------------------------------------------------------------------------------


def save_scores(
    path: Path, values: np.ndarray, identity: dict[str, Any], provenance: dict[str, Any],
    beside: Mapping[str, np.ndarray] = MappingProxyType({}),
) -> None:  # fmt: skip
    """Write scores [N] as .npy and, beside it, a .json that ties them to their data.

    Args:
        identity: Of the dataset: see `Dataset.identity`.
        provenance: type, step, runs and what else tells how they were made.
        beside: More arrays, for <name>.<suffix>.npy by suffix; the .json has their hashes.
    """
    content = npy_bytes(values)
    made = {"package_version": datadiet.__version__, "sha256": hashlib.sha256(content).hexdigest()}
    for suffix, array in beside.items():
        extra = npy_bytes(array)
        made[f"{suffix}_sha256"] = hashlib.sha256(extra).hexdigest()
        write_bytes(path.with_suffix(f".{suffix}.npy"), extra)
    record = sealed({**provenance, **made, **identity})
    write_json(path.with_suffix(".json"), record)  # first: values without a record would be taken on trust
    write_bytes(path, content)


def sealed(record: dict[str, Any]) -> dict[str, Any]:
    """A record with the hash of all else that it says, which `read_json` verifies."""
    rest = {name: value for name, value in record.items() if name != SEAL}
    text = json.dumps(rest, sort_keys=True)
    return rest | {SEAL: hashlib.sha256(text.encode()).hexdigest()}


def load_record(path: Path) -> dict[str, Any] | None:
    """The record beside a score file; None where there is none.

    Raises:
        UserError: it is damaged.
    """
    sidecar = path.with_suffix(".json")
    if not sidecar.exists():
        return None
    record = read_record(sidecar, sha256=str, dataset=str, fingerprint=str, example_ids=list, type=(str, type(None)))
    if SEAL not in record:
        raise UserError(f"{sidecar}: not what was written there (it has no hash); make the scores again.")
    if not all(isinstance(i, str) for i in record["example_ids"]):
        raise UserError(f"{sidecar}: example_ids are not all names; it is damaged.")
    return record


def load_scores(path: Path) -> tuple[np.ndarray, dict[str, Any] | None]:
    """Scores [N] of a file, and the record beside it (None where there is none).

    Raises:
        UserError: missing, not a 1-D .npy of numbers, or changed since it was written.
    """
    try:
        content = path.read_bytes()
    except (OSError, ValueError) as error:
        raise UserError(f"No score file {path} ({getattr(error, 'strerror', error)}).") from None
    record = load_record(path)
    if record is not None and record["sha256"] != hashlib.sha256(content).hexdigest():
        sidecar = path.with_suffix(".json").name
        raise UserError(f"{path}: its content is not what {sidecar} was written for; make the scores again.")
    try:
        values = np.load(io.BytesIO(content), allow_pickle=False)
    except Exception as error:  # NumPy's parser raises many kinds for a damaged header
        raise UserError(f"{path}: not readable as a .npy array of numbers ({error}).") from error
    if not isinstance(values, np.ndarray) or values.ndim != 1 or values.dtype.kind not in "fiu":
        kind, shape = getattr(values, "dtype", type(values)), np.shape(values)
        raise UserError(f"{path}: expected one real number per example, got {kind} of shape {shape}.")
    if record is not None and len(values) != len(record["example_ids"]):
        raise UserError(f"{path}: {len(values)} values for {len(record['example_ids'])} examples; it is damaged.")
    return values, record


# --- checkpoints ------------------------------------------------------------------------------


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


# --- runs -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class StoredRun:
    """A training run as it lies on disk."""

    path: Path

    @cached_property
    def arguments(self) -> dict[str, Any]:
        """args.json: options, and under "data" what was trained on."""
        return read_record(self.path / "args.json", data=dict)

    @cached_property
    def config(self) -> TrainConfig:
        return from_dict(self.arguments)

    @cached_property
    def summary(self) -> dict[str, Any] | None:
        """summary.json; None while the run is not finished."""
        path = self.path / "summary.json"
        return read_record(path) if path.exists() else None

    @cached_property
    def network(self) -> Network:
        facts = self.arguments["data"]
        config, shape = self.config, facts["image_shape"]
        return build_model(config.model, facts["num_classes"], shape, config.width, config.compute_dtype)

    @property
    def steps(self) -> list[int]:
        """Steps that have a checkpoint, ascending."""
        return checkpoint_steps(self.path)

    def variables(self, step: int) -> Variables:
        """Network variables at a step; see `load_variables`."""
        return load_variables(self.path, step)

    def logits(self, images: np.ndarray | jax.Array, step: int) -> jax.Array:
        """Logits float32 [B, C] in evaluation mode at a step.

        Args:
            images: [B, H, W, D], normalised float32; or uint8, which are normalised as in training.
        """
        return self.network.apply(self.variables(step), self._normalized(images))

    def features(self, images: np.ndarray | jax.Array, step: int) -> jax.Array:
        """Penultimate features float32 [B, F] in evaluation mode at a step; images as for `logits`."""
        return self.network.features(self.variables(step), self._normalized(images))

    def _normalized(self, images: np.ndarray | jax.Array) -> jax.Array:
        images = jnp.asarray(images)
        if images.dtype != jnp.uint8:
            return images
        facts = self.arguments["data"]
        return data.normalize(images, *(jnp.asarray(facts[name], jnp.float32) for name in ("mean", "std")))


def open_run(path: str | Path) -> StoredRun:
    """A training run's folder.

    Raises:
        UserError: there is no training run in it.
    """
    path = Path(path)
    if not (path / "args.json").is_file():
        raise UserError(f"{path} holds no training run (no args.json). Train one: mlflow run . -e full_data -P run=0")
    return StoredRun(path)


def _is_temporary(path: Path) -> bool:
    """Whether `write_bytes` left this file when its process was killed."""
    return path.name.startswith(".") and path.name.endswith(".tmp")


def check_free(path: Path, overwrite: bool) -> None:
    """Refuse a run folder that holds something, unless it may be replaced.

    Raises:
        UserError: it exists already.
    """
    if overwrite or not path.exists() or all(map(_is_temporary, path.iterdir())):
        return
    if (path / "summary.json").exists():
        found, way_on = "a finished run", ""
    elif (path / "args.json").exists():
        found, way_on = "an unfinished run", "Continue it with -P resume=true. "
    else:
        found, way_on = "files, but no run (no args.json)", ""
    raise UserError(
        f"{path} holds {found}, which would be lost. {way_on}Choose another -P run or -P exp, "
        "or replace it with -P overwrite=true."
    )


@contextmanager
def lock_run(path: Path) -> Iterator[None]:
    """Keep other processes out of a run folder; the system releases the lock whichever way this process ends.

    The lock file lies beside the folder, because replacing a run removes the folder, and stays there.

    Raises:
        UserError: another process works there.
    """
    file = path.with_name(f".{path.name}.lock")
    try:
        with writing(file):
            make_folder(path.parent)
            lock = FileLock(file, blocking=False)
            lock.acquire()
    except Timeout:
        raise Busy(
            f"{path}: another process is training this run (it holds {file}). Wait until it ends, or choose another "
            "-P run or -P exp."
        ) from None
    try:
        yield
    finally:
        lock.release()


def claim(path: Path, overwrite: bool) -> None:
    """Make an empty run folder; an existing one is replaced only with `overwrite`: see `check_free`."""
    check_free(path, overwrite)
    with writing(path):
        if path.exists():
            shutil.rmtree(path)
        make_folder(path)


def append_line(path: Path, value: dict[str, Any]) -> None:
    """Append one JSON line, sealed, on disk when this returns; a line that an earlier process left torn is cut off.

    Raises:
        UserError: it cannot be written; the file is as it was.
    """
    with writing(path), open(path, "a+b") as file:
        whole = end = file.seek(0, os.SEEK_END)
        while whole and (file.seek(whole - 1), file.read(1))[1] != b"\n":
            whole -= 1
        if whole < end:
            file.truncate(whole)
        try:
            file.write(_line(value).encode())
            file.flush()
            os.fsync(file.fileno())
        except OSError:
            os.ftruncate(file.fileno(), whole)
            raise
    if not whole:
        sync_folder(path.parent)


def read_lines(path: Path, last: int | None = None) -> list[dict[str, Any]]:
    """JSON lines of a file without their seals; none where there is no file. A last line that an earlier process left
    torn does not count.

    Args:
        last: Step of the last line, where it has to be there.
    Raises:
        UserError: a line is not what was written there, or the last one is missing.
    """
    values, damaged = _verified_lines(path)
    if damaged is not None:
        raise UserError(f"{path}: line {damaged} is not what was written there; it is damaged.")
    if last is not None and [value["step"] for value in values[-1:]] != [last]:
        raise UserError(f"{path}: the line of the last step, {last}, is missing; it is damaged.")
    return values


def good_lines(path: Path) -> list[dict[str, Any]]:
    """As `read_lines`, up to the first line that is damaged."""
    return _verified_lines(path)[0]


def _verified_lines(path: Path) -> tuple[list[dict[str, Any]], int | None]:
    """Lines up to the first damaged one, and the number of that, from 1. Files of before lines had seals have none at
    all and nothing but numbers."""
    lines = path.read_bytes().split(b"\n")[:-1] if path.exists() else []
    old, values = not any(SEAL.encode() in line for line in lines), []
    for number, line in enumerate(lines, start=1):
        try:
            value = json.loads(line)
            seal = value.pop(SEAL, None)
            whole = isinstance(value["step"], int) and (
                all(isinstance(v, int | float) for v in value.values()) if old else seal == sealed(value)[SEAL]
            )
        except (ValueError, RecursionError, AttributeError, TypeError, KeyError):
            whole = False
        if not whole:
            return values, number
        values.append(value)
    return values, None


def _line(value: dict[str, Any]) -> str:
    return json.dumps(sealed(value)) + "\n"


def write_lines(path: Path, values: Iterable[dict[str, Any]]) -> None:
    """The inverse of `read_lines`."""
    write_text(path, "".join(map(_line, values)))
