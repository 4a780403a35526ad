"""Every benchmark in one command: `python -m benchmarks [--rounds 5] [--quick] [--only NAME]`.

Prints the table and writes it to benchmarks/results/<device>.md and .json. Candidates of a case take turns, so that a
busy machine slows all alike; read the ratios, and absolute times of a GPU only.
"""

from __future__ import annotations

import argparse
import json
import re
from pathlib import Path

import jax

from benchmarks import conv, grand, whole
from benchmarks.timing import HEADER, markdown

BENCHMARKS = {"grand": grand, "whole": whole, "conv": conv}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5, help="interleaved rounds of each case (5)")
    parser.add_argument("--quick", action="store_true", help="the smallest cases only; nothing is written")
    parser.add_argument("--only", choices=BENCHMARKS, help="one group of cases; nothing is written")
    options = parser.parse_args()
    device = jax.devices()[0]
    title = f"{device.device_kind} ({device.platform}), jax {jax.__version__}, {options.rounds} interleaved rounds"
    print(f"{title}\n\n{HEADER}")
    rows = []
    for name, benchmark in BENCHMARKS.items():
        if options.only in (None, name):
            for row in benchmark.measure(options.rounds, options.quick):
                rows.append(row)
                print(markdown(row), flush=True)
    if options.quick or options.only:
        return
    folder = Path(__file__).parent / "results"
    folder.mkdir(exist_ok=True)
    stem = re.sub(r"\W+", "_", device.device_kind.lower()).strip("_")
    text = "\n".join([f"# {title}", "", "`python -m benchmarks`", "", HEADER, *map(markdown, rows)])
    (folder / f"{stem}.md").write_text(text + "\n")
    (folder / f"{stem}.json").write_text(json.dumps([row._asdict() for row in rows], indent=1) + "\n")
    print(f"\nWritten to {folder / stem}.md and .json")


if __name__ == "__main__":
    main()
