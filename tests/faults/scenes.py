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
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from datadiet import store
from datadiet.config import UserError

from .harness import TRAINING, Child, Tally, asked, content, datadiet, difference, half_written, told_wrongly, words
from .harness import state_of as _state_of

RUN = "exps/full_data/run_0"


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

    def run(self, name: str, command: str, uri: str | None = None, **options: Any) -> Child:
        return datadiet(words(command, **options), uri or self.uri, self.log(name))

    def done(self, name: str, command: str, uri: str | None = None, **options: Any) -> float:
        """Run a command to its end, which has to be good; the seconds that it took."""
        child = self.run(name, command, uri, **options)
        if code := child.wait():
            raise AssertionError(f"{command} ended with {code}:\n{child.text[-3000:]}")
        return time.monotonic() - child.begun

    @cached_property
    def seconds(self) -> float:
        """What an undisturbed training takes, with warm caches; it makes `whole`."""
        self.done("warm", "full_data", root=self.base / "warm", **TRAINING)
        return self.done("whole", "full_data", root=self.base / "whole", **TRAINING)

    @cached_property
    def whole(self) -> dict[str, Any]:
        """Content of an undisturbed run."""
        assert self.seconds
        return asked(content, str(self.base / "whole" / RUN), log=self.log("content"))


def _compare(stage: Stage, tally: Tally, root: Path, name: str) -> None:
    found = asked(content, str(root / RUN), log=stage.log(f"content_{name}"))
    different = difference(stage.whole, found)
    tally.add("lost" if different else "survived", f"{root}: {different[:5]} differ" if different else "")


def kill_training(stage: Stage, count: int, while_saving: bool) -> Tally:
    """kill -9 at a random moment, or at one while a checkpoint is being written; then resume=true."""
    tally = Tally("kill -9 while a checkpoint is written" if while_saving else "kill -9 while training")
    whole, roots = stage.whole, []
    assert whole
    for k in range(count):
        name = f"{'saving' if while_saving else 'training'}_{k}"
        root = stage.base / name
        child = stage.run(name, "full_data", root=root, resume="true", **TRAINING)
        moment, after = stage.random.uniform(0.1, 1.0) * stage.seconds, stage.random.randrange(1, 11)
        while child.running():
            saved = len(list((root / RUN / "ckpts").glob("[0-9]*"))) if while_saving else 0
            if while_saving and saved >= after:
                time.sleep(stage.random.uniform(0, 0.12))  # a save takes about so long
                break
            if not while_saving and time.monotonic() - child.begun >= moment:
                break
            time.sleep(0.002)
        child.kill()
        again = stage.run(f"{name}_again", "full_data", root=root, resume="true", **TRAINING)
        if code := again.wait():
            tally.add("lost", f"{root}: resuming ended with {code}: {again.text[-300:]}")
            continue
        _compare(stage, tally, root, name)
        roots.append(str(root))
    if wrong := asked(told_wrongly, stage.uri, roots, log=stage.log("told")):
        tally.lost += len(wrong)
        tally.notes += wrong
    return tally


def _score_options(stage: Stage, command: str, name: str) -> tuple[str, dict[str, Any], Path]:
    root = stage.base / "whole"
    if command == "results":
        out = stage.base / f"{name}.csv"
        return command, {"exps_path": root / "exps", "output": out, "root": root}, out
    own = {"n_runs": 1} if command == "mean_score" else {}
    exp = f"by_{name}"
    if command == "mean_score":
        out = root / "exps" / exp / "error_l2_norm_scores/ckpt_15.npy"
        return command, {"root": root, "score_exp": "scored", "exp": exp, "step": 15, **own}, out
    out = root / "exps" / exp / "run_0/error_l2_norm_scores/ckpt_15.npy"
    return command, {"root": root, "score_exp": "full_data", "exp": exp, "step": 15}, out


def kill_others(stage: Stage, counts: dict[str, int]) -> Tally:
    """kill -9 at random moments of score, mean_score and results; then the same command again."""
    tally = Tally("kill -9 in " + ", ".join(counts))
    assert stage.whole
    root = stage.base / "whole"
    stage.done("scored", "score", root=root, score_exp="full_data", exp="scored", step=15)
    for command, count in counts.items():
        _, options, expected = _score_options(stage, command, f"whole_{command}")
        seconds = stage.done(f"whole_{command}", command, **options)
        for k in range(count):
            name = f"{command}_{k}"
            _, options, out = _score_options(stage, command, name)
            child = stage.run(name, command, **options)
            time.sleep(stage.random.uniform(0.2, 1.0) * seconds)
            child.kill()
            if out.exists() and out.read_bytes() != expected.read_bytes():
                tally.add("lost", f"{out} is neither old nor new")
                continue
            again = stage.run(f"{name}_again", command, **options)
            same = again.wait() == 0 and out.read_bytes() == expected.read_bytes()
            whole = same and (command == "results" or store.load_scores(out)[1] is not None)
            tally.add("survived" if whole else "lost", "" if whole else f"{out}: {again.text[-300:]}")
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
            told = Path(name).name in str(error) or Path(name).with_suffix(".npy").name in str(error)
            found.append(["detected" if told else "lost", "" if told else f"{kind} in {name} is not named: {error}"])
        except Exception as error:
            found.append(["lost", f"{kind} in {name}, seed {seed}: {type(error).__name__}: {error}"])
        Path(name).write_bytes(before)
    return found


def spoil_checkpoint(run: str, plan: list[tuple[str, int]]) -> list[list[str]]:
    folder = Path(run) / "ckpts/75"
    files = sorted(str(p) for p in folder.rglob("*") if p.is_file())
    return _outcomes(files, plan, lambda: [_state_of(Path(run), 75), store.load_seconds(Path(run), 75)])


def spoil_scores(path: str, plan: list[tuple[str, int]]) -> list[list[str]]:
    def load() -> list[Any]:
        values, record = store.load_scores(Path(path))
        return [values.tobytes(), record]

    kept = [(kind, seed) for kind, seed in plan if kind != "delete"]
    return _outcomes([path, str(Path(path).with_suffix(".json"))], kept, load)


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
    ]


# --- disks ------------------------------------------------------------------------------------


def _mount(folder: Path, options: str) -> bool:
    folder.mkdir(parents=True, exist_ok=True)
    return subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", folder], capture_output=True).returncode == 0


def full_disks(stage: Stage, count: int, read_only: bool) -> Tally:
    """A disk that fills up (or turns read-only) at a random moment; then there is room, and resume=true."""
    tally = Tally("the disk turns read-only" if read_only else "the disk is full")
    assert stage.whole
    need = sum(p.stat().st_size for p in (stage.base / "whole" / RUN).rglob("*") if p.is_file())
    for k in range(count):
        name = f"{'read_only' if read_only else 'disk'}_{k}"
        root = stage.base / name
        size = 64 * 2**20 if read_only else int(stage.random.uniform(0.1, 0.9) * need)
        if not _mount(root, f"size={size}"):
            tally.notes.append(f"{tally.fault}: mounting is impossible here, not tried")
            return tally
        try:
            child = stage.run(name, "full_data", root=root, resume="true", **TRAINING)
            if read_only:
                time.sleep(stage.random.uniform(0.1, 0.9) * stage.seconds)
                _remount_read_only(root, child)
            code = child.wait()
            wrong = [] if code in (0, 2) else [f"exit code {code}"]
            if code == 2 and ("cannot be written" not in child.text or "Traceback" in child.text):
                wrong.append("unclear: " + child.text[-400:])
            if code and not read_only:
                wrong += half_written(root)
            subprocess.run(["mount", "-o", "remount,rw,size=128m", root], check=True)
            again = stage.run(f"{name}_again", "full_data", root=root, resume="true", **TRAINING)
            if again.wait() or wrong:
                tally.add("lost", f"{name}: {wrong} {again.text[-300:]}")
                continue
            _compare(stage, tally, root, name)
            wrong = asked(told_wrongly, stage.uri, [str(root)], log=stage.log("told"))
            tally.lost += len(wrong)
            tally.notes += wrong
        finally:
            subprocess.run(["umount", "-l", root], check=False)
    return tally


def _remount_read_only(root: Path, child: Child) -> None:
    """Refused while a file is open for writing: asked until it is granted."""
    while child.running():
        if subprocess.run(["mount", "-o", "remount,ro", root], capture_output=True).returncode == 0:
            return


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
        for _ in range(1200):
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


def lose_server(stage: Stage, server: Server, count: int) -> Tally:
    """The server is killed (or hangs) in the middle of a training and restarted after it; then `sync`, twice."""
    tally = Tally("the MLflow server is killed or hangs, then returns")
    assert stage.whole
    server_roots = []
    for k in range(count):
        root = stage.base / f"server_{k}"
        run = root / RUN
        child = stage.run(root.name, "full_data", server.uri, root=root, resume="true", **TRAINING)
        after, hangs = stage.random.randrange(1, 10), k % 3 == 2
        while child.running() and len(list((run / "ckpts").glob("[0-9]*"))) < after:
            time.sleep(0.002)
        server.signal(signal.SIGSTOP if hangs else signal.SIGKILL)
        if k % 3 == 1:  # back before training ends
            server.start()
        code, seconds = child.wait(), time.monotonic() - child.begun
        if hangs:
            server.signal(signal.SIGCONT)
        elif k % 3 == 0:
            server.start()
        if code or seconds > 120:
            tally.add("lost", f"{root}: exit code {code} after {seconds:.0f} s: {child.text[-300:]}")
            continue
        for again in ("sync", "sync_again"):
            stage.done(f"{root.name}_{again}", "sync", server.uri, root=root)
        server_roots.append(str(root))
        _compare(stage, tally, root, root.name)
    wrong = asked(told_wrongly, server.uri, server_roots, log=stage.log("told"))
    tally.lost += len(wrong)
    tally.notes += wrong
    return tally


def offline_then_sync(stage: Stage, count: int) -> Tally:
    """Runs made with offline=true, told to MLflow by `sync` that is killed at random moments and repeated."""
    tally = Tally("offline=true, then sync killed again and again")
    root = stage.base / "offline"
    for run in range(count):
        stage.done(f"offline_{run}", "full_data", root=root, run=run, offline="true", **TRAINING)
    seconds = 2.0
    for k in range(2 * count):
        child = stage.run(f"sync_{k}", "sync", root=root)
        time.sleep(stage.random.uniform(0.2, 1.0) * seconds)
        child.kill()
    stage.done("sync_last", "sync", root=root)
    stage.done("table", "results", root=root, output=stage.base / "mlflow.csv")
    stage.done("table_mirror", "results", exps_path=root / "exps", output=stage.base / "mirror.csv")
    same = (stage.base / "mlflow.csv").read_bytes() == (stage.base / "mirror.csv").read_bytes()
    wrong = asked(told_wrongly, stage.uri, [str(root)], log=stage.log("told")) + ([] if same else ["tables differ"])
    for k in range(count):
        tally.add("lost" if k < len(wrong) else "survived", wrong[k] if k < len(wrong) else "")
    return tally


def together(stage: Stage, uri: str, count: int, where: str) -> Tally:
    """So many runs at once into one store."""
    tally = Tally(f"{count} runs at once into {where}")
    root = stage.base / f"together_{where.split()[-1]}"
    children = [stage.run(f"{root.name}_{k}", "full_data", uri, root=root, run=k, **TRAINING) for k in range(count)]
    codes = [child.wait(400) for child in children]
    wrong = asked(told_wrongly, uri, [str(root)], log=stage.log("told"))
    for k, code in enumerate(codes):
        bad = [w for w in wrong if f"run_{k}:" in w] + (
            [f"exit code {code}: {children[k].text[-300:]}"] if code else []
        )
        tally.add("lost" if bad else "survived", "; ".join(bad))
    return tally
