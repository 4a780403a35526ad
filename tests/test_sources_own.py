"""CINIC-10, idx files and anybody's own data: what is read, in which order, and what is refused."""

import gzip
import io
import json
import shutil
import struct
import tarfile
import warnings
import zlib

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from archives import accept, accept_content, add, cinic_images, flip, idx_bytes, png, write_idx
from conftest import count_examples
from PIL import ExifTags, Image

from datadiet.data.batches import normalize
from datadiet.data.objects import dataset_from
from datadiet.data.prepare import prepare
from datadiet.data.reading import Remark
from datadiet.data.registry import load_dataset
from datadiet.data.sources import cinic10
from datadiet.data.sources.embedded import DEBIAN_FASHION_MNIST, IDX_FILES
from datadiet.errors import UserError

RANDOM = np.random.RandomState(0)


pytestmark = pytest.mark.usefixtures("own_cache")


def images(*shape):
    return RANDOM.randint(0, 256, shape).astype(np.uint8)


# --- CINIC-10 -------------------------------------------------------------------------------------


@pytest.fixture
def cinic(monkeypatch):
    monkeypatch.setattr(cinic10, "PER_CLASS", 4)
    return cinic_images(4)


def write_tree(folder, files):
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    return folder


def write_tar(path, files, prefix=""):
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w:gz") as tar:
        add(tar, f"{prefix}README", b"text")
        for name, content in files.items():
            add(tar, prefix + name, content)
    return path


def decoded(content):
    return np.asarray(Image.open(io.BytesIO(content)).convert("RGB"))


@pytest.mark.parametrize("kind", ["tree", "archive", "below"])
def test_cinic10_is_train_then_valid_by_sorted_path(tmp_path, cinic, kind, monkeypatch):
    if kind == "archive":
        accept(monkeypatch, "cinic10", write_tar(tmp_path / "data" / "CINIC-10.tar.gz", cinic, "./"))
    else:
        write_tree(tmp_path / "data" / ("cinic10" if kind == "below" else ""), cinic)
    dataset = load_dataset("cinic10", tmp_path / "data")
    order = sorted(n for n in cinic if n.startswith("train")) + sorted(n for n in cinic if n.startswith("valid"))
    assert dataset.example_ids.tolist() == order
    assert np.array_equal(dataset.train_images, [decoded(cinic[name]) for name in order])
    assert [cinic10.CLASSES[i] for i in dataset.train_labels] == [name.split("/")[1] for name in order]
    test = sorted(n for n in cinic if n.startswith("test"))
    assert np.array_equal(dataset.test_images, [decoded(cinic[name]) for name in test])
    assert count_examples("cinic10", tmp_path / "data") == dataset.num_examples == 80
    assert np.allclose(dataset.mean, (0.47889522, 0.47227842, 0.43047404))
    assert np.allclose(dataset.std, (0.24205776, 0.23828046, 0.25874835))


def test_cinic10_has_one_identity_packed_and_extracted(tmp_path, cinic, monkeypatch):
    write_tree(tmp_path / "tree", cinic)
    accept(monkeypatch, "cinic10", write_tar(tmp_path / "packed" / "CINIC-10.tar.gz", cinic, "CINIC-10/"))
    one, other = load_dataset("cinic10", tmp_path / "tree"), load_dataset("cinic10", tmp_path / "packed")
    assert one.fingerprint == other.fingerprint


@pytest.mark.parametrize("change", ["missing", "extra", "unknown class"])
def test_cinic10_counts_are_checked_per_class_and_split(tmp_path, cinic, change):
    name = "valid/cat/n0001.png"
    content = cinic[name]
    if change == "missing":
        del cinic[name]
    elif change == "extra":
        cinic["valid/cat/more.png"] = content
    else:
        cinic["valid/cow/n0001.png"] = content
    write_tree(tmp_path, cinic)
    expected = {
        "missing": "3 images in valid/cat; expected 4",
        "extra": "5 images in valid/cat; expected 4",
        "unknown class": "images in valid/cow; expected classes airplane",
    }
    with pytest.raises(UserError, match=expected[change]):
        load_dataset("cinic10", tmp_path)


def test_cinic10_of_another_size_is_refused(tmp_path, cinic):
    write_tree(tmp_path, dict.fromkeys(cinic, png(images(16, 16, 3))))
    with pytest.raises(UserError, match=r"images of \(16, 16, 3\); expected \(32, 32, 3\)"):
        load_dataset("cinic10", tmp_path)


def test_a_damaged_cinic10_is_refused(tmp_path, cinic, monkeypatch):
    path = write_tar(tmp_path / "CINIC-10.tar.gz", cinic)
    path.write_bytes(path.read_bytes()[:50_000])
    with pytest.raises(UserError, match=r"50000 bytes with md5 .*; expected 687544992 bytes with md5 6ee4d0c9"):
        load_dataset("cinic10", tmp_path)
    accept(monkeypatch, "cinic10", path)
    with pytest.raises(UserError, match=r"is damaged .*afresh in another folder: .*prepare_data --dataset cinic10"):
        load_dataset("cinic10", tmp_path)
    with pytest.raises(UserError, match=r"no CINIC-10.tar.gz, no extracted tree .*Training never downloads"):
        load_dataset("cinic10", tmp_path / "elsewhere")


def test_cinic10_is_prepared_from_an_archive_that_is_checked(tmp_path, cinic, monkeypatch):
    path = write_tar(tmp_path / "given" / "CINIC-10.tar.gz", cinic)
    with pytest.raises(UserError, match=r"md5 .*; expected 687544992 bytes with md5 6ee4d0c996905fe93221de577967a372"):
        prepare("cinic10", tmp_path / "data", archive=path)
    accept(monkeypatch, "cinic10", path)
    assert prepare("cinic10", tmp_path / "data", archive=path, download=False).num_examples == 80
    shutil.rmtree(path.parent)
    assert prepare("cinic10", tmp_path / "data", download=False).num_examples == 80
    with pytest.raises(UserError, match=r"Place in the folder .*empty: CINIC-10.tar.gz"):
        prepare("cinic10", tmp_path / "empty", download=False)


@pytest.mark.parametrize("valid", ["apart", "joined"])
def test_cinic10_arrays_of_the_original_are_read(tmp_path, cinic, valid):
    arrays = {split: (images(40, 32, 32, 3), np.repeat(np.arange(10), 4)) for split in ("train", "valid", "test")}
    arrays["valid"] = arrays["valid"][0].astype(np.float32), arrays["valid"][1]  # whole numbers, as floats
    joined = [np.concatenate([arrays["train"][k], arrays["valid"][k]]).astype([np.uint8, np.int64][k]) for k in (0, 1)]
    if valid == "joined":
        arrays = {"train": joined, "test": arrays["test"]}
    for split, (x, y) in arrays.items():
        np.save(tmp_path / f"X_{split}.npy", x)
        np.save(tmp_path / f"{'Y' if split == 'train' else 'y'}_{split}.npy", y)
    dataset = load_dataset("cinic10", tmp_path)
    assert np.array_equal(dataset.train_images, joined[0])
    assert dataset.train_images.dtype == np.uint8
    assert np.array_equal(dataset.train_labels, joined[1])
    np.save(tmp_path / "y_test.npy", arrays["test"][1][::-1] // 2)
    with pytest.raises(UserError, match=r"8 of class 0, .* in test; expected 4 of each class"):
        load_dataset("cinic10", tmp_path)
    np.save(tmp_path / "X_test.npy", arrays["test"][0] / np.float32(255))
    with pytest.raises(UserError, match=r"X_test\.npy has values other than whole numbers from 0 to 255"):
        load_dataset("cinic10", tmp_path)
    (tmp_path / "X_test.npy").unlink()
    with pytest.raises(UserError, match=r"no X_test\.npy in"):
        load_dataset("cinic10", tmp_path)


# --- idx files ------------------------------------------------------------------------------------


@pytest.mark.skipif(not DEBIAN_FASHION_MNIST.is_dir(), reason="Debian's dataset-fashion-mnist is not installed")
def test_real_fashion_mnist():
    dataset = load_dataset("fashion_mnist")
    assert dataset.train_images.shape == (60_000, 28, 28, 1)
    assert dataset.test_images.shape == (10_000, 28, 28, 1)
    assert np.bincount(dataset.train_labels).tolist() == [6000] * 10
    assert count_examples("fashion_mnist") == 60_000
    assert np.allclose([dataset.mean[0], dataset.std[0]], (0.2860, 0.3530), atol=1e-4)  # the published values


def idx_arrays():
    labels = np.arange(30, dtype=np.uint8) % 10
    return images(30, 28, 28), labels, images(20, 28, 28), labels[:20]


def test_idx_files_are_read_in_file_order_gzipped_or_not(tmp_path, monkeypatch):
    arrays = idx_arrays()
    accept_content(monkeypatch, "fashion_mnist", arrays)
    write_idx(tmp_path, arrays, IDX_FILES)
    (tmp_path / IDX_FILES[1]).write_bytes(idx_bytes(arrays[1]))
    dataset = load_dataset("fashion_mnist", tmp_path)
    assert np.array_equal(dataset.train_images[..., 0], arrays[0])
    assert np.array_equal(dataset.train_labels, arrays[1])
    assert np.array_equal(dataset.test_labels, arrays[3])


def test_damaged_idx_files_are_refused(tmp_path, monkeypatch):
    arrays = idx_arrays()
    accept_content(monkeypatch, "fashion_mnist", arrays)
    write_idx(tmp_path, arrays, IDX_FILES)
    path = tmp_path / f"{IDX_FILES[0]}.gz"
    content = path.read_bytes()
    cases = {
        content[:3000]: "cannot be read as an idx file",
        b"no gzip": "cannot be read as an idx file",
        gzip.compress(idx_bytes(arrays[0])[:-1]): r"bytes of data where its header says \(30, 28, 28\)",
        gzip.compress(b"\0\0\x0d\1" + b"\0\0\0\1" + b"\0\0\0\0"): "not an idx file of unsigned bytes",
    }
    for damaged, message in cases.items():
        path.write_bytes(damaged)
        with pytest.raises(UserError, match=message):
            load_dataset("fashion_mnist", tmp_path)
    path.write_bytes(content)
    flip(path, len(content) // 2)
    with pytest.raises(UserError, match=r"cannot be read as an idx file"):
        load_dataset("fashion_mnist", tmp_path)
    path.unlink()
    with pytest.raises(UserError, match=r"no file .*train-images.*apt-get install dataset-fashion-mnist"):
        load_dataset("fashion_mnist", tmp_path)


def test_fashion_mnist_is_prepared_from_its_four_files(tmp_path, monkeypatch):
    write_idx(tmp_path / "given", arrays := idx_arrays(), IDX_FILES)
    accept_content(monkeypatch, "fashion_mnist", arrays)
    accept(monkeypatch, "fashion_mnist", [tmp_path / "given" / f"{name}.gz" for name in IDX_FILES])
    monkeypatch.setattr("datadiet.data.sources.embedded.DEBIAN_FASHION_MNIST", tmp_path / "none")
    dataset = prepare("fashion_mnist", tmp_path / "data", archive=tmp_path / "given", download=False)
    assert dataset.num_examples == 30
    with pytest.raises(UserError, match=r"Place in the folder .*other: train-images-idx3-ubyte\.gz"):
        prepare("fashion_mnist", tmp_path / "other", download=False)


# --- folder:PATH ----------------------------------------------------------------------------------


def folder_images():
    files = {}
    for split, count in (("train", 6), ("val", 3)):
        for label in ("b cat", "A dog", "zebra"):
            for i in range(count):
                files[f"{split}/{label}/{i}.png"] = png(images(5, 7, 3))
    return files


def test_a_folder_is_read_by_sorted_path(tmp_path):
    files = folder_images()
    files["train/zebra/deep/er.PNG"] = png(images(5, 7))  # grey among coloured ones, in a subfolder
    files["train/.hidden/x.png"] = files["train/A dog/.DS_Store"] = b""
    write_tree(tmp_path / "mine", files)
    dataset = load_dataset("folder:mine", tmp_path)
    train = sorted(n for n in files if n.startswith("train") and "/." not in n)
    assert dataset.example_ids.tolist() == [name.removeprefix("train/") for name in train]
    assert np.array_equal(dataset.train_images, [decoded(files[name]) for name in train])
    assert np.array_equal(dataset.test_images, [decoded(files[n]) for n in sorted(files) if n.startswith("val")])
    assert dataset.class_names == ("A dog", "b cat", "zebra")
    assert dataset.test_labels.tolist() == [0] * 3 + [1] * 3 + [2] * 3
    assert count_examples(f"folder:{tmp_path / 'mine'}") == dataset.num_examples == 19
    pixels = dataset.train_images / 255
    assert np.allclose(dataset.mean, pixels.mean((0, 1, 2)), atol=1e-6)


def test_grey_folders_stay_grey(tmp_path):
    names = [f"{split}/{label}/{i}.png" for split in ("train", "test") for label in "ab" for i in range(3)]
    write_tree(tmp_path, {name: png(images(4, 4)) for name in names})
    assert load_dataset(f"folder:{tmp_path}").image_shape == (4, 4, 1)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda f: {k: v for k, v in f.items() if k.startswith("train")}, "no test split: expected .*test/CLASS/IMAGE"),
        (lambda f: {k: v for k, v in f.items() if k.startswith("val")}, "no folder .*train.*; got val"),
        (lambda f: f | {"Train/zebra/9.png": png(images(5, 7, 3))}, "Train, train, val may each be meant"),
        (lambda f: {k: v for k, v in f.items() if "zebra" in k}, "every training example has label 0"),
        (lambda f: f | {"val/cow/1.png": png(images(5, 7, 3))}, "class cow is present only in the test split"),
        (
            lambda f: f | {"val/zebra/1.png": png(images(5, 8, 3))},
            r"images of 2 sizes; expected images of one size:\n  7 x 5 pixels: 26 .*\n  8 x 5 pixels: 1 .*image_size 5",
        ),
        (lambda f: f | {"train/zebra/9.png": b"text"}, "9.png: cannot be read as an image"),
        (lambda f: f | {"train/zebra/9.png": png(images(5, 7, 3))[:60]}, "9.png: cannot be read as an image"),
        (lambda f: f | {"train/zebra/9.png": png(np.ones((5, 7), np.uint16))}, "mode I.*expected 8 bits per channel"),
        (lambda f: f | {"train/empty/.keep": b""}, "no image in .*empty"),
    ],
)
def test_folders_that_cannot_be_learned_from_are_refused(tmp_path, change, message):
    write_tree(tmp_path, change(folder_images()))
    with pytest.raises(UserError, match=message):
        load_dataset(f"folder:{tmp_path}")


def deep(kind, channels):
    """An image of 16 bits per channel, of values below 2**12, as Pillow cannot write it: PNG, TIFF or PPM."""
    pixels = RANDOM.randint(0, 2**12, (5, 7, channels))
    if kind == "PPM":
        return b"P6 7 5 65535\n" + pixels.astype(">u2").tobytes()
    if kind == "TIFF":
        plain, buffer = Image.new("RGB", (7, 5)), io.BytesIO()
        plain.save(buffer, "TIFF")
        return buffer.getvalue().replace(struct.pack("<3H", 8, 8, 8), struct.pack("<3H", 16, 16, 16)) + bytes(105)
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in pixels)
    header = struct.pack(">IIBBBBB", 7, 5, 16, {2: 4, 3: 2, 4: 6}[channels], 0, 0, 0)
    chunks = [(b"IHDR", header), (b"IDAT", zlib.compress(rows)), (b"IEND", b"")]
    packed = (struct.pack(">I", len(c)) + n + c + struct.pack(">I", zlib.crc32(n + c)) for n, c in chunks)
    return b"\x89PNG\r\n\x1a\n" + b"".join(packed)


@pytest.mark.parametrize(("kind", "channels"), [("PNG", 2), ("PNG", 3), ("PNG", 4), ("TIFF", 3), ("PPM", 3)])
def test_colours_of_more_bits_than_are_kept_are_refused_and_not_cut(tmp_path, kind, channels):
    content = deep(kind, channels)
    with Image.open(io.BytesIO(content)) as image:
        assert image.mode in ("RGB", "RGBA"), "by which they look like others"
    write_tree(tmp_path, folder_images() | {f"train/zebra/9.{kind.lower()}": content})
    with pytest.raises(
        UserError, match=r"9\.\w+: an image of mode RGBA? with more bits than are read; expected 8 bits"
    ):
        load_dataset(f"folder:{tmp_path}")
    with pytest.raises(UserError, match="item 0.*with more bits than are read"):
        dataset_from([(Image.open(io.BytesIO(content)), label) for label in (0, 1)], [(Image.new("RGB", (7, 5)), 0)])


@pytest.mark.parametrize(("train", "test"), [("Train", "Test"), ("training", "testing"), ("TRAINING", "eval")])
def test_splits_are_found_by_their_usual_names(tmp_path, train, test):
    write_tree(
        tmp_path, {f"{train if k[0] == 't' else test}{k[k.index('/') :]}": v for k, v in folder_images().items()}
    )
    assert load_dataset(f"folder:{tmp_path}").num_examples == 18


def test_images_are_known_by_how_they_begin_where_their_suffix_says_nothing(tmp_path):
    files = {k.replace("0.png", "0.jfif").replace("1.png", "1"): v for k, v in folder_images().items()}
    write_tree(tmp_path, files | {"train/zebra/notes.txt": png(images(5, 7, 3)), "train/zebra/list": b"text"})
    with pytest.warns(UserWarning, match="2 files are no images of a class"):
        assert load_dataset(f"folder:{tmp_path}").num_examples == 18


def rotated(pixels):
    """A JPEG as a phone writes it: to be turned a quarter clockwise."""
    buffer, exif = io.BytesIO(), Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    Image.fromarray(pixels).save(buffer, "JPEG", quality=100, subsampling=0, exif=exif)
    return buffer.getvalue()


def test_photographs_are_turned_and_it_is_said(tmp_path):
    half = np.zeros((8, 16, 3), np.uint8)
    half[:, 8:] = 255  # right, which is down when it is turned
    for split in ("train", "test"):
        write_tree(tmp_path, {f"{split}/{label}/{i}.jpg": rotated(half) for label in "ab" for i in range(2)})
    with pytest.warns(UserWarning, match="8 of 8 images are turned as their EXIF data says"):
        found = load_dataset(f"folder:{tmp_path}").train_images
    assert found.shape == (4, 16, 8, 3)
    assert found[:, :6].max() < 30
    assert found[:, 10:].min() > 225


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
def test_what_is_transparent_is_white_and_it_is_said(tmp_path, mode):
    rgba = np.zeros((4, 4, 4), np.uint8)
    rgba[1:3, 1:3, 3] = 255  # a black square, and nothing around it
    image, buffer = Image.fromarray(rgba), io.BytesIO()
    if mode == "P":
        image = Image.fromarray(rgba[..., 3] // 255, "P")
        image.putpalette([9, 9, 9, 0, 0, 0])
        image.info["transparency"] = 0
    image.convert(mode).save(buffer, "PNG", **({"transparency": 0} if mode == "P" else {}))
    for split in ("train", "test"):
        write_tree(tmp_path, {f"{split}/{label}/0.png": buffer.getvalue() for label in "ab"})
    with pytest.warns(UserWarning, match="4 of 4 images are put on white where transparent"):
        found = load_dataset(f"folder:{tmp_path}").train_images
    assert found.shape[-1] == (1 if mode == "LA" else 3)
    np.testing.assert_array_equal(found[0, ..., 0], 255 - rgba[..., 3])


@pytest.mark.parametrize("kind", ["TIFF", "GIF", "WEBP", "PNG"])
def test_of_several_frames_the_first_is_taken_and_it_is_said(tmp_path, kind):
    def saved(count):
        frames, buffer = [Image.fromarray(images(5, 7, 3)) for _ in range(count)], io.BytesIO()
        options = {} if kind == "TIFF" else {"duration": 40}
        frames[0].save(buffer, kind, save_all=True, append_images=frames[1:], **options)
        return buffer.getvalue()

    both = {f"{split}/{label}/{i}": saved(1 + i) for split in ("train", "test") for label in "ab" for i in range(3)}
    said = "8 of 12 images are the first of several frames of their files; others are not used"
    with pytest.warns(UserWarning, match=said):
        found = load_dataset(f"folder:{write_tree(tmp_path, both)}")
    for pixels, name in zip(found.train_images, found.example_ids):
        np.testing.assert_array_equal(pixels, decoded(both[f"train/{name}"]))
    train, test = (
        [(Image.open(io.BytesIO(both[f"{split}/{label}/2"])), label) for label in "ab"] for split in ("train", "test")
    )
    with pytest.warns(UserWarning, match="2 of 2 images are the first of several frames"):
        dataset_from(train, test)
    for image, _ in train:
        image.seek(1)  # a frame that was chosen
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        dataset_from(train, test)
    assert sum("several frames" in str(one.message) for one in caught) == 1, "of the test set alone"


def test_what_is_left_aside_in_a_folder_is_said(tmp_path):
    files = folder_images()
    write_tree(tmp_path, files | {"train/zebra/notes.txt": b"text"})
    with pytest.warns(UserWarning, match=r"1 files are no images of a class: .*notes\.txt"):
        load_dataset(f"folder:{tmp_path}")
    (tmp_path / "train/zebra/notes.txt").unlink()
    shutil.copytree(tmp_path / "val", tmp_path / "test")
    with pytest.warns(UserWarning, match=r"test is the test set; val is not used"):
        load_dataset(f"folder:{tmp_path}")


def test_own_data_needs_no_archive(tmp_path):
    write_tree(tmp_path, folder_images())
    with pytest.warns(UserWarning, match="val is the test set"):
        assert prepare(f"folder:{tmp_path}").num_examples == 18
    with pytest.raises(UserError, match=r"takes no archive"):
        prepare(f"folder:{tmp_path}", archive=tmp_path)


# --- npz:PATH -------------------------------------------------------------------------------------


def arrays(train=(20, 6, 6, 3), test=(10, 6, 6, 3)):
    y = [np.arange(shape[0]) % 5 for shape in (train, test)]
    return {"x_train": images(*train), "y_train": y[0], "x_test": images(*test), "y_test": y[1]}


def write_npz(folder, **changes):
    folder.mkdir(exist_ok=True)
    np.savez(folder / "mine.npz", **{k: v for k, v in (arrays() | changes).items() if v is not None})
    return f"npz:{folder / 'mine.npz'}"


def test_names_of_classes_may_lie_in_an_npz(tmp_path):
    names = np.array(["ape", "bee", "cat", "dog", "elk"])
    for key, given in (("class_names", names), ("target_names", names.astype("S"))):
        assert load_dataset(write_npz(tmp_path, **{key: given})).class_names == tuple(names)
    gaps = {key: arrays()[key] * 2 for key in ("y_train", "y_test")}
    assert load_dataset(write_npz(tmp_path, label_names=np.repeat(names, 2), **gaps)).class_names == tuple(names)
    for given, why in (
        (names[:2], "2 class names for 5 classes; expected a name for each."),
        (names.astype(object), "cannot be read as npz of plain arrays"),
        (np.arange(5.0), r"class_names is float64 \[5\]; expected texts \[C\]."),
    ):
        with pytest.warns(Remark, match=f"{why}.*So class_names is not used"):
            assert load_dataset(write_npz(tmp_path, class_names=given)).class_names == ()


def test_npz_in_the_layout_of_keras_is_read_in_file_order(tmp_path):
    given = arrays()
    name = write_npz(tmp_path, **given, ids_train=np.array([f"n{i}" for i in range(20)]))
    dataset = load_dataset(name)
    assert np.array_equal(dataset.train_images, given["x_train"])
    assert np.array_equal(dataset.train_labels, given["y_train"])
    assert dataset.example_ids[3] == "n3"
    assert count_examples(name) == 20
    assert load_dataset("npz:mine.npz", tmp_path).num_classes == 5
    column = given["y_train"][:, None].astype(np.uint8)  # as keras.datasets.cifar10 has them
    assert np.array_equal(load_dataset(write_npz(tmp_path, y_train=column)).train_labels, given["y_train"])
    assert load_dataset(write_npz(tmp_path, x_train=images(20, 6, 6), x_test=images(10, 6, 6))).image_shape == (6, 6, 1)


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64, np.int64, np.uint8])
def test_vectors_become_float32_with_statistics_of_each_feature(tmp_path, dtype):
    x = RANDOM.uniform(0, 100, (20, 8)).astype(dtype)
    x[:, 3] = 7
    dataset = load_dataset(write_npz(tmp_path, x_train=x, x_test=x[:10]))
    assert dataset.train_images.dtype == np.float32
    assert np.array_equal(dataset.train_images, x.astype(np.float32))
    expected = x.astype(np.float64).std(0)
    expected[3] = 1  # constant: centred, not blown up
    assert np.allclose(dataset.mean, x.astype(np.float64).mean(0), rtol=1e-5)
    assert np.allclose(dataset.std, expected, rtol=1e-5)
    normalized = np.asarray(normalize(np.asarray(dataset.train_images), dataset.mean, dataset.std))
    assert np.allclose(normalized, (x.astype(np.float64) - dataset.mean) / expected, atol=1e-4)


BAD = np.zeros((20, 4), np.float32)
BAD[7, 1] = np.nan
HUGE = np.where(np.isnan(BAD), 1e300, 0.0)
LABELS = np.arange(20) % 5


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"x_test": None}, "it has x_train, y_train, y_test; expected .*np.savez"),
        ({"y_test": None}, "it has x_train, y_train, x_test; expected"),
        ({"X_train": images(20, 6, 6, 3)}, "x_train and X_train may both be meant"),
        ({"x_test": images(0, 6, 6, 3), "y_test": LABELS[:0]}, "the test split is empty"),
        ({"x_train": BAD, "x_test": BAD[:10] * 0}, r"NaN or infinite features in 1 train examples \(the first: 7\)"),
        ({"x_train": HUGE, "x_test": BAD[:10] * 0}, "NaN or infinite features in 1 train examples"),
        ({"y_train": LABELS * 0}, "every training example has label 0; expected at least two classes"),
        ({"y_train": LABELS + 1}, "label 0 is present only in the test split; the training labels are 1, 2, 3, 4, 5"),
        ({"y_train": LABELS - 1}, "-1, 0, 1, 2, 3; expected 0 to C-1. Where -1 stands for no label"),
        ({"y_train": LABELS[:19]}, "20 train examples but 19 labels; expected equal lengths"),
        ({"y_test": LABELS[:9]}, "10 test examples but 9 labels"),
        ({"y_train": LABELS % 4}, "label 4 is present only in the test split"),
        ({"y_test": LABELS[:10] - 1}, "label -1 is present only in the test split"),
        ({"x_test": images(10, 7, 6, 3)}, r"shape \(6, 6, 3\) but test examples of shape \(7, 6, 3\)"),
        ({"x_train": images(20, 6, 6, 3) / 255.0 - 0.5}, "range from -0.5 to 255.*expected images from 0 to 255"),
        ({"x_train": np.full((20, 6, 6, 3), np.nan)}, "range from nan to"),
        ({"x_train": images(20, 6, 6, 3).astype(int) + 1}, "to 256; expected images from 0 to 255"),
        ({"x_train": images(20)}, r"x_train is uint8 \[20\]; expected images"),
        ({"x_train": images(20, 1, 6, 6, 3)}, r"x_train is uint8 \[20, 1, 6, 6, 3\]; expected images"),
        ({"y_train": np.eye(5)[LABELS] * 0.5}, r"float64 \[20, 5\]; expected one class for each example"),
        ({"y_train": LABELS + 0.5}, r"float64 \[20\]; expected one class"),
        ({"y_train": np.array(["a", "b"] * 10)}, "y_train and y_test labels are <U1 and int64; expected one type"),
        ({"y_train": np.array([None] * 20)}, "cannot be read as npz of plain arrays"),
        ({"ids_train": np.array(["same"] * 20)}, "ids of the training examples repeat"),
        ({"ids_train": np.array(["a", "b"])}, "2 ids for 20 training examples"),
    ],
)
def test_arrays_that_cannot_be_learned_from_are_refused(tmp_path, changes, message):
    with pytest.raises(UserError, match=message):
        load_dataset(write_npz(tmp_path, **changes))


TEXTS = np.array(["owl", "cat", "ant", "bee", "dog"])


def saying(words):
    """A warning with these words; None: none at all."""
    return pytest.warns(UserWarning, match=words) if words else warnings.catch_warnings(action="error")


@pytest.mark.parametrize(
    ("both", "names", "said"),
    [
        (lambda y: y.astype(np.float32), (), None),
        (lambda y: y[:, None].astype(np.uint8), (), None),
        (lambda y: np.eye(5)[y], (), None),
        (lambda y: np.eye(5, dtype=bool)[y], (), None),
        (lambda y: y + 1, ("1", "2", "3", "4", "5"), "labels 1, 2, 3, 4, 5 are renumbered 0 to 4"),
        (lambda y: 10.0 * y, ("0", "10", "20", "30", "40"), "renumbered"),
        (lambda y: np.sort(TEXTS)[y], tuple(sorted(TEXTS)), None),
        (lambda y: np.sort(TEXTS)[y].astype("S"), tuple(sorted(TEXTS)), None),
    ],
)
def test_labels_of_one_meaning_are_read(tmp_path, both, names, said):
    y = arrays()
    name = write_npz(tmp_path, y_train=both(y["y_train"]), y_test=both(y["y_test"]))
    with saying(said):
        dataset = load_dataset(name)
    np.testing.assert_array_equal(dataset.train_labels, y["y_train"])
    np.testing.assert_array_equal(dataset.test_labels, y["y_test"])
    assert (dataset.class_names, dataset.train_labels.dtype) == (names, np.int32)
    assert count_examples(name) == 20


@pytest.mark.parametrize(
    ("both", "said"),
    [
        (lambda x: x / 255, "images from 0 to 1 are read as 0 to 255"),
        (lambda x: (x / 255).astype(np.float16), "images from 0 to 1"),
        (lambda x: x.astype(np.float32), None),
        (lambda x: x.astype(np.int64), None),
        (lambda x: x + 0.2, "are rounded to whole numbers"),
        (lambda x: np.moveaxis(x, 3, 1), "has its channels first; they are put last"),
        (lambda x: np.moveaxis(x, 3, 1) / 255, "channels first"),
    ],
)
def test_images_of_one_meaning_are_read(tmp_path, both, said):
    given = arrays()
    x, other = (np.minimum(given[key], 254) for key in ("x_train", "x_test"))
    x[0, 0, 0, 0] = 254 if said and "rounded" in said else 255
    name = write_npz(tmp_path, x_train=both(x), x_test=both(other))
    with saying(said):
        dataset = load_dataset(name)
    np.testing.assert_array_equal(dataset.train_images, x)
    np.testing.assert_array_equal(dataset.test_images, other)


@pytest.mark.parametrize(("examples", "labels"), [("X_{}", "y_{}"), ("{}_images", "{}_labels"), ("{}_x", "{}_y")])
@pytest.mark.parametrize("test", ["test", "val"])
def test_arrays_are_found_by_the_names_of_the_field(tmp_path, examples, labels, test):
    given, named = arrays(), {}
    for split, theirs in (("train", "train"), ("test", test)):
        named[examples.format(theirs)], named[labels.format(theirs)] = given[f"x_{split}"], given[f"y_{split}"]
    np.savez(tmp_path / "a.npz", **named)
    with saying("val is the test set" if test == "val" else None):
        dataset = load_dataset(f"npz:{tmp_path / 'a.npz'}")
    np.testing.assert_array_equal(dataset.train_images, given["x_train"])
    np.testing.assert_array_equal(dataset.test_labels, given["y_test"])


def test_a_damaged_npz_is_refused(tmp_path):
    name = write_npz(tmp_path)
    flip(tmp_path / "mine.npz", 1000)
    with pytest.raises(UserError, match=r"cannot be read as npz of plain arrays"):
        load_dataset(name)
    (tmp_path / "mine.npz").write_bytes(b"text")
    with pytest.raises(UserError, match=r"cannot be read as npz"):
        count_examples(name)
    np.save(tmp_path / "one.npy", np.zeros(3))
    with pytest.raises(UserError, match=r"cannot be read as npz"):
        load_dataset(f"npz:{tmp_path / 'one.npy'}")
    with pytest.raises(UserError, match=r"no file .*expected an npz file with x_train, y_train"):
        load_dataset("npz:nothing.npz", tmp_path)


# --- parquet:PATH ---------------------------------------------------------------------------------


def write_parquet(path, count, *, start=0, paths=True, label="label", image="image", names=("x", "y", "z"), **extra):
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = images(count, 4, 6, 3)
    cells = [{"bytes": png(p), "path": f"{start + i}.png" if paths else None} for i, p in enumerate(pixels)]
    labels = [(start + i) % len(names) for i in range(count)]
    kinds = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    table = pa.table({image: pa.array(cells, kinds), label: pa.array(labels, pa.int64()), **extra})
    features = {image: {"_type": "Image"}, label: {"names": list(names), "_type": "ClassLabel"}}
    metadata = {"huggingface": json.dumps({"info": {"features": features}})}
    pq.write_table(table.replace_schema_metadata(metadata), path)
    return pixels, labels


@pytest.mark.parametrize(
    ("train", "test", "paths"),
    [
        (("train-00000-of-00002.parquet", "train-00001-of-00002.parquet"), "validation-00000-of-00001.parquet", True),
        (("data/train-0.parquet", "data/train-1.parquet"), "data/test-0.parquet", False),
        (("default/train/0000.parquet", "default/train/0001.parquet"), "default/test/0000.parquet", True),
        (("cifar10-train-0.parquet", "cifar10-train-1.parquet"), "cifar10-test.parquet", False),
    ],
)
def test_parquet_is_read_in_the_order_of_files_and_rows(tmp_path, train, test, paths):
    parts = [write_parquet(tmp_path / file, 7, start=7 * i, paths=paths) for i, file in enumerate(train)]
    held_out, labels = write_parquet(tmp_path / test, 5)
    dataset = load_dataset(f"parquet:{tmp_path}")
    assert np.array_equal(dataset.train_images, np.concatenate([pixels for pixels, _ in parts]))
    assert dataset.train_labels.tolist() == parts[0][1] + parts[1][1]
    assert np.array_equal(dataset.test_images, held_out)
    assert dataset.test_labels.tolist() == labels
    assert dataset.class_names == ("x", "y", "z")
    assert dataset.example_ids[8] == ("8.png" if paths else "train_000008")
    assert count_examples(f"parquet:{tmp_path}") == 14


def test_parquet_of_cifar100_has_fine_labels(tmp_path):
    for split in ("train", "test"):
        coarse = pa.array([0] * 6, pa.int64())
        write_parquet(tmp_path / f"{split}.parquet", 6, image="img", label="fine_label", coarse_label=coarse)
    assert load_dataset(f"parquet:{tmp_path}").num_classes == 3


@pytest.mark.parametrize("kind", ["texts", "a dictionary", "truth values", "numbers with a gap", "the only ClassLabel"])
def test_labels_of_parquet_are_read_by_their_meaning(tmp_path, kind):
    """Whatever other columns of integers there are."""
    texts, hours = ["owl", "cat", "owl", "cat"], {"hour": pa.array([3, 1, 2, 0])}
    columns = {
        "texts": {"label": texts},
        "a dictionary": {"label": pa.array(texts).dictionary_encode()},
        "truth values": {"label": [t == "owl" for t in texts]},
        "numbers with a gap": {"label": [3 * (t == "owl") for t in texts]},
    }
    for split in ("train", "test"):
        file = tmp_path / f"{split}.parquet"
        if kind in columns:
            cells = [png(images(4, 6, 3)) for _ in texts]
            pq.write_table(pa.table({"image": cells, **hours, **columns[kind]}), file)
        else:
            write_parquet(file, 4, label="animal", names=("cat", "owl"), start=1, **hours)
    with saying("labels 0, 3 are renumbered 0 to 1" if "gap" in kind else None):
        dataset = load_dataset(f"parquet:{tmp_path}")
    assert dataset.train_labels.tolist() == [1, 0, 1, 0]
    named = {"truth values": (), "numbers with a gap": ("0", "3")}
    assert dataset.class_names == named.get(kind, ("cat", "owl"))


def test_parquet_that_cannot_be_learned_from_is_refused(tmp_path):
    def refused(message):
        with pytest.raises(UserError, match=message):
            load_dataset(f"parquet:{tmp_path}")

    train, test = tmp_path / "train.parquet", tmp_path / "test.parquet"
    write_parquet(train, 6)
    refused("no test split: expected files such as .* in .*; got train. Add --test_fraction 0.2")
    write_parquet(test, 6)
    write_parquet(tmp_path / "rest.parquet", 6)
    refused("rest.parquet names no split")
    (tmp_path / "rest.parquet").unlink()
    pq.write_table(pa.table({"image": [png(images(4, 6, 3))] * 6, "hour": [0, 1, 2] * 2}), train)
    refused(r"columns image \(binary\), hour \(int64\); expected one image column .* called label or labels")
    pq.write_table(pa.table({"image": [png(images(4, 6, 3))] * 6, "label": [[0, 1]] * 6, "hour": [0, 1, 2] * 2}), train)
    refused(r"label \(list.*\), hour \(int64\); expected")
    write_parquet(train, 6, names=("y", "x", "z"))
    refused("class 0 is 'y' in train.parquet and 'x' in test.parquet; expected the same classes in the same order")
    for name in ("clean", "noisy"):
        write_parquet(tmp_path / name / "train.parquet", 6)
    refused("has several data sets, in ., clean, noisy; name the folder of one of them")
    for name in ("clean", "noisy"):
        shutil.rmtree(tmp_path / name)
    nothing = pa.array([{"bytes": None}] * 6, pa.struct([("bytes", pa.binary())]))
    pq.write_table(pa.table({"image": nothing, "label": [0, 1, 2] * 2}), train)
    refused("6 rows without image bytes")
    pq.write_table(pa.table({"image": [png(images(4, 6, 3))] * 6, "label": [0, 1, 2, None, 1, 2]}), train)
    refused("1 rows without a label")
    pq.write_table(pa.table({"image": [b"text"] * 6, "label": [0, 1, 2] * 2}), train)
    refused("train row 0: cannot be read as an image")
    write_parquet(train, 6)
    train.write_bytes(train.read_bytes()[:-10])
    refused("cannot be read as parquet")
    with pytest.raises(UserError, match=r"no folder .*expected one with train"):
        load_dataset("parquet:nowhere", tmp_path)
