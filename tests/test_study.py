"""The study's table: means, spreads and paired differences."""

from __future__ import annotations

import math

import numpy as np
import pytest

from datadiet.study import Cell, as_text, table

CELLS = [
    Cell("full data", 100, np.array([0.9, 0.8, 1.0])),
    Cell("l2_error", 50, np.array([0.8, 0.9, 0.7])),
    Cell("random", 50, np.array([0.5, 0.6, 0.7])),
    Cell("l2_error", 30, np.array([0.4])),
]


def test_means_spreads_and_paired_differences():
    full, scored, random, lonely = table(CELLS)
    assert scored.fraction == 0.5
    assert scored.mean == pytest.approx(0.8)
    assert scored.std == pytest.approx(0.1)
    assert scored.minus_random == pytest.approx(0.2)
    assert scored.minus_full == pytest.approx(-0.1)
    assert random.minus_full == pytest.approx(-0.3)
    assert math.isnan(random.minus_random)
    assert math.isnan(full.minus_full)
    assert (lonely.n, math.isnan(lonely.std), math.isnan(lonely.minus_random)) == (1, True, True)


def test_the_printed_table_is_in_per_cent():
    lines = as_text(table(CELLS)).splitlines()
    assert lines[2].split() == ["l2_error", "50", "50%", "80.00", "±", "10.00", "3", "+20.00", "-10.00"]
    assert len({len(line.rstrip()) for line in lines[1:3]}) == 2
