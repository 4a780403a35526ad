"""Fixtures: golden networks, a small trained run, and `mlflow run` as a user types it."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner, Result

PROJECT = Path(__file__).resolve().parents[1]
GOLDEN = Path(__file__).parent / "golden"
QUICK = {"dataset": "digits", "model": "mlp", "width": 32, "num_steps": 44, "augment": "false"}

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ["DATADIET_CACHE"] = tempfile.mkdtemp(prefix="datadiet-cache-")
# Compiled programs, shared by all processes of this session and by none before it.
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", f"{os.environ['DATADIET_CACHE']}/xla")
os.environ.setdefault("JAX_PERSISTENT_COMPILATION_CACHE_MIN_COMPILE_TIME_SECS", "0.3")
sys.path.insert(0, str(PROJECT))  # for `entrypoints`, which is not installed under that name


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


@pytest.fixture(scope="session", params=[("simple_cnn", "simple_cnn_0", 32), ("resnet18_w8", "resnet18_lowres", 8)])
def golden(request) -> Golden:
    return Golden(*request.param)


def environment(store: Path) -> dict[str, str]:
    """Of a process with its own MLflow store."""
    return os.environ | {
        "MLFLOW_TRACKING_URI": f"sqlite:///{store}/mlflow.db",
        "PYTHONPATH": str(PROJECT),
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
    }


def call(arguments: list[str], cwd: Path, store: Path, expect: int | None = 0) -> subprocess.CompletedProcess:
    """Run a command with its own MLflow store; fail with its output where it ends otherwise than expected."""
    done = subprocess.run(arguments, cwd=cwd, env=environment(store), capture_output=True, text=True, timeout=300)
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


def wait(process: subprocess.Popen, until: Callable[[], object]) -> None:
    """Until something is so, while the process runs."""
    end = time.monotonic() + 90
    while not until():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < end, "nothing happened within 90 seconds"
        time.sleep(0.001)


def mlflow_run(entry_point: str, root: Path, expect: int | None = 0, **params) -> subprocess.CompletedProcess:
    """`mlflow run . -e NAME -P …` in the project, everything written below `root`."""
    words = ["mlflow", "run", ".", "--env-manager", "local", "-e", entry_point]
    for name, value in {"root": root, **params}.items():
        words += ["-P", f"{name}={value}"]
    return call(words, PROJECT, root, expect)


def datadiet(command: str, folder: Path, /, expect: int = 0, **params) -> Result:
    """The same entry point as a subcommand called in `folder`, in this process, which saves its start-up."""
    import mlflow

    from entrypoints.__main__ import main

    mlflow.set_tracking_uri(f"sqlite:///{folder}/mlflow.db")
    words = [command, *(word for name, value in params.items() for word in (f"--{name}", str(value)))]
    with contextlib.chdir(folder):
        done = CliRunner().invoke(main, words)
    if isinstance(done.exception, Exception):
        raise done.exception
    assert done.exit_code == expect, f"{words}\n{done.output}"
    return done
