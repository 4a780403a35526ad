"""The CPU convolution: the values and gradients of the plain one, alone, in loops, under vmap and in networks."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from datadiet.models import conv

NHWC = ("NHWC", "HWIO", "NHWC")
CASES = {  # batch, height, width, inputs, kernel, outputs, strides, padding
    "same": (6, 8, 7, 3, (3, 3), 5, (1, 1), "SAME"),
    "strided": (6, 8, 8, 3, (3, 3), 5, (2, 2), "SAME"),
    "strided, odd sides": (4, 9, 7, 2, (3, 3), 3, (2, 1), "SAME"),
    "1x1 strided": (6, 8, 8, 4, (1, 1), 5, (2, 2), "SAME"),
    "valid, input left over": (5, 9, 8, 2, (3, 2), 3, (2, 3), "VALID"),
    "explicit padding, even kernel": (3, 6, 6, 2, (2, 4), 3, (1, 1), ((2, 0), (1, 3))),
    "one example": (1, 6, 6, 2, (3, 3), 3, (1, 1), "SAME"),
}


@pytest.fixture(autouse=True)
def cpu(monkeypatch):
    monkeypatch.setattr(conv, "on_cpu", lambda: True)


def drawn(case):
    batch, height, width, inputs, size, outputs, strides, padding = CASES[case]
    rng = np.random.default_rng(0)
    a, kernel = (
        jnp.asarray(rng.normal(size=shape), jnp.float32)
        for shape in ((batch, height, width, inputs), (*size, inputs, outputs))
    )
    return a, kernel, strides, padding


def loss_of(convolution, strides, padding):
    def loss(a, kernel):
        return jnp.sum(jnp.sin(convolution(a, kernel, strides, padding, dimension_numbers=NHWC)))

    return loss


def assert_close(got, expected):
    for x, y in zip(jax.tree.leaves(got), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(x, y, rtol=2e-5, atol=2e-5 * float(jnp.max(jnp.abs(y))))


@pytest.mark.parametrize("positions", [1, 64, 10**6])
@pytest.mark.parametrize("case", CASES)
def test_equals_the_plain_convolution(case, positions, monkeypatch):
    monkeypatch.setattr(conv, "CHUNK_POSITIONS", positions)
    a, kernel, strides, padding = drawn(case)
    both = [loss_of(f, strides, padding) for f in (conv.conv_general_dilated, jax.lax.conv_general_dilated)]
    assert_close(*[jax.jit(jax.value_and_grad(f, (0, 1)))(a, kernel) for f in both])


def test_equals_the_plain_convolution_under_vmap_and_scan():
    a, kernel, strides, padding = drawn("strided")
    a = jnp.stack([a, 2 * a])
    results = []
    for convolution in (conv.conv_general_dilated, jax.lax.conv_general_dilated):
        gradient = jax.grad(loss_of(convolution, strides, padding), (0, 1))
        mapped = jax.vmap(gradient, (0, None))(a, kernel)
        results.append((mapped, jax.lax.map(lambda x, f=gradient: f(x, kernel), a)))
    assert_close(*results)


@pytest.mark.parametrize(
    "options",
    [{"feature_group_count": 2}, {"rhs_dilation": (2, 2)}, {"lhs_dilation": (2, 2), "padding": ((2, 1), (2, 1))}],
)
def test_other_convolutions_are_left_to_jax(options):
    a, kernel = jnp.ones((2, 6, 6, 4)), jnp.ones((3, 3, 4 // options.get("feature_group_count", 1), 2))
    arguments = {"window_strides": (1, 1), "padding": "SAME", "dimension_numbers": NHWC, **options}
    jaxpr = jax.make_jaxpr(lambda a, k: conv.conv_general_dilated(a, k, **arguments))(a, kernel)
    assert [equation.primitive.name for equation in jaxpr.eqns] == ["conv_general_dilated"]


def test_other_backends_get_the_plain_convolution(monkeypatch):
    monkeypatch.setattr(conv, "on_cpu", lambda: False)
    a, kernel, strides, padding = drawn("same")
    function = lambda a, k: conv.conv_general_dilated(a, k, strides, padding, dimension_numbers=NHWC)  # noqa: E731
    assert [e.primitive.name for e in jax.make_jaxpr(function)(a, kernel).eqns] == ["conv_general_dilated"]


def test_only_the_gradient_that_is_asked_for_is_traced():
    a, kernel, strides, padding = drawn("same")
    loss = loss_of(conv.conv_general_dilated, strides, padding)
    along_input = str(jax.make_jaxpr(jax.grad(loss, 0))(a, kernel))
    along_kernel = str(jax.make_jaxpr(jax.grad(loss, 1))(a, kernel))
    assert "dot_general" not in along_input
    assert "rev" not in along_kernel


def test_is_a_drop_in_for_a_flax_layer():
    a = drawn("strided")[0]
    plain, fast = (nn.Conv(5, (3, 3), 2, conv_general_dilated=f) for f in (None, conv.conv_general_dilated))
    params = plain.init(jax.random.key(0), a)
    assert jax.tree.structure(params) == jax.tree.structure(fast.init(jax.random.key(0), a))
    gradients = [jax.grad(lambda p, layer=layer: jnp.sum(layer.apply(p, a) ** 2))(params) for layer in (fast, plain)]
    assert_close(*gradients)


@pytest.mark.parametrize(
    ("examples", "positions", "chunk"), [(128, 1024, 2), (128, 256, 8), (7, 64, 7), (3, 4096, 1), (31, 256, 31)]
)
def test_chunks_divide_the_batch_and_are_not_tiny(examples, positions, chunk):
    assert conv.chunk_size(examples, positions) == chunk
