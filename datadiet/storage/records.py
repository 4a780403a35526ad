"""The JSON files of the mirror, each one dataclass with a format version, sealed.

A file of an older format is read, its missing entries taking their defaults; one of a newer format is refused by name.
metrics.jsonl and kept.csv have no version of their own: args.json beside them tells it.
"""

from __future__ import annotations

import dataclasses
import math
import reprlib
import types
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any, ClassVar, Self, Union, get_args, get_origin, get_type_hints

from datadiet.config import FIELDS, ResolvedConfig, as_dict, from_dict, registered_options, validate
from datadiet.errors import UserError
from datadiet.option import LARGEST, Bounds, refuse
from datadiet.storage.files import SEAL, read_record, seal_of_run, sealed, write_json


@dataclass(kw_only=True)
class MirrorRecord:
    """What one kind of file says. A subclass raises FORMAT where it changes the meaning of an entry."""

    FORMAT: ClassVar[int] = 1
    HELD: ClassVar[tuple[str, ...]] = ()  # fields that are not in the file
    UNSEALED: ClassVar[bool] = True  # whether there were formats without a seal

    def as_json(self) -> dict[str, Any]:
        """Ready for JSON, without what is None."""
        values = {name: getattr(self, name) for name in _kinds(type(self)) if name not in self.HELD}
        return {name: _plain(value) for name, value in values.items() if value is not None} | {"format": self.FORMAT}

    def write(self, path: Path) -> None:
        """Raises UserError where it cannot be written."""
        write_json(path, sealed(self.as_json()))

    @classmethod
    def from_json(cls, path: Path, values: dict[str, Any]) -> Self:
        """The inverse of `as_json`; entries that are unknown are passed over.

        Args:
            path: For errors.
        Raises:
            UserError: an entry is missing, or is of another type.
        """
        return _build(cls, path, values)

    @classmethod
    def read(cls, path: Path) -> Self:
        """Raises UserError where the file is missing, damaged, or of a newer format."""
        values = read_record(path)
        check_format(path, values.get("format", 0), cls.FORMAT)
        if SEAL not in values and not (cls.UNSEALED and "format" not in values):
            raise UserError(f"{path}: not what was written there (it has no hash); it is damaged.")
        return cls.from_json(path, values)


def check_format(path: Path, found: Any, known: int) -> None:
    """Refuse a file that a newer version wrote.

    Raises:
        UserError: it names the file and both formats.
    """
    if not isinstance(found, int) or isinstance(found, bool):
        raise UserError(f"{path}: format={reprlib.repr(found)} is not what was written there; it is damaged.")
    if found > known:
        raise UserError(
            f"{path}: written by a newer version of datadiet (format {found}; this version knows formats up to "
            f"{known}). Use that version, or update this one."
        )


@lru_cache
def _kinds(cls: type) -> dict[str, Any]:
    """Types of a record's fields by name."""
    hints = get_type_hints(cls)
    return {f.name: hints[f.name] for f in dataclasses.fields(cls)}


def _build(cls: Any, path: Path, values: dict[str, Any]) -> Any:
    """A record, or an entry of one, from a JSON object whose types are checked."""
    given = {}
    for entry in dataclasses.fields(cls):
        if entry.name in values:
            value = values[entry.name]
        elif entry.default is dataclasses.MISSING and entry.default_factory is dataclasses.MISSING:
            value = None  # which most kinds refuse
        else:
            continue
        given[entry.name] = _entry(_kinds(cls)[entry.name], path, entry.name, value)
    return cls(**given)


def _entry(kind: Any, path: Path, name: str, value: Any) -> Any:
    """Raises UserError where an entry is not of its kind."""
    try:
        return _as_kind(kind, path, value)
    except TypeError:
        raise UserError(f"{path}: {name}={reprlib.repr(value)} is not what was written there; it is damaged.") from None


def _as_kind(kind: Any, path: Path, value: Any) -> Any:
    """A value of JSON as a field's type has it; raises TypeError where it is of another."""
    origin, arguments = get_origin(kind), get_args(kind)
    if kind is Any:
        return value
    if origin in (Union, types.UnionType):
        return None if value is None and type(None) in arguments else _as_kind(arguments[0], path, value)
    if origin is list:
        if not isinstance(value, list):
            raise TypeError
        return [_as_kind(arguments[0], path, one) for one in value]
    accepted = (int, float) if kind is float else (origin or kind)
    if dataclasses.is_dataclass(kind) and isinstance(value, dict):
        return _build(kind, path, value)
    if not isinstance(value, accepted) or (isinstance(value, bool) and kind is not bool):
        raise TypeError
    return value


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value):
        return {f.name: _plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, list | tuple):
        return [_plain(one) for one in value] if value and dataclasses.is_dataclass(value[0]) else list(value)
    return value


# --- a run ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class DataFacts:
    """What a run was trained on, as its network takes it."""

    fingerprint: str
    num_classes: int
    image_shape: list[int]
    num_examples: int | None = None  # N of the full training set
    mean: list[float] | None = None  # [D], for normalisation
    std: list[float] | None = None
    notes: list[str] = field(default_factory=list)  # what was decided or found when it was read
    skipped: list[str] = field(default_factory=list)  # images that were left out

    def check(self) -> None:
        """Raises UserError, naming it, for what no data has."""
        bounds = Bounds(min=1, max=LARGEST)
        for name, values in (
            ("num_classes", [self.num_classes]),
            ("num_examples", [self.num_examples or 1]),
            ("image_shape", [*self.image_shape, math.prod(self.image_shape)]),
        ):
            if any(value not in bounds for value in values):
                raise refuse(name, reprlib.repr(getattr(self, name)), f"whole numbers {bounds}")
        if not 1 <= len(self.image_shape) <= 3:
            raise refuse("image_shape", reprlib.repr(self.image_shape), "height, width and channels, or features")


@dataclass(frozen=True)
class MadeAs:
    """What binds a run to its place; the seals of its checkpoints and its reports bind them to this."""

    path: str  # of its folder, below exps
    inputs: dict[str, str] = field(
        default_factory=dict
    )  # sha256 of kept.csv, random_labels.csv and given_labels.csv, by name


@dataclass(kw_only=True)
class Arguments(MirrorRecord):
    """args.json: every resolved option by its name, the experiment folder, and the data."""

    config: ResolvedConfig
    data: DataFacts
    exp: str | None = None
    made_as: MadeAs | None = None  # None: made before it was noted
    seal: str = ""  # of the file, where it binds other files of the run: see `seal_of_run`

    @property
    def path(self) -> str | None:
        """Of the run's folder, below exps."""
        return self.made_as and self.made_as.path

    def as_json(self) -> dict[str, Any]:
        place = {"made_as": _plain(self.made_as)} if self.made_as else {}
        data = _plain(self.data) | place  # beside the options there is no room for more: each of them is a `cfg.*`
        return {"exp": self.exp, **as_dict(self.config), "data": data, "format": self.FORMAT}

    @classmethod
    def from_json(cls, path: Path, values: dict[str, Any]) -> Self:
        for name, known in (FIELDS | registered_options()).items():
            if name in values:
                kind: Any = list[known.type] if known.many else known.type
                _entry(kind | None if known.optional else kind, path, name, values[name])
        data = _entry(DataFacts, path, "data", values.get("data"))
        try:
            config = from_dict(values)
            validate(config)
            data.check()
        except TypeError as error:
            raise UserError(f"{path}: options are missing ({error}); it is damaged.") from None
        except UserError as error:
            raise UserError(f"{path}: {error} It is damaged, or of another version.") from None
        place = _entry(MadeAs | None, path, "made_as", values["data"].get("made_as"))
        return cls(config=config, data=data, exp=values.get("exp"), made_as=place, seal=seal_of_run(values))


@dataclass(kw_only=True)
class Summary(MirrorRecord):
    """summary.json of a finished training run. Accuracies are 0 to 1, after the last step."""

    path: str  # below exps
    dataset: str
    model: str
    scored_by: str  # what the examples were kept by
    num_kept: int
    num_examples: int
    train_acc: float  # over the batches since the report before
    test_acc: float  # on the whole test set
    train_loss: float | None = None
    test_loss: float | None = None
    test_acc_per_class: list[float | None] | None = None  # [C], None: no test example
    kept_per_class: list[int] | None = None  # [C], by the labels trained on
    budget: str = "iterations"  # what trainings on subsets share with those on all data
    select_seconds: float | None = None
    seconds: float  # training and evaluation, without compilation
    train_seconds: float | None = None
    eval_seconds: float | None = None
    compile_seconds: float | None = None
    total_seconds: float | None = None
    joules: float | None = None  # of the GPUs while it trained; None: nothing told it, or the run was continued
    fingerprint: str | None = None
    num_test: int | None = None  # M, test examples
    test_correct_sha256: str | None = None  # of test_correct.npy; None: of a run of before
    mlflow_run_id: str | None = None

    def same_run(self, other: Summary) -> bool:
        """Whether two files tell of one run: to the last bit, no two trainings take the same seconds."""
        return dataclasses.replace(self, mlflow_run_id=None) == dataclasses.replace(other, mlflow_run_id=None)


# --- scores and kept sets ---------------------------------------------------------------------


@dataclass(kw_only=True)
class KeptRecord(MirrorRecord):
    """kept.json, beside a kept.csv that no run trained on; NAME.json, beside what `export` wrote."""

    options: dict[str, Any] = field(default_factory=dict)  # of the selector, of export; in the file beside the others
    kept_by: str | None = None
    dataset: str | None = None
    fingerprint: str | None = None
    num_kept: int | None = None
    sha256: str | None = None  # of kept.csv, or what was exported

    def as_json(self) -> dict[str, Any]:
        values = super().as_json()
        return values.pop("options") | values

    @classmethod
    def from_json(cls, path: Path, values: dict[str, Any]) -> Self:
        own = {f.name for f in dataclasses.fields(cls)} | {"format", SEAL}
        return super().from_json(path, values | {"options": {k: v for k, v in values.items() if k not in own}})


# --- a study ----------------------------------------------------------------------------------

AUTO = "auto"  # eval_runs of a plan that adds runs until it is decided


@dataclass(frozen=True)
class MeanRecord:
    """A mean score file of a study."""

    type: str
    step: int
    path: str  # below exps


@dataclass(frozen=True)
class CellRecord:
    """One arm at one size."""

    arm: str
    selector: str
    type: str | None  # of its score; None: it needs none
    step: int | None
    size: int
    fraction: float
    runs: list[str]  # folders below exps; those at equal positions of cells share their seeds
    options: dict[str, Any] = field(default_factory=dict)  # of the arm's own


@dataclass(frozen=True)
class LookRecord:
    """One look at a study: with how many runs, and what it said."""

    runs: int  # of each subset
    planned: int  # the number planned before the first look
    margin: float  # percentage points
    answer: str  # can, cannot or not decided
    kept_fraction: float
    cells: list[str]  # what was compared


@dataclass(kw_only=True)
class StudyRecord(MirrorRecord):
    """study.json: what is compared, and where its parts lie below exps."""

    plan: dict[str, Any]  # every option, those of the trainings as resolved for a run on all data
    dataset: str
    fingerprint: str
    num_examples: int
    model: str
    budget: str
    score_runs: list[str]  # folders of the scored runs
    means: list[MeanRecord]
    cells: list[CellRecord]  # all data first
    looks: list[LookRecord] = field(default_factory=list)  # in the order in which they were made
    evaluations: str | None = None  # sha256 of evaluations.npz, where others trained and told what they found
