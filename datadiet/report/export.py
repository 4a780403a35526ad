"""What `export` does: a kept set found with its data, written for others, and never over anything else."""

from __future__ import annotations

import dataclasses
import hashlib
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from datadiet import commands
from datadiet.config import TrainConfig, from_dict, given_config
from datadiet.data.reading import NAMES, Reading
from datadiet.data.registry import check_asked, data_folder, dataset_of, origins_of
from datadiet.data.sources.base import resolve_path
from datadiet.errors import UserError
from datadiet.report.kept_files import FOLDERS, FORMATS, KeptSet
from datadiet.report.kept_sets import examples
from datadiet.runs.context import Context
from datadiet.runs.labels import labels_for
from datadiet.storage.files import make_folder, sync_folder, writing
from datadiet.storage.manifests import kept_rows, manifest_ids
from datadiet.storage.records import KeptRecord, StudyRecord
from datadiet.storage.runs import open_run
from datadiet.temporary import temporary_path
from datadiet.tracking.fetch import local_file, refuse_offline

WRITTEN_AS = "written_as"  # in the record of an export
SMALL = ("csv", "txt")  # of FORMATS, which MLflow is given too
LISTED = ("folder:", "parquet:")  # data sets to which every file that is put into their folder belongs
OLD = {"score": "score_mean", "stderr": "score_standard_error", "rank": "rank"}  # columns, and what they were called


class Found(NamedTuple):
    """A file of kept examples, and what is told beside it of the data."""

    path: Path
    config: TrainConfig | None  # None: nothing
    fingerprint: str | None = None
    kept_by: str | None = None


def find_kept(kept: Path) -> Found:
    """What a path names: a kept.csv, a kept table, or the folder of a run.

    Raises:
        UserError: none of these.
    """
    path = kept / "kept.csv" if kept.is_dir() else kept
    if (path.parent / "args.json").is_file() and (kept.is_dir() or kept.name == "kept.csv"):
        run = open_run(path.parent)
        if run.config.selector == "all":
            raise UserError(f"kept={kept} trains on all examples; expected a run on a subset.")
        return Found(run.input("kept.csv"), run.config, run.data.fingerprint, run.summary and run.summary.scored_by)
    if not path.is_file():
        raise UserError(
            f"kept={kept}: no kept set; expected a kept.csv, a kept table of a study (exps/EXP/kept/…), or the folder "
            "of a run on a subset."
        )
    for record in (record_of(path), path.with_suffix(".json")):
        if record.is_file():
            told = KeptRecord.read(record)
            config = given_config({**told.options, "dataset": told.dataset}) if told.dataset else None
            return Found(path, config, told.fingerprint, told.kept_by)
    folder = path.absolute().parent
    study = folder.parent / "study.json"
    if folder.name == "kept" and study.is_file():
        record = StudyRecord.read(study)
        return Found(
            path, from_dict({k: v for k, v in record.plan.items() if k != "scores"}), record.fingerprint, path.stem
        )
    return Found(path, None)


def read_kept(found: Found, config: TrainConfig, copy: bool) -> KeptSet:
    """The examples that a file names, with their data.

    Raises:
        UserError: the data cannot be had, or is not what the examples are of.
    """
    dataset = dataset_of(config)
    if found.fingerprint not in (None, dataset.fingerprint):
        raise UserError(
            f"{found.path} keeps examples of other data than {dataset.name}: its fingerprint is {found.fingerprint}, "
            f"that of this is {dataset.fingerprint}."
        )
    ids = manifest_ids(found.path, dataset)
    labels = labels_for(config, dataset).labels
    origins = origins_of(config)
    table = examples(dataset, origins, ids, labels)
    rows, order = kept_rows(found.path), np.argsort(ids)
    table = table.loc[table["kept"]].reset_index(drop=True)
    for name, old in OLD.items():
        cells = [row.get(name) or row.get(old) or "nan" for row in rows]
        try:
            values = np.array(cells, float)[order]
        except ValueError as error:
            raise UserError(f"{found.path}: {name} is a number ({error}).") from None
        table[name] = values if name != "rank" else [None if np.isnan(v) else int(v) for v in values]
    return KeptSet(dataset, origins, table.astype({"rank": "Int32"}), copy, data_folder(config.data_dir))


# --- where it goes ------------------------------------------------------------------------------


def record_of(output: Path) -> Path:
    """NAME.json beside what is exported."""
    return output.with_name(f"{output.name}.json")


def content(path: Path) -> str:
    """sha256 (hex) of a file; of a folder, of the names in it with the targets of links and the sizes of files."""
    if not path.is_dir():
        return hashlib.sha256(path.read_bytes()).hexdigest()
    digest = hashlib.sha256()
    for folder, folders, files in sorted(os.walk(os.fsencode(path))):
        links = [name for name in folders if os.path.islink(os.path.join(folder, name))]
        for name in sorted([*files, *links]):
            file = os.path.join(folder, name)
            told = os.readlink(file) if os.path.islink(file) else b"%d" % os.path.getsize(file)
            digest.update(b"%s\0%s\0" % (os.path.relpath(file, os.fsencode(path)), told))
    return digest.hexdigest()


def check_output(output: Path, config: TrainConfig, overwrite: bool) -> None:
    """Refuse, before anything is written, a place in the data or one that holds something else than an export.

    Raises:
        UserError: it says what is there.
    """
    for prefix in LISTED:
        if config.dataset.startswith(prefix):
            root = resolve_path(config.dataset.removeprefix(prefix), data_folder(config.data_dir))
            if output.resolve().is_relative_to(root.resolve()):
                raise UserError(f"output={output} lies in the data, {root}, and would be a part of it; choose another.")
    there, record = os.path.lexists(output), record_of(output)
    if not there and not os.path.lexists(record):
        return
    if not overwrite:
        raise UserError(
            f"output={output if there else record} is there already. Choose another, or replace what an earlier export "
            f"wrote with {commands.option('overwrite', True)}."
        )
    told = KeptRecord.read(record) if record.is_file() else None
    if told is None or WRITTEN_AS not in told.options or (there and told.sha256 != content(output)):
        raise UserError(f"output={output} is not what an export wrote there, and is not replaced. Choose another.")


def write_export(kept: KeptSet, written_as: str, output: Path, told: KeptRecord) -> None:
    """An export and the record beside it, in place of an earlier one; it appears when it is complete.

    Raises:
        UserError: it cannot be written, or not in this format.
    """
    with writing(output):
        make_folder(output.parent)
        temporary, before = temporary_path(output), temporary_path(output)
        try:
            if written_as in FOLDERS:
                temporary.mkdir()
            FORMATS[written_as](kept, temporary)
            dataclasses.replace(told, sha256=content(temporary)).write(record_of(output))
            if output.is_dir() and not output.is_symlink():
                os.rename(output, before)
            os.replace(temporary, output)
            sync_folder(output.parent)
        except BaseException:
            shutil.rmtree(temporary) if temporary.is_dir() else temporary.unlink(missing_ok=True)
            raise
        if before.exists():
            shutil.rmtree(before)


def with_data(kept: Path, given: Mapping[str, Any], offline: bool) -> tuple[Found, TrainConfig]:
    """What a path names, and the options that name and read its data.

    Args:
        given: Such options, where others are meant than are told beside it.
        offline: MLflow is not called.
    Raises:
        UserError: no kept set, or nothing says which data it is of.
    """
    refuse_offline(offline, kept=kept)
    found = find_kept(local_file(kept, "kept"))
    if found.config is None and "dataset" not in given:
        raise UserError(
            f"kept={kept}: nothing beside it says which data it is of; name that with "
            f"{commands.option('dataset', 'NAME')}."
        )
    return found, dataclasses.replace(found.config or TrainConfig(), **given)


def export_kept(
    kept: Path, written_as: str, output: Path, given: Mapping[str, Any], copy: bool, context: Context
) -> None:
    """Write a kept set in a format that others read, and track it.

    Args:
        kept: A kept.csv, a kept table, or the folder of a run on a subset; or runs:/ID/PATH, models:/NAME/VERSION/PATH.
        written_as: A key of FORMATS.
        output: File, or folder, to write.
        given: Options that name the data; see `with_data`.
        copy: Copy files where they would be linked.
    Raises:
        UserError: anything the caller can repair.
    """
    if written_as not in FORMATS:
        raise UserError(f"format={written_as}: expected one of {', '.join(FORMATS)}.")
    if copy and written_as not in FOLDERS:
        raise UserError(f"copy=true is used by format={','.join(FOLDERS)} only.")
    if "dataset" in given:
        reading = {name: given[name] for name in NAMES if name in given}
        check_asked(given["dataset"], given.get("data_dir"), Reading.asked(**reading))
    found, config = with_data(kept, given, context.tracker.offline)
    check_output(output, config, context.output.overwrite)
    context.tracker.check()
    chosen = read_kept(found, config, copy)
    name, count, ids = chosen.dataset.name, len(chosen.table), chosen.ids
    options = {WRITTEN_AS: written_as, "kept": str(kept), "copy": copy, "data_dir": config.data_dir}
    options |= Reading.of(config).given()
    told = KeptRecord(
        options=options, kept_by=found.kept_by, dataset=name, fingerprint=chosen.dataset.fingerprint, num_kept=count
    )
    note, params = f"{count:,} kept examples of {name} as {written_as}: {output}.", {"dataset": name, **options}
    with context.tracker.track("export", "export", f"export/{output.name}", None, params=params, note=note) as tracked:
        write_export(chosen, written_as, output, told)
        tracked.log_input(name, chosen.dataset.subset_digest(ids), "selection", num_rows=count)
        tracked.log_metrics({"export/kept": count})
        for path in [record_of(output), *([output] if written_as in SMALL else [])]:
            tracked.log_artifact(path)
    context.reporter.answer(f"{count:,} examples of {name} -> {output}")
    _tell_empty_classes(chosen, context)


def _tell_empty_classes(chosen: KeptSet, context: Context) -> None:
    names = chosen.dataset.classes
    kept = set(chosen.table["class"])
    if empty := [name for name in names if name not in kept]:
        context.reporter.say(
            f"{len(empty)} of {len(names)} classes keep no example, the first is {empty[0]}: who numbers classes by "
            "their folders gets other numbers than for all of the data."
        )
