"""A study: score, prune, retrain, compare; one parent run with everything below it."""

from __future__ import annotations

import re
from dataclasses import replace
from functools import partial

from datadiet.config import TrainConfig
from datadiet.data.dataset import Dataset
from datadiet.data.registry import count_of, tell_notes
from datadiet.errors import Interrupted, UserError
from datadiet.report.decision import Decision
from datadiet.report.evidence import CellResult
from datadiet.report.outlook import asked, reachable
from datadiet.report.page import describe, read_decision, write_report
from datadiet.report.results_table import of_study, to_csv
from datadiet.report.text import headline, table
from datadiet.report.trained import TrainedStudy
from datadiet.runs import resume
from datadiet.runs.context import Context, Output
from datadiet.runs.labels import labels_for
from datadiet.runs.signals import listen
from datadiet.runs.task import load_data, noted
from datadiet.storage.files import write_text
from datadiet.study.engine import EngineOptions
from datadiet.study.engines import begin_engine, check_device, check_engine
from datadiet.study.given_scores import read_given, write_given
from datadiet.study.plan import Plan
from datadiet.study.rounds import Rounds, note_look
from datadiet.study.scheduler import run_jobs
from datadiet.study.spec import FULL_FOLDER, SEEDS, Job, StudySpec, TrainJob, compile_study
from datadiet.tracking import record
from datadiet.tracking.run import TrackedRun


def check(spec: StudySpec, output: Output) -> Dataset:
    """Refuse, before anything is trained, data that cannot be had and runs of other options in the way.

    Returns:
        The data, as published.
    Raises:
        UserError: with what differs.
    """
    published, _ = load_data(spec.config)
    inputs = labels_for(spec.config, published).inputs
    for job in spec.jobs:
        run_dir = output.layout.exps / job.name
        if isinstance(job, TrainJob) and not output.overwrite and (run_dir / "args.json").exists():
            resume.check_same(run_dir, job.config, published.fingerprint, inputs)
    tell_notes(published)
    return published


def _check_seeds(config: TrainConfig) -> None:
    if given := [name for name in SEEDS if getattr(config, name) is not None]:
        raise UserError(
            f"{given[0]}={getattr(config, given[0])}: the runs of a study have seeds of their own; expected none given."
        )


def run_study(config: TrainConfig, exp: str, context: Context, plan: Plan, engine: EngineOptions) -> Decision:
    """The whole study; what is finished with the same options is taken as it is, the rest continued.

    Args:
        config: Training options; its run and subset options are set by the study.
        exp: Experiment folder that everything is written below.
        context: Where output lies, who is told, and what tracks.
        plan: What to compare.
        engine: How jobs are done.
    Returns:
        What the report is about; its table is printed, and all files are logged to MLflow.
    """
    check_engine(engine)
    _check_seeds(config)
    output, folder = context.output, context.output.layout.experiment(exp)
    compiled = partial(compile_study, plan, config, exp, output.layout, count_of(config))
    whole = compiled(plan.most_runs)
    dataset = check(whole, output)
    given = read_given(plan.scores, dataset, context.reporter.say, context.tracker.offline)
    rounds = Rounds(plan, compiled, dataset, output, output.layout.name(folder))
    left = [job for job in whole.jobs if output.overwrite or not _is_finished(output, job)]
    if left:
        check_device(engine, context.reporter.say)
    if not output.overwrite:
        record.reopen(folder / record.NAME)
    context.reporter.say(rounds.outlook())
    note, again = f"Study of {config.model} on {config.dataset}.", f"Continue: {context.tracker.command}"
    params = rounds.described.plan
    with (
        listen(context.reporter.say, again=again) as stopping,
        context.tracker.track("study", exp, exp, folder / record.NAME, params=params, note=note) as tracked,
    ):
        write_given(given, dataset, f"{exp}/{FULL_FOLDER}", output.layout, output.overwrite)
        jobs = rounds.jobs(rounds.first, rounds.before)
        tracked.log_input(dataset.name, dataset.fingerprint, "study", num_rows=dataset.num_examples)
        tracked.log_params(noted(dataset))
        begun = begin_engine(engine, _within(tracked, context), len(left))
        more = partial(rounds.more, tracked, context.reporter.say)
        run_jobs(jobs, begun, context.reporter, exp, context.tracker.command, more)
        if stopping():
            raise Interrupted(f"Stopped before the report; all {len(rounds.known)} jobs are done. {again}")
        return conclude(exp, plan.margin, tracked, context)


def _within(tracked: TrackedRun, context: Context) -> Context:
    """What the jobs of a study are handed."""
    output = replace(context.output, resume=not context.output.overwrite)
    return replace(context, output=output, tracker=replace(context.tracker, parent=tracked))


def _is_finished(output: Output, job: Job) -> bool:
    """Whether there is what a job makes: a run, or a score file with its record."""
    made = output.layout.exps / job.name
    return (made / "summary.json" if isinstance(job, TrainJob) else made.with_name(f"{made.name}.json")).exists()


def conclude(exp: str, margin: float, tracked: TrackedRun, context: Context) -> Decision:
    """The report, the table and results.csv of a finished study, in the mirror and in MLflow.

    Returns:
        The decision that the report was made of.
    """
    layout, folder = context.output.layout, context.output.layout.experiment(exp)
    decision = read_decision(layout.exps, layout.name(folder), margin)
    note_look(decision)
    tables = []
    if isinstance(decision.study, TrainedStudy):
        tables = [folder / "results.csv"]
        write_text(tables[0], to_csv(of_study(decision.study, context.reporter.say)))
    for path in (folder / "study.json", *tables, *write_report(decision)):
        where = path.parent.relative_to(folder).as_posix()
        tracked.log_artifact(path, None if where == "." else where)
    tracked.log_metrics({_metric(line.cell): line.accuracy.mean for line in decision.lines} | _headline(decision))
    for percent, of_arms in _curves(decision).items():
        tracked.log_metrics(of_arms, percent)
    describe(decision, tracked, context)
    told = "\n".join([headline(decision), *asked(decision), reachable(decision.nearest)])
    every = "".join(f"\nEvery training: {path}" for path in tables)
    context.reporter.say(
        f"\n{table(decision)}\n\n{told}\nReport: {folder / 'report.html'}\nPictures: {folder / 'figures'}{every}"
    )
    return decision


def _headline(decision: Decision) -> dict[str, float]:
    """Accuracies and the kept fraction 0 to 1, the margin in percentage points."""
    best = decision.best or decision.lines[0]
    return {
        "decision/kept_fraction": decision.verdicts.kept_fraction,
        "decision/accuracy": best.accuracy.mean,
        "decision/accuracy_full": decision.lines[0].accuracy.mean,
        "decision/smallest_margin": 100 * decision.nearest.smallest_margin,
    }


def _curves(decision: Decision) -> dict[int, dict[str, float]]:
    """Accuracy of every arm by per cent kept, which MLflow draws as curves; all of the data ends each of them."""
    found: dict[int, dict[str, float]] = {}
    for line in decision.lines:
        arms = decision.study.arms if line.cell is decision.study.full else [line.cell.arm]
        of_arms = {f"accuracy/{metric_name(arm)}": line.accuracy.mean for arm in arms}
        found.setdefault(round(100 * line.cell.fraction), {}).update(of_arms)
    return found


def metric_name(arm: str) -> str:
    """An arm as MLflow takes it in the name of a metric."""
    return re.sub(r"[^\w.-]+", "_", arm)


def _metric(cell: CellResult) -> str:
    """Name of the mean accuracy of a cell: MLflow takes no per cent sign."""
    return f"study/{cell.arm.replace(' ', '_')}/{cell.fraction:.0%}".replace("%", "pct")
