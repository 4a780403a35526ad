"""Energy that GPUs take, where NVML tells it (pip install nvidia-ml-py); never required."""

from __future__ import annotations

import os
from importlib import import_module
from typing import Any


def counters() -> list[tuple[Any, Any]]:
    """NVML and a handle of each GPU that this process may use; [] where there is no NVML, or no GPU."""
    try:
        pynvml = import_module("pynvml")
        pynvml.nvmlInit()
        visible = os.environ.get("CUDA_VISIBLE_DEVICES")
        numbers = range(pynvml.nvmlDeviceGetCount()) if visible is None else map(int, filter(None, visible.split(",")))
        return [(pynvml, pynvml.nvmlDeviceGetHandleByIndex(number)) for number in numbers]
    except Exception:  # of many kinds: no module, no driver, names in place of numbers, no right to ask
        return []


class Meter:
    """Energy from now on, of whatever these GPUs do, other processes on them included."""

    def __init__(self) -> None:
        self._counters = counters()
        self._begin = self._total()

    def _total(self) -> float | None:
        try:
            millijoules = [nvml.nvmlDeviceGetTotalEnergyConsumption(handle) for nvml, handle in self._counters]
        except Exception:  # a GPU that does not count it
            return None
        return sum(millijoules) / 1000 if millijoules else None

    def joules(self) -> float | None:
        """Since it was made; None where nothing tells it."""
        end = self._total()
        return None if end is None or self._begin is None else end - self._begin
