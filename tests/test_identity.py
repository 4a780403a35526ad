"""Values are used with the data they belong to, in its order, or not at all."""

from dataclasses import replace

import numpy as np
import pytest

from datadiet.data import align
from datadiet.data.batches import fit_images
from datadiet.data.dataset import Dataset, fingerprint
from datadiet.errors import UserError

N = 12


@pytest.fixture
def dataset():
    random = np.random.RandomState(0)
    images = random.randint(0, 256, (N, 4, 4, 1)).astype(np.uint8)
    labels = (np.arange(N) % 3).astype(np.int32)
    ids = np.array([f"n{i}" for i in range(N)])
    one = np.ones(1, np.float32)
    return Dataset("mine", images, labels, images, labels, ids, 3, one, one, fingerprint(ids, labels, images))


def reordered(dataset, order, **changes):
    arrays = [getattr(dataset, name)[order] for name in ("example_ids", "train_labels", "train_images")]
    return replace(
        dataset, example_ids=arrays[0], train_labels=arrays[1], train_images=arrays[2],
        fingerprint=fingerprint(*arrays), **changes,
    )  # fmt: skip


def test_values_of_the_same_data_are_accepted_as_they_are(dataset, recwarn):
    values = np.arange(N, dtype=np.float32)
    assert align.align(values, dataset.example_ids, dataset.fingerprint, dataset) is values
    assert not recwarn


@pytest.mark.parametrize("seed", range(5))
def test_values_of_another_order_are_realigned_and_it_is_said(dataset, seed):
    other = reordered(dataset, np.random.RandomState(seed).permutation(N), name="mine again")
    by_id = {f"n{i}": float(i) for i in range(N)}
    values = np.array([by_id[i] for i in other.example_ids])
    with pytest.warns(UserWarning, match=r"mine again .*mine .*the same examples in another order"):
        aligned = align.align(values, other.example_ids, other.fingerprint, dataset, "mine again")
    assert aligned.tolist() == [by_id[i] for i in dataset.example_ids]


@pytest.mark.parametrize("field", ["train_labels", "train_images"])
def test_the_same_ids_with_other_content_are_refused(dataset, field):
    changed = getattr(dataset, field).copy()
    changed[5] = (changed[5] + 1) % 3
    for order in (np.arange(N), np.arange(N)[::-1]):
        other = reordered(replace(dataset, **{field: changed}), order)
        message = f"{other.fingerprint[:12]}.*mine .*{dataset.fingerprint[:12]}.*labels or pixels differ"
        with pytest.raises(UserError, match=message):
            align.align(np.zeros(N), other.example_ids, other.fingerprint, dataset, "other")


def test_other_ids_are_refused_and_both_datasets_named(dataset):
    ids = np.array([f"m{i}" for i in range(N)])
    with pytest.raises(UserError, match=r"other \(12 examples, fingerprint abc\), but the dataset is mine \(12 ex"):
        align.align(np.zeros(N), ids, "abc", dataset, "other")
    with pytest.raises(UserError, match=r"other \(13 examples"):
        align.align(np.zeros(N + 1), np.append(dataset.example_ids, "more"), "abc", dataset, "other")
    with pytest.raises(UserError, match=r"11 values for 12 examples"):
        align.align(np.zeros(N - 1), dataset.example_ids, dataset.fingerprint, dataset, "other")


def test_of_a_changed_dataset_the_order_goes_by_ids(dataset):
    other = reordered(dataset, np.arange(N)[::-1])
    fitted = fit_images(dataset, (6, 6, 3))
    with pytest.warns(UserWarning, match=r"realigned"):
        aligned = align.align(np.arange(N), other.example_ids, other.fingerprint, fitted)
    assert aligned.tolist() == list(range(N))[::-1]


def test_values_without_a_record_are_accepted_with_a_warning_where_their_number_is_right(dataset):
    with pytest.warns(UserWarning, match=r"a\.npy: no \.json beside it .*order cannot be checked against mine"):
        assert len(align.accept_bare(np.zeros(N), "a.npy", dataset)) == N
    with pytest.raises(UserError, match=r"a\.npy: values of shape \[11\], but mine has 12 training"):
        align.accept_bare(np.zeros(N - 1), "a.npy", dataset)


def test_scores_that_cross_cinic10_and_cifar10_are_refused_with_the_reason(dataset):
    cinic = replace(dataset, name="cinic10")
    with pytest.raises(UserError, match="cinic10 contains the images of cifar10, its test images too"):
        align.align(np.zeros(N), np.array([f"train_{i}" for i in range(N)]), "abc", cinic, "cifar10")
    assert align.overlap("cifar10", "cifar10") == align.overlap(None, "cinic10") == ""
