"""CIFAR and other tensorflow-datasets, through the real library, from archives in the published formats."""

import json
import os
import shutil
import signal
import socket
import sys
import threading
import time

import numpy as np
import pytest
from archives import accept, accept_content, flip, idx_bytes, pixels, python, write_cifar, write_idx
from conftest import PATIENCE, count_examples, end_of

from datadiet.data import download
from datadiet.data.dataset import fingerprint
from datadiet.data.prepare import prepare
from datadiet.data.registry import load_dataset
from datadiet.data.sources import tfds_folder
from datadiet.data.sources.embedded import DEBIAN_FASHION_MNIST, IDX_FILES
from datadiet.errors import UserError

SMALL = (200, 50)


pytestmark = pytest.mark.usefixtures("own_cache")


@pytest.fixture
def cifar10(tmp_path, monkeypatch):
    """An archive of 250 examples that passes for the published one."""
    path = tmp_path / "given" / "cifar-10-binary.tar.gz"
    rows = write_cifar("cifar10", path, SMALL)
    accept(monkeypatch, "cifar10", path, SMALL)
    return path, *rows


@pytest.fixture
def prepared(tmp_path, cifar10):
    """A data_dir with it prepared."""
    prepare("cifar10", tmp_path / "data", archive=cifar10[0], download=False)
    return tmp_path / "data"


def records(data_dir, name="cifar10"):
    return next((data_dir / name).glob(f"*/{name}-train.array_record*"))


def test_tensorflow_is_not_needed():
    assert "tensorflow" not in sys.modules


def test_cifar10_is_the_archive_in_its_own_order(tmp_path, monkeypatch):
    assert tfds_folder.COUNTS["cifar10"] == (50_000, 10_000)
    path = tmp_path / "cifar-10-binary.tar.gz"
    train, test = write_cifar("cifar10", path, (5_000, 1_000), cheap=True)  # a tenth; it takes half a minute in all
    accept(monkeypatch, "cifar10", path, (5_000, 1_000))
    prepare("cifar10", tmp_path / "data", archive=path, download=False)
    with monkeypatch.context() as patch:
        patch.setattr("datadiet.data.registry.build_dataset", lambda *given: pytest.fail("they are in the cache"))
        dataset = load_dataset("cifar10", tmp_path / "data")
    assert count_examples("cifar10", tmp_path / "data") == 5_000
    assert np.array_equal(dataset.train_images, pixels(train))
    assert np.array_equal(dataset.test_images, pixels(test))
    assert np.array_equal(dataset.train_labels, train[:, 0])
    assert np.array_equal(dataset.test_labels, test[:, 0])
    assert dataset.example_ids[[0, 1, -1]].tolist() == ["train_00000", "train_00001", "train_04999"]
    assert dataset.train_images.dtype == np.uint8
    assert dataset.train_labels.dtype == np.int32
    assert not dataset.train_images.flags.owndata, "memory-mapped"
    assert np.allclose(dataset.mean, (0.4914, 0.4822, 0.4465))
    assert np.allclose(dataset.std, (0.2470, 0.2435, 0.2616))
    assert dataset.class_names[3] == "cat"
    assert dataset.fingerprint == fingerprint(dataset.example_ids, train[:, 0].astype(np.int32), pixels(train))


def test_cifar100_has_fine_labels_and_cifar10s_statistics(tmp_path, monkeypatch):
    path = tmp_path / "archive.tgz"  # an archive that is named may be called anything
    train, test = write_cifar("cifar100", path, SMALL)
    accept(monkeypatch, "cifar100", path, SMALL)
    dataset = prepare("cifar100", tmp_path / "data", archive=path, download=False)
    assert np.array_equal(dataset.train_labels, train[:, 1])
    assert np.array_equal(dataset.train_images, pixels(train, 2))
    assert np.array_equal(dataset.test_images, pixels(test, 2))
    assert dataset.num_classes == 100
    assert np.allclose(dataset.mean, (0.4914, 0.4822, 0.4465))


def test_an_archive_in_its_folder_is_found(tmp_path, cifar10):
    folder = tmp_path / "data" / "downloads" / "manual"
    folder.mkdir(parents=True)
    shutil.copy(cifar10[0], folder)
    assert prepare("cifar10", tmp_path / "data", download=False).num_examples == SMALL[0]


def test_a_folder_prepared_elsewhere_is_used_as_it_is(tmp_path, prepared, monkeypatch):
    first = load_dataset("cifar10", prepared)
    moved = tmp_path / "elsewhere"
    shutil.copytree(prepared / "cifar10", moved / "cifar10")
    monkeypatch.setitem(download.ARCHIVES, "cifar10", ())  # nothing can be fetched any more
    before = records(moved).stat().st_mtime_ns
    again = prepare("cifar10", moved, download=False)
    assert again.fingerprint == first.fingerprint
    assert records(moved).stat().st_mtime_ns == before
    assert load_dataset("tfds/cifar10", moved).fingerprint == first.fingerprint


def test_training_never_downloads_but_says_the_command(tmp_path):
    with pytest.raises(UserError, match="`datadiet prepare_data --dataset cifar10 --data_dir /[^`]*`"):
        load_dataset("cifar10", tmp_path)


def test_download_off_says_what_to_place_where(tmp_path):
    with pytest.raises(UserError) as caught:
        prepare("cifar10", tmp_path, download=False)
    message = str(caught.value)
    for part in (
        "cifar-10-binary.tar.gz", "c4a38c50a1bc5f3a1c5537f2155ab9d68f9f25eb1ed8d9ddda3db29a59bca1dd",
        str(tmp_path / "downloads" / "manual"), "170052171", "prepare_data", "--archive PATH",
    ):  # fmt: skip
        assert part in message


@pytest.mark.parametrize("answer", ["refused", "silent"])
def test_offline_stops_within_seconds(tmp_path, monkeypatch, answer):
    server = socket.create_server(("127.0.0.1", 0))  # accepts, and never says a word
    port = server.getsockname()[1]
    if answer == "refused":
        server.close()
    archive = download.ARCHIVES["cifar10"][0]._replace(url=f"http://127.0.0.1:{port}/cifar-10-binary.tar.gz")
    monkeypatch.setitem(download.ARCHIVES, "cifar10", (archive,))
    monkeypatch.setattr(download, "REACH_SECONDS", 1.0)
    begin = time.monotonic()
    with pytest.raises(UserError, match=f"cannot download .*Place in the folder .*cifar-10-binary.*{archive.digest}"):
        prepare("cifar10", tmp_path)
    assert time.monotonic() - begin < 100, "the library's own wait is 3.5 minutes"
    server.close()


def serve(folder):
    from functools import partial
    from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer

    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, *arguments):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(folder)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return server


def test_a_download_is_verified_and_appears_only_when_complete(tmp_path, cifar10, monkeypatch):
    server = serve(cifar10[0].parent)
    url = f"http://127.0.0.1:{server.server_port}/{cifar10[0].name}"
    good = download.ARCHIVES["cifar10"][0]._replace(url=url)
    monkeypatch.setitem(download.ARCHIVES, "cifar10", (good._replace(digest="0" * 64),))
    with pytest.raises(UserError, match=f"expected {good.size} bytes with sha256 0000"):
        prepare("cifar10", tmp_path / "data")
    assert not (tmp_path / "data" / "downloads" / "manual" / cifar10[0].name).exists()
    monkeypatch.setitem(download.ARCHIVES, "cifar10", (good,))
    with monkeypatch.context() as patch:  # the builder looks its archive up by the stock url
        patch.setattr("datadiet.data.tfds_builders.cifar.Cifar10._cifar_info", _info_with(url))
        assert prepare("cifar10", tmp_path / "data").num_examples == SMALL[0]
    (folder := tmp_path / "folder").mkdir()
    (plain := folder / "plain").touch()
    download.download(good, folder / "archive")
    assert (folder / "archive").stat().st_mode == plain.stat().st_mode, "whoever may read a new file may read it"
    assert sorted(os.listdir(folder)) == ["archive", "plain"]
    server.shutdown()


def test_a_download_that_breaks_off_leaves_no_archive(tmp_path, cifar10, monkeypatch):
    with socket.create_server(("127.0.0.1", 0)) as server:
        url = f"http://127.0.0.1:{server.getsockname()[1]}/{cifar10[0].name}"
        monkeypatch.setitem(download.ARCHIVES, "cifar10", (download.ARCHIVES["cifar10"][0]._replace(url=url),))
        monkeypatch.setattr("datadiet.data.download.reachable", lambda url: None)

        def answer():
            with server.accept()[0] as client:
                client.recv(4096)
                client.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n" + bytes(100))

        thread = threading.Thread(target=answer)
        thread.start()
        with pytest.raises(UserError, match=r"cannot download .*100 bytes read, 900 more .*Place in the folder"):
            prepare("cifar10", tmp_path / "data")
        thread.join()
    assert not (tmp_path / "data" / "downloads" / "manual" / cifar10[0].name).exists()


def test_a_file_that_is_not_the_published_one_is_refused_and_never_replaced(tmp_path, cifar10, monkeypatch):
    monkeypatch.setattr("datadiet.data.download.download", lambda *given: pytest.fail("it is there"))
    path = tmp_path / "data" / "downloads" / "manual" / cifar10[0].name
    path.parent.mkdir(parents=True)
    path.write_bytes(b"somebody's own")
    with pytest.raises(UserError, match=r"14 bytes with sha256 .*Fetch .* into another folder"):
        prepare("cifar10", tmp_path / "data")
    assert path.read_bytes() == b"somebody's own"


def test_a_name_that_is_never_resolved_is_not_waited_for(monkeypatch):
    monkeypatch.setattr(download, "REACH_SECONDS", 0.2)
    told = threading.Event()
    monkeypatch.setattr(socket, "getaddrinfo", lambda *given, **more: told.wait(PATIENCE))
    try:
        begin = time.monotonic()
        assert download.reachable("http://somewhere.invalid/file") == "no answer"
        assert time.monotonic() - begin < PATIENCE / 2
    finally:
        told.set()


def _info_with(url):
    from tensorflow_datasets.image_classification import cifar

    stock = cifar.Cifar10._cifar_info
    return property(lambda builder: stock.fget(builder)._replace(url=url))


def test_another_archive_is_refused_by_its_sha256(tmp_path, cifar10):
    flip(cifar10[0], 500)
    with pytest.raises(UserError, match=r"sha256 .*; expected .*Fetch .* into another folder"):
        prepare("cifar10", tmp_path / "data", archive=cifar10[0], download=False)


def test_a_named_archive_must_exist(tmp_path):
    with pytest.raises(UserError, match=r"archive=.*no file .*; expected cifar-10-binary\.tar\.gz"):
        prepare("cifar10", tmp_path, archive=tmp_path / "nothing.tar.gz")


@pytest.mark.parametrize("cut", [True, False])
def test_a_damaged_archive_of_known_digest_is_refused(tmp_path, cifar10, monkeypatch, cut):
    content = cifar10[0].read_bytes()
    cifar10[0].write_bytes(content[: len(content) // 2] if cut else b"no archive")
    accept(monkeypatch, "cifar10", cifar10[0])
    with pytest.raises(UserError, match=r"is damaged .*Fetch it anew, into another folder"):
        prepare("cifar10", tmp_path / "data", archive=cifar10[0], download=False)
    assert not (tmp_path / "data" / "cifar10" / "3.0.2").exists()


def test_wrong_counts_are_refused_when_preparing(tmp_path, cifar10, monkeypatch):
    monkeypatch.setitem(tfds_folder.COUNTS, "cifar10", (201, 50))
    with pytest.raises(UserError, match=r"200 examples in data_batch_1\.bin.*; expected 201"):
        prepare("cifar10", tmp_path / "data", archive=cifar10[0], download=False)


def test_wrong_counts_are_refused_when_loading(prepared, monkeypatch):
    monkeypatch.setitem(tfds_folder.COUNTS, "cifar10", (50_000, 10_000))
    shutil.rmtree(prepared.parent / "cache")
    with pytest.raises(UserError, match=r"200 \+ 50 examples, expected 50000 \+ 10000.*Prepare it afresh"):
        load_dataset("cifar10", prepared)


def test_a_missing_record_file_is_refused(prepared):
    records(prepared).unlink()
    with pytest.raises(UserError, match=r"is damaged .*Prepare it afresh in another folder"):
        load_dataset("cifar10", prepared)


@pytest.mark.parametrize("where", [100, 0.3, 0.6])
def test_flipped_bits_in_records_are_refused_and_repaired(prepared, cifar10, where):
    path = records(prepared)
    content = path.read_bytes().rstrip(b"\0")
    flip(path, where if where >= 1 else int(len(content) * where))
    with pytest.raises(UserError, match=r"is damaged .*Prepare it afresh in another folder.*prepare_data"):
        load_dataset("cifar10", prepared)
    shutil.rmtree(path.parent)
    assert prepare("cifar10", prepared, archive=cifar10[0], download=False).num_examples == SMALL[0]


@pytest.mark.parametrize("file", ["dataset_info.json", "features.json"])
def test_damaged_descriptions_are_refused(prepared, file):
    (records(prepared).parent / file).write_text("{")
    with pytest.raises(UserError, match=r"is damaged .*Prepare it afresh"):
        load_dataset("cifar10", prepared)


def test_tfrecord_is_refused_with_the_converting_command(prepared):
    path = records(prepared).parent / "dataset_info.json"
    info = json.loads(path.read_text())
    path.write_text(json.dumps(info | {"fileFormat": "tfrecord"}))
    command = rf"tfds convert_format --dataset_version_dir={path.parent} --out_file_format=array_record"
    with pytest.raises(UserError, match=command):
        load_dataset("cifar10", prepared)
    with pytest.raises(UserError, match=command):
        prepare("cifar10", prepared, download=False)
    path.write_text(json.dumps(info | {"fileFormat": "tfrecord", "alternativeFileFormats": ["array_record"]}))
    assert load_dataset("cifar10", prepared).num_examples == SMALL[0], "converted in place"


KILLED = """
import os, signal, sys, pathlib
import archives
from datadiet.data import cache
from datadiet.data.prepare import prepare
from datadiet.data import tfds_builders
archive, where, when = pathlib.Path(sys.argv[1]), sys.argv[2], sys.argv[3]
archives.accept(archives.Plain, "cifar10", archive, (200, 50))
stock = tfds_builders.Cifar10._generate_examples
def generate(self, *arguments):
    for i, example in enumerate(stock(self, *arguments)):
        if when == "examples" and i == 150:
            os.kill(os.getpid(), signal.SIGKILL)
        yield example
tfds_builders.Cifar10._generate_examples = generate
if when == "cache":
    stock_save = cache.np.save
    def save(path, *arguments, **options):
        stock_save(path, *arguments, **options)
        if path.name == "test_images.npy":
            os.kill(os.getpid(), signal.SIGKILL)
    cache.np.save = save
print(prepare("cifar10", where, archive=archive, download=False).fingerprint)
"""


@pytest.mark.parametrize("when", ["examples", "cache"])
def test_a_killed_preparation_is_repaired_by_the_next(tmp_path, cifar10, when):
    where = tmp_path / "data"
    child = python(KILLED, cifar10[0], where, when, cache=tmp_path / "cache")
    end_of(child)
    assert child.returncode == -signal.SIGKILL
    if when == "examples":
        leftover = next((where / "cifar10").glob("incomplete*"))
        for path in (leftover, *leftover.iterdir()):
            os.utime(path, (0, 0))  # as if it were long ago
        with pytest.raises(UserError, match=r"has neither cifar10/<version> as tensorflow-datasets prepares it"):
            load_dataset("cifar10", where)
    else:
        assert list((tmp_path / "cache").glob(".*.tmp"))
    dataset = prepare("cifar10", where, archive=cifar10[0], download=False)
    assert np.array_equal(dataset.train_images, pixels(cifar10[1]))
    assert not list((where / "cifar10").glob("*incomplete*"))
    assert not list((tmp_path / "cache").glob(".*.tmp"))


def test_two_processes_at_once_both_succeed(tmp_path, cifar10):
    children = [python(KILLED, cifar10[0], tmp_path / "data", "never", cache=tmp_path / "cache") for _ in range(2)]
    outputs = [end_of(child) for child in children]
    assert [child.returncode for child in children] == [0, 0], outputs
    assert (
        outputs[0][0].split()[-1] == outputs[1][0].split()[-1] == load_dataset("cifar10", tmp_path / "data").fingerprint
    )
    assert len(list((tmp_path / "cache").glob("cifar10-*"))) == 1


# --- tfds/NAME ------------------------------------------------------------------------------------


def mnist_arrays(train, test):
    random = np.random.RandomState(0)
    images = [random.randint(0, 256, (count, 28, 28)).astype(np.uint8) for count in (train, test)]
    labels = [(np.arange(count) * 7 % 10).astype(np.uint8) for count in (train, test)]
    return images[0], labels[0], images[1], labels[1]


def prepare_mnist(tmp_path, monkeypatch, name="mnist", arrays=None):
    folder, arrays = tmp_path / "idx", arrays or mnist_arrays(300, 40)
    write_idx(folder, arrays, IDX_FILES)
    accept_content(monkeypatch, name, arrays)
    accept(monkeypatch, name, [folder / f"{file}.gz" for file in IDX_FILES])
    return prepare(f"tfds/{name}", tmp_path / "data", archive=folder, download=False)


@pytest.mark.parametrize("name", ["mnist", "kmnist", "fashion_mnist"])
def test_the_shuffle_of_mnist_is_inverted(tmp_path, monkeypatch, name):
    arrays = mnist_arrays(300, 40)
    dataset = prepare_mnist(tmp_path, monkeypatch, name)
    assert np.array_equal(dataset.train_images[..., 0], arrays[0])
    assert np.array_equal(dataset.train_labels, arrays[1])
    assert np.array_equal(dataset.test_images[..., 0], arrays[2])
    assert np.array_equal(dataset.test_labels, arrays[3])
    assert dataset.image_shape == (28, 28, 1)
    assert count_examples(f"tfds/{name}", tmp_path / "data") == 300


def test_the_shuffle_is_inverted_across_record_files(tmp_path, monkeypatch):
    import tensorflow_datasets as tfds

    config = tfds.download.DownloadConfig
    monkeypatch.setattr(tfds.download, "DownloadConfig", lambda **options: config(**options, num_shards=3))
    dataset = prepare_mnist(tmp_path, monkeypatch)
    assert len(list((tmp_path / "data").glob("mnist/*/mnist-train.array_record*"))) == 3
    assert np.array_equal(dataset.train_images[..., 0], mnist_arrays(300, 40)[0])


@pytest.mark.skipif(not DEBIAN_FASHION_MNIST.is_dir(), reason="Debian's dataset-fashion-mnist is not installed")
def test_fashion_mnist_of_tfds_and_of_the_idx_files_is_one_dataset(tmp_path, monkeypatch):
    from datadiet.data.sources.embedded import read_idx

    arrays = [read_idx(DEBIAN_FASHION_MNIST / f"{name}.gz")[:2000] for name in IDX_FILES]
    ours = prepare_mnist(tmp_path, monkeypatch, "fashion_mnist", arrays)
    theirs = load_dataset("fashion_mnist", tmp_path / "idx")
    assert ours.fingerprint == theirs.fingerprint
    assert ours.class_names == theirs.class_names


def test_damaged_idx_files_are_refused_when_preparing(tmp_path, monkeypatch):
    arrays = mnist_arrays(300, 40)
    with pytest.raises(UserError, match=r"300 images but 299 labels"):
        prepare_mnist(tmp_path, monkeypatch, arrays=(arrays[0], arrays[1][1:], *arrays[2:]))


def test_an_unknown_order_is_the_order_of_records(prepared, monkeypatch):
    path = records(prepared).parent / "features.json"
    features = json.loads(path.read_text())
    del features["featuresDict"]["features"]["id"]
    path.write_text(json.dumps(features))
    by_record = load_dataset("tfds/cifar10", prepared)
    by_id = pixels(write_cifar("cifar10", prepared.parent / "again.tar.gz", SMALL)[0])
    positions = tfds_folder.inverse_shuffle("train", SMALL[0])
    assert np.array_equal(by_record.train_images[positions], by_id)


def test_all_missing_files_are_listed(tmp_path):
    with pytest.raises(UserError) as caught:
        prepare("tfds/mnist", tmp_path, download=False)
    for archive in download.ARCHIVES["mnist"]:
        assert f"{archive.file_name} ({archive.size} bytes, sha256 {archive.digest}" in str(caught.value)


def test_a_split_to_test_on_is_demanded(prepared):
    path = records(prepared).parent / "dataset_info.json"
    info = json.loads(path.read_text())
    path.write_text(json.dumps(info | {"splits": info["splits"][:1]}))
    with pytest.raises(UserError, match=r"has the splits train; expected train, and test or validation"):
        load_dataset("tfds/cifar10", prepared)
    with pytest.warns(UserWarning, match="are the test set"):
        dataset = load_dataset("tfds/cifar10", prepared, test_fraction=0.2, image_size=16)
    assert dataset.num_examples + len(dataset.test_labels) == SMALL[0]
    assert dataset.image_shape == (16, 16, 3)


def test_a_dataset_without_class_labels_is_refused(prepared):
    path = records(prepared).parent / "features.json"
    features = json.loads(path.read_text())
    del features["featuresDict"]["features"]["label"]
    path.write_text(json.dumps(features))
    with pytest.raises(UserError, match=r"of which 0 could be the label"):
        load_dataset("tfds/cifar10", prepared)


def test_a_builder_that_needs_tensorflow_says_so(tmp_path, monkeypatch):
    stock = r"dtd-r1\.0\.1\.tar\.gz \(\d+ bytes, sha256 .*tfds build dtd --file_format=array_record"
    with pytest.raises(UserError, match=f"download is off.*{stock}"):
        prepare("tfds/dtd", tmp_path, download=False)
    monkeypatch.setattr("datadiet.data.prepare.reachable", lambda url: "no network")
    with pytest.raises(UserError, match=f"no network.*{stock}"):
        prepare("tfds/dtd", tmp_path)
    with pytest.raises(UserError, match=r"could not prepare it here .*tfds build no_such_dataset"):
        prepare("tfds/no_such_dataset", tmp_path)


def test_a_config_of_a_dataset_is_named_in_the_error(tmp_path, prepared):
    version = records(prepared).parent
    shutil.copytree(version, tmp_path / "configs" / "corrupted" / "fog" / "1.0.0")
    with pytest.raises(UserError, match=r"there are tfds/corrupted/fog"):
        load_dataset("tfds/corrupted", tmp_path / "configs")
    assert count_examples("tfds/corrupted/fog", tmp_path / "configs") == SMALL[0]


def test_idx_bytes_are_the_published_format():
    assert idx_bytes(np.zeros((2, 28, 28), np.uint8))[:16] == b"\0\0\x08\x03" + b"\0\0\0\x02" + b"\0\0\0\x1c" * 2
