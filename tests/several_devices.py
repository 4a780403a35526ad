"""What several devices promise, in a process that has four of them: `test_devices.py` begins it, where XLA is told to
make four of a CPU."""

from __future__ import annotations

import shutil
from functools import partial

import jax
import numpy as np
import pytest
from conftest import QUICK, datadiet, drawn_variables
from flax import linen as nn
from test_large import same, small_parts, trained
from test_per_example import Tied

from datadiet.devices import Devices
from datadiet.models.networks import BatchNorm, Conv, Network
from datadiet.models.registry import MODELS, Model
from datadiet.scores.checkpoint import compute_many
from datadiet.training.state import on_device, on_disk

EVERY = {"trajectory": ("forget", "first_learned", "aum", "tdds")}

small_parts = small_parts  # a fixture


class Normed(nn.Module):
    """A convolution, batch norm of what it gives, and a dense layer."""

    num_classes: int
    width: int
    dtype: object

    @nn.compact
    def __call__(self, x, train):
        x = nn.relu(BatchNorm(use_running_average=not train)(Conv(self.width, (3, 3), (2, 2))(x)))
        return nn.Dense(self.num_classes)(x.mean((1, 2)))


def on(devices: int, place=on_device):
    """Where `trained` puts data."""
    return partial(place, devices=Devices.asked(str(devices)))


def agree(one, other, places=1e-4) -> None:
    """To rounding; whole numbers and answers to the last bit."""
    for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True):
        if np.issubdtype(np.asarray(a).dtype, np.floating):
            np.testing.assert_allclose(a, b, rtol=places, atol=places)
        else:
            np.testing.assert_array_equal(a, b)


@pytest.fixture(scope="module")
def alone():
    """By one device, and by three, which do not divide a batch of 32: 11, 11 and 10."""
    return trained(on(1), **EVERY)[0]


@pytest.fixture(scope="module")
def three():
    return trained(on(3), **EVERY)[0]


def test_a_training_is_that_of_one_device_to_rounding_and_its_counts_to_the_last(alone, three):
    """State, metrics, answers to the test set, and every statistic that is gathered."""
    agree(three, alone)


@pytest.mark.parametrize(("devices", "other"), [(1, 3), (3, 1)])
def test_a_run_goes_on_with_another_number_of_devices(alone, three, devices, other):
    before = {1: alone, 3: three}[devices]
    at = [step for step, *_ in before].index(25)
    rest = trained(on(other), states=[jax.tree.map(jax.numpy.asarray, before[at][1])], **EVERY)[0]
    agree(rest, alone[at + 1 :])


def test_several_runs_in_turn_are_those_that_each_is_alone(three):
    agree(trained(on(3), runs=(0, 2), **EVERY)[0], three)


def test_several_runs_in_one_program_are_those_of_one_device(monkeypatch):
    given = {"runs": (0, 2), "num_steps": 10, "log_steps": 5}
    one = trained(on(1), **given)
    monkeypatch.setattr("datadiet.training.loop.on_cpu", lambda: False)
    agree(trained(on(4), **given), one)


@pytest.mark.parametrize("cpu", [True, False], ids=["gradients_for_a_cpu", "gradients_of_xla"])
def test_batch_norm_and_its_gradients_are_of_the_whole_batch(monkeypatch, cpu):
    monkeypatch.setitem(MODELS, "normed", Model(Normed, 4, None))
    monkeypatch.setattr("datadiet.models.conv.on_cpu", lambda: cpu)
    jax.clear_caches()
    given = {"model": "normed", "width": 4, "augment": True, "num_steps": 4, "log_steps": 2}
    agree(trained(on(3), **given), trained(on(1), **given), 1e-3)


def test_images_that_stay_on_disk_give_the_same_bytes(small_parts):
    given = {"num_steps": 10, "log_steps": 5}
    device = trained(on(4), **given)
    assert same(trained(on(4, on_disk), **given), device)
    assert same(trained(on(4), **given), device), "repeating is exact"


def test_losses_choose_the_epochs_that_they_do_on_one_device_and_a_batch_may_be_smaller_than_the_devices():
    given = {"selector": "infobatch", "size": 15, "train_batch_size": 3, "num_steps": 12, "test_batch_size": 2}
    agree(trained(on(4), **given), trained(on(1), **given))


@pytest.mark.parametrize(
    ("network", "kinds"),
    [
        (Network(Normed(3, 4, None), (6, 6, 1)), ("grad_norm", "l2_error", "prototype")),
        (Network(Tied(), (9,)), ("grad_norm",)),
    ],
    ids=["by_layer", "by_example"],
)
@pytest.mark.filterwarnings("ignore:grad_norm")
def test_scores_are_those_of_one_device(network, kinds):
    """For any number of examples, also where there are fewer than devices."""
    variables = drawn_variables(network)
    images = np.random.RandomState(0).normal(size=(37, *network.image_shape)).astype(np.float32)
    given = kinds, network, variables, images, np.arange(37) % 3
    one = compute_many(*given, 8)
    agree(compute_many(*given, 3, devices=Devices.asked("4")), one)
    agree(compute_many(*given, devices=Devices.asked("3")), one)
    found = compute_many(["grad_norm"], network, variables, images[:2], given[-1][:2], devices=Devices.asked("4"))
    agree(found["grad_norm"], one["grad_norm"][:2])


def test_commands_train_go_on_and_score_with_any_number_of_devices(tmp_path):
    given = QUICK | {"offline": "true", "exp": "e"}
    done, run = datadiet("full_data", tmp_path, **given, devices=3), tmp_path / "exps/e/run_0"
    assert "Each batch of 128 examples is split over 3 devices: 43, 43, 42." in done.output
    assert "devices" not in (run / "args.json").read_text(), "no part of what a run is"
    (forget,) = run.glob("forget_scores/ckpt_44.npy")
    before = np.load(forget)
    (run / "summary.json").unlink()
    shutil.rmtree(run / "ckpts/44")
    datadiet("full_data", tmp_path, **given, devices="all", resume="true")
    np.testing.assert_array_equal(np.load(forget), before)
    scored = {"exp": "e", "offline": "true", "step": 44, "type": "l2_error"}
    path = run / "error_l2_norm_scores/ckpt_44.npy"
    datadiet("score", tmp_path, **scored)
    one = np.load(path)
    datadiet("score", tmp_path, **scored, devices="all", overwrite="true")
    np.testing.assert_allclose(np.load(path), one, rtol=1e-4, atol=1e-5)
    refused = datadiet("full_data", tmp_path, 2, **given | {"exp": "more"}, devices=5)
    assert "devices=5: expected all, or at most 4: the cpu devices that JAX has here" in refused.output
    assert not (tmp_path / "exps/more").exists()
