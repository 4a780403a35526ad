"""`inspect` tells what data is, also where it is refused, and what lets it be read; it trains and changes nothing."""

from __future__ import annotations

import json
from html.parser import HTMLParser
from pathlib import Path

import mlflow
import numpy as np
import pytest
from archives import write_pictures
from conftest import datadiet
from PIL import Image

from datadiet.data.inspect import advised

pytestmark = pytest.mark.usefixtures("own_cache")

NASTY = "<img src=x onerror=alert(1)>"


def inspected(folder: Path, **given) -> tuple[str, str, dict]:
    """What is said, the page, and the numbers."""
    done = datadiet("inspect", folder, offline="true", **given)
    (page,) = (folder / "exps/inspect").glob("*/data.html")
    return done.output, page.read_text(), json.loads(page.with_name("data.json").read_text())


def npz(path: Path, **changes) -> Path:
    random = np.random.RandomState(0)
    arrays = {
        "x_train": random.randint(0, 256, (40, 6, 6, 3)).astype(np.uint8), "y_train": np.arange(40) % 4,
        "x_test": random.randint(0, 256, (20, 6, 6, 3)).astype(np.uint8), "y_test": np.arange(20) % 4,
    }  # fmt: skip
    for name, change in changes.items():
        change(arrays[name])
    np.savez(path, **arrays)
    return path


class Page(HTMLParser):
    """What a browser would fetch, and which elements there are."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.fetched: list[str] = []
        self.tags: set[str] = set()
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.add(tag)
        self.fetched += [str(v) for k, v in attrs if k in ("src", "href", "srcset", "action", "data")]
        assert not [k for k, _ in attrs if k.startswith("on")]


def test_data_that_can_be_read_is_told_with_its_counts(tmp_path):
    said, page, told = inspected(tmp_path, dataset=f"npz:{npz(tmp_path / 'd.npz')}")
    assert "can be trained on as it is" in said
    assert "40 training and 20 test images of 6x6x3, 4 classes." in said
    assert told["read"]["classes"] == {str(c): [10, 5] for c in range(4)}
    assert (told["refusals"], told["repairs"], told["doubts"]["duplicates"]) == ([], {}, 0)
    assert "classes have fewer than 10 test examples" in said
    assert "resnet18_lowres" in said
    assert "padded with zeros to 32x32x3" in said
    assert "datadiet study --dataset npz:" in said
    assert page.count("data:image/png;base64,") == 4
    assert not list(tmp_path.rglob("ckpts"))


def test_duplicates_conflicts_leaks_and_constant_images_are_counted_and_named(tmp_path):
    def repeat(x):
        x[10], x[11], x[20] = x[0], x[0], 7

    path = npz(tmp_path / "d.npz", x_train=repeat)
    with np.load(path) as arrays:
        found = dict(arrays)
    found["x_test"][3] = found["x_train"][5]
    np.savez(path, **found)
    said, page, told = inspected(tmp_path, dataset=f"npz:{path}")
    doubts = told["doubts"]
    assert doubts["duplicates"] == 2
    assert doubts["conflicts"] == [
        ["train_000000", "train_000010", "0", "2"],
        ["train_000000", "train_000011", "0", "3"],
    ]
    assert doubts["constant"] == ["train_000020"]
    ((_, trained, own, theirs),) = doubts["leaks"]
    assert (trained, own, theirs) == ("train_000005", "3", "1")
    for text in (said, page):
        assert "2 training examples have the pixels of an earlier one" in text
        assert "1 test examples have the pixels of a training example" in text
        assert "train_000000 (0) and train_000010 (2)" in text


def test_what_stands_in_the_way_is_told_with_what_repairs_it(tmp_path):
    """Photos of several sizes without a test set, some of them broken: read with options, and nothing is changed."""
    paths = [f"{c}/{i}.jpg" for c in ("cat", "dog") for i in range(12)]
    write_pictures(tmp_path / "photos", paths[::2], size=(40, 30))
    write_pictures(tmp_path / "photos", paths[1::2], size=(20, 50), seed=1)
    (tmp_path / "photos/cat/broken.jpg").write_bytes(b"\xff\xd8\xff broken")
    before = {p: p.read_bytes() for p in (tmp_path / "photos").rglob("*.jpg")}
    said, page, told = inspected(tmp_path, dataset=f"folder:{tmp_path}/photos")
    assert "is refused as it is; with" in said
    assert set(told["repairs"]) == {"image_size", "test_fraction", "skip_bad"}
    assert told["files"]["sizes"] == {"30x40": 12, "50x20": 12}
    assert told["files"]["folders"] == {"cat": 13, "dog": 12}
    assert [name.split(":")[0] for name in told["files"]["bad"]] == ["cat/broken.jpg"]
    assert told["read"]["train"] + told["read"]["test"] == 24
    assert len(told["read"]["skipped"]) == 1
    for word in ("image_size", "test_fraction", "skip_bad"):
        assert f"--{word}" in said
        assert f"--{word}" in page
    (command,) = [line.strip() for line in said.splitlines() if line.strip().startswith("datadiet study")]
    assert all(f"--{word} " in command for word in told["repairs"])
    assert before == {p: p.read_bytes() for p in (tmp_path / "photos").rglob("*.jpg")}


def test_what_no_option_repairs_is_told_with_the_files_there_are(tmp_path):
    write_pictures(tmp_path / "data", [f"test/{c}/{i}.png" for c in "ab" for i in range(3)])
    (tmp_path / "data/test/a/1.png").write_bytes((tmp_path / "data/test/a/1.png").read_bytes()[:60])
    said, page, told = inspected(tmp_path, dataset=f"folder:{tmp_path}/data")
    assert "cannot be read as it is, and no option is known" in said
    assert "no folder" in said
    assert told["read"] == {}
    assert told["files"]["folders"] == {"test": 6}
    assert [name.split(":")[0] for name in told["files"]["bad"]] == ["test/a/1.png"], "decoded, since nothing else did"
    assert "What stands in the way" in page


def test_only_what_is_not_there_is_an_error(tmp_path):
    for dataset, told in (
        ("imagenet", "expected one of digits"), (f"folder:{tmp_path}/none", "got no folder"),
        (f"npz:{tmp_path}/none.npz", "no file"), (f"parquet:{tmp_path}/none", "no folder"),
    ):  # fmt: skip
        done = datadiet("inspect", tmp_path, offline="true", dataset=dataset, expect=2)
        assert told in done.output
    assert not (tmp_path / "exps").exists()


def test_the_page_is_one_file_without_scripts_requests_or_markup_of_users(tmp_path):
    paths = [
        f"{split}/{name}/{i}.png" for split in ("train", "test") for name in (NASTY, "b&c", "x\x1b[31m") for i in "12"
    ]
    write_pictures(tmp_path / "d", paths)
    (tmp_path / "d/train/b&c/2.png").write_bytes((tmp_path / f"d/train/{NASTY}/1.png").read_bytes())
    said, page, _ = inspected(tmp_path, dataset=f"folder:{tmp_path}/d")
    found = Page(page)
    assert "<img src=x" not in page
    assert "&lt;img src=x onerror=alert(1)&gt;" in page
    assert "\x1b" not in page + said
    assert not {"script", "link", "iframe", "object", "form"} & found.tags
    assert found.fetched
    assert all(source.startswith("data:image/png;base64,") for source in found.fetched)
    assert "prefers-color-scheme: dark" in page
    assert not [word for word in ("http://", "https://", "url(", "@import") if word in page]


def test_pictures_of_a_class_are_its_own(tmp_path):
    import base64
    import io

    for c, shade in (("black", 20), ("white", 230)):
        for split in ("train", "test"):
            folder = tmp_path / f"d/{split}/{c}"
            folder.mkdir(parents=True)
            for i in range(3):
                pixels = np.full((9, 9, 3), shade, np.uint8)
                pixels[i, :2] = 100 + i + 10 * (split == "test")
                Image.fromarray(pixels).save(folder / f"{i}.png")
    _, page, _ = inspected(tmp_path, dataset=f"folder:{tmp_path}/d")
    shades = []
    for source in Page(page).fetched:
        image = Image.open(io.BytesIO(base64.b64decode(source.partition(",")[2])))
        shades.append(int(np.median(np.asarray(image.convert("L"))[10:40, 10:40])))
    assert shades == [20, 230]


def test_a_step_is_timed_where_a_model_is_named(tmp_path):
    said, page, told = inspected(tmp_path, dataset="digits", model="mlp", width=8, num_steps=1000, augment="false")
    timing = told["timing"]
    assert (timing["model"], timing["num_steps"]) == ("mlp", 1000)
    assert 0 < timing["steps"] <= 200
    assert timing["seconds"] > 0
    assert "A training of mlp, 1,000 steps, takes" in said
    assert "A training of mlp, 1,000 steps, takes" in page
    assert not list(tmp_path.rglob("ckpts"))


def test_it_is_a_run_of_its_own_kind_with_the_page_as_artifact(tmp_path):
    datadiet("inspect", tmp_path, dataset="digits")
    client = mlflow.MlflowClient(f"sqlite:///{tmp_path}/mlflow.db")
    experiment = client.get_experiment_by_name("datadiet")
    assert experiment is not None
    (run,) = client.search_runs([experiment.experiment_id])
    assert run.data.tags["datadiet.kind"] == "inspect"
    assert run.data.metrics["data/train"] == 1438
    assert {a.path for a in client.list_artifacts(run.info.run_id)} == {"data.html", "data.txt", "data.json"}
    datadiet("inspect", tmp_path, dataset="digits")  # again: in place of the first page


@pytest.mark.parametrize(
    ("refusal", "options"),
    [
        ("d: images of 3 sizes. Add --image_size 96 --test_fraction 0.3.", {"image_size": "96", "test_fraction": 0.3}),
        ("d: 2 bad. Add -P skip_bad=true -P image_size=64x48.", {"skip_bad": True, "image_size": "64x48"}),
        ("d: several sizes: --image_size N", {"image_size": "64"}),
        ("d: To test on val: --test_split val. Add --test_fraction 0.2.", {"test_fraction": 0.2}),
        ("d: To test on val: --test_split val", {"test_split": "val"}),
        ("d: it cannot be read (damaged).", {}),
    ],
)
def test_options_are_taken_from_what_a_refusal_advises(refusal, options):
    assert advised(refusal) == options
