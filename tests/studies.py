"""A finished study on digits, written straight into a mirror: no network is trained, so every number is known."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np

from datadiet import config as options
from datadiet.config import TrainConfig
from datadiet.data.labels import randomize_labels
from datadiet.data.registry import load_dataset
from datadiet.selectors import selection
from datadiet.storage.answers import digest, write_answers
from datadiet.storage.files import sealed, write_lines, write_text
from datadiet.storage.layout import score_file
from datadiet.storage.manifests import manifest_text
from datadiet.storage.records import Arguments, CellRecord, DataFacts, MeanRecord, StudyRecord, Summary
from datadiet.storage.score_files import load_scores, save_scores

FRACTIONS = (0.8, 0.4)
STEP, NUM_STEPS, SCORE_RUNS, RUNS = 10, 100, 4, 5
TRAIN_SECONDS = 20.0  # of a run on all data
SCORE_SECONDS = 0.25
CLASSES = 10
NUM_TEST = 100_000  # test examples that its runs say they had


def full_accuracies(runs: int = RUNS) -> np.ndarray:
    return 0.95 + 0.002 * np.arange(runs)


def write_study(root: Path, losses: dict[str, tuple[float, ...]], *, exp: str = "demo", runs: int = RUNS,
                score_runs: int = SCORE_RUNS, noise: float = 0.0, budget: str = "iterations",
                types: tuple[str, ...] = ("l2_error",)) -> Path:  # fmt: skip
    """study.json and all that it names.

    Args:
        losses: By arm ('random', or 'keep_max <type>') the accuracy lost against all data at each of FRACTIONS.
            The differences of the runs scatter by about 0.0005 around it.
    Returns:
        exps.
    """
    digits, exps = load_dataset("digits"), root / "exps"
    count = digits.num_examples
    config = options.resolve(
        TrainConfig(dataset="digits", model="mlp", num_steps=NUM_STEPS, augment=False, log_steps=25,
                    random_label_fraction=noise), count)  # fmt: skip
    labels, _ = randomize_labels(digits.train_labels, noise, config.random_label_seed)
    scored = [f"{exp}/full_data/run_{run}" for run in range(score_runs)]
    for run, path in enumerate(scored):
        write_run(exps / path, replace(config, run=run), digits, labels, 0.95, np.arange(count), TRAIN_SECONDS)
    means = []
    for position, kind in enumerate(types):
        values = own_scores(digits, labels, score_runs, seed=position)
        for run, (path, own) in enumerate(zip(scored, values)):
            save_scores(score_file(exps / path, kind, STEP), own, digits.identity(),
                              {"type": kind, "step": STEP, "runs": [run], "seconds": SCORE_SECONDS})  # fmt: skip
        mean = score_file(exps / exp / "full_data", kind, STEP)
        told = {"type": kind, "step": STEP, "runs": list(range(score_runs)), "seconds": 0.0}
        save_scores(mean, values.mean(axis=0, dtype=np.float64), digits.identity(), told)
        means.append(MeanRecord(kind, STEP, mean.relative_to(exps).as_posix()))
    cells = [_cell(exps, exp, config, digits, labels, "full data", None, np.zeros(runs), score_runs, budget)]
    for position, fraction in enumerate(FRACTIONS):
        for number, (arm, lost) in enumerate(losses.items()):
            scatter = 0.0005 * np.random.RandomState([position, number]).permutation(np.linspace(-1, 1, runs))
            cells.append(_cell(exps, exp, config, digits, labels, arm, round(fraction * count),
                               scatter - lost[position], score_runs, budget))  # fmt: skip
    plan = {**options.as_dict(config), "score_runs": score_runs, "eval_runs": runs, "score_types": list(types),
            "fractions": list(FRACTIONS), "margin": 0.5}  # fmt: skip
    StudyRecord(
        plan=plan, dataset="digits", fingerprint=digits.fingerprint, num_examples=count, model="mlp", budget=budget,
        score_runs=scored, means=means, cells=cells,
    ).write(exps / exp / "study.json")  # fmt: skip
    return exps


def own_scores(digits, labels: np.ndarray, runs: int, seed: int = 0) -> np.ndarray:
    """float32 [R, N]: a difficulty that runs share and noise of their own; changed labels score high."""
    random = np.random.RandomState(100 + seed)
    difficulty = random.gamma(2.0, 0.1, len(labels)) + 0.5 * (labels != digits.train_labels)
    difficulty[labels == 0] *= 0.05  # class 0 is easy, so that few of it are kept
    return (difficulty + random.normal(0, 0.05, (runs, len(labels)))).astype(np.float32)


def _cell(exps, exp, config, digits, labels, arm, size, differences, first_run, budget) -> CellRecord:
    selector, _, kind = arm.partition(" ")
    selector, kind = ("all", None) if arm == "full data" else (selector, kind or None)
    kind = None if selector == "random" else kind
    folder = "full_data" if size is None else f"{arm.replace(' ', '.')}/size_{size}"
    mean = score_file(exps / exp / "full_data", kind, STEP) if kind else None
    values = load_scores(mean)[0] if mean else np.arange(len(labels))
    paths = []
    for position, accuracy in enumerate(full_accuracies(len(differences)) + differences):
        run = options.resolve(replace(config, run=first_run + position, selector=selector, size=size,
                                      model_seed=None, train_seed=None, random_subset_seed=None,
                                      scores=str(mean) if mean else None), len(labels))  # fmt: skip
        kept = np.arange(len(labels))
        if size is not None and not selection.chooses_anew(selector):
            kept = selection.kept_order(selector, values, size=size, seed=run.random_subset_seed)
        paths.append(f"{exp}/{folder}/run_{run.run}")
        share = (size or len(labels)) / len(labels) if budget == "epochs" else 1.0
        write_run(exps / paths[-1], run, digits, labels, accuracy, kept, share * (TRAIN_SECONDS + 0.01 * position))
        if len(kept) < len(labels):
            write_text(exps / paths[-1] / "kept.csv", manifest_text(digits, kept, values if kind else None))
    size = len(labels) if size is None else size
    step = STEP if kind else None
    return CellRecord(arm, selector, kind, step, size, size / len(labels), paths)


def write_run(path: Path, config: TrainConfig, digits, labels, accuracy: float, kept: np.ndarray, seconds: float):
    """args.json, metrics.jsonl and summary.json; accuracies of the classes scatter around the mean."""
    facts = DataFacts(digits.fingerprint, CLASSES, [8, 8, 1])
    path.mkdir(parents=True, exist_ok=True)
    Arguments(config=config, data=facts).write(path / "args.json")
    lines = [{"step": step, "test_acc": accuracy * step / NUM_STEPS, "time/train_seconds": seconds * step / NUM_STEPS}
             for step in options.logged_steps(config)]  # fmt: skip
    write_lines(path / "metrics.jsonl", lines)
    name = path.as_posix().partition("/exps/")[2]
    per_class = (accuracy + 0.01 * np.linspace(-1, 1, CLASSES)).tolist()
    kept_per_class = np.bincount(labels[kept], minlength=CLASSES).tolist()
    right = round(accuracy * NUM_TEST)  # the better of two runs is right wherever the other is
    write_answers(path, np.arange(NUM_TEST) < right)
    Summary(
        path=name, dataset="digits", model="mlp", scored_by=config.selector, num_kept=len(kept),
        num_examples=len(labels),
        train_acc=1.0, test_acc=accuracy, test_acc_per_class=per_class, kept_per_class=kept_per_class,
        select_seconds=0.01, seconds=seconds, num_test=NUM_TEST, test_correct_sha256=digest(path),
    ).write(path / "summary.json")  # fmt: skip


def rewrite(path: Path, **changes) -> None:
    """Change some values of a .json file."""
    path.write_text(json.dumps(sealed(json.loads(path.read_text()) | changes)))
