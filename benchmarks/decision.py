"""How often a decision is wrong, simulated: `python -m benchmarks.decision [--quick] [--only TABLE …]`.

A network is right about a test example where a latent normal margin is positive: how easy the example is, how easy it
is after this way to train, how good this run came out as a whole, and chance. Full data has an accuracy of 95 %, a
subset exactly the margin less, so every "not worse" is false. The table goes to benchmarks/results/decision.md.
"""

from __future__ import annotations

import argparse
import itertools
import math
from collections.abc import Iterable, Iterator, Sequence
from functools import cache
from pathlib import Path

import numpy as np
from scipy import optimize, stats

from datadiet.progress import counting
from datadiet.report import statistics as st
from datadiet.report.comparison import ALPHA, Comparison, compare
from datadiet.report.gain import regained
from datadiet.report.sequential import looks
from datadiet.report.statistics import NOT_WORSE
from datadiet.report.verdicts import FULL, decide

ACCURACY, MARGIN = 0.95, 0.005
EXAMPLE, OWN = 1.5, 0.6  # standard deviations of how easy an example is, for all and for one way to train
SPREAD = math.sqrt(1 + EXAMPLE**2 + OWN**2)
KINDS = ("normal", "skewed", "correlated")  # how the shifts of runs are distributed
RUNS, SIZES = (1, 2, 3, 5, 10), {359: 4000, 1000: 2000, 10_000: 600}  # test examples: replicates
SHIFTS = (0.0, 0.1, 0.3)  # standard deviation of the accuracy of a run as a whole, percentage points
FRACTIONS = (0.9, 0.7, 0.5, 0.3)
AUTO = (3, 5, 8, 12, 18, 27, 30)  # runs at which eval_runs=auto looks
_QUANTILES = (np.arange(1000) + 0.5) / 1000


def _shift(kind: str, random: np.random.Generator, runs: int) -> np.ndarray:
    """Of mean 0 and variance 1: as a skewed one a few runs come out much worse."""
    return (2 - random.gamma(2, size=runs)) / math.sqrt(2) if kind == "skewed" else random.standard_normal(runs)


@cache
def _threshold(kind: str, scale: float, accuracy: float) -> float:
    """What the margin is on average, for an accuracy over all runs and examples."""
    q = (2 - stats.gamma(2).ppf(_QUANTILES)) / math.sqrt(2) if kind == "skewed" else stats.norm.ppf(_QUANTILES)

    def lack(x: float) -> float:
        return float(stats.norm.cdf((x + scale * q) / SPREAD).mean()) - accuracy

    return float(optimize.brentq(lack, -20, 20))


def study(
    random: np.random.Generator, kind: str, points: float, runs: int, examples: int, subsets: int
) -> list[np.ndarray]:
    """bool [S, M] of full data and then of every subset; runs at equal positions share half of their shift where
    they are correlated."""
    scale = points / 100 * SPREAD / stats.norm.pdf(stats.norm.ppf(ACCURACY))
    easy, common = EXAMPLE * random.standard_normal(examples, np.float32), _shift(kind, random, runs)
    share = math.sqrt(0.5) if kind == "correlated" else 0.0
    found = []
    for accuracy in (ACCURACY, *[ACCURACY - MARGIN] * subsets):
        shift = scale * (share * common + math.sqrt(1 - share**2) * _shift(kind, random, runs))
        own = easy + OWN * random.standard_normal(examples, np.float32) + np.float32(_threshold(kind, scale, accuracy))
        chance = random.standard_normal((runs, examples), np.float32)
        found.append(chance < own + shift[:, None].astype(np.float32))
    return found


def coverage(kind: str, points: float, runs: int, examples: int, replicates: int) -> float:
    """How often the 95 % interval holds the true difference, 0 to 1."""
    random = np.random.default_rng([KINDS.index(kind), runs, examples])
    hits = 0
    for _ in range(replicates):
        full, one = study(random, kind, points, runs, examples, 1)
        found = compare(one, full, MARGIN)
        hits += found.low <= -MARGIN <= found.high
    return hits / replicates


def false_headlines(
    kind: str, points: float, runs: int, examples: int, arms: int, replicates: int
) -> tuple[float, float]:
    """How often something may be dropped though every subset truly loses the margin: by `decide`, and by intervals over
    runs alone, uncorrected, which was the rule before."""
    random = np.random.default_rng([KINDS.index(kind), runs, examples, arms])
    new = old = 0
    for _ in range(replicates):
        full, *subsets = study(random, kind, points, runs, examples, arms * len(FRACTIONS))
        keys = [(f"arm {arm}", fraction) for arm in range(arms) for fraction in FRACTIONS]
        cells = dict(zip(keys, subsets))
        new += decide({(FULL, 1.0): full, **cells}, MARGIN).kept_fraction < 1
        largest = [cells[f"arm {arm}", FRACTIONS[0]] for arm in range(arms)]
        old += any(st.paired(one.mean(1), full.mean(1)).low > -MARGIN for one in largest)
    return new / replicates, old / replicates


def rare_losses(lost: float, noise: float, runs: int, examples: int, arms: int, replicates: int) -> float:
    """How often something may be dropped though each subset truly loses the margin: on average `lost` of the test
    examples, which every run loses; besides, every run errs by chance in a share `noise`."""
    random, false = np.random.default_rng([round(10 * lost), round(1e4 * noise), runs, examples, arms]), 0
    for _ in range(replicates):
        full, *subsets = (random.random((runs, examples), np.float32) >= noise for _ in range(1 + arms))
        for one in subsets:
            one[:, random.random(examples) < lost / examples] = False
        cells = {(f"arm {arm}", 0.5): one for arm, one in enumerate(subsets)}
        false += decide({(FULL, 1.0): full, **cells}, (1 - noise) * lost / examples).kept_fraction < 1
    return false / replicates


def looking_again(
    kind: str, points: float, examples: int, arms: int, replicates: int, most: int = 30
) -> dict[str, float]:
    """How often something may be dropped at any look though every subset truly loses the margin, by way of looking."""
    random, every = np.random.default_rng([KINDS.index(kind), examples, arms]), range(2, most + 1)
    ways = {  # numbers of runs looked at, and the planned one; None: looked at each time as if it were the first
        "planned": (every, most), "extended": (range(5, most + 1), 5), "auto": (AUTO, most), "unpaid": (every, None),
    }  # fmt: skip
    false = dict.fromkeys(ways, 0)
    for _ in range(replicates):
        full, *subsets = study(random, kind, points, most, examples, arms)
        # Whether anything passes is settled by the largest fraction of each arm.
        found = {n: [compare(one[:n], full[:n], MARGIN) for one in subsets] for n in every}
        for way, (runs, planned) in ways.items():
            false[way] += any(_passes(found[n], runs[: runs.index(n)] if planned else (), planned) for n in runs)
    return {way: count / replicates for way, count in false.items()}


def _passes(found: list[Comparison], looked: Sequence[int], planned: int | None) -> bool:
    """Whether `decide` names anything: it begins so, and goes on only from there."""
    level = looks(looked, found[0].runs, planned).level(ALPHA / len(found))
    return any(one.verdict_at(level) == NOT_WORSE for one in found)


def chosen_gain(kind: str, runs: int, examples: int, arms: int, replicates: int) -> tuple[float, float, float]:
    """Of arms that are all equal: mean lead of the best over random in points, as it looks and as re-estimated, and how
    often a score is called worth having."""
    random, lead, again, worth = np.random.default_rng([KINDS.index(kind), runs, examples, arms]), 0.0, 0.0, 0
    for _ in range(replicates):
        full, *subsets = study(random, kind, SHIFTS[1], runs, examples, 2 * (arms + 1))
        names = [*(f"arm {i}" for i in range(arms)), "random"]
        cells = dict(zip([(name, fraction) for fraction in FRACTIONS[:2] for name in names], subsets))
        best = max(subsets[:arms], key=np.mean)
        lead += float(best.mean() - subsets[arms].mean()) / replicates
        again += regained(subsets[:arms], subsets[arms]) / replicates
        worth += decide({(FULL, 1.0): full, **cells}, 0.2).worth
    return 100 * lead, 100 * again, worth / replicates


def coverages(quick: bool) -> Iterator[str]:
    """Lines of Markdown, as all tables."""
    yield "## Coverage of 95 % intervals, %"
    yield ""
    yield f"| runs' shifts | points | test examples | replicates | {' | '.join(f'{n} runs' for n in RUNS)} |"
    yield "|---|--:|--:|--:|" + "--:|" * len(RUNS)
    for kind, points, (examples, count) in _cases(KINDS, SHIFTS, SIZES.items()):
        count = count // 20 if quick else count
        found = [coverage(kind, points, runs, examples, count) for runs in RUNS]
        yield f"| {kind} | {points} | {examples:,} | {count:,} | {' | '.join(f'{100 * x:.1f}' for x in found)} |"


def headlines(quick: bool) -> Iterator[str]:
    yield "## False headlines, %: `decide` / intervals over runs alone, uncorrected (the rule before)"
    yield ""
    counts = (2, 5, 10, 30)
    yield f"| runs' shifts | points | test examples | arms | replicates | {' | '.join(f'{n} runs' for n in counts)} |"
    yield "|---|--:|--:|--:|--:|" + "--:|" * len(counts)
    for kind, points, examples, arms in _cases(KINDS, SHIFTS[1:2], (359, 1000), (4, 11)):
        count = 20 if quick else 1000 if arms == 4 else 400
        found = [false_headlines(kind, points, runs, examples, arms, count) for runs in counts]
        cells = " | ".join(f"{100 * new:.1f} / {100 * old:.1f}" for new, old in found)
        yield f"| {kind} | {points} | {examples:,} | {arms} | {count:,} | {cells} |"


def rare(quick: bool) -> Iterator[str]:
    yield "## False headlines, %, where few test examples decide"
    yield ""
    yield "Every run of a subset loses the same examples, on average so many; besides, every run errs by chance."
    yield ""
    yield f"| lost | by chance, % | test examples | arms | replicates | {' | '.join(f'{n} runs' for n in RUNS)} |"
    yield "|--:|--:|--:|--:|--:|" + "--:|" * len(RUNS)
    for examples, arms, lost, noise in _cases((359, 1000), (1, 4, 11), (4, 6.5, 12), (0, 0.001, 0.003, 0.03)):
        count = 100 if quick else 4000 // arms
        found = [rare_losses(lost, noise, runs, examples, arms, count) for runs in RUNS]
        cells = " | ".join(f"{100 * x:.1f}" for x in found)
        yield f"| {lost:g} | {100 * noise:g} | {examples:,} | {arms} | {count:,} | {cells} |"


def looked_again(quick: bool) -> Iterator[str]:
    yield "## False headlines, %, of whoever looks again after more runs, up to 30"
    yield ""
    yield "At any of the looks: after every run from 2 on where 30 were planned; where 5 were planned, at these and"
    yield f"after every run from then on; as `eval_runs=auto` at {', '.join(map(str, AUTO))}; after every run, unpaid."
    yield ""
    yield "| runs' shifts | points | test examples | arms | replicates | 30 planned | 5 planned | auto | unpaid |"
    yield "|---|--:|--:|--:|--:|--:|--:|--:|--:|"
    own = [("normal", 0.0, 1000, 4), ("normal", 0.3, 1000, 4), ("normal", 0.3, 10_000, 4)]
    for kind, points, examples, arms in [*_cases(KINDS, SHIFTS[1:2], (359, 1000), (4, 11)), *own]:
        count = 20 if quick else 400 if arms == 4 else 160
        found = looking_again(kind, points, examples, arms, count)
        cells = " | ".join(f"{100 * x:.1f}" for x in found.values())
        yield f"| {kind} | {points} | {examples:,} | {arms} | {count:,} | {cells} |"
    yield ""
    yield "Of 400 replicates, a rate near 5 % has a standard error of 1.1 points. The same where runs alone vary,"
    yield "normally, which is the hardest: t statistics of every arm against full data."
    yield ""
    yield "| arms | replicates | 30 planned | 5 planned | auto |"
    yield "|--:|--:|--:|--:|--:|"
    for arms, count in ((1, 100_000), (4, 60_000), (11, 25_000)):
        count = 1000 if quick else count
        cells = " | ".join(f"{100 * x:.1f}" for x in of_runs_alone(arms, count))
        yield f"| {arms} | {count:,} | {cells} |"


def of_runs_alone(arms: int, replicates: int, most: int = 30) -> Iterator[float]:
    """How often any arm passes at any look, by way of looking, where a difference is that of two normal runs."""
    random, n = np.random.default_rng(arms), np.arange(2, most + 1)
    runs = random.standard_normal((replicates, 1 + arms, most))
    differences = runs[:, 1:] - runs[:, :1]
    sums, squares = (x.cumsum(-1)[..., 1:] for x in (differences, differences**2))
    found = sums / np.sqrt((squares - sums**2 / n) / (n - 1) * n)
    for at, planned in ((range(2, most + 1), most), (range(5, most + 1), 5), (AUTO, most)):
        levels = {n: looks(at[: at.index(n)], n, planned).level(ALPHA / arms) for n in at}
        bounds = np.array([stats.t.isf(levels.get(n, 0.0), n - 1) for n in range(2, most + 1)])
        yield float((found > bounds).any((1, 2)).mean())


def gains(quick: bool) -> Iterator[str]:
    yield "## The gain of the best of several equal arms over random, points"
    yield ""
    yield "As it looks, and re-estimated on runs and test examples it was not chosen on (true: 0); and how often, in %,"
    yield "a score is falsely called worth having."
    yield ""
    yield "| runs' shifts | runs | test examples | arms | replicates | as it looks | re-estimated | falsely worth |"
    yield "|---|--:|--:|--:|--:|--:|--:|--:|"
    for kind, runs, examples, arms in _cases(KINDS, (1, 2, 5), (359,), (3, 10)):
        count = 20 if quick else 1000
        lead, again, worth = chosen_gain(kind, runs, examples, arms, count)
        told = f"{lead:+.3f} | {again:+.3f} | {100 * worth:.1f}"
        yield f"| {kind} | {runs} | {examples:,} | {arms} | {count:,} | {told} |"


TABLES = {"coverage": coverages, "headlines": headlines, "rare": rare, "looks": looked_again, "gain": gains}
HEAD = f"""# How often a decision is wrong, simulated

`python -m benchmarks.decision`

Accuracy {ACCURACY:.0%}, margin and true loss {100 * MARGIN:g} points. A shift is the standard deviation of
the accuracy of a run as a whole, in points; of two runs at equal positions half of it is shared where they
are correlated."""


def _cases(*lists: Iterable) -> Iterator[tuple]:
    cases = list(itertools.product(*lists))
    with counting(len(cases), "cases") as advance:
        for case in cases:
            yield case
            advance(1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="few replicates; nothing is written")
    parser.add_argument("--only", nargs="+", choices=TABLES, default=list(TABLES), help="these tables; others stay")
    options = parser.parse_args()
    file = Path(__file__).parent / "results" / "decision.md"
    parts = [HEAD, *file.read_text().split("\n## ")[1:]]
    parts = [HEAD, *(f"## {part}".strip() for part in parts[1:]), *[""] * len(TABLES)][: len(TABLES) + 1]
    for position, (name, table) in enumerate(TABLES.items(), 1):
        if name in options.only:
            lines = []
            for line in table(options.quick):
                print(line, flush=True)
                lines.append(line)
            parts[position] = "\n".join(lines)
    if not options.quick:
        file.write_text("\n\n".join(filter(None, parts)) + "\n")


if __name__ == "__main__":
    main()
