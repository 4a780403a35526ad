"""`python -m datadiet NAME …`: the same as `datadiet NAME …`."""

from __future__ import annotations

from importlib import import_module
from importlib.util import find_spec

# Installed, the command line is a part of this package; in a checkout it lies beside it.
_package = "datadiet.entrypoints" if find_spec("datadiet.entrypoints") else "entrypoints"

if __name__ == "__main__":
    import_module(f"{_package}.__main__").main(prog_name="python -m datadiet", obj="python -m datadiet")
