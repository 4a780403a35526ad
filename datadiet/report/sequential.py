"""Looking again after more runs, paid for: how much of the chance of error each look may spend.

With variance A of the test set and B of a run, a difference after n runs has the variance A + B / n, and its covariance
with that after m > n runs is that after m: looks are those of a Brownian motion at times 1 / (A + B / n). The more A
weighs, the more alike the looks are, so levels that are right for A = 0, times n, are safe for any A (Slepian 1962)
and need no estimate of either.

The levels spend a chance of error by the number of runs: as Lan and DeMets 1983 do in the manner of Pocock 1977 up to
the planned number, where all of it is spent, and a second time as much over all looks thereafter, of which there may be
any number, none at a higher level than one alone would have:

    spent(n) = ln(1 + (e - 1) min(1, n / planned)) + max(0, 1 - planned / n),   in parts of the chance of one look.

Pocock's manner, because where the test set is the limit the first runs tell nearly all. How many runs are looked at
next must not depend on the difference seen. Levels are of p-values of any test, here Satterthwaite's t (Jennison and
Turnbull 2000, chapters 3.8 and 7.2); several arms share the chance first and spend their shares alike (Maurer and
Bretz 2013).

Looks by t are less alike than those of Brownian motion, because few runs tell their variance badly. Where it is runs
alone that vary, looks at every run from the second on spend up to 1.2 times what the levels are for (simulated, 100,000
replicates: 3.0 % for 2.5 %). So looks spend but SHARE of their part, except a first one as planned, which is exact.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from scipy import special

from datadiet.errors import UserError

SHARE = 1 / 1.2
NODES = 200  # of the integral over what a look before has left
ROOT_OF_TWO_PI = math.sqrt(2 * math.pi)
FAR = 8.0  # standard deviations at which a normal density ends


def spent(runs: int, planned: int) -> float:
    """How much is spent when there are `runs`, in parts of the chance of error of one look: 0 to 2, at `planned` 1."""
    return math.log1p((math.e - 1) * min(1.0, runs / planned)) + max(0.0, 1 - planned / runs)


@dataclass(frozen=True)
class Looks:
    """Numbers of runs at which a study was looked at, rising; the last is the present look."""

    runs: tuple[int, ...]
    planned: int

    def level(self, alpha: float) -> float:
        """The level of a test at the present look that with all looks before errs with a chance of at most `alpha` up
        to the planned number of runs, of 2 `alpha` for ever."""
        return _levels(self.runs, self.planned, alpha)[-1]

    @property
    def spent(self) -> float:
        """Chance of error of the looks so far, in parts of that of one look."""
        return spent(self.runs[-1], self.planned)


def looks(earlier: Sequence[int], runs: int, planned: int | None = None) -> Looks:
    """What precedes a look at `runs`.

    Args:
        earlier: Numbers of runs looked at before, in any order; a look that is among them is that one again.
        planned: Number of runs that was planned; None: that of the first look.
    Raises:
        UserError: there are numbers below 1, or it is a first look at fewer runs than have been seen.
    """
    known = sorted({int(one) for one in earlier} | {runs})
    if known[0] < 1 or (planned is not None and planned < 1):
        raise UserError(f"looks={list(earlier)}, planned={planned}: expected numbers of runs of 1 or more.")
    if known[-1] > runs and runs not in earlier:
        raise UserError(
            f"{runs} runs, of a study that was looked at with {known[-1]}: whoever looks at fewer afterwards chooses "
            f"the answer. Expected {known[-1]} or more, or the number of a look before."
        )
    before = tuple(one for one in known if one <= runs)
    return Looks(before, planned or before[0])


@lru_cache(maxsize=4096)
def _levels(runs: tuple[int, ...], planned: int, alpha: float) -> tuple[float, ...]:
    """One-sided level of every look.

    What is left of the density of the normal statistic, where no look before stopped, is carried from look to look by
    Gauss-Legendre quadrature. Source: Armitage, McPherson and Rowe 1969.
    """
    nodes, weights = special.roots_legendre(NODES)
    at, mass = np.zeros(1), np.ones(1)  # of the motion at the look before, where that did not stop; its probability
    levels, paid = [], 0.0
    for then, now in zip((0, *runs), runs):
        step, root = math.sqrt(now - then), math.sqrt(now)
        exact = not then and now >= planned
        paid, more = spent(now, planned), alpha * (spent(now, planned) - paid) * (1.0 if exact else SHARE)
        bound = max(_bound(at / step, mass, root / step, more), -float(special.ndtri(alpha)))  # never above one look
        levels.append(float(special.ndtr(-bound)))
        half = (bound + FAR) / 2 * root
        to = half * (nodes + 1) - FAR * root
        mass = half * weights * (np.exp(-(((to[:, None] - at) / step) ** 2) / 2) @ mass) / (step * ROOT_OF_TWO_PI)
        at = to
    return tuple(levels)


def _bound(at: np.ndarray, mass: np.ndarray, scale: float, chance: float) -> float:
    """Above which a standard normal statistic lies with a chance, having moved on from `at` by 1."""

    from scipy import optimize  # takes long to import

    def more(z: float) -> float:
        return float(mass @ special.ndtr(at - scale * z)) - chance

    return float(optimize.root_scalar(more, bracket=(-FAR, 2 * FAR), method="brentq").root)
