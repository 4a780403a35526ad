"""Plans of the paper's figures, and what is said of them."""

from __future__ import annotations

import numpy as np
import pytest
from studies import write_study

from benchmarks import figures
from benchmarks.figures import FIGURES, OPEN, OTHER, PLANS, SAME, Claim
from benchmarks.published_scores import Found
from datadiet.option import fields_of
from datadiet.report.given import read_study
from datadiet.report.trained import TrainedStudy
from datadiet.storage.layout import ExperimentLayout
from datadiet.study.options import EngineOptions
from datadiet.study.plan import Plan
from datadiet.study.spec import StudySpec, compile_study
from entrypoints.options import make_config
from entrypoints.study import study

EXAMPLES = {"cifar10": 50_000, "cifar100": 50_000, "cinic10": 90_000}


def compiled(folder: str, name: str, root) -> StudySpec:
    command = study()
    with command.make_context("study", ["--plan", str(PLANS / folder / f"{name}.yaml")]) as ctx:
        values = {
            k: v for k, v in ctx.params.items() if k not in ("root", "overwrite", "offline", "data_on", "dry_run")
        }
        plan = Plan(**{k: values.pop(k) for k in fields_of(Plan)})
        exp = values.pop("exp")
        config = make_config({k: v for k, v in values.items() if k not in fields_of(EngineOptions)})
    assert exp == f"figures/{folder}/{name}"
    return compile_study(plan, config, exp, ExperimentLayout(root), EXAMPLES[folder])


@pytest.mark.parametrize("folder", EXAMPLES)
@pytest.mark.parametrize(("name", "cells"), [("fractions", 1 + 6 * 4), ("epochs", 1 + 2 * 6 + 2), ("window", 1 + 6),
                                             ("noise", 1 + 6)])  # fmt: skip
def test_every_plan_is_a_study_that_can_be_finished(folder, name, cells, tmp_path):
    made = compiled(folder, name, tmp_path)
    assert (len(made.cells), len(made.scored), {len(cell.jobs) for cell in made.cells}) == (cells, 10, {5})
    epoch = EXAMPLES[folder] // made.config.train_batch_size
    assert made.config.num_steps == 11 * epoch
    assert made.config.random_label_fraction == (0.1 if name == "noise" else 0)
    if name == "epochs":
        assert made.score_steps == tuple(epoch * count for count in (0, 1, 2, 4, 8, 11))
        assert [(job.type, job.step) for job in made.means].count(("input_norm", 0)) == 1
        assert [job.type for job in made.means].count("input_norm") == 1  # which no network has a part in
    if name in ("window", "noise"):
        offsets = [dict(cell.arm.options)["offset"] for cell in made.cells if cell.arm.selector == "offset"]
        left_out = [(0.6 * EXAMPLES[folder] - offset) / EXAMPLES[folder] for offset in offsets]
        assert left_out == pytest.approx([0.01, 0.05, 0.1, 0.2])


def test_a_claim_holds_where_its_whole_interval_is_on_the_published_side():
    numbers = Found(0.5, 0.1, 0.9), Found(-0.5, -0.9, -0.1), Found(0.1, -0.2, 0.4)
    assert [Claim("", one, "", 1).verdict for one in numbers] == [SAME, OTHER, OPEN]
    assert [Claim("", one, "", -1).verdict for one in numbers] == [OTHER, SAME, OPEN]
    assert {Claim("", one, "").verdict for one in numbers} == {"–"}


def test_figures_say_what_their_study_found(tmp_path):
    losses = {"keep_max l2_error": (0.001, 0.03), "keep_max grad_norm": (0.004, 0.05), "random": (0.004, 0.04)}
    exps = write_study(tmp_path, losses, noise=0.1, types=("l2_error", "grad_norm"))
    found = read_study(exps, "demo")
    assert isinstance(found, TrainedStudy)
    told = {claim.text: claim for claim in FIGURES["fractions"].claims(found)}
    better, same = (told[f"keep_max {kind} − random, 80% kept"].found for kind in ("l2_error", "grad_norm"))
    assert (better.value, same.value) == pytest.approx((0.3, 0.0), abs=0.01)
    assert better.low > 0 > same.low
    assert told["keep_max l2_error − random, 40% kept"].published == "+2.16"
    assert told["keep_max grad_norm − random, 40% kept"].verdict == OTHER  # published: +1.57; here 1 point worse
    assert told["keep_max l2_error, 40% kept, − all of the data"].found.value == pytest.approx(-3, abs=0.01)

    noise = found.noise
    assert noise is not None
    scores = {score.type: score for score in found.scores}
    for claim, score in zip(FIGURES["labels"].claims(found), found.scores, strict=True):
        higher = score.mean[noise.changed][:, None] - score.mean[~noise.changed]
        expected = (higher > 0).mean() + (higher == 0).mean() / 2 - 0.5
        assert claim.found.value == pytest.approx(expected)
    two, halves = list(FIGURES["agreement"].claims(found))[:2]
    ranks = scores["l2_error"].runs.argsort(axis=1).argsort(axis=1)
    pairs = np.corrcoef(ranks)[np.triu_indices(len(ranks), 1)]
    assert two.found == pytest.approx((pairs.mean(), pairs.min(), pairs.max()), abs=1e-3)
    assert halves.found.value > two.found.value
    assert "| – |" in figures.table("agreement", found, "the command")
