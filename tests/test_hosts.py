"""Several processes train as one, as on several machines: the first writes what one process alone would."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from archives import write_npz
from conftest import PATIENCE, PROJECT, QUICK, datadiet

from datadiet import hosts
from datadiet.errors import UserError
from datadiet.runs.signals import EXIT_CODE

LONG = QUICK | {"offline": "true", "num_steps": 100_000, "log_steps": 50, "save_steps": 50_000}
SLURM_PORTS = 65536 - 2**12  # the first; JAX adds the number of the job


def free_port(least: int = 0) -> int:
    """Of those from `least` on, which is any where that is 0."""
    with socket.socket() as held:
        while True:
            try:
                held.bind(("localhost", least))
                return held.getsockname()[1]
            except OSError:
                least += 1


def of_slurm(port: int, index: int) -> dict[str, str]:
    """What Slurm tells a process of two on this machine."""
    job = {"JOB_ID": port - SLURM_PORTS, "STEP_NODELIST": "localhost", "STEP_NUM_NODES": 1, "NTASKS": 2}
    return {f"SLURM_{name}": str(value) for name, value in (job | {"PROCID": index, "LOCALID": index}).items()}


class Pair:
    """A command in two processes, each in a folder of its own below `root`.

    Args:
        slurm: They are told by Slurm's variables which they are, not by an option.
    """

    def __init__(self, root: Path, command: str, slurm: bool = False, **options) -> None:
        self.folders, port = [root / "first", root / "second"], free_port(SLURM_PORTS if slurm else 0)
        self.processes = []
        for index, folder in enumerate(self.folders):
            folder.mkdir(exist_ok=True)
            place = {"hosts": "cluster" if slurm else f"localhost:{port},{index},2"}
            typed = [f"--{name}={value}" for name, value in (options | place).items()]
            called = [sys.executable, "-m", "entrypoints", command, *typed]
            environment = os.environ | {"PYTHONPATH": str(PROJECT)} | (of_slurm(port, index) if slurm else {})
            with open(folder / "out.txt", "w") as out:
                told = {"stdout": out, "stderr": subprocess.STDOUT}
                self.processes.append(subprocess.Popen(called, cwd=folder, env=environment, **told))

    def wait_for(self, path: Path) -> None:
        """Until the first has written a file."""
        end = time.monotonic() + PATIENCE
        while not (self.folders[0] / path).exists():
            assert self.processes[0].poll() is None, self.output(0)
            assert time.monotonic() < end
            time.sleep(0.05)

    def end(self) -> list[int]:
        return [process.wait(PATIENCE) for process in self.processes]

    def output(self, index: int) -> str:
        return (self.folders[index] / "out.txt").read_text()


def test_two_processes_do_what_one_does_and_only_the_first_writes(tmp_path):
    """Two runs of a subset at the same time; counts to the last, the rest to rounding."""
    options = QUICK | {"offline": "true", "size": 301, "runs": "0-1", "data_on": "disk", "train_batch_size": 8}
    pair = Pair(tmp_path, "random_subset", **options)
    assert pair.end() == [0, 0], pair.output(0) + pair.output(1)
    assert "Each batch of 8 examples is split over 2 devices: 4, 4." in pair.output(0)
    assert [path.name for path in pair.folders[1].iterdir()] == ["out.txt"]
    datadiet("random_subset", tmp_path, **options)
    for run in (0, 1):
        one, both = (root / f"exps/random_subset/size_301/run_{run}" for root in (tmp_path, pair.folders[0]))
        for name in ("args.json", "kept.csv"):
            assert (both / name).read_bytes() == (one / name).read_bytes()
        held, expected = (dict(np.load(folder / "ckpts/44/arrays.npz")) for folder in (both, one))
        assert held.keys() == expected.keys()
        assert any(name.startswith("training['trajectory']['forget']") for name in held)
        for name, values in held.items():
            exact = np.issubdtype(values.dtype, np.integer) or values.dtype == bool
            np.testing.assert_allclose(values, expected[name], *((0, 0) if exact else (1e-4, 1e-5)))


def test_slurm_tells_which_process_this_is(tmp_path):
    pair = Pair(tmp_path, "full_data", slurm=True, **QUICK | {"offline": "true", "num_steps": 2})
    assert pair.end() == [0, 0], pair.output(0) + pair.output(1)
    assert "split over 2 devices: 64, 64" in pair.output(0)
    assert "Process 1 of 2: computes" in pair.output(1)


def test_a_signal_to_either_stops_both_and_one_alone_goes_on(tmp_path):
    pair = Pair(tmp_path, "full_data", **LONG)
    run = Path("exps/full_data/run_0")
    pair.wait_for(run / "metrics.jsonl")
    pair.processes[1].send_signal(signal.SIGTERM)
    assert pair.end() == [EXIT_CODE, EXIT_CODE]
    assert "Stopped after step" in pair.output(0)
    assert "process 0 has saved it" in pair.output(1)
    stopped = max(int(path.name) for path in (pair.folders[0] / run / "ckpts").iterdir())
    refused = datadiet("full_data", pair.folders[0], 2, **LONG | {"lr": 0.5}, resume="true")
    assert "lr: 0.1 there, 0.5 asked for" in refused.output
    assert stopped > 0
    datadiet("score", pair.folders[0], exp="full_data", type="l2_error", step=stopped, offline="true")


def test_where_one_is_killed_the_other_says_so_and_ends(tmp_path):
    pair = Pair(tmp_path, "full_data", **LONG)
    pair.wait_for(Path("exps/full_data/run_0/metrics.jsonl"))
    pair.processes[1].kill()
    assert pair.end() == [2, -signal.SIGKILL], pair.output(0)
    assert "Another of 2 processes is gone" in pair.output(0)
    assert "--resume true" in pair.output(0)


def test_other_data_on_another_machine_is_refused(tmp_path):
    for seed, name in enumerate(("first", "second")):
        (tmp_path / name).mkdir()
        write_npz(tmp_path / name / "mine.npz", seed=seed)
    pair = Pair(tmp_path, "full_data", **QUICK | {"dataset": "npz:mine.npz", "offline": "true"})
    assert pair.end() == [2, 2]
    assert "Another of 2 processes has failed; what it said last says why." in pair.output(0)
    assert "is not the data of process 0" in pair.output(1)


@pytest.mark.parametrize(
    "given", ["", "host", "host:80", "host:80,1", "host:80,2,2", "host:0,0,2", "host:99999,0,2", "a b:80,0,2", "80,0,2"]
)
def test_what_names_no_process_is_refused(given):
    with pytest.raises(UserError, match="expected ADDRESS:PORT,PROCESS,PROCESSES"):
        hosts.check(given)


def test_addresses_are_read():
    assert hosts.check("10.0.0.1:9876,1,2") == ("10.0.0.1:9876", 1, 2)
    assert hosts.check("[::1]:80,0,1") == ("[::1]:80", 0, 1)


def test_a_first_process_that_cannot_be_found_is_told_at_once(tmp_path):
    refused = datadiet("full_data", tmp_path, 2, **QUICK, hosts="no-such-host.invalid:80,1,2")
    assert "hosts=no-such-host.invalid:80: expected process 0 to listen there" in refused.output
    assert not (tmp_path / "exps").exists()
