"""The mirror writes whole files, never overwrites silently, and notices damage."""

from __future__ import annotations

import json
import secrets
import shutil
from pathlib import Path

import numpy as np
import pytest

import datadiet as dd
from datadiet.config import TrainConfig, resolve
from datadiet.data import cache
from datadiet.data.batches import normalize
from datadiet.data.dataset import fingerprint
from datadiet.data.download import place
from datadiet.data.registry import load_dataset
from datadiet.errors import UserError
from datadiet.models.registry import build_model
from datadiet.runs.inputs import read_scores
from datadiet.storage.checkpoints import save_checkpoint
from datadiet.storage.claims import claim
from datadiet.storage.files import append_line, npy_parts, os, read_json, sealed, write_json
from datadiet.storage.layout import ExperimentLayout, near_root, score_file
from datadiet.storage.records import Arguments, DataFacts
from datadiet.storage.score_files import identity_of, load_scores, read_ids, save_scores
from datadiet.temporary import is_temporary, temporary_path
from datadiet.training.state import initial_state

IDENTITY = {"dataset": "toy", "fingerprint": "f" * 64, "example_ids": ["a", "b", "c"]}
VALUES = np.array([1.5, 2.5, 3.5], np.float32)


@pytest.fixture(scope="module")
def state():
    config = resolve(TrainConfig(model="mlp", width=8), 1438)
    network = build_model("mlp", 10, (8, 8, 1), width=8)
    return initial_state(network, config, 1438)


def test_places_follow_the_contract():
    layout, config = ExperimentLayout(Path("r")), TrainConfig(run=3, size=500)
    for selector, exp, path in (
        ("all", "full_data", "full_data/run_3"),
        ("random", "random_subset", "random_subset/size_500/run_3"),
        ("keep_max", "keep_max", "keep_max/size_500/run_3"),
        ("offset", "offset_subset", "offset_subset/size_500.offset_20/run_3"),
    ):
        given = TrainConfig(run=3, size=500, selector=selector, offset=20 * (selector == "offset"))
        assert layout.run(exp, given) == Path("r/exps") / path
    folder = layout.run("full_data", config)
    names = {"l2_error": "error_l2_norm_scores", "grad_norm": "grad_norm_scores", "forget": "forget_scores"}
    for kind, name in (names | {"max_margin": "max_margin_scores"}).items():
        assert score_file(folder, kind, 78) == folder / name / "ckpt_78.npy"


@pytest.mark.parametrize("exp", ["../x", "/x", "a/../b", "", ".", "a b", "a//b", "-x"])
def test_an_experiment_cannot_leave_the_mirror(exp):
    with pytest.raises(UserError, match="exp="):
        ExperimentLayout(Path("r")).experiment(exp)


def test_a_root_is_found_beside_folders_that_others_may_not_enter(tmp_path, monkeypatch):
    for folder in ("a locked one", "here", "there/exps/main"):
        (tmp_path / folder).mkdir(parents=True)
    stat = os.stat

    def refusing(path, *given, **more):
        if isinstance(path, str | os.PathLike) and "a locked one/" in os.fspath(path):
            raise PermissionError(13, "Permission denied", path)
        return stat(path, *given, **more)

    with monkeypatch.context() as patch:
        patch.setattr(os, "stat", refusing)
        assert near_root(tmp_path, "main") == tmp_path / "there"
        for name in ("listdir", "scandir"):  # of the root itself
            patch.setattr(os, name, lambda path: refusing(f"{path}/a locked one/"))
        assert near_root(tmp_path, "main") is None


def test_scores_come_back_with_their_record(tmp_path):
    path = tmp_path / "deep" / "ckpt_1.npy"
    save_scores(path, VALUES, IDENTITY, {"type": "l2_error", "step": 1, "runs": [0]})
    values, record = load_scores(path)
    np.testing.assert_array_equal(values, VALUES)
    assert read_ids(path, record).tolist() == ["a", "b", "c"]
    assert (record.type, record.step, record.package_version) == ("l2_error", 1, dd.__version__)
    assert [p.name for p in sorted(path.parent.iterdir())] == ["ckpt_1.json", "ckpt_1.npy", "ids"]


def test_names_of_examples_are_written_once_for_all_scores_of_a_data_set(tmp_path):
    exps = tmp_path / "exps"
    paths = [exps / f"full_data/run_{run}/forget_scores/ckpt_4.npy" for run in range(3)]
    for path in paths:
        path.parents[1].mkdir(parents=True)
        save_scores(path, VALUES, IDENTITY, {"step": 4}, name=path.relative_to(exps).as_posix())
    (ids,) = (exps / "ids").iterdir()
    assert [file for file in exps.rglob("*.*") if '"b"' in file.read_text("latin-1")] == [ids]
    moved = tmp_path / "elsewhere/exps"
    moved.parent.mkdir()
    exps.rename(moved)
    found = moved / paths[1].relative_to(exps)
    assert read_ids(found, load_scores(found)[1]).tolist() == ["a", "b", "c"]
    other = moved / "mean/ckpt_4.npy"
    other.parent.mkdir()
    save_scores(other, VALUES, identity_of(load_scores(found)[1]), {}, name="mean/ckpt_4.npy")
    assert read_ids(other, load_scores(other)[1]).tolist() == ["a", "b", "c"]
    ids = moved / "ids" / ids.name
    ids.write_text('["a", "c", "b"]')
    with pytest.raises(UserError, match=f"{ids.name}: not what was written there"):
        read_ids(found, load_scores(found)[1])
    save_scores(found, VALUES, IDENTITY, {}, name=found.relative_to(moved).as_posix())
    assert read_ids(found, load_scores(found)[1]).tolist() == ["a", "b", "c"], "written again where it was damaged"


def test_scores_copied_alone_are_aligned_by_names_that_are_copied_too(tmp_path):
    digits = load_dataset("digits")
    order = np.arange(1438)[::-1]
    arrays = digits.example_ids[order], digits.train_labels[order], digits.train_images[order]
    identity = {"dataset": "digits", "fingerprint": fingerprint(*arrays), "example_ids": arrays[0].tolist()}
    values = np.arange(1438, dtype=np.float32)
    told = []
    made, alone = tmp_path / "exps/e/s.npy", tmp_path / "alone/s.npy"
    for folder in (made.parent, alone.parent):
        folder.mkdir(parents=True)
    save_scores(made, values, digits.identity(), {"type": "l2_error"}, name="e/s.npy")
    for suffix in (".npy", ".json"):
        shutil.copy(made.with_suffix(suffix), alone.with_suffix(suffix))
    assert read_scores(alone, digits, told.append)[0].tolist() == values.tolist(), "its fingerprint tells"
    save_scores(made, values, identity, {"type": "l2_error"}, name="e/s.npy")
    for suffix in (".npy", ".json"):
        shutil.copy(made.with_suffix(suffix), alone.with_suffix(suffix))
    assert read_scores(made, digits, told.append)[0].tolist() == values[::-1].tolist()
    digest = load_scores(alone)[1].ids_sha256
    expected = f"missing: exps/ids/{digest}.json of the mirror .* copy that file to {alone.parent}/ids/{digest}.json"
    with pytest.raises(UserError, match=expected):
        read_scores(alone, digits, told.append)
    (alone.parent / "ids").mkdir()
    shutil.copy(tmp_path / f"exps/ids/{digest}.json", alone.parent / "ids")
    assert read_scores(alone, digits, told.append)[0].tolist() == values[::-1].tolist()
    assert [line[:8] for line in told] == ["Warning:"] * 2


def test_names_in_a_record_of_format_1_are_read(tmp_path):
    path = tmp_path / "s.npy"
    save_scores(path, VALUES, {"dataset": "toy", "fingerprint": "f"}, {})
    record = read_json(path.with_suffix(".json"))
    with pytest.raises(UserError, match="which examples it is of"):
        load_scores(path)
    write_json(path.with_suffix(".json"), sealed(record | {"format": 1, "example_ids": ["a", "b", "c"]}))
    made = load_scores(path)[1]
    assert read_ids(path, made).tolist() == identity_of(made)["example_ids"] == ["a", "b", "c"]


def test_damaged_scores_are_refused(tmp_path):
    path = tmp_path / "s.npy"
    save_scores(path, VALUES, IDENTITY, {})
    content = path.read_bytes()
    for position in range(len(content)):
        damaged = bytearray(content)
        damaged[position] ^= 1
        path.write_bytes(damaged)
        with pytest.raises(UserError, match=r"s\.npy"):
            load_scores(path)


def test_damage_without_a_record_is_an_error_or_another_number_never_a_crash(tmp_path):
    path = tmp_path / "s.npy"
    content = b"".join(map(bytes, npy_parts(VALUES)))
    for position in range(len(content)):
        damaged = bytearray(content)
        damaged[position] ^= 1
        path.write_bytes(damaged)
        try:
            values, record = load_scores(path)
            assert (values.ndim, record) == (1, None)
        except UserError as error:
            assert "s.npy" in str(error)
    path.write_bytes(content[:-3])
    with pytest.raises(UserError, match="not readable"):
        load_scores(path)


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.zeros((3, 1)), "one real number per example, got float64 of shape"),
        (np.array([{}, 1, 2], object), "not readable as a .npy array of numbers"),
        (np.array(["a", "b", "c"]), "one real number per example"),
    ],
)
def test_files_that_are_no_scores_are_refused(tmp_path, array, message):
    np.save(tmp_path / "s.npy", array, allow_pickle=True)
    with pytest.raises(UserError, match=message):
        load_scores(tmp_path / "s.npy")


def test_a_missing_score_file_is_named(tmp_path):
    with pytest.raises(UserError, match=r"No score file .*none\.npy"):
        load_scores(tmp_path / "none.npy")


def test_a_failed_write_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "f.json"
    write_json(path, {"old": 1})
    monkeypatch.setattr(os, "replace", lambda *a: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(UserError, match=r"f\.json cannot be written: disk full"):
        write_json(path, {"new": 2})
    assert json.loads(path.read_text()) == {"old": 1}
    assert [p.name for p in tmp_path.iterdir()] == ["f.json"]


def test_a_prepared_link_is_never_written_through(tmp_path, monkeypatch):
    victim, path = tmp_path / "victim", tmp_path / "f.json"
    victim.write_text("mine")
    (tmp_path / f".f.json.{os.getpid()}.tmp").symlink_to(victim)
    path.symlink_to(victim)
    write_json(path, {"new": 2})
    assert not path.is_symlink(), "the link itself is replaced"
    assert victim.read_text() == "mine"
    monkeypatch.setattr(secrets, "token_hex", lambda count: "known")
    for content in ({"target": victim}, {}):  # even were the name known
        temporary = temporary_path(path)
        temporary.symlink_to(victim) if content else temporary.touch()
        with pytest.raises(UserError, match=r"f\.json cannot be written: File exists"):
            write_json(path, {"new": 3})
        temporary.unlink()
    lines = tmp_path / "metrics.jsonl"
    lines.symlink_to(victim)
    with pytest.raises(UserError, match=r"metrics\.jsonl cannot be written"):
        append_line(lines, {"step": 1})
    assert (victim.read_text(), json.loads(path.read_text())) == ("mine", {"new": 2})


def test_names_of_temporary_files_are_drawn(tmp_path):
    names = {temporary_path(tmp_path / "f") for _ in range(100)}
    assert len(names) == 100
    assert all(map(is_temporary, names))


def test_a_published_file_is_put_in_place_without_a_link(tmp_path):
    victim, source, path = tmp_path / "victim", tmp_path / "given", tmp_path / "data/x.gz"
    path.parent.mkdir()
    victim.write_text("mine")
    source.write_bytes(b"published")
    path.with_name("x.gz.part").symlink_to(victim)
    place(source, path)
    assert (path.read_bytes(), victim.read_text()) == (b"published", "mine")
    assert sorted(p.name for p in path.parent.iterdir()) == ["x.gz", "x.gz.part"]


def test_a_cache_entry_is_written_in_a_folder_that_nobody_prepared(tmp_path):
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / ".entry.tmp").symlink_to(tmp_path / "elsewhere")
    cache.save(tmp_path / "entry", {"images": np.zeros(3), "name": "x"})
    assert cache.read(tmp_path / "entry")["name"] == "x"
    assert not list((tmp_path / "elsewhere").iterdir())


def test_a_folder_that_is_gone_is_not_made_anew(tmp_path):
    for write in (
        lambda: write_json(tmp_path / "gone/f.json", {}),
        lambda: append_line(tmp_path / "gone/f.jsonl", {"step": 1}),
        lambda: save_scores(tmp_path / "gone/e_scores/ckpt_1.npy", VALUES, IDENTITY, {}),
    ):
        with pytest.raises(UserError, match="cannot be written: No such file or directory. Its folder is gone"):
            write()
    assert list(tmp_path.iterdir()) == []


def test_an_existing_run_is_replaced_only_when_asked(tmp_path):
    run = tmp_path / "run_0"
    claim(run, overwrite=False)
    (run / "args.json").write_text("{}")
    with pytest.raises(UserError, match=r"holds an unfinished run.*--resume true.*--overwrite true"):
        claim(run, overwrite=False)
    (run / "summary.json").write_text("{}")
    with pytest.raises(UserError, match="holds a finished run"):
        claim(run, overwrite=False)
    claim(run, overwrite=True)
    assert list(run.iterdir()) == []


def test_a_folder_without_a_run_is_refused(tmp_path):
    with pytest.raises(UserError, match="holds no training run.*datadiet full_data --run 0"):
        dd.open_run(tmp_path)


def test_open_run_needs_only_the_folder(tmp_path, state):
    digits = load_dataset("digits")
    config = resolve(TrainConfig(dataset="digits", model="mlp", width=8, num_steps=5), 1438)
    facts = DataFacts(digits.fingerprint, 10, [8, 8, 1], 1438, digits.mean.tolist(), digits.std.tolist())
    Arguments(config=config, data=facts, exp="x").write(tmp_path / "args.json")
    save_checkpoint(tmp_path, state)
    run = dd.open_run(str(tmp_path))
    assert (run.config, run.steps, run.summary) == (config, [0], None)
    normalised = normalize(digits.test_images[:5], digits.mean, digits.std)
    logits = run.network.apply(state.variables, normalised)
    np.testing.assert_allclose(run.logits(normalised, 0), logits, rtol=1e-6)
    np.testing.assert_allclose(run.logits(digits.test_images[:5], 0), logits, atol=1e-5)
