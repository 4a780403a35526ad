"""Continuing a training run: what its folder holds, how much of it is good, and stopping in good order.

A checkpoint is written after everything else that belongs to its step or to an earlier one, so
one that is whole vouches for the rest; what is later is removed and made again.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from shutil import rmtree
from typing import Any

from datadiet import commands
from datadiet import config as options
from datadiet.config import ResolvedConfig
from datadiet.errors import Diverged, UserError
from datadiet.runs.inputs import NAMING_FILES, ONE_OF_SEVERAL
from datadiet.runs.task import Task
from datadiet.scores.trajectory import TRAJECTORIES
from datadiet.storage.checkpoints import FILES, checkpoint_steps, load_seconds, load_state
from datadiet.storage.files import good_lines, read_lines, write_lines
from datadiet.storage.layout import same_place, score_file
from datadiet.storage.runs import StoredRun, open_run
from datadiet.temporary import is_temporary
from datadiet.tracking import record
from datadiet.training.state import TrainState

STEPS = ("num_steps", "decay_steps", "log_steps", "early_step", "early_save_steps", "save_steps")


def by_step() -> list[str]:
    """Folders that training writes ckpt_<step>.* into."""
    scores = [score_file(Path(), name, 0).parent.name for name in TRAJECTORIES]
    return scores + [folder for entry in TRAJECTORIES.values() for folder in entry.masks]


@dataclass(frozen=True)
class Start:
    """Where training begins."""

    state: TrainState
    step: int | None = None  # of the checkpoint that the state is from; None: untrained
    lines: list[dict[str, Any]] = field(default_factory=list)  # of metrics.jsonl, up to there
    seconds: dict[str, float] = field(default_factory=dict)  # spent up to there


def check_same(
    run_dir: Path, config: ResolvedConfig, fingerprint: str, inputs: dict[str, str], name: str | None = None
) -> None:
    """Refuse a run that was made with other options, from other data or in another place.

    Args:
        fingerprint: Of the data that there is now.
        inputs: Files that say what it trains on, by name, as they would be written now.
        name: Path of the run below exps, where that is known.
    Raises:
        UserError: with what differs.
    """
    run = open_run(run_dir, name)
    differing = _differences(run, config)
    if run.data.fingerprint != fingerprint:
        differing["data"] = (run.data.fingerprint[:12], fingerprint[:12])
    told = [f"{_called(name, config)}: {there} there, {here} asked for" for name, (there, here) in differing.items()]
    if not told:
        files = ((name, run_dir / name, text) for name, text in inputs.items())
        told = [f"{name} has other lines" for name, path, text in files if path.exists() and path.read_text() != text]
    if told:
        raise UserError(
            f"{run_dir} holds a run made otherwise ({'; '.join(told)}). Repeat its options, choose another exp with "
            f"{commands.option('exp', 'EXP')}, or replace it with {commands.option('overwrite', True)}."
            f"{_as_it_was(run, differing)}"
        )


def _differences(run: StoredRun, config: ResolvedConfig) -> dict[str, tuple[Any, Any]]:
    """Options with which a run was made otherwise; of a file it is told which, not by which path: that subsets are the
    same is seen by their kept.csv."""
    found = options.differences(options.as_dict(run.config), options.as_dict(config))
    exps = next((folder for folder in run.path.parents if folder.name == "exps"), None)
    paths = {name: found[name] for name in NAMING_FILES if None not in found.get(name, (None,))}
    return {n: pair for n, pair in found.items() if n not in paths or not same_place(*paths[n], exps)}


def _as_it_was(run: StoredRun, differing: dict[str, tuple[Any, Any]]) -> str:
    """The command that was typed, with the options of a run; empty where it cannot give them, or as something else."""
    was, caller = {name: there for name, (there, _) in differing.items()}, commands.caller()
    shrunk = STEPS if run.config.budget == "epochs" and run.config.size is not None else ()
    of_study = (*ONE_OF_SEVERAL, *STEPS, "trajectory", "checkpoints") if caller.entry_point in ("study", "main") else ()
    if not was or was.keys() - options.FIELDS.keys() or was.keys() & {"model_sha256", "selector", *shrunk, *of_study}:
        return ""
    caller = caller.without("epochs") if "num_steps" in was else caller
    return f" As it was made: {caller.again(**was)}"


def _called(name: str, config: ResolvedConfig) -> str:
    return f"the code of {config.model} (model_sha256)" if name == "model_sha256" else name


def check_worthwhile(run_dir: Path) -> None:
    """Refuse to continue a run that diverged.

    Raises:
        Diverged: with what its end was.
    """
    path = run_dir / record.NAME
    if path.exists() and (noted := record.load(path)).diverged:
        raise Diverged(
            f"{run_dir} cannot be continued, it would end as before: {noted.error} Replace the run, with other "
            f"options, by {commands.option('overwrite', True)}, or choose another exp with "
            f"{commands.option('exp', 'EXP')}."
        )


def last_good(run_dir: Path, config: ResolvedConfig, fresh: TrainState, say: Callable[[str], None]) -> Start:
    """The newest checkpoint that is whole, with the metrics up to there; `fresh` where there is none.

    Args:
        fresh: The untrained state.
        say: Told about every checkpoint that is passed over, and where training goes on.
    """
    lines = good_lines(run_dir / "metrics.jsonl")
    for step in reversed(checkpoint_steps(run_dir)):
        earlier = [line for line in lines if line["step"] <= step]
        try:
            _check_reported(run_dir, config, step, earlier)
            state, seconds = load_state(run_dir, step, fresh), load_seconds(run_dir, step)
        except UserError as error:
            say(f"Not continued from step {step}: {error}")
            continue
        say(f"{run_dir}: continued from step {step} of {config.num_steps}")
        return Start(state, step, earlier, seconds)
    say(f"{run_dir}: no checkpoint to continue from, so training begins anew at step 0")
    return Start(fresh)


def check_complete(task: Task) -> None:
    """Refuse to call a run finished that has lost a part while it trained; what it was stopped with goes.

    Raises:
        UserError: it names what is missing or changed.
    """
    run_dir, config = task.run_dir, task.config
    remove_unplanned(run_dir, config, config.num_steps)
    try:
        check_same(run_dir, config, task.dataset.fingerprint, task.inputs, task.name)
        missing = [name for name in task.inputs if not (run_dir / name).is_file()]
        steps = [line["step"] for line in read_lines(run_dir / "metrics.jsonl")]
        missing += [] if steps == options.logged_steps(config) else ["lines of metrics.jsonl"]
        files = [run_dir / "ckpts" / str(step) / FILES for step in options.saved_steps(config)[-1:]]
        for kind in config.trajectory:
            scores = score_file(run_dir, kind, config.num_steps)
            files += [scores, scores.with_suffix(".json")]
        missing += [file.relative_to(run_dir).as_posix() for file in files if not file.is_file()]
    except UserError as error:
        told = str(error)
    else:
        told = f"{', '.join(missing)} {'is' if len(missing) == 1 else 'are'} missing" if missing else ""
    if told:
        raise UserError(
            f"{run_dir} is not complete after its last step: {told}. Something deleted, moved or changed a part of it "
            f"while it trained. Make it again with {commands.option('resume', True)} where the folder is there, else "
            "from the beginning."
        )


def _check_reported(run_dir: Path, config: ResolvedConfig, step: int, lines: list[dict[str, Any]]) -> None:
    """Raises UserError where the metrics of a step up to `step` are missing or doubled."""
    expected = [t for t in options.logged_steps(config) if t <= step]
    if [line["step"] for line in lines] != expected:
        raise UserError(f"{run_dir / 'metrics.jsonl'} is damaged: it has not one line for each report up to there.")


def remove_temporary(run_dir: Path) -> None:
    """Remove files that a killed process had not yet put in place."""
    for folder in (run_dir, *(run_dir / name for name in by_step())):  # not those another process may be scoring into
        for path in filter(is_temporary, folder.glob(".*")):
            path.unlink()


def cut_back(run_dir: Path, config: ResolvedConfig, start: Start) -> None:
    """Remove what an earlier process wrote beyond `start`: it is made again."""
    held = -1 if start.step is None else start.step
    for path in (run_dir / "ckpts").glob("*"):  # also Orbax's temporary folders
        if not path.name.isdecimal() or int(path.name) > held:
            rmtree(path)
    _remove_gathered(run_dir, lambda step: step > held)
    metrics = run_dir / "metrics.jsonl"
    if start.lines:
        write_lines(metrics, start.lines)
    else:
        metrics.unlink(missing_ok=True)


def remove_unplanned(run_dir: Path, config: ResolvedConfig, before: int) -> None:
    """Remove what was saved because training was stopped; a planned checkpoint at `before` makes it needless."""
    planned = set(options.saved_steps(config))
    gone = [step for step in checkpoint_steps(run_dir) if step < before and step not in planned]
    _remove_gathered(run_dir, lambda step: step in gone)  # first: a checkpoint vouches for them
    for step in gone:
        rmtree(run_dir / "ckpts" / str(step))


def _remove_gathered(run_dir: Path, which: Callable[[int], bool]) -> None:
    """Remove the scores of some steps that were gathered while training."""
    for folder in by_step():
        for path in (run_dir / folder).glob("ckpt_*"):
            named = re.fullmatch(r"ckpt_(\d+)\.(npy|json)", path.name)
            if named and which(int(named[1])):
                path.unlink()
