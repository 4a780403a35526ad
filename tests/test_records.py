"""Files of the mirror have a format: an older one is read, a newer one refused by name, a damaged one too."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from datadiet.config import resolve
from datadiet.errors import UserError
from datadiet.storage.files import sealed, write_json
from datadiet.storage.records import (
    Arguments,
    CellRecord,
    DataFacts,
    KeptRecord,
    MeanRecord,
    MirrorRecord,
    StudyRecord,
    Summary,
)
from datadiet.storage.score_files import ScoreRecord
from datadiet.tracking.record import Record
from datadiet.train_config import TrainConfig

CONFIG = resolve(TrainConfig(model="mlp", width=8, trajectory=("forget", "aum"), decay_steps=(3, 5)), 1438)
RECORDS: list[MirrorRecord] = [
    Arguments(config=CONFIG, data=DataFacts("f" * 64, 10, [8, 8, 1], 1438, [0.5], [0.25]), exp="e"),
    Summary(
        path="e/run_0", dataset="digits", model="mlp", scored_by="full data", num_kept=5, num_examples=5,
        train_acc=1.0, test_acc=0.5, test_acc_per_class=[1.0, None], kept_per_class=[3, 2], seconds=1.5,
    ),
    ScoreRecord(
        type="l2_error", step=4, runs=[0, 1], sha256="0", dataset="digits", fingerprint="f", ids_sha256="1",
        num_examples=1,
    ),
    KeptRecord(options={"selector": "random", "size": 2}, kept_by="random", dataset="digits", fingerprint="f",
               num_kept=2, sha256="0"),
    StudyRecord(
        plan={"margin": 0.5}, dataset="digits", fingerprint="f", num_examples=5, model="mlp", budget="iterations",
        score_runs=["s/full_data/run_0"], means=[MeanRecord("l2_error", 4, "s/ckpt_4.npy")],
        cells=[CellRecord("random", "random", None, None, 2, 0.4, ["s/random/size_2/run_1"], {"balance": "equal"})],
    ),
    Record(None, "train", "e/run_0", {"cfg.lr": 0.1}, {"datadiet.kind": "train"}, metrics=[[1, 2, {"a": 0.5}]]),
]  # fmt: skip
KINDS = [type(record).__name__ for record in RECORDS]


def test_every_kind_of_file_is_here():
    kinds = {kind for kind in MirrorRecord.__subclasses__() if kind.__module__.startswith("datadiet.")}
    assert kinds == set(map(type, RECORDS))


@pytest.fixture(params=RECORDS, ids=KINDS)
def record(request) -> MirrorRecord:
    return request.param


def values_of(path: Path) -> dict:
    return json.loads(path.read_text())


def test_what_is_written_comes_back(record, tmp_path):
    path = tmp_path / "file.json"
    record.write(path)
    assert values_of(path)["format"] == type(record).FORMAT
    found = type(record).read(path)
    assert found.as_json() == record.as_json()


def test_a_newer_format_is_refused_by_name(record, tmp_path):
    path, known = tmp_path / "file.json", type(record).FORMAT
    write_json(path, sealed({"format": known + 1, "all else": "is different"}))
    told = rf"file\.json: written by a newer version .*format {known + 1}; .* formats up to {known}\)"
    with pytest.raises(UserError, match=told):
        type(record).read(path)


def test_a_file_of_before_formats_had_numbers_is_read(record, tmp_path):
    path = tmp_path / "file.json"
    values = record.as_json()
    del values["format"]
    write_json(path, sealed(values))
    assert type(record).read(path).as_json() == record.as_json()


@pytest.mark.parametrize("wrong", [None, [], {}, "x", 1.5, True])
def test_an_entry_of_another_type_is_refused_by_name(record, tmp_path, wrong):
    path, values = tmp_path / "file.json", record.as_json()
    for name, value in values.items():
        if name == "format" or (isinstance(record, Arguments) and name not in ("data", "num_steps")):
            continue
        kinds = (int, float) if isinstance(value, int | float) and not isinstance(value, bool) else type(value)
        if isinstance(wrong, kinds) or wrong is None or isinstance(record, KeptRecord):
            continue
        write_json(path, sealed(values | {name: wrong}))
        with pytest.raises(UserError, match=rf"file\.json: {name}=.* is not what was written there"):
            type(record).read(path)


def test_a_changed_file_is_refused(record, tmp_path):
    path = tmp_path / "file.json"
    record.write(path)
    write_json(path, values_of(path) | {"dataset": "another", "name": "another", "exp": "another"})
    with pytest.raises(UserError, match="its hash differs"):
        type(record).read(path)
