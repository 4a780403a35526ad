"""Files as torchvision has them, idx files and CIFAR's pickles: read as the published data that they are."""

import gzip
import hashlib
import io
import os
import pickle
import shutil
import struct
import tarfile

import numpy as np
import pytest
from archives import CIFAR10_NAMES, accept, accept_content, add, idx_bytes, pixels, write_cifar, write_idx
from conftest import count_examples

from datadiet.data.prepare import prepare
from datadiet.data.registry import load_dataset
from datadiet.data.sources import cifar, tfds_folder
from datadiet.data.sources.embedded import IDX_FILES
from datadiet.data.sources.published import CIFAR_PICKLES
from datadiet.errors import UserError

SMALL = (200, 50)

pytestmark = pytest.mark.usefixtures("own_cache")


# --- idx:FOLDER -----------------------------------------------------------------------------------


def arrays(first=0, seed=0):
    random, labels = np.random.RandomState(seed), np.arange(30, dtype=np.uint8) % 10 + first
    images = random.randint(0, 256, (50, 7, 7)).astype(np.uint8)
    return images[:30], labels.astype(np.uint8), images[30:], labels[:20].astype(np.uint8)


def emnist_names(kind):
    return [
        name.replace("train-", f"emnist-{kind}-train-").replace("t10k-", f"emnist-{kind}-test-") for name in IDX_FILES
    ]


@pytest.mark.parametrize("folder", ["", "raw", "MNIST/raw"])
@pytest.mark.parametrize("change", ["gz", "plain", "both", "dots"])
def test_idx_files_are_found_plain_or_packed_where_torchvision_has_them(tmp_path, folder, change):
    given = arrays()
    names = [name.replace("-idx", ".idx") for name in IDX_FILES] if change == "dots" else IDX_FILES
    write_idx(tmp_path / "data" / folder, given, names)
    for name, array in zip(names, given) if change != "gz" else ():
        (tmp_path / "data" / folder / name).write_bytes(idx_bytes(array))
        if change == "plain":
            (tmp_path / "data" / folder / f"{name}.gz").unlink()
    dataset = load_dataset("idx:data", tmp_path)
    assert np.array_equal(dataset.train_images[..., 0], given[0])
    assert np.array_equal(dataset.test_images[..., 0], given[2])
    assert np.array_equal(dataset.train_labels, given[1])
    assert dataset.example_ids[[0, -1]].tolist() == ["train_00000", "train_00029"]
    assert count_examples("idx:data", tmp_path) == 30


def test_idx_files_are_the_same_data_as_by_their_published_name(tmp_path, monkeypatch):
    write_idx(tmp_path, given := arrays(), IDX_FILES)
    accept_content(monkeypatch, "fashion_mnist", given)
    assert load_dataset(f"idx:{tmp_path}").fingerprint == load_dataset("fashion_mnist", tmp_path).fingerprint


def test_of_several_data_sets_one_is_picked_by_name(tmp_path):
    for seed, kind in enumerate(("letters", "digits")):
        write_idx(tmp_path / "gzip", arrays(first=int(kind == "letters"), seed=seed), emnist_names(kind))
    letters = "".join(f"{i + 1} {65 + i} {97 + i}\n" for i in range(10))
    (tmp_path / "gzip/emnist-letters-mapping.txt").write_text(letters)
    with pytest.raises(UserError) as caught:
        load_dataset("idx:gzip", tmp_path)
    assert f"2 data sets; expected one of idx:{tmp_path}/gzip/emnist-digits, idx:" in str(caught.value)
    with pytest.warns(UserWarning, match="labels 1, 2, 3, 4, 5, 6, 7, 8 … are renumbered 0 to 9"):
        dataset = load_dataset("idx:gzip/emnist-letters", tmp_path)
    assert dataset.class_names[:2] == ("Aa", "Bb")
    assert load_dataset("idx:gzip/EMNIST-digits", tmp_path).class_names == ()
    with pytest.raises(UserError, match=r"nor idx files of mnist in .*gzip; .*got emnist-digits-test"):
        load_dataset("idx:gzip/mnist", tmp_path)


def test_qmnist_has_its_classes_in_the_first_of_several_columns(tmp_path):
    x, y, x_test, y_test = arrays()
    for split, images, labels in (("train", x, y), ("test", x_test, y_test)):
        columns = np.concatenate([labels[:, None], np.full((len(labels), 7), 9)], axis=1).astype(">i4")
        (tmp_path / f"qmnist-{split}-images-idx3-ubyte").write_bytes(idx_bytes(images))
        header = struct.pack(">HBB2I", 0, 12, 2, *columns.shape)
        (tmp_path / f"qmnist-{split}-labels-idx2-int.gz").write_bytes(gzip.compress(header + columns.tobytes()))
    with pytest.warns(UserWarning, match="has 8 columns; the first is the class, as in QMNIST"):
        dataset = load_dataset(f"idx:{tmp_path}")
    np.testing.assert_array_equal(dataset.train_labels, y)
    np.testing.assert_array_equal(dataset.test_labels, y_test)
    assert count_examples(f"idx:{tmp_path}") == len(y)


def test_without_test_files_a_fraction_is_the_test_set(tmp_path):
    write_idx(tmp_path, arrays()[:2], IDX_FILES[:2])
    with pytest.raises(UserError, match=r"(?s)no test split: expected train-images-idx3-ubyte.*--test_fraction 0\.2"):
        load_dataset(f"idx:{tmp_path}")
    with pytest.warns(UserWarning, match="of 30 examples are the test set"):
        dataset = load_dataset(f"idx:{tmp_path}", test_fraction=0.3)
    assert dataset.num_examples + len(dataset.test_labels) == 30
    assert count_examples(f"idx:{tmp_path}", test_fraction=0.3) == dataset.num_examples


def change(path, content):
    path.write_bytes(content)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda f: shutil.rmtree(f), "neither a folder .*data nor idx files of data"),
        (lambda f: [p.unlink() for p in f.iterdir()], "no idx file in .*got nothing"),
        (lambda f: (f / f"{IDX_FILES[1]}.gz").unlink(), "but no train labels; expected"),
        (lambda f: (f / f"{IDX_FILES[0]}.gz").write_bytes(b"text"), "cannot be read as an idx file"),
        (lambda f: change(f / f"{IDX_FILES[0]}.gz", gzip.compress(idx_bytes(arrays()[1]))), "expected images"),
        (
            lambda f: change(f / f"{IDX_FILES[1]}.gz", gzip.compress(idx_bytes(arrays()[1][:9]))),
            "30 images in .*, but 9 labels in",
        ),
        (
            lambda f: change(f / IDX_FILES[0], struct.pack(">HBB3I", 0, 8, 3, 60_000, 9999, 9999)),
            r"6e\+03 GB when read|TB|GB when read",
        ),
        (lambda f: change(f / "test-images-idx3-ubyte", idx_bytes(arrays()[2])), "may both be meant"),
        (lambda f: ((f / f"{IDX_FILES[0]}.gz").unlink(), os.mkfifo(f / IDX_FILES[0])), "no train images"),
    ],
)
def test_damaged_idx_folders_are_refused(tmp_path, damage, message):
    write_idx(tmp_path / "data", arrays(), IDX_FILES)
    damage(tmp_path / "data")
    with pytest.raises(UserError, match=message):
        load_dataset("idx:data", tmp_path)


# --- CIFAR's pickles ------------------------------------------------------------------------------


def text(value):
    """A str of Python 2 in a pickle."""
    return b"T" + struct.pack("<I", len(value)) + value


MADE = b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\n"


def array(rows):
    """An array of bytes as Python 2's NumPy pickles it."""
    count, width = rows.shape
    shape = b"M" + struct.pack("<H", count) + b"M" + struct.pack("<H", width) + b"\x86"
    kind = (
        b"cnumpy\ndtype\n"
        + text(b"u1")
        + b"K\x00K\x01\x87R(K\x03"
        + text(b"|")
        + b"NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb"
    )
    made = MADE + b"K\x00\x85" + text(b"b") + b"\x87R"
    return made + b"(K\x01" + shape + kind + b"\x89" + text(rows.tobytes()) + b"tb"


def batch(rows, labels, key):
    """A file of CIFAR, as Python 2 wrote it."""
    numbers = b"](" + b"".join(b"K" + bytes([label]) for label in labels) + b"e"
    return b"\x80\x02}(" + text(b"data") + array(rows) + text(key) + numbers + b"u."


def names(key, values):
    return b"\x80\x02}" + text(key) + b"](" + b"".join(map(text, values)) + b"es."


def python_files(name, folder, train, test, labels):
    """The folder as torchvision has it, of the rows of an archive of binary files."""
    known = CIFAR_PICKLES[name]
    folder.mkdir(parents=True)
    for files, rows in ((known.train, train), (known.test, test)):
        for file, part in zip(files, np.array_split(rows, len(files))):
            (folder / file).write_bytes(batch(part[:, labels:], part[:, labels - 1], known.labels.encode()))
    called = CIFAR10_NAMES if name == "cifar10" else [f"fine{i}" for i in range(100)]
    (folder / known.meta).write_bytes(names(known.class_names.encode(), [one.encode() for one in called]))
    return folder


def publish(monkeypatch, name, folder):
    """Tell the code that these files are the published ones."""
    known = CIFAR_PICKLES[name]
    digests = {file: hashlib.md5((folder / file).read_bytes()).hexdigest() for file in known.digests}
    monkeypatch.setitem(CIFAR_PICKLES, name, known := known._replace(digests=digests))
    return known


def packed(monkeypatch, name, folder, target):
    """The archive of a folder, and the code told that it is the published one."""
    known = CIFAR_PICKLES[name]
    target.mkdir(exist_ok=True)
    path = target / known.archive.file_name
    with tarfile.open(path, "w:gz", compresslevel=1) as tar:
        add(tar, f"{known.folder}/readme.html", b"text")
        for file in known.digests:
            add(tar, f"{known.folder}/{file}", (folder / file).read_bytes())
    archive = known.archive._replace(size=path.stat().st_size, digest=hashlib.md5(path.read_bytes()).hexdigest())
    monkeypatch.setitem(CIFAR_PICKLES, name, known._replace(archive=archive))


@pytest.mark.parametrize("name", ["cifar10", "cifar100"])
def test_cifar_of_torchvision_is_the_same_data_as_of_tensorflow_datasets(tmp_path, monkeypatch, name):
    labels = 1 if name == "cifar10" else 2
    train, test = write_cifar(name, tmp_path / "given.tar.gz", SMALL)
    accept(monkeypatch, name, tmp_path / "given.tar.gz", SMALL)
    known = prepare(name, tmp_path / "tfds", archive=tmp_path / "given.tar.gz", download=False)
    folder = python_files(name, tmp_path / "torch" / CIFAR_PICKLES[name].folder, train, test, labels)
    publish(monkeypatch, name, folder)
    packed(monkeypatch, name, folder, tmp_path / "packed")
    for place in (tmp_path / "torch", folder, tmp_path / "packed"):
        dataset = load_dataset(name, place)
        assert dataset.fingerprint == known.fingerprint, place
        assert np.array_equal(dataset.train_images, pixels(train, labels))
        assert np.array_equal(dataset.test_images, known.test_images)
        assert np.array_equal(dataset.test_labels, known.test_labels)
        assert dataset.class_names == known.class_names
        assert np.array_equal(dataset.mean, known.mean)
        assert count_examples(name, place) == SMALL[0]
    assert prepare(name, tmp_path / "packed", download=False).num_examples == SMALL[0], "there is nothing to prepare"


@pytest.fixture
def torchs(tmp_path, monkeypatch):
    """A data_dir with CIFAR-10 as torchvision has it."""
    monkeypatch.setitem(tfds_folder.COUNTS, "cifar10", SMALL)
    train, test = write_cifar("cifar10", tmp_path / "given.tar.gz", SMALL, cheap=True)
    folder = python_files("cifar10", tmp_path / "data" / "cifar-10-batches-py", train, test, 1)
    publish(monkeypatch, "cifar10", folder)
    return tmp_path / "data"


def test_other_files_than_were_published_are_refused(torchs, monkeypatch):
    folder = torchs / "cifar-10-batches-py"
    content = (folder / "data_batch_3").read_bytes()
    (folder / "data_batch_3").write_bytes(content[:-9] + b"\x01" + content[-8:])
    with pytest.raises(
        UserError, match=r"data_batch_3 is not as it was published \(\d+ bytes with md5 .*; expected md5"
    ):
        load_dataset("cifar10", torchs)
    (folder / "data_batch_3").unlink()
    with pytest.raises(UserError, match=r"data_batch_3"):
        load_dataset("cifar10", torchs)
    (folder / "data_batch_3").write_bytes(content)
    monkeypatch.setitem(tfds_folder.COUNTS, "cifar10", (50_000, 10_000))
    with pytest.raises(UserError, match=r"200 \+ 50 examples; expected \(50000, 10000\)"):
        load_dataset("cifar10", torchs)
    archive = CIFAR_PICKLES["cifar10"].archive
    shutil.rmtree(folder)
    (torchs / archive.file_name).write_bytes(b"other")
    with pytest.raises(
        UserError, match=r"5 bytes.*; expected 170498071 bytes with md5 c58f30108f718f92721af3b95e74349a"
    ):
        load_dataset("cifar10", torchs)


class Attack:
    def __init__(self, *call):
        self.call = call

    def __reduce__(self):
        return self.call[0], self.call[1:]


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (pickle.dumps({"data": Attack(os.mkdir, "made")}, 2), "posix.mkdir"),
        (pickle.dumps({"data": Attack(eval, "1")}, 2), "eval"),
        (pickle.dumps({"data": Attack(np.ndarray, (10**12,))}, 2), "not callable"),
        (pickle.dumps({"data": Attack(np.dtype, "O")}, 2), "an array of 'O'"),
        (pickle.dumps({"data": np.load}, 2), "load"),
        (b"\x80\x02" + MADE + b"J\xff\xff\xff\x7f\x85" + text(b"b") + b"\x87R.", r"an array of \(2147483647,\)"),
        (b"not a pickle", "cannot be read as a file of CIFAR"),
        (b"", "cannot be read as a file of CIFAR"),
        (b"\x80\x02]q\x00.", "cannot be read as a file of CIFAR"),
    ],
    ids=["folder", "eval", "large array", "objects", "function", "large shape", "text", "empty", "list"],
)  # fmt: skip
def test_nothing_is_built_that_a_pickle_asks_for(torchs, monkeypatch, tmp_path, content, told):
    """Even where the digest were right."""
    folder = torchs / "cifar-10-batches-py"
    (folder / "test_batch").write_bytes(content)
    publish(monkeypatch, "cifar10", folder)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=told):
        load_dataset("cifar10", torchs)
    assert not (tmp_path / "made").exists()


def test_a_confined_pickle_may_hold_what_cifars_do():
    rows = np.arange(24, dtype=np.uint8).reshape(4, 6)
    found = cifar.Confined(io.BytesIO(batch(rows, [1, 2, 3, 4], b"labels")), encoding="bytes").load()
    assert np.array_equal(found[b"data"], rows)
    assert found[b"labels"] == [1, 2, 3, 4]
