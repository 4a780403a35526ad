"""csv:FILE: tables of images as people have them are read; all that stands in the way is named at once."""

import os
import warnings

import numpy as np
import pytest
from archives import png
from conftest import count_examples, datadiet

from datadiet.data.registry import load_dataset
from datadiet.errors import UserError

RANDOM = np.random.RandomState(0)
ROWS = [
    (f"{label}/{split}{i}.png", label, split) for split in ("train", "test") for i in range(4) for label in ("ca", "do")
]

pytestmark = pytest.mark.usefixtures("own_cache")


def images(folder, paths, shape=(5, 6, 3)):
    """A picture at each path, by path."""
    found = {path: RANDOM.randint(0, 256, shape).astype(np.uint8) for path in paths}
    for path, pixels in found.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes(png(pixels))
    return found


def lines(rows, delimiter=","):
    return "".join(delimiter.join(row) + "\n" for row in rows)


def listed(folder, text, rows=ROWS, name="list.csv"):
    """The images of some rows, and a csv file of this text; its dataset name."""
    images(folder, dict.fromkeys(row[0] for row in rows))
    (folder / name).write_bytes(text if isinstance(text, bytes) else text.encode())
    return f"csv:{folder / name}"


def quietly(name, *given, **options):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return load_dataset(name, *given, **options)


def test_a_csv_is_read_in_its_order_with_paths_from_its_folder_as_ids(tmp_path, monkeypatch):
    rows = list(reversed(ROWS))
    pixels = images(tmp_path / "deep", dict.fromkeys(row[0] for row in rows))
    (tmp_path / "deep/list.csv").write_text("path,label,split\n" + lines(rows))
    monkeypatch.chdir("/")
    dataset = load_dataset("csv:deep/list.csv", tmp_path)
    train, test = ([row[0] for row in rows if row[2] == split] for split in ("train", "test"))
    assert dataset.example_ids.tolist() == train
    assert np.array_equal(dataset.train_images, [pixels[path] for path in train])
    assert np.array_equal(dataset.test_images, [pixels[path] for path in test])
    assert dataset.class_names == ("ca", "do")
    assert [dataset.class_names[c] for c in dataset.train_labels] == [path.split("/")[0] for path in train]
    assert count_examples("csv:deep/list.csv", tmp_path) == 8


@pytest.mark.parametrize(
    "text",
    [
        "\ufeffpath,label,split\n" + lines(ROWS),
        "sep=;\npath;label;split\n" + lines(ROWS, ";"),
        "path\tlabel\tsplit\r\n" + lines(ROWS, "\t").replace("\n", "\r\n"),
        "path|label|split\n\n" + lines(ROWS, "|") + "\n",
        "Image Path, Class, Subset\n" + lines(ROWS, ", "),
        ",file_name,target,partition,width\n" + "".join(f"{i},{a},{b},{c},6\n" for i, (a, b, c) in enumerate(ROWS)),
        ("path,label,split\n" + lines(ROWS)).encode("utf-16"),
        ("path,label,split\n" + lines(ROWS)).encode("utf-8-sig"),
        '"path","label","split"\n' + "".join(f'"{a}","{b}","{c}"\n' for a, b, c in ROWS),
        "path,label,split,\n" + "".join(f"{a},{b},{c},\n" for a, b, c in ROWS),
        "path,label,split\n" + "".join(f".\\{a},{b},{c.upper()}\n" for a, b, c in ROWS).replace("/", "\\"),
        "path,label,split\n" + "".join(f"{a},{b},{c.replace('train', 'Training')}\n" for a, b, c in ROWS),
    ],
    ids=[
        "mark", "sep", "tabs", "pipes", "names", "pandas", "utf-16", "utf-8-sig", "quotes", "trailing", "windows",
        "case",
    ],
)  # fmt: skip
def test_usual_encodings_delimiters_names_and_paths_give_the_same_data(tmp_path, text):
    dataset = quietly(listed(tmp_path, text))
    assert dataset.example_ids.tolist() == [row[0] for row in ROWS if row[2] == "train"]
    assert dataset.train_labels.tolist() == [0, 1] * 4


def test_a_list_of_files_and_numbers_with_spaces_is_read(tmp_path):
    pixels = images(tmp_path, dict.fromkeys(row[0] for row in ROWS))
    (tmp_path / "list.txt").write_text("".join(f"{path} {int(label == 'do')}\n" for path, label, _ in ROWS))
    with pytest.warns(UserWarning, match="has no header; its columns are read as path, label"):
        dataset = load_dataset(f"csv:{tmp_path / 'list.txt'}", test_fraction=0.3)
    assert dataset.num_examples + len(dataset.test_labels) == len(ROWS)
    assert np.array_equal(dataset.train_images, [pixels[one] for one in dataset.example_ids])
    assert [one.startswith("do") for one in dataset.example_ids] == dataset.train_labels.tolist()


@pytest.mark.parametrize("ending", ["", ".png"])
def test_images_of_one_folder_beside_the_list_are_found_by_their_names(tmp_path, ending):
    """As in many competitions: train.csv has image_id and label, and the images are in train_images/."""
    names = [f"{i:03d}" for i in range(12)]
    pixels = images(tmp_path, {f"train_images/{one}.png": None for one in names})
    images(tmp_path, {"test_images/x.png": None})
    written = "".join(f"{one}{ending or ''},{'ab'[i % 2]}\n" for i, one in enumerate(names))
    (tmp_path / "train.csv").write_text(f"image_id,label\n{written}")
    with pytest.warns(UserWarning, match=rf"000{ending} is read as train_images/000\.png, and so are the others"):
        dataset = load_dataset(f"csv:{tmp_path / 'train.csv'}", test_fraction=0.3)
    assert np.array_equal(dataset.train_images, [pixels[one] for one in dataset.example_ids])
    images(tmp_path, {f"other/{one}.png": None for one in names})
    with pytest.raises(UserError, match=f"12 of 12 files are not there: 000{ending}, .*paths are taken from"):
        load_dataset(f"csv:{tmp_path / 'train.csv'}", test_fraction=0.3)


def test_a_list_without_a_header_is_read_where_it_begins_with_a_file(tmp_path):
    with pytest.warns(UserWarning, match="has no header; its columns are read as path, label, split"):
        dataset = load_dataset(listed(tmp_path, lines(ROWS)))
    assert dataset.example_ids.tolist() == [row[0] for row in ROWS if row[2] == "train"]
    name = listed(tmp_path, lines([*ROWS, ("gone.png", "ca", "")]))
    with pytest.raises(UserError, match="rows without a split, in lines 17"):
        quietly(name)


def test_labels_are_texts_unless_all_are_whole_numbers(tmp_path):
    rows = [(path, {"ca": "NA", "do": 'a "b", c'}[label], split) for path, label, split in ROWS]
    quoted = "".join('{},"{}",{}\n'.format(a, b.replace('"', '""'), c) for a, b, c in rows)
    dataset = load_dataset(listed(tmp_path, "path,label,split\n" + quoted))
    assert dataset.class_names == ("NA", 'a "b", c')
    for number in ("2", "2.0"):
        rows = [(path, {"ca": "10", "do": number}[label], split) for path, label, split in ROWS]
        with pytest.warns(UserWarning, match="labels 2, 10 are renumbered 0 to 1"):
            dataset = load_dataset(listed(tmp_path, "path,label,split\n" + lines(rows)))
        assert dataset.class_names == ("2", "10")
        assert dataset.train_labels.tolist() == [1, 0] * 4
    rows = [(path, {"ca": "010", "do": "2"}[label], split) for path, label, split in ROWS]
    assert load_dataset(listed(tmp_path, "path,label,split\n" + lines(rows))).class_names == ("010", "2")


def test_two_columns_of_the_same_classes_are_their_numbers_and_their_names(tmp_path):
    table = "path,class_id,label,split\n" + "".join(f"{a},{'10'[b == 'do']},{b},{c}\n" for a, b, c in ROWS)
    dataset = load_dataset(listed(tmp_path, table))
    assert dataset.class_names == ("do", "ca")
    assert dataset.train_labels.tolist() == [1, 0] * 4
    other = table.replace("class_id", "category").replace("1,ca", "0,ca", 1)
    with pytest.warns(UserWarning, match="label is the label; category is not used"):
        assert load_dataset(listed(tmp_path, other)).class_names == ("ca", "do")
    with pytest.raises(
        UserError, match="category, class may each be the label; expected one of them, or one called label"
    ):
        load_dataset(listed(tmp_path, other.replace("label", "class")))


def test_names_in_another_encoding_or_form_of_unicode_are_found(tmp_path):
    rows = [(f"café{i}.png", "né" if i % 2 else "oui", ("train", "test")[i > 3]) for i in range(8)]
    text = "path,label,split\n" + lines(rows)
    with pytest.warns(UserWarning, match="is not UTF-8; it is read as Windows-1252"):
        dataset = load_dataset(listed(tmp_path / "one", text.encode("cp1252"), rows))
    assert dataset.class_names == ("né", "oui")
    assert dataset.example_ids[1] == "café1.png"
    apart = [(row[0].replace("é", "e\u0301"), *row[1:]) for row in rows]
    assert load_dataset(listed(tmp_path / "two", text, apart)).example_ids[1] == "cafe\u03011.png"
    latin = [os.fsdecode(row[0].encode("latin-1")) for row in rows]
    images(tmp_path / "three", latin)
    (tmp_path / "three/list.csv").write_bytes(text.encode("latin-1"))
    dataset = quietly(f"csv:{tmp_path / 'three/list.csv'}")
    assert dataset.example_ids[1] == r"caf\xe91.png"
    assert dataset.class_names == ("né", "oui")


def test_all_that_stands_in_the_way_is_named_at_once(tmp_path):
    name = listed(tmp_path, "", ROWS)
    (tmp_path / "bad.png").write_bytes(b"no image")
    os.mkfifo(tmp_path / "pipe.png")
    more = [
        ("gone.png", "ca", "train"), ("pipe.png", "ca", "train"), ("bad.png", "ca", "train"), ("", "ca", "train"),
        ("ca/train0.png", "do", "train"), ("do/train0.png", "do", "test"), ("ca/train1.png", "ca", "train"),
        ("ca/train2.png", "", "train"), ("do/train3.png", "do", ""),
    ]  # fmt: skip
    (tmp_path / "list.csv").write_text("path,label,split\n" + lines(ROWS + more))
    with pytest.raises(UserError) as caught:
        load_dataset(name)
    for part in (
        "1 rows without a path, in lines 21", "1 rows without a label, in lines 25",
        "1 rows without a split, in lines 26", "1 of 24 files are not there: gone.png (paths are taken from",
        "1 of 24 paths are no regular files: pipe.png", "1 images are in several splits: do/train0.png",
        "2 images have several labels: ca/train0.png (ca, do), ca/train2.png",
        "1 images are listed several times: ca/train1.png", "bad.png: cannot be read as an image",
    ):  # fmt: skip
        assert part in str(caught.value), part
    with pytest.raises(UserError, match="files are not there"):
        count_examples(name)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("id,label\n1,a\n", "no column path.* Its first line is id, label; expected a header with path"),
        ("a.png,0\n", "no column path and no column label"),
        ("", "no column path and no column label.*Its first line is empty"),
        ("path,label\n", "has no rows below its header"),
        ("path,label\na.png\n", "1 rows have not the 2 cells of the header: line 2 has 1"),
        ('path,label\n"a.png,0\n', "line 2: unexpected end of data; expected csv"),
        ("path,path,label\na,b,c\n", "has several columns path; expected each name once"),
        ("path,label\na\0b,c\n", "has zero bytes; expected csv as text"),
        ("file,image,label\na,b,c\n", "file and image may each be the path; expected one of them"),
        ("path,label,split\na.png,0,spring\n", "no rows of split train; got spring"),
        ("path,label,kept\na.png,0,perhaps\n", "kept='perhaps' in line 2; expected true, false, 1 or 0"),
    ],
)
def test_what_is_no_such_table_is_refused_with_what_there_is(tmp_path, text, message):
    (tmp_path / "list.csv").write_text(text)
    with pytest.raises(UserError, match=f"(?s){message}"):
        load_dataset(f"csv:{tmp_path / 'list.csv'}")


def test_what_is_no_file_is_never_opened(tmp_path):
    os.mkfifo(tmp_path / "list.csv")
    with pytest.raises(UserError, match=r"list\.csv is a pipe \(FIFO\); expected a regular file"):
        load_dataset(f"csv:{tmp_path / 'list.csv'}")
    with pytest.raises(UserError, match="is a folder"):
        load_dataset(f"csv:{tmp_path}")
    with pytest.raises(UserError, match="none.csv cannot be read"):
        load_dataset("csv:none.csv", tmp_path)


def test_without_a_column_of_splits_a_fraction_of_each_class_is_the_test_set(tmp_path):
    rows = [(f"{i:03}.png", "ab"[i % 2]) for i in range(60)]
    name = listed(tmp_path, "path,label\n" + lines(rows), rows)
    with pytest.raises(UserError, match="no test split.*expected a column split.*--test_fraction 0.2"):
        load_dataset(name)
    whole = quietly(name, test_fraction=0.25)
    assert {*np.bincount(whole.test_labels)} <= {*range(2, 16)}
    assert whole.num_examples + len(whole.test_labels) == 60
    (tmp_path / "list.csv").write_text("path,label\n" + lines(sorted(rows, reverse=True)[10:]))
    fewer = quietly(name, test_fraction=0.25)
    assert {*fewer.example_ids} <= {*whole.example_ids}, "none moved"


def test_splits_in_a_column_of_another_name_are_not_mixed(tmp_path):
    name = listed(tmp_path, "path,label,Phase,made\n" + lines((*row, "2024") for row in ROWS))
    for options in ({}, {"test_fraction": 0.5}):
        with pytest.raises(UserError, match="no column split, but all cells of Phase .*: call it split") as caught:
            load_dataset(name, **options)
        assert "--test_fraction" not in str(caught.value)
    listed(tmp_path, "path,label,phase,made\n" + lines((*row[:2], row[2][:2], "2024") for row in ROWS))
    with pytest.warns(UserWarning, match="there is no column split; phase, made is not used"):
        assert load_dataset(name, test_fraction=0.5).num_examples < len(ROWS)


def test_a_labelled_validation_set_is_tested_on_where_the_test_set_has_no_labels(tmp_path):
    rows = ROWS + [(f"v{i}.png", label, "val") for i, label in enumerate(("ca", "do"))]
    text = "path,label,split\n" + "".join(f"{a},{'' if c == 'test' else b},{c}\n" for a, b, c in rows)
    with pytest.warns(UserWarning, match="val is the test set; test has no labels"):
        assert len(load_dataset(listed(tmp_path, text, rows)).test_labels) == 2
    named = "path,label,split\n" + lines(rows)
    assert len(quietly(listed(tmp_path, named, rows), test_split="val").test_labels) == 2


def test_rows_that_are_not_kept_are_left_out(tmp_path):
    text = "path,label,split,kept\n" + "".join(f"{a},{b},{c},{'0' not in a}\n" for a, b, c in ROWS)
    with pytest.warns(UserWarning, match="4 rows that are not kept are left out"):
        assert load_dataset(listed(tmp_path, text)).num_examples == 6


def test_images_of_several_sizes_are_read_in_the_size_that_is_asked_for(tmp_path):
    name = listed(tmp_path, "path,label,split\n" + lines(ROWS))
    images(tmp_path, [ROWS[0][0]], (9, 7))
    with pytest.raises(UserError, match="(?s)images of 2 sizes.*--image_size"):
        load_dataset(name)
    assert quietly(name, image_size=4).image_shape == (4, 4, 3)


def test_a_changed_image_or_table_is_another_entry_of_the_cache(tmp_path):
    name = listed(tmp_path, "path,label,split\n" + lines(ROWS))
    first = load_dataset(name).fingerprint
    assert load_dataset(name).fingerprint == first
    images(tmp_path, [ROWS[0][0]])
    second = load_dataset(name).fingerprint
    assert second != first
    (tmp_path / "list.csv").write_text("path,label,split\n" + lines(ROWS[2:]))
    assert load_dataset(name).num_examples == 6


def test_a_training_takes_a_csv(tmp_path):
    name = listed(tmp_path, "path,label,split\n" + lines(ROWS))
    training = {"model": "mlp", "width": 8, "num_steps": 4, "save_steps": 4, "augment": "false"}
    datadiet("full_data", tmp_path, dataset=name, offline="true", **training)
    assert (tmp_path / "exps/full_data/run_0/summary.json").exists()
