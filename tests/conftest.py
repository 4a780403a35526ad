"""Fixtures: golden networks, a small trained run, and `mlflow run` as a user types it."""

from __future__ import annotations

import contextlib
import functools
import os
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from importlib.metadata import version
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from click.testing import CliRunner, Result

PROJECT = Path(__file__).resolve().parents[1]
GOLDEN = Path(__file__).parent / "golden"
PATIENCE = 1800  # seconds for what takes a few: it is only to end, however slow the machine is
QUICK = {"dataset": "digits", "model": "mlp", "width": 32, "num_steps": 44, "augment": "false"}

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ["DATADIET_CACHE"] = tempfile.mkdtemp(prefix="datadiet-cache-")
# Most programs run once or twice on little data, so they are compiled in a hurry, here and in all processes begun
# here: almost unoptimised, and by XLA's older emitters, which take half the time. `as_users_have` is for the others.
os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "true")
EMITTERS = {"xla_cpu_use_fusion_emitters": True} if version("jaxlib").startswith("0.10.") else {}  # XLA's newer ones
if EMITTERS:  # where there are older ones; XLA ends a process that names what it does not know
    os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} --xla_cpu_use_fusion_emitters=false"
# Compiled programs, shared by all processes of this session and by none before it.
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", f"{os.environ['DATADIET_CACHE']}/xla")
os.environ.setdefault("JAX_PERSISTENT_COMPILATION_CACHE_MIN_COMPILE_TIME_SECS", "0.3")
sys.path.insert(0, str(PROJECT))  # for `entrypoints`, which is not installed under that name


LONGEST = ("study", "pipeline", "models", "resume", "per_example", "faults", "fast", "reading")  # begun first


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Long files are begun first, so that no process is left alone with one at the end."""
    places = {f"test_{name}.py": place for place, name in enumerate(LONGEST)}
    items.sort(key=lambda item: places.get(item.path.name, len(places)))


def nested(arrays: dict[str, np.ndarray], top: str) -> dict:
    """`top/a/b` keys of a golden file as nested dictionaries."""
    tree: dict = {}
    for key, value in arrays.items():
        first, *path = key.split("/")
        if first == top:
            node = tree
            for part in path[:-1]:
                node = node.setdefault(part, {})
            node[path[-1]] = value
    return tree


class Golden:
    """A network of the original with its scores."""

    def __init__(self, name: str, model: str, width: int) -> None:
        from datadiet.models.registry import build_model

        self.arrays = dict(np.load(GOLDEN / f"{name}.npz"))
        self.network = build_model(model, num_classes=10, image_shape=(32, 32, 3), width=width)
        self.variables = {top: nested(self.arrays, top) for top in ("params", "batch_stats")}
        self.images, self.labels = self.arrays["images"], self.arrays["labels"]


GOLDENS = [("simple_cnn", "simple_cnn_0", 32), ("resnet18_w8", "resnet18_lowres", 8)]  # file, model, width


@pytest.fixture(scope="module", params=GOLDENS)
def golden(request) -> Golden:
    return Golden(*request.param)


def drawn_variables(network, seed: int = 0) -> dict:
    """Variables without zeros: kernels as at the start, the others as training would leave them. By NumPy, because
    XLA takes seconds to compile how the values of each shape are drawn."""
    import jax

    random = np.random.RandomState(seed)

    def draw(path, leaf) -> np.ndarray:
        noise = random.normal(size=leaf.shape)
        if path[-1].key == "kernel":
            noise /= np.sqrt(np.prod(leaf.shape[:-1]))
        else:
            noise = (path[-1].key not in ("bias", "mean")) + 0.05 * noise
        return noise.astype(np.float32)

    return jax.tree_util.tree_map_with_path(draw, jax.eval_shape(network.init, jax.random.key(0)))


def count_examples(name: str, data_dir: Path | None = None, **options) -> int:
    """Size of the training set, as it is found before the data is loaded."""
    from datadiet.config import TrainConfig
    from datadiet.data.registry import count_of

    return count_of(TrainConfig(dataset=name, data_dir=None if data_dir is None else str(data_dir), **options))


@pytest.fixture
def own_cache(tmp_path, monkeypatch) -> None:
    """A cache of built datasets for one test."""
    monkeypatch.setenv("DATADIET_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def npz(tmp_path) -> Path:
    """A file of arrays."""
    from archives import write_npz

    return write_npz(tmp_path / "mine.npz", seed=0)


@pytest.fixture(scope="module")
def as_users_have() -> Iterator[None]:
    """From the first test that asks for it, those of its file compile programs as users have them."""
    import jax

    from datadiet.training.compiled import _compiled

    def choose(hastily: bool) -> None:
        for clear in (jax.clear_caches, _compiled.cache_clear):  # a program in there does not know how it was compiled
            clear()
        jax.config.update("jax_disable_most_optimizations", hastily)

    before = jax.config.read("jax_disable_most_optimizations")
    with pytest.MonkeyPatch.context() as patch:
        own = jax.stages.Lowered.compile
        patch.setattr(jax.stages.Lowered, "compile", lambda lowered: own(lowered, compiler_options=EMITTERS))
        choose(False)
        yield
    choose(before)


@pytest.fixture(scope="module")
def no_pictures() -> Iterator[None]:
    """From the first test that asks for it, reports made in this process have no pictures, which take longest."""
    from datadiet.report import page

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(page, "pictures", lambda decision: [])
        yield


@functools.cache
def new_store() -> Path:
    """A database of MLflow without runs, to copy: to make one takes seconds."""
    from datadiet.tracking import mlflow_store

    file = Path(tempfile.mkdtemp(prefix="datadiet-store-")) / "mlflow.db"
    before = mlflow_store.store_name()
    mlflow_store.use_store(f"sqlite:///{file}")
    with contextlib.chdir(file.parent):  # artifacts go below the folder in which an experiment is made
        mlflow_store.connected()
    mlflow_store.use_store(before)
    return file


def store_in(folder: Path) -> str:
    """URI of a database of MLflow in a folder, where a new one is put if there is none."""
    file = folder / "mlflow.db"
    if not file.exists():
        shutil.copy(new_store(), file)
    return f"sqlite:///{file}"


def environment(store: Path) -> dict[str, str]:
    """Of a process with its own MLflow store."""
    return os.environ | {
        "MLFLOW_TRACKING_URI": store_in(store),
        "PYTHONPATH": str(PROJECT),
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
    }


def call(arguments: list[str], cwd: Path, store: Path, expect: int | None = 0) -> subprocess.CompletedProcess:
    """Run a command with its own MLflow store; fail with its output where it ends otherwise than expected."""
    done = subprocess.run(arguments, cwd=cwd, env=environment(store), capture_output=True, text=True, timeout=PATIENCE)
    if expect is not None:
        assert done.returncode == expect, f"{arguments}\n{done.stdout}\n{done.stderr}"
    return done


def begin(command: str, cwd: Path, store: Path, **params) -> subprocess.Popen:
    """A subcommand as a real process, the first of a session of its own, with its own MLflow store."""
    words = [word for name, value in params.items() for word in (f"--{name}", str(value))]
    return subprocess.Popen(
        [sys.executable, "-m", "entrypoints", command, *words], cwd=cwd, env=environment(store), text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True,
    )  # fmt: skip


def wait(process: subprocess.Popen, until: Callable[[], object], every: float = 0.01) -> None:
    """Until something is so, while the process runs; looks every so many seconds."""
    end = time.monotonic() + PATIENCE
    while not until():
        ended = process.poll() is not None
        assert not ended or until(), process.communicate()
        assert time.monotonic() < end, f"nothing happened within {PATIENCE} seconds"
        time.sleep(every)


def end_of(process: subprocess.Popen) -> tuple[str, str]:
    """What a process told until it ended; one that does not end is killed."""
    try:
        return process.communicate(timeout=PATIENCE)
    except subprocess.TimeoutExpired:
        process.kill()
        pytest.fail(f"it did not end within {PATIENCE} seconds: {process.communicate()}")


def mlflow_run(entry_point: str, root: Path, expect: int | None = 0, **params) -> subprocess.CompletedProcess:
    """`mlflow run . -e NAME -P …` in the project, everything written below `root`."""
    words = ["mlflow", "run", ".", "--env-manager", "local", "-e", entry_point]
    for name, value in {"root": root, **params}.items():
        words += ["-P", f"{name}={value}"]
    return call(words, PROJECT, root, expect)


def mlflow_run_here(entry_point: str, store: Path, experiment: str | None = None, **params) -> None:
    """As `mlflow_run`, by MLflow's own hand too, but for the two processes: MLproject's command is called in this one,
    which saves their start-up."""
    import mlflow
    from mlflow.projects.backend import local
    from mlflow.projects.utils import get_run_env_vars

    from datadiet.commands import module_program
    from entrypoints.__main__ import main

    def run_entry_point(command: str, work_dir: str, experiment_id: str, run_id: str) -> local.LocalSubmittedRun:
        python, *words = shlex.split(command)
        assert [python, *words[:2]] == ["python", "-m", "entrypoints"]
        with pytest.MonkeyPatch.context() as patch, contextlib.chdir(work_dir):
            for name, value in get_run_env_vars(run_id, experiment_id).items():
                patch.setenv(name, value)
            done = CliRunner().invoke(main, words[2:], obj=module_program("entrypoints", PROJECT))
        assert done.exit_code == 0, f"{command}\n{done.output}\n{done.exception}"
        return local.LocalSubmittedRun(run_id, SimpleNamespace(wait=lambda: 0, pid=os.getpid()))

    mlflow.set_tracking_uri(store_in(store))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(local, "_run_entry_point", run_entry_point)
        given = {name: str(value) for name, value in {"root": store, **params}.items()}
        mlflow.projects.run(
            str(PROJECT), entry_point, parameters=given, experiment_name=experiment, env_manager="local"
        )


def datadiet(command: str, folder: Path, /, expect: int = 0, **params) -> Result:
    """The same entry point as a subcommand called in `folder`, in this process, which saves its start-up."""
    import mlflow

    from entrypoints.__main__ import main

    mlflow.set_tracking_uri(f"sqlite:///{folder}/mlflow.db" if params.get("offline") else store_in(folder))
    words = [command, *(word for name, value in params.items() for word in (f"--{name}", str(value)))]
    with contextlib.chdir(folder):
        done = CliRunner().invoke(main, words)
    if isinstance(done.exception, Exception):
        raise done.exception
    assert done.exit_code == expect, f"{words}\n{done.output}"
    return done
