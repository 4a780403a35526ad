"""Where an entry point writes and how it reports."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from datadiet.storage.layout import ExperimentLayout
from datadiet.tracking.run import TrackedRun, track_run


class Progress(Protocol):
    """Shows that work goes on."""

    def counter(self, total: int, label: str) -> AbstractContextManager[Callable[[int], Any]]:
        """A bar for the length of a `with` block; call what it gives with the units just done."""
        ...

    def say(self, text: str) -> None:
        """One line that stays."""
        ...


@dataclass(frozen=True)
class Place:
    """Where an entry point writes and how it reports, which never changes a result."""

    layout: ExperimentLayout
    progress: Progress
    command: str  # that the user would type to repeat this
    overwrite: bool = False
    resume: bool = False  # a finished run with the same options is taken as it is, an unfinished one continued
    parent: TrackedRun | None = None
    offline: bool = False  # MLflow is never called; `sync` tells it later
    tags: Mapping[str, str] = field(default_factory=dict)  # more of MLflow's tags, as datadiet.<tag>

    def track(
        self, kind: str, exp: str, name: str, mirror: Path | None, *, params: dict[str, Any], note: str, **tags: str
    ) -> AbstractContextManager[TrackedRun]:
        """`tracking.open_run` as this place has it."""
        return track_run(
            kind, exp, name, params=params, note=f"{note}\n\n    {self.command}", parent=self.parent, mirror=mirror,
            offline=self.offline, say=self.progress.say, root=str(self.layout.root.resolve()), **{**self.tags, **tags},
        )  # fmt: skip
