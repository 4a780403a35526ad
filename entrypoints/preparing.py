"""prepare_data: the only command that downloads."""

from __future__ import annotations

import time
from typing import Any

import click

from datadiet.data.registry import known_datasets

from .options import Optional, config_option, console, make_command, reading_options

ARCHIVE = click.option("--archive", type=Optional(click.STRING), help="The published file, or a folder that has it.  "
                       "[default: looked for in data_dir, then downloaded]")  # fmt: skip
DOWNLOAD = click.option(
    "--download", type=click.BOOL, default=True, help="Whether the network may be used.  [default: true]"
)


def _prepare_data(dataset: str, data_dir: str | None, archive: str | None, download: bool, **reading: Any) -> None:
    """Fetch, unpack, check and cache a dataset, so that every training finds it.

    What is ready already stays as it is; several processes may do this at once.
    """
    from datadiet.data.prepare import prepare

    start = time.perf_counter()
    ready = prepare(dataset, data_dir, archive, download, **reading)
    seconds = time.perf_counter() - start
    shape = "x".join(map(str, ready.image_shape))
    console().answer(
        f"{ready.name}: {ready.num_examples:,} training and {len(ready.test_labels):,} test examples of {shape}, "
        f"{ready.num_classes} classes, ready in {seconds:.1f} s\nfingerprint {ready.fingerprint}"
    )


def prepare_data() -> click.Command:
    dataset = config_option("dataset", "cifar10", known_datasets())
    data = (dataset, config_option("data_dir", None), *reading_options())
    return make_command("prepare_data", _prepare_data, *data, ARCHIVE, DOWNLOAD)
