"""Kernel velocity and error barriers are what their formulas say, where these can be written out."""

from __future__ import annotations

import csv
import json
from itertools import pairwise

import jax
import jax.numpy as jnp
import mlflow
import numpy as np
import pytest
from conftest import QUICK, datadiet
from flax import linen as nn

from datadiet.config import resolve
from datadiet.data.batches import Normalizer
from datadiet.data.registry import load_dataset
from datadiet.models.networks import BatchNorm, Network
from datadiet.models.registry import build_model
from datadiet.report.groups import Analysis, groups_of
from datadiet.runs.children import config_of_child
from datadiet.scores import kernel
from datadiet.scores.kernel import kernel_distance, tangent_kernel
from datadiet.storage.runs import open_run
from datadiet.train_config import TrainConfig
from datadiet.training.connectivity import barrier, between, with_own_statistics, wrong


class Normed(nn.Module):
    """Batch norm between two dense layers."""

    num_classes: int

    @nn.compact
    def __call__(self, x, train):
        x = nn.Dense(5)(x.reshape(x.shape[0], -1))
        return nn.Dense(self.num_classes)(nn.relu(BatchNorm(use_running_average=not train)(x)))


def written_out(params, images):
    """The kernel of two hidden layers of rectifiers, from products of activations and of weights, float64."""
    weights = [np.asarray(params[f"Dense_{i}"]["kernel"], np.float64) for i in range(3)]
    biases = [np.asarray(params[f"Dense_{i}"]["bias"], np.float64) for i in range(3)]
    x = images.reshape(len(images), -1).astype(np.float64)
    a = x @ weights[0] + biases[0]
    b = np.maximum(a, 0) @ weights[1] + biases[1]
    h, g = np.maximum(a, 0), np.maximum(b, 0)
    count, classes = len(x), weights[2].shape[1]
    found = np.zeros((count, classes, count, classes))
    for i in range(count):
        for j in range(count):
            for c in range(classes):
                for d in range(classes):
                    to_b = [weights[2][:, k] * (b[n] > 0) for n, k in ((i, c), (j, d))]
                    to_a = [(weights[1] @ back) * (a[n] > 0) for n, back in zip((i, j), to_b)]
                    last = (g[i] @ g[j] + 1) * (c == d)
                    found[i, c, j, d] = (
                        last + to_b[0] @ to_b[1] * (h[i] @ h[j] + 1) + to_a[0] @ to_a[1] * (x[i] @ x[j] + 1)
                    )
    return found.reshape(count * classes, count * classes)


@pytest.mark.parametrize("memory", [1, 3 * 2**13, 2**28])
def test_the_kernel_is_the_one_written_out_however_large_the_blocks(monkeypatch, memory):
    monkeypatch.setattr(kernel, "BLOCK_BYTES", memory)
    network = build_model("mlp", 3, (2, 2, 1), width=6)
    variables = network.init(jax.random.key(1))
    images = jnp.asarray(np.random.RandomState(0).normal(size=(5, 2, 2, 1)), jnp.float32)
    done = []
    found = tangent_kernel(network, variables, images, done.append)
    np.testing.assert_allclose(found, written_out(variables["params"], np.asarray(images)), rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(found, found.T)
    assert sum(done) == 5


def test_the_kernel_of_a_network_with_batch_norm_does_not_mix_examples():
    network = Network(Normed(3), (4, 4, 1))
    variables = network.init(jax.random.key(0))
    images = jnp.asarray(np.random.RandomState(0).normal(size=(3, 4, 4, 1)), jnp.float32)
    whole = tangent_kernel(network, variables, images)
    np.testing.assert_allclose(whole[:3, :3], tangent_kernel(network, variables, images[:1]), rtol=1e-3, atol=1e-4)


def test_distance_is_one_less_the_cosine():
    one, other = np.diag([1.0, 2.0]), np.diag([2.0, 0.0])
    assert kernel_distance(one, 3 * one) == pytest.approx(0)
    assert kernel_distance(one, other) == pytest.approx(1 - 2 / (np.sqrt(5) * 2))
    assert np.isnan(kernel_distance(one, 0 * one))


def test_between_two_networks_errors_are_those_of_mixed_weights():
    network = build_model("mlp", 4, (3, 3, 1), width=5)
    one, other = ends = [network.init(jax.random.key(k)) for k in (0, 1)]
    random = np.random.RandomState(0)
    images, labels = random.randint(0, 256, (50, 3, 3, 1)).astype(np.uint8), random.randint(0, 4, 50)
    prepare = Normalizer((0.5,), (0.25,))
    mixed = between(one, other, 0.25)
    assert with_own_statistics(network, mixed, [images], prepare) is mixed, "it has none"
    layers = [[end["params"][f"Dense_{i}"] for end in ends] for i in range(3)]
    x = (images.reshape(50, -1) / 255 - 0.5) / 0.25
    for position, (a, b) in enumerate(layers):
        x = x @ (0.75 * a["kernel"] + 0.25 * b["kernel"]) + 0.75 * a["bias"] + 0.25 * b["bias"]
        x = np.maximum(x, 0) if position < 2 else x
    found = wrong(network, mixed, images, labels, prepare, size=16)
    np.testing.assert_array_equal(found, np.asarray(x).argmax(-1) != labels)


def test_the_barrier_is_the_largest_error_less_the_mean_of_the_ends():
    errors = np.array([[0.1, 0.4], [0.6, 0.3], [0.3, 0.2]])
    np.testing.assert_allclose(barrier(errors), [0.6 - 0.2, 0.4 - 0.3])


def test_statistics_of_batch_norm_are_those_of_the_batches():
    """What was there before has faded; the weights stay."""
    network = Network(Normed(3), (4, 4, 1))
    fresh = network.init(jax.random.key(0))
    images = np.random.RandomState(0).randint(0, 256, (32, 4, 4, 1)).astype(np.uint8)
    prepare = Normalizer((0.5,), (0.25,))
    wild = {**fresh, "batch_stats": jax.tree.map(lambda leaf: leaf + 7, fresh["batch_stats"])}
    found = [with_own_statistics(network, one, [images] * 100, prepare) for one in (fresh, wild)]
    for one, other in zip(*(jax.tree.leaves(each["batch_stats"]) for each in found)):
        np.testing.assert_allclose(one, other, rtol=1e-2, atol=1e-2)
    x = ((images / 255 - 0.5) / 0.25).reshape(32, -1)
    entering = x @ np.asarray(fresh["params"]["Dense_0"]["kernel"])
    np.testing.assert_allclose(found[0]["batch_stats"]["BatchNorm_0"]["mean"], entering.mean(0), rtol=1e-3, atol=1e-3)
    np.testing.assert_allclose(found[0]["batch_stats"]["BatchNorm_0"]["var"], entering.var(0), rtol=1e-3, atol=1e-3)
    assert found[0]["params"] is fresh["params"]


def test_groups_are_of_equal_size_by_score_and_their_samples_drawn_by_seed():
    scores = np.repeat(np.arange(10.0), 10)[::-1]
    asked = Analysis(groups=4, kernel_examples=3, barrier_examples=100)
    groups = groups_of(scores, asked)
    assert [len(group.barrier_ids) for group in groups] == [25] * 4
    assert sorted(np.concatenate([group.barrier_ids for group in groups])) == list(range(100))
    assert all(one.high <= other.low for one, other in pairwise(groups))
    assert all(set(group.kernel_ids) <= set(group.barrier_ids) and len(group.kernel_ids) == 3 for group in groups)
    same, else_ = groups_of(scores, asked), groups_of(scores, Analysis(groups=4, kernel_examples=3, seed=1))
    assert all((a.kernel_ids == b.kernel_ids).all() for a, b in zip(groups, same))
    assert any((a.kernel_ids != b.kernel_ids).any() for a, b in zip(groups, else_))


def test_children_differ_in_their_noise_alone():
    config = resolve(TrainConfig(model="mlp", num_steps=44), 1438)
    one, other, again = (config_of_child(config, *given) for given in ((4, 0), (4, 1), (4, 0)))
    assert one == again
    assert len({config.train_seed, one.train_seed, other.train_seed}) == 3
    assert one.model_seed == other.model_seed == config.model_seed


def rows(path):
    with open(path) as file:
        return list(csv.DictReader(file))


def test_analyze_writes_tables_and_a_picture_and_tracks_them(tmp_path):
    datadiet("full_data", tmp_path, root=tmp_path, **QUICK | {"num_steps": 22, "save_steps": 11, "width": 8})
    datadiet("score", tmp_path, root=tmp_path, step=11)
    datadiet("mean_score", tmp_path, root=tmp_path, step=11, n_runs=1)
    given = {"root": tmp_path, "groups": 3, "kernel_examples": 4, "barrier_examples": 60, "points": 5, "score_step": 11}
    done = datadiet("analyze", tmp_path, spawn="0,22", **given)
    folder = tmp_path / "exps/analyze/run_0"
    assert "group 3 (score" in done.stdout
    assert {path.name for path in folder.iterdir()} >= {"dynamics.png", "velocity.csv", "barriers.csv", "analysis.json"}
    run, digits = open_run(tmp_path / "exps/full_data/run_0"), load_dataset("digits")
    scores = np.load(tmp_path / "exps/full_data/error_l2_norm_scores/ckpt_11.npy")
    groups = groups_of(scores, Analysis(groups=3, kernel_examples=4, barrier_examples=60))
    moved = rows(folder / "velocity.csv")
    assert [(row["group"], row["step"], row["next_step"]) for row in moved] == [
        (group, *steps) for steps in (("0", "11"), ("11", "22")) for group in "123"
    ]
    images = (digits.train_images[groups[2].kernel_ids] / 255 - digits.mean) / digits.std
    kernels = [written_out(run.variables(step)["params"], images) for step in (0, 11)]
    assert float(moved[2]["distance"]) == pytest.approx(kernel_distance(*kernels), rel=1e-3)
    assert float(moved[2]["velocity"]) == pytest.approx(float(moved[2]["distance"]) / (11 * 128 / 1438))
    crossed = rows(folder / "barriers.csv")
    assert len(crossed) == 2 * 3 * 5
    assert {row["barrier"] for row in crossed if row["spawn_step"] == "22"} == {"0.0"}, "children at the end are equal"
    ids = groups[0].barrier_ids
    expected = (np.asarray(run.logits(digits.train_images[ids], 22)).argmax(-1) != digits.train_labels[ids]).mean()
    at_end = next(row for row in crossed if row["spawn_step"] == "22" and row["group"] == "1")
    assert float(at_end["error"]) == pytest.approx(expected)
    (tracked,) = mlflow.search_runs(
        experiment_names=["datadiet"], filter_string="tags.`datadiet.kind` = 'analyze'", output_format="list"
    )
    history = mlflow.MlflowClient().get_metric_history(tracked.info.run_id, "ntk_velocity/group_3")
    assert [point.step for point in history] == [11, 22]
    assert json.loads((folder / "analysis.json").read_text())["spawn"] == [0, 22]
    assert "holds an analysis" in datadiet("analyze", tmp_path, expect=2, **given).stderr
    missing = datadiet("analyze", tmp_path, expect=2, steps="0,5", exp="other", **given).stderr
    assert "has no checkpoint of step 5; there are 0, 11, 22" in missing
