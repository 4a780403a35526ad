"""The report of a study: one self-contained HTML file that leads with the decision, pictures, numbers, kept sets.

Everything is made from the mirror (and the data set, for labels and images), so that it can be made again; the same
mirror gives the same bytes.
"""

from __future__ import annotations

import math
from collections import defaultdict
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jinja2

import datadiet
from datadiet.commands import DATADIET, MLFLOW, Caller, typed
from datadiet.config import FIELDS, as_dict
from datadiet.errors import UserError
from datadiet.report import kept_sets, summary, text, words
from datadiet.report.cost import saved, spent
from datadiet.report.decision import Decision, Line, check_margin, noise_audit
from datadiet.report.evidence import CellResult, Study
from datadiet.report.given import GIVEN, read_study
from datadiet.report.outlook import asked
from datadiet.report.pictures import Picture, pictures
from datadiet.report.price import price
from datadiet.report.statistics import Estimate
from datadiet.report.summary import as_json, facts, plain
from datadiet.report.trained import TrainedStudy
from datadiet.runs.context import Context
from datadiet.selectors.options import FEATURE_FIELDS, LIKE, given_parameters, option_names
from datadiet.selectors.selection import SELECTORS
from datadiet.storage.files import make_folder, make_subfolder, read_json, write_bytes, write_json, write_text, writing

if TYPE_CHECKING:  # MLflow, which takes long to import
    from datadiet.tracking.run import TrackedRun

LEAD = "accuracy"  # the picture of the first screen
COLUMNS = 12  # of a table of scores against scores, so that it fits on paper
MARGIN = 0.5  # percentage points, where neither the caller nor the study says
_OF_A_RUN = frozenset(
    {"run", "selector", "size", "scores", LIKE, "model_seed", "train_seed", "random_subset_seed",
     "save_steps", "early_step", "early_save_steps", "log_steps"}
)  # fmt: skip


# --- numbers ----------------------------------------------------------------------------------


def numbers(decision: Decision) -> dict[str, Any]:
    """statistics.json: every number of the report; accuracies 0 to 1, the margin in percentage points."""
    names, agreement = decision.agreement if decision.study.scores else ([], {})
    cost = decision.cost(decision.shown)
    return plain({
        "decision": facts(decision),
        "margin": decision.margin,
        "planned_margin": decision.study.planned_margin,
        "looks": {"runs": decision.looks.runs, "planned": decision.looks.planned, "spent": decision.looks.spent},
        "gain": {"over_random": decision.verdicts.gain, "over_full": decision.verdicts.change,
                 "worth": decision.verdicts.worth},
        "kept_fraction": decision.best.cell.fraction if decision.best else None,
        "arm": decision.best.cell.arm if decision.best else None,
        "answer": decision.verdicts.answer,
        "smallest_margin": 100 * decision.nearest.smallest_margin,
        "runs_needed": decision.nearest.runs_needed,
        "smallest_kept": {arm: decision.smallest(arm) for arm in decision.study.arms},
        "cells": [
            {"arm": line.cell.arm, "size": line.cell.size, "fraction": line.cell.fraction, "accuracy": line.accuracy,
             "minus_random": line.minus_random, "minus_full": line.minus_full, "verdict": line.verdict,
             "pair_correlation": decision.pair_correlation(line.cell) if line.verdict else None,
             "minus_like": decision.minus_like(line), "per_class": line.cell.per_class.mean(axis=0),
             "kept_per_class": line.cell.kept_per_class}
            for line in decision.lines
        ],
        "cliffs": {arm: cliff.fraction for arm, cliff in decision.cliffs.items()},
        "reliability": {name: found._asdict() for name, found in decision.reliability.items()},
        "stability": decision.stability,
        "spearman": {"names": names, "matrix": agreement.get("spearman", [])},
        "kendall": {"names": names, "matrix": agreement.get("kendall", [])},
        "top_overlap": {"names": names, "size": decision.shown.cell.size, "matrix": agreement.get("top", [])},
        "noise_audit": noise_audit(decision.study),
        "cost": {"of": [decision.shown.cell.arm, decision.shown.cell.size], **cost._asdict(), "total": cost.total,
                 "study": (whole := spent(decision.study))._asdict() | {"total": whole.total},
                 "arms": [_price(decision, line) for line in decision.lines]},
    })  # fmt: skip


def _price(decision: Decision, line: Line) -> dict[str, Any]:
    """What an arm costs at a size, and saves."""
    cost, less = decision.cost(line), saved(decision.study, line.cell)._asdict()
    return {"arm": line.cell.arm, "size": line.cell.size, **cost._asdict(), "total": cost.total, "saved": less}


def class_rows(decision: Decision) -> list[tuple[str, int, int, str, str]]:
    """Name, examples, kept, accuracy with all of the data and on the subset shown, for every class."""
    full, cell = decision.study.full, decision.shown.cell

    def shown(value: float) -> str:
        return f"{100 * value:.1f}" if math.isfinite(value) else "–"

    columns = zip(
        decision.study.class_names, full.kept_per_class, cell.kept_per_class,
        full.per_class.mean(axis=0), cell.per_class.mean(axis=0),
    )  # fmt: skip
    if not (full.kept_is_known and cell.kept_is_known):
        return []
    return [(name, round(total), round(left), shown(all_), shown(part)) for name, total, left, all_, part in columns]


def commands(study: Study, decision: Decision) -> list[tuple[str, str]]:
    """What to type to repeat it: purpose and command."""
    given = {**study.record.plan, "exp": study.exp}
    words = [f"{name}={typed(value)}" for name, value in given.items() if not _is_default(name, value)]
    trained = isinstance(study, TrainedStudy)
    again = [f"exp={study.exp}", f"margin={decision.margin:g}"]
    program = MLFLOW if trained else DATADIET  # who trains by a loop of his own works in a folder of his own
    made = [
        ("This study; finished runs are not repeated:", _spelled("study", words, program))
        if trained
        else ("This decision:", _spelled("decide", words, program)),
        ("This report again, at another margin:", _spelled("report", again, program)),
    ]
    return [*made, *_one_more(study, decision.shown.cell)] if trained else made


def _one_more(study: TrainedStudy, cell: CellResult) -> list[tuple[str, str]]:
    """What to type for another training on a subset; nothing where its selector is not known here."""
    config = study.run(cell.paths[0]).config
    values = as_dict(study.config) | {name: getattr(config, name) for name in FEATURE_FIELDS}
    own = [
        f"{name}={typed(values[name])}"
        for name in values
        if name not in {*_OF_A_RUN, *FEATURE_FIELDS, *option_names()} and not _is_default(name, values[name])
    ]
    chosen_by = given_parameters(config)
    own = [*(f"{name}={typed(value)}" for name, value in chosen_by.items()), *own]
    known, score = SELECTORS.get(cell.selector), study.score_of(cell)
    if known is None:  # one that was registered elsewhere may be missing here
        return []
    named = [] if known.entry_point else [f"selector={cell.selector}"]
    sources = [f"scores=exps/{score.path}"] if score else []
    if like := study.like(cell):
        sources.append(f"{LIKE}=exps/{like.paths[0]}/kept.csv")
    if known.features:
        sources += [f"{name}={typed(values[name])}" for name in FEATURE_FIELDS]
    words = [*named, f"size={cell.size}", *sources, *own]
    return [(f"One more training on {text.what(cell, study)}:", _spelled(known.entry_point or "subset", words))]


def _is_default(name: str, value: Any) -> bool:
    """Whether an option of a training has the default that is the same for every data set."""
    return value is None or (
        name in FIELDS and FIELDS[name].default == (tuple(value) if isinstance(value, list) else value)
    )


def _spelled(entry_point: str, words: list[str], program: str = MLFLOW) -> str:
    # In one form, whoever makes the report and however: the same mirror gives the same bytes.
    return Caller(program).spell(entry_point, dict(word.split("=", 1) for word in words))


def _interval(found: Estimate) -> str:
    return f"{100 * found.low:.2f} to {100 * found.high:.2f}" if found.known else "–"


def _spread(found: Estimate | None) -> str:
    """The interval of a difference in percentage points."""
    return f"{100 * found.low:+.2f} to {100 * found.high:+.2f}" if found and found.known else ""


def _ratio(value: float, digits: int = 2) -> str:
    """A correlation or a share; NaN is one that there is not."""
    return f"{value:.{digits}f}" if math.isfinite(value) else "–"


def certainty(decision: Decision) -> list[tuple[str, str]]:
    """How sure the subset shown is, each with its name: both intervals, the smallest margin, the runs that it takes."""
    near, margin = decision.nearest, words.loss(decision.margin)
    low, high = (f"{100 * end:+.2f}" for end in near.this_test_set)
    needed = f"about {near.runs_needed:,}; there are {near.runs:,}" if near.runs_needed else "no number of them does"
    return [
        ("Difference of test accuracy", f"{100 * near.difference:+.2f} points"),
        ("95 % interval for new runs and new test examples", f"{100 * near.low:+.2f} to {100 * near.high:+.2f} points"),
        (
            "95 % interval for new runs on this test set alone",
            f"{low} to {high} points" if math.isfinite(near.this_test_set[0]) else "not known: runs do not differ",
        ),
        (
            "Smallest margin that this test set can decide",
            f"{100 * near.smallest_margin:.2f} points, where nothing is lost, with any number of runs",
        ),
        (f"Evaluation runs that decide a margin of {margin}", needed),
        ("Correlation of the pairs of runs", _ratio(decision.pair_correlation(decision.shown.cell))),
    ]


# --- the page ---------------------------------------------------------------------------------


def html(decision: Decision, shown: list[Picture], kept_files: list[str]) -> str:
    """The page, self-contained: no script, no outside request."""
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True,
                                     lstrip_blocks=True)  # fmt: skip
    template = environment.from_string(
        files("datadiet.report").joinpath("report.html.jinja").read_text(encoding="utf-8")
    )
    study = decision.study
    return template.render(
        study=study, decision=decision, wording=text, words=words, price=price, summary=summary, kept_files=kept_files,
        lead=next((picture for picture in shown if picture.name == LEAD), None),
        pictures=[picture for picture in shown if picture.name != LEAD], certainty=certainty(decision),
        class_rows=class_rows(decision), audit=noise_audit(study), commands=commands(study, decision),
        cost=decision.cost, version=datadiet.__version__, typed=typed, isfinite=math.isfinite, ratio=_ratio,
        GIVEN=GIVEN, interval=_interval, spread=_spread, COLUMNS=COLUMNS,
        called=defaultdict(str, {score.name: study.words(score.type, score.step) for score in study.scores}),
        score_records={score.name: score.made for score in study.scores if score.made},
    )  # fmt: skip


def margin_of(study: Study, margin: float | None) -> float:
    """The margin asked for, else the study's own, else MARGIN; see `check_margin`."""
    found = study.record.plan.get("margin", MARGIN) if margin is None else margin
    check_margin(found)
    return float(found)


def read_decision(exps: Path, exp: str, margin: float | None = None) -> Decision:
    """What a finished study decides.

    Args:
        exps: The mirror.
        exp: Experiment folder of the study.
        margin: Loss of test accuracy that would not matter, in percentage points; None: the study's own.
    Raises:
        UserError: no study there, or one that is not finished.
    """
    study = read_study(exps, exp)
    return Decision(study, margin_of(study, margin))


def write_report(decision: Decision) -> list[Path]:
    """Report, pictures and numbers of a decision, and the kept set of every subset, below exps/<exp>/.

    Returns:
        What is worth logging: report.html, statistics.json, figures/*.png, and the kept set of the subset that the
        report is about (kept/ has the others).
    """
    study = decision.study
    folder = study.exps / study.exp
    made, products = pictures(decision), []
    if study.dataset is not None:
        for cell in study.cells:
            if study.tells_kept(cell):
                written = kept_sets.write(study, cell)
                products += written if cell is decision.shown.cell else []
    paths = [folder / "report.html", folder / "statistics.json"]
    make_subfolder(folder / "figures")
    for picture in made:
        paths.append(folder / "figures" / f"{picture.name}.png")
        write_bytes(paths[-1], picture.png)
    write_json(paths[1], numbers(decision))
    write_text(paths[0], html(decision, made, [path.relative_to(folder).as_posix() for path in products]))
    return paths + products


def make_report(exp: str, margin: float | None, context: Context) -> Decision:
    """Make the report of a study again from the mirror, and log it to MLflow as a run of its own.

    Returns:
        What it is about.
    """
    if margin is not None:
        check_margin(margin)  # before anything is read
    decision = read_decision(context.output.layout.exps, exp, margin)
    folder = context.output.layout.exps / exp
    params = {"margin": decision.margin}
    note = f"Report of the study {exp} at a margin of {words.loss(decision.margin)}."
    with context.tracker.track("report", exp, f"{exp}/report", None, params=params, note=note) as tracked:
        for path in write_report(decision):
            inside = path.parent.relative_to(folder).as_posix()
            tracked.log_artifact(path, None if inside == "." else inside)
        describe(decision, tracked, context)
        context.reporter.answer("\n".join([text.headline(decision), *asked(decision)]))
        context.reporter.say(str(folder / "report.html"))
    return decision


def describe(decision: Decision, tracked: TrackedRun, context: Context) -> None:
    """Tell the decision to MLflow: as tags and metrics, and on one page as the description of the run."""
    for name, value in summary.tags(decision).items():
        tracked.set_tag(name, value)
    tracked.log_metrics(summary.metrics(decision))
    for per_cent, of_arms in summary.curves(decision).items():
        tracked.log_metrics(of_arms, per_cent)
    tracked.describe(summary.markdown(decision, context.tracker.command, tracked.id))


def write_decision(decision: Decision, output: Path) -> None:
    """The decision as JSON, into a file that is new or holds an earlier one.

    Raises:
        UserError: it holds something else, or cannot be written.
    """
    if output.is_dir():
        raise UserError(f"output={output} is a folder; expected the name of a file.")
    if output.exists() and not _is_decision(output):
        raise UserError(f"output={output} holds no decision of a study, and would be lost. Name another file.")
    with writing(output):
        make_folder(output.parent)
    write_text(output, f"{as_json(decision)}\n")


def _is_decision(path: Path) -> bool:
    try:
        found = read_json(path)
    except UserError:
        return False
    return isinstance(found, dict) and {"format", "answer", "kept_fraction"} <= set(found)
