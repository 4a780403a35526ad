"""The options of a training run: as given, and as resolved.

What a run *is* lives here; how fast it goes (score batch size, devices) never does.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from datadiet.option import fields_of, option

EPOCHS = 200

DECAY_EPOCHS = (60, 120, 160)

SEED_STRIDE = 424242

SEEDS = {"model_seed": 42, "train_seed": 4242, "random_subset_seed": 4426}  # of run 0, where none are given

LARGEST_SEED = 2**32 - 1

BUDGETS = ("iterations", "epochs")

FLIPS = ("none", "random", "alternating")

COMPUTE_DTYPES = ("float32", "bfloat16")


def _seed(what: str, name: str | None = None, default: int | None = None, *, group: str) -> Any:
    auto = f"{SEEDS[name]} + {SEED_STRIDE} * run" if name else None
    return option(default, f"Seed of {what}.", auto=auto, min=0, max=LARGEST_SEED, noun="a seed", group=group)


@dataclass(frozen=True)
class TrainConfig:
    """All options of one training run, as given; None where `resolve` derives the value."""

    dataset: str = option("cifar10", "Training data, by name.", group="data", first=True)
    data_dir: str | None = option(
        None, "Folder that holds the data.", auto="where the dataset is usually found", group="data", first=True
    )
    image_size: str | None = option(
        None,
        "Size of images in pixels: N (the shorter side, then the centre) or HxW (height and width exactly).",
        auto="that of the images, which have to be of one",
        form=r"[1-9]\d{0,4}(x[1-9]\d{0,4})?",
        noun="N or HxW in pixels, as in 64 or 48x64",
        group="data",
        first=True,
    )
    test_fraction: float | None = option(
        None, "Fraction of each class that is the test set, where the data has none; chosen by the examples' names.",
        auto="the data's own test set", above=0, below=1, noun="a fraction", group="data", first=True,
    )  # fmt: skip
    test_split: str | None = option(
        None,
        "Which of the data's splits is the test set, by name.",
        auto="test, else a validation set with labels",
        group="data",
    )
    labels: str | None = option(
        None,
        "File of labels (csv: example_id,label) to train on instead of the data's own.",
        auto="the data's own",
        group="data",
    )
    skip_bad: bool = option(False, "Leave out images that cannot be read; which they are is recorded.", group="data")
    model: str = option(
        "resnet18_lowres", "Network, by name; or a function of your own, package.module:function or FILE.py:function.",
        group="model", first=True,
    )  # fmt: skip
    model_sha256: str | None = option(
        None, "SHA-256 that the code of a model of your own has to have.", auto="that of the code there is",
        form="[0-9a-f]{64}", noun="64 hexadecimal digits", group="model",
    )  # fmt: skip
    width: int | None = option(
        None, "Channels (units, for mlp) of the first layer.", auto="the model's own", min=1, group="model"
    )
    compute_dtype: str = option(
        "float32",
        "Type in which layers compute; parameters, statistics, loss and logits are float32.",
        choices=COMPUTE_DTYPES,
        group="model",
    )
    run: int = option(
        0, "Index of this run among repetitions; the seeds derive from it.", min=0, group="training", first=True
    )
    num_steps: int | None = option(
        None, "Optimizer steps of a training on all data; see budget.", min=1,
        auto=f"{EPOCHS} epochs of the full training set", group="training", first=True,
    )  # fmt: skip
    epochs: float | None = option(
        None, "Epochs of the full training set that num_steps stands for, where that is not given.",
        auto=str(EPOCHS), above=0, noun="epochs", group="training", first=True,
    )  # fmt: skip
    budget: str = option(
        "iterations",
        "What a training on a subset shares with one on all data: 'iterations', the number of steps; or 'epochs', the "
        "passes over its examples (num_steps, decay_steps, log_steps, save_steps shrink with the subset).",
        choices=BUDGETS,
        group="training",
    )
    train_batch_size: int = option(
        128, "Examples per optimizer step; a smaller subset is one batch.", min=1, group="training"
    )
    test_batch_size: int = option(
        1024, "Examples per evaluation batch; no result depends on it.", min=1, group="training"
    )
    lr: float = option(0.1, "Learning rate.", min=0, group="training", first=True)
    beta: float = option(0.9, "Momentum.", min=0, below=1, noun="a momentum", group="training")
    nesterov: bool = option(True, "Nesterov momentum.", group="training")
    weight_decay: float = option(
        5e-4, "L2 coefficient, added to the gradient of every parameter.", min=0, group="training"
    )
    norm_bias_lr: float = option(
        1.0,
        "The learning rate of biases of norms is lr times this, their weight_decay is divided by it.",
        above=0,
        group="training",
    )
    decay_factor: float = option(
        0.2, "The learning rate is multiplied by this at each decay step.", min=0, group="training"
    )
    decay_steps: tuple[int, ...] | None = option(
        None,
        "Steps after which the rate decays: comma-separated integers, or 'none'.",
        auto="epochs " + "/".join(map(str, DECAY_EPOCHS)),
        min=1,
        noun="a step",
        group="training",
    )
    lr_vitaly: bool = option(
        False, "Ramp to 2*lr over the first 15 % of the steps, then linearly to 0.", group="training"
    )
    lr_triangle: tuple[float, ...] = option(
        (),
        "The learning rate rises from this part of lr, reaches lr after this part of the steps and falls to this part "
        "of it: three numbers, as in 0.2,0.23,0.07, or 'none'. Without decay_steps nothing else decays then.",
        min=0,
        max=1,
        group="training",
    )
    lookahead: int = option(
        0,
        "Steps between two returns of the weights to a running mean of theirs, which weighs more the later it is "
        "(Lookahead); 0: none.",
        min=0,
        noun="steps",
        group="training",
    )
    label_smoothing: float = option(
        0.0, "Part of each training label that is spread evenly over all classes, in the loss alone.", min=0, below=1,
        noun="a fraction", group="training",
    )  # fmt: skip
    augment: bool = option(
        True, "Pad by reflection, crop at random and flip, per image: see pad and flip.", group="training", first=True
    )
    pad: int = option(4, "Pixels of that padding on each side; 0: no crops.", min=0, noun="pixels", group="training")
    flip: str = option(
        "random",
        "Horizontal flips: 'random', drawn for each presentation; 'alternating', drawn for each image once and turned "
        "about from epoch to epoch; or 'none'.",
        choices=FLIPS,
        group="training",
    )
    trajectory: tuple[str, ...] = option(
        ("forget",), "Scores gathered while training: comma-separated names, 'all', or 'none'.", group="score"
    )
    track_forgetting: bool = option(
        True, "Gather forgetting statistics while training; false takes forget out.", group="score"
    )
    trajectory_window: int = option(
        10, "Presentations (epochs) in a window of dyn_unc, dual and tdds.", min=3, noun="presentations", group="score"
    )
    tdds_decay: float = option(
        0.9, "Weight of the latest window in tdds; 1: that one alone.", above=0, max=1, noun="a weight", group="score"
    )
    log_steps: int | None = option(
        None, "Steps between two reports.", auto="one epoch of the full training set", min=1, group="tracking"
    )
    save_steps: int | None = option(
        None,
        "Steps between two checkpoints; steps 0 and num_steps are always saved.",
        auto="num_steps / 10",
        min=1,
        group="tracking",
    )
    checkpoints: bool = option(
        True, "Save checkpoints and the scores gathered while training; false: neither, so that a run that is killed "
        "begins anew.", group="tracking",
    )  # fmt: skip
    early_step: int = option(0, "Up to this step, checkpoints come every early_save_steps.", min=0, group="tracking")
    early_save_steps: int | None = option(
        None, "Steps between two checkpoints up to early_step.", auto="save_steps", min=1, group="tracking"
    )
    random_label_fraction: float = option(
        0.0, "Fraction of training labels permuted among themselves.", min=0, max=1, noun="a fraction", group="data"
    )
    random_label_seed: int = _seed("that permutation; the same for every run by default", default=0, group="data")
    model_seed: int | None = _seed("the initial weights", "model_seed", group="model")
    train_seed: int | None = _seed("example order and augmentation", "train_seed", group="training")
    random_subset_seed: int | None = _seed(
        "random subsets and of ties between scores", "random_subset_seed", group="subset"
    )
    selector: str = option("all", "Which examples to keep: 'all' or a selector.", group="subset", first=True)
    size: int | float | None = option(
        None,
        "Number of training examples to keep, or the fraction of all of them, as in 0.5 or 50%.",
        auto="all",
        min=1,
        noun="example to keep",
        group="subset",
        first=True,
    )
    offset: int = option(
        0, "Examples of smallest score to skip before the window (selector 'offset').", min=0, group="subset"
    )
    scores: str | None = option(
        None,
        "Score file (.npy), or table of ids and scores (csv, parquet, npz), to select by; or one that MLflow has, as "
        "runs:/ID/PATH.",
        auto="the mean score of score_exp",
        group="subset",
        first=True,
    )
    balance: str | None = option(
        None,
        "How many of each class to keep: 'none' (as they come), 'proportional' or 'equal' (as far as there are).",
        auto="none; proportional for herding and d2",
        group="subset",
    )
    cutoff: float = option(
        0.0, "Fraction of all examples, those of largest score, left out first (ccs, d2).", min=0, below=1,
        noun="a fraction", group="subset",
    )  # fmt: skip
    strata: int = option(50, "Bins of equal width that the score is divided into (ccs).", min=1, group="subset")
    center: str = option(
        "mean",
        "Center of a class in feature space (moderate).",
        choices=("mean", "median"),
        noun="mean or median",
        group="subset",
    )
    neighbors: int = option(5, "Nearest examples in feature space that each is joined to (d2).", min=1, group="subset")
    gamma: float = option(
        0.1, "Discount of the neighbours of a kept example at distance d: exp(-gamma * d) (d2).", min=0, group="subset"
    )
    features_run: str | None = option(
        None,
        "Run folder, or models:/NAME/VERSION, that features are taken from (moderate, k_center, herding, d2).",
        auto="run 0 of score_exp",
        group="subset",
    )
    features_step: int | None = option(
        None,
        "Step of the checkpoint that features are taken from.",
        auto="the step of the score",
        min=0,
        noun="a step",
        group="subset",
    )
    manifest: str | None = option(
        None,
        "File of kept examples (kept.csv, or runs:/ID/PATH) to train on (selector manifest).",
        auto="none",
        group="subset",
        first=True,
    )
    like: str | None = option(
        None,
        "File of kept examples (kept.csv): as many of each class are drawn (selector random).",
        auto="none",
        group="subset",
    )
    registered: tuple[tuple[str, Any], ...] = field(
        default=(), metadata={"help": "Options that entries of registries bring, by name; see `registered_options`."}
    )


@dataclass(frozen=True, kw_only=True)
class ResolvedConfig(TrainConfig):
    """All options of one training run, every derived one with its value.

    Seeds that were derived follow `run`, also where it is replaced; seeds that were given stay.
    """

    num_steps: int = field()
    decay_steps: tuple[int, ...] = field()
    log_steps: int = field()
    save_steps: int = field()
    early_save_steps: int = field()
    model_seed: int = field()
    train_seed: int = field()
    random_subset_seed: int = field()
    size: int | None = field(default=None)
    derived_seeds: tuple[tuple[str, int], ...] = field(default=(), repr=False, compare=False)

    def __post_init__(self) -> None:
        before, derived = dict(self.derived_seeds), {}
        for name, first in SEEDS.items():
            if getattr(self, name) in (None, before.get(name)):
                derived[name] = first + SEED_STRIDE * self.run
                object.__setattr__(self, name, derived[name])
        object.__setattr__(self, "derived_seeds", tuple(derived.items()))
        for name in DERIVED:
            if getattr(self, name) is None:
                raise TypeError(f"{name}=None in a resolved config: only `resolve` derives it, from the data.")


FIELDS = fields_of(TrainConfig)

DERIVED = ("num_steps", "decay_steps", "log_steps", "save_steps", "early_save_steps", *SEEDS)
