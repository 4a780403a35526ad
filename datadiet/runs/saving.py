"""What a training run saves at a step: the scores gathered so far, and the checkpoint that vouches for them."""

from __future__ import annotations

from datadiet import config as options
from datadiet.runs import resume
from datadiet.runs.labels import table_digest, told_labels
from datadiet.runs.task import Task
from datadiet.scores.trajectory import TRAJECTORIES
from datadiet.storage.checkpoints import save_checkpoint
from datadiet.storage.files import make_subfolder, npy_parts, write_bytes
from datadiet.storage.layout import score_file
from datadiet.storage.score_files import save_scores
from datadiet.training.loop import Report


def save_step(task: Task, report: Report) -> None:
    """The scores gathered so far, then the checkpoint. At step 0 nothing has been gathered.

    What is saved at an unplanned step, because training stops, is alone and goes when the next planned one is there.
    """
    if report.step:
        _save_gathered(task, report)
    save_checkpoint(task.run_dir, report.state, report.seconds)
    if report.step in options.saved_steps(task.config):
        resume.remove_unplanned(task.run_dir, task.config, report.step)


def _save_gathered(task: Task, report: Report) -> None:
    run_dir, step, identity = task.run_dir, report.step, task.dataset.identity()
    labels = told_labels(task.config, table_digest(task.inputs))
    for name, stats in report.state.trajectory.items():
        entry = TRAJECTORIES[name]
        provenance = {"type": name, "step": step, "runs": [task.config.run], **labels}
        path = score_file(run_dir, name, step)
        place = f"{task.name}/{path.relative_to(run_dir).as_posix()}"
        save_scores(path, entry.values(stats, task.member), identity, provenance, name=place)
        for folder, mask in entry.masks.items():
            make_subfolder(run_dir / folder)
            write_bytes(run_dir / folder / f"ckpt_{step}.npy", *npy_parts(mask(stats, task.member)))
