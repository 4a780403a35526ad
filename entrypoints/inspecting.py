"""inspect: what is this data?"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from datadiet.data.registry import known_datasets
from datadiet.models.registry import MODELS

from .options import (
    EXP,
    OFFLINE,
    ROOT,
    Optional,
    config_option,
    make_command,
    make_config,
    make_context,
    reading_options,
)

MODEL = click.option("--model", type=Optional(click.STRING), help="Network of which some steps are timed, to tell how "
                     f"long a training takes. One of: {', '.join(MODELS)}.  [default: none]")  # fmt: skip


def _inspect(root: Path, exp: str | None, offline: bool, model: str | None, **values: Any) -> None:
    """Tell what data is: splits, sizes, classes, bad files, duplicates, leaks, what is done with it, and what it takes.

    Nothing is trained. Data that would be refused is looked at too: all that stands in the way is told, with the
    options that repair it. Writes data.html (one page without scripts or requests, with pictures of each class),
    data.txt and data.json below <root>/exps/<exp>/, a folder for each data set; exp is inspect by default.
    """
    from datadiet.report.inspection import inspect_data

    config = make_config(values if model is None else values | {"model": model})
    inspect_data(config, exp or "inspect", make_context(root, overwrite=True, offline=offline), timed=model is not None)


def inspect() -> click.Command:
    dataset = config_option("dataset", "cifar10", known_datasets())
    of_training = (config_option(name, default) for name, default in (
        ("num_steps", None), ("train_batch_size", 128), ("width", None), ("compute_dtype", "float32"), ("augment", True)
    ))  # fmt: skip
    data = (dataset, config_option("data_dir", None), *reading_options())
    return make_command("inspect", _inspect, *data, MODEL, *of_training, ROOT, EXP, OFFLINE)
