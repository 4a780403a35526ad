"""The program that a GPU is given, looked at without one: nothing in it waits for the host, and the memory of the state
is used again."""

from __future__ import annotations

import re
from dataclasses import replace

import jax
import numpy as np
import pytest
from test_train import setup

from datadiet.config import TrainConfig, resolve
from datadiet.data.batches import fit_images
from datadiet.data.registry import load_dataset
from datadiet.devices import ONE
from datadiet.models.registry import build_model
from datadiet.training import loop
from datadiet.training.feed import Feed
from datadiet.training.schedule import Schedule
from datadiet.training.state import initial_state, on_device
from datadiet.training.step import _evaluate, _run_chunk, nothing_found

HOST = (
    "callback",
    "infeed",
    "outfeed",
    "stablehlo.send",
    "stablehlo.recv",
    "host_compute",
    "SendToHost",
    "RecvFromHost",
)


@pytest.fixture(scope="module")
def digits():
    few = load_dataset("digits")
    return replace(few, train_images=few.train_images[:64], train_labels=few.train_labels[:64])


@pytest.fixture
def cuda(monkeypatch):
    """Programs are written as for a GPU, and lowered for one."""
    monkeypatch.setattr("datadiet.models.conv.on_cpu", lambda: False)

    def lowered(function, static, arguments, donated=()) -> str:
        program = jax.jit(function, static_argnums=tuple(range(len(static))), donate_argnums=donated)
        return program.trace(*static, *arguments).lower(lowering_platforms=("cuda",)).as_text()

    return lowered


def shaped(digits, dtype="float32"):
    """A training of simple_cnn_0, as shapes: network, splits, config and state."""
    given = {"model": "simple_cnn_0", "width": 4, "train_batch_size": 8, "trajectory": ("forget",), "num_steps": 30}
    config = resolve(TrainConfig(dataset="digits", compute_dtype=dtype, **given), digits.num_examples)
    dataset = fit_images(digits, (32, 32, 3))
    network = build_model(config.model, dataset.num_classes, dataset.image_shape, config.width, dtype)
    state = jax.eval_shape(lambda: initial_state(network, config, dataset.num_examples))
    return network, on_device(dataset, "train"), on_device(dataset, "test"), config, state


def training_program(cuda, digits, dtype="float32") -> tuple[str, int]:
    """As text, and the number of leaves of the state that it is given."""
    network, train, _, config, state = shaped(digits, dtype)
    _, ids, rows, epochs, _ = Feed(train, [Schedule(config, np.arange(64, dtype=np.int32))], 30).like()
    arguments = (jax.random.key(0), train, state, ids[0], rows[0], epochs[0], np.int32(3))
    static = (network, loop.program_config(config), ONE)
    return cuda(_run_chunk, static, arguments, donated=(5,)), len(jax.tree.leaves(state))


def test_no_step_waits_for_the_host_and_the_state_is_used_again(cuda, digits):
    text, leaves = training_program(cuda, digits)
    assert "stablehlo.convolution" in text
    assert text.count("stablehlo.while") >= 1, "a call takes many steps"
    assert not [word for word in HOST if word in text]
    given = re.search(r"func\.func public @main\((.*?)\) ->", text, re.DOTALL)
    assert given is not None
    assert given[1].count("tf.aliasing_output") == leaves


def test_an_evaluation_does_not_wait_for_the_host(cuda, digits):
    network, _, test, _, state = shaped(digits)
    nothing = nothing_found(network, len(test.labels))
    text = cuda(_evaluate, (network, 64, ONE), (state.variables, test, np.int32(0), nothing))
    assert "stablehlo.convolution" in text
    assert not [word for word in HOST if word in text]


@pytest.mark.parametrize(("dtype", "mlir"), [("bfloat16", "bf16"), ("float32", "f32")])
def test_convolutions_are_computed_as_said(cuda, digits, dtype, mlir):
    """Forward, and both gradients; the state stays float32."""
    text, _ = training_program(cuda, digits, dtype)
    convolutions = re.findall(r"stablehlo\.convolution.*?-> tensor<[0-9x]*x(\w+)>", text)
    assert len(convolutions) >= 17  # six layers, the first of which needs no gradient of its input
    assert set(convolutions) == {mlir}
    results = re.search(r"func\.func public @main\(.*?\) -> \((.*?)\) \{", text, re.DOTALL)
    assert results is not None
    assert "bf16" not in results[1]


def test_nothing_is_fetched_between_two_reports(digits, monkeypatch):
    """However many calls of the device the steps between them take."""
    from jax._src.array import ArrayImpl

    fetched, value = [], ArrayImpl._value
    monkeypatch.setattr(ArrayImpl, "_value", property(lambda array: fetched.append(1) or value.fget(array)))
    counts = []
    for steps in (20, 20, 2):  # programs are compiled in the first
        monkeypatch.setattr(loop, "CHUNK_STEPS", steps)
        network, *splits, config, state = setup(digits, log_steps=20, num_steps=20, train_batch_size=8)
        calls: list[int] = []
        fetched.clear()
        for _ in loop.fit(network, *splits, np.arange(64, dtype=np.int32), config, state, calls.append):
            pass
        counts.append((len(fetched), len(calls)))
    _, (few, _), (many, calls) = counts
    assert calls >= 10
    assert few, "what is counted"
    assert few == many
