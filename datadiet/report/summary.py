"""A decision in short: first screen of a report, JSON for programs, markdown for the description of an MLflow run."""

from __future__ import annotations

import json
import math
import re
from typing import Any

import numpy as np

from datadiet.printable import escaped, printable
from datadiet.report import text, words
from datadiet.report.comparison import ALPHA
from datadiet.report.decision import ClassWarning, Decision, Line
from datadiet.report.price import price
from datadiet.report.statistics import Estimate
from datadiet.report.trained import TrainedStudy
from datadiet.tracking.record import ACCURACY, ACCURACY_FULL, ANSWER, KEPT_FRACTION

FORMAT = 1  # of `facts`
ROWS = 12  # of the table of a description
NAME = 200  # characters of a name there
CLASSES = 3  # that a warning names
PICTURE = "figures/accuracy.png"


# --- the first screen -------------------------------------------------------------------------


def beware(decision: Decision) -> list[str]:
    """What concerns the subset to keep: few runs, its worst run and class, that it beats all of the data, the cliff
    next to it, classes that it nearly empties, a score that other runs would not repeat, labels drawn anew.

    Returns:
        Sentences; [] where nothing may be dropped.
    """
    best, study, compared = decision.best, decision.study, decision.verdicts.comparisons
    if best is None:
        return []
    found = [*text.worst(decision), *text.few_runs(decision)]
    if compared[best.cell.arm, best.cell.fraction].bounds(decision.level(ALPHA / len(compared)))[0] > 0:
        found.append("It is shown to be more accurate than all of the data: it is the training recipe that is judged.")
    found += [_emptied(decision, one) for one in decision.emptied if one.cell is best.cell]
    cliff, sizes = decision.cliffs.get(best.cell.arm), [cell.fraction for cell in study.of_arm(best.cell.arm)]
    if cliff and cliff.fraction == max((one for one in sizes if one < best.cell.fraction), default=None):
        found.append(f"Keep no less: at {words.kept(cliff.fraction)} the same choice breaks down.")
    score = study.score_of(best.cell)
    if score and decision.reliability[score.name].whole < text.RELIABLE:
        found.append("Other runs would choose other examples: the scores are mostly chance (reliability below 0.7).")
    if score and isinstance(study, TrainedStudy) and study.config.random_label_fraction:
        found.append("Some training labels were drawn anew, and what is kept first is mostly mislabelled.")
    return found


def _emptied(decision: Decision, found: ClassWarning) -> str:
    names = decision.study.class_names
    shown = [f"{names[c]} ({found.cell.kept_per_class[c]:.0f} left)" for c in found.classes[:CLASSES]]
    more = f" and {len(found.classes) - CLASSES} more" if len(found.classes) > CLASSES else ""
    es = "es" if len(found.classes) > 1 else ""
    return f"It keeps less than a fifth of the share of class{es} {', '.join(shown)}{more}."


def beware_too(decision: Decision) -> list[str]:
    """All other warnings."""
    first = beware(decision)
    return [warning for warning in text.warnings(decision) if warning not in first]


# --- JSON -------------------------------------------------------------------------------------


def plain(value: Any) -> Any:
    """Numbers ready for JSON; what is not finite becomes null."""
    if isinstance(value, Estimate):
        return {name: plain(getattr(value, name)) for name in Estimate._fields}
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, np.ndarray | list | tuple):
        return [plain(item) for item in value]
    if isinstance(value, float | np.floating):
        return float(value) if math.isfinite(value) else None
    return int(value) if isinstance(value, np.integer) else value


def facts(decision: Decision) -> dict[str, Any]:
    """The decision for programs, ready for JSON; docs/decision.md says what each entry means."""
    best, full, near, study = decision.best, decision.lines[0], decision.nearest, decision.study
    cost = decision.cost(decision.shown)
    return plain({
        "format": FORMAT,
        "study": study.exp,
        "dataset": study.record.dataset,
        "model": study.record.model,
        "sentence": text.headline(decision),
        "answer": decision.verdicts.answer,
        "margin": decision.margin,
        "arm": best.cell.arm if best else None,
        "kept_fraction": decision.verdicts.kept_fraction,
        "kept": best.cell.size if best else full.cell.size,
        "accuracy": (best or full).accuracy.mean,
        "accuracy_full": full.accuracy.mean,
        "runs": near.runs,
        "test_examples": near.examples,
        "smallest_margin": 100 * near.smallest_margin,
        "runs_needed": near.runs_needed,
        "subset": _subset(decision, decision.shown) | {"this_test_set": near.this_test_set},
        "subsets": [_subset(decision, line) for line in decision.lines[1:]],
        "warnings": beware(decision),
        "other_warnings": beware_too(decision),
        "cost": {
            "choosing": cost.total, "training": cost.subset_training.mean, "training_full": cost.full_training.mean,
            "pays_after": cost.pays_after, "study_pays_after": cost.study_pays_after, "words": price(decision),
        },
    })  # fmt: skip


def _subset(decision: Decision, line: Line) -> dict[str, Any]:
    difference = line.minus_full
    return {
        "arm": line.cell.arm, "fraction": line.cell.fraction, "size": line.cell.size, "verdict": line.verdict,
        "accuracy": line.accuracy.mean, "difference": difference and difference.mean,
        "interval": difference and [difference.low, difference.high],
        "pair_correlation": decision.pair_correlation(line.cell),
    }  # fmt: skip


def as_json(decision: Decision) -> str:
    """`facts` as a text of ASCII characters, the same for the same mirror."""
    return json.dumps(facts(decision), indent=2, allow_nan=False)


# --- markdown, tags and metrics ---------------------------------------------------------------------------------


def inert(given: str) -> str:
    """Text in which users' names may stand, for markdown: nothing in it is markup, a link, or the end of a line."""
    told = re.sub(r"[<>&|~$]", lambda found: f"&#{ord(found[0])};", escaped(printable(given)))
    told = re.sub(r"(?<!&)#|[\\`*_{}\[\]!]", lambda found: f"\\{found[0]}", told)
    return re.sub(r"(?i)(?<=:)//|(?<=\bwww)\.|@", lambda found: "".join(f"&#{ord(c)};" for c in found[0]), told)


def markdown(decision: Decision, command: str, run_id: str | None) -> str:
    """One page for the description of an MLflow run: the answer, a small table, a picture, commands.

    Args:
        command: That made it.
        run_id: Whose artifact the picture is; None: not known yet.
    """
    study, alt = decision.study, "Accuracy against the fraction kept"
    parts = [f"Study of {inert(study.record.model[:NAME])} on {inert(study.record.dataset[:NAME])}."]
    parts += [f"**{inert(text.headline(decision))}**", inert(" ".join(text.which(decision)))]
    parts += [f"Beware: {inert(warning)}" for warning in beware(decision)]
    parts += [_table(decision), inert(" ".join(price(decision)))]
    source = f"get-artifact?path={PICTURE.replace('/', '%2F')}&run_uuid={run_id}"
    parts.append(f"![{alt}]({source})" if run_id else f"{alt}: artifact `{PICTURE}`.")
    parts.append(f"All of it: artifact `report.html`; for programs `statistics.json`. Again:\n\n    {command}")
    return "\n\n".join(parts)


def _table(decision: Decision) -> str:
    """All of the data, and every arm at the size that the report is about."""

    def called(arm: str) -> str:
        short = decision.study.short(arm)
        return arm if short == arm else f"{short} ({arm})"

    size = decision.shown.cell.size
    lines = [line for line in decision.lines[1:] if line.cell.size == size]
    shown = [decision.lines[0], *sorted(lines, key=lambda line: line.cell is not decision.shown.cell)][:ROWS]
    rows = [
        [
            called(line.cell.arm), words.kept(line.cell.fraction), words.percent(line.accuracy.mean),
            words.points(line.minus_full) if line.minus_full else "", line.verdict or "",
        ]
        for line in shown
    ]  # fmt: skip
    head = ["chosen by", "kept", "test accuracy", "against all of the data", "verdict"]
    cells = [head, ["---"] * len(head), *([inert(cell) for cell in row] for row in rows)]
    return "\n".join(f"| {' | '.join(row)} |" for row in cells)


def tags(decision: Decision) -> dict[str, str]:
    """The decision as tags of an MLflow run."""
    return {
        "datadiet.decision": text.headline(decision),
        ANSWER: decision.verdicts.answer,
        "datadiet.decision.arm": decision.verdicts.arm or "none",
        "datadiet.decision.kept": words.kept(decision.verdicts.kept_fraction),
        "datadiet.decision.margin": words.loss(decision.margin),
    }


def metrics(decision: Decision) -> dict[str, float]:
    """Accuracies and the kept fraction 0 to 1, the margin in percentage points."""
    best = decision.best or decision.lines[0]
    return {
        KEPT_FRACTION: decision.verdicts.kept_fraction,
        ACCURACY: best.accuracy.mean,
        ACCURACY_FULL: decision.lines[0].accuracy.mean,
        "decision/smallest_margin": 100 * decision.nearest.smallest_margin,
    }


def subset_metrics(decision: Decision, line: Line) -> dict[str, float]:
    """Of a subset, under the names that `metrics` has of the whole, so that one table of MLflow shows both."""
    return {
        KEPT_FRACTION: line.cell.fraction,
        ACCURACY: line.accuracy.mean,
        ACCURACY_FULL: decision.lines[0].accuracy.mean,
    }


def subset_tags(line: Line) -> dict[str, str]:
    """The verdict of a subset, likewise."""
    return {ANSWER: line.verdict or "all of the data"}


def curves(decision: Decision) -> dict[int, dict[str, float]]:
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
