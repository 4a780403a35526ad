"""Several devices do the work of one, in a process of its own that has four; and the jobs of a study share GPUs, which
are pretended."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
from conftest import PATIENCE, PROJECT, datadiet

from datadiet.errors import UserError
from datadiet.processors import processors
from datadiet.study import local_engine
from datadiet.study.engines import check_engine
from datadiet.study.local_engine import Share, jobs_at_once
from datadiet.study.options import EngineOptions

FOUR = "--xla_force_host_platform_device_count=4"


def test_several_devices_do_the_work_of_one():
    """Every test of several_devices.py."""
    command = [sys.executable, "-m", "pytest", "-q", "-n", "0", "-p", "no:cacheprovider", "tests/several_devices.py"]
    four = os.environ | {"XLA_FLAGS": f"{os.environ.get('XLA_FLAGS', '')} {FOUR}"}
    done = subprocess.run(command, cwd=PROJECT, env=four, capture_output=True, text=True, timeout=3 * PATIENCE)
    assert done.returncode == 0, done.stdout[-8000:]
    assert " passed" in done.stdout


@pytest.fixture
def gpus(monkeypatch):
    """Eight GPUs, as far as names go."""
    monkeypatch.setenv("JAX_PLATFORMS", "cuda")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", ",".join(f"GPU-{k}" for k in range(8)))


@pytest.mark.parametrize(
    ("given", "left", "expected"),
    [
        ({}, 90, (8, "1")),  # one job on each
        ({}, 3, (3, "1")),
        ({"workers": 2}, 90, (2, "1")),
        ({"devices": "all"}, 90, (8, "1")),
        ({"devices": "all"}, 3, (3, "2")),  # few jobs are spread
        ({"devices": "all"}, 1, (1, "8")),
        ({"devices": "all", "workers": 2}, 90, (2, "4")),
        ({"devices": "all", "workers": 1}, 90, (1, "8")),
        ({"devices": "4"}, 90, (2, "4")),
        ({"devices": "3"}, 90, (2, "3")),
        ({"devices": "4"}, 1, (1, "4")),
        ({"devices": "2", "workers": 3}, 90, (3, "2")),
        ({"devices": "8"}, 0, (1, "8")),
    ],
)
def test_jobs_of_a_study_share_gpus(gpus, given, left, expected):
    assert jobs_at_once(EngineOptions(**given), left) == expected


@pytest.mark.parametrize(("given", "left"), [({}, 90), ({"devices": "all"}, 3), ({"devices": "3"}, 90)])
def test_no_gpu_is_given_to_two_jobs_at_once(gpus, monkeypatch, given, left):
    count, each = jobs_at_once(EngineOptions(**given), left)
    taken = []
    for index in range(count):
        with monkeypatch.context() as worker:
            worker.setenv("CUDA_VISIBLE_DEVICES", os.environ["CUDA_VISIBLE_DEVICES"])
            Share(index, count, int(each)).take()
            taken.append(os.environ["CUDA_VISIBLE_DEVICES"].split(","))
    assert [len(own) for own in taken] == [int(each)] * count
    names = [name for own in taken for name in own]
    assert len(set(names)) == len(names)
    assert set(names) <= set(os.environ["CUDA_VISIBLE_DEVICES"].split(","))


def test_what_gpus_cannot_give_is_refused(gpus):
    with pytest.raises(UserError, match="devices=9: expected all, or at most 8, the GPUs there are"):
        jobs_at_once(EngineOptions(devices="9"), 5)
    with pytest.raises(UserError, match=r"workers=3: expected at most 2 with .*devices.4, for there are 8 GPUs"):
        jobs_at_once(EngineOptions(devices="4", workers=3), 5)
    with pytest.raises(UserError, match="devices=none: expected a whole number of at least 1, or all"):
        check_engine(EngineOptions(devices="none"))
    with pytest.raises(UserError, match="devices=all: expected a whole number with engine=ray"):
        check_engine(EngineOptions(engine="ray", devices="all"))


def test_without_gpus_there_is_one_job_for_each_processor():
    assert local_engine.count_gpus() == 0
    assert jobs_at_once(EngineOptions(), 90) == (len(processors()), "1")


@pytest.mark.parametrize("value", ["0", "many", "-1", "1.5"])
def test_a_number_of_devices_that_cannot_be_is_refused(tmp_path, value):
    done = datadiet("full_data", tmp_path, 2, dataset="digits", devices=value)
    assert f"devices={value}: expected a whole number of at least 1, or all." in done.output
