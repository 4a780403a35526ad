"""Modules of the user's own, imported first: they put scores, selectors, models and data into their registries."""

from __future__ import annotations

import importlib
import importlib.util
import os
import sys
from hashlib import sha256
from pathlib import Path
from types import ModuleType

from datadiet.errors import UserError
from datadiet.intake import size_of

VARIABLE = "DATADIET_PLUGINS"  # comma-separated: package.module, or path/to/file.py


def load_plugins() -> None:
    """Import what the environment variable names, each once in a process.

    Raises:
        UserError: one cannot be imported; names it.
    """
    for name in filter(None, map(str.strip, os.environ.get(VARIABLE, "").split(","))):
        try:
            _load_file(Path(name)) if name.endswith(".py") else importlib.import_module(name)
        except Exception as error:
            raise UserError(
                f"{VARIABLE}={name}: cannot be imported ({type(error).__name__}: {error}); expected package.module or "
                "path/to/file.py, comma-separated."
            ) from error


def _load_file(path: Path) -> None:
    path = path.expanduser().resolve()
    name = f"datadiet_plugin_{path.stem}_{sha256(str(path).encode()).hexdigest()[:8]}"
    if name not in sys.modules:
        size_of(path)  # which refuses a pipe, that would be waited for
        module_of_file(name, path)


def module_of_file(name: str, path: Path) -> ModuleType:
    """The module of a Python file under a name of its own; imported once, and not at all where that fails."""
    if name not in sys.modules:
        spec = importlib.util.spec_from_file_location(name, path)
        assert spec is not None, f"{path}: no Python file"
        assert spec.loader is not None, f"{path}: no Python file"
        sys.modules[name] = module = importlib.util.module_from_spec(spec)
        try:
            spec.loader.exec_module(module)
        except BaseException:
            del sys.modules[name]
            raise
    return sys.modules[name]
