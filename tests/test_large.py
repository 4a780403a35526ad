"""Data that stays on disk trains, is evaluated and is scored with the same bytes as data on the device."""

from __future__ import annotations

from dataclasses import replace

import jax
import numpy as np
import pytest

from datadiet import config as options
from datadiet.data.batches import Normalizer, fit_images, randomize_labels
from datadiet.data.registry import load_dataset
from datadiet.models.registry import build_model, input_shape
from datadiet.scores.checkpoint import compute_features, compute_many
from datadiet.training import feed
from datadiet.training.feed import Feed, Sweep
from datadiet.training.loop import Entrant, fit_runs
from datadiet.training.schedule import Schedule
from datadiet.training.state import initial_state, on_device, on_disk

pytestmark = pytest.mark.usefixtures("hasty")


@pytest.fixture
def small_parts(monkeypatch) -> None:
    """Parts of a few batches, so that little data comes in many."""
    monkeypatch.setattr(feed, "PART_BYTES", 3 * 32 * 64)


def trained(place, labels=None, runs=(0,), states=None, **given):
    """By run: its reports, with all that does not tell time, from data put where `place` says."""
    values = {"dataset": "digits", "model": "mlp", "width": 16, "augment": False, "num_steps": 60, "log_steps": 25,
              "train_batch_size": 32, "test_batch_size": 100, "trajectory": ("forget", "aum")}  # fmt: skip
    given = values | given
    published = load_dataset("digits")
    configs = [options.resolve(options.TrainConfig(run=run, **given), published.num_examples) for run in runs]
    dataset = fit_images(published, input_shape(configs[0].model, published.image_shape))
    network = build_model(configs[0].model, 10, dataset.image_shape, configs[0].width)
    kept = np.arange(0, dataset.num_examples, 2, dtype=np.int32)
    states = states or [initial_state(network, config, dataset.num_examples) for config in configs]
    entrants = [Entrant(config, kept, state) for config, state in zip(configs, states)]
    found: dict[int, list] = {run: [] for run in range(len(runs))}
    for run, report in fit_runs(network, place(dataset, "train", labels), place(dataset, "test"), entrants):
        metrics = {k: v for k, v in report.metrics.items() if "second" not in k}
        correct = None if report.correct is None else np.asarray(report.correct)
        found[run].append((report.step, jax.tree.map(np.array, report.state), metrics, correct))
    return found


def same(one, other) -> bool:
    """To the last bit."""
    return jax.tree.all(jax.tree.map(lambda a, b: np.array_equal(a, b, equal_nan=True), one, other))


@pytest.mark.parametrize(
    "given",
    [
        {}, {"model": "simple_cnn_0", "width": 4, "augment": True, "num_steps": 8, "log_steps": 3},
        {"selector": "infobatch", "size": 400}, {"selector": "rs2", "size": 300}, {"train_batch_size": 2000},
    ],
    ids=["mlp", "conv", "infobatch", "rs2", "one_batch"],
)  # fmt: skip
def test_training_from_disk_gives_the_same_bytes(small_parts, given):
    assert same(trained(on_disk, **given), trained(on_device, **given))


def test_training_on_random_labels_from_disk_gives_the_same_bytes(small_parts):
    labels, _ = randomize_labels(load_dataset("digits").train_labels, 0.3, 0)
    found = trained(on_disk, labels)
    assert same(found, trained(on_device, labels))
    assert not same(found, trained(on_device))


def test_several_runs_at_once_from_disk_give_the_same_bytes(small_parts):
    several = trained(on_disk, runs=(0, 1, 2))
    assert same(several, trained(on_device, runs=(0, 1, 2)))
    assert same(several[1], trained(on_disk, runs=(1,))[0]), "none depends on the others"


def test_a_run_goes_on_from_disk_where_it_was_left_on_the_device(small_parts):
    """In the middle of an epoch, and of a part."""
    whole = trained(on_device)[0]
    step, state, *_ = whole[1]
    assert step == 25
    rest = trained(on_disk, states=[jax.tree.map(jax.numpy.asarray, state)])[0]
    assert same([report[:2] for report in rest], [report[:2] for report in whole[2:]])


def test_every_step_gets_the_images_of_its_ids(small_parts, tmp_path):
    """Of an array in a file, however many steps are asked for at once."""
    published = load_dataset("digits")
    np.save(tmp_path / "images.npy", published.train_images)
    stored = replace(published, train_images=np.load(tmp_path / "images.npy", mmap_mode="r"))
    config = options.resolve(options.TrainConfig(dataset="digits", train_batch_size=32, num_steps=100), 1438)
    schedules = [Schedule(replace(config, train_seed=seed), np.arange(1438, dtype=np.int32)) for seed in (0, 1)]
    found, step, counts = Feed(on_disk(stored, "train"), schedules, 100), 0, []
    while step < 100:
        batches = found.batches(step, min(4, 100 - step))
        assert len(batches.split.images) < 1438, "a part"
        for run, schedule in enumerate(schedules):
            ids = schedule.ids(step, batches.count)
            np.testing.assert_array_equal(batches.ids[run, : batches.count], ids)
            images = np.asarray(batches.split.images)[batches.rows[run, : batches.count]]
            np.testing.assert_array_equal(images, published.train_images[ids])
        step += batches.count
        counts.append(batches.count)
    assert sum(counts) == 100


@pytest.mark.parametrize("batch_size", [1, 7, 359, 1000])
def test_a_sweep_has_every_example_once_and_in_order(small_parts, batch_size):
    dataset = load_dataset("digits")
    size = min(batch_size, 359)
    parts = [(int(first), np.asarray(part.images)) for first, part in Sweep(on_disk(dataset, "test"), size).parts()]
    assert all(first % size == 0 for first, _ in parts)
    assert len({len(images) for _, images in parts}) == 1, "one program"
    joined = np.concatenate([images for _, images in parts])
    np.testing.assert_array_equal(joined[:359], dataset.test_images)


def test_images_are_padded_for_a_network_when_they_are_taken(tmp_path):
    """So that none of them is in memory twice; scores and features are those of images padded at once."""
    dataset = load_dataset("digits")
    np.save(tmp_path / "images.npy", dataset.train_images)
    stored = replace(dataset, train_images=np.load(tmp_path / "images.npy", mmap_mode="r"))
    network = build_model("simple_cnn_0", 10, (32, 32, 3), 4)
    fitted = fit_images(stored, (32, 32, 3))
    whole = np.asarray(fitted.train_images)
    assert whole.shape == fitted.train_images.shape == (1438, 32, 32, 3)
    assert fitted.train_images.nbytes == whole.nbytes
    np.testing.assert_array_equal(fitted.train_images[np.array([7, 3])], whole[[7, 3]])
    variables = network.init(jax.random.key(0))
    given = {"batch_size": 400, "prepare": Normalizer.of(fitted)}
    for function in (
        lambda images: compute_many(["l2_error"], network, variables, images, dataset.train_labels, **given),
        lambda images: compute_features(network, variables, images, **given),
    ):
        assert same(function(fitted.train_images), function(whole))
