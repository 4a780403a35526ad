"""Names that are not UTF-8, of files and of classes: kept, told and written without loss, or refused in one message."""

import os
import re
import sys

import numpy as np
import pytest
from archives import png
from conftest import datadiet
from hypothesis import given
from hypothesis import strategies as st

from datadiet.data.registry import load_dataset
from datadiet.errors import UserError
from datadiet.printable import from_bytes, natural, visible
from datadiet.runs.console import Console
from datadiet.storage.manifests import manifest_ids

CAFE = os.fsdecode(b"caf\xe9")  # as Windows' zip left it


def original(shown):
    """The bytes of a name that `visible` spelled: an odd number of backslashes before such a number means a byte."""

    def back(match):
        backslashes, byte = match.groups()
        escaped = b"\\" * (len(backslashes) // 2)
        return escaped + (bytes([int(byte, 16)]) if len(backslashes) % 2 else b"x" + byte)

    return re.sub(rb"(\\+)x([89a-f][0-9a-f])", back, shown.encode())


@given(
    st.binary() | st.lists(st.sampled_from([b"\\", b"x", b"e9", b"\xe9", b"\x80", "é".encode(), b"a"])).map(b"".join)
)
def test_every_name_is_shown_in_utf8_and_can_be_had_back(name):
    shown = from_bytes(name)
    shown.encode()  # which refuses half characters
    assert original(shown) == name


@given(
    st.text(st.characters(exclude_characters="\\", codec="utf-8")) | st.sampled_from([r"a\b", r"C:\new", r"\n", r"\\"])
)
def test_a_name_in_utf8_stays_as_it_is(name):
    assert visible(name) == name


@pytest.fixture
def folder(tmp_path):
    random = np.random.RandomState(0)
    for split, count in (("train", 4), ("test", 2)):
        for label in ("a", CAFE):
            for name in [f"{i}" for i in range(count - 1)] + [CAFE]:
                path = tmp_path / "data" / split / label / f"{name}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(png(random.randint(0, 256, (8, 8)).astype(np.uint8)))
    return tmp_path / "data"


def test_examples_and_classes_have_them(folder, tmp_path, monkeypatch):
    monkeypatch.setenv("DATADIET_CACHE", str(tmp_path / "cache"))
    for _ in range(2):  # built, then from the cache
        dataset = load_dataset(f"folder:{folder}")
        assert dataset.class_names == ("a", r"caf\xe9")
        assert dataset.example_ids[3:5].tolist() == [r"a/caf\xe9.png", r"caf\xe9/0.png"]


def test_a_kept_set_with_such_names_is_written_and_read_again(folder, tmp_path):
    datadiet("select", tmp_path, dataset=f"folder:{folder}", selector="random", size=8, offline=True)
    (kept,) = tmp_path.glob("exps/**/kept.csv")
    assert r"a/caf\xe9.png" in kept.read_text(encoding="utf-8")
    assert sorted(manifest_ids(kept, load_dataset(f"folder:{folder}")).tolist()) == list(range(8))


def test_an_error_names_them(folder):
    (folder / "train" / CAFE / "bad.png").write_bytes(b"text")
    with pytest.raises(UserError, match=r"train/caf\\xe9/bad\.png: cannot be read as an image") as caught:
        load_dataset(f"folder:{folder}")
    str(caught.value).encode()


def test_what_is_said_can_be_shown(capsys):
    Console().say(f"{CAFE} -> é")
    assert capsys.readouterr().out == "caf\\xe9 -> é\n"


@pytest.mark.parametrize("option", ["dataset", "data_dir", "root", "plan"])
def test_an_option_is_refused_in_one_message(tmp_path, option):
    given = {"dataset": "digits", option: f"folder:{CAFE}" if option == "dataset" else CAFE}
    done = datadiet("study", tmp_path, expect=2, **given)
    assert "expected text in UTF-8" in done.stderr
    assert done.stderr.count("Error") == 1


@pytest.mark.skipif(sys.platform == "darwin", reason="its file systems have no such names")
def test_a_working_folder_is_refused_in_one_message(tmp_path):
    (folder := tmp_path / CAFE).mkdir()
    done = datadiet("report", folder, expect=2)
    assert r"caf\xe9: expected to be called in a folder whose path is UTF-8" in done.stderr
    assert list(folder.iterdir()) == [folder / "mlflow.db"], "which is the test's own"


def test_ids_of_arrays_that_are_no_text_are_shown(tmp_path):
    y, x = np.arange(6) % 2, np.zeros((6, 3), np.float32)
    ids = np.array([b"n\xe9%d" % i for i in range(6)])
    np.savez(tmp_path / "b.npz", x_train=x, y_train=y, x_test=x, y_test=y, ids_train=ids)
    assert load_dataset(f"npz:{tmp_path / 'b.npz'}").example_ids[2] == r"n\xe92"


def test_numbers_in_names_are_ordered_as_numbers():
    assert sorted(["run_10", "run_9", "run_9/a", "2", "run_1\u00b2"], key=natural) == [
        "2", "run_1\u00b2", "run_9", "run_9/a", "run_10",
    ]  # fmt: skip
