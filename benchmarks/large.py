"""Data on disk beside data on the device, and under a limit of memory: `python -m benchmarks.large [--quick]`.

The time is that of the same steps, evaluations included, alternately from disk and from the device, where both fit:
with a small network, whose steps are the hardest to keep up with, and with a convolutional one. Then a process whose
data segment is limited (RLIMIT_DATA) trains and scores on arrays that are twice as large as the limit; where a control
group can be made (Linux, as root), the same limit holds for it and what the system caches of its files together. The
tables go to benchmarks/results/large.md.
"""

from __future__ import annotations

import argparse
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
import tracemalloc
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from datadiet.processors import processors

if TYPE_CHECKING:
    from datadiet.data.dataset import Dataset

RESULT = Path(__file__).parent / "results" / "large.md"
SHAPE = (32, 32, 3)
LIMIT = 2**30 + 2**29  # bytes
TEST = 2048


def write(folder: Path, name: str, count: int, seed: int) -> None:
    """Images uint8 [count, 32, 32, 3] of noise in a file, piece by piece."""
    path = folder / f"{name}.npy"
    random = np.random.default_rng(seed)
    made = np.lib.format.open_memmap(path, "w+", np.uint8, (count, *SHAPE))
    for first in range(0, count, 2**14):
        made[first : first + 2**14] = random.integers(0, 256, made[first : first + 2**14].shape, np.uint8)
    made.flush()


def dataset_in(folder: Path, count: int) -> Dataset:
    """A dataset of noise, in files."""
    write(folder, "train", count, 0)
    write(folder, "test", TEST, 1)
    return dataset_from(folder)


def train(dataset, place, model: str, width: int, steps: int, batch_size: int) -> tuple[float, list[np.ndarray]]:
    """Seconds of steps and evaluations, compiling and the first filling apart, and the parameters at the end."""
    import jax

    from datadiet import config as options
    from datadiet.models.registry import build_model
    from datadiet.training.loop import fit
    from datadiet.training.state import initial_state

    given = options.TrainConfig(
        dataset="digits", model=model, width=width, num_steps=steps, log_steps=steps // 2, augment=len(model) > 3,
        train_batch_size=batch_size, trajectory=("forget",), save_steps=steps,
    )  # fmt: skip
    config = options.resolve(given, dataset.num_examples)
    network = build_model(model, 10, SHAPE, width)
    splits = place(dataset, "train"), place(dataset, "test")
    state = initial_state(network, config, dataset.num_examples)
    ids = np.arange(dataset.num_examples, dtype=np.int32)
    *_, last = fit(network, *splits, ids, config, state)
    return last.seconds["train"] + last.seconds["eval"], [np.array(leaf) for leaf in jax.tree.leaves(last.state.params)]


def compare(folder: Path, quick: bool) -> list[str]:
    """Rows of the table of times."""
    from datadiet.training.state import on_device, on_disk

    rows = []
    count = 20_000 if quick else 60_000
    dataset = dataset_in(folder, count)
    for model, width, steps, batch_size in (("mlp", 128, 400, 128), ("simple_cnn_0", 4, 20, 128)):
        steps = steps // 4 if quick else steps
        seconds: dict[str, list[float]] = {"device": [], "disk": []}
        for turn in range(3 if quick else 6):
            found = {}
            for name, place in (("device", on_device), ("disk", on_disk)):
                spent, found[name] = train(dataset, place, model, width, steps, batch_size)
                if turn:  # the first compiles, and fills the cache of files
                    seconds[name].append(spent)
            assert all(map(np.array_equal, found["device"], found["disk"])), "not the same bytes"
        ratios = [disk / device for disk, device in zip(seconds["disk"], seconds["device"])]
        device, disk = (statistics.median(seconds[name]) for name in ("device", "disk"))
        rows.append(
            f"| {model}, width {width}, batch {batch_size}, {steps} steps | {device:.2f} | "
            f"{disk:.2f} | {statistics.median(ratios):.2f} ({min(ratios):.2f}–"
            f"{max(ratios):.2f}) | same |"
        )
        print(rows[-1], flush=True)
    return rows


def loaders(folder: Path, quick: bool) -> list[str]:
    """Rows of the table of loaders: the same batches by each of those that are installed."""
    dataset = dataset_in(folder, 20_000 if quick else 60_000)
    steps = 64 if quick else 640
    ids = schedule_of(dataset, steps).ids(0, steps)
    candidates = {"feed (threads over the memory map)": partial(by_feed, dataset, steps)}
    with suppress(ImportError):
        import grain

        candidates["Grain over the memory map, by example"] = partial(by_grain, grain, dataset.train_images, ids, 128)
        candidates["Grain over the memory map, by batch"] = partial(by_grain, grain, dataset.train_images, ids, None)
    with suppress(ImportError):
        from array_record.python import array_record_module as module

        write_records(module, folder / "train.array_record", dataset.train_images)
        candidates["ArrayRecord, by batch"] = partial(by_records, module, folder / "train.array_record", ids)
    sums = {name: read() for name, read in candidates.items()}
    assert len(set(sums.values())) == 1, sums
    seconds: dict[str, list[float]] = {name: [] for name in candidates}
    for _ in range(2 if quick else 5):
        for name, read in candidates.items():
            start = time.perf_counter()
            read()
            seconds[name].append(time.perf_counter() - start)
    rows = [f"| {name} | {1000 * statistics.median(spent) / steps:.2f} |" for name, spent in seconds.items()]
    print(*rows, sep="\n", flush=True)
    return rows


def schedule_of(dataset: Dataset, steps: int) -> Any:
    """The batches that every loader reads."""
    from datadiet import config as options
    from datadiet.training.schedule import Schedule

    given = options.TrainConfig(dataset="digits", num_steps=steps, train_batch_size=128, train_seed=0)
    return Schedule(options.resolve(given, dataset.num_examples), np.arange(dataset.num_examples, dtype=np.int32))


def by_feed(dataset: Dataset, steps: int) -> int:
    """Sum of one pixel of all that is read, as by every loader."""
    from datadiet.training.feed import Feed
    from datadiet.training.state import on_disk

    feed, step, total = Feed(on_disk(dataset, "train"), [schedule_of(dataset, steps)], steps), 0, 0
    while step < steps:
        batches = feed.batches(step, steps - step)
        total += int(np.asarray(batches.split.images)[batches.rows[0, : batches.count].ravel(), 0, 0, 0].sum(dtype=int))
        step += batches.count
    return total


def by_grain(grain: Any, images: np.ndarray, ids: np.ndarray, batch_size: int | None) -> int:
    flat = ids.ravel() if batch_size else ids

    class Source:
        def __len__(self) -> int:
            return len(flat)

        def __getitem__(self, i: int) -> np.ndarray:
            return images[flat[i]]

    found = grain.MapDataset.source(Source())
    found = found.batch(batch_size) if batch_size else found
    return sum(int(batch[:, 0, 0, 0].sum(dtype=int)) for batch in found.to_iter_dataset())


def write_records(module: Any, path: Path, images: np.ndarray) -> None:
    writer = module.ArrayRecordWriter(str(path), "group_size:1,uncompressed")
    for image in images:
        writer.write(image.tobytes())
    writer.close()


def by_records(module: Any, path: Path, ids: np.ndarray) -> int:
    reader = module.ArrayRecordReader(str(path))
    total = 0
    for batch in ids:
        images = np.frombuffer(b"".join(reader.read(batch.tolist())), np.uint8).reshape(len(batch), *SHAPE)
        total += int(images[:, 0, 0, 0].sum(dtype=int))
    return total


def selectors(folder: Path, quick: bool) -> list[str]:
    """Rows of the table of selectors, at a million examples with 64 features; of d2, whose time grows with the square
    of their number, at a tenth."""
    from datadiet.selectors.selection import select

    many, some = (20_000, 2_000) if quick else (1_000_000, 100_000)
    random = np.random.default_rng(0)
    values, rows = random.random(many, np.float32), []
    given = {"labels": random.integers(0, 100, many).astype(np.int32),
             "features": random.standard_normal((many, 64), np.float32)}  # fmt: skip
    halves = [(name, many, many // 2) for name in ("random", "keep_max", "ccs", "moderate")]
    for name, count, size in [*halves, ("k_center", many, 100), ("herding", many, 100), ("d2", some, some // 2)]:
        tracemalloc.start()
        start = time.perf_counter()
        select(name, values[:count], size=size, **{what: array[:count] for what, array in given.items()})
        spent, (_, peak) = time.perf_counter() - start, tracemalloc.get_traced_memory()
        tracemalloc.stop()
        rows.append(f"| {name} | {size:,} of {count:,} | {peak / 1e6:.0f} MB | {peak / count:.0f} | {spent:.1f} |")
        print(rows[-1], flush=True)
    return rows


def memory() -> dict[str, int]:
    """Kilobytes of this process, by name in /proc/self/status."""
    lines = (line.split() for line in Path("/proc/self/status").read_text().splitlines())
    return {line[0].rstrip(":"): int(line[1]) for line in lines if line[-1] == "kB"}


def limited(folder: Path, steps: int, group: Path | None) -> None:
    """In a process of its own: train and score under the limit, and say so in a row."""
    if group is not None:
        (group / "cgroup.procs").write_text(str(os.getpid()))
    resource.setrlimit(resource.RLIMIT_DATA, (LIMIT, LIMIT))
    import jax

    from datadiet.data.batches import Normalizer
    from datadiet.models.registry import build_model
    from datadiet.scores.checkpoint import compute_many
    from datadiet.training.placing import place
    from datadiet.training.state import on_disk

    dataset = dataset_from(folder)
    size, said = dataset.train_images.nbytes, []
    split, _ = place(dataset, dataset.train_labels, "auto", said.append)
    assert said, "it was taken for small enough"
    assert not isinstance(split.images, jax.Array)
    try:
        np.array(dataset.train_images)
        raise AssertionError("the limit does not limit")
    except MemoryError:
        pass
    seconds, _ = train(dataset, on_disk, "mlp", 128, steps, 128)
    dataset = dataset_from(folder)  # as each command maps it anew
    start = time.perf_counter()
    network = build_model("mlp", 10, SHAPE, 128)
    given = (network, network.init(jax.random.key(0)), dataset.train_images, dataset.train_labels)
    scores = compute_many(["l2_error"], *given, prepare=Normalizer.of(dataset))["l2_error"]
    scoring = time.perf_counter() - start
    found = memory()
    print(
        f"| {size / 1e9:.2f} GB, {len(scores):,} examples | {LIMIT / 1e9:.2f} GB | {found['VmData'] / 1e6:.2f} GB | "
        f"{found['RssAnon'] / 1e6:.2f} GB | {most(group)} | {steps} steps: {seconds:.1f} | {scoring:.1f} |"
    )


def dataset_from(folder: Path) -> Dataset:
    """What the parent has written."""
    from datadiet.data.dataset import Dataset

    images = [
        np.asarray(np.load(folder / f"{name}.npy", mmap_mode="r", allow_pickle=False)) for name in ("train", "test")
    ]
    labels = [np.random.default_rng(2).integers(0, 10, len(split)).astype(np.int32) for split in images]
    constants = np.full(3, 0.5, np.float32), np.full(3, 0.29, np.float32)
    ids = np.arange(len(images[0])).astype(str)
    return Dataset("noise", images[0], labels[0], images[1], labels[1], ids, 10, *constants, "0" * 64)


GROUPS = Path("/sys/fs/cgroup/memory")


@contextmanager
def group_of_limit() -> Iterator[Path | None]:
    """A control group whose processes take at most LIMIT, files that are cached for them included; None where none can
    be made."""
    group = GROUPS / f"datadiet-large-{os.getpid()}"
    try:
        group.mkdir()
        (group / "memory.limit_in_bytes").write_text(str(LIMIT))
    except OSError:
        yield None
        return
    try:
        yield group
    finally:
        group.rmdir()


def most(group: Path | None) -> str:
    """The most that a group has taken."""
    return f"{int((group / 'memory.max_usage_in_bytes').read_text()) / 1e9:.2f} GB" if group else "not limited"


def forget(path: Path) -> None:
    """What the system has cached of a file: it is read from disk again."""
    with open(path, "rb") as file:
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def under_limit(folder: Path, quick: bool) -> list[str]:
    """One row of the table of memory, by a child."""
    count = 2 * LIMIT // int(np.prod(SHAPE)) + 1
    write(folder, "train", count, 0)
    write(folder, "test", TEST, 1)
    forget(folder / "train.npy")
    command = [sys.executable, "-m", "benchmarks.large", f"--limited={folder}", f"--steps={200 if quick else 1000}"]
    with group_of_limit() as group:
        command += [f"--group={group}"] if group else []
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(done.stderr)
    row = done.stdout.strip().splitlines()[-1]
    print(row, flush=True)
    return [row]


def main() -> None:
    """Measure, and write the tables unless it is --quick."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="fewer steps; writes nothing")
    parser.add_argument("--only", nargs="+", choices=PARTS, default=list(PARTS), help="parts; all write the tables")
    parser.add_argument("--limited", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--group", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--steps", type=int, default=2000, help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help="where data is written meanwhile; 3 GB")
    given = parser.parse_args()
    if given.limited:
        limited(given.limited, given.steps, given.group)
        return
    with tempfile.TemporaryDirectory(dir=given.folder) as folder:
        tables = {name: measure(Path(folder), given.quick) for name, measure in PARTS.items() if name in given.only}
    if not given.quick and len(tables) == len(PARTS):
        RESULT.write_text(TABLE.format(cores=len(processors()), **{name: "\n".join(t) for name, t in tables.items()}))


PARTS = {"times": compare, "loaders": loaders, "limit": under_limit, "selectors": selectors}


TABLE = """# Data on disk

By `python -m benchmarks.large`, on a CPU of {cores} cores. Seconds are those of steps and evaluations, compiling apart;
medians of five turns, in each of which both ran.

| 60,000 images of 32x32x3 | on the device, s | from disk, s | ratio: median (least–most) | parameters at the end |
|---|---|---|---|---|
{times}

The same batches of 128 by each loader, in a cache of files that holds all of them, without a network:

| loader | ms per batch |
|---|---|
{loaders}

Under a limit of half of the images, which are in a file of which nothing is cached at the start. The limit holds for
the data segment (RLIMIT_DATA) and for a control group, in which what is cached of files counts too:

| images | limit | data segment | resident, not of files | most in the group, files too | training, s | scoring, s |
|---|---|---|---|---|---|---|
{limit}

What selectors take beside the scores, labels and features [N, 64] that they are given (tracemalloc, which slows them):

| selector | keeps | at most | bytes per example | s |
|---|---|---|---|---|
{selectors}
"""


if __name__ == "__main__":
    main()
