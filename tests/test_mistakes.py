"""Ten typical mistakes: each is one message, whose command works when it is pasted."""

from __future__ import annotations

import contextlib
import re
import shlex
import shutil
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from conftest import QUICK, store_in

from datadiet.training import device
from entrypoints.__main__ import COMMANDS, main

TRAINED = " ".join(f"--{name} {value}" for name, value in (QUICK | {"width": 8, "num_steps": 22}).items())


def typed(line: str, folder: Path) -> Result:
    """A command line, in this process."""
    import mlflow

    program, *words = shlex.split(line)
    assert program == "datadiet", line
    mlflow.set_tracking_uri(store_in(folder))
    with contextlib.chdir(folder):
        done = CliRunner().invoke(main, words, prog_name="datadiet")
    if isinstance(done.exception, Exception):
        raise done.exception
    return done


def refused(line: str, folder: Path) -> list[str]:
    """The commands in the one message that a command ends with."""
    done = typed(line, folder)
    assert done.exit_code == 2, done.output
    assert done.stderr.count("Error") == 1
    assert "Traceback" not in done.output
    assert "\n\n" not in done.stderr.strip()
    return re.findall(rf"\bdatadiet (?:{'|'.join(COMMANDS)})\b[^\n`]*", done.stderr)


def pasted(line: str, folder: Path) -> str:
    """What a command says that works."""
    done = typed(line, folder)
    assert done.exit_code == 0, f"{line}\n{done.output}"
    return done.output


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    """A folder with a run of seed 0."""
    folder = tmp_path_factory.mktemp("made")
    pasted(f"datadiet full_data {TRAINED}", folder)
    return folder


@pytest.fixture
def here(made, tmp_path) -> Path:
    """A copy of it, to work in."""
    shutil.copytree(made, tmp_path, dirs_exist_ok=True)
    return tmp_path


def test_the_name_of_a_dataset(tmp_path):
    (line,) = refused(f"datadiet full_data {TRAINED}".replace("digits", "digit"), tmp_path)
    assert "test accuracy" in pasted(line, tmp_path)


def test_a_size_that_is_too_large(tmp_path):
    (line,) = refused(f"datadiet random_subset --size 60000 {TRAINED}", tmp_path)
    assert "size_719/" in pasted(line, tmp_path)


@pytest.mark.parametrize("size", ["0.5", "50%"])
def test_a_fraction_is_a_size(tmp_path, size):
    assert "size_719/" in pasted(f"datadiet random_subset --size {size} {TRAINED}", tmp_path)


def test_forgotten_scores(here):
    lines = refused(f"datadiet keep_max --size 50% {TRAINED} --score_step 22", here)
    assert len(lines) > 1
    shorter = refused("datadiet mean_score --n_runs 1 --step 22", here)
    for line in (*shorter, "datadiet mean_score --n_runs 1 --step 22"):
        pasted(line, here)
    assert "size_719/" in pasted(f"datadiet keep_max --size 50% {TRAINED} --score_step 22", here)


def test_a_step_without_a_checkpoint(here):
    (line,) = refused("datadiet score --step 23", here)
    assert "at step 22" in pasted(line, here)


def test_a_run_that_there_is_not(here):
    (line,) = refused("datadiet score --run 1 --step 22", here)
    pasted(line, here)
    pasted("datadiet score --run 1 --step 22", here)


def test_no_gpu(tmp_path, monkeypatch):
    """JAX is asked for one once in a process: what it says there is told by hand."""
    device.look.cache_clear()
    monkeypatch.setenv("JAX_PLATFORMS", "cuda")
    with monkeypatch.context() as patch:
        patch.setattr(device.jax, "block_until_ready", lambda value: (_ for _ in ()).throw(RuntimeError("no cuda")))
        done = typed(f"datadiet full_data {TRAINED}", tmp_path)
    assert done.exit_code == 2
    told = re.search(r"JAX_PLATFORMS=cpu (datadiet full_data .*)$", done.stderr.strip())
    assert told, done.stderr
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    assert "test accuracy" in pasted(told[1], tmp_path)


def test_another_folder(here):
    (here / "notes").mkdir()
    (line,) = refused("datadiet score --step 22", here / "notes")
    assert "at step 22" in pasted(line, here / "notes")


def test_another_learning_rate_at_resume(here):
    (line,) = refused(f"datadiet full_data {TRAINED} --lr 0.05 --resume true", here)
    assert "finished before" in pasted(line, here)


def test_a_misspelt_option(tmp_path):
    (line,) = refused(f"datadiet full_data {TRAINED} --lrr 0.05 --offline=true", tmp_path)
    assert "test accuracy" in pasted(line, tmp_path)


def test_a_misspelt_command(tmp_path):
    (line,) = refused(f"datadiet ful_data {TRAINED}", tmp_path)
    assert "test accuracy" in pasted(line, tmp_path)


def test_datadiet_alone_says_what_to_do_first(tmp_path):
    done = typed("datadiet", tmp_path)
    assert done.exit_code == 0
    lines = [line.strip() for line in done.output.splitlines() if line.startswith("  ")]
    assert lines[0] == "datadiet main"
    for line in lines:
        assert typed(line if "--help" in line else f"{line} --help", tmp_path).exit_code == 0
