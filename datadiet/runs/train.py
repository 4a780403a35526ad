"""Training runs from options to summary, mirrored and tracked: read it from top to bottom."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace

import numpy as np

from datadiet import commands, hosts
from datadiet import config as options
from datadiet.config import ResolvedConfig, TrainConfig
from datadiet.data.registry import count_of, tell_notes
from datadiet.devices import Devices
from datadiet.errors import Diverged, Interrupted, UserError
from datadiet.models.networks import Network
from datadiet.models.registry import gains_together, network_of
from datadiet.processors import processors
from datadiet.runs import follow, resume
from datadiet.runs.background import Background
from datadiet.runs.context import Context, Output, Tracker
from datadiet.runs.folders import begin, check_folder, check_found, is_finished
from datadiet.runs.inputs import DEFAULT_CHOICE, ScoreChoice, check_online, find_sources, resolve_config
from datadiet.runs.products import check_carried, log_inputs, model_facts, products, summarize
from datadiet.runs.saving import save_step
from datadiet.runs.signals import listen
from datadiet.runs.task import Task, load_data, prepare_task
from datadiet.storage.answers import write_answers
from datadiet.storage.claims import lock_run
from datadiet.storage.files import append_line
from datadiet.storage.records import Summary
from datadiet.tracking import record
from datadiet.tracking.run import TrackedRun
from datadiet.training.compiled import unless
from datadiet.training.device import check_device
from datadiet.training.energy import Meter
from datadiet.training.loop import Entrant, Report, fit_runs
from datadiet.training.placing import place
from datadiet.training.state import DeviceData, initial_state

AT_ONCE = 16  # runs that are begun together, or as many as there are processors


def train_run(config: TrainConfig, exp: str, context: Context, choice: ScoreChoice = DEFAULT_CHOICE) -> Summary:
    """One training run: choose examples, train, mirror and log every report.

    Args:
        config: Options as given.
        exp: Experiment folder.
        context: Where output lies, who is told, and what tracks.
        choice: The score to select by where config.scores is None.
    Returns:
        The summary, as in summary.json.
    Raises:
        UserError: anything the caller can repair; before data is loaded where that can be known.
        Interrupted: SIGTERM or Ctrl-C came; what was done is saved.
    """
    return train_runs(config, [config.run], exp, context, choice)[0]


def train_runs(
    config: TrainConfig, runs: Sequence[int], exp: str, context: Context, choice: ScoreChoice = DEFAULT_CHOICE
) -> list[Summary]:
    """Several training runs that differ in `run` and the seeds that derive from it, each with a folder and an MLflow
    run of its own; at the same time where that is faster.

    Args:
        runs: Their indices.
    Returns:
        Their summaries, in the first of several processes (`hosts`). The rest is as for `train_run`; a run that
        diverges is told at the end, and stops no other.
    """
    if len(set(runs)) < len(runs):
        raise UserError(f"runs={','.join(map(str, runs))}: expected each run once.")
    with hosts.together(context.hosts, context.reporter.say):
        check_online(config, context.tracker.offline)
        if context.tracker.log_model:
            check_carried(config)
        count = count_of(config)
        configs = [resolve_config(replace(config, run=run), count) for run in runs]
        for text in options.without_effect(config):
            context.reporter.say(text)
        return train_resolved(configs, exp, context, choice)


def train_resolved(
    configs: Sequence[ResolvedConfig], exp: str, context: Context, choice: ScoreChoice = DEFAULT_CHOICE
) -> list[Summary]:
    """`train_runs` of resolved configs that differ in `run` and its seeds."""
    output, tracker, say = context.output, context.tracker, context.reporter.say
    if not hosts.is_first():
        with listen(say, "together with the other processes") as stopping:
            follow.follow(configs[0], context, hosts.stopping(stopping))
        return []
    if output.resume and output.overwrite:
        raise UserError("resume=true and overwrite=true exclude each other: continue the run, or replace it.")
    configs = [find_sources(output.layout, config, choice) for config in configs]
    configs, ended = _to_train(configs, exp, output)
    if not all(output.resume and is_finished(output.layout.run(exp, config)) for config in configs):
        check_device(say, context.devices)
    tracker.check()
    loaded = load_data(configs[0])
    if tracker.parent is None:  # a study has told them
        tell_notes(loaded[0])
    for config in configs if output.resume else ():
        check_found(output.layout.run(exp, config), config, loaded[1].fingerprint)
    with listen(say, again=f"Continue: {_again(context)}") as heard:
        stopping = hosts.stopping(heard)
        for some in _portions(configs):
            try:
                given = (exp, output.layout, loaded, say, context.reporter.counter)
                prepared = (prepare_task(config, *given) for config in some)
                tasks = unless(stopping, list, prepared)
            except Interrupted:
                told = f"Stopped after {len(ended)} of {len(configs)} runs. Continue: {_again(context)}"
                raise Interrupted(told) from None
            ended |= _train_locked(tasks, context, stopping)
    return _summaries(ended)


def _to_train(
    configs: Sequence[ResolvedConfig], exp: str, output: Output
) -> tuple[list[ResolvedConfig], dict[str, Summary | UserError]]:
    """Those whose folders may be trained in; by name why others, which diverged before, are not continued.

    Raises:
        UserError: another process holds a folder, or its run would be lost; or none is left.
    """
    left: list[ResolvedConfig] = []
    ended: dict[str, Summary | UserError] = {}
    for config in configs:
        run_dir = output.layout.run(exp, config)
        try:
            check_folder(run_dir, output)
            left.append(config)
        except Diverged as error:
            ended[output.layout.name(run_dir)] = error
    if not left:
        _summaries(ended)
    return left, ended


def _portions(configs: Sequence[ResolvedConfig]) -> Iterator[Sequence[ResolvedConfig]]:
    """Runs that are begun together: each costs a file handle, memory and a part of a second before the first step."""
    count = max(AT_ONCE, len(processors())) if gains_together(configs[0].model) else 1
    return (configs[first : first + count] for first in range(0, len(configs), count))


def _summaries(ended: dict[str, Summary | UserError]) -> list[Summary]:
    """Raises UserError where runs are not finished; all others are."""
    errors = {name: error for name, error in ended.items() if isinstance(error, UserError)}
    if errors and len(ended) == 1:
        raise errors.popitem()[1]
    if errors:
        raise UserError("\n".join(f"{name}: {error}" for name, error in errors.items()))
    return [summary for summary in ended.values() if not isinstance(summary, UserError)]


def _train_locked(
    tasks: Sequence[Task], context: Context, stopping: Callable[[], bool]
) -> dict[str, Summary | UserError]:
    """Train what is not finished; by name the summary of each run, or why there is none."""
    with ExitStack() as locks:
        for task in tasks:
            locks.enter_context(lock_run(task.run_dir))
        resumed = context.output.resume
        tasks = [replace(t, continues=resumed and (t.run_dir / "args.json").exists()) for t in tasks]
        begun = {task.name: begin(task, context) for task in tasks}
        ended = _train_all([task for task in tasks if begun[task.name] is None], context, stopping)
        return {name: end for name, found in begun.items() if (end := ended.get(name, found)) is not None}


def _train_all(tasks: Sequence[Task], context: Context, stopping: Callable[[], bool]) -> dict[str, Summary | UserError]:
    """Train in folders that are locked and have their inputs; by name the summary of each run, or how it diverged.

    Raises:
        Interrupted: `stopping` said yes before the last step; what was done is saved.
    """
    if not tasks:
        return {}
    config, dataset = tasks[0].config, tasks[0].dataset
    network = network_of(config, dataset.num_classes, dataset.image_shape)
    devices = Devices.asked(context.devices)
    if devices.count > 1:
        batch = min(config.train_batch_size, tasks[0].num_kept)
        parts = ", ".join(map(str, devices.parts(batch)))
        context.reporter.say(f"Each batch of {batch} examples is split over {devices.count} devices: {parts}.")
    splits = place(dataset, tasks[0].labels, context.data_on, context.reporter.say, devices)
    ended: dict[str, Summary | UserError] = {}
    for group in _groups(tasks, network, context.reporter.say):
        ended |= _train(group, network, splits, context, stopping)
        if stopping() and (context.tracker.parent or len(ended) < len(tasks)):
            raise Interrupted(f"Stopped after {group[-1][0].name}. Continue: {_again(context)}")
    return ended


def _groups(
    tasks: Sequence[Task], network: Network, say: Callable[[str], None]
) -> Iterator[list[tuple[Task, resume.Start]]]:
    """Runs that train at the same time: those that begin at the same step, where that is faster; else each alone."""
    if not gains_together(tasks[0].config.model):
        yield from ([(task, _start(task, network, say))] for task in tasks)
        return
    starts = [_start(task, network, say) for task in tasks]
    for step in dict.fromkeys(start.step or 0 for start in starts):
        yield [(task, start) for task, start in zip(tasks, starts) if (start.step or 0) == step]


def _start(task: Task, network: Network, say: Callable[[str], None]) -> resume.Start:
    """Where a run begins: untrained, or, where its folder holds a part of it, at the last good checkpoint."""
    fresh = initial_state(network, task.config, task.dataset.num_examples, (task.dataset, np.sort(task.kept)))
    if not task.continues:
        return resume.Start(fresh)
    start = resume.last_good(task.run_dir, task.config, fresh, say)
    resume.cut_back(task.run_dir, task.config, start)
    return start


def _again(context: Context) -> str:
    """The command that goes on."""
    goes_on = context.tracker.parent or context.output.resume
    return context.again if goes_on else f"{context.again} {commands.option('resume', True)}"


@contextmanager
def _open(task: Task, tracker: Tracker) -> Iterator[TrackedRun]:
    """The MLflow run of a training run, the one it had where it is continued."""
    config = task.config
    note = (
        f"{config.model} on {len(task.kept):,} of {task.dataset.num_examples:,} examples of {task.dataset.name} "
        f"({task.kept_by}), {config.num_steps:,} steps."
    )
    with tracker.track(
        "train", task.exp, task.name, task.run_dir / record.NAME, params=options.as_dict(config), note=note,
        scored_by=task.kept_by,
    ) as tracked:  # fmt: skip
        log_inputs(task, tracked)
        yield tracked


class Lane:
    """A run while it trains: mirrors each report before logging it."""

    def __init__(self, task: Task, start: resume.Start, tracked: TrackedRun) -> None:
        self.task, self.start, self.tracked = task, start, tracked
        self.saved = start.step
        self.metrics = start.lines[-1] if start.lines else {}  # of the last report
        for line in start.lines:
            tracked.log_metrics({k: v for k, v in line.items() if k != "step"}, line["step"], mirrored=True)

    def entrant(self) -> Entrant:
        """As training takes it."""
        names = ("train", "eval", "compile", "total")
        earlier = {name: max(self.start.seconds.get(name, 0.0), self.tracked.spent(name)) for name in names}
        return Entrant(self.task.config, np.sort(self.task.kept), self.start.state, earlier)

    def record(self, report: Report) -> None:
        if report.metrics:
            self.metrics = report.metrics | self.tracked.timings(report.step)
            if report.step == self.task.config.num_steps:
                write_answers(self.task.run_dir, np.asarray(report.correct))  # first: the last line vouches for it
            append_line(self.task.run_dir / "metrics.jsonl", {"step": report.step, **self.metrics})
        if report.save and report.step != self.saved:
            save_step(self.task, report)
            self.saved = report.step
        if report.metrics:
            self.tracked.log_metrics(self.metrics, report.step, mirrored=True)

    def finish(self, context: Context, joules: float | None) -> Summary:
        """Write the summary.

        Args:
            context: Who is told, and what tracks.
            joules: Energy that its training took since it was begun here.
        Raises:
            UserError: a part of the run is gone.
        """
        task = self.task
        resume.check_complete(task)
        self.tracked.tell()  # first: the summary names its run
        summary = replace(summarize(task, self.tracked, self.metrics), joules=None if self.start.step else joules)
        files = products(task, self.tracked, context.reporter.say)
        if context.tracker.log_model:
            self.tracked.note_model(model_facts(task))
        self.tracked.note_artifacts(files)  # first: with a summary the run is finished, and `sync` tells what is noted
        summary.write(task.run_dir / "summary.json")
        self.tracked.log_artifacts(files)
        told = f"test accuracy {summary.test_acc:.4f} in {summary.total_seconds:.1f} s -> {task.run_dir}"
        context.reporter.answer(f"{task.name}: {told}")
        return summary


def _train(
    group: Sequence[tuple[Task, resume.Start]], network: Network, splits: tuple[DeviceData, DeviceData],
    context: Context, stopping: Callable[[], bool],
) -> dict[str, Summary | UserError]:  # fmt: skip
    """Train runs at the same time; by name the summary of each, or why it could not go on.

    Raises:
        Interrupted: `stopping` said yes before the last step; the states are saved.
    """
    config, step = group[0][0].config, group[0][1].step or 0
    ended, meter = {}, Meter()
    with ExitStack() as all_runs:
        lanes = [Lane(*pair, all_runs.enter_context(_open(pair[0], context.tracker))) for pair in group]
        names = [lane.task.name for lane in lanes]
        with context.reporter.counter(config.num_steps, " … ".join(dict.fromkeys((names[0], names[-1])))) as advance:
            advance(step)
            entrants = [lane.entrant() for lane in lanes]
            if hosts.are_several():
                follow.tell([lane.task for lane in lanes], entrants, splits, stopping)
            with Background(len(lanes)) as records:  # written and logged while the next steps are trained
                for run, report in fit_runs(network, *splits, entrants, advance, stopping):
                    step = report.step
                    if report.error:
                        records.wait()
                        ended[names[run]] = report.error
                        lanes[run].tracked.end("FAILED", report.error)  # the others go on
                    else:
                        records.submit(lanes[run].record, report.kept() if report.save else report)
        if step < config.num_steps and len(ended) < len(lanes):
            raise Interrupted(
                f"Stopped after step {step} of {config.num_steps}, all saved. Continue: {_again(context)}"
            )
        joules = meter.joules()
        for name, lane in zip(names, lanes):
            if name not in ended:
                ended[name] = lane.finish(context, joules and joules / len(lanes))
    return ended
