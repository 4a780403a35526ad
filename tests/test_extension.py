"""Whatever is put into a registry while the program runs works through the command line, with options of its own."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import NamedTuple

import click
import jax
import jax.numpy as jnp
import mlflow
import numpy as np
import pytest
import studies
from click.testing import CliRunner
from conftest import PROJECT, QUICK, call, datadiet
from matplotlib.figure import Figure

from datadiet import config as options
from datadiet.config import FIELDS
from datadiet.data.dataset import Splits
from datadiet.data.registry import DATASETS, PREFIXES, Source, load_dataset
from datadiet.errors import UserError
from datadiet.models.networks import MLP
from datadiet.models.registry import MODELS, Model
from datadiet.option import Parameters, option
from datadiet.plugins import VARIABLE, load_plugins
from datadiet.registries import ENTRY_POINTS, EntryPoint
from datadiet.report.decision import Decision
from datadiet.report.pictures import FIGURES, Drawn
from datadiet.scores.logits import LOGIT_SCORES
from datadiet.scores.registry import FEATURE_SCORES, NETWORK_SCORES
from datadiet.scores.trajectory import TRAJECTORIES, Batch, Shape, Trajectory
from datadiet.selectors.coresets import Pool
from datadiet.selectors.selection import SELECTORS, Selector
from datadiet.storage.runs import open_run
from datadiet.study.engine import Note
from datadiet.study.engines import ENGINES, EngineEntry
from datadiet.study.local_engine import Here
from datadiet.study.spec import Job
from entrypoints.__main__ import main

SHORT = QUICK | {"num_steps": 4, "save_steps": 4}


def read(path: Path) -> dict:
    return json.loads(path.read_text())


def params(folder: Path, name: str) -> dict[str, str]:
    """What MLflow has of the run of this name."""
    mlflow.set_tracking_uri(f"sqlite:///{folder}/mlflow.db")
    (run,) = (run for run in mlflow.search_runs(search_all_experiments=True, output_format="list")
              if run.info.run_name == name)  # fmt: skip
    return run.data.params


def help_of(command: str) -> str:
    """What --help-all says, in one line."""
    done = CliRunner().invoke(main, [command, "--help-all"])
    assert done.exit_code == 0, done.output
    return " ".join(done.output.split())


# --- scores of a checkpoint -------------------------------------------------------------------


def test_a_logit_score_is_one_function_and_one_line(tmp_path, monkeypatch):
    monkeypatch.setitem(LOGIT_SCORES, "mine", lambda logits, labels: logits[:, 0] * 0 + labels)
    datadiet("full_data", tmp_path, **SHORT)
    assert "mine" in help_of("mean_score")
    datadiet("score", tmp_path, type="mine", step=4)
    values = np.load(tmp_path / "exps/full_data/run_0/mine_scores/ckpt_4.npy")
    assert set(values) == set(range(10))
    monkeypatch.setitem(LOGIT_SCORES, "mine", lambda logits, labels: logits[:, 0] * 0 - labels)
    datadiet("score", tmp_path, type="mine", step=4, overwrite="true")
    np.testing.assert_array_equal(np.load(tmp_path / "exps/full_data/run_0/mine_scores/ckpt_4.npy"), -values)
    datadiet("mean_score", tmp_path, type="mine", step=4, n_runs=1)
    datadiet("keep_max", tmp_path, size=20, score_type="mine", score_step=4, **SHORT)
    assert open_run(tmp_path / "exps/keep_max/size_20/run_0").summary.kept_per_class[0] == 20


@pytest.mark.parametrize("registry", [NETWORK_SCORES, FEATURE_SCORES], ids=["network", "features"])
def test_other_scores_of_a_checkpoint_too(tmp_path, monkeypatch, registry):
    functions = [
        lambda network, variables, images, labels: jnp.full(len(images), 2.0),
        lambda features, labels: np.full(len(features), 2.0, np.float32),
    ]
    monkeypatch.setitem(registry, "mine", functions[registry is FEATURE_SCORES])
    datadiet("full_data", tmp_path, **SHORT)
    datadiet("score", tmp_path, type="mine", step=4)
    assert set(np.load(tmp_path / "exps/full_data/run_0/mine_scores/ckpt_4.npy")) == {2.0}
    assert "mine" in help_of("score")
    monkeypatch.delitem(registry, "mine")
    assert "mine" not in help_of("score")
    assert "type='mine'" in datadiet("score", tmp_path, 2, type="mine", step=4).stderr


# --- scores gathered while training -----------------------------------------------------------


class Faded(NamedTuple):
    """A running mean of p_y that fades."""

    presentations: jax.Array
    mean: jax.Array


def start_faded(shape: Shape, given: Parameters) -> Faded:
    return Faded(jnp.zeros(shape.examples, jnp.int32), jnp.zeros(shape.examples, jnp.float32))


def update_faded(stats: Faded, batch: Batch, given: Parameters) -> Faded:
    kept = 0.5 ** (1 / given.half_life)
    return Faded(stats.presentations + 1, kept * stats.mean + (1 - kept) * batch.true_probability)


def faded_values(stats: Faded, member: np.ndarray) -> np.ndarray:
    return np.where(member, np.asarray(stats.mean), np.nan).astype(np.float32)


@pytest.fixture
def fading(monkeypatch) -> None:
    own = {"half_life": option(2.0, "Presentations after which half is forgotten.", above=0)}
    monkeypatch.setitem(TRAJECTORIES, "faded", Trajectory(start_faded, update_faded, faded_values, options=own))


def test_a_training_score_has_an_option_of_its_own(tmp_path, fading):
    shown = help_of("full_data")
    assert "--half_life FLOAT Presentations after which half is forgotten. [default: 2.0; above 0]" in shown
    found = {}
    for exp, more in (("a", {}), ("b", {"half_life": 8})):
        datadiet("full_data", tmp_path, exp=exp, trajectory="faded", **more, **SHORT)
        found[exp] = np.load(tmp_path / f"exps/{exp}/run_0/faded_scores/ckpt_4.npy")
    presented = found["a"] > 0
    np.testing.assert_allclose(found["b"][presented] / found["a"][presented], (1 - 0.5**0.125) / (1 - 0.5**0.5), 1e-3)
    stored = open_run(tmp_path / "exps/b/run_0")
    assert stored.arguments.as_json()["half_life"] == options.value_of(stored.config, "half_life") == 8
    assert read(tmp_path / "exps/a/run_0/args.json")["half_life"] == 2.0
    assert params(tmp_path, "b/run_0")["cfg.half_life"] == "8.0"
    again = {"exp": "b", "trajectory": "faded", "resume": "true", **SHORT}
    assert "half_life: 8.0 there, 2.0 asked for" in datadiet("full_data", tmp_path, 2, **again).stderr
    datadiet("full_data", tmp_path, half_life=8, **again)
    alone = datadiet("full_data", tmp_path, 2, exp="c", half_life=8, **SHORT)
    assert "half_life=8.0 is used by trajectory=faded only" in alone.stderr
    alone = datadiet("full_data", tmp_path, 2, exp="c", trajectory="faded", half_life=0, **SHORT)
    assert "half_life=0.0: expected a finite number above 0" in alone.stderr
    datadiet("full_data", tmp_path, exp="plain", **SHORT)
    assert "half_life" not in read(tmp_path / "exps/plain/run_0/args.json"), "what is not chosen changes nothing"


# --- selectors --------------------------------------------------------------------------------


def keep_near(pool: Pool, size: int, parameters: Parameters) -> np.ndarray:
    """Those at the first multiples of `stride`."""
    return np.arange(size) * parameters.stride % len(pool)


@pytest.fixture
def near(monkeypatch) -> None:
    own = {"stride": option(1, "Examples from one that is kept to the next.", min=1)}
    monkeypatch.setitem(SELECTORS, "near", Selector(keep_near, scores=False, options=own))


def test_a_selector_has_an_option_of_its_own(tmp_path, near):
    assert "near, manifest" in help_of("subset")
    for command in ("subset", "select", "study"):
        shown = help_of(command)
        assert "--stride INTEGER Examples from one that is kept to the next. [default: 1; at least 1]" in shown
    given = {"selector": "near", "size": 9, "stride": 7}
    datadiet("subset", tmp_path, **given, **SHORT)
    datadiet("select", tmp_path, dataset="digits", **given)
    run_dir = tmp_path / "exps/subset/size_9.near.stride_7/run_0"
    ids = [line.split(",")[0] for line in (run_dir / "kept.csv").read_text().split()[1:]]
    assert ids == load_dataset("digits").example_ids[np.arange(9) * 7].tolist()
    assert (run_dir / "kept.csv").read_text() == (
        tmp_path / "exps/select/size_9.near.stride_7/run_0/kept.csv"
    ).read_text()
    assert read(run_dir / "args.json")["stride"] == 7
    assert read(run_dir / "summary.json")["scored_by"] == "near (stride 7)"
    assert params(tmp_path, "subset/size_9.near.stride_7/run_0")["cfg.stride"] == "7"
    datadiet("subset", tmp_path, resume="true", **given, **SHORT)
    done = datadiet("subset", tmp_path, 2, selector="random", size=9, stride=7, **SHORT)
    assert "stride=7 is used by selector=near only" in done.stderr
    assert (
        "stride=0: expected a whole number of at least 1"
        in datadiet("subset", tmp_path, 2, **given | {"stride": 0}, **SHORT).stderr
    )
    assert "stride" in datadiet("subset", tmp_path, 2, **given | {"stride": "x"}, **SHORT).stderr


def test_a_study_compares_settings_of_an_own_option(tmp_path, near):
    given = {"selectors": "near,near:stride=5", "score_types": "l2_error", "score_runs": 1, "eval_runs": 1}
    datadiet("study", tmp_path, exp="s", fractions=0.5, workers=1, score_steps=4, **given, **SHORT)
    folders = sorted(path.name for path in (tmp_path / "exps/s/near").iterdir() if path.is_dir())
    assert folders == ["size_719.near", "size_719.near.stride_5"]
    assert read(tmp_path / "exps/s/near/size_719.near.stride_5/run_1/args.json")["stride"] == 5
    assert "stride" not in read(tmp_path / "exps/s/random/size_719/run_1/args.json")


@pytest.mark.parametrize(
    ("own", "message"),
    [
        ({"lr": option(0.5, "Another.")}, "The option lr of a registered entry is not the lr that there is"),
        ({"half_life": option(1, "Another.")}, "another entry has another option half_life"),
        ({"exp": option(0.5, "Taken.")}, "its option 'exp' needs another name"),
        ({"a-b": option(0.5, "No name.")}, "its option 'a-b' needs another name"),
    ],
)
def test_an_option_has_one_meaning(tmp_path, monkeypatch, fading, own, message):
    monkeypatch.setitem(SELECTORS, "mine", Selector(keep_near, scores=False, options=own))
    assert message in datadiet("subset", tmp_path, 2, selector="mine", size=9, **SHORT).stderr


def test_an_entry_may_use_options_that_there_are(tmp_path, monkeypatch):
    own = {"cutoff": FIELDS["cutoff"], "word": option("x", "Any word.", choices=("x", "y"))}
    monkeypatch.setitem(
        SELECTORS, "mine", Selector(lambda pool, size, given: np.arange(size), options=own, scores=False)
    )
    datadiet("select", tmp_path, dataset="digits", selector="mine", size=9, cutoff=0.25, word="y")
    assert (tmp_path / "exps/select/size_9.mine.cutoff_0.25.word_y/run_0/kept.csv").exists()
    done = datadiet("select", tmp_path, 2, dataset="digits", selector="mine", size=9, word="z")
    assert "word=z: expected one of x, y" in done.stderr


# --- models and data --------------------------------------------------------------------------


def test_a_model_is_one_class_and_one_line(tmp_path, monkeypatch):
    class Twice(MLP):
        """Another network of the same kind."""

    monkeypatch.setitem(MODELS, "mine", Model(Twice, 8, None))
    assert "vit_ti_4, mine." in help_of("full_data")
    datadiet("full_data", tmp_path, **SHORT | {"model": "mine", "width": 4})
    stored = open_run(tmp_path / "exps/full_data/run_0")
    assert type(stored.network.module) is Twice
    datadiet("score", tmp_path, step=4)
    monkeypatch.delitem(MODELS, "mine")
    assert "model='mine': expected one of" in datadiet("full_data", tmp_path, 2, **SHORT | {"model": "mine"}).stderr


def splits(count: int) -> Splits:
    random = np.random.RandomState(0)
    labels = (np.arange(count) % 3).astype(np.int32)
    images = random.randint(0, 256, (count + 9, 4, 4, 1)).astype(np.uint8)
    return Splits(images[9:], labels, images[:9], labels[:9], np.array([f"n{i}" for i in range(count)]))


def test_a_source_of_data_is_one_function_and_one_line(tmp_path, monkeypatch):
    monkeypatch.setitem(DATASETS, "mine", Source(lambda data_dir: splits(60), 3, lambda data_dir: 60))
    monkeypatch.setitem(
        PREFIXES, "made:", lambda name: Source(lambda data_dir: splits(int(name)), 3, lambda data_dir: int(name))
    )
    for command in ("full_data", "select", "prepare_data"):
        shown = help_of(command)
        assert "cinic10, mine, tfds/NAME" in shown
        assert "idx:PATH, made:PATH." in shown
    datadiet("full_data", tmp_path, **SHORT | {"dataset": "mine"})
    datadiet("full_data", tmp_path, **SHORT | {"dataset": "made:30", "run": 1})
    counts = [read(tmp_path / f"exps/full_data/run_{run}/args.json")["data"]["num_examples"] for run in (0, 1)]
    assert counts == [60, 30]
    monkeypatch.delitem(DATASETS, "mine")
    assert "dataset='mine': expected one of" in datadiet("full_data", tmp_path, 2, **SHORT | {"dataset": "mine"}).stderr


# --- engines, figures, entry points -----------------------------------------------------------


def test_an_engine_is_one_class_and_one_line(tmp_path, monkeypatch):
    done = []

    class Noting(Here):
        def start(self, job: Job, note: Note) -> None:
            done.append(job.name)
            super().start(job, note)

    monkeypatch.setitem(ENGINES, "noting", EngineEntry(lambda options, context, count: Noting(context)))
    assert "One of: local, ray, noting." in help_of("study")
    tiny = {"score_types": "l2_error", "score_runs": 1, "eval_runs": 1, "fractions": 0.5, "score_steps": 4}
    datadiet("study", tmp_path, engine="noting", **tiny, **SHORT)
    assert len(done) == 1 + 1 + 1 + 3
    assert (tmp_path / "exps/study/report.html").exists()
    refused = datadiet("study", tmp_path, 2, engine="nothing", **tiny, **SHORT)
    assert "engine=nothing: expected one of local, ray, noting." in refused.stderr


def test_a_figure_is_one_function_and_one_line(tmp_path, monkeypatch):
    def arms(decision: Decision) -> Drawn:
        figure = Figure()
        figure.subplots().bar(decision.study.arms, 1)
        return Drawn("What was compared", "Every arm once.", figure)

    monkeypatch.setitem(FIGURES, "arms", arms)
    monkeypatch.setitem(FIGURES, "nothing", lambda decision: None)
    exps = studies.write_study(tmp_path, {"keep_max l2_error": (0.001, 0.08), "random": (0.01, 0.05)})
    datadiet("report", tmp_path, exp="demo")
    assert (exps / "demo/figures/arms.png").read_bytes().startswith(b"\x89PNG")
    assert not (exps / "demo/figures/nothing.png").exists()
    assert "What was compared" in (exps / "demo/report.html").read_text()


def test_an_entry_point_is_one_function_and_one_line(tmp_path, monkeypatch):
    @click.command("count_runs")
    @click.option("--least", type=click.IntRange(min=0), default=0, help="Runs that there must be.  [default: 0]")
    def count_runs(least: int) -> None:
        """Count runs."""
        click.echo(f"at least {least}")

    monkeypatch.setitem(ENTRY_POINTS, "count_runs", EntryPoint("Count runs.", lambda: count_runs))
    assert "count_runs" in CliRunner().invoke(main, ["--help"]).output
    assert "Runs that there must be." in help_of("count_runs")
    assert datadiet("count_runs", tmp_path, least=3).stdout == "at least 3\n"


# --- plugins ----------------------------------------------------------------------------------


PLUGIN = """
import numpy as np
from datadiet.option import option
from datadiet.selectors.selection import SELECTORS, Selector

SELECTORS["every"] = Selector(
    lambda pool, size, given: np.arange(size) * given.pace, scores=False, options={"pace": option(2, "Pace.", min=1)}
)
"""


def test_a_plugin_is_imported_before_a_command_is_made(tmp_path, monkeypatch):
    (tmp_path / "mine.py").write_text(PLUGIN)
    monkeypatch.setenv(VARIABLE, f"{tmp_path}/mine.py")
    given = {"dataset": "digits", "selector": "every", "size": 9, "pace": 3}
    words = [word for name, value in given.items() for word in (f"--{name}", str(value))]
    call([sys.executable, "-m", "entrypoints", "select", *words, "--root", str(tmp_path)], PROJECT, tmp_path)
    assert (tmp_path / "exps/select/size_9.every.pace_3/run_0/kept.csv").exists()


@pytest.mark.parametrize("name", ["no.such.module", "no_such.py", "broken.py"])
def test_a_plugin_that_fails_is_named(tmp_path, monkeypatch, name):
    (tmp_path / "broken.py").write_text("1 / 0")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv(VARIABLE, name)
    with pytest.raises(UserError, match=f"{VARIABLE}={name}: cannot be imported"):
        load_plugins()
    assert f"{VARIABLE}={name}" in datadiet("full_data", tmp_path, 2, **SHORT).stderr
