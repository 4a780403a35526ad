"""Every option that can change a result, in one frozen record with its help text.

What a run *is* lives here; how fast it goes (score batch size, devices) never does.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass, field
from typing import Any

from datadiet.errors import UserError

MAX_CHECKPOINTS, MAX_REPORTS = 100_000, 1_000_000

EPOCHS = 200

DECAY_EPOCHS = (60, 120, 160)

SEED_STRIDE = 424242

BUDGETS = ("iterations", "epochs")

COMPUTE_DTYPES = ("float32", "bfloat16")


def option(default: Any, text: str, *, auto: str | None = None) -> Any:
    """A config field; `auto` words the default that is derived where the value is None."""
    return field(default=default, metadata={"help": text, "auto": auto})


@dataclass(frozen=True)
class TrainConfig:
    """All options of one training run. None means "derived": see `resolve`, after which the types hold."""

    dataset: str = option("cifar10", "Training data, by name.")
    data_dir: str | None = option(None, "Folder that holds the data.", auto="where the dataset is usually found")
    model: str = option("resnet18_lowres", "Network, by name.")
    width: int | None = option(None, "Channels (units, for mlp) of the first layer.", auto="the model's own")
    compute_dtype: str = option(
        "float32",
        "Type in which layers compute, float32 or bfloat16; parameters, statistics, loss and logits are float32.",
    )
    run: int = option(0, "Index of this run among repetitions; the seeds derive from it.")
    num_steps: int = option(
        None, "Optimizer steps of a training on all data; see budget.", auto=f"{EPOCHS} epochs of the full training set"
    )
    budget: str = option(
        "iterations",
        "What a training on a subset shares with one on all data: 'iterations', the number of steps; or 'epochs', the "
        "passes over its examples (num_steps, decay_steps, log_steps, save_steps shrink with the subset).",
    )
    train_batch_size: int = option(128, "Examples per optimizer step; a smaller subset is one batch.")
    test_batch_size: int = option(1024, "Examples per evaluation batch; no result depends on it.")
    lr: float = option(0.1, "Learning rate.")
    beta: float = option(0.9, "Momentum.")
    nesterov: bool = option(True, "Nesterov momentum.")
    weight_decay: float = option(5e-4, "L2 coefficient, added to the gradient of every parameter.")
    decay_factor: float = option(0.2, "The learning rate is multiplied by this at each decay step.")
    decay_steps: tuple[int, ...] = option(
        None,
        "Steps after which the rate decays: comma-separated integers, or 'none'.",
        auto="epochs " + "/".join(map(str, DECAY_EPOCHS)),
    )
    lr_vitaly: bool = option(False, "Ramp to 2*lr over the first 15 % of the steps, then linearly to 0.")
    augment: bool = option(True, "Reflect-pad by 4, random crop and horizontal flip, per image.")
    trajectory: tuple[str, ...] = option(
        ("forget",), "Scores gathered while training: comma-separated names, 'all', or 'none'."
    )
    track_forgetting: bool = option(True, "Gather forgetting statistics while training; false takes forget out.")
    trajectory_window: int = option(10, "Presentations (epochs) in a window of dyn_unc, dual and tdds, at least 3.")
    tdds_decay: float = option(0.9, "Weight of the latest window in tdds, above 0, at most 1; 1: that one alone.")
    log_steps: int = option(None, "Steps between two reports.", auto="one epoch of the full training set")
    save_steps: int = option(
        None, "Steps between two checkpoints; steps 0 and num_steps are always saved.", auto="num_steps / 10"
    )
    early_step: int = option(0, "Up to this step, checkpoints come every early_save_steps.")
    early_save_steps: int = option(None, "Steps between two checkpoints up to early_step.", auto="save_steps")
    random_label_fraction: float = option(0.0, "Fraction of training labels permuted among themselves, 0 to 1.")
    random_label_seed: int = option(0, "Seed of that permutation; the same for every run by default.")
    model_seed: int = option(None, "Seed of the initial weights.", auto=f"42 + {SEED_STRIDE} * run")
    train_seed: int = option(None, "Seed of example order and augmentation.", auto=f"4242 + {SEED_STRIDE} * run")
    random_subset_seed: int = option(
        None, "Seed of random subsets and of ties between scores.", auto=f"4426 + {SEED_STRIDE} * run"
    )
    selector: str = option("all", "Which examples to keep: 'all' or a selector.")
    size: int | None = option(None, "Number of training examples to keep.", auto="all")
    offset: int = option(0, "Examples of smallest score to skip before the window (selector 'offset').")
    scores: str | None = option(None, "Score file (.npy) to select by.", auto="the mean score of score_exp")
    balance: str | None = option(
        None,
        "How many of each class to keep: 'none' (as they come), 'proportional' or 'equal' (as far as there are).",
        auto="none; proportional for herding and d2",
    )
    cutoff: float = option(0.0, "Fraction of all examples, those of largest score, left out first (ccs, d2), below 1.")
    strata: int = option(50, "Bins of equal width that the score is divided into (ccs).")
    center: str = option("mean", "Center of a class in feature space: mean or median (moderate).")
    neighbors: int = option(5, "Nearest examples in feature space that each is joined to (d2).")
    gamma: float = option(0.1, "Discount of the neighbours of a kept example at distance d: exp(-gamma * d) (d2).")
    features_run: str | None = option(
        None, "Run folder that features are taken from (moderate, k_center, herding, d2).", auto="run 0 of score_exp"
    )
    features_step: int | None = option(
        None, "Step of the checkpoint that features are taken from.", auto="the step of the score"
    )
    manifest: str | None = option(
        None, "File of kept examples (kept.csv) to train on (selector manifest).", auto="none"
    )


FIELDS = {f.name: f for f in dataclasses.fields(TrainConfig)}

LOCATION_FIELDS = frozenset({"data_dir", "test_batch_size"})  # may differ between two equal runs


_AT_LEAST_ONE = (
    "num_steps",
    "train_batch_size",
    "test_batch_size",
    "log_steps",
    "save_steps",
    "early_save_steps",
    "width",
    "strata",
    "neighbors",
)


_NOT_NEGATIVE = ("run", "offset", "early_step", "lr", "beta", "weight_decay", "decay_factor", "cutoff", "gamma")

_WHOLE = (*_AT_LEAST_ONE, "run", "offset", "early_step", "trajectory_window", "size", "features_step")

LARGEST = 10**9  # of whole numbers; steps and ids are int32

LARGEST_REAL = 1e38  # float32 has no more

MAX_RUNS = 10_000  # the seeds of later ones are beyond 2**32

_SEEDS = ("random_label_seed", "model_seed", "train_seed", "random_subset_seed")


def check_text(name: str, text: str) -> None:
    """Refuse text that no file system, database or terminal takes, wherever it is used.

    Raises:
        UserError: control characters or half a character in it, or too long (as a path: a part of it).
    """
    try:
        parts = text.encode().split(b"/")
    except UnicodeEncodeError:
        raise _refuse(name, repr(text[:80]), "text in UTF-8") from None
    if any(ord(c) < 32 or ord(c) == 127 for c in text):
        raise _refuse(name, repr(text[:80]), "text without control characters")
    if len(text) > 3000 or max(map(len, parts)) > 200:
        raise _refuse(name, f"{text[:40]}… ({len(text)} characters)", "at most 200 bytes between two '/'")


def _check_number_of(name: str, steps: int, every: int | None, limit: int, what: str) -> None:
    if every is not None and steps // every > limit:
        raise _refuse(name, every, f"at least {-(-steps // limit)}: {steps // every} {what} are too many")


def _refuse(name: str, got: Any, expected: str) -> UserError:
    return UserError(f"{name}={got}: expected {expected}.")


def validate(config: TrainConfig) -> None:
    """Check every value that can be judged without data.

    Raises:
        UserError: names the option, its value and what was expected.
    """
    for name in _AT_LEAST_ONE:
        value = getattr(config, name)
        if value is not None and value < 1:
            raise _refuse(name, value, "a whole number of at least 1")
    for name in _NOT_NEGATIVE:
        value = getattr(config, name)
        if not (math.isfinite(value) and value >= 0):
            raise _refuse(name, value, "a finite number of at least 0")
        if value > LARGEST_REAL:
            raise _refuse(name, value, f"at most {LARGEST_REAL:g}")
    for name in _WHOLE:
        value = getattr(config, name)
        if value is not None and value > LARGEST:
            raise _refuse(name, value, f"at most {LARGEST}")
    for name in FIELDS:
        value = getattr(config, name)
        for text in value if isinstance(value, tuple) else (value,):
            if isinstance(text, str):
                check_text(name, text)
    if config.features_step is not None and config.features_step < 0:
        raise _refuse("features_step", config.features_step, "a step of at least 0")
    for name in _SEEDS:
        value = getattr(config, name)
        if value is not None and not 0 <= value < 2**32:
            raise _refuse(name, value, "a seed from 0 to 2**32 - 1")
    if not 0 <= config.random_label_fraction <= 1:
        raise _refuse("random_label_fraction", config.random_label_fraction, "a fraction from 0 to 1")
    if config.cutoff >= 1:
        raise _refuse("cutoff", config.cutoff, "a fraction below 1")
    if config.trajectory_window < 3:
        raise _refuse("trajectory_window", config.trajectory_window, "at least 3 presentations")
    if not 0 < config.tdds_decay <= 1:
        raise _refuse("tdds_decay", config.tdds_decay, "a weight above 0, at most 1")
    if config.budget not in BUDGETS:
        raise _refuse("budget", config.budget, f"one of {', '.join(BUDGETS)}")
    if config.compute_dtype not in COMPUTE_DTYPES:
        raise _refuse("compute_dtype", repr(config.compute_dtype), f"one of {', '.join(COMPUTE_DTYPES)}")
    if config.beta >= 1:
        raise _refuse("beta", config.beta, "a momentum below 1")
    for step in config.decay_steps or ():
        if not 1 <= step <= LARGEST:
            raise _refuse("decay_steps", step, f"steps from 1 to {LARGEST}")
    if config.size is not None and config.size < 1:
        raise _refuse("size", config.size, "at least 1 example to keep")
    if config.num_steps is not None:
        early = min(config.early_step, config.num_steps)
        _check_number_of("save_steps", config.num_steps, config.save_steps, MAX_CHECKPOINTS, "checkpoints")
        _check_number_of("early_save_steps", early, config.early_save_steps, MAX_CHECKPOINTS, "checkpoints")
        _check_number_of("log_steps", config.num_steps, config.log_steps, MAX_REPORTS, "reports")


def check_size(size: int, offset: int, num_examples: int) -> None:
    """Refuse a subset that cannot be had from `num_examples` examples.

    Raises:
        UserError: size below 1, offset below 0, or offset + size beyond num_examples.
    """
    if size < 1:
        raise _refuse("size", size, "at least 1 example to keep")
    if offset < 0:
        raise _refuse("offset", offset, "at least 0 examples to skip")
    if offset + size > num_examples:
        skipped = f" after skipping offset={offset}" if offset else ""
        raise UserError(
            f"size={size}{skipped}: the training set has {num_examples} examples; "
            f"expected a size from 1 to {max(num_examples - offset, 0)}."
        )


def resolve(config: TrainConfig, num_examples: int) -> TrainConfig:
    """Fill in every derived option.

    Args:
        config: Options as given; None where derived.
        num_examples: N, size of the *full* training set: an epoch is N // train_batch_size
            steps (at least 1) whatever the subset, so all sizes train equally long.
    Returns:
        A config in which only data_dir, width and the options of what to keep may be None.
    Raises:
        UserError: an option or the subset asked for is impossible.
    """
    validate(config)
    if config.size is not None:
        check_size(config.size, config.offset, num_examples)
    epoch = max(1, num_examples // config.train_batch_size)
    num_steps = config.num_steps or EPOCHS * epoch
    save_steps = config.save_steps or max(1, num_steps // 10)
    derived = {
        "num_steps": num_steps,
        "decay_steps": tuple(e * epoch for e in DECAY_EPOCHS),
        "log_steps": epoch,
        "save_steps": save_steps,
        "early_save_steps": save_steps,
        **seeds_of(config.run),
    }
    missing = {name: value for name, value in derived.items() if getattr(config, name) is None}
    gathered = tuple(name for name in config.trajectory if config.track_forgetting or name != "forget")
    resolved = dataclasses.replace(config, **missing, trajectory=gathered)
    validate(resolved)
    return resolved


def seeds_of(run: int) -> dict[str, int]:
    """Seeds of a run, by option, where none are given."""
    shift = SEED_STRIDE * run
    return {"model_seed": 42 + shift, "train_seed": 4242 + shift, "random_subset_seed": 4426 + shift}


def fit_budget(config: TrainConfig, num_examples: int) -> TrainConfig:
    """A resolved config with the steps of its subset.

    With budget=iterations nothing changes. With budget=epochs every number of steps is multiplied by
    the fraction of the examples that is kept, and is at least 1.
    """
    if config.budget == "iterations" or config.size is None:
        return config

    def shrink(steps: int) -> int:
        return max(1, round(steps * config.size / num_examples))

    names = ("num_steps", "log_steps", "save_steps", "early_save_steps")
    shrunk: dict[str, Any] = {name: shrink(getattr(config, name)) for name in names}
    shrunk["early_step"] = shrink(config.early_step) if config.early_step else 0
    return dataclasses.replace(config, **shrunk, decay_steps=tuple(map(shrink, config.decay_steps)))


def saved_steps(config: TrainConfig) -> list[int]:
    """Steps at which a resolved config saves a checkpoint: 0, the asked ones, num_steps."""
    early = range(0, min(config.early_step, config.num_steps) + 1, config.early_save_steps)
    late = range(0, config.num_steps + 1, config.save_steps)
    return sorted({0, config.num_steps, *early, *(t for t in late if t > config.early_step)})


def logged_steps(config: TrainConfig) -> list[int]:
    """Steps after which a resolved config reports metrics: every log_steps, and num_steps."""
    return sorted({*range(config.log_steps, config.num_steps + 1, config.log_steps), config.num_steps})


def default_score_step(config: TrainConfig) -> int:
    """The step scored where none is asked: the first checkpoint after a tenth of training.

    With the paper's 200 epochs that is the end of epoch 20.
    """
    return next(t for t in saved_steps(config) if t >= max(1, config.num_steps // 10))


def differences(one: dict, other: dict) -> dict[str, tuple[Any, Any]]:
    """Options in which two `as_dict` records differ, locations aside."""
    names = (one.keys() | other.keys()) - LOCATION_FIELDS
    pairs = {name: (one.get(name), other.get(name)) for name in sorted(names)}
    return {name: pair for name, pair in pairs.items() if pair[0] != pair[1]}


def as_dict(config: TrainConfig) -> dict[str, Any]:
    """JSON-ready options; tuples become lists."""
    return {k: list(v) if isinstance(v, tuple) else v for k, v in dataclasses.asdict(config).items()}


def from_dict(values: dict[str, Any]) -> TrainConfig:
    """The inverse of `as_dict`; names that are no option are ignored."""
    known: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in values.items() if k in FIELDS}
    return TrainConfig(**known)
