"""The faults: each function does one kind so many times and counts what came of it."""

from __future__ import annotations

import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from datadiet.errors import UserError
from datadiet.storage.checkpoints import load_seconds
from datadiet.storage.score_files import load_scores
from datadiet.tracking import mlflow_store, record

from .harness import TRAINING, Child, Tally, asked, datadiet, differences, half_written, untold, words
from .harness import state_of as _state_of

RUN = "exps/full_data/run_0"
KILLED = -signal.SIGKILL
ATTEMPTS = 4  # at most, for each fault that is to hit


@dataclass
class Stage:
    """Where faults are done: a folder with an MLflow store and runs that were left alone."""

    base: Path
    random: random.Random

    @cached_property
    def uri(self) -> str:
        return f"sqlite:///{self.base}/mlflow.db"

    def log(self, name: str) -> Path:
        return self.base / "logs" / f"{name}.log"

    def run(self, name: str, command: str, uri: str | None = None, dies_at: int | None = None, **options: Any) -> Child:
        return datadiet(words(command, **options), uri or self.uri, self.log(name), dies_at)

    def train(self, root: Path, uri: str | None = None, **more: Any) -> Child:
        return self.run(root.name, "full_data", uri, root=root, resume="true", **TRAINING, **more)

    def done(self, name: str, command: str, uri: str | None = None, **options: Any) -> float:
        """Run a command to its end, which has to be good; the seconds that it took."""
        child = self.run(name, command, uri, **options)
        if code := child.wait():
            raise AssertionError(f"{command} ended with {code}:\n{child.text[-3000:]}")
        return time.monotonic() - child.begun

    @cached_property
    def whole(self) -> Path:
        """The folder of an undisturbed run."""
        self.done("whole", "full_data", root=self.base / "whole", **TRAINING)
        return self.base / "whole" / RUN

    @cached_property
    def seconds(self) -> float:
        """What an undisturbed training takes, with warm caches."""
        assert self.whole
        return self.done("timed", "full_data", root=self.base / "timed", **TRAINING)

    @cached_property
    def scored(self) -> Path:
        """The folder of an undisturbed run that has scored as well."""
        self.done("scored", "score", root=self.whole.parents[2], score_exp="full_data", exp="scored", step=15)
        return self.whole

    def judge(self, tally: Tally, wrong: dict[Path, list[str]], uri: str | None = None) -> None:
        """Compare the runs of roots with the undisturbed one, and with what MLflow says; `wrong` is known already."""
        roots = [str(root) for root in wrong]
        runs = [str(root / RUN) for root in wrong]
        apart = asked(differences, str(self.whole), runs, log=self.log("differences"))
        in_mlflow = asked(untold, uri or self.uri, roots, log=self.log("untold"))
        for known, *found in zip(wrong.values(), apart, in_mlflow):
            tally.judge(known or [text for part in found for text in part])

    def resumed(self, *roots: Path) -> dict[Path, list[str]]:
        """Train on with resume=true, two runs at a time; by root what is wrong with how that ends."""
        wrong = {}
        for first in range(0, len(roots), 2):
            for root, child in [(root, self.train(root)) for root in roots[first : first + 2]]:
                code = child.wait()
                wrong[root] = [f"{root}: resuming ended with {code}: {child.text[-400:]}"] if code else []
        return wrong


def _hits(tally: Tally, count: int) -> Iterator[int]:
    """Numbers of attempts, until so many faults hit; the caller counts in `tally` those that did not."""
    for k in range(ATTEMPTS * count):
        if k - tally.not_hit >= count:
            return
        yield k


# --- kill -9 ----------------------------------------------------------------------------------


def _kill_at(stage: Stage, child: Child, seconds: float) -> bool:
    """kill -9 at a random moment within so many seconds from the start; whether it came before the end."""
    moment = stage.random.uniform(0, seconds)
    while child.running() and time.monotonic() - child.begun < moment:
        time.sleep(0.002)
    child.kill()
    return child.code == KILLED


def _saving(ckpts: Path) -> Path | None:
    """The checkpoint that is being written: its temporary folder, or one without its seal."""
    with suppress(OSError):
        for path in ckpts.iterdir():
            if not (path / "files.json").exists():
                return path
    return None


def _kill_saving(stage: Stage, child: Child, ckpts: Path) -> bool:
    """kill -9 while a random checkpoint is being written; whether it is incomplete."""
    after, delay = stage.random.randrange(11), stage.random.uniform(0, 0.01)  # seconds; a save takes about so long
    while child.running():
        if len(list(ckpts.glob("[0-9]*/files.json"))) >= after and _saving(ckpts):
            time.sleep(delay)
            break
        time.sleep(0.001)
    child.kill()
    return child.code == KILLED and _saving(ckpts) is not None


def kill_training(stage: Stage, count: int, while_saving: bool) -> Tally:
    """kill -9 at a random moment, or at one while a checkpoint is being written; then resume=true."""
    tally = Tally("kill -9 while a checkpoint is written" if while_saving else "kill -9 while training")
    killed: dict[Path, bool] = {}  # whether it counts
    assert stage.whole
    for k in _hits(tally, count):
        root = stage.base / f"{'saving' if while_saving else 'training'}_{k}"
        child = stage.train(root)
        ckpts = root / RUN / "ckpts"
        hit = _kill_saving(stage, child, ckpts) if while_saving else _kill_at(stage, child, stage.seconds)
        if not hit:
            tally.not_hit += 1
        if hit or child.code == KILLED:  # also a run that is not counted is looked at
            killed[root] = hit
    wrong = stage.resumed(*killed)
    stage.judge(tally, {root: found for root, found in wrong.items() if killed[root] or found})
    return tally


def _other(stage: Stage, command: str, name: str) -> tuple[dict[str, Any], Path]:
    """The options of score, mean_score or results, and the file that it makes."""
    root = stage.base / "whole"
    if command == "results":
        out = stage.base / f"{name}.csv"
        return {"root": root, "exps_path": root / "exps", "output": out}, out
    own, place = ({"n_runs": 1}, "") if command == "mean_score" else ({}, "run_0/")
    score_exp = "scored" if command == "mean_score" else "full_data"
    out = root / f"exps/by_{name}/{place}error_l2_norm_scores/ckpt_15.npy"
    return {"root": root, "score_exp": score_exp, "exp": f"by_{name}", "step": 15, **own}, out


def _repeated(stage: Stage, command: str, name: str, expected: Path) -> list[str]:
    """The same command again; what is wrong with the file before and after."""
    options, out = _other(stage, command, name)
    wrong = []
    if out.exists() and out.read_bytes() != expected.read_bytes():
        wrong.append(f"{out} is neither old nor new")
    again = stage.run(f"{name}_again", command, **options)
    same = again.wait() == 0 and out.read_bytes() == expected.read_bytes()
    if not same or (command != "results" and load_scores(out)[1] is None):
        wrong.append(f"{out}: {again.text[-300:]}")
    return wrong


def _kill_others(
    stage: Stage, tally: Tally, command: str, whole: str, attempts: Iterable[int], kill: Callable[..., bool]
) -> Tally:
    """Begin and kill a process in each attempt, then the same command again; compare with what `whole` made.

    Args:
        kill: Takes the attempt, the process's name and its options; whether the process was killed before its end.
    """
    _, expected = _other(stage, command, whole)
    wrong: dict[str, list[str]] = {}
    for k in attempts:
        name = f"{whole}_{k}"
        options, _ = _other(stage, command, name)
        hit = kill(k, name, options)
        if not hit:
            tally.not_hit += 1
        found = _repeated(stage, command, name, expected)
        if hit or found:
            wrong[name] = found
    told = asked(untold, stage.uri, [str(stage.base / "whole")], log=stage.log("untold"))[0]
    for name, found in wrong.items():
        tally.judge(found + [text for text in told if f"/by_{name}/" in text])
    return tally


def kill_other(stage: Stage, command: str, count: int) -> Tally:
    """kill -9 at random moments of score, mean_score or results; then the same command again."""
    tally, whole = Tally(f"kill -9 in {command}"), command
    assert stage.scored
    seconds = stage.done(whole, command, **_other(stage, command, whole)[0])

    def kill(_: int, name: str, options: dict[str, Any]) -> bool:
        return _kill_at(stage, stage.run(name, command, **options), seconds)

    return _kill_others(stage, tally, command, whole, _hits(tally, count), kill)


def _moments(stage: Stage, counted: Child, count: int) -> list[int]:
    """Numbers of changes of a process that made them all: so many, or every one."""
    if counted.wait():
        raise AssertionError(counted.text[-3000:])
    changes = int(counted.text.split()[-2])
    return sorted(stage.random.sample(range(changes), min(count, changes)))


def kill_other_at_changes(stage: Stage, command: str, count: int) -> Tally:
    """kill -9 just before each change that score, mean_score or results makes to files or in MLflow, in turn."""
    tally, whole = Tally(f"kill -9 before a change by {command}"), f"{command}_change"
    assert stage.scored
    counted = stage.run(whole, command, dies_at=-1, **_other(stage, command, whole)[0])

    def kill(k: int, name: str, options: dict[str, Any]) -> bool:
        return stage.run(name, command, dies_at=k, **options).wait() == KILLED

    return _kill_others(stage, tally, command, whole, _moments(stage, counted, count), kill)


def kill_training_at_changes(stage: Stage, count: int) -> Tally:
    """kill -9 just before a random change that a training makes to files or in MLflow; then resume=true."""
    tally = Tally("kill -9 before a change by full_data")
    assert stage.whole
    roots = []
    for k in _moments(stage, stage.train(stage.base / "counted_training", dies_at=-1), count):
        root = stage.base / f"training_change_{k}"
        if stage.train(root, dies_at=k).wait() == KILLED:
            roots.append(root)
        else:
            tally.not_hit += 1
    stage.judge(tally, stage.resumed(*roots))
    return tally


# --- corruption -------------------------------------------------------------------------------


def _flip(file: Path, seed: int) -> bytes:
    """Change one random byte; what was there before."""
    chance, before = random.Random(seed), file.read_bytes()
    damaged = bytearray(before)
    damaged[chance.randrange(len(damaged))] ^= chance.randrange(1, 256)
    file.write_bytes(damaged)
    return before


def _spoil(kind: str, file: Path, seed: int) -> bytes:
    if kind == "flip":
        return _flip(file, seed)
    before = file.read_bytes()
    if kind == "delete":
        file.unlink()
    else:
        file.write_bytes(before[: random.Random(seed).randrange(len(before))])
    return before


def _outcomes(files: list[str], plan: list[tuple[str, int]], load: Any) -> list[list[str]]:
    """Spoil, load, repair; for each: detected, survived (the same is loaded) or lost."""
    found, right = [], load()
    sizes = [Path(f).stat().st_size for f in files]
    for kind, seed in plan:
        at_least_1 = [max(1, size) for size in sizes]
        (name,) = random.Random(seed).choices(files, at_least_1 if kind == "flip" else None)
        if not Path(name).stat().st_size:
            kind = "delete"
        before = _spoil(kind, Path(name), seed)
        try:
            same = load() == right
            found.append(["survived" if same else "lost", f"{kind} in {name}, seed {seed}" if not same else ""])
        except UserError as error:
            told = name in str(error)
            found.append(["detected" if told else "told wrongly", "" if told else f"{kind} in {name}: {error}"])
        except Exception as error:
            found.append(["lost", f"{kind} in {name}, seed {seed}: {type(error).__name__}: {error}"])
        Path(name).write_bytes(before)
    return found


def spoil_checkpoint(run: str, plan: list[tuple[str, int]]) -> list[list[str]]:
    folder = Path(run) / "ckpts/75"
    files = sorted(str(p) for p in folder.rglob("*") if p.is_file())
    return _outcomes(files, plan, lambda: [_state_of(Path(run), 75), load_seconds(Path(run), 75)])


def spoil_scores(path: str, plan: list[tuple[str, int]]) -> list[list[str]]:
    def load() -> list[Any]:
        values, beside = load_scores(Path(path))
        return [values.tobytes(), beside]

    kept = [(kind, seed) for kind, seed in plan if kind != "delete"]
    return _outcomes([path, str(Path(path).with_suffix(".json"))], kept, load)


def spoil_history(path: str, plan: list[tuple[str, int]]) -> list[list[str]]:
    """As `sync` and the next process of a run read it."""
    return _outcomes([path], plan, lambda: list(record.load(Path(path).with_name(record.NAME)).points()))


def corrupt(stage: Stage, question: Any, path: Path, fault: str, flips: int, cuts: int) -> Tally:
    """Change bytes at random places, delete and shorten files."""
    tally = Tally(fault)
    plan = [("flip", stage.random.randrange(2**31)) for _ in range(flips)]
    plan += [(stage.random.choice(["delete", "cut"]), stage.random.randrange(2**31)) for _ in range(cuts)]
    for outcome, note in asked(question, str(path), plan, log=stage.log(question.__name__)):
        tally.add(outcome, note)
    return tally


def corrupt_all(stage: Stage, flips: int, cuts: int) -> list[Tally]:
    assert stage.whole
    run = stage.base / "spoilt" / RUN
    shutil.copytree(stage.base / "whole" / RUN, run)
    scores = run / "forget_scores/ckpt_75.npy"
    return [
        corrupt(stage, spoil_checkpoint, run, "a byte of a checkpoint changed", flips, 0),
        corrupt(stage, spoil_checkpoint, run, "a file of a checkpoint missing or cut short", 0, cuts),
        corrupt(stage, spoil_scores, scores, "a byte of a score file or its record changed", flips, 0),
        corrupt(stage, spoil_scores, scores, "a score file or its record cut short", 0, cuts),
        corrupt(stage, spoil_history, run / "metrics.jsonl", "a byte of metrics.jsonl changed", flips // 2, 0),
        corrupt(stage, spoil_history, run / "metrics.jsonl", "metrics.jsonl missing or cut short", 0, cuts),
    ]


# --- disks ------------------------------------------------------------------------------------


def _mount(folder: Path, options: str) -> bool:
    folder.mkdir(parents=True, exist_ok=True)
    return subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", folder], capture_output=True).returncode == 0


def full_disks(stage: Stage, count: int) -> Tally:
    """A disk that fills up at a random moment; then there is room, and resume=true."""
    tally = Tally("the disk is full")
    need = sum(p.stat().st_size for p in stage.whole.rglob("*") if p.is_file())
    wrong, mounted = {}, []
    try:
        for k in _hits(tally, count):
            root = stage.base / f"disk_{k}"
            if not _mount(root, f"size={int(stage.random.uniform(0.1, 0.95) * need)}"):
                tally.not_hit += 1
                continue
            mounted.append(root)
            child = stage.train(root)
            if child.wait() == 0:
                tally.not_hit += 1
                continue
            wrong[root] = _unclear(child) + half_written(root)
            subprocess.run(["mount", "-o", "remount,size=128m", root], check=True)
            wrong[root] += stage.resumed(root)[root]
        stage.judge(tally, wrong)
    finally:
        for root in mounted:
            subprocess.run(["umount", "-l", root], check=False)
    return tally


def read_only_folders(stage: Stage, count: int) -> Tally:
    """The folder turns read-only at a random moment: a read-only view of it is laid over it, then taken off."""
    tally = Tally("the folder turns read-only")
    wrong: dict[Path, list[str]] = {}
    assert stage.whole
    for k in _hits(tally, count):
        root, view = stage.base / f"read_only_{k}", stage.base / f"view_{k}"
        root.mkdir()
        view.mkdir()
        seen = all(_try(*words) for words in (("--bind", root, view), ("-o", "remount,ro,bind", view)))
        child, moment = stage.train(root), stage.random.uniform(0, stage.seconds)
        while child.running() and time.monotonic() - child.begun < moment:
            time.sleep(0.002)
        covered = seen and child.running() and _try("--bind", view, root)
        code = child.wait()
        for folder in (*([root] if covered else []), view):
            subprocess.run(["umount", "-l", folder], capture_output=True, check=False)
        if not covered or code == 0:
            tally.not_hit += 1
            continue
        wrong[root] = _unclear(child) + stage.resumed(root)[root]
    stage.judge(tally, wrong)
    return tally


def _try(*words: Any) -> bool:
    return subprocess.run(["mount", *words], capture_output=True).returncode == 0


def _unclear(child: Child) -> list[str]:
    """What is wrong with how a process says that it cannot write."""
    clear = child.code == 2 and "cannot be written" in child.text and "Traceback" not in child.text
    return [] if clear else [f"exit code {child.code}, unclear: {child.text[-400:]}"]


# --- MLflow -----------------------------------------------------------------------------------


@dataclass
class Server:
    """`mlflow server` on this machine alone."""

    base: Path
    port: int
    process: subprocess.Popen | None = None

    @property
    def uri(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def start(self) -> None:
        command = [
            sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(self.port), "--workers", "1",
            "--backend-store-uri", f"sqlite:///{self.base}/server.db", "--artifacts-destination",
            str(self.base / "artifacts"),
        ]  # fmt: skip
        environment = os.environ | {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
        with open(self.base / "server.log", "ab") as log:
            self.process = subprocess.Popen(
                command, stdout=log, stderr=log, env=environment, cwd=self.base, start_new_session=True
            )
        end = time.monotonic() + 600
        while self.process.poll() is None and time.monotonic() < end:
            try:
                urllib.request.urlopen(f"{self.uri}/health", timeout=5).close()
                return
            except OSError:
                time.sleep(0.1)
        raise AssertionError(f"the server did not start: {self.base / 'server.log'}")

    def signal(self, number: int) -> None:
        """To it and its workers."""
        assert self.process is not None
        os.killpg(self.process.pid, number)
        if number == signal.SIGKILL:
            self.process.wait()


def new_server(base: Path) -> Server:
    base.mkdir(parents=True, exist_ok=True)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    server = Server(base, port)
    server.start()
    return server


DIES, RESTARTS, HANGS = "is killed", "is killed and restarted", "hangs"


def lose_server(stage: Stage, server: Server, count: int, way: str) -> Tally:
    """In the middle of a training the server is killed, killed and restarted, or hangs; afterwards `sync`, twice."""
    tally = Tally(f"the MLflow server {way}")
    wrong: dict[Path, list[str]] = {}
    assert stage.whole
    for k in _hits(tally, count):
        root = stage.base / f"server_{way.split()[-1]}_{k}"
        ckpts, after = root / RUN / "ckpts", stage.random.randrange(1, 9)
        child = stage.train(root, server.uri)
        while child.running() and len(list(ckpts.glob("[0-9]*/files.json"))) < after:
            time.sleep(0.002)
        server.signal(signal.SIGSTOP if way == HANGS else signal.SIGKILL)
        if way == RESTARTS:
            server.start()
        code = child.wait()
        seconds = time.monotonic() - child.begun
        if way == HANGS:
            server.signal(signal.SIGCONT)
        elif way == DIES:
            server.start()
        hit = "is away" in child.text
        if not hit:
            tally.not_hit += 1
        wrong[root] = [f"{root}: {child.text[-400:]}"] if code or seconds > 120 else []
        for again in ("sync", "sync_again"):
            stage.done(f"{root.name}_{again}", "sync", server.uri, root=root)
        if not hit and not wrong[root]:
            del wrong[root]
    stage.judge(tally, wrong, server.uri)
    return tally


def _new_store(uri: str) -> bool:
    import mlflow

    pass

    mlflow.set_tracking_uri(uri)
    return mlflow_store.connect() is not None


def kill_sync(stage: Stage, count: int) -> Tally:
    """Runs made with offline=true, told to MLflow by `sync` that is killed at a random moment, then done twice."""
    tally = Tally("kill -9 in sync, after offline=true")
    made, empty = stage.base / "offline", stage.base / "empty.db"
    assert stage.whole
    for run in range(2):
        stage.done(f"offline_{run}", "full_data", root=made, run=run, offline="true", **TRAINING)
    asked(_new_store, f"sqlite:///{empty}", log=stage.log("empty"))

    def copied(name: str) -> tuple[Path, str]:
        shutil.copytree(made, stage.base / name)
        shutil.copy(empty, stage.base / f"{name}.db")
        return stage.base / name, f"sqlite:///{stage.base}/{name}.db"

    root, uri = copied("offline_whole")
    seconds = stage.done("sync_whole", "sync", uri, root=root)
    for k in _hits(tally, count):
        root, uri = copied(f"offline_{k}")
        hit = _kill_at(stage, stage.run(f"sync_{k}", "sync", uri, root=root), seconds)
        if not hit:
            tally.not_hit += 1
        tables = [root / "by_mlflow.csv", root / "by_mirror.csv"]
        for again in ("sync", "sync"):
            stage.done(f"sync_{k}_again", again, uri, root=root)
        stage.done(f"table_{k}", "results", uri, root=root, output=tables[0])
        stage.done(f"table_{k}", "results", uri, root=root, exps_path=root / "exps", output=tables[1])
        wrong = asked(untold, uri, [str(root)], log=stage.log("untold"))[0]
        wrong += [] if tables[0].read_bytes() == tables[1].read_bytes() else [f"{root}: the tables differ"]
        if hit or wrong:
            tally.judge(wrong)
    return tally


def together(stage: Stage, uri: str, count: int, where: str) -> Tally:
    """So many runs at once into one store."""
    tally = Tally(f"{count} runs at once into {where}")
    roots = [stage.base / f"{where.split()[-1]}_{k}" for k in range(count)]
    assert stage.whole
    children = [stage.train(root, uri) for root in roots]
    wrong = {
        root: [f"{root}: exit code {child.code}: {child.text[-300:]}"] if child.wait(400) else []
        for root, child in zip(roots, children)
    }
    for root, child in zip(roots, children):
        if "is away" in child.text and not wrong[root]:
            (told,) = [line for line in child.text.splitlines() if "is away" in line]
            tally.note(f"{root.name} needed sync: {told}")
            stage.done(f"{root.name}_sync", "sync", uri, root=root)
    stage.judge(tally, wrong, uri)
    return tally
