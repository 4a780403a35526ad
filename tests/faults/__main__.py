"""The proof: faults at random moments and places, each survived or detected, none of them losing anything.

python -m tests.faults                 # all of it, up to an hour on two cores; writes tests/faults/results.md
python -m tests.faults --seed 7        # other moments and places
python -m tests.faults --part 0.05     # a twentieth of it
"""

from __future__ import annotations

import datetime
import os
import platform
import random
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import click

from datadiet.processors import processors

os.environ.setdefault("JAX_PLATFORMS", "cpu")


def table(tallies: list, seed: int, seconds: float) -> str:
    """Markdown."""
    import datadiet

    from .harness import OUTCOMES

    head = ["fault", "tried", *OUTCOMES, "not hit"]
    rows = [[t.fault, t.tried, *t.counts.values(), t.not_hit] for t in tallies]
    rows.append(["all", *(sum(row[i] for row in rows) for i in range(1, len(head)))])
    widths = [max(len(str(row[i])) for row in (head, *rows)) for i in range(len(head))]

    def line(cells: list) -> str:
        shown = [str(c).ljust(w) if i == 0 else str(c).rjust(w) for i, (c, w) in enumerate(zip(cells, widths))]
        return f"| {' | '.join(shown)} |"

    rule = f"|{'|'.join('-' * (w + 2) for w in widths)}|"
    made = (
        f"seed {seed}, {seconds:.0f} s, {datetime.date.today()}, datadiet {datadiet.__version__}, "
        f"Python {platform.python_version()}, {len(processors())} cores"
    )
    notes = [f"- {note}" for t in tallies for note in t.notes]
    return "\n".join([line(head), rule, *map(line, rows), "", made, *([""] if notes else []), *notes]) + "\n"


OTHERS = {"score": 8, "mean_score": 5, "results": 5}  # kills at random moments
CHANGES = 40  # kills before a change by score, ...: as a rule every one of them


def _at_changes(scenes: Any, stage: Any, many: Callable[[int], int]) -> Iterator[Any]:
    for command in OTHERS:
        yield scenes.kill_other_at_changes(stage, command, many(CHANGES))
    yield scenes.kill_training_at_changes(stage, many(20))


def _with_server(scenes: Any, stage: Any, many: Callable[[int], int]) -> Iterator[Any]:
    own = scenes.new_server(stage.base / "server")
    try:
        for way, count in ((scenes.DIES, 3), (scenes.RESTARTS, 3), (scenes.HANGS, 2)):
            yield scenes.lose_server(stage, own, many(count), way)
        yield scenes.together(stage, own.uri, many(8), "one mlflow server")
    finally:
        own.signal(signal.SIGKILL)


@click.command()
@click.option("--seed", type=int, help="Of moments and places.  [default: drawn, and printed]")
@click.option("--part", type=click.FloatRange(0, 1, min_open=True), default=1.0, help="Of all faults.  [default: 1]")
@click.option(
    "--only",
    help="Comma-separated, of: training, saving, others, changes, damage, places, gone, disk, sync, deleted, store, "
    "server.  [default: all]",
)
@click.option("--output", type=click.Path(path_type=Path), help="File for the table.  [default: results.md here]")
@click.option("--keep", is_flag=True, help="Keep the folder in which it was done.")
def main(seed: int | None, part: float, only: str | None, output: Path | None, keep: bool) -> None:
    """Do faults on purpose, and print what came of them."""
    base = Path(tempfile.mkdtemp(prefix="datadiet-faults-"))
    os.environ["DATADIET_CACHE"] = str(base / "cache")
    os.environ["JAX_COMPILATION_CACHE_DIR"] = str(base / "xla")
    os.environ["JAX_PERSISTENT_COMPILATION_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
    from . import deletions, places, scenes

    seed = random.SystemRandom().randrange(10**6) if seed is None else seed
    print(f"seed {seed}, in {base}", flush=True)
    stage, begin = scenes.Stage(base, random.Random(seed)), time.monotonic()
    tallies = []

    def many(count: int) -> int:
        return max(1, round(count * part))

    groups: dict[str, Callable[[], Iterable[Any]]] = {
        "training": lambda: [scenes.kill_training(stage, many(20), False)],
        "saving": lambda: [scenes.kill_training(stage, many(12), True)],
        "others": lambda: (scenes.kill_other(stage, c, many(n)) for c, n in OTHERS.items()),
        "changes": lambda: _at_changes(scenes, stage, many),
        "damage": lambda: scenes.corrupt_all(stage, many(200), many(40)),
        "places": lambda: places.misplaced(stage, many(80)),
        "gone": lambda: [places.taken_away(stage, many(8), what) for what in ("exps", scenes.RUN)],
        "disk": lambda: [scenes.full_disks(stage, many(6)), scenes.read_only_folders(stage, many(4))],
        "sync": lambda: [scenes.kill_sync(stage, many(6))],
        "deleted": lambda: [deletions.deleted_run(stage, many(4), restored) for restored in (True, False)],
        "store": lambda: [scenes.together(stage, f"sqlite:///{base}/eight.db", many(8), "one sqlite store")],
        "server": lambda: _with_server(scenes, stage, many),
    }
    for name in only.split(",") if only else groups:
        for one in groups[name]():
            tallies.append(one)
            told = ", ".join(f"{count} {outcome}" for outcome, count in one.counts.items() if count)
            print(f"{time.monotonic() - begin:5.0f} s  {one.fault}: {one.tried} tried, {told}", flush=True)
    text = table(tallies, seed, time.monotonic() - begin)
    print(f"\n{text}")
    place = output or (Path(__file__).with_name("results.md") if part == 1 and not only else None)
    if place:
        command = (
            "python -m tests.faults" + ("" if part == 1 else f" --part {part:g}") + (f" --only {only}" if only else "")
        )
        place.write_text(f"# Faults done on purpose\n\nMade by `{command} --seed {seed}`.\n\n{text}")
    lost = sum(t.counts["lost"] for t in tallies)
    if lost or keep:
        print(f"kept: {base}")
    else:
        shutil.rmtree(base, ignore_errors=True)
    sys.exit(1 if lost else 0)


if __name__ == "__main__":
    main()
