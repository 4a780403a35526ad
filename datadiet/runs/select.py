"""Choosing examples without training on them: a kept manifest, mirrored and tracked."""

from __future__ import annotations

import time
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np

from datadiet import commands
from datadiet import config as options
from datadiet.config import TrainConfig
from datadiet.data.reading import Reading
from datadiet.data.registry import count_of, dataset_of, tell_notes
from datadiet.errors import UserError
from datadiet.runs.context import Context
from datadiet.runs.inputs import ScoreChoice, check_online, choose, find_sources, resolve_config, scored_by
from datadiet.runs.labels import labels_for
from datadiet.runs.scored import check_replaceable
from datadiet.selectors.options import FEATURE_FIELDS, LIKE, option_names
from datadiet.selectors.selection import chooses_anew
from datadiet.storage.manifests import manifest_text, write_manifest
from datadiet.storage.records import KeptRecord
from datadiet.tracking import record
from datadiet.training.device import check_device

RECORDED = (  # beside the options of selectors
    "selector", "size", "scores", *FEATURE_FIELDS, "random_subset_seed", "random_label_fraction", "random_label_seed",
    "labels", "run", LIKE,
)  # fmt: skip


def _check_keeps(config: TrainConfig, offline: bool) -> None:
    """Raises UserError where a selector chooses anew in each epoch of a training, or looks at what it cannot have."""
    check_online(config, offline)
    if chooses_anew(config.selector):
        raise UserError(
            f"selector={config.selector} keeps no subset: each epoch of a training takes another one. Train with it: "
            f"`{commands.command('subset', selector=config.selector, size=config.size)}`"
        )


def _recorded(config: TrainConfig, labels: np.ndarray) -> dict[str, Any]:
    """What a choice is told by: options, how the data was read, and a hash of labels that were given."""
    chosen = {*RECORDED, *option_names(), *Reading.of(config).given()}
    recorded = {name: value for name, value in options.as_dict(config).items() if name in chosen}
    given = {"labels_sha256": sha256(labels.tobytes()).hexdigest()} if config.labels is not None else {}
    return recorded | given


def _check_same(path: Path, text: str, overwrite: bool) -> None:
    """Refuse to replace what the same options kept, but of other scores; making the same again loses nothing."""
    record = path.with_suffix(".json")
    if overwrite or not (path.exists() and record.exists()):
        return
    if KeptRecord.read(record).sha256 != sha256(text.encode()).hexdigest():
        raise UserError(
            f"{path} keeps other examples, or by other scores, than these options do now: what they read has changed. "
            f"Replace it with {commands.option('overwrite', True)}, or choose another {commands.option('exp', 'NAME')}."
        )


def select_run(config: TrainConfig, exp: str, context: Context, choice: ScoreChoice) -> Path:
    """Choose examples as a training run with these options would, and write kept.csv and kept.json.

    Args:
        config: Options as given; those of training do not matter.
        exp: Experiment folder.
        context: Where output lies, who is told, and what tracks.
        choice: The score to select by where config.scores is None.
    Returns:
        kept.csv, which `selector=manifest` trains on.
    Raises:
        UserError: anything the caller can repair, or another selection in the way.
    """
    layout = context.output.layout
    _check_keeps(config, context.tracker.offline)
    config = find_sources(layout, resolve_config(config, count_of(config)), choice)
    path = layout.run(exp, config) / "kept.csv"
    if config.features_run is not None:
        check_device(context.reporter.say)
    context.tracker.check()
    dataset = dataset_of(config)
    tell_notes(dataset)
    labels = labels_for(config, dataset).labels
    recorded = _recorded(config, labels)
    check_replaceable(path, {**recorded, "fingerprint": dataset.fingerprint}, context.output.overwrite, KeptRecord.read)
    start = time.perf_counter()
    kept, values, score_type = choose(config, dataset, labels, context.reporter.say, context.reporter.counter)
    seconds = time.perf_counter() - start
    _check_same(path, manifest_text(dataset, kept, values), context.output.overwrite)
    kept_by, name = scored_by(config, score_type), layout.name(path.parent)
    note = f"{len(kept):,} of {dataset.num_examples:,} examples of {dataset.name} ({kept_by})."
    params, mirror = {"dataset": dataset.name, **recorded}, path.with_name(record.NAME)
    with context.tracker.track("select", exp, name, mirror, params=params, note=note, scored_by=kept_by) as tracked:
        write_manifest(path, dataset, kept, values, recorded, kept_by)
        tracked.log_input(dataset.name, dataset.subset_digest(kept), "selection", num_rows=len(kept), kept_by=kept_by)
        tracked.log_metrics({"select/kept": len(kept), "select/seconds": seconds})
        for file in (path, path.with_suffix(".json")):
            tracked.log_artifact(file)
    context.reporter.answer(f"{len(kept):,} examples kept ({kept_by}) in {seconds:.1f} s -> {path}")
    return path
