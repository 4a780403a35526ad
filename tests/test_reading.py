"""Data as it comes: sizes, splits, damage and doubts. What is decided is told, all that stands in the way at once."""

import hashlib
import html
import io
import json
import re
import shutil
import warnings

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from archives import png
from conftest import count_examples, datadiet
from PIL import Image

import datadiet as dd
from datadiet.data import cache
from datadiet.data.inspect import doubts
from datadiet.data.reading import NAMES, Reading, Remark
from datadiet.data.registry import load_dataset
from datadiet.data.sources.splits import divide
from datadiet.errors import UserError
from datadiet.storage.files import SEAL
from datadiet.tracking.record import Record, as_json
from datadiet.train_config import FIELDS

pytestmark = pytest.mark.usefixtures("own_cache")

RANDOM = np.random.RandomState(0)
E_ACUTE, E_AND_ACCENT = "caf\u00e9", "cafe\u0301"


def drawn(width=12, height=12, channels=3):
    return RANDOM.randint(0, 256, (height, width, channels)[: 2 + (channels > 1)]).astype(np.uint8)


def write(folder, files):
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    return f"folder:{folder}"


def tree(classes="ab", count=4, splits=("train/", "test/"), **how):
    return {f"{split}{c}/{i:02d}.png": png(drawn(**how)) for split in splits for c in classes for i in range(count)}


def write_rows(file, images, labels):
    file.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table({"image": [png(image) for image in images], "label": labels}), file)


def loaded(name, *told, **options):
    """A dataset, while warnings with these words and no others are given."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        dataset = load_dataset(name, **options)
    texts = [str(warning.message) for warning in caught]
    assert list(dataset.notes) == texts
    assert len(texts) == len(told), texts
    for text, words in zip(texts, told):
        assert words in text
    return dataset


def refused(name, **options):
    with pytest.raises(UserError) as caught:
        load_dataset(name, **options)
    return str(caught.value)


def test_how_data_is_read_is_an_option_of_trainings():
    assert set(NAMES) <= FIELDS.keys()
    assert Reading() == Reading.asked()
    with pytest.raises(UserError, match=r"image_sise=3: expected one of image_size, test_fraction, test_split"):
        Reading.asked(image_sise=3)


@pytest.mark.parametrize("size", ["0", "-3", "12x", "x12", "3.5", "12x0", "1e3", "100000"])
def test_sizes_that_cannot_be_are_refused(size):
    with pytest.raises(UserError, match=r"image_size=.*: expected N or HxW in pixels, as in 64 or 48x64"):
        load_dataset("digits", image_size=size)


# --- sizes --------------------------------------------------------------------------------------


def photographs(folder, splits=("train/", "test/")):
    sizes = [(40, 30), (30, 40), (64, 64), (20, 90), (24, 24), (7, 5)]
    files = {f"{split}{c}/{i}.png": png(drawn(*size)) for split in splits for c in "ab" for i, size in enumerate(sizes)}
    return write(folder, files), files


def by_hand(content, size):
    """The shorter side by antialiased resampling, then the middle."""
    image = Image.open(io.BytesIO(content)).convert("RGB")
    scale = size / min(image.size)
    width, height = (max(size, round(side * scale)) for side in image.size)
    left, top = (width - size) // 2, (height - size) // 2
    return np.asarray(image.resize((width, height), Image.Resampling.BICUBIC))[top : top + size, left : left + size]


def test_photographs_of_several_sizes_get_one(tmp_path):
    name, files = photographs(tmp_path)
    told = "20 of 24 images are resized to 24 x 24 pixels, the shorter side, and the centre taken, 8 of them enlarged"
    dataset = loaded(name, told, image_size=24)
    expected = [by_hand(files[f"train/{i}"], 24) for i in dataset.example_ids]
    np.testing.assert_array_equal(dataset.train_images, expected)
    wide = loaded(name, "resized to 10 x 6 pixels", image_size="6x10")
    assert wide.image_shape == (6, 10, 3)
    image = Image.open(io.BytesIO(files["test/b/3.png"])).resize((10, 6), Image.Resampling.BICUBIC)
    np.testing.assert_array_equal(wide.test_images[9], np.asarray(image))


def test_sizes_are_told_where_none_is_asked_for(tmp_path):
    name, _ = photographs(tmp_path)
    message = refused(name)
    assert "images of 6 sizes; expected images of one size:" in message
    assert f"7 x 5 pixels: 4 ({tmp_path}/train/a/5.png …)" in message
    assert message.endswith("Add --image_size 24.")
    for advice in ("mogrify", "convert", "copies", "remove"):
        assert advice not in message


def test_parquet_and_arrays_are_resized_too(tmp_path):
    images = [drawn(*size) for size in ((9, 12), (12, 9), (10, 10), (11, 30))]
    for split in ("train", "test"):
        write_rows(tmp_path / f"{split}.parquet", images, [0, 1, 0, 1])
    assert "images of 4 sizes" in refused(f"parquet:{tmp_path}")
    told = ("are resized", "test examples of 4 are training examples too")
    dataset = loaded(f"parquet:{tmp_path}", *told, image_size=8)
    np.testing.assert_array_equal(dataset.train_images, [by_hand(png(image), 8) for image in images])
    digits = load_dataset("digits")
    larger = load_dataset("digits", image_size=16)
    assert larger.image_shape == (16, 16, 1)
    image = Image.fromarray(digits.train_images[3, ..., 0]).resize((16, 16), Image.Resampling.BICUBIC)
    np.testing.assert_array_equal(larger.train_images[3, ..., 0], np.asarray(image))
    assert larger.fingerprint != digits.fingerprint
    assert load_dataset("digits", image_size="8x8").fingerprint == digits.fingerprint


def test_vectors_have_no_size(tmp_path):
    x, y = RANDOM.normal(size=(8, 5)), np.arange(8) % 2
    np.savez(tmp_path / "v.npz", x_train=x, y_train=y, x_test=x + 1, y_test=y)
    assert "image_size=8, but its examples are float32 [8, 5]" in refused(f"npz:{tmp_path / 'v.npz'}", image_size=8)


def test_what_has_the_size_stays_as_it_is(tmp_path):
    name = write(tmp_path, tree())
    assert loaded(name, image_size=12).fingerprint == loaded(name).fingerprint


# --- splits -------------------------------------------------------------------------------------


def test_a_fraction_is_of_each_class_and_stays_when_images_are_added(tmp_path):
    files = tree("abc", 40, splits=("",))
    name = write(tmp_path / "one", files)
    first = loaded(name, "(test_fraction=0.25 of each class, by a hash of their names)", test_fraction=0.25)
    assert count_examples(name, test_fraction=0.25) == first.num_examples == 120 - len(first.test_labels)
    np.testing.assert_allclose(np.bincount(first.test_labels), 10, atol=2)
    more = write(tmp_path / "two", {**files, **{f"b/x{i}.png": png(drawn()) for i in range(30)}})
    second = load_dataset(more, test_fraction=0.25)
    assert set(first.example_ids) <= set(second.example_ids)
    below = write(tmp_path / "three", {f"TRAIN/{path}": content for path, content in files.items()})
    assert load_dataset(below, test_fraction=0.25).fingerprint == first.fingerprint


def test_the_hash_of_a_name_never_changes():
    """Another one would give everybody another test set."""
    ids = np.array([f"{i}.png" for i in range(2000)])
    with warnings.catch_warnings(action="ignore"):
        chosen = divide("data", ids, np.zeros(2000), 0.1)
    start = int(hashlib.sha256(b"\0.png").hexdigest()[:16], 16) / 16**16
    golden = (5**0.5 - 1) / 2
    assert ids[chosen].tolist() == [f"{i}.png" for i in range(2000) if (start + i * golden) % 1 < 0.1]


def test_each_class_is_trained_and_tested_on():
    ids, labels = np.array([f"x{i}" for i in range(41)]), np.array([0] * 10 + [1] * 10 + [2] * 20 + [3])
    for fraction in (1e-6, 1 - 1e-6):
        with pytest.warns(UserWarning, match=r"1 classes of one example have none"):
            test = divide("data", ids, labels, fraction)
        for c in range(4):
            assert set(test[labels == c]) == ({True, False} if c < 3 else {False})


@pytest.mark.parametrize(("step", "said"), [(1, False), (10, False), (55, True), (144, True)])
def test_classes_that_are_not_divided_as_was_asked_are_told(step, said):
    """Names that are numbered in steps of Fibonacci numbers are not spread; the others are."""
    ids = np.array([f"{label}/{i * step:06}.png" for label in range(20) for i in range(40)])
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        divide("data", ids, np.repeat(np.arange(20), 40), 0.2)
        divide("data", ids, np.repeat(np.arange(20), 40), 1e-3)  # one of 40 is all that can be
    told = [str(one.message) for one in caught if "less than half or more than twice" in str(one.message)]
    assert len(told) == said
    assert all(re.search(r"in 1\d of 20 classes .*: by folders, or a column split of a csv", text) for text in told)


def test_a_name_has_one_hash_in_either_spelling():
    with warnings.catch_warnings(action="ignore"):
        both = [divide("data", np.array([f"{e}/{i}" for i in range(99)]), np.zeros(99), 0.3)
                for e in (E_ACUTE, E_AND_ACCENT)]  # fmt: skip
    np.testing.assert_array_equal(*both)


@pytest.mark.parametrize("kind", ["npz", "npz of all", "parquet"])
def test_arrays_and_parquet_without_a_test_set_give_a_fraction(tmp_path, kind):
    images, labels = [drawn() for _ in range(40)], np.arange(40) % 4
    if kind == "parquet":
        write_rows(tmp_path / "data/train-00000-of-00001.parquet", images, labels)
        name = f"parquet:{tmp_path}"
    else:
        keys = ("x_train", "y_train") if kind == "npz" else ("X", "y")
        np.savez(tmp_path / "d.npz", **dict(zip(keys, (np.array(images), labels))))
        name = f"npz:{tmp_path / 'd.npz'}"
    message = refused(name)
    assert "no test split" in message
    assert message.endswith("Add --test_fraction 0.2.")
    with pytest.raises(UserError, match="no test split"):
        count_examples(name)
    dataset = loaded(name, "by a hash of their names", test_fraction=0.3)
    assert dataset.num_examples + len(dataset.test_labels) == 40
    assert set(dataset.test_labels) == {0, 1, 2, 3}
    numbers = [int(one.rpartition("_")[2]) for one in dataset.example_ids]
    np.testing.assert_array_equal(dataset.train_images, np.array(images)[numbers])
    np.testing.assert_array_equal(dataset.train_labels, labels[numbers])


def test_a_fraction_beside_a_test_set_is_refused(tmp_path):
    assert "test_fraction=0.2, but valid is a test set; which" in refused(
        write(tmp_path, tree(splits=("train/", "valid/"))), test_fraction=0.2
    )
    assert "test_fraction=0.2, but it has a test set" in refused("digits", test_fraction=0.2)
    message = refused(f"folder:{tmp_path}", test_fraction=0.2, test_split="valid")
    assert "test_fraction=0.2: expected none where test_split=valid is the test set" in message


def test_a_validation_set_stands_in_for_a_test_set_without_labels(tmp_path):
    flat = {f"test/{i}.png": png(drawn()) for i in range(3)}
    name = write(tmp_path / "one", tree(splits=("train/", "val/")) | flat)
    dataset = loaded(name, "val is the test set; test has no labels")
    assert len(dataset.test_labels) == 8
    other = write(tmp_path / "two", tree(splits=("train/", "Val/")) | {f"test/all/{i}.png": png(drawn()) for i in "12"})
    assert len(loaded(other, "Val is the test set; test has no labels").test_labels) == 8
    kaggle = write(tmp_path / "three", tree(splits=("train/",)) | flat)
    assert refused(kaggle).endswith("Add --test_fraction 0.2.")
    assert "test has no labels" in refused(kaggle)
    assert loaded(kaggle, "test has no labels and is not used", "a hash", test_fraction=0.2).num_examples < 8


def test_labels_below_zero_are_none(tmp_path):
    images = [drawn() for _ in range(12)]
    for split, labels in (("train", [0, 1] * 6), ("validation", [1, 0] * 6), ("test", [-1] * 12)):
        write_rows(tmp_path / f"{split}-00000-of-00001.parquet", [drawn() for _ in images], labels)
    dataset = loaded(f"parquet:{tmp_path}", "validation is the test set; test has no labels")
    assert dataset.test_labels.tolist() == [1, 0] * 6
    (tmp_path / "validation-00000-of-00001.parquet").unlink()
    assert refused(f"parquet:{tmp_path}").endswith("Add --test_fraction 0.2.")
    x, y = np.array(images), np.arange(12) % 2
    np.savez(tmp_path / "d.npz", x_train=x, y_train=y, x_test=x, y_test=y * 0 - 1, x_valid=255 - x, y_valid=y)
    loaded(f"npz:{tmp_path / 'd.npz'}", "valid is the test set; test has no labels")


@pytest.mark.parametrize("kind", ["folder", "npz", "parquet"])
def test_a_split_is_picked_by_name(tmp_path, kind):
    images, labels = {}, [0, 1, 0, 1]
    for split in ("train", "test", "val"):
        images[split] = np.array([drawn() for _ in labels])
        if kind == "folder":
            write(tmp_path, {f"{split}/{c}/{i}.png": png(x) for i, (x, c) in enumerate(zip(images[split], labels))})
        elif kind == "parquet":
            write_rows(tmp_path / f"{split}.parquet", images[split], labels)
    name = f"{kind}:{tmp_path}{'/d.npz' if kind == 'npz' else ''}"
    if kind == "npz":
        both = {f"{k}_{split}": v for split, x in images.items() for k, v in (("x", x), ("y", labels))}
        np.savez(tmp_path / "d.npz", **both)
    assert sorted(loaded(name, "test is the test set; val is not used").test_images.ravel()) == sorted(
        images["test"].ravel()
    )
    assert sorted(loaded(name, test_split="VAL").test_images.ravel()) == sorted(images["val"].ravel())
    assert "test_split=dev; expected a split to test on: " in (message := refused(name, test_split="dev"))
    assert {"test", "val"} <= set(message.rpartition(": ")[2].rstrip(".").split(", "))
    assert "test_split=train; expected a split to test on" in refused(name, test_split="train")


def test_a_split_of_any_name_can_be_picked(tmp_path):
    name = write(tmp_path, tree(splits=("train/", "holdout/")))
    assert "To test on holdout: --test_split holdout" in refused(name)
    assert len(loaded(name, test_split="holdout").test_labels) == 8


# --- classes ------------------------------------------------------------------------------------


def test_two_spellings_of_a_class_are_one(tmp_path):
    files = {**tree(["the", E_ACUTE], splits=("train/",)), **tree(["the", E_AND_ACCENT], splits=("test/",))}
    dataset = loaded(write(tmp_path, files), f"in two spellings of Unicode are taken for one: {E_ACUTE}")
    assert dataset.class_names == (E_ACUTE, "the")
    assert dataset.test_labels.tolist() == [0] * 4 + [1] * 4
    x, y = np.array([drawn() for _ in range(4)]), np.array(["the", E_ACUTE] * 2)
    np.savez(tmp_path / "d.npz", x_train=x, y_train=y, x_test=255 - x, y_test=np.array(["the", E_AND_ACCENT] * 2))
    dataset = loaded(f"npz:{tmp_path / 'd.npz'}", "two spellings")
    assert dataset.test_labels.tolist() == dataset.train_labels.tolist() == [1, 0, 1, 0]


def test_classes_are_in_the_order_of_texts_and_numbers_are_told(tmp_path):
    dataset = loaded(
        write(tmp_path / "one", tree([*map(str, range(12))], 1)), "as labels: 0 is 0, 1 is 1, 10 is 2, 11 is"
    )
    assert dataset.class_names == tuple(sorted(map(str, range(12))))
    loaded(write(tmp_path / "two", tree("0123", 1)))
    loaded(write(tmp_path / "three", tree(["猫", "собака", "ñu"], 1)))


# --- damaged and doubtful -----------------------------------------------------------------------


def damaged(folder):
    """Two classes of 12 images in each split, of which 14 cannot be read."""
    files = tree(count=12)
    bad = {
        name: (b"", b"<html>404</html>", files[name][:60])[i % 3] for i, name in enumerate([*files][:7] + [*files][-7:])
    }
    return write(folder, {**files, **bad}), [f"{folder}/{name}" for name in bad]


def test_all_bad_images_are_counted_and_ten_named(tmp_path):
    name, bad = damaged(tmp_path)
    message = refused(name)
    assert "14 of 48 images cannot be read:" in message
    assert message.count(": cannot be read as an image") == 10
    assert all(path in message for path in sorted(bad)[:3])
    assert message.endswith("… and 4 more. Add --skip_bad true.")


def test_bad_images_are_left_out_and_recorded(tmp_path):
    name, bad = damaged(tmp_path)
    dataset = loaded(name, "14 images cannot be read and are left out", skip_bad=True)
    assert sorted(dataset.skipped) == sorted(bad)
    assert (dataset.num_examples, len(dataset.test_labels)) == (17, 17)
    assert dataset.example_ids.tolist() == [f"a/{i:02d}.png" for i in range(7, 12)] + [
        f"b/{i:02d}.png" for i in range(12)
    ]
    assert loaded(name, "left out", skip_bad=True).skipped == dataset.skipped, "from the cache"
    assert count_examples(name, skip_bad=True) == 17
    for path in (tmp_path / "train/b").iterdir():
        path.write_bytes(b"")
    assert "no image of class b is left to train on" in refused(name, skip_bad=True)
    for path in tmp_path.rglob("*.png"):
        path.write_bytes(b"")
    assert "48 of 48 images cannot be read" in (message := refused(name, skip_bad=True))
    assert "skip_bad" not in message


def test_bad_rows_are_left_out(tmp_path):
    for split in ("train", "test"):
        images = [png(drawn()) for _ in range(6)]
        images[2] = images[2][:50]
        pq.write_table(pa.table({"image": images, "label": [0, 1] * 3}), tmp_path / f"{split}.parquet")
    assert "2 of 12 images cannot be read:" in refused(f"parquet:{tmp_path}")
    dataset = loaded(f"parquet:{tmp_path}", "2 images cannot be read and are left out", skip_bad=True)
    assert dataset.example_ids.tolist() == [f"train_{i:06d}" for i in (0, 1, 3, 4, 5)]
    assert dataset.train_labels.tolist() == [0, 1, 1, 0, 1]


def test_all_that_stands_in_the_way_is_named_at_once(tmp_path):
    folder = tmp_path / "data"
    files = {**photographs(folder, splits=("",))[1], "a/bad.jpg": b"", "c/notes.txt": b"text"}
    with pytest.warns(UserWarning, match="1 files are no images"):
        message = refused(write(folder, files))
    assert "4 things stand in the way:" in message
    for part in ("no test split", "no image in", "1 of 13 images cannot be read", "images of 6 sizes"):
        assert part in message
    assert message.endswith("Add --test_fraction 0.2 --skip_bad true --image_size 24.")
    with pytest.raises(UserError, match="4 things stand in the way"), warnings.catch_warnings(action="ignore"):
        count_examples(f"folder:{folder}")
    shutil.rmtree(folder / "c")
    dataset = load_dataset(f"folder:{folder}", test_fraction=0.2, skip_bad=True, image_size=5)
    assert dataset.num_examples + len(dataset.test_labels) == 12


def test_test_images_that_are_training_images_are_counted(tmp_path):
    x, y = np.array([drawn() for _ in range(10)]), np.arange(10) % 2
    np.savez(
        tmp_path / "d.npz", x_train=np.concatenate([x, x]), y_train=np.concatenate([y, 1 - y]),
        x_test=np.concatenate([x[:4], 255 - x]), y_test=np.concatenate([y[:4], y]),
    )  # fmt: skip
    name = f"npz:{tmp_path / 'd.npz'}"
    told = (
        "20 training examples of 20 are the same as others with another label: train_000000 and train_000010, ",
        "4 test examples of 14 are training examples too, so that accuracy is too high: test_000000 is train_000000",
    )
    loaded(name, *told)
    loaded(name, *told)  # from the cache


def test_what_is_in_both_splits_is_named_by_path(tmp_path):
    files = tree(count=3)
    files["test/b/02.png"] = files["train/a/01.png"]
    dataset = loaded(
        write(tmp_path, files),
        "1 test examples of 6 are training examples too",
    )
    assert "test b/02.png is train a/01.png" in dataset.notes[0]
    (leak,) = doubts(dataset).leaks
    assert leak == ("test b/02.png", "train a/01.png", "b", "a")


@pytest.mark.parametrize("value", [0, 128, 255])
def test_constant_images_are_refused(tmp_path, value):
    blank = png(np.full((6, 6, 3), value, np.uint8))
    name = write(tmp_path, dict.fromkeys(tree(), blank))
    assert f"every pixel of the 8 train images is {value}" in refused(name)
    write(tmp_path, tree(height=6, width=6) | {"train/a/00.png": blank})
    loaded(name, "1 training images and 0 test images have one colour")


# --- kept, repeated and older ---------------------------------------------------------------------


def test_a_folder_of_photographs_goes_to_a_report_and_what_was_decided_is_recorded_and_repeated(tmp_path):
    """Of several sizes, without a test set, some of them damaged: by one command."""
    import mlflow

    name, _ = photographs(tmp_path / "data", splits=("",))
    write(tmp_path / "data", {"a/bad.png": b""})
    how = {"image_size": 8, "test_fraction": 0.3, "skip_bad": "true"}
    trained = {"dataset": name, "model": "mlp", "width": 8, "num_steps": 4, "augment": "false"}
    plan = {"score_runs": 2, "eval_runs": 2, "fractions": 0.5, "score_types": "l2_error", "workers": 1}
    with pytest.warns(Remark) as given:
        datadiet("study", tmp_path, **trained, **plan, **how)
    assert sum("resized to 8 x 8" in str(warning.message) for warning in given) == 1, "not once for each run"
    page = (tmp_path / "exps/study/report.html").read_text()
    assert "found in it</h2>" in page
    assert all(f"<li>{html.escape(note)}</li>" in page for note in load_dataset(name, image_size=8, test_fraction=0.3,
               skip_bad=True).notes)  # fmt: skip
    told = json.loads((tmp_path / "exps/study/full_data/run_0/args.json").read_text())
    assert (told["image_size"], told["test_fraction"], told["skip_bad"], told["test_split"]) == ("8", 0.3, True, None)
    assert told["data"]["skipped"] == [str(tmp_path / "data/a/bad.png")]
    assert any("are the test set" in note for note in told["data"]["notes"])
    runs = mlflow.search_runs(search_all_experiments=True, output_format="list")
    for run in (run for run in runs if run.data.tags["datadiet.kind"] in ("study", "train")):
        assert (run.data.params["cfg.image_size"], run.data.params["cfg.test_fraction"]) == ("8", "0.3")
        assert "are the test set" in run.data.params["data.notes"]
    missing = datadiet("keep_max", tmp_path, expect=2, dataset=name, size=3, score_exp="other", **how)
    (command,) = {line.strip() for line in missing.output.splitlines() if "full_data" in line and "--run 0" in line}
    for option in (f"--dataset {name}", "--image_size 8", "--test_fraction 0.3", "--skip_bad true"):
        assert option in command
    other = datadiet("study", tmp_path, expect=2, **trained, **plan, **how | {"image_size": 6})
    assert "image_size: 8 there, 6 asked for" in other.output


def test_each_way_of_reading_has_its_own_entry_in_the_cache(tmp_path, monkeypatch):
    name = write(tmp_path / "data", tree(splits=("train/", "test/", "val/")))
    ways = [{}, {"image_size": 6}, {"image_size": "6x6"}, {"test_split": "val"}, {"skip_bad": True}]
    for way in ways:
        load_dataset(name, **way)
    assert len([p for p in cache.root().iterdir() if not p.name.startswith(".")]) == len(ways)
    monkeypatch.setattr("datadiet.data.registry.build_dataset", lambda *given: pytest.fail("it was built again"))
    for way in ways:
        load_dataset(name, **way)


def test_what_older_versions_kept_is_read(tmp_path, monkeypatch):
    name = write(tmp_path / "data", tree())
    before = load_dataset(name)
    (entry,) = (p for p in cache.root().iterdir() if not p.name.startswith("."))
    record = json.loads((entry / cache.RECORD).read_text())
    for new in ("notes", "skipped"):
        del record["values"][new]
    (entry / cache.RECORD).write_text(json.dumps(record))
    monkeypatch.setattr("datadiet.data.registry.build_dataset", lambda *given: pytest.fail("it was built again"))
    assert load_dataset(name).fingerprint == before.fingerprint


def test_arguments_of_before_are_read(tmp_path):
    datadiet(
        "full_data", tmp_path, dataset="digits", model="mlp", width=8, num_steps=2, augment="false", offline="true"
    )
    file = tmp_path / "exps/full_data/run_0/args.json"
    values = json.loads(file.read_text())
    older = {k: v for k, v in values.items() if k not in (*NAMES, SEAL, "format")}
    older["data"] = {k: v for k, v in values["data"].items() if k not in ("notes", "skipped", "made_as")}
    file.write_text(json.dumps(older))
    run = dd.open_run(file.parent)
    assert (run.config.image_size, run.config.skip_bad, run.data.notes) == (None, False, [])


def test_a_run_of_before_is_the_same_run():
    """Its record in MLflow goes on, although it has no params of these options."""
    now = {f"cfg.{name}": option.default for name, option in FIELDS.items()}
    before = {name: value for name, value in as_json(now).items() if name.removeprefix("cfg.") not in NAMES}

    def made(params):
        return Record(path=None, kind="train", name="e/run_0", params=as_json(params), tags={})

    assert made(before).same_run(made(now))
    assert not made(before).same_run(made(now | {"cfg.image_size": "8"}))


def test_a_plan_tells_how_data_is_read(tmp_path):
    (tmp_path / "plan.yaml").write_text("dataset: digits\nimage_size: 0\n")
    done = datadiet("study", tmp_path, expect=2, plan="plan.yaml")
    assert "image_size=0: expected N or HxW" in done.output
