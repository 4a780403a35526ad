"""The paper's figures, measured again: `python -m benchmarks.figures NAME [--plans cifar10] [options of study]`.

NAME is one of FIGURES. Runs the study of its plan (docs/figures/<plans>/), with whatever options of `study` are given
besides, goes on where it was stopped, and writes to --output (docs/figures/<plans>) a table (`fractions`: and the
picture): what was measured with 95 % intervals, what was published, and whether it came out as published. That is of
CIFAR-10 and ResNet-18: accuracies after 78,000 steps (BlackHC/data_diet, means of 2 to 4 runs) and Kirsch 2023. On a
GPU, all of it:

    for f in fractions epochs window noise labels agreement; do
      python -m benchmarks.figures $f --compute_dtype bfloat16; done
"""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Callable, Iterator
from itertools import combinations
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np

from benchmarks.published_scores import Found, over_runs, spearman
from datadiet.report.comparison import compare
from datadiet.report.decision import Decision
from datadiet.report.evidence import CellResult, Score, Study
from datadiet.report.figures import accuracy, png
from datadiet.report.given import read_study
from datadiet.report.page import margin_of
from datadiet.report.statistics import auroc
from datadiet.report.trained import TrainedStudy
from datadiet.selectors.options import RANDOM
from datadiet.storage.files import write_bytes
from entrypoints.study import study

PLANS = Path(__file__).parents[1] / "docs" / "figures"
# Accuracy of ResNet-18 on CIFAR-10 in per cent after 78,000 steps, by score, step in epochs, and fraction kept.
PUBLISHED = {
    (RANDOM, 0): {0.9: 94.96, 0.7: 94.27, 0.5: 93.54, 0.4: 92.50},
    ("l2_error", 20): {0.9: 95.09, 0.7: 95.30, 0.5: 95.22, 0.4: 94.66},
    ("grad_norm", 20): {0.9: 95.14, 0.7: 95.45, 0.5: 95.07, 0.4: 94.07},
    ("grad_norm", 0): {0.9: 95.06, 0.7: 93.91, 0.5: 92.19, 0.4: 90.77},
}
SAME, OTHER, OPEN = "as published", "not as published", "undecided"


class Claim(NamedTuple):
    """A number that was measured, beside what was published of it."""

    text: str
    found: Found
    published: str
    side: int = 0  # on which side of 0 the published number lies; 0: nothing was published
    points: bool = True  # percentage points; else a number of its own

    @property
    def verdict(self) -> str:
        """Whether the whole interval lies on the published side of 0, or on the other."""
        if not self.side:
            return "–"
        low, high = sorted((self.side * self.found.low, self.side * self.found.high))
        return SAME if low > 0 else OTHER if high < 0 else OPEN

    def __str__(self) -> str:
        shown = [f"{value:+.2f}" if self.points else f"{value:.3f}" for value in self.found]
        return f"| {self.text} | {shown[0]} ({shown[1]} to {shown[2]}) | {self.published} | {self.verdict} |"


def minus(one: CellResult, other: CellResult) -> Found:
    """Difference of accuracies in points, with its interval for new runs and new test examples."""
    assert one.correct is not None
    assert other.correct is not None
    found = compare(one.correct, other.correct)
    return Found(100 * found.difference, 100 * found.low, 100 * found.high)


def claimed(one: CellResult, other: CellResult, published: float | None, side: int = 0) -> Claim:
    """That one subset is better (side=1) or worse (-1) than another of its size; a published difference says which."""
    told = "" if published is None else f"{published:+.2f}"
    side = side if published is None else int(np.sign(published))
    return Claim(f"{one.arm} − {other.arm}, {one.fraction:.0%} kept", minus(one, other), told or "–", side)


def published(kind: str, epoch: int, fraction: float) -> float | None:
    """Published accuracy of a score less that of a random subset, in points."""
    there, random = PUBLISHED.get((kind, epoch), {}), PUBLISHED[RANDOM, 0]
    near = round(fraction, 2)
    return there[near] - random[near] if near in there else None


def fractions(found: Study) -> Iterator[Claim]:
    """Each score against a random subset, and all of the data, at every fraction."""
    for cell in (cell for cell in found.cells if cell.type):
        random = found.cell(RANDOM, cell.size)
        assert random is not None
        yield claimed(cell, random, published(str(cell.type), 20, cell.fraction))
    for cell in (cell for cell in found.cells if cell.type == "l2_error"):
        yield Claim(f"{cell.arm}, {cell.fraction:.0%} kept, − all of the data", minus(cell, found.full), "–")


def epochs(found: Study) -> Iterator[Claim]:
    """Scores of each step against a random half; GraNd of untrained networks against the norm of the input."""
    half = [cell for cell in found.cells if cell.type]
    random = found.cell(RANDOM, half[0].size)
    last = max(cell.step or 0 for cell in half)
    assert random is not None
    for cell in half:
        epoch = {0: 0, last: 20}.get(cell.step or 0, -1) if cell.type != "input_norm" else -1
        yield claimed(cell, random, published(str(cell.type), epoch, cell.fraction))
    scores = {(score.type, score.step): score for score in found.scores}
    grand, norm = scores["grad_norm", 0], scores["input_norm", 0]
    likeness = over_runs([grand.runs, norm.mean[None]], len(grand.runs), lambda *both: spearman(*both) - 0.9)
    yield Claim("Spearman of GraNd at step 0 and the norm of the input − 0.9", likeness, "+0.063", 1, points=False)


def window(found: Study) -> Iterator[Claim]:
    """Every window against the hardest examples, and these against a random subset."""
    hardest = next(cell for cell in found.cells if cell.selector == "keep_max")
    random = found.cell(RANDOM, hardest.size)
    assert random is not None
    yield claimed(hardest, random, published("l2_error", 20, hardest.fraction) if found.noise is None else None)
    for cell in (cell for cell in found.cells if cell.selector == "offset"):
        yield claimed(cell, hardest, None, side=int(found.noise is not None))


def labels(found: Study) -> Iterator[Claim]:
    """How well scores find the labels that were drawn anew: published is that these score higher."""
    assert found.noise is not None
    changed = found.noise.changed
    for score in found.scores:
        area = over_runs([score.runs], len(score.runs), lambda mean: auroc(mean, changed) - 0.5)
        yield Claim(f"{score.name}: area under the ROC of labels drawn anew − 0.5", area, "above 0", 1, points=False)


def agreement(found: Study) -> Iterator[Claim]:
    """Rank correlation of single runs, and of means over halves of the runs."""
    for score in found.scores:
        yield Claim(f"{score.name}: Spearman of two runs", alike(score, 1), "–", points=False)
        if len(score.runs) > 3:
            half = len(score.runs) // 2
            yield Claim(f"{score.name}: Spearman of means of {half} runs", alike(score, half), "–", points=False)


def alike(score: Score, size: int) -> Found:
    """Mean, least and largest Spearman of means over disjoint sets of `size` runs."""
    runs = range(len(score.runs))
    sets = [(one, other) for one in combinations(runs, size) for other in combinations(runs, size)]
    found = [spearman(score.runs[[*one]].mean(0), score.runs[[*other]].mean(0)) for one, other in sets
             if one < other and not set(one) & set(other)]  # fmt: skip
    return Found(float(np.mean(found)), min(found), max(found))


class Figure(NamedTuple):
    """One entry of FIGURES."""

    plan: str
    claims: Callable[[Study], Iterator[Claim]]
    drawn: bool = False  # whether accuracy against the fraction is its picture


FIGURES = {
    "fractions": Figure("fractions", fractions, drawn=True),
    "epochs": Figure("epochs", epochs),
    "window": Figure("window", window),
    "noise": Figure("noise", window),
    "labels": Figure("noise", labels),
    "agreement": Figure("fractions", agreement),
}
NOTE = (
    "Differences of accuracies are in percentage points, with intervals for new runs and new test examples; intervals "
    "of scores are of our runs drawn with replacement, those of agreement the least and the largest pair. As "
    "published: the whole interval lies on the side of 0 on which the published number lies. Several verdicts stand "
    "here, each by itself."
)


def table(name: str, found: TrainedStudy, command: str) -> str:
    """Markdown of a figure."""
    config = found.record.plan
    width, size = config.get("width") or "its own", config.get("image_size")
    told = f"{found.record.model}, width {width}" + (f", images of {size} pixels" if size else "")
    trained = [*found.record.score_runs, *(path for cell in found.cells for path in cell.paths)]
    seconds = sum(found.finished(path).seconds for path in trained)
    device = jax.devices()[0].device_kind
    lines = [
        f"# {name.capitalize()}: {found.record.dataset}", "", f"`{command}`", "",
        f"{told}, {config['num_steps']} steps of {config['train_batch_size']} examples; {len(found.record.score_runs)} "
        f"scoring runs, {len(found.full.accuracies)} of each subset; all of the data gives "
        f"{100 * found.full.accuracies.mean():.2f} %. The {len(trained)} trainings took {seconds / 60:.0f} min on "
        f"{device}.", "",
    ]  # fmt: skip
    if FIGURES[name].drawn:
        lines += [f"![Test accuracy against the fraction kept]({name}.png)", ""]
    lines += ["| | measured (95 % interval) | published | verdict |", "|---|---|---|---|"]
    lines += [str(claim) for claim in FIGURES[name].claims(found)]
    return "\n".join([*lines, "", NOTE, ""])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", choices=FIGURES)
    parser.add_argument("--plans", default="cifar10", help="folder of plans below docs/figures (cifar10)")
    parser.add_argument("--root", type=Path, default=Path(), help="folder of exps/ (.)")
    parser.add_argument("--exp", help="experiment folder below it (the plan's)")
    parser.add_argument("--output", type=Path, help="where the table and the picture go (docs/figures/PLANS)")
    given, options = parser.parse_known_args()
    plan, output = FIGURES[given.name].plan, given.output or PLANS / given.plans
    exp = given.exp or f"figures/{given.plans}/{plan}"
    typed = ["--plan", str(PLANS / given.plans / f"{plan}.yaml"), "--exp", exp, "--root", str(given.root), *options]
    try:
        study().main(typed, prog_name="study")
    except SystemExit as ended:  # as commands end
        if ended.code:
            raise
    found = read_study(given.root / "exps", exp)
    assert isinstance(found, TrainedStudy)
    command = shlex.join(["python", "-m", "benchmarks.figures", *sys.argv[1:]])
    output.mkdir(parents=True, exist_ok=True)
    text = table(given.name, found, command)
    write_bytes(output / f"{given.name}.md", text.encode())
    if FIGURES[given.name].drawn:
        write_bytes(output / f"{given.name}.png", png(accuracy(Decision(found, margin_of(found, None)))))
    print(f"\n{text}")


if __name__ == "__main__":
    main()
