"""A study: score, prune, retrain, compare; one parent run with everything below it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial

from datadiet.config import ResolvedConfig, TrainConfig
from datadiet.data.dataset import Dataset
from datadiet.data.registry import count_of, tell_notes
from datadiet.errors import Interrupted, UserError
from datadiet.models.source import is_own
from datadiet.report.archive import write_mirror
from datadiet.report.decision import Decision
from datadiet.report.evidence import CellResult
from datadiet.report.outlook import asked, reachable
from datadiet.report.page import describe, read_decision, write_report
from datadiet.report.results_table import of_study, to_csv
from datadiet.report.summary import subset_metrics, subset_tags
from datadiet.report.text import headline, table
from datadiet.report.trained import TrainedStudy
from datadiet.runs import resume
from datadiet.runs.context import Context, Output
from datadiet.runs.labels import labels_for
from datadiet.runs.signals import listen
from datadiet.runs.task import network_for, noted, published_data
from datadiet.scores.registry import needs_features
from datadiet.storage import evaluations
from datadiet.storage.files import write_text
from datadiet.study.arms import FULL_FOLDER
from datadiet.study.engines import begin_engine, check_device, check_engine
from datadiet.study.estimate import Estimate, estimate
from datadiet.study.given_scores import GivenScore, read_given, write_given
from datadiet.study.local_engine import count_gpus, jobs_at_once
from datadiet.study.options import EngineOptions
from datadiet.study.plan import Plan
from datadiet.study.rounds import Rounds, note_look
from datadiet.study.scheduler import run_jobs
from datadiet.study.spec import SEEDS, Job, StudySpec, TrainJob, compile_study
from datadiet.tracking import record
from datadiet.tracking.run import TrackedRun
from datadiet.tracking.views import Told, save_views, tell_trainings, ui_command
from datadiet.training.device import apart


def check(spec: StudySpec, output: Output) -> Dataset:
    """Refuse, before anything is trained, data that cannot be had and runs of other options in the way.

    Returns:
        The data, as published.
    Raises:
        UserError: with what differs.
    """
    published = published_data(spec.config)
    _check_model(spec, published)
    inputs = labels_for(spec.config, published).inputs
    for job in spec.jobs:
        run_dir = output.layout.exps / job.name
        if isinstance(job, TrainJob) and not output.overwrite and (run_dir / "args.json").exists():
            resume.check_same(run_dir, job.config, published.fingerprint, inputs)
    tell_notes(published)
    return published


def _check_model(spec: StudySpec, dataset: Dataset) -> None:
    """Refuse a model that does not take these data, or has no features where the study needs them.

    Raises:
        UserError: with what it lacks.
    """
    kinds = [kind for kind in spec.plan.score_types if needs_features(kind)]
    kinds += [cell.arm.selector for cell in spec.cells if cell.jobs[0].config.features_run]
    given = (spec.config, dataset.num_classes, dataset.image_shape, kinds)
    if count_gpus() and (is_own(spec.config.model) or spec.config.norm_bias_lr != 1):
        apart(_look_at_model, *given)  # this process is to take no memory of a GPU
    else:
        _look_at_model(*given)


def _look_at_model(config: ResolvedConfig, num_classes: int, image_shape: tuple[int, ...], kinds: list[str]) -> None:
    network = network_for(config, num_classes, image_shape)
    if kinds and is_own(config.model):
        try:
            network.feature_layer()
        except UserError as error:
            raise UserError(f"{kinds[0]} needs features, and model={config.model} gives none: {error}") from None


def _check_seeds(config: TrainConfig) -> None:
    if given := [name for name in SEEDS if getattr(config, name) is not None]:
        raise UserError(
            f"{given[0]}={getattr(config, given[0])}: the runs of a study have seeds of their own; expected none given."
        )


@dataclass(frozen=True)
class Prepared:
    """A study that was checked, before anything is written or trained."""

    rounds: Rounds
    dataset: Dataset
    left: list[Job]  # not done, of all that there may be
    estimate: Estimate
    given: list[GivenScore]  # scores to choose by

    def __str__(self) -> str:
        """What it takes, and what its test set can decide."""
        return f"{self.estimate}\n{self.rounds.outlook()}"


def prepare(config: TrainConfig, exp: str, context: Context, plan: Plan, engine: EngineOptions) -> Prepared:
    """Check a study, and estimate what it takes; see `run_study`.

    Raises:
        UserError: it could not be finished.
    """
    check_engine(engine)
    _check_seeds(config)
    output = context.output
    compiled = partial(compile_study, plan, config, exp, output.layout, count_of(config))
    whole = compiled(plan.most_runs)
    dataset = check(whole, output)
    given = read_given(plan.scores, dataset, f"{exp}/{FULL_FOLDER}", context)
    rounds = Rounds(plan, compiled, dataset, output, output.layout.name(output.layout.experiment(exp)))
    left = [job for job in whole.jobs if output.overwrite or not _is_finished(output, job)]
    if left:
        check_device(engine, context.reporter.say)
    jobs = list(compiled(rounds.first).jobs)
    first = [job for job in jobs if job in left]
    at_once = jobs_at_once(engine, len(left))
    most = sum(isinstance(job, TrainJob) for job in left)
    told = estimate(whole.config, dataset, jobs, first, most, at_once, count_gpus(), output.layout.exps)
    return Prepared(rounds, dataset, left, told, given)


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
    prepared = prepare(config, exp, context, plan, engine)
    rounds, dataset, folder = prepared.rounds, prepared.dataset, context.output.layout.experiment(exp)
    context.reporter.say(str(prepared))
    note, again = f"Study of {config.model} on {config.dataset}.", f"Continue: {context.again}"
    told = {"params": rounds.described.plan, "note": note, "reopens": not context.output.overwrite}
    with (
        listen(context.reporter.say, again=again) as stopping,
        context.tracker.track("study", exp, exp, folder / record.NAME, **told) as tracked,
    ):
        write_given(prepared.given, dataset, context.output.layout)
        jobs = rounds.jobs(rounds.first, rounds.before)
        tracked.log_input(dataset.name, dataset.fingerprint, "study", num_rows=dataset.num_examples)
        tracked.log_params(noted(dataset))
        begun = begin_engine(engine, _within(tracked, context), len(prepared.left))
        more = partial(rounds.more, tracked, context.reporter.say)
        done = partial(rounds.note, say=context.reporter.say)
        run_jobs(jobs, begun, context.reporter, exp, context.again, more, done)
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
    files = [folder / "study.json", *write_report(decision)]
    tables = []
    if isinstance(decision.study, TrainedStudy):
        tables = [folder / "results.csv"]
        write_text(tables[0], to_csv(of_study(decision.study, context.reporter.say)))
        files += [*tables, write_mirror(decision.study)]
    else:
        files.append(folder / evaluations.NAME)
    told = [path.relative_to(folder) for path in files]
    tracked.log_artifacts(
        [(folder / path, None if path.name == str(path) else path.parent.as_posix()) for path in told]
    )
    tracked.log_metrics({_metric(line.cell): line.accuracy.mean for line in decision.lines})
    describe(decision, tracked, context)
    told = "\n".join([headline(decision), *asked(decision), reachable(decision.nearest)])
    every = "".join(f"\nEvery training: {path}" for path in tables)
    context.reporter.say(f"\n{table(decision)}\n")
    context.reporter.answer(told)
    context.reporter.say(f"Report: {folder / 'report.html'}{every}")
    _say_views(decision, tracked, context)
    context.reporter.detail(f"Pictures: {folder / 'figures'}\nKept sets: {folder / 'kept'}")
    return decision


def _say_views(decision: Decision, tracked: TrackedRun, context: Context) -> None:
    """Have MLflow's table tell what was decided, of the study and of its trainings, and say where it is."""
    study, exps = decision.study, context.output.layout.exps
    told = {
        exps / path / record.NAME: Told(subset_metrics(decision, line), subset_tags(line))
        for line in decision.lines
        for path in line.cell.paths
    }
    groups = tell_trainings(tracked, told, study.full.accuracies.size) if isinstance(study, TrainedStudy) else []
    if views := save_views(tracked, groups):
        begun = f" (begun by {command})" if (command := ui_command()) else ""
        addresses = [f"  {shown}: {address}" for shown, address in views]
        context.reporter.say("\n".join([f"In MLflow{begun}:", *addresses]))


def _metric(cell: CellResult) -> str:
    """Name of the mean accuracy of a cell: MLflow takes no per cent sign."""
    return f"study/{cell.arm.replace(' ', '_')}/{cell.fraction:.0%}".replace("%", "pct")
