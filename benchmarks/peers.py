"""simple_cnn_0 and mlp against PyTorch, a training step and EL2N, with one thread and with two.

Each number of threads is measured in a process of its own that has so many cores, both libraries in turn in it; with
one thread in processor seconds, which other work changes little, with two in seconds, since some spin while they wait:
`python -m benchmarks.peers MODEL THREADS ROUNDS` prints the seconds of every round as JSON.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

from benchmarks import forward, peer_torch, step
from benchmarks.startup import PROJECT
from benchmarks.timing import Row, Seconds, interleaved_seconds, row
from datadiet.processors import processors

THREADS = (1, 2)
CLOCKS = (time.process_time, time.perf_counter)  # of one thread, of several
STEPS = {"simple_cnn_0": 2, "mlp": 64}  # training steps of one call, batch BATCH
BATCH = 128
MOST = 1.2  # times the faster of PyTorch's ways


def times(count: int, run: Callable[[], Any]) -> Any:
    return [run() for _ in range(count)][-1]


def seconds_here(model: str, rounds: int) -> dict[str, Seconds]:
    """Seconds of every round by case and candidate, in this process and on the cores that it has."""
    import torch

    torch.set_num_threads(len(processors()))
    timed = partial(interleaved_seconds, rounds=rounds, clock=CLOCKS[len(processors()) > 1])
    steps, (batch_size, count) = STEPS[model], forward.CASES[model]
    runs = {"datadiet": step.compiled(BATCH, True, model=model, steps=steps)}
    for name, run in peer_torch.training_steps(model, BATCH, True).items():
        runs[name] = partial(times, steps, run)
    found = {"training step": timed(runs)}
    runs = {"datadiet": forward.candidates(model, batch_size, count, "float32")["l2_error"]}
    for name, run in peer_torch.forward_passes(model, batch_size, True).items():
        runs[name.replace(" EL2N", "")] = partial(times, count, run)
    return found | {"EL2N": timed(runs)}


def seconds_of(model: str, threads: int, rounds: int) -> dict[str, Seconds]:
    """The same of a process that has `threads` of the cores that this one has."""
    words = [sys.executable, "-m", "benchmarks.peers", model, str(threads), str(rounds)]
    done = subprocess.run(words, cwd=PROJECT, check=True, stdout=subprocess.PIPE)
    return json.loads(done.stdout.splitlines()[-1])


def measure(rounds: int, quick: bool) -> Iterator[Row]:
    """Rows of the table, where PyTorch is installed; quick: mlp, one thread."""
    if not peer_torch.INSTALLED:
        return
    for model in ("mlp",) if quick else STEPS:
        for threads in THREADS[:1] if quick else THREADS[: len(processors())]:
            calls = {"training step": (BATCH, STEPS[model]), "EL2N": forward.CASES[model]}
            named = "2 threads" if threads > 1 else "1 thread (processor time)"
            for case, seconds in seconds_of(model, threads, rounds).items():
                goals, (batch_size, count) = step.against_torch(seconds, "datadiet", MOST, case), calls[case]
                yield row(f"{case}, {model}, {named}", batch_size, seconds, "datadiet", batch_size * count, goals)


if __name__ == "__main__":
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: int(sys.argv[2])])  # before a library begins threads
    print(json.dumps(seconds_here(sys.argv[1], int(sys.argv[3]))))
