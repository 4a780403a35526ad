"""Where there is nothing to compute on, no home or no place for caches: one message, and nothing half begun."""

from __future__ import annotations

import os
import pwd
import shlex
from collections.abc import Iterator
from pathlib import Path

import jax
import pytest
from conftest import PROJECT, QUICK, call, datadiet, store_in

from datadiet import home
from datadiet.data import cache
from datadiet.data.sources.tfds_folder import root as tfds_root
from datadiet.training import device

FAST = QUICK | {"width": 8, "num_steps": 4}


@pytest.fixture
def broken(monkeypatch) -> Iterator[None]:
    """JAX finds no device."""
    monkeypatch.setenv("JAX_PLATFORMS", "cuda")
    monkeypatch.setattr(device.jnp, "zeros", no_device)
    device.look.cache_clear()
    yield
    device.look.cache_clear()


def no_device(*_) -> None:
    device.logging.getLogger("jax._src.xla_bridge").error("a page of this", exc_info=True)
    raise RuntimeError(
        "Unable to initialize backend 'cuda': CUDA_ERROR_NO_DEVICE (set JAX_PLATFORMS='' to choose)\nmore"
    )


@pytest.fixture(scope="module")
def scored(tmp_path_factory) -> Path:
    """A folder with a run."""
    folder = tmp_path_factory.mktemp("scored")
    store_in(folder)
    datadiet("full_data", folder, offline="true", **FAST)
    return folder


SUBSET = {"selector": "k_center", "size": 10, "features_step": 4}
STUDY = QUICK | {"score_runs": 1, "eval_runs": 1, "fractions": 0.5}


@pytest.mark.parametrize(
    ("command", "given"),
    [
        ("full_data", FAST | {"run": 1}),
        ("full_data", FAST | {"runs": "1,2,3"}),
        ("random_subset", FAST | {"size": 10}),
        ("subset", FAST | SUBSET),
        ("select", {"dataset": "digits"} | SUBSET),
        ("score", {"step": 4}),
        ("main", {"num_steps": 44}),
        ("study", STUDY | {"workers": 1}),
        ("study", STUDY | {"workers": 2}),
    ],
)
def test_what_cannot_be_computed_is_refused_before_anything_is_written(scored, capfd, command, given, broken):
    before = sorted(scored.rglob("*"))
    done = datadiet(command, scored, expect=2, **given)
    told, _, repair = done.stderr.partition(" JAX_PLATFORMS=cpu ")
    assert told == (
        "Error: JAX has nothing to compute on (Unable to initialize backend 'cuda': CUDA_ERROR_NO_DEVICE). Asked for: "
        f"JAX_PLATFORMS=cuda. There is: {device.there()}. A GPU needs its driver and pip install -U "
        "'jax[cuda13]~=0.10.2'. JAX_PLATFORMS= takes whatever there is, and this the CPU:"
    )
    program, again, *words = shlex.split(repair)
    assert (program, again) == ("datadiet", command)
    assert dict(zip(words[::2], words[1::2], strict=True)) == {f"--{name}": str(given[name]) for name in given}
    assert (sorted(scored.rglob("*")), capfd.readouterr().err) == (before, "")


def test_what_computes_nothing_needs_no_device(scored, broken):
    datadiet("full_data", scored, offline="true", resume="true", **FAST)
    datadiet("mean_score", scored, offline="true", n_runs=1, type="forget", step=4)


def test_what_jax_says_of_a_device_that_it_passes_over_is_one_line(monkeypatch):
    def passed_over(*_):
        device.logging.getLogger("jax._src.xla_bridge").warning("CUDA backend failed:\nfor a reason.")
        return jax.numpy.float32(0)

    monkeypatch.setattr(device.jnp, "zeros", passed_over)
    device.look.cache_clear()
    told: list[str] = []
    for _ in range(2):
        device.check_device(told.append)
    assert told == ["Warning: JAX computes on cpu: CUDA backend failed:"]
    device.look.cache_clear()


def test_a_process_with_a_platform_that_there_is_not_says_so_in_one_line(tmp_path, monkeypatch):
    monkeypatch.setenv("JAX_PLATFORMS", "nonsense")
    words = [word for name, value in FAST.items() for word in (f"--{name}", str(value))]
    done = call(["python", "-m", "entrypoints", "full_data", *words, "--root", str(tmp_path)], PROJECT, tmp_path, 2)
    assert done.stderr.startswith("Error: JAX has nothing to compute on (Unable to initialize backend 'nonsense': ")
    assert done.stderr.count("\n") == 1
    assert list(tmp_path.iterdir()) == [tmp_path / "mlflow.db"]


def test_a_device_is_looked_at_apart_where_workers_are_to_have_it():
    assert device.look_apart() == ()


# --- no home ------------------------------------------------------------------------------------


@pytest.fixture
def bare(monkeypatch, tmp_path) -> dict[str, str]:
    """An environment without what tests set, in an empty folder."""
    names = (home.CACHE, home.PROGRAMS, home.DRAWING, home.STAND_IN, "HOME", "USER")
    environ = {name: value for name, value in os.environ.items() if name not in names}
    monkeypatch.setattr(os, "environ", environ)
    monkeypatch.chdir(tmp_path)
    return environ


def nobody(uid: int) -> None:
    raise KeyError(f"getpwuid(): uid not found: {uid}")


def settled() -> list[str]:
    told: list[str] = []
    home.settle(told.append)
    return told


def test_without_a_home_there_is_a_temporary_one_and_data_lies_here(bare, tmp_path, monkeypatch):
    monkeypatch.setattr(pwd, "getpwuid", nobody)
    (told,) = settled()
    assert told.startswith("Warning: there is no home directory; what is cached is kept until this ends. DATADIET_")
    assert Path.home().stat().st_mode & 0o777 == cache.root().stat().st_mode & 0o777 == 0o700
    assert bare["USER"] == str(os.getuid())
    assert home.home() is None
    assert tfds_root(None) == tmp_path / "tensorflow_datasets", "not where it would vanish"
    assert settled() == [], "processes that are begun have it from this one"


@pytest.mark.parametrize("place", ["/dev/null", "/proc/nothing"])
def test_a_home_that_cannot_be_written_is_told_once(bare, place):
    bare["HOME"] = place
    (told,) = settled()
    assert told.startswith(f"Warning: {place}/.cache/datadiet cannot be written; ")
    assert all(os.access(bare[name], os.W_OK) for name in (home.CACHE, home.PROGRAMS))
    assert Path(bare[home.DRAWING]).parent == cache.root()
    assert settled() == []


def test_a_home_is_used_as_it_is(bare, tmp_path):
    bare["HOME"] = str(tmp_path)
    (tmp_path / ".cache/datadiet/xla").mkdir(parents=True, mode=0o777)
    assert settled() == []
    assert bare[home.PROGRAMS] == str(tmp_path / ".cache/datadiet/xla")
    assert Path(bare[home.PROGRAMS]).stat().st_mode & 0o777 == 0o700
    assert home.CACHE not in bare
    assert home.DRAWING not in bare


def test_a_cache_that_was_named_and_cannot_be_written_is_told(bare, tmp_path):
    bare |= {"HOME": str(tmp_path), home.CACHE: str(tmp_path / "here"), home.PROGRAMS: "/dev/null/there"}
    (told,) = settled()
    assert "/dev/null/there cannot be written" in told
    assert bare[home.CACHE] == str(tmp_path / "here")


def test_the_library_alone_needs_no_home(bare, monkeypatch):
    monkeypatch.setattr(pwd, "getpwuid", nobody)
    assert cache.root() == cache.root()
    assert cache.root().is_dir()


def test_a_user_whom_the_system_does_not_know_can_train(tmp_path):
    """As in a container that runs under any number: libraries are imported that look for a home."""
    code = f"""
import pwd, runpy, sys
def nobody(uid): raise KeyError(uid)
pwd.getpwuid = nobody
sys.argv = {["entrypoints", "full_data", *(w for n, v in FAST.items() for w in (f"--{n}", str(v)))]!r}
runpy.run_module("entrypoints", run_name="__main__", alter_sys=True)
"""
    plain = ["env", "-u", "HOME", "-u", "USER", "-u", home.CACHE, "-u", home.PROGRAMS]
    done = call([*plain, "python", "-c", code], tmp_path, tmp_path)
    assert [line[:38] for line in done.stderr.splitlines()] == ["Warning: there is no home directory; w"]
    assert (tmp_path / "exps/full_data/run_0/summary.json").exists()
