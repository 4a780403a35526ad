"""Faults of place: what is copied to where it does not belong, given hashes of its own, or taken away in the middle."""

from __future__ import annotations

import random
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from datadiet.errors import UserError
from datadiet.report.results_table import from_mirror
from datadiet.storage import checkpoints, files
from datadiet.storage.leaves import leaf_facts
from datadiet.storage.runs import open_run
from datadiet.storage.score_files import load_scores

from .harness import TRAINING, Tally, asked, state_of
from .scenes import RUN, Stage, _hits

OTHER = "exps/full_data/run_1"
STEPS = [str(step) for step in range(0, 151, 15)]


def _variables(place: Path) -> Any:
    return open_run(place.parents[1]).variables(int(place.name))


def _counted(place: Path) -> Any:
    """Whether a copy counts in the table."""
    found = from_mirror(place.parents[1], lambda text: None)
    if len(found) == 2:
        raise UserError(f"{place} is passed over")
    return found


def _misplacement(kind: str, chance: random.Random) -> tuple[str, str, Callable[[Path], Any]]:
    """Source, target and what reads the target."""
    step, other = chance.sample(STEPS, 2)
    scored, unlike = chance.sample(STEPS[1:], 2)  # at step 0 nothing is gathered
    return {
        "checkpoint of another run": (f"{RUN}/ckpts/{step}", f"{OTHER}/ckpts/{step}", _variables),
        "checkpoint of another step": (f"{RUN}/ckpts/{step}", f"{RUN}/ckpts/{other}", _variables),
        "run under another number": (RUN, "exps/full_data/run_7", open_run),
        "copy of a run": (RUN, f"exps/full_data/{chance.choice(['run_0_copy', 'old', 'run_9'])}", _counted),
        "scores of another run": (
            f"{RUN}/forget_scores/ckpt_{scored}", f"{OTHER}/forget_scores/ckpt_{scored}", _scores
        ),
        "scores of another step": (
            f"{RUN}/forget_scores/ckpt_{scored}", f"{RUN}/forget_scores/ckpt_{unlike}", _scores
        ),
        "reports of another run": (f"{RUN}/metrics.jsonl", f"{OTHER}/metrics.jsonl",
                                   lambda place: open_run(place.parent).reports),
        "summary of another run": (f"{RUN}/summary.json", f"{OTHER}/summary.json",
                                   lambda place: open_run(place.parent).summary),
    }[kind]  # fmt: skip


def _scores(place: Path) -> Any:
    return load_scores(place.with_name(f"{place.name}.npy"))


KINDS = (
    "checkpoint of another run", "checkpoint of another step", "run under another number", "copy of a run",
    "scores of another run", "scores of another step", "reports of another run", "summary of another run",
)  # fmt: skip


def _put(source: Path, target: Path) -> None:
    if source.is_dir():
        shutil.rmtree(target, ignore_errors=True)
        shutil.copytree(source, target)
        return
    for suffix in ("",) if source.suffix else (".npy", ".json"):
        shutil.copyfile(source.with_name(source.name + suffix), target.with_name(target.name + suffix))


def misplace(root: str, plan: list[tuple[str, int]]) -> list[list[str]]:
    """Copy a part, read it where it lies, put all back; for each: detected, told wrongly or lost."""
    found, scratch = [], Path(root).with_name("misplaced")
    for kind, seed in plan:
        shutil.rmtree(scratch, ignore_errors=True)
        shutil.copytree(Path(root) / "exps", scratch / "exps")
        source, target, read = _misplacement(kind, random.Random(seed))
        _put(scratch / source, scratch / target)
        told = f"{kind} at {target}, seed {seed}"
        try:
            read(scratch / target)
            found.append(["lost", told])
        except UserError as error:
            named = str(scratch / target) in str(error) or Path(target).parent.as_posix() in str(error)
            found.append(["detected", ""] if named else ["told wrongly", f"{told}: {error}"])
    return found


def remake(run: str, seeds: list[int]) -> list[list[str]]:
    """Change a random leaf's type or shape, or take it out, and make all hashes anew; then it is read by its run."""
    found, scratch = [], Path(run).parents[3] / "remade" / RUN
    for seed in seeds:
        shutil.rmtree(scratch, ignore_errors=True)
        shutil.copytree(run, scratch)
        name = _remake(scratch / "ckpts/75", random.Random(seed))
        try:
            state_of(scratch, 75)
            found.append(["lost", f"{name}, seed {seed}"])
        except UserError as error:
            found.append(["detected", ""] if name in str(error) else ["told wrongly", f"{name}: {error}"])
        except Exception as error:
            found.append(["lost", f"{name}, seed {seed}: {type(error).__name__}: {error}"])
    return found


def _remake(folder: Path, chance: random.Random) -> str:
    """The leaf."""
    record = files.read_record(folder / checkpoints.RECORD)
    with np.load(folder / checkpoints.ARRAYS, allow_pickle=False) as arrays:
        leaves = dict(arrays)
    name = chance.choice(sorted(leaves))
    changes: list[Callable[[np.ndarray], np.ndarray]] = [
        lambda a: a[None], lambda a: a.astype(np.float16), lambda a: a.astype(np.complex64),
        lambda a: np.concatenate([a.ravel(), a.ravel()]),
    ]  # fmt: skip
    leaves[name] = chance.choice(changes)(leaves[name])
    facts = record["leaves"] | {name: leaf_facts(leaves[name])}
    np.savez(folder / checkpoints.ARRAYS, allow_pickle=False, **leaves)
    files.write_json(folder / checkpoints.RECORD, files.sealed(record | {"leaves": facts}))
    checkpoints._seal(folder)
    return name


def misplaced(stage: Stage, count: int) -> list[Tally]:
    """Parts of a mirror in places of others, and checkpoints whose hashes were made anew."""
    assert stage.whole
    root, copies, remade = stage.base / "whole", Tally("a part of the mirror copied to another place"), Tally(
        "a checkpoint of other leaves, its hashes made anew"
    )  # fmt: skip
    stage.done("second", "full_data", root=root, run=1, **TRAINING)
    plan = [(KINDS[k % len(KINDS)], stage.random.randrange(2**31)) for k in range(count)]
    for outcome, note in asked(misplace, str(root), plan, log=stage.log("misplace")):
        copies.add(outcome, note)
    seeds = [stage.random.randrange(2**31) for _ in range(count)]
    for outcome, note in asked(remake, str(stage.whole), seeds, log=stage.log("remake")):
        remade.add(outcome, note)
    shutil.rmtree(root / OTHER)
    return [copies, remade]


def taken_away(stage: Stage, count: int, what: str) -> Tally:
    """A folder is moved away at a random moment of a training: the training ends with an error and makes nothing anew;
    moved back, resume=true ends as if nothing had been."""
    tally = Tally(f"{what} is moved away while it trains")
    wrong: dict[Path, list[str]] = {}
    assert stage.whole
    for k in _hits(tally, count):
        root = stage.base / f"{what.replace('/', '_')}_{k}"
        place, away = root / what, stage.base / f"away_{what.replace('/', '_')}_{k}"
        child, after = stage.train(root), stage.random.randrange(1, 9)
        while child.running() and len(list((root / RUN).glob("ckpts/[0-9]*/files.json"))) < after:
            time.sleep(0.002)
        if not child.running() or (root / RUN / "summary.json").exists():
            tally.not_hit += 1
            continue
        place.rename(away)
        code = child.wait()
        if code == 0 and (away / Path(RUN).relative_to(what) / "summary.json").exists():
            tally.not_hit += 1  # it was finished before
            continue
        told = code == 2 and "Traceback" not in child.text and str(root / RUN) in child.text
        wrong[root] = [] if told else [f"exit code {code}: {child.text[-400:]}"]
        wrong[root] += [f"{place} was made anew"] if place.exists() else []
        if not place.exists():
            away.rename(place)
            wrong[root] += stage.resumed(root)[root]
    stage.judge(tally, wrong)
    return tally
