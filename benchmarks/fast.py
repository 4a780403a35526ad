"""recipe=fast: what a run computes, how long a step takes beside PyTorch's, and, on data, what it reaches.

`python -m benchmarks.fast` prints the PFLOP of a run and times steps; with --data it trains --runs whole runs on
CIFAR-10 and, on a GPU, times them side by side. The table goes to benchmarks/results/fast_<device>.md. On a GPU:

    python -m benchmarks.fast --data cifar10 --runs 10
"""

from __future__ import annotations

import argparse
import math
import os
import shlex
import statistics
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from benchmarks import peer_torch
from benchmarks.step import SCANNED_STEPS, against_torch, per_step, step
from benchmarks.timing import (
    GOALS_HEADER,
    HEADER,
    Goal,
    Row,
    file_stem,
    goals_markdown,
    interleaved_seconds,
    markdown,
    row,
)
from datadiet import plugins
from datadiet.config import ResolvedConfig, TrainConfig, resolve
from datadiet.data.batches import fit_images
from datadiet.data.registry import dataset_of
from datadiet.models import conv
from datadiet.models.registry import build_model, input_shape
from datadiet.recipes import recipe_values
from datadiet.training.loop import Entrant, fit_runs
from datadiet.training.state import initial_state, on_device, optimizer

EXAMPLES = 50_000  # of CIFAR-10
MOST_PETAFLOP, MOST_SECONDS, ACCURACY = 0.4, 4.0, 0.94


def products(jaxpr: Any) -> int:
    """Operations (two for each multiplication) of all convolutions and products in a jaxpr, loops counted once."""
    total = 0
    for equation in jaxpr.eqns:
        shapes = [variable.aval.shape for variable in equation.invars[:2]]
        output = math.prod(getattr(equation.outvars[0].aval, "shape", ()))
        if equation.primitive.name == "conv_general_dilated":
            numbers = equation.params["dimension_numbers"].rhs_spec
            total += 2 * output * math.prod(size for axis, size in enumerate(shapes[1]) if axis != numbers[0])
        elif equation.primitive.name == "dot_general":
            (contracted, _), _ = equation.params["dimension_numbers"]
            total += 2 * output * math.prod(shapes[0][axis] for axis in contracted)
        for value in equation.params.values():
            inner = getattr(value, "jaxpr", value)
            total += products(inner) if hasattr(inner, "eqns") else 0
    return total


def training_flops(config: ResolvedConfig, num_classes: int = 10) -> int:
    """Operations of one training step on images 32x32x3: the forward pass and both gradients of each layer."""
    network = build_model(config.model, num_classes, (32, 32, 3), config.width)
    images = jax.ShapeDtypeStruct((config.train_batch_size, 32, 32, 3), jnp.float32)
    variables = jax.eval_shape(network.init, jax.random.key(0))
    on_cpu, conv.on_cpu = conv.on_cpu, lambda: False  # the plain convolutions, which are the same work

    def loss(params, images):
        return network.apply_training({**variables_like, "params": params}, images)[0].sum()

    variables_like = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), variables)
    try:
        return products(jax.make_jaxpr(jax.grad(loss))(variables["params"], images).jaxpr)
    finally:
        conv.on_cpu = on_cpu


def recipe(**given: Any) -> ResolvedConfig:
    """The resolved recipe for CIFAR-10, with what is given instead."""
    given = {name: value for name, value in given.items() if value is not None}
    return resolve(TrainConfig(**recipe_values("fast", given) | given), EXAMPLES)


def compiled(config: ResolvedConfig) -> Callable[[], Any]:
    """SCANNED_STEPS steps on one batch, as a training takes them."""
    network = build_model(config.model, 10, (32, 32, 3), config.width, config.compute_dtype)
    variables, sgd = network.init(jax.random.key(0)), optimizer(config)
    state = (variables["params"], variables["batch_stats"], sgd.init(variables["params"]))
    images = jax.random.normal(jax.random.key(1), (config.train_batch_size, 32, 32, 3))
    batch = (images, jnp.arange(config.train_batch_size, dtype=jnp.int32) % 10)
    batches = jax.tree.map(lambda x: jnp.stack([x] * SCANNED_STEPS), batch)
    run = partial(jax.lax.scan, partial(step, network, optax.with_extra_args_support(sgd)))
    program = jax.jit(run).lower(state, batches).compile()
    return lambda: program(state, batches)


def steps(config: ResolvedConfig, rounds: int) -> Row:
    """A training step beside PyTorch's best, where that is installed."""
    half, size = config.compute_dtype == "bfloat16", config.train_batch_size
    runs = {"step in a scan": compiled(config)}
    if peer_torch.INSTALLED:
        runs |= peer_torch.training_steps(config.model, size, True, half, config.width)
    seconds = per_step(interleaved_seconds(runs, rounds))
    goals = against_torch(seconds, "step in a scan", 1.0, "training step")
    return row(
        f"training step, {config.model}, width {config.width or 64}", size, seconds, "step in a scan", goals=goals
    )


def whole(config: ResolvedConfig, runs: int, together: bool) -> tuple[list[float], float]:
    """Test accuracies of runs 0, 1, …, and the seconds that they take without compilation.

    Args:
        together: At the same time, else one after the other.
    """
    published = dataset_of(config)
    dataset = fit_images(published, input_shape(config.model, published.image_shape))
    network = build_model(config.model, 10, dataset.image_shape, config.width, config.compute_dtype)
    splits, everything = (on_device(dataset, "train"), on_device(dataset, "test")), np.arange(dataset.num_examples)
    everything = everything.astype(np.int32)
    configs = [replace(config, run=run) for run in range(runs)]

    def entrant(one: ResolvedConfig) -> Entrant:
        return Entrant(one, everything, initial_state(network, one, dataset.num_examples, (dataset, everything)))

    accuracies, seconds = {}, 0.0
    for group in [configs] if together else [[one] for one in configs]:
        for position, report in fit_runs(network, *splits, [entrant(one) for one in group]):
            if report.step == config.num_steps:
                accuracies[group[position].run] = report.metrics["test_acc"]
                seconds += report.seconds["train"] + report.seconds["eval"]  # shared evenly among runs at the same time
    return [accuracies[run] for run in range(runs)], seconds


def measure(rounds: int, quick: bool) -> Iterator[Row]:
    """Rows of the table of `python -m benchmarks`; quick: a narrow network."""
    on_gpu = not conv.on_cpu()
    yield steps(
        recipe(compute_dtype="bfloat16" if on_gpu else None, width=None if on_gpu and not quick else 16), rounds
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    small, add = conv.on_cpu(), parser.add_argument
    add("--data", help="CIFAR-10 as `dataset` has it; without it steps are timed only")
    add("--runs", type=int, default=1 if small else 10, help="whole runs (1 on a CPU, else 10)")
    add("--width", type=int, default=16 if small else None, help="channels of the first layer (16 on a CPU, else 64)")
    add("--epochs", type=float, help="epochs of a run (the recipe's)")
    add("--dtype", default="float32" if small else "bfloat16", help="compute_dtype (float32 on a CPU, else bfloat16)")
    add("--rounds", type=int, default=3, help="interleaved rounds of the steps (3)")
    given = parser.parse_args()
    plugins.load_plugins()
    brought = os.environ.get(plugins.VARIABLE, "")
    config = recipe(
        width=given.width, epochs=given.epochs, compute_dtype=given.dtype, dataset=given.data, trajectory=()
    )
    petaflop = config.num_steps * training_flops(config) / 1e15
    device = jax.devices()[0].device_kind
    first = [f"{plugins.VARIABLE}={brought}"] if brought else []
    command = shlex.join([*first, "python", "-m", "benchmarks.fast", *sys.argv[1:]])
    told = f"{config.num_steps} steps of {config.train_batch_size} examples, width {config.width or 64}"
    lines = [f"# recipe=fast on {device}", "", f"`{command}`", ""]
    lines += [f"{told}: {petaflop:.4f} PFLOP of convolutions and products a run.", ""]
    print("\n".join(lines), flush=True)
    goals = [Goal("PFLOP of a run", petaflop, MOST_PETAFLOP)]
    rows = [steps(config, given.rounds)]
    if given.data:
        accuracies, seconds = whole(config, given.runs, False)
        spread = f" ± {100 * statistics.stdev(accuracies):.2f}" if given.runs > 1 else ""
        told = f"{given.runs} runs one after the other, {seconds / given.runs:.1f} s each"
        lines += [f"Test accuracy {100 * statistics.mean(accuracies):.2f}{spread} %, {told}.", ""]
        goals.append(Goal("test error of a run", 1 - statistics.mean(accuracies), 1 - ACCURACY + 0.002))
        if not small:
            _, at_once = whole(config, given.runs, True)
            goals.append(Goal("seconds of a run", seconds / given.runs, MOST_SECONDS))
            goals.append(Goal("time side by side over one after the other", at_once / seconds, 1.0))
    rows[0] = rows[0]._replace(goals=(*rows[0].goals, *goals))
    text = "\n".join([*lines, GOALS_HEADER, *goals_markdown(rows), "", HEADER, *map(markdown, rows)]) + "\n"
    stem = file_stem(device, *(name.rpartition(".")[2] for name in brought.split(",")))
    (Path(__file__).parent / "results" / f"fast_{stem}.md").write_text(text)
    print(text)


if __name__ == "__main__":
    main()
