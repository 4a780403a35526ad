"""Derived options follow the contract; impossible ones are refused by name."""

from __future__ import annotations

import json

import pytest

from datadiet import config as options
from datadiet.config import TrainConfig, resolve
from datadiet.errors import UserError


def test_the_papers_defaults_for_cifar():
    config = resolve(TrainConfig(run=2), 50_000)
    assert (config.num_steps, config.decay_steps, config.log_steps) == (78_000, (23_400, 46_800, 62_400), 390)
    assert (config.model_seed, config.train_seed, config.random_subset_seed) == (848526, 852726, 852910)
    assert (config.lr, config.beta, config.nesterov, config.weight_decay) == (0.1, 0.9, True, 5e-4)
    assert options.default_score_step(config) == 20 * 390


def test_every_subset_size_trains_for_the_steps_of_the_full_set():
    steps = {resolve(TrainConfig(size=size, selector="random"), 50_000).num_steps for size in (100, 25_000, 50_000)}
    assert steps == {78_000}


@pytest.mark.parametrize(
    ("given", "steps"),
    [
        ({"num_steps": 100}, list(range(0, 101, 10))),
        ({"num_steps": 10, "save_steps": 4}, [0, 4, 8, 10]),
        ({"num_steps": 10, "save_steps": 100}, [0, 10]),
        ({"num_steps": 12, "save_steps": 5, "early_step": 4, "early_save_steps": 2}, [0, 2, 4, 5, 10, 12]),
    ],
)
def test_saved_steps(given, steps):
    assert options.saved_steps(resolve(TrainConfig(**given), 1000)) == steps


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"num_steps": 0}, "num_steps=0: expected a whole number of at least 1"),
        ({"train_batch_size": -1}, "train_batch_size=-1"),
        ({"lr": float("nan")}, "lr=nan: expected a finite number"),
        ({"lr": float("inf")}, "lr=inf"),
        ({"beta": 1.0}, "beta=1.0: expected a momentum below 1"),
        ({"weight_decay": -0.1}, "weight_decay=-0.1"),
        ({"run": -1}, "run=-1"),
        ({"run": 20_000}, "seed=.*: expected a seed from 0 to"),
        ({"random_label_fraction": 1.5}, "random_label_fraction=1.5: expected a fraction from 0 to 1"),
        ({"random_label_fraction": float("nan")}, "random_label_fraction=nan"),
        ({"compute_dtype": "float16"}, "compute_dtype=float16: expected one of float32, bfloat16"),
        ({"decay_steps": (5, 0)}, "decay_steps"),
        ({"size": 0}, "size=0: expected at least 1"),
        ({"size": 1001}, "size=1001: the training set has 1000 examples"),
        ({"size": 800, "offset": 300}, "size=800 after skipping offset=300"),
    ],
)
def test_impossible_options_are_refused(given, message):
    with pytest.raises(UserError, match=message):
        resolve(TrainConfig(**given), 1000)


def test_a_config_survives_json():
    config = resolve(TrainConfig(decay_steps=(1, 2)), 1000)
    assert options.from_dict(json.loads(json.dumps(options.as_dict(config)))) == config


def test_differences_name_the_options_but_no_locations():
    one = options.as_dict(TrainConfig(data_dir="here"))
    other = options.as_dict(TrainConfig(data_dir="there", lr=0.2))
    assert options.differences(one, other) == {"lr": (0.1, 0.2)}


def test_every_option_has_a_help_text():
    for option in options.FIELDS.values():
        assert option.help.endswith("."), option.name
        assert option.default is not None or option.auto, option.name
