"""Score files with their MLflow runs: written, or taken as they are where they were made before."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from datadiet import commands
from datadiet.errors import UserError
from datadiet.runs.context import Context
from datadiet.runs.inputs import training_command
from datadiet.runs.products import small
from datadiet.storage.layout import ExperimentLayout, near_root
from datadiet.storage.records import MirrorRecord
from datadiet.storage.runs import StoredRun, open_run
from datadiet.storage.score_files import ScoreRecord, load_scores, save_scores
from datadiet.tracking import record
from datadiet.tracking.bring import settle
from datadiet.tracking.record import Artifact

QUANTILES = (5, 25, 50, 75, 95)  # per cent


def statistics(values: np.ndarray) -> dict[str, float]:
    """Mean, spread and quantiles of scores [N], NaN left out, as score/<name>."""
    found = values[~np.isnan(values)]
    if not len(found):
        return {}
    summary = {"mean": found.mean(), "std": found.std(), "min": found.min(), "max": found.max()}
    summary |= {f"q{q:02}": np.percentile(found, q) for q in QUANTILES}
    return {f"score/{name}": float(value) for name, value in summary.items()}


def check_replaceable(
    path: Path, provenance: dict[str, Any], overwrite: bool, read: Callable[[Path], MirrorRecord] = ScoreRecord.read
) -> None:
    """Refuse to replace a score file that was made otherwise; making the same one again loses nothing."""
    if not path.exists() or overwrite:
        return
    sidecar = path.with_suffix(".json")
    made = read(sidecar).as_json() if sidecar.exists() else {}
    differing = [f"{k}: {made.get(k)} there, {v} asked for" for k, v in provenance.items() if made.get(k) != v]
    if differing:
        repair = commands.option("overwrite", True)
        raise UserError(f"{path} holds other scores ({'; '.join(differing)}). Replace them with {repair}.")


def find_run(layout: ExperimentLayout, exp: str, run: int) -> StoredRun:
    """The run `run_<run>` of an experiment.

    Raises:
        UserError: there is none, with the command that trains it.
    """
    path = layout.experiment(exp) / f"run_{run}"
    if not (path / "args.json").exists():
        root = near_root(layout.root, f"{layout.name(path)}/args.json")
        near = f" There is one in another folder: {commands.again(root=root)}" if root else ""
        raise UserError(f"No run in {path}.{near or f' Train it: {training_command(layout, exp, run)}'}")
    return open_run(path, layout.name(path))


def check_step(stored: StoredRun, step: int) -> None:
    """Raises UserError, with the command that scores the nearest checkpoint, where there is none at a step."""
    if stored.steps and step not in stored.steps:
        near = min(stored.steps, key=lambda there: abs(there - step))
        raise UserError(
            f"step={step}: {stored.path} has no checkpoint there, but at {', '.join(map(str, stored.steps))}. The "
            f"nearest: {commands.again(step=near)}"
        )


class Scored(NamedTuple):
    """Scores that were made, before they are written."""

    entry_point: str  # score or mean_score
    path: Path  # of the score file
    values: np.ndarray  # [N]
    identity: dict[str, Any]  # of the data: see `Dataset.identity`
    provenance: dict[str, Any]  # how they were made, as `ScoreRecord` has it
    seconds: dict[str, float]  # total, and compile where something was compiled
    beside: dict[str, np.ndarray] = {}  # noqa: RUF012 - arrays beside them by suffix; never changed


def write_scored(made: Scored, exp: str, context: Context) -> Path:
    """Write a score file and its MLflow run."""
    path, provenance, seconds = made.path, made.provenance, made.seconds
    dataset, fingerprint = made.identity["dataset"], made.identity["fingerprint"]
    name, kind = context.output.layout.name(path.with_suffix("")), provenance["type"]
    note = f"{kind} of {len(made.values):,} examples of {dataset}: {provenance}"
    found, mirror = statistics(made.values), path.with_suffix(f".{record.NAME}")
    with context.tracker.track(made.entry_point, exp, name, mirror, params=provenance, note=note) as tracked:
        spent = {"seconds": round(seconds["total"] - seconds.get("compile", 0), 3)}
        spent |= {"compile_seconds": round(seconds["compile"], 3)} if "compile" in seconds else {}
        save_scores(path, made.values, made.identity, provenance | spent, made.beside, f"{name}.npy")
        if context.tracker.parent is None or made.beside:  # of a study, the means
            tracked.log_artifacts(_files(made, context.reporter.say))
        tracked.log_input(dataset, fingerprint, "scoring", num_rows=len(made.values))
        timings = {f"time/{name}_seconds": value for name, value in seconds.items()}
        tracked.log_metrics(found | timings, provenance["step"])
    mean = f"mean {found['score/mean']:.4f}" if found else "nothing measured yet"
    context.reporter.answer(f"{kind} at step {provenance['step']}: {mean} in {seconds['total']:.1f} s -> {path}")
    return path


def _files(made: Scored, say: Callable[[str], None]) -> list[Artifact]:
    """A score file, its record and what lies beside them, as far as they are small."""
    whole = small([made.path, made.path.with_suffix(".json")], say)
    extra = [small([made.path.with_suffix(f".{suffix}.npy")], say) for suffix in made.beside]
    return whole + [one for some in extra for one in some]


def made_before(
    layout: ExperimentLayout, path: Path, provenance: dict[str, Any], fingerprint: str
) -> ScoreRecord | None:
    """The .json of finished scores that were made in the same way from the same data; None where there are none.

    Raises:
        UserError: the file was changed since it was written, or made for another place.
    """
    mirror = path.with_suffix(f".{record.NAME}")
    if not (path.with_suffix(".json").exists() and mirror.exists()):
        return None
    _, made = load_recorded(layout, path)
    told = made.as_json()
    same = made.fingerprint == fingerprint and all(told.get(k) == v for k, v in provenance.items())
    return made if same and record.load(mirror).status == "FINISHED" else None


def take_scored(path: Path, context: Context) -> Path:
    """Scores as they are, which MLflow is to have as well."""
    mirror = path.with_suffix(f".{record.NAME}")
    with record.load(mirror).lock():
        settle(mirror, context.tracker.parent, context.tracker.offline)
    context.reporter.answer(f"{context.output.layout.name(path)}: made before, taken as it is")
    return path


def load_recorded(layout: ExperimentLayout, path: Path) -> tuple[np.ndarray, ScoreRecord]:
    """Scores and their record; a file without one cannot be averaged, because nothing tells its data."""
    values, made = load_scores(path, layout.name(path))
    if made is None:
        raise UserError(f"{path} has no {path.stem}.json beside it, which tells its data; score that run again.")
    return values, made
