"""Odd data that people have, as it was found in public reports: what is read, and what is refused."""

from __future__ import annotations

import io
import json
import os
import shutil
from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from archives import png
from PIL import ExifTags, Image

import datadiet as dd
from datadiet.data.inspect import inspect
from datadiet.data.reading import Remark
from datadiet.data.registry import load_dataset, origins_of
from datadiet.data.sources.encoded import ImageFacts, facts_of
from datadiet.errors import UserError
from datadiet.progress import uncounted
from datadiet.report.data_page import text
from datadiet.train_config import TrainConfig

pytestmark = pytest.mark.usefixtures("own_cache")

RANDOM = np.random.RandomState(0)


def drawn(*shape):
    return RANDOM.randint(0, 256, shape or (6, 6, 3)).astype(np.uint8)


def encoded(image, kind, **how):
    buffer = io.BytesIO()
    image.save(buffer, kind, **how)
    return buffer.getvalue()


def folder(root, classes: Sequence[str] = "ab", splits=("train", "test"), count=3):
    """Images of two classes in two splits."""
    files = {f"{split}/{c}/{i}.png": png(drawn()) for split in splits for c in classes for i in range(count)}
    return write(root, files)


def write(root, files):
    for name, content in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(content)
    return f"folder:{root}"


def parquet(root, train="train-0.parquet", test="test-0.parquet", images=None, **columns):
    """A table of four images in each split."""
    for file in (train, test):
        cells = [png(drawn()) for _ in range(4)] if images is None else images
        (root / file).parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(pa.table({"image": cells, "label": [0, 1, 0, 1]} | columns), root / file)
    return f"parquet:{root}"


# --- parquet ------------------------------------------------------------------------------------


def test_hidden_files_beside_parquet_are_passed_over(tmp_path):
    """As a Mac leaves them."""
    name = parquet(tmp_path)
    (tmp_path / "._train-0.parquet").write_bytes(b"\0\5\x16\7no parquet")
    assert load_dataset(name).num_examples == 4


def test_photographs_in_parquet_are_turned(tmp_path):
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    tall = [encoded(Image.fromarray(drawn(4, 8, 3)), "JPEG", exif=exif) for _ in range(4)]
    with pytest.warns(UserWarning, match="8 of 8 images are turned"):
        dataset = load_dataset(parquet(tmp_path, images=tall))
    assert dataset.image_shape == (8, 4, 3)


def test_a_folder_whose_name_begins_as_a_split_is_none(tmp_path):
    assert load_dataset(parquet(tmp_path / "train-ticket")).num_examples == 4


@pytest.mark.parametrize("kind", ["two images", "nested lists", "a column of splits"])
def test_parquet_of_several_meanings_is_refused(tmp_path, kind):
    if kind == "two images":
        name, told = parquet(tmp_path, mask=[png(drawn()) for _ in range(4)]), "expected one image column"
    elif kind == "nested lists":
        name, told = parquet(tmp_path, images=[drawn().tolist()] * 4), "expected one image column"
    else:
        name, told = parquet(tmp_path, "all.parquet", "all.parquet", split=["train"] * 4), "names no split"
    with pytest.raises(UserError, match=told):
        load_dataset(name)


def named(table, *names):
    """A table whose labels have names, as Hugging Face's data sets tell them."""
    features = {"image": {"_type": "Image"}, "label": {"names": names, "_type": "ClassLabel"}}
    return table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})


def shards(root, **tables):
    """Files of four images each with these names of classes, by the names of the files."""
    for file, names in tables.items():
        table = pa.table({"image": [png(drawn()) for _ in range(4)], "label": [0, 1, 0, 1]})
        pq.write_table(named(table, *names) if names else table, root / f"{file}.parquet")
    return f"parquet:{root}"


def test_names_of_classes_are_the_same_in_all_files_of_a_split(tmp_path):
    name = shards(tmp_path, train_0=("dog", "cat"), train_1=("cat", "dog"), test=("cat", "dog"))
    with pytest.raises(UserError, match=r"class 0 is 'dog' in train_0\.parquet and 'cat' in train_1\.parquet"):
        load_dataset(name)


@pytest.mark.parametrize("unnamed", ["train_0", "train_1", "test"])
def test_names_of_classes_may_stand_in_some_files_only(tmp_path, unnamed):
    files = dict.fromkeys(("train_0", "train_1", "test"), ("cat", "dog")) | {unnamed: ()}
    assert load_dataset(shards(tmp_path, **files)).classes == ("cat", "dog")
    files = dict.fromkeys(("train_0", "test"), ()) | {"train_1": ("cat", "dog", "emu")}
    assert load_dataset(shards(tmp_path, **files)).class_names == ("cat", "dog"), "an emu is in no picture"


def test_fewer_names_than_classes_are_refused(tmp_path):
    with pytest.raises(UserError, match="label 1, but names of 1 classes; expected one for each"):
        load_dataset(shards(tmp_path, train=("cat",), test=("cat",)))


def test_what_of_parquet_is_not_there_or_not_used_is_said(tmp_path):
    name = parquet(tmp_path, "train-00000-of-00003.parquet", "test-00000-of-00001.PARQUET", labels=[1, 1, 0, 0])
    shutil.copy(tmp_path / "train-00000-of-00003.parquet", tmp_path / "train-00002-of-00003.parquet")
    with pytest.warns(Remark) as caught:
        assert load_dataset(name).num_examples == 8
    told = " ".join(str(one.message) for one in caught)
    assert "1 files beside train-00000-of-00003.parquet are not there, the first is 00001" in told
    assert "label is the label; labels is not used" in told


def test_a_test_split_whose_labels_are_all_null_has_none(tmp_path):
    parquet(tmp_path)
    parquet(tmp_path, "validation-0.parquet", "test-0.parquet", label=pa.array([None] * 4, pa.int64()))
    parquet(tmp_path, "validation-0.parquet", "validation-0.parquet")
    with pytest.warns(UserWarning, match="validation is the test set; test has no labels"):
        assert len(load_dataset(f"parquet:{tmp_path}").test_labels) == 4


def test_texts_and_bytes_of_arrow_may_be_views(tmp_path):
    images = pa.array([png(drawn()) for _ in range(4)], pa.binary_view())
    name = parquet(tmp_path, images=images, label=pa.array(["x", "y"] * 2, pa.string_view()))
    assert load_dataset(name).classes == ("x", "y")


# --- folders ------------------------------------------------------------------------------------


def test_a_class_without_test_images_is_trained_on(tmp_path):
    name = folder(tmp_path)
    write(tmp_path, {f"train/c/{i}.png": png(drawn()) for i in range(3)})
    (tmp_path / "test/c").mkdir()
    with pytest.raises(UserError, match=r"no image in .*test/c; expected some in each folder of a class"):
        load_dataset(name)
    (tmp_path / "test/c").rmdir()
    dataset = load_dataset(name)
    assert (dataset.num_classes, dataset.num_examples, sorted(set(dataset.test_labels))) == (3, 9, [0, 1])


def test_what_systems_leave_in_folders_is_passed_over(tmp_path):
    clean = folder(tmp_path / "clean")
    shutil.copytree(tmp_path / "clean", tmp_path / "used")
    hidden = ("train/a/.DS_Store", "train/a/._0.png", "train/.ipynb_checkpoints/0.png", "__MACOSX/train/a/._0.png")
    name = write(tmp_path / "used", dict.fromkeys((*hidden, "train/a/Thumbs.db", "train/desktop.ini"), b"nothing"))
    with pytest.warns(UserWarning, match=r"2 files are no images of a class: .*Thumbs\.db"):
        assert load_dataset(name).fingerprint == load_dataset(clean).fingerprint


def test_of_several_pictures_in_a_file_the_first_is_read(tmp_path):
    name, pages = folder(tmp_path), [Image.fromarray(drawn()) for _ in range(3)]
    more = {"save_all": True, "append_images": pages[1:]}
    write(tmp_path, {f"train/a/x.{kind}": encoded(pages[0], kind, **more) for kind in ("tiff", "gif")})
    dataset = load_dataset(name)
    found = dict(zip(dataset.example_ids, dataset.train_images))
    np.testing.assert_array_equal(found["a/x.tiff"], np.asarray(pages[0]))
    assert found["a/x.gif"].shape == (6, 6, 3)


def test_pictures_of_all_modes_are_of_one_number_of_channels(tmp_path):
    name, image = folder(tmp_path), Image.fromarray(drawn())
    odd = {"cmyk.JPG": ("CMYK", "JPEG"), "one.bmp": ("1", "BMP"), "grey.TIF": ("L", "TIFF"), "p.gif": ("P", "GIF"),
           "la.png": ("LA", "PNG"), "w.webp": ("RGB", "WEBP")}  # fmt: skip
    write(tmp_path, {f"train/b/{file}": encoded(image.convert(mode), kind) for file, (mode, kind) in odd.items()})
    dataset = load_dataset(name)
    assert dataset.train_images.shape == (6 + len(odd), 6, 6, 3)


SYSTEM = ("__MACOSX/a/._0.png", "@eaDir/0.png/THUMB_M.jpg", "$RECYCLE.BIN/x.png", "lost+found/x.png")


@pytest.mark.parametrize("where", ["", "train/", "train/a/"])
def test_folders_that_systems_make_are_no_classes(tmp_path, where):
    clean = load_dataset(folder(tmp_path))
    write(tmp_path, {f"{where}{file}": png(drawn()) for file in SYSTEM})
    assert load_dataset(f"folder:{tmp_path}").fingerprint == clean.fingerprint


def test_folders_that_systems_make_are_no_classes_where_there_are_no_splits(tmp_path):
    name = write(tmp_path / "x", {f"{c}/{i}.png": png(drawn()) for c in ("a", "b", "__MACOSX") for i in range(4)})
    assert load_dataset(name, test_fraction=0.2).classes == ("a", "b")


@pytest.mark.parametrize("names", [("seg_train", "seg_test"), ("trainset", "testset"), ("Train Images", "val-images")])
def test_folders_with_the_word_of_a_split_are_no_classes(tmp_path, names):
    plain = load_dataset(folder(tmp_path / "plain"))
    for old, new in zip(("train", "test"), names):
        shutil.copytree(tmp_path / "plain" / old, tmp_path / "other" / new)
    with pytest.warns(Remark, match=f"{names[0]} is read as train"):
        assert load_dataset(f"folder:{tmp_path / 'other'}").fingerprint == plain.fingerprint
    config = TrainConfig(dataset=f"folder:{tmp_path / 'other'}")
    assert origins_of(config).path("a/0.png") == f"{names[0]}/a/0.png"


def test_classes_that_are_called_as_splits_stay_classes(tmp_path):
    name = write(
        tmp_path / "x", {f"{c}/{i}.png": png(drawn()) for c in ("bullet train", "test tube") for i in range(4)}
    )
    assert load_dataset(name, test_fraction=0.2).classes == ("bullet train", "test tube")


def test_splits_that_are_not_used_or_lie_within_classes_are_told(tmp_path):
    with pytest.warns(Remark, match=": extra is not used"):
        load_dataset(folder(tmp_path / "one", splits=("train", "test", "extra")))
    with pytest.warns(Remark, match="train, test within folders of classes are not told apart"):
        load_dataset(folder(tmp_path / "two", classes=("train", "test"), splits=("cat", "dog")), test_fraction=0.2)


def test_a_test_set_of_other_classes_is_refused_with_their_names(tmp_path):
    folder(tmp_path / "x", splits=("train",))
    with pytest.raises(UserError, match="test has no labels: .*got test of A, B, train"):
        load_dataset(folder(tmp_path / "x", classes="AB", splits=("test",)))


def test_names_with_ends_of_lines_begin_no_lines(tmp_path):
    """In a refusal, in what is said, and in the text of `inspect`."""
    odd = "train/a/x\nERROR: none of ours.png"
    name = write(
        tmp_path, {odd: b"no image", "train/c\nd/0.png": png(drawn()), "train/c\nd/1.png": png(drawn(9, 9, 3))}
    )
    folder(tmp_path)
    with pytest.raises(UserError) as caught:
        load_dataset(name)
    assert len(str(caught.value).splitlines()) == 7
    facts = inspect(TrainConfig(dataset=name), uncounted)
    assert facts.dataset is not None
    assert not any("\n" in note for note in facts.dataset.notes)
    assert not any(line.startswith(("ERROR", "d ")) for line in text(facts, None).splitlines())


def test_a_class_of_which_no_image_can_be_read_is_not_left_out(tmp_path):
    name = folder(tmp_path)
    write(tmp_path, {f"train/c/{i}.png": b"" for i in range(3)})
    with pytest.raises(UserError, match=r"no image of class c is left to train on: 3 cannot be read, .*train/c/0\.png"):
        load_dataset(name, skip_bad=True)


def test_to_leave_out_every_image_is_not_advised(tmp_path):
    with pytest.raises(UserError, match="8 of 8 images cannot be read") as caught:
        load_dataset(parquet(tmp_path, images=[b"raw pixels"] * 4))
    assert "skip_bad" not in str(caught.value)
    assert "BytesIO" not in str(caught.value)


def test_photographs_in_tiff_are_turned_and_told_as_such(tmp_path):
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    content = encoded(Image.fromarray(drawn(4, 8, 3)), "TIFF", exif=exif)
    name = write(tmp_path, {f"{split}/{c}/0.tif": content for split in ("train", "test") for c in "ab"})
    with pytest.warns(Remark, match="4 of 4 images are turned"):
        assert load_dataset(name).image_shape == (8, 4, 3)
    for whole in (False, True):
        assert facts_of(tmp_path / "train/a/0.tif", whole) == ImageFacts((4, 8), "RGB", len(content))


# --- arrays -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "shape"),
    [(np.asfortranarray, (6, 6, 3)), (lambda x: np.concatenate([x, x[..., :1]], axis=3), (6, 6, 4))],
)
def test_the_order_of_an_array_in_memory_and_a_fourth_channel_are_no_obstacle(tmp_path, change, shape):
    x, y = drawn(20, 6, 6, 3), np.arange(20) % 3
    given = {"x_train": change(x[:12]), "y_train": y[:12], "x_test": change(x[12:]), "y_test": y[12:]}
    np.savez(tmp_path / "d.npz", **given)
    dataset = load_dataset(f"npz:{tmp_path / 'd.npz'}")
    assert dataset.image_shape == shape
    np.testing.assert_array_equal(dataset.train_images, given["x_train"])


def arrays(root, **changes):
    """An npz file of 12 and 8 examples of three classes, some of its arrays others; None: not there."""
    x, y = drawn(20, 6, 6, 3), np.arange(20) % 3
    given = {"x_train": x[:12], "y_train": y[:12], "x_test": x[12:], "y_test": y[12:]} | changes
    np.savez(root / "d.npz", **{key: values for key, values in given.items() if values is not None})
    return f"npz:{root / 'd.npz'}"


@pytest.mark.parametrize("change", [lambda x: (x / 255).astype(np.float32), lambda x: x > 127])
@pytest.mark.parametrize("which", ["x_train", "x_test"])
def test_images_of_two_ranges_are_refused(tmp_path, which, change):
    name = arrays(tmp_path, **{which: change(drawn(12 if which == "x_train" else 8, 6, 6, 3))})
    with pytest.raises(UserError, match=f"{which} from .*; expected both from 0 to 255, or both from 0 to 1"):
        load_dataset(name)


def test_black_test_images_are_of_any_range(tmp_path):
    black = drawn(8, 6, 6, 3)
    black[1:] = 0
    dataset = load_dataset(arrays(tmp_path, x_test=np.minimum(black, 1).astype(np.float32)))
    assert dataset.test_images.max() == 1


@pytest.mark.parametrize("channels", [2, 4, 5])
def test_any_number_of_channels_may_come_first(tmp_path, channels):
    x = drawn(20, channels, 6, 6)
    with pytest.warns(Remark, match="has its channels first; they are put last"):
        dataset = load_dataset(arrays(tmp_path, x_train=x[:12], x_test=x[12:]))
    np.testing.assert_array_equal(dataset.train_images, np.moveaxis(x[:12], 1, 3))


def test_grey_images_beside_coloured_ones_get_three_channels(tmp_path):
    grey = drawn(12, 6, 6)
    with pytest.warns(Remark, match="x_train is grey and the other is not; it is given three channels"):
        dataset = load_dataset(arrays(tmp_path, x_train=grey))
    np.testing.assert_array_equal(dataset.train_images, np.repeat(grey[..., None], 3, axis=3))


@pytest.mark.parametrize("keys", ["trainX trainY testX testY", "data_train labels_train data_test labels_test",
                                  "train/images train/target test/images test/target"])  # fmt: skip
def test_arrays_of_a_split_are_known_by_its_name_and_what_they_hold(tmp_path, keys):
    plain = load_dataset(arrays(tmp_path))
    with np.load(tmp_path / "d.npz") as stored:
        given = dict(zip(keys.split(), [stored[key] for key in ("x_train", "y_train", "x_test", "y_test")]))
    np.savez(tmp_path / "e.npz", **given, data_of_mine=given[keys.split()[0]])
    assert load_dataset(f"npz:{tmp_path / 'e.npz'}").fingerprint == plain.fingerprint


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"x_train": drawn(12, 0, 6, 3), "x_test": drawn(8, 0, 6, 3)}, "expected some numbers in each"),
        ({"x_train": drawn(0, 6, 6, 3), "y_train": np.arange(0)}, "the train split is empty"),
        ({"x_train": drawn(12, 108)}, r"x_train is uint8 \[12, 108\]; .* both alike; x_test is uint8 \[8, 6, 6, 3\]"),
        ({"x_test": drawn(8, 7, 9, 3)}, r"\(7, 9, 3\); expected one\. Add --image_size 6"),
        ({"x_train": drawn(12, 6, 6, 3) * np.uint16(257)}, "from 0 to 65.*Divide those of 16 bits by 257"),
        ({"y_train": np.r_[np.nan, 0.5, np.arange(10) % 3]}, "2 of these are no whole numbers, as nan"),
        ({"y_train": np.array(list("abc") * 4, object)}, r"y_train holds Python objects.*: save .* \.astype\(str\)"),
        ({"ids_train": np.array([list("ab")] * 12)}, r"ids_train is <U1 \[12, 2\]; expected one name for each example"),
        ({"ids_test": np.array(["a"])}, "1 ids for 8 test examples"),
    ],
)
def test_a_refusal_of_arrays_says_what_was_got_and_what_repairs_it(tmp_path, changes, told):
    with pytest.raises(UserError, match=told):
        load_dataset(arrays(tmp_path, **changes))


@pytest.mark.parametrize(("changes", "told"), [({"y_train": np.arange(11) % 3}, "12 train examples but 11 labels"),
                                               ({"ids_train": np.array(["a"])}, "1 ids for 12 training")])  # fmt: skip
def test_a_fraction_of_examples_without_labels_or_names_is_refused(tmp_path, changes, told):
    with pytest.raises(UserError, match=told):
        load_dataset(arrays(tmp_path, x_test=None, y_test=None, **changes), test_fraction=0.2)


def test_names_of_examples_may_be_one_column(tmp_path):
    ids = load_dataset(arrays(tmp_path, ids_train=np.arange(12)[:, None])).example_ids
    assert ids.tolist() == [str(i) for i in range(12)]


def test_labels_that_are_objects_are_texts_where_all_are(tmp_path):
    x, y = drawn(20, 6, 6, 3), np.array(["one", "two"] * 10, object)
    assert dd.dataset_from((x[:12], y[:12]), (x[12:], y[12:])).classes == ("one", "two")


@pytest.mark.parametrize("kind", ["folder", "npz", "parquet", "csv", "idx"])
@pytest.mark.parametrize("error", [PermissionError(13, "Permission denied"), OSError(36, "File name too long")])
def test_a_path_that_the_system_refuses_is_one_message(tmp_path, monkeypatch, kind, error):
    """Whoever runs this; root may read everything."""
    closed, stat = str(tmp_path / "closed"), os.stat

    def denied(path, **how):
        if os.fspath(path) == closed:
            raise error
        return stat(path, **how)

    monkeypatch.setattr(os, "stat", denied)
    with pytest.raises(UserError, match=f"closed: expected a path that can be read .*{error.strerror}"):
        load_dataset(f"{kind}:{closed}")


def test_the_home_of_nobody_is_refused():
    with pytest.raises(UserError, match="~nobody_of_this_name/d.npz: expected a path that can be read"):
        load_dataset("npz:~nobody_of_this_name/d.npz")


def test_pictures_of_many_bits_are_refused_as_objects_too():
    deep = [(Image.fromarray(drawn(6, 6) * np.uint16(257)), i % 2) for i in range(6)]
    why = "(?s)train: 6 of 6 images cannot be read.*item 0: an image of mode I;16; expected 8 bits per channel"
    with pytest.raises(UserError, match=why):
        dd.dataset_from(deep, deep)


def test_how_many_objects_are_put_on_white_is_said_once():
    clear = [(Image.fromarray(drawn(6, 6, 4)), i % 2) for i in range(6)]
    with pytest.warns(Remark, match="train: 6 of 7 images are put on white where transparent") as caught:
        dd.dataset_from([*clear, (Image.fromarray(drawn(6, 6)), 0)], clear)
    assert sum("on white" in str(one.message) for one in caught) == 2, "once for each split"


def test_objects_are_pictures_or_arrays_but_not_both():
    picture, array = (Image.fromarray(drawn(6, 6)), 0), (drawn(6, 6), 1)
    with pytest.raises(UserError, match="item 0 or item 1 is a picture, the other an array"):
        dd.dataset_from([picture, array], [picture, picture])


def listed(root, rows, header="path,label,split"):
    for row in rows:
        write(root, {row.split(",")[0]: png(drawn())})
    (root / "list.csv").write_text("\n".join((header, *rows)))
    return f"csv:{root / 'list.csv'}"


ROWS = [f"{split}{i}.png,{i % 2},{split}" for split in ("train", "test") for i in range(4)]


def test_labels_of_more_digits_than_numbers_have_are_texts(tmp_path):
    name = listed(tmp_path, [row.replace(",1,", f",{'9' * 30},") for row in ROWS])
    assert load_dataset(name).classes == ("0", "9" * 30)


def test_what_leaves_out_files_that_are_not_there_is_said(tmp_path):
    name = listed(tmp_path, ROWS)
    (tmp_path / "train2.png").unlink()
    with pytest.raises(
        UserError, match=r"1 of 8 files are not there: train2\.png .*a column `kept`, false there, leaves"
    ):
        load_dataset(name)
