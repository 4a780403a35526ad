"""Where the images of a training lie: on the device where they fit there, else on disk. It changes no result."""

from __future__ import annotations

from collections.abc import Callable

import jax
import numpy as np

from datadiet import commands
from datadiet.data.batches import as_read
from datadiet.data.dataset import Dataset
from datadiet.devices import ONE, Devices
from datadiet.intake import free_memory, shown
from datadiet.training.feed import mapped
from datadiet.training.state import DeviceData, on_device, on_disk

SHARE = 0.5  # of what is free that images may take; the rest is for the network and for what it computes


def free_bytes(count: int = 1) -> int:
    """Bytes that are free on each of the first `count` devices; where these are a CPU, its memory is shared by them."""
    found = [device.memory_stats() or {} for device in jax.local_devices()[:count]]
    if all("bytes_limit" in statistics for statistics in found):
        return min(statistics["bytes_limit"] - statistics.get("bytes_in_use", 0) for statistics in found)
    return free_memory() // count


def place(
    dataset: Dataset, labels: np.ndarray, data_on: str, say: Callable[[str], object], devices: Devices = ONE
) -> tuple[DeviceData, DeviceData]:
    """The training and the test set where a training takes them from.

    Args:
        dataset: As the model takes it.
        labels: Those that are trained on, int32 [N].
        data_on: auto, device or disk; auto: on the device, unless they would take more than SHARE of what is free
            there. The test set, which every report needs, goes there first.
        say: Told of images that stay on disk.
        devices: That train: each has all images, or those parts of them that are read.
    """
    free = free_bytes(devices.own)
    taken, found = 0, {}
    for split, given in (("test", None), ("train", labels)):
        images = as_read(getattr(dataset, f"{split}_images"))
        size, where = images.nbytes, "on disk" if mapped(images) else "in memory"
        stays = data_on == "disk" or (data_on == "auto" and taken + size > SHARE * free)
        found[split] = (on_disk if stays else on_device)(dataset, split, given, devices)
        taken += 0 if stays else size
        if stays:
            said = commands.option("data_on", data_on) if data_on == "disk" else f"{shown(free)} of memory are free"
            say(
                f"{dataset.name}: {shown(size)} of {split} images stay {where} ({said}) and go to the device "
                "while it computes; results are the same."
            )
    return found["train"], found["test"]
