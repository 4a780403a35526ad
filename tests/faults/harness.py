"""Real processes that begin quickly: forked from one that has imported everything and started nothing."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import signal
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jax

# What a fork inherits has to be imported, never begun: JAX's backend and MLflow's stores are made in the children.
import entrypoints.scoring
import entrypoints.syncing
import entrypoints.table
import entrypoints.training  # noqa: F401
from datadiet.config import resolve, saved_steps
from datadiet.models.registry import build_model
from datadiet.storage.checkpoints import checkpoint_steps, leaf_hash, load_state
from datadiet.storage.files import read_lines
from datadiet.storage.runs import open_run
from datadiet.tracking import mlflow_store, record, sync
from datadiet.tracking.record import is_timing
from datadiet.training.state import initial_state
from entrypoints.__main__ import main

QUICK = {"dataset": "digits", "model": "mlp", "width": 16, "num_steps": 150, "augment": "false"}
TRAINING = QUICK | {"save_steps": 15, "log_steps": 10}  # two thirds of the reports come between two checkpoints
TIMED = {"seconds", "mlflow_run_id", *(f"{name}_seconds" for name in ("train", "eval", "compile", "total", "select"))}
OUTCOMES = ("detected", "told wrongly", "survived", "lost")


@dataclass
class Tally:
    """What came of one kind of fault."""

    fault: str
    counts: dict[str, int] = field(default_factory=lambda: dict.fromkeys(OUTCOMES, 0))
    not_hit: int = 0  # the fault came too late, or could not be done: no part of `tried`
    notes: list[str] = field(default_factory=list)

    @property
    def tried(self) -> int:
        return sum(self.counts.values())

    def add(self, outcome: str, note: str = "") -> None:
        """outcome: detected (refused or passed over, the file named), told wrongly (refused, another file named),
        survived (the result is that of an undisturbed run) or lost."""
        self.counts[outcome] += 1
        if note:
            self.note(f"{outcome}: {note}")

    def judge(self, wrong: list[str]) -> None:
        """Survived where nothing is wrong, else lost."""
        self.add("lost" if wrong else "survived", "; ".join(wrong))

    def note(self, text: str) -> None:
        self.notes.append(f"{self.fault}: {text}")
        print(f"  {text}", flush=True)


@dataclass
class Child:
    """A forked process."""

    pid: int
    log: Path
    begun: float
    code: int | None = None

    def wait(self, seconds: float = 600) -> int:
        """Its exit code (minus the signal that ended it); it is killed after so many seconds."""
        end = time.monotonic() + seconds
        while self.running():
            if time.monotonic() > end:
                os.kill(self.pid, signal.SIGKILL)
            time.sleep(0.005)
        assert self.code is not None
        return self.code

    def running(self) -> bool:
        if self.code is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            self.code = os.waitstatus_to_exitcode(status) if pid else None
        return self.code is None

    def kill(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            if self.running():
                os.kill(self.pid, signal.SIGKILL)
        self.wait()

    @property
    def text(self) -> str:
        return self.log.read_text(errors="replace")


def fork(work: Any, log: Path) -> Child:
    """Run `work()` in a child; its return value is the exit code."""
    sys.stdout.flush()
    log.parent.mkdir(parents=True, exist_ok=True)
    pid = os.fork()
    if pid:
        return Child(pid, log, time.monotonic())
    code = 1
    try:
        out = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(out, 1)
        os.dup2(out, 2)
        code = work()
    except SystemExit as error:
        code = error.code if isinstance(error.code, int) else 1
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code or 0)


def datadiet(words: list[str], uri: str, log: Path, dies_at: int | None = None) -> Child:
    """`datadiet WORDS` as a process of its own; with `dies_at` see `die_at`."""

    def work() -> int:
        import mlflow

        mlflow.set_tracking_uri(uri)
        with contextlib.nullcontext() if dies_at is None else die_at(dies_at):
            main(words, prog_name="datadiet")
        return 0

    return fork(work, log)


@contextlib.contextmanager
def die_at(number: int) -> Iterator[None]:
    """kill -9 this process just before its change of that number, from 0: a file put in place or appended to, or the
    end of a transaction of MLflow's store. At the end of the block it prints how many there were."""
    import sqlalchemy.engine
    import sqlalchemy.event

    changes = itertools.count()

    def change(*_: Any) -> None:
        if next(changes) == number:
            os.kill(os.getpid(), signal.SIGKILL)

    def audit(event: str, arguments: tuple) -> None:
        if event == "os.rename" or (event == "open" and str(arguments[1]).startswith("a")):
            change()

    sys.addaudithook(audit)
    sqlalchemy.event.listen(sqlalchemy.engine.Engine, "commit", change)
    try:
        yield
    finally:
        print(f"\n{next(changes)} changes")


def words(command: str, **options: Any) -> list[str]:
    return [command, *(word for name, value in options.items() for word in (f"--{name}", str(value)))]


def asked(question: Any, *arguments: Any, log: Path) -> Any:
    """What a function gives (JSON), asked in a child, which may use JAX and MLflow."""
    answer = log.with_suffix(f".{time.monotonic_ns()}.answer")

    def work() -> int:
        answer.write_text(json.dumps(question(*arguments)))
        return 0

    child = fork(work, log)
    if child.wait() != 0:
        raise AssertionError(f"{question.__name__}: {child.text[-2000:]}")
    return json.loads(answer.read_text())


# --- what is compared -------------------------------------------------------------------------


def untimed(record: dict[str, Any]) -> dict[str, Any]:
    return {k: v for k, v in record.items() if k not in TIMED and not is_timing(k)}


def state_of(run: Path, step: int) -> dict[str, str]:
    """Hash of every leaf of a checkpoint, verified; raises UserError where it is damaged."""
    stored = open_run(run)
    shape = stored.data.image_shape
    config = resolve(stored.config, stored.data.num_examples)
    network = build_model(config.model, 10, shape, config.width)
    like = initial_state(network, config, stored.data.num_examples)
    leaves = jax.tree_util.tree_leaves_with_path(load_state(run, step, like))
    return {jax.tree_util.keystr(path): leaf_hash(leaf) for path, leaf in leaves}


def content(run: str) -> dict[str, Any]:
    """All that a training run made, without timings: files by their bytes, checkpoints by their verified state."""
    folder = Path(run)
    found: dict[str, Any] = {}
    for path in sorted(p for p in folder.rglob("*") if p.is_file() and "ckpts" not in p.relative_to(folder).parts):
        name = path.relative_to(folder).as_posix()
        if path.suffix == ".lock" or path.name == record.NAME:
            continue
        if path.name == "metrics.jsonl":
            found[name] = [untimed(line) for line in read_lines(path)]
        elif path.suffix == ".json":
            found[name] = untimed(json.loads(path.read_text()))
            found[name].pop("record_sha256", None)
        else:
            found[name] = path.read_bytes().hex()
    found["ckpts"] = sorted(p.name for p in (folder / "ckpts").iterdir())
    stored = open_run(folder)
    assert checkpoint_steps(folder) == saved_steps(resolve(stored.config, 1438))
    for step in checkpoint_steps(folder):
        found |= {f"{step}{leaf}": digest for leaf, digest in state_of(folder, step).items()}
    return found


def differences(whole: str, runs: list[str]) -> list[list[str]]:
    """For each run, what in it is not as in the undisturbed one."""
    right, told = content(whole), []
    for run in runs:
        try:
            found = content(run)
            different = [name for name in sorted(right.keys() | found.keys()) if right.get(name) != found.get(name)]
            told.append([f"{run}: {different[:5]} differ"] if different else [])
        except Exception as error:
            told.append([f"{run}: {type(error).__name__}: {error}"])
    return told


def untold(uri: str, roots: list[str]) -> list[list[str]]:
    """For each root, what MLflow says otherwise than its records: one run each, of their status, every point once."""
    import mlflow

    mlflow.set_tracking_uri(uri)
    client = mlflow.MlflowClient()
    runs = mlflow.search_runs(experiment_names=["datadiet"], output_format="list", max_results=50000)
    return [_untold(client, runs, Path(root)) for root in roots]


def _untold(client: Any, runs: list[Any], root: Path) -> list[str]:
    here = [r for r in runs if r.data.tags.get("datadiet.root") == str(root.resolve())]
    records = [record.load(path) for path in sync.record_files(root / "exps")]
    wrong = [] if records else [f"{root}: no record"]
    for one in records:
        called = {"datadiet.kind": one.kind, "datadiet.path": one.name}
        named = [r for r in here if called.items() <= r.data.tags.items()]
        # Scoring again what is scored already is a second run; training again is not.
        mine = [r for r in named if one.kind == "train" or r.data.tags["datadiet.uid"] == one.uid]
        if len(mine) != 1 or {one.status, *(r.info.status for r in named)} != {"FINISHED"}:
            wrong.append(f"{one.path}: {one.status}, MLflow has {[r.info.status for r in named]}")
            continue
        if mlflow_store.lacks_files(client, mine[0].info.run_id, one.files()):
            wrong.append(f"{one.path}: MLflow lacks files of it")
        expected: dict[str, list[tuple[int, float]]] = {}
        for step, _, values in one.points():
            for name, value in values.items():
                expected.setdefault(name, []).append((step, float(value)))
        for name in sorted(expected.keys() | mine[0].data.metrics.keys()):
            points = client.get_metric_history(mine[0].info.run_id, name)
            if sorted((p.step, p.value) for p in points) != sorted(expected.get(name, [])):
                wrong.append(f"{one.path}: {name} differs in MLflow: {len(points)} for {len(expected.get(name, []))}")
    return wrong


def half_written(root: Path) -> list[str]:
    """Temporary files and folders that were left."""
    return [str(p) for p in root.rglob("*") if p.name.endswith(".tmp") or "orbax-checkpoint-tmp" in p.name]
