"""A loop of one's own has the scores of ours: by NumPy alone, saved whole, merged only where that is right."""

from __future__ import annotations

import importlib.util
import json
import os
import pickle
import subprocess
import sys
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import oracles
import oracles_trajectory
import pytest
from conftest import PROJECT, datadiet
from test_train import setup

import datadiet as dd
from datadiet.data.registry import load_dataset
from datadiet.errors import UserError
from datadiet.option import Parameters, option
from datadiet.scores import recorded, trajectory
from datadiet.scores.logits import LOGIT_SCORES
from datadiet.scores.outputs import array_from
from datadiet.scores.recorder import Told
from datadiet.scores.trajectory import TRAJECTORIES, Trajectory
from datadiet.training.step import train_step

N, C, J, DECAY = 24, 5, 4, 0.7
OWN = {"trajectory_window": J, "tdds_decay": DECAY}
EXACT = ("forget", "first_learned", "correctness", "aum")  # no exponential in them
MEANS = ("aum", "aum_prob", "confidence", "correctness", "el2n_epochs", "variability")


def epochs(count: int = 9, size: int = 6, seed: int = 0) -> list[list[tuple[np.ndarray, np.ndarray, np.ndarray]]]:
    """Batches (ids, logits, labels) of epochs, in each of which an example comes once, those after N - 2 never."""
    random = np.random.RandomState(seed)
    labels = random.randint(0, C, N)
    found = []
    for epoch in range(count):
        order = random.permutation(N - 2)
        logits = random.normal(0, 2, (N, C)).astype(np.float32)
        logits[np.arange(N), labels] += 0.3 * epoch
        found.append([(ids, logits[ids], labels[ids]) for ids in np.split(order, range(size, N - 2, size))])
    return found


def told(batches, scores="all", **own) -> dd.Recorder:
    recorder = dd.Recorder(N, C, scores, **(OWN if scores == "all" else own))
    for batch in batches:
        recorder.update(*batch)
    return recorder


def flat(history) -> list:
    return [batch for epoch in history for batch in epoch]


def equal(one: dd.Recorder, other: dd.Recorder) -> None:
    for name in one.scores:
        np.testing.assert_array_equal(one.values(name), other.values(name), err_msg=name)
    np.testing.assert_array_equal(one.presentations, other.presentations)


# --- what is gathered -------------------------------------------------------------------------


@pytest.mark.parametrize("name", TRAJECTORIES)
def test_every_statistic_equals_its_definition(name):
    batches = flat(epochs())
    found = told(batches).values(name)
    assert found.dtype == np.float32
    labels = np.zeros(N, int)
    for ids, _, row in batches:
        labels[ids] = row
    rows = [(ids, logits) for ids, logits, _ in batches]
    expected = oracles_trajectory.values(name, *zip(*rows), labels, J, DECAY)
    np.testing.assert_allclose(found, expected, rtol=2e-4, atol=1e-5)
    assert np.isnan(found[N - 2 :]).all()
    assert np.isfinite(found[: N - 2]).all()


def test_a_recorder_has_what_our_training_gathers():
    """The batches of a training of our own, replayed, and what is kept by them."""
    digits = load_dataset("digits")
    given = {"num_steps": 44, "trajectory": tuple(TRAJECTORIES), "trajectory_window": 3}
    network, train, _, config, state = setup(digits, **given)
    logits = jax.jit(lambda state, ids: network.apply_training(state.variables, train.batch(train.images[ids]))[0])
    step = jax.jit(train_step, static_argnums=(0, 1))
    recorder = dd.Recorder(digits.num_examples, 10, "all", trajectory_window=3)
    key = jax.random.key(config.train_seed)
    for ids in oracles.batch_ids(np.arange(digits.num_examples, dtype=np.int32), 128, config.train_seed, 1, 44):
        recorder.update(ids, logits(state, ids), digits.train_labels[ids])
        state = step(network, config, key, train, state, ids)
    for name, stats in state.trajectory.items():
        ours, found = TRAJECTORIES[name].values(stats, recorder.presentations > 0), recorder.values(name)
        different = ~np.isclose(found, ours, rtol=1e-3, atol=1e-4, equal_nan=True)
        assert different.sum() <= 2, f"{name}: beyond rounding at a decision boundary, by the logits of another program"
        kept = [dd.select("keep_max", np.nan_to_num(values), size=400) for values in (ours, found)]
        assert len(np.intersect1d(*kept)) >= 395, name


def test_equal_logits_give_the_bits_of_our_training():
    given, names = Parameters.of(**OWN), tuple(TRAJECTORIES)
    step = jax.jit(trajectory.update, static_argnums=2)
    stats = trajectory.start(names, trajectory.Shape(N, C), given)
    batches = flat(epochs())
    for ids, logits, labels in batches:
        one = trajectory.Batch(jnp.asarray(ids, jnp.int32), jnp.asarray(labels, jnp.int32), jnp.asarray(logits))
        stats = step(stats, one, given)
    recorder = told(batches)
    for name in names:
        ours, found = TRAJECTORIES[name].values(stats[name], recorder.presentations > 0), recorder.values(name)
        compare = np.testing.assert_array_equal if name in EXACT else np.testing.assert_allclose
        compare(found, ours, err_msg=name, **({} if name in EXACT else {"rtol": 2e-5, "atol": 2e-6}))
        everything = np.ones(N, bool)
        np.testing.assert_array_equal(
            np.isnan(recorder.values(name, everything)), np.isnan(TRAJECTORIES[name].values(stats[name], everything))
        )


def test_ours_gather_in_float32_throughout():
    """NumPy would go on in float64 where int32 divides float32; then no bits would be those of a device."""
    recorder = told(flat(epochs(3)))
    for name, stats in recorder._stats.items():
        entry, own = TRAJECTORIES[name], TRAJECTORIES[name].own(recorder._given)
        batch = Told(np.arange(6, dtype=np.int32), np.zeros(6, np.int32), np.zeros((6, C), np.float32))
        rows = entry.update(type(stats)(*(leaf[:6] for leaf in stats)), batch, *own)
        assert [row.dtype for row in rows] == [leaf.dtype for leaf in stats], name


def test_neither_needs_jax(tmp_path):
    code = f"""
import sys, numpy as np, datadiet as dd
recorder = dd.Recorder({N}, {C}, "all")
for _ in range(3):
    recorder.update(np.arange(8), np.random.normal(size=(8, {C})), np.arange(8) % {C})
found = [recorder.values(name) for name in recorder.scores]
recorder.save("state"); dd.Recorder.load("state"); recorder.merge(dd.Recorder({N}, {C}, "all"))
for kind in {list(LOGIT_SCORES)}:
    dd.scores_from_logits(kind, np.random.normal(size=(8, {C})), np.arange(8) % {C})
print(len(found), *({{"jax", "torch", "mlflow"}} & set(sys.modules)))
"""
    here = {**os.environ, "PYTHONPATH": str(PROJECT)}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=here, cwd=tmp_path)
    assert done.stdout.split() == [str(len(TRAJECTORIES))], done.stderr


class Tensor:
    """What a tensor of torch can do."""

    def __init__(self, array, dtype="torch.float32", on="cuda", grad=True) -> None:
        self.array, self.dtype, self.on, self.grad = array, dtype, on, grad

    def __array__(self, *args, **kwargs):
        raise TypeError("can't convert cuda:0 device type tensor to numpy")

    def detach(self):
        return Tensor(self.array, self.dtype, self.on, False)

    def cpu(self):
        return Tensor(self.array, self.dtype, "cpu", self.grad)

    def float(self):
        return Tensor(self.array, "torch.float32", self.on, self.grad)

    def numpy(self):
        assert self.on == "cpu"
        assert not self.grad
        assert self.dtype != "torch.bfloat16"
        return np.asarray(self.array)


def test_arrays_tensors_and_lists_give_the_same():
    batches = flat(epochs(4))
    makers = {
        "float64": lambda ids, z, y: (ids.astype(np.uint16), z.astype(np.float64), y.astype(np.int8)),
        "lists": lambda ids, z, y: (ids.tolist(), z.tolist(), y.tolist()),
        "jax": lambda ids, z, y: (jnp.asarray(ids), jnp.asarray(z), jnp.asarray(y)),
        "tensors": lambda ids, z, y: (
            Tensor(ids, "torch.int64"),
            Tensor(z, "torch.bfloat16"),
            Tensor(y, "torch.int64"),
        ),
    }
    for name, make in makers.items():
        equal(told(batches), told(make(*batch) for batch in batches))
        _, z, y = make(*batches[0])
        scores = dd.scores_from_logits("l2_error", z, y)
        np.testing.assert_array_equal(scores, dd.scores_from_logits("l2_error", *batches[0][1:]), err_msg=name)
    half = [(ids, jnp.asarray(z, jnp.bfloat16), y) for ids, z, y in batches]
    equal(told(half), told((ids, np.asarray(z, np.float32), y) for ids, z, y in half))


class Latest(NamedTuple):
    """The latest p_y, by JAX, as a plugin might have it."""

    seen: jax.Array


def test_a_statistic_from_outside_is_gathered_too(monkeypatch):
    entry = Trajectory(
        lambda shape, given: Latest(jnp.zeros(shape.examples, jnp.float32)),
        lambda stats, batch, given: Latest(jnp.asarray(given.weight * batch.true_probability)),
        lambda stats, member: np.where(member, np.asarray(stats.seen), np.nan).astype(np.float32),
        options={"weight": option(2.0, "Of it.", above=0)},
    )
    monkeypatch.setitem(TRAJECTORIES, "latest", entry)
    batches = flat(epochs(1))
    recorder = told(batches, "latest", weight=3)
    ids, logits, labels = batches[0]
    expected = 3 * np.array(oracles.softmax(logits))[np.arange(len(ids)), labels]
    np.testing.assert_allclose(recorder.values("latest")[ids], expected, rtol=1e-5)


# --- what is refused --------------------------------------------------------------------------


BATCH = (np.arange(6), np.random.RandomState(0).normal(size=(6, C)), np.arange(6) % C)
SPOILT = np.where(np.arange(6 * C).reshape(6, C) == 8, np.nan, BATCH[1])


@pytest.mark.parametrize(
    ("batch", "message"),
    [
        ((BATCH[0], SPOILT, BATCH[2]), "logits: 1 of 6 rows are not finite, the first of them row 1"),
        ((BATCH[0], BATCH[1] * 1e300, BATCH[2]), "not finite"),
        ((BATCH[0], BATCH[1][:, :3], BATCH[2]), r"logits have the shape \[6, 3\]; expected \[examples, C\] with C = 5"),
        ((BATCH[0], BATCH[1][0], BATCH[2]), r"logits have the shape \[5\]"),
        ((BATCH[0], BATCH[1] + 1j, BATCH[2]), "logits are complex128; expected real numbers"),
        ((BATCH[0], [[1, 2], [3]], BATCH[2]), "logits: no array"),
        ((BATCH[0][:5], *BATCH[1:]), r"ids have the shape \[5\]; expected \[6\]"),
        ((BATCH[0] / 2, *BATCH[1:]), "ids are float64; expected whole numbers from 0 to 23"),
        ((BATCH[0] - 1, *BATCH[1:]), "ids: -1 is among them"),
        ((BATCH[0] + N - 5, *BATCH[1:]), "ids: 24 is among them; expected whole numbers from 0 to 23"),
        ((np.r_[BATCH[0][:5], 3], *BATCH[1:]), "ids: 3 is twice in this batch"),
        ((*BATCH[:2], BATCH[2] + 1), "labels: 5 is among them; expected whole numbers from 0 to 4"),
        ((*BATCH[:2], np.eye(C)[BATCH[2]]), "labels are float64"),
        ((*BATCH[:2], np.eye(C, dtype=int)[BATCH[2]]), r"labels have the shape \[6, 5\]; expected \[6\]"),
    ],
)
def test_a_batch_that_cannot_be_is_refused_and_nothing_of_it_counts(batch, message):
    recorder = told(flat(epochs(2)))
    with pytest.raises(UserError, match=message):
        recorder.update(*batch)
    equal(recorder, told(flat(epochs(2))))


@pytest.mark.parametrize(
    ("given", "own", "message"),
    [
        ((N, C, ("forget", "auc")), {}, "scores: 'auc' is none; expected some of forget, first_learned"),
        ((N, C, ()), {}, "scores: none is named"),
        ((0, C), {}, "num_examples=0: expected a whole number of at least 1"),
        ((N, 1), {}, "num_classes=1: expected a whole number of at least 2"),
        ((N, 2.5), {}, "num_classes=2.5"),
        ((N, C, "dual"), {"trajectory_window": 2}, "trajectory_window=2: expected at least 3 presentations"),
        ((N, C, "dual"), {"trajectory_window": 4.5}, "trajectory_window=4.5"),
        ((N, C, "tdds"), {"tdds_decay": 0}, "tdds_decay=0: expected a weight above 0, at most 1"),
        ((N, C, "aum"), {"trajectory_window": 4}, "trajectory_window is no option of aum; expected none"),
        ((N, C, "dual"), {"window": 4}, "window is no option of dual; expected trajectory_window"),
    ],
)
def test_a_recorder_that_cannot_be_is_refused(given, own, message):
    with pytest.raises(UserError, match=message):
        dd.Recorder(*given, **own)


def test_a_score_that_is_not_gathered_is_refused_with_those_that_are():
    with pytest.raises(UserError, match="'dual' is not gathered here; there are forget, aum"):
        dd.Recorder(N, C, ("aum", "forget")).values("dual")
    with pytest.raises(UserError, match=r"member is int64 \[3\]; expected bool \[24\]"):
        dd.Recorder(N, C).values("forget", [1, 2, 3])


# --- files ------------------------------------------------------------------------------------


def test_a_saved_recorder_goes_on_where_it_was(tmp_path):
    history = flat(epochs())
    for at in (0, 7, len(history)):
        first = told(history[:at])
        path = first.save(tmp_path / "deep" / "state")
        assert [p.name for p in path.parent.iterdir()] == [path.name], "nothing else is left"
        again = dd.Recorder.load(tmp_path / "deep" / "state")
        for batch in history[at:]:
            again.update(*batch)
        equal(again, told(history))
    assert repr(again).startswith("Recorder(24 examples, 5 classes, scores=forget,first_learned,")


def test_a_damaged_state_is_refused(tmp_path):
    path = told(flat(epochs(2)), ("forget", "dual")).save(tmp_path)
    content = path.read_bytes()
    places = np.random.RandomState(0).randint(0, len(content), 60)
    lost = 0
    for place in places:
        spoilt = bytearray(content)
        spoilt[place] ^= 0x55
        path.write_bytes(bytes(spoilt))
        try:
            found = dd.Recorder.load(tmp_path)
        except UserError as error:
            assert str(path) in str(error)
        else:  # times and flags of the archive, which nobody reads
            equal(found, told(flat(epochs(2)), ("forget", "dual")))
            lost += 1
    assert lost < 20
    for part in (b"", content[:100], content[:-30]):
        path.write_bytes(part)
        with pytest.raises(UserError, match="no state of a recorder, or a damaged one"):
            dd.Recorder.load(tmp_path)
    with pytest.raises(UserError, match="No file .*; expected a folder that a recorder was saved to"):
        dd.Recorder.load(tmp_path / "elsewhere")


def test_a_state_of_a_newer_version_or_an_unknown_score_is_refused(tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(recorded, "FORMAT", 2)
        path = told([], "aum").save(tmp_path)
    with pytest.raises(UserError, match="written by a newer datadiet \\(format 2, here 1\\)"):
        dd.Recorder.load(tmp_path)
    path.unlink()
    with monkeypatch.context() as patch:
        patch.setitem(TRAJECTORIES, "mine", TRAJECTORIES["aum"])
        told([], "mine").save(tmp_path)
    with pytest.raises(UserError, match="scores: 'mine' is none; expected some of forget"):
        dd.Recorder.load(tmp_path)


def test_the_state_of_another_recorder_is_not_overwritten(tmp_path):
    path = told(flat(epochs(2)), "aum").save(tmp_path)
    content = path.read_bytes()
    for other in (dd.Recorder(N, C, "forget"), dd.Recorder(N + 1, C, "aum")):
        with pytest.raises(UserError, match="is of another recorder .*Choose another folder"):
            other.save(tmp_path)
    assert path.read_bytes() == content
    path.write_text(json.dumps({"a": "file of the user's"}))
    with pytest.raises(UserError, match="no state of a recorder"):
        told([], "aum").save(tmp_path)
    assert "user's" in path.read_text()
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot be written"):
        told([], "aum").save(tmp_path / "file")


# --- several processes ------------------------------------------------------------------------


def test_processes_that_merge_after_every_epoch_have_what_one_would_have():
    """The examples are dealt out anew in every epoch; all that is exact, whatever the score."""
    ranks = [told([]) for _ in range(3)]
    for epoch in epochs():
        for at, batch in enumerate(epoch):
            ranks[at % 3].update(*batch)
        gathered = [pickle.dumps(rank) for rank in ranks]
        for at, rank in enumerate(ranks):
            for other in (pickle.loads(text) for text in gathered[at + 1 :] + gathered[:at]):
                rank.merge(other)
    for rank in ranks:
        equal(rank, told(flat(epochs())))


def test_processes_that_keep_their_examples_merge_once_also_from_files(tmp_path):
    own = [[], []]
    for ids, logits, labels in flat(epochs()):
        for at in (0, 1):
            mine = ids % 2 == at
            own[at].append((ids[mine], logits[mine], labels[mine]))
    for at, batches in enumerate(own):
        half = told(batches[:15])
        half.save(tmp_path / f"rank_{at}")
        again = dd.Recorder.load(tmp_path / f"rank_{at}")
        for batch in batches[15:]:
            again.update(*batch)
        again.save(tmp_path / f"rank_{at}")
    one, other = (dd.Recorder.load(tmp_path / f"rank_{at}") for at in (0, 1))
    equal(one.merge(other), told(flat(epochs())))
    one.save(tmp_path / "both")
    with pytest.raises(UserError, match="is in this one already"):
        dd.Recorder.load(tmp_path / "both").merge(other)


@pytest.mark.parametrize("name", TRAJECTORIES)
def test_examples_told_to_both_are_joined_where_their_order_does_not_matter(name):
    history = flat(epochs())
    one, other, whole = (told(part, name) for part in (history[::2], history[1::2], history))
    before = one.values(name)
    if name in MEANS:
        found = one.merge(other).values(name)
        np.testing.assert_allclose(found, whole.values(name), rtol=1e-5, atol=1e-6)
        np.testing.assert_array_equal(one.presentations, whole.presentations)
        assert (found != before).any()
    else:
        with pytest.raises(UserError, match=f"were told to both, as example \\d+, and {name} needs the order"):
            one.merge(other)
        np.testing.assert_array_equal(one.values(name), before)


def test_a_merge_that_cannot_be_right_is_refused_and_changes_nothing():
    history = flat(epochs())
    one = told(history[:3], "aum")
    merged = told(history[:3], "aum").merge(told(history[3:4], "aum"))
    merged.update(*history[4])
    refused = {
        "got dict; expected a Recorder": {},
        "this recorder has 24 examples, 5 classes, scores=aum, the other 24": told([], "forget"),
        "this recorder has 24 examples, 5 classes, scores=aum, the other 25": dd.Recorder(N + 1, C, "aum"),
        "is in this one already": one,
        "began with different states": merged,
    }
    for message, other in refused.items():
        with pytest.raises(UserError, match=message):
            one.merge(other)
    equal(one, told(history[:3], "aum"))
    with pytest.raises(UserError, match="trajectory_window=4, the other .*trajectory_window=5"):
        told([], "dual", trajectory_window=4).merge(told([], "dual", trajectory_window=5))
    again = pickle.loads(pickle.dumps(merged))
    again._parts = {"another process"}
    with pytest.raises(UserError, match="means are joined from nothing on only"):
        merged.merge(again)


# --- the example ------------------------------------------------------------------------------


def example(name: str):
    """A module of examples/; skips the test where the library that it is for is not installed."""
    libraries = {"pytorch": "torch", "lightning": "lightning", "keras": "keras"}
    pytest.importorskip(libraries[name.partition("_")[0]])
    spec = importlib.util.spec_from_file_location(name, PROJECT / "examples" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_whole_way_in_pytorch_ends_in_a_report_that_knows_what_was_kept(tmp_path, monkeypatch):
    module = example("pytorch_decision")
    monkeypatch.chdir(tmp_path)
    for name, value in {"STEPS": 44, "SCORING": range(1), "JUDGING": range(2)}.items():
        monkeypatch.setattr(module, name, value)
    module.main()
    done = datadiet("decide", tmp_path, results="own/results.csv", dataset="digits", margin=30)
    assert "hardest by aum        719    50%" in done.output
    page = (tmp_path / "exps/decide/report.html").read_text()
    assert "datadiet decide --results own/results.csv" in page, "he has no clone to run it in"
    assert (tmp_path / "exps/decide/kept/hardest_by_aum_719.csv").exists()
    datadiet("predictions", tmp_path, files="own/logits_0.npy", step=44, dataset="digits")


@pytest.mark.parametrize("name", ["pytorch_loop", "lightning_callback", "keras_callback"])
def test_an_example_trains_and_keeps_what_our_own_statistics_would(name, monkeypatch):
    """The same logits, told to what our trainings gather by JAX, keep the same half."""
    monkeypatch.setenv("KERAS_BACKEND", "jax")
    module, told, update = example(name), [], dd.Recorder.update

    def listened(self, ids, logits, labels):
        told.append([array_from("told", one).copy() for one in (ids, logits, labels)])
        update(self, ids, logits, labels)

    monkeypatch.setattr(dd.Recorder, "update", listened)
    recorder = module.train(epochs=3)
    assert (recorder.presentations == 3).all()
    assert recorder.values("forget").max() >= 1
    stats = trajectory.start(recorder.scores, trajectory.Shape(len(recorder.presentations), 10), Parameters.of())
    for ids, logits, labels in told:
        one = (jnp.asarray(ids, jnp.int32), jnp.asarray(labels, jnp.int32), jnp.asarray(logits, jnp.float32))
        stats = trajectory.update(stats, trajectory.Batch(*one), Parameters.of())
    for kind in recorder.scores:
        ours, found = TRAJECTORIES[kind].values(stats[kind], recorder.presentations > 0), recorder.values(kind)
        np.testing.assert_array_equal(found, ours)
        kept = [dd.select("keep_max", values, size=0.5) for values in (ours, found)]
        np.testing.assert_array_equal(*kept)
