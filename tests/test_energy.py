"""Energy is told where NVML tells it, and nothing depends on it."""

from __future__ import annotations

import sys
from types import SimpleNamespace

import pytest
from conftest import QUICK, datadiet

from datadiet.storage.files import read_json
from datadiet.training.energy import Meter


def pretend(monkeypatch, **more) -> list[int]:
    """NVML of two GPUs, each of which has taken 3,000 mJ more whenever it is asked; which were asked."""
    asked: list[int] = []

    def total(handle: int) -> int:
        asked.append(handle)
        return 3000 * len(asked)

    known = {
        "nvmlInit": lambda: None, "nvmlDeviceGetCount": lambda: 2, "nvmlDeviceGetHandleByIndex": lambda number: number,
        "nvmlDeviceGetTotalEnergyConsumption": total,
    }  # fmt: skip
    monkeypatch.setitem(sys.modules, "pynvml", SimpleNamespace(**known | more))
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    return asked


def test_what_the_gpus_take_is_counted_from_the_beginning(monkeypatch):
    pretend(monkeypatch)
    assert Meter().joules() == pytest.approx((9 + 12) - (3 + 6))


def test_only_gpus_of_this_process_count(monkeypatch):
    asked = pretend(monkeypatch)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1")
    assert Meter().joules() == pytest.approx(3)
    assert set(asked) == {1}
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "GPU-7b31")
    assert Meter().joules() is None


def test_without_nvml_or_a_gpu_that_counts_nothing_is_told(monkeypatch):
    def refuse(*_):
        raise RuntimeError("not supported")

    silent = {"nvmlDeviceGetTotalEnergyConsumption": refuse}
    for more in ({"nvmlInit": refuse}, silent, {"nvmlDeviceGetCount": lambda: 0}):
        pretend(monkeypatch, **more)
        assert Meter().joules() is None
    monkeypatch.setitem(sys.modules, "pynvml", None)
    assert Meter().joules() is None


def test_a_run_notes_its_energy_unless_it_is_unknown(tmp_path, monkeypatch):
    short = QUICK | {"num_steps": 2, "offline": "true"}
    datadiet("full_data", tmp_path, run=0, **short)
    pretend(monkeypatch)
    datadiet("full_data", tmp_path, run=1, **short)
    found = [read_json(tmp_path / f"exps/full_data/run_{run}/summary.json").get("joules") for run in (0, 1)]
    assert found == [None, pytest.approx(12)]
