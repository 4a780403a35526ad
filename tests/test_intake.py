"""What comes from elsewhere: pipes, bombs and numbers that nothing has are one message, before memory is taken."""

import io
import json
import os
import shutil
import signal
import struct
import time
import tracemalloc
import zipfile
import zlib
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from archives import png
from conftest import PATIENCE, datadiet
from PIL import Image
from test_records import CONFIG

from datadiet import intake
from datadiet.data.prepare import prepare
from datadiet.data.registry import load_dataset
from datadiet.data.sources.embedded import read_idx
from datadiet.errors import UserError
from datadiet.storage.files import read_json, read_lines, sealed, write_json
from datadiet.storage.manifests import find_manifest
from datadiet.storage.records import Arguments, DataFacts, Summary
from datadiet.storage.runs import open_run
from datadiet.storage.score_files import load_scores
from datadiet.study.plan_file import read_plan
from datadiet.train_config import TrainConfig

LIMIT = 2**28  # bytes that a refusal may take
ALLOW = r"environment variable DATADIET_MAX_GB=\d"


@pytest.fixture(autouse=True)
def surroundings(tmp_path, monkeypatch):
    """An own cache; what waits for a pipe is ended."""
    monkeypatch.setenv("DATADIET_CACHE", str(tmp_path / "cache"))
    signal.alarm(PATIENCE)
    yield
    signal.alarm(0)


def refused(call, message):
    """Refused with a message, in little time of its own and little memory."""
    pool = pa.default_memory_pool()
    before, begin = pool.max_memory(), time.thread_time()
    tracemalloc.start()
    with pytest.raises(UserError, match=message) as caught:
        call()
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert time.thread_time() - begin < 5, "seconds; a fifth of one on a quiet machine"
    assert max(peak, pool.max_memory() - before) < LIMIT
    assert len(str(caught.value)) < 2000
    return str(caught.value)


# --- what is no file --------------------------------------------------------------------------


READERS = {
    "plan": read_plan,
    "args.json": lambda path: open_run(path.parent).config,
    "record": Summary.read,
    "json": read_json,
    "lines": read_lines,
    "scores": load_scores,
    "manifest": lambda path: find_manifest(TrainConfig(selector="manifest", manifest=str(path)), path),
    "npz": lambda path: load_dataset(f"npz:{path}"),
    "archive": lambda path: prepare("cifar10", path.parent, archive=path, download=False),
    "idx": read_idx,
}


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("kind", ["pipe", "device"])
def test_what_is_no_file_is_refused_by_name_and_not_opened(tmp_path, reader, kind):
    path = tmp_path / ("args.json" if reader == "args.json" else "given")
    os.mkfifo(path) if kind == "pipe" else path.symlink_to("/dev/zero")
    refused(lambda: READERS[reader](path), f"{path}|{path.parent} holds no training run")


def test_a_pipe_among_files_of_parquet_or_tfds_is_not_opened(tmp_path):
    os.mkfifo(tmp_path / "train.parquet")
    with pytest.warns(UserWarning, match="1 are pipes, sockets or devices"):
        refused(lambda: load_dataset(f"parquet:{tmp_path}"), "no train split")
    (folder := tmp_path / "cifar10" / "3.0.2").mkdir(parents=True)
    os.mkfifo(folder / "dataset_info.json")
    refused(
        lambda: load_dataset("cifar10", tmp_path), r"dataset_info\.json is a pipe \(FIFO\); expected a regular file"
    )


def test_a_pipe_as_table_or_plugin_is_refused(tmp_path, monkeypatch):
    os.mkfifo(tmp_path / "given.py")
    assert "is a pipe" in datadiet("results", tmp_path, expect=2, output="given.py", exps_path=".").stderr
    monkeypatch.setenv("DATADIET_PLUGINS", str(tmp_path / "given.py"))
    assert "is a pipe" in datadiet("sync", tmp_path, expect=2).stderr


# --- arrays -----------------------------------------------------------------------------------


def npy(shape, dtype="|u1", body=b""):
    buffer = io.BytesIO()
    np.lib.format.write_array_header_1_0(buffer, {"descr": dtype, "fortran_order": False, "shape": shape})
    return buffer.getvalue() + body


def npz(path, x_train, repeat=0):
    """x_train is the begin of its file, followed by so many MB of zeros."""
    y = npy((20,), "|u1", bytes(range(10)) * 2)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
        for name, content in (("y_train", y), ("x_test", npy((20, 2), "|u1", bytes(40))), ("y_test", y)):
            file.writestr(f"{name}.npy", content)
        with file.open("x_train.npy", "w", force_zip64=True) as member:
            member.write(x_train)
            for _ in range(repeat):
                member.write(bytes(10**6))
    return f"npz:{path}"


@pytest.mark.parametrize(
    ("shape", "dtype"),
    [((10**7, 10**4, 10**4, 3), "|u1"), ((10**12,), "<U0"), ((2, 2), "|V1000000000"), ((-5, 4), "|u1")],
)
def test_an_array_that_claims_more_than_it_has_is_refused(tmp_path, shape, dtype):
    name = npz(tmp_path / "a.npz", npy(shape, dtype))
    refused(lambda: load_dataset(name), "cannot be read as npz .*(its header says|negative)")
    (tmp_path / "scores.npy").write_bytes(npy(shape, dtype))
    refused(lambda: load_scores(tmp_path / "scores.npy"), r"scores\.npy: not readable as a \.npy array")
    (tmp_path / "X_train.npy").write_bytes(npy(shape, dtype))
    refused(lambda: load_dataset("cinic10", tmp_path), r"X_train\.npy cannot be read")


def test_an_array_that_unpacks_to_more_than_its_file_explains_is_refused(tmp_path, monkeypatch):
    name = npz(tmp_path / "a.npz", npy((20, 10**6, 15)), repeat=300)
    refused(
        lambda: load_dataset(name), rf"x_train: 300 MB when read, out of \d+ kB; expected at most 268 MB\. .*{ALLOW}"
    )
    monkeypatch.setenv("DATADIET_MAX_GB", "0.01")
    refused(lambda: load_dataset(name), "expected at most 10 MB")
    monkeypatch.setenv("DATADIET_MAX_GB", "much")
    refused(lambda: load_dataset(name), "DATADIET_MAX_GB=much: expected a number of gigabytes above 0")


def test_what_is_allowed_is_read(tmp_path, monkeypatch):
    name = npz(tmp_path / "a.npz", npy((20, 2), "|u1", bytes(40)))
    monkeypatch.setenv("DATADIET_MAX_GB", "0.00000001")
    refused(lambda: load_dataset(name), "y_train: 20 bytes when read, .*expected at most 10 bytes")
    monkeypatch.setenv("DATADIET_MAX_GB", "0.1")
    assert load_dataset(name).image_shape == (2,)


def test_more_than_the_machine_has_is_refused(tmp_path, monkeypatch):
    """Neither memory nor the disk, where images are put else."""
    monkeypatch.setattr(intake, "memory", lambda: 10**6)
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: SimpleNamespace(free=10**6))
    for split in ("train", "test"):
        for label in "ab":
            (tmp_path / split / label).mkdir(parents=True)
            (tmp_path / split / label / "0.png").write_bytes(png(np.zeros((400, 400, 3), np.uint8)))
    refused(
        lambda: load_dataset(f"folder:{tmp_path}"), r"4 images of 400 x 400 pixels: 1\.92 MB of memory; there are 1 MB"
    )


def test_an_idx_file_is_unpacked_no_further_than_it_says(tmp_path):
    path = tmp_path / "a"
    path.write_bytes(struct.pack(">HBB3I", 0, 8, 3, 2**20, 2**20, 2**20))
    refused(lambda: read_idx(path), "when read, out of 16 bytes")
    packed = zlib.compressobj(wbits=31)
    (tmp_path / "b.gz").write_bytes(
        packed.compress(struct.pack(">HBBI", 0, 8, 1, 3))
        + b"".join(packed.compress(bytes(10**6)) for _ in range(60))
        + packed.flush()
    )
    refused(lambda: read_idx(tmp_path / "b.gz"), r"more bytes of data where its header says \(3,\)")


# --- parquet ----------------------------------------------------------------------------------


@pytest.mark.parametrize(("repeated", "nested"), [(True, True), (True, False), (False, True)])
def test_parquet_that_unpacks_to_much_more_is_refused(tmp_path, repeated, nested):
    cell = bytes(5_000_000)
    kind = pa.struct([("bytes", pa.binary())]) if nested else pa.binary()
    part = pa.table({"image": pa.array([{"bytes": cell} if nested else cell] * 20, kind), "label": [0, 1] * 10})
    for split in ("train", "test"):
        with pq.ParquetWriter(
            tmp_path / f"{split}.parquet", part.schema, compression="zstd", use_dictionary=repeated,
            dictionary_pagesize_limit=10**9,
        ) as file:  # fmt: skip
            for _ in range(5):  # 500 MB
                file.write_table(part)
    assert (tmp_path / "train.parquet").stat().st_size < 50_000
    told = rf"train\.parquet: .* when read, out of [\d.]+ kB; expected at most 67\.1 MB\. .*{ALLOW}"
    del part
    refused(lambda: load_dataset(f"parquet:{tmp_path}"), told)


def test_many_labels_of_few_bytes_are_refused(tmp_path):
    for split in ("train", "test"):
        labels = pa.array(np.zeros(10**8 // 8, np.int8))
        table = pa.table({"image": pa.nulls(len(labels), pa.binary()), "label": labels})
        pq.write_table(table, tmp_path / f"{split}.parquet", compression="zstd")
    refused(lambda: load_dataset(f"parquet:{tmp_path}"), r"100 MB when read, out of [\d.]+ kB")


def test_nested_metadata_of_parquet_are_passed_over(tmp_path):
    for split in ("train", "test"):
        table = pa.table({"image": [png(np.full((4, 4), i, np.uint8)) for i in range(4)], "label": [0, 1, 0, 1]})
        deep = b"[" * 100_000
        pq.write_table(table.replace_schema_metadata({"huggingface": deep}), tmp_path / f"{split}.parquet")
    assert load_dataset(f"parquet:{tmp_path}").class_names == ()


# --- images -----------------------------------------------------------------------------------


def claiming(width, height):
    """A PNG of so many pixels by its header, with next to nothing in it."""

    def chunk(name, content):
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(9))) + chunk(b"IEND", b"")


def in_folder(path, content):
    for split in ("train", "test"):
        for label in "ab":
            (path / split / label).mkdir(parents=True)
            (path / split / label / "0.png").write_bytes(content)
    return f"folder:{path}"


def in_parquet(path, content):
    for split in ("train", "test"):
        pq.write_table(pa.table({"image": [content] * 4, "label": [0, 1, 0, 1]}), path / f"{split}.parquet")
    return f"parquet:{path}"


WAYS = pytest.mark.parametrize("placed", [in_folder, in_parquet])


@WAYS
@pytest.mark.parametrize(
    ("size", "told"), [((2600, 2600), f"2600 x 2600 pixels: 20.3 MB when read, out of .* {ALLOW}"),
                       ((10_000, 10_000), "100000000 pixels"), ((30_000, 30_000), "900000000 pixels")],
)  # fmt: skip
def test_an_image_that_claims_more_pixels_than_its_file_explains_is_refused(tmp_path, placed, size, told):
    refused(lambda: load_dataset(placed(tmp_path, claiming(*size))), told)


def saved(kind):
    buffer = io.BytesIO()
    Image.linear_gradient("L").resize((8, 8)).convert("RGB").save(buffer, kind)
    return buffer.getvalue()


@WAYS
@pytest.mark.parametrize("kind", ["EPS", "PDF", "ICO", "JPEG2000", "TGA", "PCX", "SGI", "IM"])
def test_other_decoders_are_not_asked_whatever_the_bytes_say(tmp_path, monkeypatch, placed, kind):
    monkeypatch.setattr("PIL.EpsImagePlugin.Ghostscript", lambda *given, **more: pytest.fail("Ghostscript was run"))
    refused(lambda: load_dataset(placed(tmp_path, saved(kind))), "cannot be read as an image .*cannot identify")


@WAYS
@pytest.mark.parametrize("kind", ["PNG", "JPEG", "BMP", "GIF", "WEBP", "TIFF", "PPM"])
def test_formats_of_pictures_are_read(tmp_path, placed, kind):
    assert load_dataset(placed(tmp_path, saved(kind))).image_shape == (8, 8, 3)


# --- plans ------------------------------------------------------------------------------------


ALIASES = "a: &a [x,x,x,x,x,x,x,x,x]\n" + "".join(
    f"{name}: &{name} [{','.join([f'*{before}'] * 9)}]\n" for before, name in zip("abcdefgh", "bcdefghi")
)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        (ALIASES, r"line 2 has \*a; expected option names and values"),
        ("[" * 100_000, "not readable as YAML or JSON"),
        ("{a: " * 30_000, "nested values"),
        ("- " * 60_000, "nested values"),
        ("? " * 60_000, "nested values"),
        ("exp: !!python/object/apply:os.system ['true']", "line 1 has tag:yaml.org,2002:python"),
        ("exp: !!set {a, b}", "line 1 has tag"),
        ("score_runs: " + "1" * 100_000, "a value of 100000 characters; expected at most 3000"),
        ("x: " + "1" * 10**6, "1 MB; expected at most 131 kB"),
        ("score_steps: [" + "1," * 20_000 + "]", "has 20000 values; expected at most 1000"),
        ("lr: 0.1\nlr: 0.2", "lr is there twice"),
        ("? [a]\n: 1", "a list where a name should stand"),
        ("exp: a\n---\nexp: b", "expected a single document"),
        ("", "empty; expected option names"),
        ("exp: \0", "not readable"),
        (b"exp: caf\xe9", "not readable .*utf-8"),
    ],
)
def test_a_plan_that_makes_much_of_little_is_one_message(tmp_path, text, told):
    (path := tmp_path / "plan.yaml").write_bytes(text if isinstance(text, bytes) else text.encode())
    refused(lambda: read_plan(path), rf"plan=.*plan\.yaml: .*{told}")


@pytest.mark.parametrize(
    "text", [f"score_runs: {10**30}", "score_runs: 0x" + "f" * 2000, "exp: 2001-99-99", "size: 1:30:00"]
)
def test_numbers_and_dates_that_cannot_be_are_one_message(tmp_path, text):
    (tmp_path / "plan.yaml").write_text(text + "\ndataset: no such data\n")
    done = datadiet("study", tmp_path, expect=2, plan="plan.yaml")
    assert done.stderr.count("Error") == 1
    assert not (tmp_path / "exps").exists()


def test_values_of_a_plan_are_as_they_would_be_typed(tmp_path):
    plan = {"lr": 0.1, "exp": None, "selectors": [], "fractions": [0.5, 0.3], "augment": False, "dataset": "null"}
    (tmp_path / "plan.json").write_text(json.dumps(plan))
    expected = {
        "lr": "0.1",
        "exp": "auto",
        "selectors": "none",
        "fractions": "0.5,0.3",
        "augment": "false",
        "dataset": "null",
    }
    assert read_plan(tmp_path / "plan.json") == expected
    text = "lr: 0.10\nexp: ~\nselectors: []\nfractions: [.5, 0.3]\naugment: no\ndataset: 'null'\nruns: 010\nsize:\n"
    (tmp_path / "plan.yaml").write_text("\ufeff" + text)
    told = {"lr": "0.10", "fractions": ".5,0.3", "augment": "no", "runs": "010", "size": "auto"}
    assert read_plan(tmp_path / "plan.yaml") == expected | told


# --- records ----------------------------------------------------------------------------------


ARGUMENTS = Arguments(config=CONFIG, data=DataFacts("f" * 64, 10, [8, 8, 1], 1438, [0.5], [0.25])).as_json()


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("[" * 100_000, "not readable as JSON"),
        ('{"a": ' * 100_000, "not readable as JSON"),
        ("[" * 900 + "]" * 900, "expected a JSON object"),
        ('{"num_steps": ' + "1" * 10**6 + "}", "not readable as JSON .*digits"),
        ('{"num_steps": ' + "1" * 30 + "}", "a whole number of 30 digits"),
        ("{" + '"a":1,' * 10**5, "not readable as JSON"),
        (b"\xff\xfe{", "not readable as JSON"),
        ("null", "expected a JSON object, got NoneType"),
    ],
)
def test_json_from_elsewhere_is_one_message(tmp_path, text, told):
    (path := tmp_path / "args.json").write_bytes(text if isinstance(text, bytes) else text.encode())
    refused(lambda: Arguments.read(path), told)
    refused(lambda: Summary.read(path), told)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("num_steps", 10**18),
        ("save_steps", 0),
        ("width", -1),
        ("lr", 1e300),
        ("decay_steps", [10**18]),
        ("early_step", -1),
    ],
)
def test_options_that_no_run_has_are_refused_by_name(tmp_path, name, value):
    write_json(tmp_path / "args.json", sealed(ARGUMENTS | {name: value}))
    refused(lambda: open_run(tmp_path).config, rf"args\.json: {name}=.*expected .* It is damaged")


@pytest.mark.parametrize(
    ("name", "value"),
    [("num_classes", 10**12), ("num_classes", 0), ("image_shape", [10**6, 10**6, 3]), ("image_shape", []),
     ("image_shape", [8, 8, 1, 1]), ("image_shape", [-8, -8, 1]), ("num_examples", -5)],
)  # fmt: skip
def test_facts_that_no_data_has_are_refused_by_name(tmp_path, name, value):
    write_json(tmp_path / "args.json", sealed(ARGUMENTS | {"data": ARGUMENTS["data"] | {name: value}}))
    refused(lambda: open_run(tmp_path).config, rf"args\.json: {name}=.*expected .* It is damaged")


def test_more_text_than_any_has_is_refused(tmp_path):
    with open(tmp_path / "args.json", "wb") as file:
        file.truncate(2**41)  # which takes no place on disk
    refused(lambda: open_run(tmp_path).config, rf"args\.json: 2\.2e\+03 GB|2199 GB; expected at most .*{ALLOW}")
    refused(lambda: load_scores(tmp_path / "args.json"), "2199 GB")


# --- archives ---------------------------------------------------------------------------------


def test_an_archive_is_compared_with_the_published_one_before_it_is_opened(tmp_path, monkeypatch):
    monkeypatch.setattr("tarfile.open", lambda *given, **more: pytest.fail("it was opened"))
    with open(tmp_path / "CINIC-10.tar.gz", "wb") as file:
        file.truncate(2**40)
    refused(
        lambda: load_dataset("cinic10", tmp_path), r"1099511627776 bytes; expected 687544992 bytes with md5 6ee4d0c9"
    )


def test_a_folder_of_tfds_that_declares_more_than_it_can_have_is_refused(tmp_path, monkeypatch):
    (folder := tmp_path / "cifar10" / "3.0.2").mkdir(parents=True)
    splits = [
        {"name": "train", "shardLengths": ["50000"], "numBytes": str(10**13)},
        {"name": "test", "shardLengths": ["10000"]},
    ]
    info = {"fileFormat": "array_record", "name": "cifar10", "splits": splits}
    (folder / "dataset_info.json").write_text(json.dumps(info))
    refused(lambda: load_dataset("cifar10", tmp_path), rf"10000 GB when read, out of .*{ALLOW}")
    splits[0]["shardLengths"] = ["9" * 18]
    (folder / "dataset_info.json").write_text(json.dumps(info))
    refused(lambda: load_dataset("tfds/cifar10", tmp_path), "is damaged")
    (folder / "dataset_info.json").write_text("[" * 100_000)
    refused(lambda: load_dataset("tfds/cifar10", tmp_path), "is damaged")
