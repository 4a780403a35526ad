"""Datasets, and the operations on batches, against naive NumPy."""

import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from conftest import count_examples
from oracles import batch_ids

from datadiet.config import TrainConfig, resolve
from datadiet.data.batches import augment, fit_images, normalize
from datadiet.data.dataset import fingerprint, pixel_statistics, vector_statistics
from datadiet.data.labels import randomize_labels
from datadiet.data.registry import DATASETS, load_dataset
from datadiet.errors import UserError
from datadiet.training.schedule import Schedule

RANDOM = np.random.RandomState(0)


pytestmark = pytest.mark.usefixtures("own_cache")


# --- what a dataset is ----------------------------------------------------------------------------


def test_importing_data_imports_no_library_of_a_source():
    code = (
        "import sys, datadiet.data.registry, datadiet.data.align;"
        "print([m for m in ('tensorflow_datasets', 'pyarrow', 'PIL', 'sklearn') if m in sys.modules])"
    )
    root = Path(__file__).parents[1]
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=root).stdout.strip() == "[]"


@pytest.mark.parametrize("name", ["imagenet", "tfds/", "folder:", "", "npz"])
def test_an_unknown_name_lists_the_known_ones(name):
    with pytest.raises(UserError, match=r"expected one of digits, fashion_mnist, .*tfds/NAME, folder:PATH, npz:PATH"):
        load_dataset(name)


def test_digits():
    dataset = load_dataset("digits")
    assert count_examples("digits") == dataset.num_examples == 1438
    assert dataset.train_images.shape == (1438, 8, 8, 1)
    assert dataset.train_images.max() == 255
    assert len(dataset.test_labels) == 359
    assert dataset.num_classes == 10
    assert dataset.example_ids[4] == "digits_0005", "every fifth is in the test set"


@pytest.mark.parametrize("name", DATASETS)
def test_every_dataset_loads_or_says_how_to_get_it(name, tmp_path):
    if name == "digits":  # ships with scikit-learn
        assert count_examples(name, tmp_path) == load_dataset(name, tmp_path).num_examples
        return
    with pytest.raises(UserError, match=f"`datadiet prepare_data --dataset {name} --data_dir {tmp_path}`"):
        load_dataset(name, tmp_path)


def test_published_sizes_are_known_before_the_data_is_there(tmp_path):
    found = [count_examples(name, tmp_path) for name in ("cifar10", "cifar100", "cinic10")]
    assert found == [50_000, 50_000, 180_000]


def test_the_fingerprint_is_of_ids_labels_and_pixels(npz):
    dataset = load_dataset(f"npz:{npz}")
    ids, labels, images = dataset.example_ids, dataset.train_labels, dataset.train_images
    assert dataset.fingerprint == fingerprint(ids, labels, images)
    for k, changed in enumerate((ids, labels, images)):
        changed = changed.copy()
        changed[3] = "other" if k == 0 else (changed[3] + 1) % 4
        arrays = [changed if j == k else array for j, array in enumerate((ids, labels, images))]
        assert fingerprint(*arrays) != dataset.fingerprint
    order = np.arange(20)[::-1]
    assert fingerprint(ids[order], labels[order], images[order]) != dataset.fingerprint
    assert fit_images(dataset, (8, 8, 3)).fingerprint == dataset.fingerprint


@pytest.mark.parametrize("count", [1, 7, 1000, 2500])
def test_pixel_statistics_are_those_of_a_float_copy(count):
    images = (RANDOM.randint(0, 256, (count, 4, 3, 2)) // [1, 3]).astype(np.uint8)
    mean, std = pixel_statistics(images)
    scaled = images.astype(np.float64) / 255
    assert np.allclose(mean, scaled.mean((0, 1, 2)), atol=1e-6)
    assert np.allclose(std, scaled.std((0, 1, 2)), atol=1e-6)
    assert mean.dtype == std.dtype == np.float32


def test_vector_statistics_are_those_of_a_float64_copy():
    vectors = (RANDOM.normal(size=(2500, 3)) * [1, 100, 1e-3] + [0, 1e4, 5]).astype(np.float32)
    mean, std = vector_statistics(vectors)
    assert np.allclose(mean, vectors.astype(np.float64).mean(0), rtol=1e-6, atol=1e-7)
    assert np.allclose(std, vectors.astype(np.float64).std(0), rtol=1e-5)
    assert vector_statistics(np.full((5, 2), 0.1, np.float32))[1].tolist() == [1, 1]


def test_fit_images_pads_around_and_repeats_channels():
    dataset = load_dataset("digits")
    fitted = fit_images(dataset, (11, 12, 3))
    expected = np.zeros((len(dataset.train_images), 11, 12, 3), np.uint8)
    expected[:, 1:9, 2:10] = dataset.train_images
    assert np.array_equal(fitted.train_images, expected)
    assert fitted.test_images.shape[1:] == fitted.image_shape == (11, 12, 3)
    assert fitted.mean.shape == fitted.std.shape == (3,)
    assert fit_images(dataset, dataset.image_shape) is dataset
    with pytest.raises(UserError, match=r"images of 3 channels cannot be repeated to the 4"):
        fit_images(fitted, (11, 12, 4))


# --- batches --------------------------------------------------------------------------------------


def test_normalize_scales_bytes_but_not_vectors():
    images = RANDOM.randint(0, 256, (2, 3, 3, 2)).astype(np.uint8)
    mean, std = np.array([0.3, 0.5], np.float32), np.array([0.2, 0.1], np.float32)
    assert np.allclose(normalize(images, mean, std), (images / 255 - mean) / std, atol=1e-5)
    vectors = RANDOM.normal(size=(4, 2)).astype(np.float32)
    assert np.allclose(normalize(vectors, mean, std), (vectors - mean) / std, atol=1e-5)


@pytest.mark.parametrize("shape", [(8, 8, 1), (7, 12, 3), (32, 32, 3)])
def test_augment_is_reflect_pad_crop_and_flip_of_each_image(shape):
    images = RANDOM.randint(0, 256, (20, *shape)).astype(np.uint8)
    ids = np.array([3, 19, 3, 0, 7, 3], np.int32)
    key = jax.random.key(5)
    augmented = np.asarray(jax.jit(augment)(key, images, ids))
    assert augmented.dtype == np.uint8
    padded = np.pad(images, [(0, 0), (4, 4), (4, 4), (0, 0)], mode="reflect")
    height, width = shape[:2]

    def candidates(i):
        for row in range(9):
            for column in range(9):
                crop = padded[i, row : row + height, column : column + width]
                yield (row, column, False), crop
                yield (row, column, True), crop[:, ::-1]

    found = [[which for which, image in candidates(i) if np.array_equal(image, a)] for i, a in zip(ids, augmented)]
    assert all(found)
    assert len({tuple(which) for which in found}) > 1, "drawn per image, not per batch"


def test_augment_draws_every_offset_and_both_flips_evenly():
    images = np.arange(16 * 16).astype(np.uint8).reshape(1, 16, 16, 1)  # every crop of it is unlike any other
    augmented = np.asarray(augment(jax.random.key(0), images, np.zeros(20_000, np.int32)))[..., 0]
    _, counts = np.unique(augmented.reshape(len(augmented), -1), axis=0, return_counts=True)
    assert len(counts) == 9 * 9 * 2
    assert counts.min() > 0.6 * counts.mean()
    assert counts.max() < 1.5 * counts.mean()


def scheduled(kept: np.ndarray, batch_size: int, seed: int, first_step: int, num_steps: int) -> np.ndarray:
    config = TrainConfig(train_batch_size=batch_size, train_seed=seed, num_steps=100)
    return Schedule(resolve(config, 1000), kept).ids(first_step - 1, num_steps)


@pytest.mark.parametrize(("num_kept", "batch_size"), [(40, 8), (43, 8), (5, 8), (8, 8), (1, 8)])
def test_every_kept_example_is_in_at_most_one_batch_of_an_epoch(num_kept, batch_size):
    kept = np.sort(RANDOM.choice(1000, num_kept, replace=False)).astype(np.int32)
    size = min(batch_size, num_kept)
    per_epoch = num_kept // size
    batches = scheduled(kept, batch_size, seed=1, first_step=1, num_steps=6 * per_epoch)
    np.testing.assert_array_equal(batches, batch_ids(kept, batch_size, 1, 1, 6 * per_epoch))
    assert batches.shape == (6 * per_epoch, size)
    assert batches.dtype == np.int32
    epochs = batches.reshape(6, -1)
    for ids in epochs:
        assert len(set(ids.tolist())) == per_epoch * size
        assert set(ids.tolist()) <= set(kept.tolist())
    if num_kept > 5:
        assert len({tuple(ids) for ids in epochs}) == 6, "each epoch is shuffled afresh"
        assert not np.array_equal(epochs, scheduled(kept, batch_size, 2, 1, 6 * per_epoch).reshape(6, -1))


def test_a_batch_depends_on_its_step_alone():
    kept = np.arange(43, dtype=np.int32)
    whole = scheduled(kept, 8, seed=3, first_step=1, num_steps=40)
    for first in (1, 2, 5, 6, 11, 39):
        for count in (1, 2, 7):
            part = scheduled(kept, 8, seed=3, first_step=first, num_steps=count)
            assert np.array_equal(part[: 41 - first], whole[first - 1 : first - 1 + count])


@pytest.mark.parametrize("fraction", [0.0, 0.1, 0.33, 1.0])
def test_randomize_labels_permutes_the_labels_of_a_fraction(fraction):
    labels = RANDOM.randint(0, 10, 200).astype(np.int32)
    before = labels.copy()
    noisy, chosen = randomize_labels(labels, fraction, seed=4)
    assert np.array_equal(labels, before)
    assert len(chosen) == int(200 * fraction)
    assert np.array_equal(chosen, np.unique(chosen))
    rest = np.setdiff1d(np.arange(200), chosen)
    assert np.array_equal(noisy[rest], labels[rest])
    assert np.array_equal(np.sort(noisy[chosen]), np.sort(labels[chosen]))
    assert noisy.dtype == np.int32
    again, _ = randomize_labels(labels, fraction, seed=4)
    assert np.array_equal(noisy, again)
    if fraction == 1:
        assert (noisy != labels).mean() > 0.7


@pytest.mark.parametrize("fraction", [-0.1, 1.1, float("nan")])
def test_a_fraction_beyond_0_to_1_is_refused(fraction):
    with pytest.raises(UserError, match=r"expected a fraction from 0 to 1"):
        randomize_labels(np.zeros(3, np.int32), fraction, 0)
