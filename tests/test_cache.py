"""The cache of built datasets: equal to what was built, and believed only where nobody else can have written it."""

import json
import os
import time
import warnings
import zlib

import numpy as np
import pytest
from archives import flip, python, write_npz
from conftest import end_of

from datadiet import home
from datadiet.data import cache
from datadiet.data.registry import build_dataset, load_dataset
from datadiet.errors import UserError

pytestmark = pytest.mark.usefixtures("own_cache")


def entries(tmp_path):
    return [path for path in (tmp_path / "cache").iterdir() if not path.name.startswith(".")]


def test_a_second_load_maps_the_cache_and_is_equal(npz, monkeypatch):
    first = load_dataset(f"npz:{npz}")
    monkeypatch.setattr("datadiet.data.registry.build_dataset", None)  # the source is not read again
    second = load_dataset(f"npz:{npz}")
    for field in vars(first):
        one, other = getattr(first, field), getattr(second, field)
        assert type(one) is type(other)
        assert np.array_equal(one, other)
        if isinstance(one, np.ndarray):
            assert one.dtype == other.dtype
    assert isinstance(second.train_images.base, np.memmap)
    assert not second.train_images.flags.writeable


def test_changed_data_is_never_served_stale(npz, tmp_path):
    first = load_dataset(f"npz:{npz}")
    status = npz.stat()
    write_npz(npz, seed=1)
    os.utime(npz, ns=(status.st_atime_ns, status.st_mtime_ns))  # size and time of modification as before
    assert npz.stat().st_size == status.st_size
    second = load_dataset(f"npz:{npz}")
    assert second.fingerprint != first.fingerprint
    assert second.fingerprint == build_dataset(f"npz:{npz}").fingerprint
    assert len(entries(tmp_path)) == 2


@pytest.mark.parametrize("name", ["train_images.npy", "example_ids.npy", "record.json", None])
def test_a_damaged_entry_is_said_and_written_anew(npz, tmp_path, name):
    first = build_dataset(f"npz:{npz}")
    load_dataset(f"npz:{npz}")
    entry = entries(tmp_path)[0]
    if name is None:
        (entry / "test_labels.npy").unlink()
    elif name == "record.json":
        (entry / name).write_text("{")
    else:
        flip(entry / name, -100)
    with pytest.warns(UserWarning, match=r"damaged cache entry is written anew"):
        second = load_dataset(f"npz:{npz}")
    assert np.array_equal(second.train_images, first.train_images)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert load_dataset(f"npz:{npz}").fingerprint == first.fingerprint


def test_a_key_is_of_the_files_wherever_they_are_named_from(tmp_path, monkeypatch):
    files = [tmp_path / "a/one.png", tmp_path / "b/one.png"]
    for file in files:
        file.parent.mkdir()
        file.write_bytes(b"1")
    monkeypatch.chdir(tmp_path / "a")
    found = cache.key("x", files)
    assert found == cache.key("x", list(map(str, files))) == cache.key("x", ["one.png", "../b/one.png"])
    assert found != cache.key("x", files[::-1])
    assert cache.key("x", ["/etc/../etc/hostname"]) == cache.key("x", ["/etc/hostname"])


def test_a_cache_that_cannot_be_written_is_said(npz, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("DATADIET_CACHE", str(tmp_path / "file" / "cache"))
    with pytest.warns(UserWarning, match=r"cannot be written .*DATADIET_CACHE"):
        assert load_dataset(f"npz:{npz}").num_examples == 20


def test_files_that_change_while_they_are_read_are_refused(npz, monkeypatch):
    build = build_dataset

    def slow(*arguments):
        built = build(*arguments)
        write_npz(npz, seed=2)
        return built

    monkeypatch.setattr("datadiet.data.registry.build_dataset", slow)
    with pytest.raises(UserError, match=r"changed while they were read"):
        load_dataset(f"npz:{npz}")


def test_what_a_killed_process_left_is_no_entry(npz, tmp_path):
    name = f"npz:{npz}"
    path = cache.entry_path(name, cache.key(name, [npz]))
    leftover = path.with_name(f".{path.name}.tmp")
    leftover.mkdir(parents=True)
    (leftover / "train_images.npy").write_bytes(b"half")
    assert load_dataset(name).num_examples == 20
    assert not leftover.exists()


def test_processes_that_load_at_once_write_one_entry(npz, tmp_path):
    code = "import sys; from datadiet.data.registry import load_dataset; print(load_dataset(sys.argv[1]).fingerprint)"
    children = [python(code, f"npz:{npz}", cache=tmp_path / "cache") for _ in range(2)]
    outputs = [end_of(child) for child in children]
    assert {out.strip() for out, _ in outputs} == {load_dataset(f"npz:{npz}").fingerprint}, outputs
    assert len(entries(tmp_path)) == 1


def test_fifty_thousand_images_are_ready_in_under_a_second(tmp_path):
    x = np.zeros((60_000, 32, 32, 3), np.uint8)
    x[:, 0, 0, 0] = np.arange(60_000) % 251
    y = np.arange(60_000) % 10
    np.savez(tmp_path / "big.npz", x_train=x[:50_000], y_train=y[:50_000], x_test=x[50_000:], y_test=y[50_000:])
    load_dataset(f"npz:{tmp_path / 'big.npz'}")
    begin = time.thread_time()  # its own seconds, whoever else computes
    dataset = load_dataset(f"npz:{tmp_path / 'big.npz'}")
    assert time.thread_time() - begin < 1.0
    assert np.array_equal(dataset.train_images[::997], x[:50_000:997])


@pytest.mark.parametrize("mask", [0o000, 0o002, 0o022, 0o077, 0o277, 0o777])
def test_what_the_cache_makes_is_its_owners_alone_whatever_the_umask(npz, tmp_path, monkeypatch, mask):
    monkeypatch.setenv("DATADIET_CACHE", str(tmp_path / "above" / "cache"))
    before = os.umask(mask)
    try:
        load_dataset(f"npz:{npz}")
    finally:
        os.umask(before)
    made = list((tmp_path / "above").rglob("*"))
    assert len(made) > 5
    for path in [tmp_path / "above", *made]:
        assert path.name.endswith(".lock") or path.stat().st_mode & 0o777 == (0o700 if path.is_dir() else 0o600), path
    monkeypatch.setattr("datadiet.data.registry.build_dataset", None)  # the source is not read again
    assert load_dataset(f"npz:{npz}").num_examples == 20


def poison(entry):
    """Other labels with a checksum that is theirs."""
    labels = np.load(entry / "train_labels.npy")[::-1].copy()
    np.save(entry / "train_labels.npy", labels)
    record = json.loads((entry / "record.json").read_text())
    record["checksums"]["train_labels"] = zlib.crc32(labels.data)
    (entry / "record.json").write_text(json.dumps(record))


@pytest.mark.parametrize("open_", ["cache", "entry", "train_labels.npy", "record.json"])
def test_what_others_may_write_is_not_believed(npz, tmp_path, open_):
    labels = load_dataset(f"npz:{npz}").train_labels.copy()  # which are mapped
    (entry,) = entries(tmp_path)
    poison(entry)
    path = {"cache": entry.parent, "entry": entry}.get(open_, entry / open_)
    path.chmod(path.stat().st_mode | 0o020)
    with pytest.warns(UserWarning, match=r"the cache is not used, others may write to .*: .*Set DATADIET_CACHE"):
        assert np.array_equal(load_dataset(f"npz:{npz}").train_labels, labels)
    assert entry.exists(), "nothing is deleted"


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a file to another")
@pytest.mark.parametrize("given", ["cache", "entry", "train_labels.npy"])
def test_what_another_user_wrote_is_not_believed(npz, tmp_path, given):
    labels = load_dataset(f"npz:{npz}").train_labels.copy()  # which are mapped
    (entry,) = entries(tmp_path)
    poison(entry)
    os.chown({"cache": entry.parent, "entry": entry}.get(given, entry / given), 4242, 4242)
    with pytest.warns(UserWarning, match=r"the cache is not used, .* belongs to another user \(uid 4242\)"):
        assert np.array_equal(load_dataset(f"npz:{npz}").train_labels, labels)


def test_an_entry_in_the_place_of_another_is_not_believed(npz, tmp_path):
    load_dataset(f"npz:{npz}")
    (first,) = entries(tmp_path)
    write_npz(npz, seed=1)
    second = cache.entry_path(f"npz:{npz}", cache.key(f"npz:{npz}", [npz]))
    first.rename(second)
    with pytest.warns(UserWarning, match=r"damaged cache entry is written anew \(it was written as"):
        assert load_dataset(f"npz:{npz}").fingerprint == build_dataset(f"npz:{npz}").fingerprint


def test_a_place_for_the_cache_that_another_prepared_is_not_used(npz, tmp_path, monkeypatch):
    (shared := tmp_path / "tmp").mkdir()
    shared.chmod(0o1777)
    monkeypatch.setenv("DATADIET_CACHE", str(shared))
    with pytest.warns(UserWarning, match=r"others may write to .* \(mode 1777\)"):
        load_dataset(f"npz:{npz}")
    assert not list(shared.iterdir())


def test_an_older_cache_in_the_home_folder_is_closed_to_others(npz, tmp_path, monkeypatch):
    monkeypatch.delenv("DATADIET_CACHE")
    monkeypatch.setenv("HOME", str(tmp_path))
    (own := tmp_path / ".cache" / "datadiet").mkdir(parents=True)
    own.chmod(0o775)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        load_dataset(f"npz:{npz}")
    assert own.stat().st_mode & 0o777 == 0o700
    assert list(own.glob("*/record.json"))


def test_compiled_programs_are_their_owners_alone(tmp_path, monkeypatch):
    for name in ("JAX_COMPILATION_CACHE_DIR", "DATADIET_CACHE", "MPLCONFIGDIR"):
        monkeypatch.setenv(name, "")  # to be put back
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path))
    before = os.umask(0)
    try:
        home.settle(print)
    finally:
        os.umask(before)
    folder = tmp_path / ".cache" / "datadiet" / "xla"
    assert os.environ["JAX_COMPILATION_CACHE_DIR"] == str(folder)
    assert [path.stat().st_mode & 0o777 for path in (folder, *folder.parents[:2])] == [0o700] * 3
    monkeypatch.delenv("JAX_COMPILATION_CACHE_DIR")
    folder.rmdir()
    (others := tmp_path / "others").mkdir()
    others.chmod(0o777)
    folder.symlink_to(others)
    home.settle(print)
    assert os.environ["JAX_COMPILATION_CACHE_DIR"] != str(folder)
    assert others.stat().st_mode & 0o777 == 0o777, "what a link leads to is not this program's own"
