"""Where things lie below exps/. Nothing here writes."""

from __future__ import annotations

import os
import re
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from datadiet import commands
from datadiet.config import TrainConfig
from datadiet.errors import Misplaced, UserError
from datadiet.option import check_text
from datadiet.selectors.options import LIKE, given_parameters
from datadiet.selectors.selection import SELECTORS

MODEL_CODE = "model_code"  # in a run that MLflow was given as a model: the code of a model of the user's own
SCORE_FOLDERS = {"l2_error": "error_l2_norm_scores"}  # of every other type: <type>_scores


@dataclass(frozen=True)
class ExperimentLayout:
    """Paths below <root>/exps. Nothing here writes."""

    root: Path
    names_selector: bool = False  # of every subset in its folder, also of those that have an entry point of their own

    @property
    def exps(self) -> Path:
        return self.root / "exps"

    def experiment(self, exp: str) -> Path:
        """Raises UserError where `exp` would lead out of the mirror or is no plain name."""
        parts = exp.split("/")
        if not all(re.fullmatch(r"[\w][\w.+-]*", part) for part in parts):
            raise UserError(f"exp={exp!r}: expected a name of letters, digits, '_', '-', '.' (parts joined by '/').")
        check_text("exp", exp)
        return self.inside(self.exps.joinpath(*parts))

    def inside(self, path: Path) -> Path:
        """The path, where no symbolic link on it leads out of the mirror.

        Raises:
            UserError: one does.
        """
        if not is_within(path, self.exps):
            raise UserError(
                f"{path}: a symbolic link leads out of {self.exps}. Replace it by a folder; to keep the mirror "
                f"elsewhere, choose another root with {commands.option('root', 'FOLDER')}, or let exps itself be the "
                "link."
            )
        return path

    def run(self, exp: str, config: TrainConfig) -> Path:
        """Folder of a training run."""
        folder = self.experiment(exp)
        if config.selector != "all":
            folder /= self.subset(config)
        return self.inside(folder / f"run_{config.run}")

    def subset(self, config: TrainConfig) -> str:
        """size_<size>, the selector where no entry point of its own stands for it, and its options that were given.

        Raises:
            UserError: the value of an option cannot be part of a folder's name.
        """
        chosen = SELECTORS.get(config.selector)
        implied = chosen is not None and chosen.entry_point is not None and not self.names_selector
        given = {k: ",".join(map(str, v)) if isinstance(v, tuple) else v for k, v in given_parameters(config).items()}
        for name, value in given.items():
            if not re.fullmatch(r"[\w.,+-]*", str(value)):
                raise UserError(f"{name}={value}: it names a folder; expected letters, digits and '_-.,+'.")
        selector = [] if implied else [config.selector]
        return ".".join([f"size_{config.size}", *selector, *(f"{name}_{value}" for name, value in given.items()),
                         *([LIKE] if config.like else [])])  # fmt: skip

    def name(self, path: Path) -> str:
        """Path below exps, with '/': the name of a run; see `inside`."""
        return self.inside(path).relative_to(self.exps).as_posix()


def is_within(path: Path, folder: Path) -> bool:
    """Whether a path lies in a folder, both where their links lead; False where these go in circles."""
    try:
        real = path.resolve()
        circular = any(place.is_symlink() for place in (real, *real.parents))  # Python 3.13 and later stop there
        return not circular and real.is_relative_to(folder.resolve())
    except (OSError, RuntimeError, ValueError):  # before, links in a circle; a name that no file has
        return False


def same_place(one: str, other: str, exps: Path | None) -> bool:
    """Whether two paths lead to the same, however they are spelled: from here, or in exps, wherever that lay.

    Args:
        one: As a record of that exps tells it.
        exps: As it lies now; None: not known.
    """
    real = Path(other).resolve()
    if real == Path(one).resolve():
        return True
    if exps is None or not real.is_relative_to(exps.resolve()):
        return False
    inside = ("exps", *real.relative_to(exps.resolve()).parts)
    return Path(one).parts[-len(inside) :] == inside


def near_root(root: Path, inside: str) -> Path | None:
    """A root near another one, above it or a folder in it, below whose exps something lies; None: there is none."""
    here, beside = root.absolute(), []
    with suppress(OSError):  # it is not there, or others may not look into it
        beside = sorted(here.iterdir())
    return next((path for path in (*here.parents, *beside) if os.path.exists(path / "exps" / inside)), None)


def score_file(folder: Path, kind: str, step: int, combine: str = "mean") -> Path:
    """Score file of a type and step below a run's or an experiment's folder; there, how runs were combined."""
    manner = "" if combine == "mean" else f".{combine}"
    return folder / SCORE_FOLDERS.get(kind, f"{kind}_scores") / f"ckpt_{step}{manner}.npy"


# --- what was made for one place and lies in another ------------------------------------------


def check_place(path: Path, told: str | None, name: str | None = None) -> None:
    """Refuse what was made for another place below exps: its hashes are right wherever it is copied to.

    Where exps lies does not matter. What lies in no exps is taken for what it says it is, unless its own name is that
    of another run or step.

    Args:
        path: Where it lies.
        told: Path below exps that it was made for, as its record says; None: it does not say.
        name: Path below exps that it is looked for under; None: not known.
    Raises:
        Misplaced: it names both places.
    """
    if told is None or (told == name if name else _may_be(path, told)):
        return
    raise Misplaced(
        f"{path} was made as {told}, and is not {name or 'what its name says'}: it was copied, moved or renamed. "
        f"Expected in exps/{told}; exps may be moved as a whole, no part of it."
    )


def _may_be(path: Path, told: str) -> bool:
    """Whether a path, as given or with its links followed, can be that of what was made as `told` below exps."""
    parts, places = PurePosixPath(told).parts, [Path(os.path.abspath(path)), path.resolve()]
    if any(place.parts[-len(parts) :] == parts for place in places):
        return True
    fits = re.fullmatch(r"run_\d+|ckpt_\d+(\.\w+)?\.npy", path.name) is None or path.name == parts[-1]
    return fits and not any("exps" in place.parts[:-1] for place in places)
