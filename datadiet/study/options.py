"""How the jobs of a study are done: options that no result depends on."""

from __future__ import annotations

from dataclasses import dataclass

from datadiet.option import option
from datadiet.runs.context import DEVICES


@dataclass(frozen=True)
class EngineOptions:
    """How the jobs of a study are done, which never changes a result."""

    engine: str = option(
        "local",
        "Where jobs are done: 'local', on this machine; or 'ray' (pip install 'datadiet[ray]'), on "
        "machines that all see the folder of exps/.",
        group="study",
    )
    workers: int | None = option(
        None,
        "Jobs at once; 1: in this process, no others.",
        auto="one per GPU, else one per processor",
        min=1,
        group="study",
        first=True,
    )
    devices: str = option(
        "1",
        "GPUs of each job, which share every batch; all: as many as there are for each of the jobs that are done at "
        "once. Results are equal to rounding.",
        form=DEVICES,
        noun="a whole number of at least 1, or all",
        group="study",
    )
    ray_address: str | None = option(
        None, "Address of a Ray cluster, as in ray.init.", auto="one is begun on this machine", group="study"
    )
