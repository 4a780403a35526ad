"""Run folders before training: free or to be continued, and made."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from datadiet.config import ResolvedConfig
from datadiet.runs import resume
from datadiet.runs.context import Context, Output, Tracker
from datadiet.runs.products import model_facts
from datadiet.runs.task import Task, write_inputs
from datadiet.storage.claims import check_free, claim, lock_run
from datadiet.storage.records import Summary
from datadiet.storage.runs import open_run
from datadiet.tracking import record
from datadiet.tracking.bring import settle


def check_folder(run_dir: Path, output: Output) -> None:
    """Refuse, before data is loaded, a folder that another process holds or whose run would be lost."""
    if run_dir.exists():
        with lock_run(run_dir):
            check_free(run_dir, output.overwrite or output.resume)
            if output.resume:
                resume.check_worthwhile(run_dir)


def check_found(run_dir: Path, config: ResolvedConfig, fingerprint: str) -> None:
    """Refuse, before any run is trained, one that is there and was made otherwise."""
    if (run_dir / "args.json").exists():
        resume.check_same(run_dir, config, fingerprint, {})


def is_finished(run_dir: Path) -> bool:
    """Whether a run of whatever options has come to its end there."""
    return (run_dir / "summary.json").exists()


def begin(task: Task, context: Context) -> Summary | None:
    """Make the folder of a run with its inputs; where it is there and finished, its summary."""
    if not task.continues:
        claim(task.run_dir, context.output.overwrite)
    elif (summary := finished(task, context.tracker, context.reporter.answer)) is not None:
        return summary
    write_inputs(task)
    return None


def finished(task: Task, tracker: Tracker, say: Callable[[str], None]) -> Summary | None:
    """Summary of a finished run; None where the run is to be continued.

    Raises:
        UserError: it was made otherwise.
    """
    resume.check_same(task.run_dir, task.config, task.dataset.fingerprint, task.inputs, task.name)
    resume.remove_temporary(task.run_dir)
    summary = open_run(task.run_dir, task.name).summary
    if summary is not None:
        model = model_facts(task) if tracker.log_model else None
        settle(task.run_dir / record.NAME, tracker.parent, tracker.offline, model)
        say(f"{task.name}: finished before, taken as it is")
    return summary
