"""What `inspect` does: looks at data, and writes what it is as text, page and numbers. Nothing is trained."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path
from typing import Any

from datadiet.config import TrainConfig
from datadiet.data.inspect import Facts, check, counts, inspect
from datadiet.data.reading import Reading
from datadiet.models.registry import check_model
from datadiet.report import data_page
from datadiet.runs.context import Context
from datadiet.runs.timing import Timing, measure
from datadiet.storage.files import make_folder, write_json, write_text, writing
from datadiet.tracking import record
from datadiet.training.device import check_device


def numbers(facts: Facts, timing: Timing | None) -> dict[str, Any]:
    """data.json: what the page says, for programs."""
    dataset, found, files = facts.dataset, facts.doubts, facts.files
    read = {} if dataset is None else {
        "fingerprint": dataset.fingerprint, "shape": list(dataset.image_shape), "train": dataset.num_examples,
        "test": len(dataset.test_labels), "classes": {name: [train, test] for name, train, test in counts(dataset)},
        "notes": list(dataset.notes), "skipped": list(dataset.skipped),
    }  # fmt: skip
    doubts = {} if found is None else {
        "duplicates": found.duplicates, "conflicts": [list(pair) for pair in found.conflicts],
        "leaks": [list(pair) for pair in found.leaks], "constant": found.constant,
    }  # fmt: skip
    listed = {} if files is None else {
        "folders": files.folders, "bytes": files.bytes, "bad": files.bad, "others": files.others,
        "sizes": {f"{width}x{height}": count for (width, height), count in sorted(files.sizes.items())},
    }  # fmt: skip
    return {
        "dataset": facts.asked.dataset, "refusals": facts.refusals, "repairs": facts.repairs, "read": read,
        "doubts": doubts, "files": listed, "timing": timing and timing._asdict(),
    }  # fmt: skip


def folder_name(dataset: str, data_dir: str | None) -> str:
    """A name for data whose own may be a path: what can be read of it, and a hash of all of it."""
    digest = hashlib.sha256(f"{dataset}\n{data_dir}".encode(errors="surrogateescape")).hexdigest()[:8]
    return f"{re.sub(r'[^A-Za-z0-9.-]+', '_', dataset).strip('_.-')[-40:] or 'data'}-{digest}"


def inspect_data(config: TrainConfig, exp: str, context: Context, timed: bool = False) -> Path:
    """Look at the data that a config names, tell what it is, and write it below exps/<exp>/.

    An earlier page of the same data is replaced.

    Args:
        config: Options as given.
        exp: Experiment folder.
        context: Where output lies, who is told, and what tracks.
        timed: Time some steps of the config's model, where the data can be read.
    Returns:
        The page.
    Raises:
        UserError: there is nothing to look at, or no device to time a step on.
    """
    layout = context.output.layout
    folder = layout.inside(layout.experiment(exp) / folder_name(config.dataset, config.data_dir))
    check(config)
    if timed:
        check_model(config.model)
        check_device(context.reporter.say)
    context.tracker.check()
    facts = inspect(config, context.reporter.counter)
    timing = measure(facts.config, facts.dataset) if timed and facts.dataset is not None else None
    params = {"dataset": config.dataset, "data_dir": config.data_dir, **Reading.of(config).given()}
    with writing(folder):
        make_folder(folder)
    paths = [folder / "data.html", folder / "data.txt", folder / "data.json"]
    told = data_page.text(facts, timing)
    with context.tracker.track(
        "inspect", exp, layout.name(folder), folder / record.NAME, params=params, note=data_page.headline(facts)
    ) as tracked:
        write_text(paths[0], data_page.html(facts, timing))
        write_text(paths[1], f"{told}\n")
        write_json(paths[2], numbers(facts, timing))
        for path in paths:
            tracked.log_artifact(path)
        tracked.log_metrics(_metrics(facts))
    context.reporter.answer(f"{told}\n{paths[0]}")
    return paths[0]


def _metrics(facts: Facts) -> dict[str, float]:
    """What can be counted, as data/<name>."""
    found: dict[str, float] = {"refusals": len(facts.refusals)}
    if facts.dataset is not None:
        found |= {"train": facts.dataset.num_examples, "test": len(facts.dataset.test_labels)}
        found |= {"classes": facts.dataset.num_classes, "skipped": len(facts.dataset.skipped)}
    if facts.doubts is not None:
        found |= {name: float(value if isinstance(value, int) else len(value))
                  for name, value in facts.doubts._asdict().items()}  # fmt: skip
    return {f"data/{name}": value for name, value in found.items()}
