"""Data that stays on disk trains, is evaluated and is scored with the same bytes as data on the device."""

from __future__ import annotations

import resource
import tracemalloc
from dataclasses import replace
from functools import partial
from pathlib import Path

import jax
import numpy as np
import pytest
from conftest import datadiet
from PIL import Image

from datadiet import config as options
from datadiet import intake
from datadiet.data.batches import Normalizer, fit_images
from datadiet.data.labels import randomize_labels
from datadiet.data.reading import Reading
from datadiet.data.registry import build_dataset, load_dataset
from datadiet.errors import UserError
from datadiet.models.registry import build_model, input_shape
from datadiet.scores.checkpoint import compute_features, compute_many
from datadiet.storage.files import make_folder
from datadiet.storage.score_files import save_scores
from datadiet.training import feed, placing
from datadiet.training.feed import Feed, Sweep, is_stored, mapped
from datadiet.training.loop import Entrant, fit, fit_runs
from datadiet.training.schedule import Schedule
from datadiet.training.state import initial_state, on_device, on_disk


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
    at = [step for step, *_ in whole].index(25)
    state = whole[at][1]
    rest = trained(on_disk, states=[jax.tree.map(jax.numpy.asarray, state)])[0]
    assert same([report[:2] for report in rest], [report[:2] for report in whole[at + 1 :]])


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


@pytest.mark.parametrize("given", [{}, {"test_fraction": 0.4}])
def test_images_that_memory_has_no_room_for_are_read_into_a_file(tmp_path, own_cache, monkeypatch, given):
    """Piece by piece; the dataset is the same to the last bit, and no file is left but those of the cache."""
    random = np.random.default_rng(0)
    for split, count in (("train", 8), *([] if given else [("test", 3)])):
        for i in range(count):
            folder = tmp_path / "photos" / split / "ab"[i % 2]
            folder.mkdir(parents=True, exist_ok=True)
            Image.fromarray(random.integers(0, 256, (40, 50, 3), np.uint8)).save(folder / f"{i}.png")
    name = f"folder:{tmp_path / 'photos'}"
    reading = Reading.asked(**given)
    expected = build_dataset(name, reading=reading)
    monkeypatch.setattr(intake, "memory", lambda: 10_000)
    with monkeypatch.context() as patch:
        patch.setattr(np, "empty", partial(refuse_images, np.empty))
        built = build_dataset(name, reading=reading)
        stored = load_dataset(name, **given)
    assert mapped(built.train_images)
    assert mapped(built.test_images)
    for found in (built, stored):
        assert found.fingerprint == expected.fingerprint
        np.testing.assert_array_equal(found.test_images, expected.test_images)
    assert not [path for path in (tmp_path / "cache").iterdir() if path.is_file() and path.suffix != ".lock"]
    monkeypatch.setenv("DATADIET_MAX_GB", "0.00001")
    with pytest.raises(UserError, match="images of 50 x 40 pixels: .* kB of memory; there are 10 kB"):
        build_dataset(name, reading=reading)


@pytest.mark.parametrize("change", [None, "from 0 to 1", "channels first", "vectors"])
def test_a_large_npz_stays_in_its_file(tmp_path, own_cache, monkeypatch, change):
    """Where its arrays are stored as they are and need no change; what has to be changed is, piece by piece."""
    random = np.random.default_rng(0)
    x = random.integers(0, 256, (40, 9, 9, 3)).astype(np.uint8)
    if change:
        x = {"from 0 to 1": x / 255, "channels first": np.moveaxis(x, 3, 1),
             "vectors": x.reshape(40, -1).astype(np.float32)}[change]  # fmt: skip
    given = {"x_train": x[:30], "y_train": np.arange(30) % 3, "x_test": x[30:], "y_test": np.arange(10) % 3}
    np.savez(tmp_path / "d.npz", **given)
    name = f"npz:{tmp_path / 'd.npz'}"
    expected = build_dataset(name)
    assert not mapped(expected.train_images)
    monkeypatch.setattr(intake, "free_memory", lambda: 200)
    built = build_dataset(name)
    assert mapped(built.train_images)
    assert mapped(built.test_images)
    assert built.fingerprint == expected.fingerprint
    content = bytearray((tmp_path / "d.npz").read_bytes())
    content[1000] ^= 1
    (tmp_path / "d.npz").write_bytes(content)
    with pytest.raises(UserError, match="cannot be read as npz of plain arrays .*CRC"):
        build_dataset(name)


def refuse_images(empty, shape, *given, **named):
    assert np.ndim(shape) == 0 or len(shape) < 4, "images in memory"
    return empty(shape, *given, **named)


@pytest.mark.parametrize(
    ("data_on", "free", "stored"),
    [
        ("auto", 10**6, ()), ("auto", 180_000, ("train",)), ("auto", 10_000, ("train", "test")),
        ("disk", 10**9, ("train", "test")), ("device", 10, ()),
    ],
)  # fmt: skip
def test_size_and_what_is_free_decide_where_images_lie_and_that_is_said(monkeypatch, tmp_path, data_on, free, stored):
    """digits: 92 kB of training images and 23 kB of test images."""
    monkeypatch.setattr(placing, "free_bytes", lambda count: free)
    dataset, said = load_dataset("digits"), []
    np.save(tmp_path / "train.npy", dataset.train_images)
    dataset = replace(dataset, train_images=np.load(tmp_path / "train.npy", mmap_mode="r"))
    splits = dict(zip(("train", "test"), placing.place(dataset, dataset.train_labels, data_on, said.append)))
    assert {name for name, split in splits.items() if is_stored(split)} == set(stored)
    assert len(said) == len(stored)
    for split in stored:
        where = {"train": "on disk", "test": "in memory"}[split]
        assert any(f"of {split} images stay {where}" in line for line in said)


def test_what_is_free_is_within_every_limit(monkeypatch):
    assert 0 < intake.free_memory() <= intake.memory()
    soft, hard = resource.getrlimit(resource.RLIMIT_DATA)
    used = 4096 * int(Path("/proc/self/statm").read_text().split()[5])
    resource.setrlimit(resource.RLIMIT_DATA, (used + 2**28, hard))
    try:
        assert intake.free_memory() <= 2**28 + 2**24
    finally:
        resource.setrlimit(resource.RLIMIT_DATA, (soft, hard))


def test_a_command_trains_from_disk_and_says_so(tmp_path):
    """With the files of one that does not, and goes on with what the other began."""
    given = {"dataset": "digits", "model": "mlp", "width": 8, "num_steps": 22, "augment": "false", "offline": "true"}
    for place in ("disk", "device"):
        done = datadiet("full_data", tmp_path, **given, data_on=place, exp=place)
        assert ("train images stay in memory" in done.output) == (place == "disk")
    first, second = ({path.relative_to(root): path.read_bytes() for path in root.rglob("*.npy")}
                     for root in (tmp_path / "exps" / "disk", tmp_path / "exps" / "device"))  # fmt: skip
    assert first
    assert first == second
    datadiet("full_data", tmp_path, **given, data_on="device", exp="disk", resume="true")
    assert "data_on" not in (tmp_path / "exps" / "disk" / "run_0" / "args.json").read_text(), "no part of what a run is"


def test_images_of_a_file_are_in_memory_once_where_the_device_is_the_cpu(tmp_path):
    """And those that a network has padded are not padded before it takes them. What may be changed is copied."""
    dataset = load_dataset("digits")
    np.save(tmp_path / "images.npy", dataset.train_images)
    stored = np.load(tmp_path / "images.npy", mmap_mode="r")
    for shape in ((8, 8, 1), (32, 32, 3)):
        split = on_device(fit_images(replace(dataset, train_images=stored), shape), "train")
        assert isinstance(split.images, jax.Array)
        assert split.images.unsafe_buffer_pointer() == stored.ctypes.data
    own = np.array(dataset.train_images)
    assert on_device(replace(dataset, train_images=own), "train").images.unsafe_buffer_pointer() != own.ctypes.data


def test_images_padded_when_a_network_takes_them_train_it_with_the_same_bytes():
    dataset = fit_images(load_dataset("digits"), (12, 11, 3))
    before = replace(dataset, train_images=dataset.train_images[:], test_images=dataset.test_images[:])
    given = {"dataset": "digits", "num_steps": 6, "log_steps": 3, "train_batch_size": 32, "model": "simple_cnn_0"}
    config = options.resolve(options.TrainConfig(width=4, augment=True, pad=2, **given), dataset.num_examples)
    network, kept = build_model("simple_cnn_0", 10, (12, 11, 3), 4), np.arange(dataset.num_examples, dtype=np.int32)
    found = []
    for place in (on_device, on_disk):
        for data in (dataset, before):
            state = initial_state(network, config, dataset.num_examples)
            *_, last = fit(network, place(data, "train"), place(data, "test"), kept, config, state)
            found.append((jax.tree.map(np.array, last.state.params), np.asarray(last.correct)))
    assert all(same(found[0], other) for other in found[1:])


@pytest.mark.parametrize(("combine", "most"), [("mean", 2), ("rank_mean", 3)])
def test_averaging_ten_runs_takes_a_few_times_the_memory_of_their_scores(tmp_path, combine, most):
    count, folder = 200_000, "error_l2_norm_scores"
    identity = {"dataset": "toy", "fingerprint": "f" * 64, "example_ids": [str(i) for i in range(count)]}
    for run in range(10):
        make_folder(tmp_path / f"exps/full_data/run_{run}")
        name = f"full_data/run_{run}/{folder}/ckpt_5.npy"
        told = {"type": "l2_error", "step": 5, "runs": [run]}
        save_scores(tmp_path / "exps" / name, np.random.RandomState(run).rand(count).astype(np.float32), identity, told,
                    name=name)  # fmt: skip
    given = {"step": 5, "score_exp": "full_data", "offline": "true", "combine": combine}
    datadiet("mean_score", tmp_path, n_runs=2, exp="first", **given)  # imports what is imported once
    tracemalloc.start()
    try:
        datadiet("mean_score", tmp_path, n_runs=10, exp="all", **given)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    (runs,) = (tmp_path / f"exps/all/{folder}").glob("*.runs.npy")
    assert np.load(runs).nbytes == 40 * count
    assert peak < most * 40 * count, f"{peak / (40 * count):.2f} of them"
