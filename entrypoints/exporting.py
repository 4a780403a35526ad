"""export: a kept set for others."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from datadiet import commands
from datadiet.data.registry import known_datasets
from datadiet.report.kept_files import FORMATS

from .options import (
    OFFLINE,
    OVERWRITE,
    ROOT,
    Location,
    Optional,
    config_option,
    make_command,
    make_context,
    reading_options,
)

KEPT = click.option("--kept", type=Location(), required=True, help="What is exported: a kept.csv, a kept table of a "
                    "study (exps/EXP/kept/…), the folder of a run on a subset, or runs:/ID/PATH.")  # fmt: skip
FORMAT = click.option("--format", "written_as", default="csv", help="How it is written. One of: "
                      f"{', '.join(FORMATS)}.  [default: csv]")  # fmt: skip
OUTPUT = click.option("--output", type=Location(), required=True, help="File to write; for links, the folder.")
COPY = click.option("--copy", type=click.BOOL, default=False, help="Copy files where they would be linked (links).  "
                    "[default: false]")  # fmt: skip


def _export(
    kept: Path, written_as: str, output: Path, copy: bool, root: Path, overwrite: bool, offline: bool, **values: Any
) -> None:
    """Write a kept set for others: nothing is trained, and no file of the data is touched.

    csv: a table with the columns of kept tables, the kept rows alone. txt: one path, or id, a line. links: a folder
    CLASS/FILE of links to the images, as torchvision's ImageFolder reads it. parquet: of parquet data, the kept rows as
    they are; of other images, the layout of Hugging Face. Examples are in the data set's own order. NAME.json beside
    the output ties it to its data.
    """
    from datadiet.report.export import export_kept

    output = output.absolute() if commands.caller().by_mlflow else output  # which works in the project's folder
    given = {name: value for name, value in values.items() if value not in (None, False)}
    export_kept(kept, written_as, output, given, copy, make_context(root, overwrite, offline=offline))


def export() -> click.Command:
    dataset = click.option(
        "--dataset", type=Optional(click.STRING), help=f"Data that it is of. One of: {', '.join(known_datasets())}.  "
        "[default: told beside the kept set]",
    )  # fmt: skip
    data = (dataset, config_option("data_dir", None), *reading_options())
    return make_command("export", _export, KEPT, FORMAT, OUTPUT, COPY, *data, ROOT, OVERWRITE, OFFLINE)
