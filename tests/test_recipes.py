"""The recipes of kept sets keep, in the real libraries, the images that a kept table names, by path, in any order."""

from __future__ import annotations

import os
import re
from pathlib import Path

import numpy as np
import pytest
from archives import write_pictures
from conftest import PROJECT, datadiet

from datadiet.config import TrainConfig
from datadiet.data.registry import load_dataset, origins_of
from datadiet.report.kept_sets import examples

pytestmark = pytest.mark.usefixtures("own_cache")

RECIPES = re.findall(
    r"```python\n(from (?:pathlib|datasets) .*?)```", (PROJECT / "docs/how-to/kept-sets.md").read_text(), re.DOTALL
)
CASES = {  # folders in which other libraries have other orders than the sorted paths
    "a hyphen": [f"{name}/{i}.png" for name in ("crab", "crab apple", "crab-hermit") for i in range(2)],
    "a dot": [f"{name}/{i}.png" for name in ("a", "a.b", "a&b", "a(b)", "a+b") for i in range(3)],
    "a gif": ["a/0.png", "a/1.gif", "a/2.png", "b/0.png", "b/1.png"],
    "hidden": ["a/0.png", "a/1.png", "a/.ipynb_checkpoints/1-checkpoint.png", "b/0.png", "b/1.png"],
    "subfolders": ["a/0.png", "a/sub/0.png", "a/sub.png", "a/z.png", "b/0.png", "b/sub/1.png"],
    "names": ["NA/1.png", "NA/null.png", "=1+1/2.png", "=1+1/@x.png", "日本/ 1.png", "日本/a,b", 'q/"1".png', "q/2"],
}  # fmt: skip


@pytest.fixture(params=CASES)
def case(request, tmp_path, monkeypatch):
    """A data set with every other example kept, the page's names for both in place."""
    paths = [f"{split}/{path}" for split in ("train", "test") for path in CASES[request.param]]
    write_pictures(tmp_path / "photos", paths)
    config = TrainConfig(dataset=f"folder:{tmp_path}/photos")
    data = load_dataset(config.dataset)
    ids = np.arange(data.num_examples)[::2]
    table = examples(data, origins_of(config), ids)
    (tmp_path / "exps/study/kept").mkdir(parents=True)
    table.to_parquet(tmp_path / "exps/study/kept/keep_max_l2_error_500.parquet")
    monkeypatch.chdir(tmp_path)
    return data, ids


def pixels_of(images) -> list[bytes]:
    return sorted(np.asarray(image.convert("RGB")).tobytes() for image in images)


def expected(data, ids) -> list[bytes]:
    return sorted(data.train_images[i].tobytes() for i in ids)


def follow(*recipes: str) -> dict:
    names: dict = {}
    for recipe in recipes:
        exec(recipe, names)
    return names


def test_the_recipes_are_those_of_the_readme():
    assert len(RECIPES) == 2
    assert "ImageFolder(" in RECIPES[0]
    assert 'load_dataset("imagefolder"' in RECIPES[1]


def test_torchvision_keeps_the_images_that_the_table_names(case):
    pytest.importorskip("torchvision")
    data, ids = case
    subset = follow(RECIPES[0])["subset"]
    assert pixels_of(image for image, _ in subset) == expected(data, ids)
    by_name = {Path(path).parts[Path(path).parts.index("train") + 1]: label for path, label in subset.samples}
    assert all(subset.classes[label] == name for name, label in by_name.items())


def test_hugging_face_keeps_the_images_that_the_table_names(case, monkeypatch, tmp_path):
    pytest.importorskip("datasets")
    monkeypatch.setenv("HF_DATASETS_OFFLINE", "1")
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "hf")
    data, ids = case
    before = RECIPES[0].partition("subset =")[0].replace("from torchvision.datasets import ImageFolder\n", "")
    subset = follow(before, RECIPES[1])["subset"]
    assert pixels_of(subset["image"]) == expected(data, ids)


def test_positions_are_not_those_of_other_libraries(case, tmp_path):
    """Why the recipes go by path: whoever reads this file's cases by position gets other images in most of them."""
    folder = pytest.importorskip("torchvision.datasets").ImageFolder
    data, _ = case
    theirs = [os.path.relpath(path, tmp_path / "photos/train") for path, _ in folder(tmp_path / "photos/train").samples]
    ours = data.example_ids.tolist()
    assert theirs != ours or "NA/1.png" in ours


@pytest.mark.parametrize("written_as", ["links", "parquet"])
def test_an_export_is_read_by_the_real_libraries(case, tmp_path, written_as, monkeypatch):
    data, ids = case
    table = tmp_path / "exps/study/kept/keep_max_l2_error_500.parquet"
    given = {"kept": table, "dataset": f"folder:{tmp_path}/photos", "format": written_as, "offline": "true"}
    datadiet("export", tmp_path, output=tmp_path / "out", **given)
    if written_as == "links":
        found = pytest.importorskip("torchvision.datasets").ImageFolder(
            tmp_path / "out", is_valid_file=lambda file: True
        )
        assert pixels_of(image for image, _ in found) == expected(data, ids)
    else:
        load = pytest.importorskip("datasets").load_dataset
        monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "hf")
        found = load("parquet", data_files=str(tmp_path / "out"), split="train")
        assert pixels_of(found["image"]) == expected(data, ids)
        names = [found.features["label"].int2str(label) for label in found["label"]]
        assert names == [data.class_names[data.train_labels[i]] for i in ids]


def test_pictures_are_told_apart(case):
    """The cases can show a mistake: no two images are the same."""
    data, _ = case
    assert len({image.tobytes() for image in data.train_images}) == data.num_examples
