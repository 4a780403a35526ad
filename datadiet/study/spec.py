"""A study compiled, once: what it compares, and the jobs that make it. Pure functions of its options.

Scoring runs train on all examples, each is scored, the scores are averaged over runs, and every arm (a way
to choose examples) trains on its subsets with seeds that no scoring run has.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from datadiet import config as options
from datadiet.config import ResolvedConfig, TrainConfig, find_option, value_of, with_values
from datadiet.data.dataset import Dataset
from datadiet.runs.inputs import resolve_config
from datadiet.scores import trajectory
from datadiet.scores.registry import training_score_names
from datadiet.selectors import selection
from datadiet.selectors.options import LIKE, default_parameters, option_names, without_unused
from datadiet.storage.layout import ExperimentLayout, score_file
from datadiet.storage.records import AUTO, CellRecord, MeanRecord, StudyRecord
from datadiet.study.arms import FULL_FOLDER, Arm, arms
from datadiet.study.given_scores import given_means
from datadiet.study.plan import Plan, check_names, check_plan, named, sizes, steps, steps_of

PASSES = {"train": 3.0, "grad_norm": 3.0, "score": 1.0}  # work per example, in forward passes, for the time left
SEEDS = ("model_seed", "train_seed", "random_subset_seed")
OF_A_RUN = ("run", "selector", "size", "scores", LIKE, *SEEDS)  # options that differ between the runs of a study


@dataclass(frozen=True, kw_only=True)
class Job:
    """A run to make, with MLflow and the mirror, and what it waits for."""

    name: str  # of what it makes, as a path below exps
    exp: str  # experiment folder of what it reads and makes
    after: tuple[str, ...] = ()  # names of jobs whose files it reads
    cost: float = 0.0  # in examples passed forward through the network
    tags: dict[str, str] = field(default_factory=dict)  # for MLflow


@dataclass(frozen=True, kw_only=True)
class TrainJob(Job):
    """A training."""

    config: ResolvedConfig


@dataclass(frozen=True, kw_only=True)
class ScoreJob(Job):
    """Scores of one run at one checkpoint."""

    type: str
    run: int
    step: int


@dataclass(frozen=True, kw_only=True)
class MeanJob(Job):
    """The mean of scores over runs 0 … n_runs - 1."""

    type: str
    n_runs: int
    step: int


@dataclass(frozen=True)
class Cell:
    """One arm at one size."""

    arm: Arm
    size: int
    fraction: float
    jobs: tuple[TrainJob, ...]  # its runs, in the order of their seeds


@dataclass(frozen=True)
class StudySpec:
    """All that a study does."""

    exp: str
    plan: Plan
    config: ResolvedConfig  # of the first scored run
    given: TrainConfig  # options for all arms
    num_examples: int  # N of the full training set
    score_steps: tuple[int, ...]
    scored: tuple[TrainJob, ...]
    means: tuple[MeanJob, ...]
    cells: tuple[Cell, ...]  # full data first, then from the first fraction to the last
    jobs: tuple[Job, ...]  # in an order in which they can be done one by one

    def record(self, dataset: Dataset) -> StudyRecord:
        """study.json: the same however often it is written."""
        cells = [
            CellRecord(
                c.arm.name, c.arm.selector, c.arm.type, c.arm.step, c.size, c.fraction, [job.name for job in c.jobs],
                dict(c.arm.options),
            )
            for c in self.cells
        ]  # fmt: skip
        return StudyRecord(
            plan=self._plan(), dataset=dataset.name, fingerprint=dataset.fingerprint, num_examples=self.num_examples,
            model=self.config.model, budget=self.config.budget, score_runs=[job.name for job in self.scored],
            means=[MeanRecord(job.type, job.step, f"{job.name}.npy") for job in self.means]
            + given_means(self.plan.scores, f"{self.exp}/{FULL_FOLDER}"),
            cells=cells,
        )  # fmt: skip

    def _plan(self) -> dict[str, Any]:
        """Every option, those of the trainings as resolved for a run on all data."""
        told = {name: value for name, value in options.as_dict(self.config).items() if name not in OF_A_RUN}
        chosen = [name for name in (*option_names(), "features_step") if name in told]
        told |= {name: value_of(self.given, name) for name in chosen} | dict(self.given.registered)
        told |= {name: list(v) if isinstance(v, tuple) else v for name, v in asdict(self.plan).items()}
        if self.plan.eval_runs is None:
            told["eval_runs"] = AUTO
        else:
            del told["max_eval_runs"]
        return told | {"score_steps": list(self.score_steps)}


def compile_study(
    plan: Plan, config: TrainConfig, exp: str, layout: ExperimentLayout, num_examples: int, runs: int | None = None
) -> StudySpec:
    """Check a study and lay out all that it does, before anything is trained.

    Args:
        config: Training options as given; its run and subset options are set by the study.
        exp: Experiment folder that everything is written below.
        num_examples: N of the full training set.
        runs: Evaluation runs of each subset; None: as planned, to begin with.
    Raises:
        UserError: an option is impossible: it could not be finished.
    """
    check_names(plan)
    scored_config = resolve_config(_scored_config(plan, config), num_examples)
    given = {name: value_of(config, name) for name in (*option_names(), "features_step")}
    check_plan(plan, with_values(scored_config, given), num_examples)
    scored_config = _saving_least(plan, config, scored_config)
    making = _Compiler(
        plan, replace(config, num_steps=scored_config.num_steps, epochs=None), scored_config, exp, layout, num_examples,
        runs or plan.first_runs,
    )  # fmt: skip
    scored = tuple(making.trained(replace(scored_config, run=run)) for run in range(_scored_runs(plan)))
    parts = making.scored(scored)
    means = tuple(making.mean(kind, step, waits) for (kind, step), (waits, _) in parts.items())
    cells = making.cells(means)
    jobs: list[Job] = []
    for run, job in enumerate(scored):
        jobs += [job, *(made[run] for _, made in parts.values() if made)]
    jobs += [*means, *(job for cell in cells for job in cell.jobs)]
    return StudySpec(
        exp, plan, scored_config, config, num_examples, steps(plan, scored_config), scored, means, cells, tuple(jobs)
    )


def _scored_runs(plan: Plan) -> int:
    """How many networks are trained to be scored: none for scores that are given, but for features of the first."""
    features = any(selection.SELECTORS[named(text)[0]].features for text in plan.selectors)
    return plan.score_runs if plan.score_types else int(features)


def _scored_config(plan: Plan, config: TrainConfig) -> TrainConfig:
    """Options of the first run that is scored; it gathers what the scores need."""
    gathered = [kind for kind in plan.score_types if kind in training_score_names()]
    gathered = trajectory.expand([*config.trajectory, *gathered])
    chosen = replace(config, run=0, selector="all", size=None, scores=None, features_step=None, trajectory=gathered)
    return without_unused(chosen)


def _saving_least(plan: Plan, given: TrainConfig, config: ResolvedConfig) -> ResolvedConfig:
    """Options of a scored run that saves no more than steps 0, the one that is looked at, and the last; where several
    are, or it is said what is saved, it stays as it is."""
    looked_at = {*steps(plan, config), *([] if given.features_step is None else [given.features_step])}
    if plan.every_checkpoint or given.save_steps or given.early_step or len(looked_at) > 1:
        return config
    (step,) = looked_at
    return replace(config, early_step=step, early_save_steps=step or config.num_steps, save_steps=config.num_steps)


@dataclass(frozen=True)
class _Compiler:
    """What the parts of a study are made from."""

    plan: Plan
    config: TrainConfig  # as given, but for num_steps
    scored_config: ResolvedConfig
    exp: str
    layout: ExperimentLayout
    num_examples: int
    runs: int  # that judge each subset

    @property
    def source(self) -> str:
        """Experiment folder of the runs on all data."""
        return f"{self.exp}/{FULL_FOLDER}"

    def train_job(self, config: ResolvedConfig, exp: str, after: tuple[str, ...], **tags: str) -> TrainJob:
        size = config.size or self.num_examples
        told = {"size": str(size), "fraction": f"{size / self.num_examples:.4g}", **tags}
        cost = PASSES["train"] * config.num_steps * min(config.train_batch_size, size)
        name = self.layout.name(self.layout.run(exp, config))
        return TrainJob(name=name, exp=exp, after=after, cost=cost, tags=told, config=config)

    def trained(self, config: ResolvedConfig) -> TrainJob:
        return self.train_job(config, self.source, (), role="scoring")

    def scored(
        self, trained: tuple[TrainJob, ...]
    ) -> dict[tuple[str, int], tuple[tuple[str, ...], tuple[ScoreJob, ...]]]:
        """By type and step: what a mean waits for, and the jobs of that, none for scores gathered while training."""
        found = {}
        for kind in self.plan.score_types:
            for step in steps_of(kind, steps(self.plan, self.scored_config)):
                jobs = ()
                if kind not in training_score_names():
                    jobs = tuple(self._score_job(kind, step, job) for job in trained)
                found[kind, step] = tuple(job.name for job in jobs or trained), jobs
        return found

    def _score_job(self, kind: str, step: int, trained: TrainJob) -> ScoreJob:
        file = score_file(self.layout.exps / trained.name, kind, step)
        return ScoreJob(
            name=self.layout.name(file.with_suffix("")), exp=self.source, after=(trained.name,),
            cost=PASSES.get(kind, PASSES["score"]) * self.num_examples, tags={"role": "scoring"},
            type=kind, run=trained.config.run, step=step,
        )  # fmt: skip

    def mean_file(self, kind: str, step: int) -> Path:
        return score_file(self.layout.experiment(self.source), kind, step)

    def mean(self, kind: str, step: int, after: tuple[str, ...]) -> MeanJob:
        return MeanJob(
            name=self.layout.name(self.mean_file(kind, step).with_suffix("")), exp=self.source, after=after,
            tags={"role": "scoring"}, type=kind, n_runs=self.plan.score_runs, step=step,
        )  # fmt: skip

    def cells(self, means: tuple[MeanJob, ...]) -> tuple[Cell, ...]:
        """Every arm at every size; random last of each size."""
        full, random, *others = arms(self.plan, steps(self.plan, self.scored_config))
        made = [self._cell(full, self.num_examples, means)]
        for size in sizes(self.plan, self.num_examples):
            for arm in (*others, random):
                like = next((c for c in made if (c.arm.name, c.size) == (dict(arm.options).get(LIKE), size)), None)
                made.append(self._cell(arm, size, means) if like is None else self._like(arm, like))
        return tuple(made)

    def _like(self, arm: Arm, like: Cell) -> Cell:
        """Random subsets with as many of each class as those of another cell, run by run."""
        config = resolve_config(self._judging(arm, like.size), self.num_examples)
        jobs = []
        for job in like.jobs:
            own = replace(config, run=job.config.run, like=str(self.layout.exps / job.name / "kept.csv"))
            jobs.append(self.train_job(own, f"{self.exp}/{arm.folder}", (job.name,), role="evaluation", arm=arm.name))
        return Cell(arm, like.size, like.fraction, tuple(jobs))

    def _cell(self, arm: Arm, size: int, means: tuple[MeanJob, ...]) -> Cell:
        config = resolve_config(self._judging(arm, size), self.num_examples)
        after = tuple(job.name for job in means if (job.type, job.step) == (arm.type, arm.step))
        after += (self.layout.name(self.layout.run(self.source, self.scored_config)),) if config.features_run else ()
        exp, first = f"{self.exp}/{arm.folder}", config.run
        jobs = tuple(
            self.train_job(replace(config, run=run), exp, after, role="evaluation", arm=arm.name)
            for run in range(first, first + self.runs)
        )
        return Cell(arm, size, size / self.num_examples, jobs)

    def _judging(self, arm: Arm, size: int) -> TrainConfig:
        """Options of the first run that judges an arm at a size. It is looked at at its end alone, and gathers no more
        than was asked for."""
        config, source = self.config, self.layout.experiment(self.source)
        needs = arm.selector != "all" and selection.SELECTORS[arm.selector].features
        looked_at = (config.features_step, arm.step, steps(self.plan, self.scored_config)[-1])
        scores = None if arm.type is None or arm.step is None else str(self.mean_file(arm.type, arm.step))
        saves = config.checkpoints and self.plan.every_checkpoint
        gathered = trajectory.expand(config.trajectory) if saves else ()
        used = {name for kind in gathered for name in trajectory.TRAJECTORIES[kind].options}
        own = {name: find_option(name).default for name in trajectory.option_names() if name not in used}
        own |= default_parameters() if arm.control else dict(arm.options)
        chosen = replace(
            with_values(config, own),
            run=self.plan.score_runs,
            save_steps=config.num_steps,
            checkpoints=saves,
            trajectory=gathered,
            early_step=0,
            selector=arm.selector,
            size=None if arm.selector == "all" else size,
            scores=scores,
            features_run=str(source / "run_0") if needs else None,
            features_step=next(step for step in looked_at if step is not None) if needs else None,
        )
        return without_unused(chosen)
