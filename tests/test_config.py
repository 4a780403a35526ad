"""Derived options follow the contract; impossible ones are refused by name."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest

from datadiet import config as options
from datadiet.config import TrainConfig, resolve
from datadiet.errors import UserError
from datadiet.option import check_values, option
from datadiet.train_config import DERIVED, ResolvedConfig


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
        ({"num_steps": 10, "checkpoints": False}, []),
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
        ({"checkpoints": False, "trajectory": ("aum",)}, "checkpoints=false: expected true, because trajectory=aum"),
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


def test_a_resolved_config_is_of_a_type_of_its_own_in_which_nothing_is_derived():
    config = resolve(TrainConfig(), 1000)
    assert type(config) is ResolvedConfig
    assert all(getattr(config, name) is not None for name in DERIVED)
    assert options.resolve(config, 1000) == config
    assert list(options.as_dict(config)) == list(options.as_dict(TrainConfig()))
    with pytest.raises(TypeError, match="num_steps=None in a resolved config"):
        dataclasses.replace(config, num_steps=None)


def test_seeds_that_were_derived_follow_the_run_and_seeds_that_were_given_stay():
    config = resolve(TrainConfig(run=1, train_seed=7), 1000)
    stored = options.from_dict(json.loads(json.dumps(options.as_dict(config))))
    for resolved in (config, stored):
        again = resolve(dataclasses.replace(resolved, run=3), 1000)
        assert again == dataclasses.replace(resolved, run=3) == resolve(TrainConfig(run=3, train_seed=7), 1000)
        assert dataclasses.replace(resolved, run=3, model_seed=5).model_seed == 5
        moved = dataclasses.replace(dataclasses.replace(resolved, model_seed=5), run=3)
        assert (moved.model_seed, moved.random_subset_seed) == (5, again.random_subset_seed)


@pytest.mark.parametrize(
    ("name", "text", "value"),
    [
        ("lr", "1e-3", 0.001), ("num_steps", "auto", None), ("num_steps", "7", 7), ("nesterov", "False", False),
        ("decay_steps", "1, 2", (1, 2)), ("decay_steps", "none", ()), ("trajectory", "aum,forget", ("aum", "forget")),
    ],
)  # fmt: skip
def test_an_option_reads_text(name, text, value):
    assert options.find_option(name).parse(text) == value


@pytest.mark.parametrize(("name", "text"), [("lr", "x"), ("num_steps", "1.5"), ("nesterov", "maybe"), ("run", "auto")])
def test_text_of_another_type_is_no_value(name, text):
    with pytest.raises(ValueError, match=r"."):
        options.find_option(name).parse(text)


def test_any_dataclass_of_options_is_checked():
    @dataclasses.dataclass(frozen=True)
    class Wish:
        share: float = option(0.5, "A share.", above=0, max=1, noun="a share")
        counts: tuple[int, ...] | None = option(None, "Counts.", auto="none", min=2)
        word: str = option("x", "A word.", choices="xy")

    check_values(Wish(1, (2, 3), "y"))
    check_values(Wish(np.float32(1), (np.int64(2),)))
    for wish, message in (
        (Wish(share=0), "share=0: expected a share above 0, at most 1"),
        (Wish(counts=(2, 1)), "counts=1: expected a whole number of at least 2"),
        (Wish(counts=(10**10,)), "counts=10000000000: expected at most 1000000000"),
        (Wish(word="z"), "word=z: expected one of x, y"),
        (Wish(share="much"), "share=much: expected a share"),
        (Wish(share=True), "share=True: expected a share"),
        (Wish(counts=(2.5,)), "counts=2.5: expected a whole number"),
        (Wish(counts=3), "counts=3: expected a tuple, each a whole number"),
        (Wish(word=3), "word=3: expected one of x, y"),
        (Wish(word="a\nb"), "word='a.nb': expected text without control characters"),
    ):
        with pytest.raises(UserError, match=message):
            check_values(wish)


def test_differences_name_the_options_but_no_locations():
    one = options.as_dict(TrainConfig(data_dir="here"))
    other = options.as_dict(TrainConfig(data_dir="there", lr=0.2))
    assert options.differences(one, other) == {"lr": (0.1, 0.2)}


def test_every_option_has_a_help_text():
    for name, known in options.FIELDS.items():
        assert known.help.endswith("."), name
        assert known.default is not None or known.auto, name


def test_what_an_option_would_not_change_is_said():
    config = TrainConfig(lr_vitaly=True, decay_steps=(10, 20), early_save_steps=5, random_label_seed=3)
    assert options.without_effect(config) == [
        "early_save_steps=5 has no effect where early_step=0.",
        "decay_steps=10,20 has no effect where lr_vitaly=true.",
        "random_label_seed=3 has no effect where random_label_fraction=0.",
    ]
    beside = dataclasses.replace(config, lr_vitaly=False, early_step=20, random_label_fraction=0.1)
    assert not options.without_effect(beside)
    assert not options.without_effect(TrainConfig())
