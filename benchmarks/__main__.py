"""Every benchmark in one command: `python -m benchmarks [--rounds 5] [--quick] [--only NAME …]`.

Prints the table and writes it, with the goals beside what was measured, to benchmarks/results/<device>.md and .json.
Candidates of a case take turns, so that a busy machine slows all alike; read the ratios, and absolute times of a GPU
only. PyTorch takes part where it is installed: `pip install -e '.[bench]'`.
"""

from __future__ import annotations

import argparse
import json
import time
import traceback
from pathlib import Path

import jax

from benchmarks import (
    again,
    devices,
    fast,
    forward,
    gathering,
    grand,
    layers,
    peer_torch,
    peers,
    published,
    runs,
    startup,
    step,
    study,
    table,
    whole,
)
from benchmarks.timing import GOALS_HEADER, HEADER, Row, file_stem, goals_markdown, markdown
from datadiet.processors import processors

BENCHMARKS = {
    "startup": startup,  # help and imports
    "study": study,  # the quick study
    "again": again,  # the same when it is finished, and its report
    "whole": whole,  # whole jobs
    "step": step,  # a training step
    "fast": fast,  # the same of recipe=fast
    "layers": layers,  # its convolutions by kind of operation
    "grand": grand,  # GraNd
    "forward": forward,  # EL2N of a batch
    "peers": peers,  # both of smaller networks, with one thread and with two
    "gathering": gathering,  # statistics gathered while training
    "runs": runs,  # several runs at the same time
    "devices": devices,  # several GPUs together, where there are several
    "published": published,  # the published algorithm
    "table": table,  # results over 2,000 runs
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5, help="interleaved rounds of each case, 3 of the slow ones (5)")
    parser.add_argument("--quick", action="store_true", help="the smallest cases only; nothing is written")
    parser.add_argument("--only", nargs="+", choices=BENCHMARKS, help="some groups; the files are named after them")
    options = parser.parse_args()
    rows, start = [], time.perf_counter()
    print(f"{title(options.rounds)}\n\n{HEADER}")
    failed = []
    for name, benchmark in BENCHMARKS.items():
        if options.only is None or name in options.only:
            try:
                for row in benchmark.measure(options.rounds, options.quick):
                    rows.append(row)
                    print(markdown(row), flush=True)
            except Exception:  # of one group: the others are measured all the same
                traceback.print_exc()
                failed.append(name)
            if not options.quick:  # after each group: what is measured is kept
                write(rows, failed, options.rounds, options.only or [], time.perf_counter() - start)
    print("\n".join(["", GOALS_HEADER, *goals_markdown(rows)]))
    if failed:
        raise SystemExit(f"Not measured, because of the errors above: {', '.join(failed)}.")


def title(rounds: int) -> str:
    """What was measured on, and with what."""
    device, torch = jax.devices()[0], ""
    if peer_torch.INSTALLED:
        import torch as module

        torch = f", PyTorch {module.__version__}"
    cores = f", {len(processors())} cores" if device.platform == "cpu" else ""
    return f"{device.device_kind} ({device.platform}{cores}), jax {jax.__version__}{torch}, {rounds} interleaved rounds"


def write(rows: list[Row], failed: list[str], rounds: int, only: list[str], seconds: float) -> None:
    """benchmarks/results/<device>.md and .json; <device>_<groups> where some groups were asked for."""
    folder = Path(__file__).parent / "results"
    folder.mkdir(exist_ok=True)
    stem = file_stem(jax.devices()[0].device_kind, *only)
    command = " ".join(["python -m benchmarks", f"--rounds {rounds}", *(["--only", *only] if only else [])])
    parts = [f"# {title(rounds)}", "", f"`{command}`, {seconds / 60:.1f} minutes", ""]
    parts += [f"Not measured, because they failed: {', '.join(failed)}.", ""] if failed else []
    text = "\n".join([*parts, GOALS_HEADER, *goals_markdown(rows), "", HEADER, *map(markdown, rows)])
    (folder / f"{stem}.md").write_text(text + "\n")
    record = [row._asdict() | {"goals": [g._asdict() | {"met": g.met} for g in row.goals]} for row in rows]
    (folder / f"{stem}.json").write_text(json.dumps({"title": title(rounds), "rows": record}, indent=1) + "\n")


if __name__ == "__main__":
    main()
