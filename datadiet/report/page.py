"""The report of a study: one self-contained HTML file that leads with the decision, pictures, numbers, kept sets.

Everything is made from the mirror (and the data set, for labels and images), so that it can be made again; the same
mirror gives the same bytes.
"""

from __future__ import annotations

import math
from importlib.resources import files
from pathlib import Path
from typing import Any

import jinja2
import numpy as np

import datadiet
from datadiet.commands import MLFLOW, Caller, typed
from datadiet.config import FIELDS, as_dict
from datadiet.report import kept_sets, text
from datadiet.report.cost import saved, spent
from datadiet.report.decision import Decision, Line, check_margin, noise_audit
from datadiet.report.evidence import Study, read_study
from datadiet.report.outlook import asked
from datadiet.report.pictures import Picture, pictures
from datadiet.report.statistics import Estimate
from datadiet.runs.context import Context
from datadiet.selectors.options import FEATURE_FIELDS, LIKE, given_parameters, option_names
from datadiet.selectors.selection import SELECTORS
from datadiet.storage.files import make_subfolder, write_bytes, write_json, write_text

MARGIN = 0.5  # percentage points, where neither the caller nor the study says
_OF_A_RUN = frozenset(
    {"run", "selector", "size", "scores", LIKE, "model_seed", "train_seed", "random_subset_seed",
     "save_steps", "early_step", "early_save_steps", "log_steps"}
)  # fmt: skip


# --- numbers ----------------------------------------------------------------------------------


def _plain(value: Any) -> Any:
    """Numbers ready for JSON; what is not finite becomes null."""
    if isinstance(value, Estimate):
        return {name: _plain(getattr(value, name)) for name in Estimate._fields}
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, np.ndarray | list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, float | np.floating):
        return float(value) if math.isfinite(value) else None
    return int(value) if isinstance(value, np.integer) else value


def numbers(decision: Decision) -> dict[str, Any]:
    """statistics.json: every number of the report; accuracies 0 to 1, the margin in percentage points."""
    names, agreement = decision.agreement if decision.study.scores else ([], {})
    cost = decision.cost(decision.shown)
    return _plain({
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
    if not np.isfinite(full.kept_per_class).all():
        return []
    return [(name, round(total), round(left), shown(all_), shown(part)) for name, total, left, all_, part in columns]


def commands(study: Study, decision: Decision) -> list[tuple[str, str]]:
    """What to type to repeat it: purpose and command."""
    given = {**study.record.plan, "exp": study.exp}
    words = [f"{name}={typed(value)}" for name, value in given.items() if not _is_default(name, value)]
    made = [
        ("This study; finished runs are not repeated:", _mlflow("study", words)),
        (
            "This report again, at another margin:",
            _mlflow("report", [f"exp={study.exp}", f"margin={decision.margin:g}"]),
        ),
    ]
    cell = decision.shown.cell
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
    if known:  # one that was registered elsewhere may be missing here
        named = [] if known.entry_point else [f"selector={cell.selector}"]
        sources = [f"scores=exps/{score.path}"] if score else []
        if like := study.like(cell):
            sources.append(f"{LIKE}=exps/{like.paths[0]}/kept.csv")
        if known.features:
            sources += [f"{name}={typed(values[name])}" for name in FEATURE_FIELDS]
        words = [*named, f"size={cell.size}", *sources, *own]
        made.append((f"One more training on {text.what(cell)}:", _mlflow(known.entry_point or "subset", words)))
    return made


def _is_default(name: str, value: Any) -> bool:
    """Whether an option of a training has the default that is the same for every data set."""
    return value is None or (
        name in FIELDS and FIELDS[name].default == (tuple(value) if isinstance(value, list) else value)
    )


def _mlflow(entry_point: str, words: list[str]) -> str:
    # In one form, whoever makes the report and however: the same mirror gives the same bytes.
    return Caller(MLFLOW).spell(entry_point, dict(word.split("=", 1) for word in words))


def _interval(found: Estimate) -> str:
    return f"{100 * found.low:.2f} to {100 * found.high:.2f}" if found.known else "–"


def _spread(found: Estimate | None) -> str:
    """The interval of a difference in percentage points."""
    return f"{100 * found.low:+.2f} to {100 * found.high:+.2f}" if found and found.known else ""


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
        study=study, decision=decision, wording=text, pictures=shown, kept_files=kept_files,
        class_rows=class_rows(decision), audit=noise_audit(study), commands=commands(study, decision),
        cost=decision.cost, version=datadiet.__version__, typed=typed, isfinite=math.isfinite, interval=_interval,
        spread=_spread,
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
            if cell is not study.full and cell.drops:
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
    note, params = f"Report of the study {exp} at a margin of {decision.margin:g} points.", {"margin": decision.margin}
    with context.tracker.track("report", exp, f"{exp}/report", None, params=params, note=note) as tracked:
        for path in write_report(decision):
            inside = path.parent.relative_to(folder).as_posix()
            tracked.log_artifact(path, None if inside == "." else inside)
        context.reporter.say("\n".join([text.headline(decision), *asked(decision)]) + f"\n{folder / 'report.html'}")
    return decision
