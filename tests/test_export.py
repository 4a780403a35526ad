"""A kept set is handed over as others read it: by path or id, complete, in place of nothing else."""

from __future__ import annotations

import json
import os
from pathlib import Path

import mlflow
import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
import studies
from archives import write_pictures
from conftest import datadiet
from PIL import Image

from datadiet.data.dataset import Dataset
from datadiet.data.registry import load_dataset
from datadiet.data.sources.base import Origins
from datadiet.printable import as_named, visible
from datadiet.report.kept_files import KeptSet, places
from datadiet.report.kept_sets import COLUMNS, examples
from datadiet.report.page import read_decision, write_report
from datadiet.storage.manifests import manifest_ids
from datadiet.storage.tables import read_csv

pytestmark = [
    pytest.mark.usefixtures("own_cache"), pytest.mark.filterwarnings("ignore::datadiet.data.reading.Remark"),
]  # fmt: skip

NAMES = (  # of files below a class: other suffixes, subfolders, text that csv quotes, other alphabets, no UTF-8
    "1.png", "2.gif", "=1+1.png", "a,b.png", 'a "b".jpg', "sub/1.png", "日本.png", b"caf\xe9.png", r"caf\xe9.png", "7",
)  # fmt: skip
CLASSES = ("crab", "crab apple", "crab-hermit", "été", b"\xe9t\xe9", "NA")


@pytest.fixture
def photos(tmp_path) -> Path:
    """A folder of images as people name them."""
    paths = [os.path.join(b"data/train", *map(os.fsencode, (c, n))) for c in CLASSES for n in NAMES]
    paths += [os.path.join(b"data/test", os.fsencode(c), b"%d.png" % i) for c in CLASSES for i in range(2)]
    write_pictures(tmp_path, paths)
    (tmp_path / "data/train/crab/.hidden.png").write_bytes((tmp_path / "data/train/crab/1.png").read_bytes())
    return tmp_path / "data"


@pytest.fixture
def kept(photos) -> Path:
    """kept.csv of a random half."""
    given = {"dataset": f"folder:{photos}", "selector": "random", "size": "50%", "offline": "true"}
    datadiet("select", photos.parent, **given)
    return photos.parent / "exps/select/size_30.random/run_0/kept.csv"


def export(folder: Path, expect: int = 0, **given):
    return datadiet("export", folder, expect=expect, offline="true", **given)


def pixels(path) -> bytes:
    return np.asarray(Image.open(path).convert("RGB")).tobytes()


# --- formats ------------------------------------------------------------------------------------


def test_csv_has_the_columns_of_kept_tables_and_kept_rows_alone(tmp_path, photos, kept):
    export(tmp_path, kept=kept, output="mine.csv")
    rows = read_csv(tmp_path / "mine.csv", *COLUMNS)
    data = load_dataset(f"folder:{photos}")
    ids = manifest_ids(kept, data)
    assert [int(row["index"]) for row in rows] == sorted(ids.tolist())
    assert {row["kept"] for row in rows} == {"True"}
    for row in rows:
        i = int(row["index"])
        assert row["example_id"] == data.example_ids[i]
        assert data.class_names[int(row["label"])] == row["class"] == row["example_id"].split("/")[0]
        assert (row["split"], row["path"]) == ("train", f"train/{row['example_id']}")
        assert pixels(photos / as_named(row["path"])) == data.train_images[i].tobytes()
    np.testing.assert_array_equal(np.sort(ids), manifest_ids(tmp_path / "mine.csv", data))


def test_links_are_a_folder_of_the_same_images(tmp_path, photos, kept):
    """Which may be moved, and be read as data itself."""
    export(tmp_path, kept=kept, output="made/subset", format="links")
    os.rename(tmp_path / "made", tmp_path / "moved")
    data = load_dataset(f"folder:{photos}")
    for i in manifest_ids(kept, data):
        link = tmp_path / "moved/subset" / as_named(str(data.example_ids[i]))
        assert link.is_symlink()
        assert pixels(link) == data.train_images[i].tobytes()
    found = [name for _, _, names in os.walk(tmp_path / "moved/subset") for name in names]
    assert len(found) == 30
    os.makedirs(tmp_path / "as_data")
    os.rename(tmp_path / "moved/subset", tmp_path / "as_data/train")
    os.symlink(photos / "test", tmp_path / "as_data/test")
    again = load_dataset(f"folder:{tmp_path}/as_data")
    assert again.num_examples == 30


def test_data_that_was_read_with_options_is_found_with_them(tmp_path):
    """Folders of numbered classes alone, of several sizes and with a file that is none: its split is made by option."""
    write_pictures(tmp_path / "data", [f"{c}/{i}.png" for c in ("2", "10") for i in range(8)])
    write_pictures(tmp_path / "data", [f"{c}/large.png" for c in ("2", "10")], size=(20, 12))
    (tmp_path / "data/10/bad.png").write_bytes(b"\x89PNG")
    options = {"image_size": 8, "test_fraction": 0.25, "skip_bad": "true"}
    given = {"dataset": f"folder:{tmp_path}/data", "selector": "random", "size": "50%", "offline": "true", **options}
    datadiet("select", tmp_path, **given)
    (kept,) = tmp_path.glob("exps/select/*/run_0/kept.csv")
    export(tmp_path, kept=kept, output="out", format="links")
    export(tmp_path, kept=kept, output="out.csv")
    rows = read_csv(tmp_path / "out.csv", *COLUMNS)
    links = {Path(folder, name) for folder, _, names in os.walk(tmp_path / "out") for name in names}
    assert {str(link.relative_to(tmp_path / "out")) for link in links} == {row["path"] for row in rows}
    assert all(link.resolve() == tmp_path / "data" / link.relative_to(tmp_path / "out") for link in links)
    assert {row["split"] for row in rows} == {"train"}
    assert all(row["class"] == row["path"].split("/")[0] for row in rows), "whatever its number is"


def test_copies_stand_for_themselves(tmp_path, photos, kept):
    export(tmp_path, kept=kept, output="subset", format="links", copy="true")
    files = [Path(folder, name) for folder, _, names in os.walk(tmp_path / "subset") for name in names]
    assert len(files) == 30
    assert not any(file.is_symlink() for file in files)
    done = export(tmp_path, kept=kept, output="x.csv", copy="true", expect=2)
    assert "copy=true is used by format=links only" in done.output


def test_a_list_has_the_paths_in_the_bytes_that_they_have(tmp_path, photos, kept):
    export(tmp_path, kept=kept, output="list.txt", format="txt")
    lines = (tmp_path / "list.txt").read_bytes().splitlines()
    assert len(lines) == 30
    assert all(os.path.isfile(os.path.join(os.fsencode(photos), line)) for line in lines)
    assert any(b"\xe9" in line for line in lines)


def test_a_name_that_takes_two_lines_is_no_line_of_a_list(tmp_path):
    names = [f"{c}/{n}" for c in "ab" for n in ("1\n2.png", "3.png")]
    write_pictures(tmp_path, [f"data/{split}/{name}" for split in ("train", "test") for name in names])
    (tmp_path / "kept.csv").write_text("example_id\na/1\\x0a2.png\n")
    given = {"kept": "kept.csv", "dataset": f"folder:{tmp_path}/data"}
    done = export(tmp_path, output="list.txt", format="txt", expect=2, **given)
    assert r"a/1\x0a2.png does not fit into a line" in done.output
    assert not (tmp_path / "list.txt").exists()
    export(tmp_path, output="links", format="links", **given)
    assert (tmp_path / "links/a/1\n2.png").is_symlink()


def test_parquet_of_images_is_the_layout_of_hugging_face(tmp_path, photos, kept):
    """Which reads as the same images, labels and names."""
    export(tmp_path, kept=kept, output="hf/train.parquet", format="parquet")
    data = load_dataset(f"folder:{photos}")
    ids = np.sort(manifest_ids(kept, data))
    (tmp_path / "hf/test.parquet").write_bytes((tmp_path / "hf/train.parquet").read_bytes())
    found = load_dataset(f"parquet:{tmp_path}/hf")
    np.testing.assert_array_equal(found.train_images, data.train_images[ids])
    names = [found.class_names[label] for label in found.train_labels]
    assert names == [data.class_names[label] for label in data.train_labels[ids]]
    assert found.example_ids.tolist() == data.example_ids[ids].tolist()


def test_parquet_of_parquet_is_the_same_rows_with_all_their_columns(tmp_path):
    import pyarrow as pa

    def table(start: int, count: int) -> pa.Table:
        cells = [{"bytes": _png(start + i), "path": None} for i in range(count)]
        return pa.table(
            {"image": cells, "label": [i % 3 for i in range(count)], "note": [f"n{start + i}" for i in range(count)]}
        )

    (tmp_path / "data").mkdir()
    for number, (start, name) in enumerate([(0, "train-0"), (20, "train-1"), (40, "test-0")]):
        pq.write_table(table(start, 20 - number), tmp_path / f"data/{name}.parquet", row_group_size=7)
    datadiet("select", tmp_path, dataset=f"parquet:{tmp_path}/data", selector="random", size=11, offline="true")
    kept = tmp_path / "exps/select/size_11.random/run_0/kept.csv"
    export(tmp_path, kept=kept, output="subset.parquet", format="parquet")
    ids = sorted(manifest_ids(kept, load_dataset(f"parquet:{tmp_path}/data")).tolist())
    found = pq.read_table(tmp_path / "subset.parquet")
    assert found.schema.names == ["image", "label", "note"]
    assert found["note"].to_pylist() == [f"n{i}" for i in ids]
    done = export(tmp_path, kept=kept, output="links", format="links", expect=2)
    assert "are no files; expected format=csv, parquet, txt" in done.output
    export(tmp_path, kept=kept, output="ids.txt", format="txt")
    assert (tmp_path / "ids.txt").read_text().split() == [f"train_{i:06d}" for i in ids]


def _png(seed: int) -> bytes:
    from archives import png

    return png(np.random.RandomState(seed).randint(0, 256, (6, 6, 3)).astype(np.uint8))


def test_arrays_have_no_links_and_vectors_no_images(tmp_path):
    for name, shape in (("images", (6, 6, 3)), ("vectors", (5,))):
        random = np.random.RandomState(0)
        x = random.randint(0, 256, (12, *shape)).astype(np.uint8 if len(shape) > 1 else np.float32)
        np.savez(tmp_path / f"{name}.npz", x_train=x, y_train=np.arange(12) % 3, x_test=x[:3], y_test=np.arange(3))
        (tmp_path / f"{name}.csv").write_text("example_id,kept\ntrain_000001,1\ntrain_000004,0\ntrain_000005,true\n")
    given = {"kept": "images.csv", "dataset": f"npz:{tmp_path}/images.npz"}
    done = export(tmp_path, output="links", format="links", expect=2, **given)
    assert "format=links: the examples of npz:" in done.output
    assert not (tmp_path / "links").exists()
    export(tmp_path, output="images.parquet", format="parquet", **given)
    assert pq.read_table(tmp_path / "images.parquet")["label"].to_pylist() == [1, 2]
    given = {"kept": "vectors.csv", "dataset": f"npz:{tmp_path}/vectors.npz"}
    done = export(tmp_path, output="v.parquet", format="parquet", expect=2, **given)
    assert "holds images of 1 or 3 channels" in done.output
    export(tmp_path, output="v.txt", format="txt", **given)
    assert (tmp_path / "v.txt").read_text() == "train_000001\ntrain_000005\n"


def test_what_would_lead_elsewhere_is_replaced():
    """Names of classes and files as a table of people's own may have them."""
    classes = ("../../etc", "a/b", "a_b", ".hidden", "x" * 300)
    files = ("../1.png", "/etc/passwd", "d/1.png", "e/1.png", "y" * 300 + ".png")
    count = len(classes)
    data = Dataset(
        "csv:x", np.zeros((count, 2, 2, 1), np.uint8), np.arange(count, dtype=np.int32),
        np.zeros((1, 2, 2, 1), np.uint8), np.zeros(1, np.int32), np.array(files), count, np.zeros(1), np.ones(1), "f",
        classes,
    )  # fmt: skip
    origins = Origins(root=Path("/nowhere"))
    for labels in (np.arange(count), np.zeros(count, int)):
        table = examples(data, origins, np.arange(count), labels)
        found = places(KeptSet(data, origins, table))
        assert len(set(found)) == count
        for place in found:
            parts = place.split("/")
            assert len(parts) >= 2
            assert not [part for part in parts if part.startswith(".") or not part or len(part.encode()) > 255]


@pytest.mark.parametrize(
    "name", [b"caf\xe9.png", "é", r"\xe9", rb"\\xe9\xe9", rb"\\\xff", r"a\b\x41", "\\" * 3, b"\\\xe9\\x"]
)
def test_a_visible_name_can_be_had_back(name):
    system = os.fsdecode(name)
    assert as_named(visible(system)) == system


# --- what is exported ---------------------------------------------------------------------------


@pytest.fixture(scope="module")
def study(tmp_path_factory) -> Path:
    """A study on digits with its kept tables."""
    root = tmp_path_factory.mktemp("study")
    exps = studies.write_study(root, {"keep_max l2_error": (0.001, 0.08), "random": (0.01, 0.05)})
    write_report(read_decision(exps, "demo"))
    return root


@pytest.mark.parametrize("suffix", ["csv", "parquet"])
def test_a_kept_table_tells_its_own_data_and_keeps_its_scores(study, tmp_path, suffix):
    path = study / f"exps/demo/kept/keep_max_l2_error_575.{suffix}"
    export(study, kept=path, output=tmp_path / "out.csv")
    table = pd.read_parquet(path.with_suffix(".parquet"))
    found = pd.read_csv(tmp_path / "out.csv", dtype={"class": str, "path": str})
    pd.testing.assert_frame_equal(found, table[table.kept].reset_index(drop=True), check_dtype=False)


def test_tables_of_before_are_read(study, tmp_path):
    table = pd.read_parquet(study / "exps/demo/kept/keep_max_l2_error_575.parquet")
    old = table.rename(columns={"score": "score_mean", "stderr": "score_standard_error"})
    old.drop(columns=["class", "split", "path"]).to_csv(tmp_path / "old.csv", index=False)
    export(study, kept=tmp_path / "old.csv", dataset="digits", output=tmp_path / "out.csv")
    found = pd.read_csv(tmp_path / "out.csv")
    np.testing.assert_allclose(found["stderr"], table["stderr"][table.kept])
    np.testing.assert_array_equal(
        manifest_ids(tmp_path / "old.csv", load_dataset("digits")), np.flatnonzero(table.kept)
    )


def test_a_run_is_exported_with_the_labels_it_trained_on(tmp_path):
    given = {"dataset": "digits", "model": "mlp", "width": 8, "num_steps": 2, "augment": "false", "offline": "true"}
    datadiet("random_subset", tmp_path, size=0.1, random_label_fraction=0.5, **given)
    run = tmp_path / "exps/random_subset/size_144/run_0"
    export(tmp_path, kept=run, output="a.csv")
    export(tmp_path, kept=run / "kept.csv", output="b.csv")
    found = pd.read_csv(tmp_path / "a.csv")
    pd.testing.assert_frame_equal(found, pd.read_csv(tmp_path / "b.csv"))
    changed = pd.read_csv(run / "random_labels.csv").set_index("example_id")["random_label"]
    both = found[found.example_id.isin(changed.index)]
    assert len(both) > 20
    assert (both.label == changed[both.example_id].to_numpy()).all()
    datadiet("full_data", tmp_path, **given)
    done = export(tmp_path, kept="exps/full_data/run_0", output="c.csv", expect=2)
    assert "trains on all examples; expected a run on a subset" in done.output


def test_what_cannot_be_exported_is_refused_by_name(tmp_path, study):
    (tmp_path / "kept.csv").write_text("example_id\ndigits_0000\n")
    (tmp_path / "other.csv").write_text("example_id\nelsewhere\n")
    table = study / "exps/demo/kept/random_575.csv"
    for given, told in (
        ({"kept": "none.csv"}, "kept=none.csv: no kept set; expected a kept.csv"),
        ({"kept": "kept.csv"}, "nothing beside it says which data it is of; name that with --dataset NAME"),
        (
            {"kept": "kept.csv", "dataset": "digits", "format": "xlsx"},
            "format=xlsx: expected one of csv, parquet, links",
        ),
        ({"kept": "other.csv", "dataset": "digits"}, "1 examples are not in digits"),
        ({"kept": table, "dataset": "fashion_mnist", "data_dir": "x"}, "fashion_mnist: no file"),
    ):
        assert told in export(tmp_path, output="out", expect=2, **given).output
    assert sorted(p.name for p in tmp_path.iterdir() if p.is_file()) == ["kept.csv", "other.csv"]


# --- where it goes ------------------------------------------------------------------------------


@pytest.mark.parametrize("written_as", ["csv", "links", "txt", "parquet"])
def test_only_an_earlier_export_is_replaced(tmp_path, photos, kept, written_as):
    given = {"kept": kept, "format": written_as}
    export(tmp_path, output="out", **given)
    assert "is there already" in export(tmp_path, output="out", expect=2, **given).output
    export(tmp_path, output="out", overwrite="true", **given)
    if written_as == "links":
        (tmp_path / "out/crab/mine.txt").write_text("mine")
    else:
        (tmp_path / "out").write_bytes((tmp_path / "out").read_bytes() + b"mine")
    done = export(tmp_path, output="out", overwrite="true", expect=2, **given)
    assert "is not what an export wrote there, and is not replaced" in done.output
    assert not list(tmp_path.glob(".*.tmp"))


def test_the_originals_are_never_touched(tmp_path, photos, kept):
    there = sorted(photos.rglob("*"))
    before = {path: path.read_bytes() for path in [*there, kept] if path.is_file()}
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/notes.txt").write_text("mine")
    (tmp_path / "link").symlink_to(tmp_path / "mine/notes.txt")
    (tmp_path / "x.csv.json").write_text("{}")
    for output, told in (
        (kept, "is not what an export wrote"), (tmp_path / "mine", "is not what an export wrote"),
        (tmp_path / "link", "is not what an export wrote"), (photos / "train/new", "lies in the data"),
        (photos, "lies in the data"), (tmp_path / "x.csv", "is damaged|is not what an export wrote"),
    ):  # fmt: skip
        for written_as in ("csv", "links"):
            done = export(tmp_path, kept=kept, output=output, format=written_as, overwrite="true", expect=2)
            assert any(part in done.output for part in told.split("|")), done.output
    assert before == {path: path.read_bytes() for path in before}
    assert sorted(photos.rglob("*")) == there
    assert (tmp_path / "mine/notes.txt").read_text() == "mine"


def test_a_file_that_is_gone_is_told_before_anything_is_written(tmp_path, photos, kept):
    data = load_dataset(f"folder:{photos}")
    name = str(data.example_ids[manifest_ids(kept, data)[0]])
    (photos / "train" / as_named(name)).unlink()
    done = export(tmp_path, kept=kept, output="out", format="links", expect=2)
    assert "other data" in done.output or "are not there" in done.output
    assert not (tmp_path / "out").exists()


def test_a_class_that_keeps_nothing_is_told(tmp_path, photos):
    (tmp_path / "kept.csv").write_text("example_id\ncrab/1.png\nNA/1.png\n")
    done = export(tmp_path, kept="kept.csv", dataset=f"folder:{photos}", output="out", format="links")
    assert "4 of 6 classes keep no example" in done.output


def test_it_is_tracked_with_its_data(tmp_path, kept):
    datadiet("export", tmp_path, kept=kept, output="mine.csv")
    client = mlflow.MlflowClient(f"sqlite:///{tmp_path}/mlflow.db")
    experiment = client.get_experiment_by_name("datadiet")
    assert experiment is not None
    (run,) = client.search_runs([experiment.experiment_id])
    assert run.data.tags["datadiet.kind"] == "export"
    assert (run.data.params["cfg.written_as"], run.data.metrics["export/kept"]) == ("csv", 30)
    assert {a.path for a in client.list_artifacts(run.info.run_id)} == {"mine.csv", "mine.csv.json"}
    told = json.loads((tmp_path / "mine.csv.json").read_text())
    assert (told["num_kept"], told["written_as"], told["kept_by"]) == (30, "csv", "random")
