"""Files below folders: each real file once, whatever links there are; what is no file is never opened."""

import os
import socket
import warnings
from pathlib import Path

import numpy as np
import pytest
from archives import png
from conftest import count_examples

from datadiet.data.registry import load_dataset
from datadiet.data.sources.walk import walk
from datadiet.errors import UserError

RANDOM = np.random.RandomState(0)


pytestmark = pytest.mark.usefixtures("own_cache")


def write(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(png(RANDOM.randint(0, 256, (4, 4, 3)).astype(np.uint8)))
    return path


@pytest.fixture
def data(tmp_path):
    """Four images of each of two classes to train on, two to test on."""
    for split, count in (("train", 4), ("test", 2)):
        for label in "ab":
            for i in range(count):
                write(tmp_path / "data" / split / label / f"{i}.png")
    return tmp_path / "data"


REAL = [f"{label}/{i}.png" for label in "ab" for i in range(4)]


@pytest.mark.parametrize(
    ("link", "target"),
    [
        ("train/a/loop", ".."),
        ("train/a/loop", "../.."),  # to where the test set is too
        ("train/a/loop", "../../.."),
        ("train/a/loop", "/"),
        ("train/a/self", "."),
        ("train/a/other", "../b"),  # whose images have a label already
        ("train/a/test", "../../test"),
        ("train/a/test", "../../test/b"),
        ("train/b/0 again.png", "0.png"),
        ("train/a/of b.png", "../b/0.png"),
        ("train/a/test.png", "../../test/b/0.png"),
        ("train/c", "a"),
        ("test/a/train", "../../train/a"),
    ],
)
def test_a_link_to_what_is_there_adds_nothing_and_is_said(data, link, target):
    (data / link).symlink_to(target)
    if link == "train/c":
        with pytest.raises(UserError, match="no image in .*train/c"), pytest.warns(UserWarning, match="train/c …"):
            load_dataset(f"folder:{data}")
        return
    with pytest.warns(UserWarning, match=f"1 links lead to files or folders that count already, .*{link} …"):
        dataset = load_dataset(f"folder:{data}")
    assert dataset.example_ids.tolist() == REAL
    assert len(dataset.test_labels) == 4
    assert count_examples(f"folder:{data}") == 8


def test_links_that_lead_to_each_other_end(data, tmp_path):
    for name, other in (("one", "two"), ("two", "one")):
        write(tmp_path / name / "x.png")
        (tmp_path / name / "on").symlink_to(tmp_path / other)
    (data / "train/a/out").symlink_to(tmp_path / "one")
    with pytest.warns(UserWarning, match="1 links lead"):
        found = load_dataset(f"folder:{data}").example_ids.tolist()
    assert found == sorted([*REAL, "a/out/x.png", "a/out/on/x.png"])


def test_links_to_data_elsewhere_are_followed_once(data, tmp_path):
    write(tmp_path / "store" / "1.png")
    write(tmp_path / "store" / "deep" / "2.png")
    write(tmp_path / "blobs" / "3.png")
    (data / "train/c").symlink_to(tmp_path / "store")
    (data / "test/c").mkdir()
    (data / "test/c/3.png").symlink_to(tmp_path / "blobs/3.png")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        dataset = load_dataset(f"folder:{data}")
    assert dataset.example_ids.tolist() == [*REAL, "c/1.png", "c/deep/2.png"]
    assert dataset.test_labels.tolist() == [0, 0, 1, 1, 2]
    (data / "train/a/again").symlink_to(tmp_path / "store/deep")
    (data / "train/b/again.png").symlink_to(tmp_path / "blobs/3.png")
    with pytest.warns(UserWarning, match="links lead"):
        found = [name for names in walk("x", data / "train", data / "test") for name in names]
    assert len(found) == 15, "8 + 2 + 4 + 1"


def test_a_whole_split_may_be_a_link(data, tmp_path):
    (data / "test").rename(tmp_path / "elsewhere")
    (data / "test").symlink_to(tmp_path / "elsewhere")
    assert len(load_dataset(f"folder:{data}").test_labels) == 4


def test_a_link_to_nothing_is_refused_by_name(data):
    (data / "train/a/lost.png").symlink_to("nowhere.png")
    (data / "train/a/circle.png").symlink_to("circle.png")
    with pytest.raises(UserError, match=r"2 links lead nowhere, the first is .*train/a/circle\.png"):
        load_dataset(f"folder:{data}")


@pytest.fixture
def odd(monkeypatch):
    """Makes something at a path that is no file, and fails where that is opened."""

    def make(path: Path, kind: str) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        if kind == "pipe":
            os.mkfifo(path)
        elif kind == "device":
            path.symlink_to("/dev/zero")
        else:
            monkeypatch.chdir(path.parent)  # a socket's path has at most 107 bytes
            with socket.socket(socket.AF_UNIX) as made:
                made.bind(path.name)

    return make


@pytest.mark.parametrize("kind", ["pipe", "device", "socket"])
def test_what_is_no_file_is_not_opened_but_said(data, odd, kind):
    odd(data / "train/a/9.png", kind)
    with pytest.warns(UserWarning, match=r"1 are pipes, sockets or devices, and are not read: .*train/a/9\.png"):
        assert load_dataset(f"folder:{data}").example_ids.tolist() == REAL


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read every folder")
def test_a_folder_that_cannot_be_read_is_refused(data):
    (data / "train/a").chmod(0)
    with pytest.raises(UserError, match="train/a cannot be read"):
        load_dataset(f"folder:{data}")
