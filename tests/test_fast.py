"""fast_cnn and recipe=fast: what they begin with, what a step does otherwise, and that what is given wins."""

from __future__ import annotations

import json
from dataclasses import replace
from itertools import pairwise

import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest
from conftest import datadiet

from benchmarks.fast import recipe, training_flops
from benchmarks.published_scores import over_runs, overlap, spearman
from datadiet.config import TrainConfig, resolve
from datadiet.data.batches import alternating_flips, fit_images
from datadiet.data.registry import load_dataset
from datadiet.errors import UserError
from datadiet.models import fast_cnn
from datadiet.models.fast_cnn import LEAST_VARIANCE, halve, whitening_kernel
from datadiet.models.registry import build_model
from datadiet.recipes import RECIPES, recipe_values
from datadiet.storage.runs import open_run
from datadiet.train_config import FIELDS
from datadiet.training.loop import fit
from datadiet.training.schedule import Schedule
from datadiet.training.state import initial_state, learning_rate, on_device, optimizer
from datadiet.training.step import _augmented, training_loss

RANDOM = np.random.RandomState(3)
SMALL = {"dataset": "digits", "width": 2, "train_batch_size": 64, "trajectory": "none", "offline": "true"}


@pytest.fixture(scope="module")
def digits():
    return load_dataset("digits")


# --- the first layer --------------------------------------------------------------------------


def patches_of(images: np.ndarray) -> np.ndarray:
    """Every 2x2 patch as a vector (row, column, channel), one by one."""
    count, height, width, depth = images.shape
    found = []
    for i in range(count):
        for row in range(height - 1):
            for column in range(width - 1):
                found.append(images[i, row : row + 2, column : column + 2].reshape(4 * depth))
    return np.array(found)


def test_whitened_patches_are_uncorrelated_with_variance_one_up_to_the_least():
    smooth = RANDOM.randint(0, 256, (30, 5, 5, 3)).repeat(2, axis=1).repeat(2, axis=2).astype(np.uint8)
    mean, std = smooth.mean((0, 1, 2)) / 255, smooth.std((0, 1, 2)) / 255
    kernel = whitening_kernel(smooth, mean, std)
    assert kernel.shape == (2, 2, 3, 24)
    assert kernel.dtype == np.float32
    patches = patches_of((smooth / 255 - mean) / std)
    seen = patches @ kernel.reshape(12, 24).astype(np.float64)
    np.testing.assert_allclose(seen[:, 12:], -seen[:, :12])
    centred = patches - patches.mean(0)
    variances = np.sort(np.linalg.eigvalsh(centred.T @ centred / len(patches)))[::-1]
    expected = np.diag(variances / (variances + LEAST_VARIANCE))
    np.testing.assert_allclose(np.cov(seen[:, :12].T, bias=True), expected, atol=1e-4)


def test_whitening_depends_on_the_images_alone(monkeypatch):
    images = RANDOM.randint(0, 256, (40, 6, 6, 3)).astype(np.uint8)
    whole = whitening_kernel(images, np.full(3, 0.5), np.full(3, 0.25))
    monkeypatch.setattr(fast_cnn, "CHUNK", 7)
    np.testing.assert_array_equal(whitening_kernel(images, np.full(3, 0.5), np.full(3, 0.25)), whole)


def test_whitening_sees_all_classes_where_they_come_one_after_the_other(digits, monkeypatch):
    monkeypatch.setattr("datadiet.models.networks.SAMPLE", 40)
    ordered = replace(fit_images(digits, (32, 32, 3)), train_images=np.zeros((400, 32, 32, 3), np.uint8))
    ordered.train_images[200:] = 255
    seen = []
    monkeypatch.setattr(
        fast_cnn.FastCNN, "begun", lambda module, stats, images, mean, std: seen.append(images) or stats
    )
    build_model("fast_cnn", 10, (32, 32, 3), 2).begun({"batch_stats": {}}, ordered, np.arange(0, 400, 2))
    assert len(seen[0]) == 40
    assert seen[0].mean() == 127.5


def test_convolutions_begin_as_identities():
    for shape in ((3, 3, 4, 6), (3, 3, 6, 4)):
        kernel, same = fast_cnn.partial_identity(jax.random.key(0), shape), min(shape[2:])
        x = jnp.asarray(RANDOM.normal(size=(2, 5, 5, shape[2])), jnp.float32)
        y = jax.lax.conv_general_dilated(x, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))
        np.testing.assert_allclose(y[..., :same], x[..., :same], rtol=1e-5)
        assert np.abs(kernel[..., same:]).max(initial=0) <= (9 * shape[2]) ** -0.5


def test_halving_takes_the_largest_of_four():
    x = RANDOM.normal(size=(2, 5, 4, 3)).astype(np.float32)
    expected = [[x[:, 2 * r : 2 * r + 2, 2 * c : 2 * c + 2].max((1, 2)) for c in range(2)] for r in range(2)]
    np.testing.assert_array_equal(halve(jnp.asarray(x)), np.array(expected).transpose(2, 0, 1, 3))


# --- flips ------------------------------------------------------------------------------------


def test_every_image_is_seen_flipped_and_unflipped_in_turns():
    ids = jnp.asarray(RANDOM.permutation(600)[:500])
    epochs = np.array([alternating_flips(jax.random.key(7), ids, jnp.int32(epoch)) for epoch in range(4)])
    for earlier, later in pairwise(epochs):
        np.testing.assert_array_equal(later, ~earlier)
    assert 0.4 < epochs[0].mean() < 0.6, "half of them begin flipped"
    again = alternating_flips(jax.random.key(7), ids[::-1], jnp.int32(0))
    np.testing.assert_array_equal(again[::-1], epochs[0], "of the id, whatever the batch")
    assert 0.3 < (alternating_flips(jax.random.key(8), ids, jnp.int32(0)) != epochs[0]).mean() < 0.7


def test_a_step_shows_the_image_or_its_mirror_by_its_epoch(digits):
    config = resolve(TrainConfig(dataset="digits", model="mlp", pad=0, flip="alternating"), digits.num_examples)
    ids, key, images = jnp.arange(50), jax.random.key(1), jnp.asarray(digits.train_images)
    seen = [_augmented(config, key, jnp.int32(9 + e), images, ids, ids, e) for e in range(3)]
    np.testing.assert_array_equal(seen[1], np.asarray(seen[0])[:, :, ::-1])
    np.testing.assert_array_equal(seen[2], seen[0])
    plain = replace(config, flip="none")
    np.testing.assert_array_equal(_augmented(plain, key, jnp.int32(9), images, ids, ids, 0), images[:50])


def test_each_batch_knows_its_epoch_wherever_training_goes_on():
    config = resolve(TrainConfig(train_batch_size=16, num_steps=40), 100)
    schedule = Schedule(config, np.arange(100, dtype=np.int32))
    ids, epochs = schedule.ids(0, 24), schedule.epochs(0, 24)
    assert epochs.tolist() == [step // 6 for step in range(24)]
    assert all(len(np.unique(ids[epochs == epoch])) == 96 for epoch in range(4)), "each image once in an epoch"
    np.testing.assert_array_equal(schedule.epochs(7, 9), epochs[7:16])


# --- loss, rates, weights ---------------------------------------------------------------------


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_label_smoothing_is_the_cross_entropy_to_smoothed_labels(smoothing):
    logits, labels = RANDOM.normal(size=(6, 4)).astype(np.float32), np.array([0, 1, 2, 3, 0, 1])
    found = training_loss(jnp.asarray(logits), jnp.asarray(labels), smoothing)
    for loss, p, label in zip(found, oracles.softmax(logits), labels):
        target = [smoothing / 4 + (1 - smoothing) * (c == label) for c in range(4)]
        assert float(loss) == pytest.approx(-sum(t * np.log(q) for t, q in zip(target, p)), rel=1e-5)


def test_the_triangular_rate_follows_its_formula():
    given = TrainConfig(lr=1.5, epochs=10, train_batch_size=1024, lr_triangle=(0.2, 0.25, 0.1))
    config = resolve(given, 50_000)
    assert (config.num_steps, config.decay_steps) == (480, ())
    for step in (1, 2, 60, 121, 122, 300, 480):
        t, peak = step - 1, 120
        part = 0.2 + 0.8 * t / peak if t <= peak else 1 - 0.9 * (t - peak) / (480 - peak)
        assert float(learning_rate(config, step)) == pytest.approx(1.5 * part, rel=1e-5), step
    decayed = replace(config, decay_steps=(300,), decay_factor=0.5)
    assert float(learning_rate(decayed, 301)) == pytest.approx(0.5 * float(learning_rate(config, 301)))


def test_biases_of_norms_have_their_rate_and_weights_return_to_their_mean():
    """Against a loop in plain numbers: SGD, Nesterov, coupled decay, then Lookahead."""
    given = {"lr": 0.1, "beta": 0.8, "weight_decay": 0.01, "norm_bias_lr": 16.0, "lookahead": 3, "num_steps": 7}
    config = resolve(TrainConfig(**given, decay_steps=()), 1000)
    params = {"norm": {"bias": 1.0}, "dense": {"kernel": 1.0, "bias": 1.0}}
    tx, current = optimizer(config), jax.tree.map(jnp.float32, params)
    state = tx.init(current)
    gradients = RANDOM.normal(size=7)
    for gradient in gradients:
        same = jax.tree.map(lambda _, g=gradient: jnp.float32(g), params)
        updates, state = tx.update(same, state, current)
        current = jax.tree.map(jnp.add, current, updates)
    for lr, decay, found in (
        (1.6, 0.01 / 16, current["norm"]["bias"]), (0.1, 0.01, current["dense"]["bias"]),
        (0.1, 0.01, current["dense"]["kernel"]),
    ):  # fmt: skip
        weight = slow = 1.0
        velocity = 0.0
        for t, gradient in enumerate(gradients, start=1):
            whole = gradient + decay * weight
            velocity = 0.8 * velocity + whole
            weight -= lr * (whole + 0.8 * velocity)
            if t in (3, 6, 7):
                pull = 0.95**3 * (t / 7) ** 3
                slow = weight = pull * slow + (1 - pull) * weight
        assert float(found) == pytest.approx(weight, rel=1e-4)


def test_a_run_of_the_recipe_continued_from_the_middle_ends_the_same(digits):
    values = dict(RECIPES["fast"].values) | {"model": "mlp", "num_steps": 30, "epochs": None, "save_steps": 10}
    config = resolve(TrainConfig(dataset="digits", width=8, **values | {"train_batch_size": 100}), digits.num_examples)
    network = build_model("mlp", 10, digits.image_shape, 8)
    splits = on_device(digits, "train"), on_device(digits, "test")
    kept = np.arange(digits.num_examples, dtype=np.int32)
    whole = []
    for report in fit(network, *splits, kept, config, initial_state(network, config, digits.num_examples)):
        whole.append(jax.device_get(report.state))
    middle = jax.tree.map(jnp.array, next(state for state in whole if state.step == 10))
    *_, last = fit(network, *splits, kept, config, middle)
    jax.tree.map(np.testing.assert_array_equal, whole[-1], jax.device_get(last.state))


# --- options and recipes ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"epochs": 3, "num_steps": 9}, "epochs=3: expected no such where num_steps=9 says it"),
        ({"augment": False, "pad": 2}, "pad=2: expected 4 where augment=false"),
        ({"augment": False, "flip": "none"}, "flip=none: expected random where augment=false"),
        ({"flip": "sometimes"}, "flip=sometimes: expected one of none, random, alternating"),
        ({"lr_triangle": (0.2, 0.3)}, "lr_triangle=0.2,0.3: expected three numbers"),
        ({"lr_triangle": (0.2, 1.0, 0.3)}, "the second above 0, below 1"),
        ({"lr_triangle": (0.2, 0.5, 0.3), "lr_vitaly": True}, "expected none where lr_vitaly=true"),
        ({"label_smoothing": 1.0}, "label_smoothing=1.0: expected a fraction below 1"),
    ],
)
def test_what_would_have_no_effect_is_refused(given, message):
    with pytest.raises(UserError, match=message.replace("(", r"\(")):
        resolve(TrainConfig(**given), 1000)


def test_recipes_name_options_and_yield_to_what_is_given():
    for known in RECIPES.values():
        assert known.values.keys() <= FIELDS.keys()
        assert resolve(TrainConfig(**known.values), 50_000).registered == ()
    steps = {size: resolve(TrainConfig(**RECIPES["fast"].values, size=size), 50_000).num_steps for size in (500, None)}
    assert steps == {500: 528, None: 528}, "epochs of the full training set"
    assert recipe_values("fast", {"lr": 3.0, "dataset": "digits"}).keys() == RECIPES["fast"].values.keys() - {"lr"}
    yielding = {"num_steps": 5, "augment": False, "lr_vitaly": True}
    assert not {"epochs", "pad", "flip", "lr_triangle"} & recipe_values("fast", yielding).keys()
    with pytest.raises(UserError, match="recipe=slow: expected one of fast"):
        recipe_values("slow", {})


def test_a_recipe_is_recorded_option_by_option_and_what_is_given_wins(tmp_path, digits):
    told = datadiet("full_data", tmp_path, recipe="fast", lr=0.5, num_steps=4, **SMALL).output
    assert "recipe=fast: model=fast_cnn" in told
    assert "given instead:" in told
    assert "lr=0.5" in told.partition("given instead:")[2]
    run = open_run(tmp_path / "exps/full_data/run_0")
    given = {"lr": 0.5, "num_steps": 4, "train_batch_size": 64, "epochs": None, "decay_steps": ()}
    recorded = json.loads((run.path / "args.json").read_text())
    for name, value in (dict(RECIPES["fast"].values) | given).items():
        assert recorded[name] == (list(value) if isinstance(value, tuple) else value), name
    fitted = fit_images(digits, (16, 16, 3))
    expected = whitening_kernel(fitted.train_images[:5000], fitted.mean, fitted.std)
    for step in (0, 4):
        np.testing.assert_array_equal(run.variables(step)["batch_stats"]["whitening"]["kernel"], expected)
    datadiet("full_data", tmp_path, recipe="fast", lr=0.5, num_steps=4, resume="true", **SMALL)
    other = datadiet("full_data", tmp_path, 2, recipe="fast", num_steps=4, resume="true", **SMALL)
    assert "lr: 0.5 there, 1.5 asked for" in other.output


def test_options_of_the_recipe_are_refused_where_the_network_or_the_images_have_no_use_for_them(tmp_path):
    mlp = SMALL | {"model": "mlp", "num_steps": 4}
    assert (
        "norm_bias_lr=64.0: expected 1 with model=mlp"
        in datadiet("full_data", tmp_path, 2, recipe="fast", **mlp).output
    )
    assert "pad=8: expected fewer pixels than images have, 8" in datadiet("full_data", tmp_path, 2, pad=8, **mlp).output
    assert not (tmp_path / "exps").exists()


# --- its benchmarks ---------------------------------------------------------------------------


def test_operations_of_a_step_are_those_of_its_layers_counted_by_hand():
    """Two for each multiplication; the frozen first layer once, the others three times (forward, input, kernel)."""
    layers = [(31, 24, 8), (15, 8, 8), (15, 8, 32), (7, 32, 32), (7, 32, 32), (3, 32, 32)]  # side, inputs, outputs
    multiplied = 31 * 31 * 12 * 24 + 3 * (sum(side**2 * 9 * i * o for side, i, o in layers) + 32 * 10)
    assert training_flops(recipe(width=8, train_batch_size=16)) == 16 * 2 * multiplied


def test_agreement_with_published_scores_is_of_ranks_and_upper_halves():
    ours = np.array([[1.0, 2, 3, 4, 9, 8], [1.5, 2, 3, 5, 9, 7]])
    assert overlap(ours[0], np.array([5.0, 1, 2, 3, 4, 6])) == pytest.approx(2 / 3)
    alike = over_runs([ours, ours[:1] ** 3], 2, spearman)
    assert alike.low <= alike.value == pytest.approx(1) == alike.high
    assert str(over_runs([ours[:1], -ours[:1]], 1, spearman)) == "-1.000", "one run has no interval"
