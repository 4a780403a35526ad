"""`python -m datadiet NAME …`: the same as `datadiet NAME …`."""

from __future__ import annotations

from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

# In a checkout the command line lies beside this package; installed, it is a part of it.
_beside = Path(__file__).resolve().parents[1] / "entrypoints" / "__init__.py"
_found = find_spec("entrypoints")
_package = "entrypoints" if _found and _found.origin == str(_beside) else "datadiet.entrypoints"

if __name__ == "__main__":
    import_module(f"{_package}.__main__").main(prog_name="python -m datadiet", obj="python -m datadiet")
