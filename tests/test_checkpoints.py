"""Checkpoints come back bit for bit, old ones too; what is damaged, newer or another network's is refused by name."""

from __future__ import annotations

import json
import re
import shutil
import sys
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import PROJECT, call

from datadiet.config import TrainConfig, resolve
from datadiet.errors import UserError
from datadiet.models.registry import build_model
from datadiet.storage import checkpoints, files
from datadiet.storage.leaves import leaf_facts
from datadiet.storage.records import Arguments, DataFacts, MadeAs
from datadiet.storage.runs import open_run
from datadiet.training.state import TrainState, initial_state

FILES = {"arrays.npz", "checkpoint.json", "files.json", "_CHECKPOINT_METADATA", "commit_success.txt"}


class Counts(NamedTuple):
    """As the statistics of a trajectory."""

    seen: jax.Array
    right: jax.Array


@pytest.fixture(scope="module")
def state():
    config = resolve(TrainConfig(model="mlp", width=8), 1438)
    return initial_state(build_model("mlp", 10, (8, 8, 1), width=8), config, 1438)


@pytest.fixture(scope="module")
def odd():
    """Leaves of many types and shapes, at the edges of what they hold."""
    bits = np.arange(2**16, dtype=np.uint16)
    params = {
        "bfloat16": jnp.asarray(bits).view(jnp.bfloat16),  # all there are, NaNs of every kind among them
        "float16": jnp.asarray(bits).view(jnp.float16).reshape(256, 2, 128),
        "float32": jnp.array([0.0, -0.0, np.inf, -np.inf, np.nan, 1e-45], jnp.float32),
        "none": jnp.zeros((0, 3)),
        "a/b": {"c": jnp.float32(1.5)},
        "a": {"b": {"c": jnp.bfloat16(2.5)}, "empty": {}},
    }
    counted = Counts(jnp.arange(5, dtype=jnp.int8), jnp.array([True, False, True, True, False]))
    optimizer = (Counts(jnp.uint32(7), {"empty": {}, "trace": jnp.ones((2, 1, 3))}), (), jnp.int32(-1))
    return TrainState(jnp.int32(3), params, {}, optimizer, jnp.zeros(2), {"counts": counted})


def check_same(found: Any, expected: Any) -> None:
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    for (path, one), other in zip(jax.tree_util.tree_leaves_with_path(found), jax.tree.leaves(expected)):
        assert (one.dtype, one.shape) == (other.dtype, other.shape), path
        assert np.asarray(one).tobytes() == np.asarray(other).tobytes(), path


def save_unnumbered(run_dir: Path, state: TrainState, seconds: dict[str, float]) -> None:
    """As they were saved before formats had numbers."""
    import orbax.checkpoint as ocp

    path, trees = run_dir / "ckpts" / str(int(state.step)), checkpoints._trees(jax.device_get(state))
    arguments = {name: ocp.args.StandardSave(tree) for name, tree in trees.items()}
    hashes = {
        name: {
            jax.tree_util.keystr(at): checkpoints.leaf_hash(np.atleast_1d(leaf))
            for at, leaf in jax.tree_util.tree_leaves_with_path(tree)
        }
        for name, tree in trees.items()
    }
    arguments |= {"hashes": ocp.args.JsonSave(hashes), "seconds": ocp.args.JsonSave(seconds)}
    ocp.Checkpointer(ocp.CompositeCheckpointHandler()).save(path, args=ocp.args.Composite(**arguments))
    checkpoints._seal(path)


def test_checkpoints_come_back_leaf_by_leaf(tmp_path, state):
    checkpoints.save_checkpoint(tmp_path, state, {"train": 1.5})
    assert checkpoints.checkpoint_steps(tmp_path) == [0]
    check_same(checkpoints.load_variables(tmp_path, 0), state.variables)
    check_same(checkpoints.load_state(tmp_path, 0, like=state), state)
    assert checkpoints.load_seconds(tmp_path, 0) == {"train": 1.5}
    for load in (checkpoints.load_variables, checkpoints.load_seconds):
        with pytest.raises(UserError, match=r"No checkpoint of step 7 in .*; there is: 0\."):
            load(tmp_path, 7)
    assert {p.name for p in (tmp_path / "ckpts/0").iterdir()} == FILES


def test_every_type_and_shape_comes_back_bit_for_bit(tmp_path, odd):
    checkpoints.save_checkpoint(tmp_path, odd)
    check_same(checkpoints.load_state(tmp_path, 3, like=odd), odd)
    check_same(checkpoints.load_variables(tmp_path, 3), odd.variables)


def test_numpy_alone_reads_the_arrays(tmp_path, state):
    checkpoints.save_checkpoint(tmp_path, state)
    with np.load(tmp_path / "ckpts/0/arrays.npz", allow_pickle=False) as arrays:
        kernel = arrays["variables['params']['Dense_0']['kernel']"]
        np.testing.assert_array_equal(kernel, state.params["Dense_0"]["kernel"])


def test_checkpoints_of_before_formats_had_numbers_are_read(tmp_path, state, odd):
    odd = odd._replace(params={k: v for k, v in odd.params.items() if k != "none"})  # Orbax's own are never of size 0
    for one in (state, odd):
        save_unnumbered(tmp_path, one, {"train": 1.5, "total": 2.0})
        step = int(one.step)
        assert not {p.name for p in (tmp_path / f"ckpts/{step}").iterdir()} >= FILES
        check_same(checkpoints.load_state(tmp_path, step, like=one), one)
        check_same(checkpoints.load_variables(tmp_path, step), one.variables)
        assert checkpoints.load_seconds(tmp_path, step) == {"train": 1.5, "total": 2.0}


@pytest.mark.parametrize("save", [checkpoints.save_checkpoint, save_unnumbered])
def test_each_file_that_is_missing_or_changed_is_named(tmp_path, state, save):
    save(tmp_path, state, {})
    written = [p for p in (tmp_path / "ckpts/0").rglob("*") if p.is_file()]
    random = np.random.RandomState(0)
    for file in written:
        content = file.read_bytes()
        for position in random.choice(len(content), min(5, len(content)), replace=False):
            damaged = bytearray(content)
            damaged[position] ^= 0xFF
            file.write_bytes(damaged)
            with pytest.raises(UserError, match=str(file)):
                checkpoints.load_variables(tmp_path, 0)
        file.unlink()
        for load in (checkpoints.load_variables, checkpoints.load_seconds):
            with pytest.raises(UserError, match=f"{file} is missing: this checkpoint is"):
                load(tmp_path, 0)
        file.write_bytes(content)
    check_same(checkpoints.load_state(tmp_path, 0, like=state), state)


def test_a_flipped_byte_in_a_checkpoint_is_noticed(tmp_path, state):
    checkpoints.save_checkpoint(tmp_path, state)
    blob = tmp_path / "ckpts/0/arrays.npz"
    content = blob.read_bytes()
    for position in np.random.RandomState(0).choice(len(content), 50, replace=False):
        damaged = bytearray(content)
        damaged[position] ^= 0xFF
        blob.write_bytes(damaged)
        with pytest.raises(UserError, match=f"{blob} is not what was written .*damaged; train the run again"):
            checkpoints.load_variables(tmp_path, 0)


@pytest.mark.parametrize("change", [lambda a: a + 1, lambda a: a.astype(np.float64), lambda a: a[None]])
def test_a_leaf_that_is_not_what_was_saved_is_named_even_where_the_files_are(tmp_path, state, change):
    checkpoints.save_checkpoint(tmp_path, state)
    folder, name = tmp_path / "ckpts/0", "variables['params']['Dense_1']['bias']"
    with np.load(folder / "arrays.npz", allow_pickle=False) as arrays:
        leaves = dict(arrays)
    np.savez(folder / "arrays.npz", **leaves | {name: change(leaves[name])})
    checkpoints._seal(folder)
    with pytest.raises(UserError, match="ckpts/0") as error:
        checkpoints.load_variables(tmp_path, 0)
    assert name in str(error.value)
    assert checkpoints.load_seconds(tmp_path, 0) == {}


@pytest.fixture(scope="module")
def run(tmp_path_factory, state) -> Path:
    """A run's folder with a checkpoint."""
    folder = tmp_path_factory.mktemp("root") / "exps/e/run_0"
    folder.mkdir(parents=True)
    config = resolve(TrainConfig(model="mlp", width=8), 1438)
    facts = DataFacts("f" * 64, 10, [8, 8, 1], 1438)
    Arguments(config=config, data=facts, exp="e", made_as=MadeAs("e/run_0")).write(folder / "args.json")
    checkpoints.save_checkpoint(folder, state)
    return folder


BIAS = "variables['params']['Dense_0']['bias']"


@pytest.mark.parametrize(
    ("leaf", "change", "told"),
    [
        (BIAS, lambda a: a.astype(np.float16), "Dense_0']['bias'] is float16[8]; expected float32[8]"),
        (BIAS, lambda a: a[None], "Dense_0']['bias'] is float32[1, 8]; expected float32[8]"),
        (BIAS, lambda a: a.astype(np.complex64), "Dense_0']['bias'] is complex64[8]; expected float32[8]"),
        (BIAS, lambda a: None, "Dense_0']['bias'] is missing; expected float32[8]"),
        ("variables['params']['more']", lambda a: np.ones(2), "['more'] is float64[2]; expected no such leaf"),
        ("training['step']", lambda a: a + 1, "is of step 1; expected step 0"),
    ],
)  # fmt: skip
def test_a_checkpoint_whose_hashes_were_made_anew_is_held_against_the_network(tmp_path, run, state, leaf, change, told):
    shutil.copytree(run.parents[2], tmp_path / "root")
    copy = tmp_path / "root/exps/e/run_0"
    make_anew(copy / "ckpts/0", leaf, change)
    for load in (lambda: open_run(copy).variables(0), lambda: checkpoints.load_state(copy, 0, state)):
        with pytest.raises(UserError, match="ckpts/0") as error:
            load()
        assert told in str(error.value)


def make_anew(folder: Path, leaf: str, change: Any) -> None:
    """Change a leaf (None: remove it) and all that vouches for it."""
    record = files.read_record(folder / "checkpoint.json")
    with np.load(folder / "arrays.npz", allow_pickle=False) as arrays:
        leaves = dict(arrays)
    leaves[leaf] = change(leaves.get(leaf))
    leaves = {name: array for name, array in leaves.items() if array is not None}
    np.savez(folder / "arrays.npz", **leaves)
    trees: dict = {}
    for name in leaves:
        top, *path = re.findall(r"\w+", name)
        node = trees.setdefault(top, {})
        for part in path[:-1]:
            node = node.setdefault(part, {})
        node[path[-1]] = name
    trees["variables"].setdefault("batch_stats", {})
    trees["training"]["opt_state"] = list(trees["training"]["opt_state"].values())
    facts = {name: leaf_facts(array) for name, array in leaves.items()}
    files.write_json(folder / "checkpoint.json", files.sealed(record | {"trees": trees, "leaves": facts}))
    checkpoints._seal(folder)


def test_leaves_that_changed_places_are_noticed(tmp_path, run, state):
    shutil.copytree(run, tmp_path / "run_0")
    file = tmp_path / "run_0/ckpts/0/checkpoint.json"
    record = files.read_record(file)
    one, other = (record["trees"]["training"]["opt_state"][i] for i in (0, 2))
    record["trees"]["training"]["opt_state"][0], record["trees"]["training"]["opt_state"][2] = other, one
    files.write_json(file, files.sealed(record))
    checkpoints._seal(file.parent)
    with pytest.raises(UserError, match=r"opt_state'\]\[0\] is not what was saved"):
        checkpoints.load_state(tmp_path / "run_0", 0, state)


def test_an_array_larger_than_it_is_said_to_be_takes_no_memory(tmp_path, run):
    shutil.copytree(run, tmp_path / "run_0")
    folder = tmp_path / "run_0/ckpts/0"
    with np.load(folder / "arrays.npz", allow_pickle=False) as arrays:
        leaves = dict(arrays)
    np.savez_compressed(folder / "arrays.npz", **leaves | {BIAS: np.zeros(10**7, np.float32)})
    checkpoints._seal(folder)
    with pytest.raises(UserError, match=r"Dense_0.*bias.* is larger than 32 bytes"):
        open_run(tmp_path / "run_0").variables(0)


@pytest.mark.parametrize("save", [checkpoints.save_checkpoint, save_unnumbered])
def test_a_state_under_the_number_of_another_step_is_refused_whoever_wrote_it(tmp_path, state, save):
    save(tmp_path, state, {})
    (tmp_path / "ckpts/0").rename(tmp_path / "ckpts/7")
    for load in (
        lambda: checkpoints.load_state(tmp_path, 7, like=state),
        lambda: checkpoints.load_variables(tmp_path, 7),
        lambda: checkpoints.load_seconds(tmp_path, 7),
    ):
        with pytest.raises(UserError, match=r"ckpts/7 is of step 0; expected step 7"):
            load()


def test_a_checkpoint_that_does_not_say_whose_it_is_is_refused_in_a_run_that_does(tmp_path, run, state):
    checkpoints.save_checkpoint(tmp_path, state)
    shutil.copytree(run, tmp_path / "run_0")
    shutil.rmtree(tmp_path / "run_0/ckpts/0")
    shutil.copytree(tmp_path / "ckpts/0", tmp_path / "run_0/ckpts/0")
    with pytest.raises(UserError, match=r"ckpts/0 does not say which run it is of"):
        open_run(tmp_path / "run_0").variables(0)


def test_a_changed_leaf_of_an_unnumbered_checkpoint_is_named(tmp_path, state, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(checkpoints, "leaf_hash", lambda leaf: "of something else")
        save_unnumbered(tmp_path, state, {})
    with pytest.raises(UserError, match=r"ckpts/0: variables\['params'\].* is not what was saved"):
        checkpoints.load_variables(tmp_path, 0)


def test_a_newer_format_is_refused(tmp_path, state):
    checkpoints.save_checkpoint(tmp_path, state)
    file = tmp_path / "ckpts/0/checkpoint.json"
    assert json.loads(file.read_text())["format"] == checkpoints.FORMAT == 1
    files.write_json(file, files.sealed({"format": 2, "all else": "is different"}))
    (tmp_path / "ckpts/0/arrays.npz").unlink()
    for load in (checkpoints.load_variables, checkpoints.load_seconds):
        with pytest.raises(
            UserError, match=f"{file}: written by a newer version .*format 2; this version knows formats up to 1"
        ):
            load(tmp_path, 0)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (
            lambda s: s._replace(params=s.params | {"float16": jnp.zeros((2, 3), jnp.float16)}),
            r"variables\['params'\]\['float16'\] is float16\[256, 2, 128\]; expected float16\[2, 3\]",
        ),
        (
            lambda s: s._replace(sums=s.sums.astype(jnp.int32)),
            r"training\['sums'\] is float32\[2\]; expected int32\[2\]",
        ),
        (lambda s: s._replace(step=jnp.zeros(1, jnp.int32)), r"training\['step'\] is int32\[\]; expected int32\[1\]"),
        (
            lambda s: s._replace(params=s.params | {"new": jnp.ones(1)}),
            r"variables\['params'\]\['new'\] is missing; expected float32\[1\]",
        ),
        (
            lambda s: s._replace(opt_state=s.opt_state[:2]),
            r"training\['opt_state'\]\[2\] is int32\[\]; expected no such leaf",
        ),
        (lambda s: s._replace(batch_stats={"mean": jnp.ones(1)}), r"\['batch_stats'\]\['mean'\] is missing"),
        (lambda s: s._replace(trajectory={}), "ckpts/3 has statistics counts; expected none"),
    ],
)
def test_a_checkpoint_of_another_network_is_refused_by_the_leaf(tmp_path, odd, change, told):
    checkpoints.save_checkpoint(tmp_path, odd)
    with pytest.raises(UserError, match=told):
        checkpoints.load_state(tmp_path, 3, like=change(odd))


def test_a_whole_checkpoint_is_not_written_over(tmp_path, state):
    checkpoints.save_checkpoint(tmp_path, state)
    with pytest.raises(UserError, match="ckpts/0 cannot be written: File exists"):
        checkpoints.save_checkpoint(tmp_path, state._replace(sums=state.sums + 1))
    check_same(checkpoints.load_state(tmp_path, 0, like=state), state)


def test_all_is_on_disk_before_the_seal(tmp_path, state, monkeypatch):
    done, sync, write = [], files.sync_folder, files.write_json
    monkeypatch.setattr(files, "sync_folder", lambda path: (done.append(path), sync(path)))
    monkeypatch.setattr(files, "write_json", lambda path, value: (done.append(path), write(path, value)))
    checkpoints.save_checkpoint(tmp_path, state)
    folder = tmp_path / "ckpts/0"
    sealed = done.index(folder / "files.json")
    assert {folder, *(folder / name for name in FILES - {"files.json"})} <= set(done[:sealed])
    assert done[-1] == folder.parent


def test_importing_does_nothing_else(tmp_path):
    code = (
        "import logging, sys, datadiet, datadiet.storage.runs\n"
        "print([m for m in ('orbax', 'orbax.checkpoint', 'tensorstore') if m in sys.modules])\n"
        "print([n for n in ('', 'absl', 'asyncio') if logging.getLogger(n).level not in (0, logging.WARNING)])\n"
    )
    done = call([sys.executable, "-c", code], PROJECT, tmp_path)
    assert (done.stdout, done.stderr) == ("[]\n[]\n", "")
    shutil.rmtree(tmp_path)
