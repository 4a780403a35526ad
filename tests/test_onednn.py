"""Convolutions by oneDNN: the values and gradients of XLA's, where they were asked for and nowhere else."""

import sys
import sysconfig
from importlib import import_module

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_conv import CASES, assert_close, drawn, loss_of

from datadiet.errors import UserError
from datadiet.models import conv
from datadiet.plugins import VARIABLE, load_plugins

NAME = "datadiet.models.onednn"


@pytest.fixture
def onednn(monkeypatch):
    monkeypatch.setattr(conv, "on_cpu", lambda: True)
    monkeypatch.setattr(conv, "LIBRARY", {})
    try:
        import_module(NAME).use()
    except UserError as error:
        pytest.skip(str(error))


def calls(function, *arrays) -> int:
    """How many operations of a function are oneDNN's."""
    return str(jax.make_jaxpr(function)(*arrays)).count("target_name=datadiet_convolution")


@pytest.mark.parametrize("case", CASES)
def test_equals_xla_in_values_and_gradients(onednn, case):
    a, kernel, strides, padding = drawn(case)
    ours, plain = (loss_of(f, strides, padding) for f in (conv.conv_general_dilated, jax.lax.conv_general_dilated))
    assert calls(jax.value_and_grad(ours, (0, 1)), a, kernel) == 3
    assert_close(*(jax.jit(jax.value_and_grad(f, (0, 1)))(a, kernel) for f in (ours, plain)))


def test_equals_xla_where_oneDNN_prefers_a_kernel_of_another_layout(onednn):
    rng = np.random.default_rng(0)
    a, kernel = (jnp.asarray(rng.normal(size=s), jnp.float32) for s in ((4, 8, 8, 64), (3, 3, 64, 64)))
    losses = [loss_of(f, (1, 1), "SAME") for f in (conv.conv_general_dilated, jax.lax.conv_general_dilated)]
    assert_close(*(jax.jit(jax.value_and_grad(f, (0, 1)))(a, kernel) for f in losses))


def test_equals_xla_for_several_runs_at_once_and_in_a_loop(onednn):
    a, kernel, strides, padding = drawn("strided")
    kernels, results = jnp.stack([kernel, 2 * kernel, -kernel]), []
    for convolution in (conv.conv_general_dilated, jax.lax.conv_general_dilated):
        gradient = jax.grad(loss_of(convolution, strides, padding), (0, 1))
        mapped = jax.jit(jax.vmap(gradient, (None, 0)))(a, kernels)
        results.append((mapped, jax.jit(lambda k, f=gradient: jax.lax.map(lambda x: f(a, x), k))(kernels)))
    assert_close(*results)


def test_a_call_has_the_same_bytes_each_time(onednn):
    a, kernel, strides, padding = drawn("same")
    gradient = jax.jit(jax.grad(loss_of(conv.conv_general_dilated, strides, padding), (0, 1)))
    first, *others = ([leaf.tobytes() for leaf in map(np.asarray, gradient(a, kernel))] for _ in range(5))
    assert all(other == first for other in others)


def test_other_types_pads_and_backends_are_left_to_xla(onednn, monkeypatch):
    a, kernel, strides, padding = drawn("same")

    def count(padding=padding, *arrays):
        return calls(loss_of(conv.conv_general_dilated, strides, padding), *(arrays or (a, kernel)))

    assert count() == 1
    assert count(padding, a.astype(jnp.bfloat16), kernel.astype(jnp.bfloat16)) == 0
    assert count(((-1, 0), (0, 0))) == 0
    monkeypatch.setattr(conv, "on_cpu", lambda: False)
    assert count() == 0


def test_a_plugin_turns_it_on(onednn, monkeypatch):
    monkeypatch.setitem(sys.modules, NAME, None)
    del sys.modules[NAME]  # as in a new process; what is here comes back at the end
    conv.LIBRARY.clear()
    monkeypatch.setenv(VARIABLE, NAME)
    load_plugins()
    assert set(conv.LIBRARY) == {"forward", "input_gradient", "kernel_gradient"}


def test_without_the_library_what_repairs_it_is_said(monkeypatch, tmp_path):
    monkeypatch.setattr(sysconfig, "get_path", lambda name: str(tmp_path))
    monkeypatch.delitem(sys.modules, NAME, raising=False)
    with pytest.raises(UserError, match=r"no oneDNN 3 below .*pip install 'datadiet\[onednn\]'"):
        import_module(NAME)
    assert not conv.LIBRARY


def test_nothing_is_replaced_unless_asked_for():
    a, kernel, strides, padding = drawn("same")
    assert calls(loss_of(conv.conv_general_dilated, strides, padding), a, kernel) == 0
