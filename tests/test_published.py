"""Data under a published name are those that were published, however they are packed."""

import gzip
import hashlib
import struct

import numpy as np
import pytest
from archives import accept, accept_content, idx_bytes, write_idx

from datadiet.data.download import ARCHIVES
from datadiet.data.prepare import prepare
from datadiet.data.registry import load_dataset
from datadiet.data.sources.embedded import DEBIAN_FASHION_MNIST
from datadiet.data.sources.published import CONTENTS, IDX_FILES
from datadiet.errors import UserError

HEADER_TIMES = (1504176606, 1504176606, 1504176627, 1504176627)  # 2017-08-31, in the headers of the published files


pytestmark = pytest.mark.usefixtures("own_cache")


@pytest.fixture
def arrays(monkeypatch):
    """Small ones that pass for the published ones."""
    random = np.random.RandomState(0)
    images = [random.randint(0, 256, (count, 28, 28)).astype(np.uint8) for count in (30, 20)]
    labels = [np.arange(count, dtype=np.uint8) % 10 for count in (30, 20)]
    arrays = images[0], labels[0], images[1], labels[1]
    accept_content(monkeypatch, "fashion_mnist", arrays)
    return arrays


def changed(arrays, which, how):
    return [how(array).astype(np.uint8) if i == which else array for i, array in enumerate(arrays)]


CHANGES = [
    (1, lambda labels: 9 - labels), (1, lambda labels: labels[::-1]), (3, lambda labels: labels[::-1]),
    (0, lambda images: images[::-1]), (2, lambda images: 255 - images), (0, lambda images: images.transpose(0, 2, 1)),
]  # fmt: skip


@pytest.mark.parametrize(("which", "how"), CHANGES)
@pytest.mark.parametrize("packed", [True, False])
def test_other_data_as_fashion_mnist_are_refused_by_the_name_of_their_file(tmp_path, arrays, which, how, packed):
    written = changed(arrays, which, how)
    for name, array in zip(IDX_FILES, written):
        path = tmp_path / (f"{name}.gz" if packed else name)
        path.write_bytes(gzip.compress(idx_bytes(array)) if packed else idx_bytes(array))
    name, digest = IDX_FILES[which], CONTENTS["fashion_mnist"][which]
    told = rf"fashion_mnist: .*/{name}\S* holds other data than {name}\.gz as published: .*expected {digest}"
    with pytest.raises(UserError, match=told):
        load_dataset("fashion_mnist", tmp_path)
    with pytest.raises(UserError, match=told):  # nor when they are prepared
        prepare("fashion_mnist", tmp_path, download=False)


def test_the_same_data_packed_otherwise_are_accepted(tmp_path, arrays):
    for k, (name, array) in enumerate(zip(IDX_FILES, arrays)):
        content = gzip.compress(idx_bytes(array), compresslevel=1 + 2 * k, mtime=k)
        (tmp_path / f"{name}.gz").write_bytes(content)
    assert np.array_equal(load_dataset("fashion_mnist", tmp_path).train_labels, arrays[1])


def test_other_data_in_a_folder_of_tfds_are_refused(tmp_path, arrays, monkeypatch):
    write_idx(tmp_path / "idx", changed(arrays, 1, lambda labels: 9 - labels), IDX_FILES)
    accept(monkeypatch, "fashion_mnist", [tmp_path / "idx" / f"{name}.gz" for name in IDX_FILES])
    with pytest.raises(UserError, match=r"fashion_mnist: .*/fashion_mnist/\S+ holds other data than train-labels"):
        prepare("tfds/fashion_mnist", tmp_path / "data", archive=tmp_path / "idx", download=False)


@pytest.mark.skipif(not DEBIAN_FASHION_MNIST.is_dir(), reason="Debian's dataset-fashion-mnist is not installed")
def test_the_contents_are_those_of_the_published_archives():
    """Debian's packed bytes, behind the headers that the published files have, are the published files."""
    for name, archive, content, time in zip(
        IDX_FILES, ARCHIVES["fashion_mnist"], CONTENTS["fashion_mnist"], HEADER_TIMES
    ):
        packed = (DEBIAN_FASHION_MNIST / f"{name}.gz").read_bytes()
        as_published = struct.pack("<HBBIBB", 0x8B1F, 8, 8, time, 0, 3) + name.encode() + b"\0" + packed[10:]
        assert hashlib.sha256(as_published).hexdigest() == archive.digest
        assert hashlib.sha256(gzip.decompress(as_published)).hexdigest() == content
