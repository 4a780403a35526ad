"""Reads folders prepared by tensorflow-datasets as array_record; needs no TensorFlow.

Canonical order is the source's, not that of the records, which tfds shuffles by a hash of each
example's key: examples that carry an id go by it; where keys are known to be 0..N-1 the shuffle
is inverted; of anything else the record order is all there is.
"""

from __future__ import annotations

import hashlib
import json
import logging
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from datadiet import commands
from datadiet.data.dataset import Splits
from datadiet.data.reading import Reading
from datadiet.data.sources.base import DATA_ROOT, Obstacles, prepare_command
from datadiet.data.sources.images import read_images
from datadiet.data.sources.published import CONTENTS, verify_content
from datadiet.data.sources.splits import choose, divide, parted
from datadiet.errors import UserError
from datadiet.home import expanded
from datadiet.intake import check_size, read_bytes, size_of
from datadiet.printable import from_bytes

MOST = 10**9  # examples in a split
INFO = 2**24  # bytes of dataset_info.json
BLOCK = 1000  # records fetched at once: twice as fast as one by one
COUNTS = {"cifar10": (50_000, 10_000), "cifar100": (50_000, 10_000)}  # what must be found, train and test
COUNTED_KEYS = ("mnist", "fashion_mnist", "kmnist")  # builders whose keys are 0..N-1, in the order of their files
TEST_SPLITS = ("test", "validation")


def root(data_dir: Path | None) -> Path:
    """The TFDS data_dir."""
    return expanded(data_dir or DATA_ROOT)


def find(tfds_name: str, name: str, data_dir: Path | None) -> Path:
    """The folder of the newest prepared version.

    Args:
        tfds_name: NAME or NAME/CONFIG, as tfds calls it.
        name: As datadiet calls it, for the error.
    Raises:
        UserError: nothing is prepared there.
    """
    parent = root(data_dir) / tfds_name
    versions = {
        tuple(map(int, path.parent.name.split("."))): path.parent
        for path in parent.glob("*/dataset_info.json")
        if re.fullmatch(r"\d+\.\d+\.\d+", path.parent.name)
    }
    if not versions:
        configs = sorted({path.parent.parent.name for path in parent.glob("*/*/dataset_info.json")})
        hint = f" (there are {', '.join(f'tfds/{tfds_name}/{config}' for config in configs)})" if configs else ""
        raise UserError(
            f"{name}: not prepared in {parent}{hint}. Training never downloads: prepare it with "
            f"{prepare_command(name, data_dir)}."
        )
    return versions[max(versions)]


def read_info(folder: Path, name: str) -> dict[str, Any]:
    """dataset_info.json of a prepared folder that holds array_record files.

    Raises:
        UserError: it is damaged, or the records are of another format.
    """
    try:
        info = json.loads(read_bytes(folder / "dataset_info.json", INFO))
        formats = [info.get("fileFormat", "tfrecord"), *info.get("alternativeFileFormats", [])]
        info["lengths"] = {split["name"]: sum(map(int, split["shardLengths"])) for split in info["splits"]}
        info["bytes"] = sum(int(split.get("numBytes", 0)) for split in info["splits"])
        if not all(0 <= length <= MOST for length in info["lengths"].values()):
            raise ValueError(f"splits of {info['lengths']} examples")
    except (OSError, ValueError, KeyError, AttributeError, TypeError, RecursionError) as error:
        raise damaged(folder, name, error) from error
    if "array_record" not in formats:
        convert = commands.shell(
            "tfds", "convert_format", f"--dataset_version_dir={folder}", "--out_file_format=array_record"
        )
        raise UserError(
            f"{name}: {folder} holds {'/'.join(formats)} files; expected array_record. Convert them where TensorFlow "
            f"is installed with `{convert}`, "
            f"or prepare afresh in another folder with {prepare_command(name, 'FOLDER')}."
        )
    return info


def damaged(folder: Path, name: str, error: object) -> UserError:
    return UserError(
        f"{name}: {folder} is damaged ({str(error).strip()[:300]}). Prepare it afresh in another folder: "
        f"{prepare_command(name, 'FOLDER')}."
    )


def prepared_files(tfds_name: str, name: str, data_dir: Path | None, reading: Reading) -> list[Path]:
    """Every file of the prepared folder that its content depends on."""
    folder = find(tfds_name, name, data_dir)
    read_info(folder, name)
    return [folder / "dataset_info.json", *sorted(folder.glob("features.json")), *sorted(folder.glob("*array_record*"))]


def count_prepared(tfds_name: str, name: str, data_dir: Path | None, reading: Reading) -> int:
    """N: a published number, known before the data is there; of another dataset, from its dataset_info.json."""
    if name in COUNTS:
        return COUNTS[name][0]
    folder = find(tfds_name, name, data_dir)
    lengths = read_info(folder, name)["lengths"]
    if "train" not in lengths:
        raise UserError(f"{name}: no train split in {folder}; it has {', '.join(lengths)}.")
    return lengths["train"]


def inverse_shuffle(split: str, count: int) -> np.ndarray:
    """Record position of each key 0..N-1, int64 [N], in a split that tfds has shuffled.

    tfds sorts examples by md5(split name + key); the records of all shards in turn are sorted.
    """
    salted = hashlib.md5(split.encode(), usedforsecurity=False)

    def key_hash(key: int) -> bytes:
        digest = salted.copy()
        digest.update(str(key).encode())
        return digest.digest()

    hashes = [key_hash(key) for key in range(count)]
    positions = np.empty(count, np.int64)
    positions[np.array(sorted(range(count), key=hashes.__getitem__), np.int64)] = np.arange(count)
    return positions


def _splits(obstacles: Obstacles, folder: Path, lengths: dict[str, int], reading: Reading) -> list[str]:
    """The splits to train and to test on; the first alone, where a fraction of it is to be tested on.

    Raises:
        UserError: there are none.
    """
    expected = f"{folder} has the splits {', '.join(lengths)}; expected train, and {' or '.join(TEST_SPLITS)}"
    train, test = choose(obstacles, {split: count > 0 for split, count in lengths.items()}, reading, expected)
    if train is None:
        obstacles.add(expected)
    obstacles.check()
    return [split for split in (train, test) if split]


def _feature_names(builder: Any, name: str) -> tuple[str, str]:
    """Names of the image and of the label feature."""
    import tensorflow_datasets as tfds

    features = dict(builder.info.features.items())
    supervised = builder.info.supervised_keys or ()
    found = []
    for kind, wanted in ((tfds.features.Image, "image"), (tfds.features.ClassLabel, "label")):
        candidates = [key for key, feature in features.items() if isinstance(feature, kind)]
        chosen = [key for key in candidates if key in supervised] or candidates
        if len(chosen) != 1 and wanted in chosen:
            chosen = [wanted]
        if len(chosen) != 1:
            raise UserError(
                f"{name}: its features are {', '.join(features)}, of which {len(chosen)} could be the {wanted}; "
                "expected a dataset of images with one class label each."
            )
        found += chosen
    return found[0], found[1]


class _Undecoded:
    """A decoder that leaves bytes as they are; that of tfds fails for sequences."""

    def setup(self, *, feature: Any) -> None:
        pass

    def decode_example_np(self, example: Any) -> Any:
        return example

    decode_batch_example_np = decode_ragged_example_np = decode_example_np


def _undecoded(feature: Any) -> Any:
    """Decoders for a feature and those in it: tfds would decode every image, by whatever its bytes ask for."""
    import tensorflow_datasets as tfds

    if isinstance(feature, tfds.features.FeaturesDict):
        return {name: _undecoded(inner) for name, inner in feature.items()}
    return _undecoded(feature.feature) if isinstance(feature, tfds.features.Sequence) else _Undecoded()


def _read_split(builder: Any, split: str, image: str, label: str, stored: int) -> list[dict[str, Any]]:
    """Examples in the order of their records, with the image undecoded.

    Args:
        stored: Bytes of all record files.
    """
    decoders = {key: _undecoded(feature) for key, feature in builder.info.features.items() if key != label}
    records = builder.as_data_source(split, decoders=decoders, file_format="array_record")
    positions, examples, taken = range(len(records)), [], 0
    for i in range(0, len(records), BLOCK):
        examples += records.__getitems__(list(positions[i : i + BLOCK]))
        taken += sum(len(example[image]) for example in examples[i:])
        check_size(f"{builder.info.full_name}: its {split} images", taken, stored)
    return examples


def _stored(folder: Path, name: str, declared: int) -> int:
    """Bytes of a prepared folder, once every file in it is one that may be opened.

    Args:
        declared: Bytes of its examples, as it says.
    Raises:
        UserError: it names what is no file, or what would take more memory than its size explains.
    """
    stored = sum(size_of(path) for path in folder.iterdir() if not path.is_dir())
    check_size(f"{name}: {folder}", declared, stored)
    return stored


def _in_source_order(records: list[dict], builder_name: str, split: str) -> tuple[list[dict], list[str]]:
    """Records of a split in canonical order, and the names of the examples."""
    ids = [record.get("id") for record in records]
    if ids and all(isinstance(value, bytes) for value in ids):
        order = np.argsort(np.array(ids), kind="stable")
        return [records[i] for i in order], [from_bytes(ids[i]) for i in order]
    if builder_name in COUNTED_KEYS:
        records = [records[i] for i in inverse_shuffle(split, len(records))]
    return records, [f"{split}_{i:05d}" for i in range(len(records))]


def _check_published(tfds_name: str, folder: Path, splits: Splits) -> None:
    """Refuse other data than were published, where that can be known: a folder keeps nothing of their archives."""
    if tfds_name in CONTENTS:
        arrays = [array.astype(np.uint8) for array in splits[:4]]
        verify_content(tfds_name, [folder] * 4, [a[..., 0] if a.ndim == 4 else a for a in arrays])


def load_prepared(tfds_name: str, name: str, data_dir: Path | None, reading: Reading) -> Splits:
    """The training and the test set of a folder prepared as array_record; without a test set, a fraction is one.

    Raises:
        UserError: not prepared, of another format, damaged, without a test split, not images
            with class labels, not the number of examples it must have, or known to be other data.
    """
    import tensorflow_datasets as tfds

    logging.getLogger("absl").setLevel(logging.ERROR)  # it recommends OpenCV, which is not used
    folder = find(tfds_name, name, data_dir)
    info = read_info(folder, name)
    obstacles = Obstacles(name)
    chosen = _splits(obstacles, folder, info["lengths"], reading)
    counts = tuple(info["lengths"][split] for split in chosen)
    stored = _stored(folder, name, info["bytes"])
    if counts != (expected := COUNTS.get(name, counts)):
        got = f"{' + '.join(map(str, counts))} examples, expected {expected[0]} + {expected[1]}"
        raise damaged(folder, name, got)
    try:
        builder: Any = tfds.builder_from_directory(folder)
        image, label = _feature_names(builder, name)
        read = [_read_split(builder, split, image, label, stored) for split in chosen]
    except UserError:
        raise
    except Exception as error:  # whatever a damaged features.json leads to, or array_record says of damage
        raise damaged(folder, name, error) from error
    if tuple(map(len, read)) != counts:
        raise damaged(folder, name, f"{' + '.join(map(str, map(len, read)))} records, {counts} announced")
    splits = _as_splits(obstacles, read, chosen, builder, reading)
    _check_published(tfds_name, folder, splits)
    return splits


def _as_splits(
    obstacles: Obstacles, read: list[list[dict]], chosen: list[str], builder: Any, reading: Reading
) -> Splits:
    """Records of the splits that are trained and tested on, decoded."""
    name, (image, label) = obstacles.name, _feature_names(builder, obstacles.name)
    ordered = [_in_source_order(records, builder.info.name, split) for records, split in zip(read, chosen)]
    records = [record for of_split, _ in ordered for record in of_split]
    ids = np.array([one for _, of_split in ordered for one in of_split])
    if builder.info.name in CONTENTS:  # which is compared as it is
        reading = replace(reading, image_size=None)
    grey = builder.info.features[image].shape[-1] == 1
    images = read_images(
        obstacles, [f"{name}/{one}" for one in ids], lambda i: bytes(records[i][image]), reading, colour=not grey
    )
    obstacles.check()
    labels, ids = np.array([record[label] for record in records], np.int32)[images.good], ids[images.good]
    test = images.good >= len(read[0])
    if len(chosen) == 1 and reading.test_fraction is not None:
        test = divide(name, ids, labels, reading.test_fraction)
    class_names = tuple(builder.info.features[label].names or ())[: 1 + max(record[label] for record in records)]
    return parted(name, images.pixels, labels, ids, test, class_names, images.skipped)
