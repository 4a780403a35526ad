"""Batches with their images on the device: all of a split, or parts of one that stays on disk, read while the device
computes those before. Which it is changes no bit of a result."""

from __future__ import annotations

import math
import mmap
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from typing import Any, NamedTuple

import jax
import numpy as np

from datadiet.devices import Devices
from datadiet.processors import processors
from datadiet.training.schedule import Schedule
from datadiet.training.state import DeviceData

CHUNK_STEPS = 128  # at most so many steps per call of the device
PART_BYTES = 2**25  # of images that are brought to the device at once; two parts are there, and one more on the host
READERS = 4  # threads for each processor, at most 16: they wait for a disk
PIECE_BYTES = 2**18  # that one of them reads at once


def is_stored(split: DeviceData) -> bool:
    """Whether its images stay on disk."""
    return not isinstance(split.images, jax.Array)


def _example_bytes(split: DeviceData) -> int:
    return max(1, math.prod(split.images.shape[1:]) * split.images.dtype.itemsize)


class _Reader:
    """Examples of an array that may be on disk, to the device, in the background. Its threads end with it."""

    def __init__(self, split: DeviceData) -> None:
        self.images, self.devices = split.images, Devices.of(split.labels)
        images = self.images
        self.piece = max(1, PIECE_BYTES // max(1, math.prod(images.shape[1:]) * images.dtype.itemsize))
        self._ahead = ThreadPoolExecutor(1, "datadiet-feed")
        self._threads = ThreadPoolExecutor(min(16, READERS * len(processors())), "datadiet-read")

    def start(self, ids: np.ndarray) -> Future[jax.Array]:
        """Begin to read examples, sorted int [K], which become an array [K, …]."""
        return self._ahead.submit(self._read, ids)

    def _read(self, ids: np.ndarray) -> jax.Array:
        found = np.empty((len(ids), *self.images.shape[1:]), self.images.dtype)

        def read(first: int) -> None:
            piece = slice(first, first + self.piece)
            found[piece] = self.images[ids[piece]]

        for _ in self._threads.map(read, range(0, len(ids), self.piece)):
            pass
        return jax.block_until_ready(self.devices.put(found))  # never written again: on a CPU it may be the same memory


class _Part(NamedTuple):
    """The batches of some steps, and where their images are."""

    first: int  # steps before it
    ids: np.ndarray  # int32 [R, S, B]
    rows: np.ndarray  # int32 [R, S, B], in the images
    images: Future[jax.Array]


class Batches(NamedTuple):
    """What a call of the device takes for some steps of R runs."""

    split: DeviceData
    ids: np.ndarray  # int32 [R, CHUNK_STEPS, B], used again by the next call
    rows: np.ndarray  # the same, of their images in those of the split
    epochs: np.ndarray  # int32 [R, CHUNK_STEPS], of each step, from 0
    count: int  # steps of them


class Feed:
    """The batches of runs that train at the same time.

    Args:
        split: What they train on.
        schedules: Of each run.
        num_steps: The last step.
        began: Steps done before; what comes first is read from now on.
    """

    def __init__(self, split: DeviceData, schedules: Sequence[Schedule], num_steps: int, began: int = 0) -> None:
        self.split, self.schedules, self.num_steps = split, schedules, num_steps
        self.at_once = len(schedules) * schedules[0].batch_size  # examples of a step
        self.steps = min(CHUNK_STEPS, num_steps, max(1, PART_BYTES // (self.at_once * _example_bytes(split))))
        self._ids, self._rows = np.zeros((2, len(schedules), CHUNK_STEPS, schedules[0].batch_size), np.int32)
        self._epochs = np.zeros((len(schedules), CHUNK_STEPS), np.int32)
        self._reader = _Reader(split) if is_stored(split) else None
        self._part: _Part | None = None
        if self._reader:
            expect_random(split.images)
        self._next = self._begin(began)

    def like(self) -> Batches:
        """What a program is compiled for: `batches` by its shapes."""
        split = _shaped(self.split, self.steps * self.at_once) if self._reader else self.split
        return Batches(split, self._ids, self._rows, self._epochs, 0)

    def batches(self, step: int, count: int) -> Batches:
        """Those of the `count` steps after `step`, or of the first of them; the schedules have begun that epoch."""
        if self._reader is None:
            ids = self._named(step, count)
            return self._padded(self.split, ids, ids, step)
        part = self._part
        if part is None or not part.first <= step < part.first + part.ids.shape[1]:
            part = self._next if self._next and self._next.first == step else self._begin(step)
            assert part is not None, "asked for after the last step"
            self._part, self._next = None, None  # before the next is read, so that no three are held
            part.images.result()
            self._part, self._next = part, self._begin(part.first + part.ids.shape[1])
        at = slice(step - part.first, step - part.first + count)
        return self._padded(self.split._replace(images=part.images.result()), part.ids[:, at], part.rows[:, at], step)

    def _padded(self, split: DeviceData, ids: np.ndarray, rows: np.ndarray, step: int) -> Batches:
        count = ids.shape[1]
        self._ids[:, :count], self._rows[:, :count] = ids, rows
        self._epochs[:, :count] = [schedule.epochs(step, count) for schedule in self.schedules]
        return Batches(split, self._ids, self._rows, self._epochs, count)

    def _named(self, step: int, count: int) -> np.ndarray:
        return np.stack([schedule.ids(step, count) for schedule in self.schedules])

    def _begin(self, step: int) -> _Part | None:
        """Begin to read for the steps after `step`; None where it is not known yet what they take."""
        known = min(schedule.left(step) for schedule in self.schedules)
        count = min(self.steps, self.num_steps - step, known)
        if self._reader is None or count < 1:
            return None
        ids = self._named(step, count)
        flat = ids.ravel()
        order = np.argsort(flat, kind="stable")  # as they lie on disk
        rows = np.empty(len(flat), np.int32)
        rows[order] = np.arange(len(flat), dtype=np.int32)
        filled = np.pad(flat[order], (0, self.steps * self.at_once - len(flat)), mode="edge")
        return _Part(step, ids, rows.reshape(ids.shape), self._reader.start(filled))


class Sweep:
    """All examples of a split in their order, in parts that hold whole batches.

    Args:
        batch_size: Examples of a batch.
    """

    def __init__(self, split: DeviceData, batch_size: int) -> None:
        self.split, self.count = split, len(split.labels)
        batches = max(1, PART_BYTES // (batch_size * _example_bytes(split)))
        self.size = batch_size * min(batches, -(-self.count // batch_size))
        self._reader = _Reader(split) if is_stored(split) else None

    def like(self) -> DeviceData:
        """A part as a program takes it, by shapes."""
        return _shaped(self.split, self.size) if is_stored(self.split) else self.split

    def parts(self) -> Iterator[tuple[np.int32, DeviceData]]:
        """The number of examples before each part, and the split with the images of that part alone; those of the last
        part are filled up with the last example."""
        reader = self._reader
        if reader is None:
            yield np.int32(0), self.split
            return
        firsts = range(0, self.count, self.size)
        read = reader.start(self._ids(0))
        for first in firsts:
            images = read.result()
            if first != firsts[-1]:
                read = reader.start(self._ids(first + self.size))
            yield np.int32(first), self.split._replace(images=images)

    def _ids(self, first: int) -> np.ndarray:
        return np.minimum(np.arange(first, first + self.size), self.count - 1)


def _shaped(split: DeviceData, count: int) -> DeviceData:
    images: Any = Devices.of(split.labels).like(split.images, (count, *split.images.shape[1:]))
    return split._replace(images=images)


def expect_random(images: Any) -> None:
    """Tell the system that a memory-mapped array is not read in order: it reads 128 kB around each example else."""
    held = mapped(images)
    if held is not None and hasattr(mmap, "MADV_RANDOM"):
        with suppress(OSError, ValueError):
            held.madvise(mmap.MADV_RANDOM)


def mapped(images: Any) -> mmap.mmap | None:
    """The file that an array is mapped from; None where it is in memory."""
    while images is not None and not isinstance(images, mmap.mmap):
        images = getattr(images, "base", None)
    return images
