"""Networks have the original's shapes, names and modes."""

from __future__ import annotations

from functools import partial

import jax
import jax.flatten_util
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import drawn_variables

import datadiet as dd
from datadiet.errors import UserError
from datadiet.models.networks import Network
from datadiet.models.registry import MODELS, input_shape


def count(tree) -> int:
    return sum(leaf.size for leaf in jax.tree.leaves(tree))


def test_leaves_are_named_and_shaped_as_in_the_original(golden):
    shapes = jax.tree.map(jnp.shape, jax.eval_shape(golden.network.init, jax.random.key(0)))
    assert shapes == jax.tree.map(np.shape, golden.variables)


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("resnet18_lowres", 11_173_962), ("resnet50_lowres", 23_520_842), ("simple_cnn_0", 288_298), ("mlp", 855_050),
        ("fast_cnn", 1_971_362), ("wrn16_4", 2_748_890), ("vit_ti_4", 5_350_090),
    ],
)  # fmt: skip
def test_parameter_counts(name, parameters):
    network = dd.build_model(name, num_classes=10, image_shape=(32, 32, 3))
    variables = jax.eval_shape(network.init, jax.random.key(0))
    assert count(variables["params"]) == parameters


def test_only_the_last_scale_of_a_bottleneck_starts_at_zero():
    network = dd.build_model("resnet50_lowres", 10, (32, 32, 3), width=4)

    @jax.jit  # so that no kernel is drawn
    def scales_of(key):
        leaves = jax.tree_util.tree_leaves_with_path(network.init(key)["params"])
        return {jax.tree_util.keystr(path): leaf for path, leaf in leaves if "scale" in str(path)}

    scales = scales_of(jax.random.key(0))
    zero = {name for name, leaf in scales.items() if not leaf.any()}
    assert zero == {name for name in scales if "BatchNorm_2" in name}
    assert len(zero) == 16


def test_batch_norm_moves_a_tenth_of_the_way_to_the_batch():
    network = dd.build_model("resnet18_lowres", 10, (32, 32, 3), width=4)
    variables = drawn_variables(network)
    images = 3 + 2 * jax.random.normal(jax.random.key(1), (16, 32, 32, 3))
    moved = jax.jit(lambda *given: network.apply_training(*given)[1]["bn_init"])(variables, images)
    kernel, before = variables["params"]["conv_init"]["kernel"], variables["batch_stats"]["bn_init"]
    stem = jax.lax.conv_general_dilated(images, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))
    np.testing.assert_allclose(moved["mean"], 0.9 * before["mean"] + 0.1 * stem.mean((0, 1, 2)), rtol=1e-3)
    np.testing.assert_allclose(moved["var"], 0.9 * before["var"] + 0.1 * stem.var((0, 1, 2)), rtol=1e-3)


FEWER = {
    "resnet18_lowres": {"stages": (1, 1)},
    "resnet50_lowres": {"stages": (1,)},
    "wrn16_4": {"depth": 10, "widening": 1},
    "vit_ti_4": {"depth": 1},
}


def small(name: str, dtype: str = "float32") -> Network:
    """A network of few and narrow blocks: more of them only take longer to compile."""
    network = dd.build_model(name, 10, (32, 32, 3), 4, dtype)
    return Network(network.module.clone(**FEWER[name]), network.image_shape) if name in FEWER else network


@pytest.mark.parametrize("name", MODELS)
def test_examples_do_not_mix_in_evaluation_mode(name):
    network = small(name)
    variables = drawn_variables(network)
    images = jax.random.normal(jax.random.key(1), (6, 32, 32, 3))
    apply = jax.jit(network.apply)
    logits = apply(variables, images)
    assert logits.shape == (6, 10)
    changed = images.at[:2].set(0).at[4:].multiply(9)
    np.testing.assert_allclose(apply(variables, changed)[2:4], logits[2:4], rtol=1e-4, atol=1e-5)


def test_small_images_are_padded_up_to_what_a_model_takes():
    assert input_shape("resnet18_lowres", (28, 28, 1)) == (32, 32, 3)
    assert input_shape("resnet18_lowres", (64, 64, 3)) == (64, 64, 3)
    assert input_shape("mlp", (28, 28, 1)) == (28, 28, 1)
    assert input_shape("mlp", (384,)) == (384,)
    with pytest.raises(UserError, match="takes images .* use model=mlp"):
        input_shape("simple_cnn_0", (384,))
    with pytest.raises(UserError, match="model='vgg': expected one of resnet18_lowres"):
        dd.build_model("vgg", 10, (32, 32, 3))


@pytest.mark.parametrize("name", MODELS)
def test_bfloat16_is_close_and_stays_inside(name):
    full, half = (small(name, dtype) for dtype in ("float32", "bfloat16"))
    key = jax.random.key(0, impl="rbg")  # which takes a moment to compile
    variables, of_half = jax.jit(lambda key: (full.init(key), half.init(key)))(key)
    jax.tree.map(np.testing.assert_array_equal, variables, of_half)
    images, labels = jax.random.normal(jax.random.key(1), (8, 32, 32, 3)), jnp.arange(8)

    @partial(jax.jit, static_argnums=0)
    def step(network, variables):
        def loss(params):
            logits, stats = network.apply_training({**variables, "params": params}, images)
            return -jax.nn.log_softmax(logits)[jnp.arange(8), labels].mean(), (logits, stats)

        return jax.grad(loss, has_aux=True)(variables["params"])

    (gradient, (logits, stats)), (exact, (expected, exact_stats)) = (step(n, variables) for n in (half, full))
    assert {leaf.dtype for leaf in jax.tree.leaves((gradient, logits, stats))} == {jnp.dtype("float32")}
    # Batch norm takes means off the gradient of a fresh network that are much larger than what is left.
    for one, other, most in ((logits, expected, 0.05), (gradient, exact, 0.4), (stats, exact_stats, 0.05)):
        one, other = (jax.flatten_util.ravel_pytree(tree)[0] for tree in (one, other))
        assert float(jnp.linalg.norm(one - other)) <= most * float(jnp.linalg.norm(other))
    assert not np.array_equal(logits, expected)
    norms = [dd.compute_scores("grad_norm", network, variables, images, labels) for network in (half, full)]
    np.testing.assert_allclose(*norms, rtol=0.1)
    assert "bf16" not in str(jax.make_jaxpr(full.apply)(variables, images)), "nothing of it without being asked"


def test_no_width_and_no_classes_are_refused():
    with pytest.raises(UserError, match="width=0: expected a whole number of at least 1"):
        dd.build_model("mlp", 10, (8, 8, 1), width=0)
    with pytest.raises(UserError, match="num_classes=0: expected at least 1"):
        dd.build_model("mlp", 0, (8, 8, 1))
