"""Where the images of a training lie: on the device where they fit there, else on disk. It changes no result."""

from __future__ import annotations

from collections.abc import Callable

import jax
import numpy as np

from datadiet import commands
from datadiet.data.batches import as_read
from datadiet.data.dataset import Dataset
from datadiet.intake import free_memory, shown
from datadiet.training.feed import mapped
from datadiet.training.state import DeviceData, on_device, on_disk

SHARE = 0.5  # of what is free that images may take; the rest is for the network and for what it computes


def free_bytes() -> int:
    """Bytes that are free where JAX computes: on the first device, or, where that is a CPU, of memory."""
    statistics = jax.local_devices()[0].memory_stats() or {}
    if "bytes_limit" in statistics:
        return statistics["bytes_limit"] - statistics.get("bytes_in_use", 0)
    return free_memory()


def place(
    dataset: Dataset, labels: np.ndarray, data_on: str, say: Callable[[str], object]
) -> tuple[DeviceData, DeviceData]:
    """The training and the test set where a training takes them from.

    Args:
        dataset: As the model takes it.
        labels: Those that are trained on, int32 [N].
        data_on: auto, device or disk; auto: on the device, unless they would take more than SHARE of what is free
            there. The test set, which every report needs, goes there first.
        say: Told of images that stay on disk.
    """
    free = free_bytes()
    taken, found = 0, {}
    for split, given in (("test", None), ("train", labels)):
        images = as_read(getattr(dataset, f"{split}_images"))
        size, where = images.nbytes, "on disk" if mapped(images) else "in memory"
        stays = data_on == "disk" or (data_on == "auto" and taken + size > SHARE * free)
        found[split] = (on_disk if stays else on_device)(dataset, split, given)
        taken += 0 if stays else size
        if stays:
            said = commands.option("data_on", data_on) if data_on == "disk" else f"{shown(free)} of memory are free"
            say(
                f"{dataset.name}: {shown(size)} of {split} images stay {where} ({said}) and go to the device "
                "while it computes; results are the same."
            )
    return found["train"], found["test"]
