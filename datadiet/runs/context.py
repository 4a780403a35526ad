"""What a piece of work is handed beside its options: where output lies, who is told, and what tracks.

None of it ever changes a result.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from datadiet import commands
from datadiet.errors import UserError
from datadiet.progress import Advance, Standing
from datadiet.storage.layout import ExperimentLayout

if TYPE_CHECKING:
    from datadiet.tracking.run import TrackedRun

DATA_ON = ("auto", "device", "disk")
DEVICES = "[1-9][0-9]{0,3}|all"  # form of how many devices do one piece of work


@dataclass(frozen=True)
class Output:
    """Where output lies, and what may become of what lies there already."""

    layout: ExperimentLayout
    overwrite: bool = False
    resume: bool = False  # a finished run with the same options is taken as it is, an unfinished one continued


class Reporter(Protocol):
    """Shows that work goes on."""

    def counter(
        self, total: int, label: str, told: Callable[[], Standing] | None = None
    ) -> AbstractContextManager[Advance]:
        """As `progress.counting`."""
        ...

    def detail(self, text: str) -> None:
        """Lines for those who want to know every path."""
        ...

    def say(self, text: str) -> None:
        """Lines that stay."""
        ...

    def answer(self, text: str) -> None:
        """What was asked for; of a job of a study a detail."""
        ...


@dataclass(frozen=True)
class Tracker:
    """What tracks: an MLflow run for each piece of work, nested where it is a part of a larger one."""

    root: Path  # of exps, as a tag
    command: str  # that the user would type to repeat this
    say: Callable[[str], Any]  # told when MLflow goes away
    parent: TrackedRun | None = None
    offline: bool = False  # MLflow is never called; `sync` tells it later
    log_model: bool = False  # MLflow is given each trained network as a model
    tags: Mapping[str, str] = field(default_factory=dict)  # more of MLflow's tags, as datadiet.<tag>

    def check(self) -> None:
        """Refuse to begin where MLflow cannot be reached, before any work is done; a part of a larger work goes on as
        long as that is there.

        Raises:
            UserError: with what to do.
        """
        from datadiet.tracking.run import check_store  # here, because --help needs no MLflow

        if self.parent is None:
            check_store(self.offline)
        elif (mirror := self.parent.record.path) and not mirror.exists():
            raise UserError(
                f"{mirror} is gone: its folder was moved or deleted while this was at work. Nothing is made anew in "
                "its place; put it back, and repeat the command."
            )

    def track(
        self,
        kind: str,
        exp: str,
        name: str,
        mirror: Path | None,
        *,
        params: dict[str, Any],
        note: str,
        reopens: bool = False,
        **tags: str,
    ) -> AbstractContextManager[TrackedRun]:
        """`track_run` with what this knows."""
        from datadiet.tracking.run import track_run

        return track_run(
            kind, exp, name, params=params, note=f"{note}\n\n    {self.command}", parent=self.parent, mirror=mirror,
            offline=self.offline, reopens=reopens, say=self.say, root=str(self.root.resolve()), **{**self.tags, **tags},
        )  # fmt: skip


@dataclass(frozen=True)
class Context:
    """All three, and what computes, for work that needs them; its parts are handed no more than they use."""

    output: Output
    reporter: Reporter
    tracker: Tracker
    data_on: str = "auto"  # where images lie while networks train: one of DATA_ON
    devices: str = "1"  # that train or score together: a number, or all; see DEVICES
    hosts: str | None = None  # processes that train together; see `hosts.check`

    @property
    def again(self) -> str:
        """The command that goes on where this is stopped: what is saved is not replaced."""
        return commands.goes_on() if self.output.overwrite else self.tracker.command
