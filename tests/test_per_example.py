"""Gradient norms: equal to naive oracles, to the original's numbers, and indifferent to how they are computed."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import drawn_variables
from flax import linen as nn
from oracles import gradient_norms

from datadiet.models.networks import Network
from datadiet.models.registry import MODELS, build_model
from datadiet.scores.gradients import grad_norms, grad_norms_by_vmap, parameters_without_rule

GOLDEN = Path(__file__).parent / "golden"
grad_norms = jax.jit(grad_norms, static_argnums=0)
by_vmap = jax.jit(grad_norms_by_vmap, static_argnums=0)


def batch(shape, size=5, seed=0):
    images = np.random.default_rng(seed).normal(size=(size, *shape)).astype(np.float32)
    return jnp.asarray(images), jnp.arange(size, dtype=jnp.int32) % 3


def unruled(network, variables, images):
    return parameters_without_rule(network, variables, images)


class Layered(nn.Module):
    """A stack of layers, then a mean over positions and a dense head."""

    layers: tuple[nn.Module, ...]

    @nn.compact
    def __call__(self, x, train):
        for layer in self.layers:
            x = nn.relu(layer(x))
        return nn.Dense(3)(x.reshape(x.shape[0], -1))


class Tied(nn.Module):
    """Reads a layer's kernel a second time, past the layer."""

    @nn.compact
    def __call__(self, x, train):
        dense = nn.Dense(6, name="encoder")
        x = nn.relu(dense(x))
        return (x @ dense.variables["params"]["kernel"].T)[:, :3]


class Columns(nn.Module):
    """One dense layer, vmapped over an axis behind the batch: its parameters are shared within an example."""

    @nn.compact
    def __call__(self, x, train):
        shared = nn.vmap(nn.Dense, variable_axes={"params": None}, split_rngs={"params": False}, in_axes=1, out_axes=1)
        return nn.Dense(3)(nn.relu(shared(4)(x)).reshape(x.shape[0], -1))


class Swapped(nn.Module):
    """A dense layer that sees the batch as its second axis."""

    @nn.compact
    def __call__(self, x, train):
        return nn.Dense(3)(nn.Dense(4)(x.swapaxes(0, 1)).swapaxes(0, 1).reshape(x.shape[0], -1))


class OwnParameter(nn.Module):
    """A parameter of its own before layers with rules."""

    @nn.compact
    def __call__(self, x, train):
        return nn.Dense(3)(x * self.param("gain", nn.initializers.ones, x.shape[-1:]))


class Masked(nn.Module):
    """A convolution some of whose weights are held at zero."""

    @nn.compact
    def __call__(self, x, train):
        conv = nn.Conv(4, (3, 3), mask=jnp.ones((3, 3, 2, 4)).at[0].set(0))
        return nn.Dense(3)(nn.relu(conv(x)).reshape(x.shape[0], -1))


class Rematerialised(nn.Module):
    """A layer inside a computation that the trace cannot see into."""

    @nn.compact
    def __call__(self, x, train):
        return nn.Dense(3)(nn.relu(nn.remat(nn.Dense)(5)(x)))


shared_layer = nn.Dense(6)
RULED = {
    "dense on vectors": ((nn.Dense(4),), (6,)),
    "dense on positions": ((nn.Dense(9, use_bias=False), nn.Dense(2)), (5, 2, 6)),
    "dense on many positions": ((nn.Dense(3),), (8, 8, 2)),
    "conv": ((nn.Conv(4, (3, 3)), nn.Conv(5, (3, 3), 2, use_bias=False)), (7, 6, 2)),
    "wide conv": ((nn.Conv(32, (3, 3)), nn.Conv(32, (3, 3), (2, 1))), (4, 5, 16)),
    "conv, even kernel, explicit padding": ((nn.Conv(4, (2, 4), padding=((0, 1), (2, 1))),), (6, 6, 3)),
    "conv without padding, 1x1": ((nn.Conv(4, (3, 2), padding="VALID"), nn.Conv(6, (1, 1), (2, 2))), (6, 6, 3)),
    "batch norm": ((nn.Conv(4, (3, 3)), nn.BatchNorm(use_running_average=True)), (5, 5, 2)),
    "layer norm": ((nn.Dense(6), nn.LayerNorm()), (6,)),
    "layer norm on positions, no bias": ((nn.LayerNorm(use_bias=False), nn.Dense(4)), (5, 6)),
    "attention": ((nn.MultiHeadDotProductAttention(2, deterministic=True),), (5, 6)),
    "dense on two axes": ((nn.DenseGeneral((2, 3), axis=(-2, -1), use_bias=False),), (4, 5, 2)),
    "batch norm, bias only": ((nn.Dense(4), nn.BatchNorm(use_running_average=True, use_scale=False)), (6,)),
    "batch norm, scale only": ((nn.Dense(4), nn.BatchNorm(use_running_average=True, use_bias=False)), (6,)),
}
UNRULED = {
    "shared layer": (Layered((shared_layer, shared_layer)), (6,), "layers_0/bias"),
    "group norm": (Layered((nn.Dense(6), nn.GroupNorm(2))), (6,), "layers_1/bias"),
    "grouped conv": (Layered((nn.Conv(4, (3, 3), feature_group_count=2),)), (5, 5, 2), "layers_0/bias"),
    "dilated conv": (Layered((nn.Conv(4, (3, 3), kernel_dilation=2),)), (5, 5, 2), "layers_0/bias"),
    "circular conv": (Layered((nn.Conv(4, (3, 3), padding="CIRCULAR"),)), (5, 5, 2), "layers_0/bias"),
    "masked conv": (Masked(), (5, 5, 2), "Conv_0/bias"),
    "tied kernel": (Tied(), (6,), "encoder/kernel"),
    "vmapped layer": (Columns(), (4, 5), None),
    "batch behind": (Swapped(), (4, 5), None),
    "own parameter": (OwnParameter(), (6,), "gain"),
    "rematerialised": (Rematerialised(), (6,), None),
}


@pytest.mark.parametrize("case", RULED)
def test_one_pass_equals_a_loop_of_single_gradients(case):
    layers, shape = RULED[case]
    network = Network(Layered(layers), shape)
    variables, (images, labels) = drawn_variables(network), batch(shape)
    assert unruled(network, variables, images) == []
    expected = gradient_norms(network, variables, images, labels)
    np.testing.assert_allclose(grad_norms(network, variables, images, labels), expected, rtol=2e-5)


@pytest.mark.parametrize("case", UNRULED)
def test_layers_without_a_rule_are_found_and_still_exact(case):
    module, shape, parameter = UNRULED[case]
    network = Network(module, shape)
    variables, (images, labels) = drawn_variables(network), batch(shape)
    names = unruled(network, variables, images)
    assert names
    assert parameter is None or parameter in names
    expected = gradient_norms(network, variables, images, labels)
    with pytest.warns(UserWarning, match="no single-pass rule"):
        values = grad_norms(network, variables, images, labels)
    np.testing.assert_allclose(values, expected, rtol=2e-5)


FEWER = {"resnet50_lowres": {"stages": (1, 1)}, "wrn16_4": {"depth": 10, "widening": 1}, "vit_ti_4": {"depth": 1}}


@pytest.mark.parametrize("model", MODELS)
def test_one_pass_equals_vmap_for_every_model(model):
    network = build_model(model, 10, (32, 32, 3), width=8)
    variables, (images, labels) = drawn_variables(network), batch((32, 32, 3), size=3)
    assert unruled(network, variables, images) == []
    if model in FEWER:  # its values at one block of either stride: more of them only take longer to compile
        network = Network(network.module.clone(**FEWER[model]), network.image_shape)
        variables = drawn_variables(network)
    values = grad_norms(network, variables, images, labels)
    np.testing.assert_allclose(values, by_vmap(network, variables, images, labels), rtol=2e-5)


@pytest.mark.parametrize(("model", "file"), [("simple_cnn_0", "simple_cnn"), ("resnet18_lowres", "resnet18_w8")])
def test_agrees_with_the_original(model, file):
    golden = np.load(GOLDEN / f"{file}.npz")
    width = golden["params/conv_init/kernel" if "resnet" in model else "params/Conv_0/kernel"].shape[-1]
    network = build_model(model, 10, (32, 32, 3), width)
    variables = {"params": {}, "batch_stats": {}}
    for name in golden.files:
        if name.startswith(("params/", "batch_stats/")):
            *path, leaf = name.split("/")
            node = variables
            for part in path:
                node = node.setdefault(part, {})
            node[leaf] = golden[name]
    values = grad_norms(network, variables, golden["images"], golden["labels"])
    np.testing.assert_allclose(values, golden["score/grad_norm"], rtol=1e-4)


def test_order_and_batch_size_change_nothing():
    network = build_model("simple_cnn_0", 10, (32, 32, 3), width=4)
    variables, (images, labels) = drawn_variables(network), batch((32, 32, 3), size=7)
    values = np.asarray(grad_norms(network, variables, images, labels))
    order = np.array([3, 6, 0, 5, 1, 2, 4])
    np.testing.assert_allclose(grad_norms(network, variables, images[order], labels[order]), values[order], rtol=1e-5)
    alone = [grad_norms(network, variables, images[i : i + 1], labels[i : i + 1])[0] for i in range(7)]
    np.testing.assert_allclose(alone, values, rtol=1e-5)
    assert values.dtype == np.float32
    assert values.shape == (7,)


@pytest.mark.parametrize("form", ["product", "gram", "shifts"])
def test_every_form_of_a_convolution_gives_the_same(form, monkeypatch):
    network = Network(Layered((nn.Conv(6, (3, 2), (2, 1)),)), (7, 6, 4))
    variables, (images, labels) = drawn_variables(network), batch((7, 6, 4))
    monkeypatch.setattr("datadiet.scores.rules.cheapest_form", lambda *_: form)
    values = grad_norms(network, variables, images, labels)
    np.testing.assert_allclose(values, gradient_norms(network, variables, images, labels), rtol=2e-5)


@pytest.mark.parametrize("backend", ["cpu", "gpu"])
def test_every_backend_s_way_over_examples_gives_the_same(backend, monkeypatch):
    network = Network(Layered((nn.Conv(6, (3, 3)), nn.Dense(5))), (6, 6, 4))
    variables, (images, labels) = drawn_variables(network), batch((6, 6, 4))
    monkeypatch.setattr(jax, "default_backend", lambda: backend)
    values = grad_norms(network, variables, images, labels)
    np.testing.assert_allclose(values, gradient_norms(network, variables, images, labels), rtol=2e-5)


def test_no_gradient_of_a_parameter_is_computed(as_users_have):
    network = Network(Layered((nn.Conv(12, (3, 3)), nn.Conv(12, (3, 3)))), (8, 8, 3))
    variables, (images, labels) = drawn_variables(network), batch((8, 8, 3))
    program = grad_norms.lower(network, variables, images, labels).compile().as_text()
    convolutions = [line for line in program.splitlines() if " convolution(" in line]
    assert len(convolutions) == 3  # two forward, one towards the first layer's output
    assert all("f32[5,8,8," in line.split("=")[1] for line in convolutions)


def test_memory_is_bounded_by_the_batch_not_by_batch_times_parameters(as_users_have):
    network = Network(Layered((nn.Conv(128, (3, 3)), nn.Conv(128, (3, 3)), nn.Dense(512))), (4, 4, 64))
    variables, (images, labels) = drawn_variables(network), batch((4, 4, 64), size=64)
    parameters = sum(x.size for x in jax.tree.leaves(variables["params"]))
    used = grad_norms.lower(network, variables, images, labels).compile().memory_analysis().temp_size_in_bytes
    assert used < 0.15 * 64 * parameters * 4
