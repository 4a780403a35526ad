"""Where a model of the user's own lies, and what its code is: `package.module:function` or `path/to/FILE.py:function`.

Nothing is imported here. Its code is that of its file and of all that this imports from the same folder, or from the
same package, whether at once or later; what it finds by other ways, or reads, is not.
"""

from __future__ import annotations

import ast
import importlib.machinery
import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from hashlib import sha256
from importlib.metadata import packages_distributions, version
from pathlib import Path, PurePosixPath

from datadiet.errors import UserError
from datadiet.home import expanded
from datadiet.intake import size_of

FORMS = "package.module:function or FILE.py:function"


@dataclass(frozen=True)
class Source:
    """The code of a model."""

    model: str  # as it was named
    path: Path  # of its file
    module: str | None  # its whole name; None: named by its file
    function: str
    files: tuple[tuple[str, str], ...]  # sha256 by path below `folder`
    folder: Path  # what its imports are looked for in
    first: bool  # in it before all others

    @property
    def sha256(self) -> str:
        """Of all its files."""
        told = "".join(f"{name}\0{digest}\n" for name, digest in self.files)
        return sha256(told.encode(errors="surrogateescape")).hexdigest()

    @property
    def told(self) -> str:
        """Its files, in words."""
        names = [name for name, _ in self.files]
        return ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")


def is_own(model: str) -> bool:
    """Whether a model is named by where its function lies."""
    return ":" in model


def find_source(model: str, copy: Path | None = None) -> Source:
    """The code of a model as it is now.

    Args:
        copy: A folder with a copy of its files (see `carried`), to be taken instead of those that it names.
    Raises:
        UserError: there is none, or it cannot be read.
    """
    place, _, function = model.rpartition(":")
    if not place or not function.isidentifier():
        raise UserError(f"model={model!r}: expected {FORMS}.")
    if place.endswith(".py"):
        path, module = copy.absolute() / Path(place).name if copy else expanded(place).absolute(), None
        folder, only = path.parent, None
    else:
        path, folder = _find_module(model, place, [str(copy.absolute())] if copy else None)
        module, top = place, place.partition(".")[0]
        only = top if "." in place or path.name == "__init__.py" or "site-packages" in path.parts else None
    files = _closure(model, path, folder, only)
    if module:
        files |= {file for file in _resolve(folder, module.split("."), folder) if file.is_file()}
    digests = {file.relative_to(folder).as_posix(): sha256(file.read_bytes()).hexdigest() for file in files}
    first = module is None or copy is not None
    return Source(model, path, module, function, tuple(sorted(digests.items())), folder, first)


def carried(source: Source) -> dict[str, str]:
    """The files of a model by their paths below its folder, byte for character (latin-1).

    Raises:
        UserError: one has changed since.
    """
    found = {name: (source.folder / name).read_bytes() for name, _ in source.files}
    if changed := [name for name, digest in source.files if sha256(found[name]).hexdigest() != digest]:
        raise UserError(f"model={source.model}: {', '.join(changed)} changed while it was read; begin anew.")
    return {name: code.decode("latin-1") for name, code in found.items()}


def put(files: dict[str, str], folder: Path) -> None:
    """Write what `carried` gave into a folder.

    Raises:
        UserError: a path would leave it.
    """
    for name, code in files.items():
        if PurePosixPath(name).is_absolute() or ".." in PurePosixPath(name).parts:
            raise UserError(f"code of a model: got the path {name!r}; expected one below its folder.")
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(code.encode("latin-1"))


def requirements(source: Source) -> tuple[list[str], list[str]]:
    """What the files of a model import beside themselves.

    Returns:
        Installed packages with their versions, as pip takes them; and names of modules that lie here, but are of
        no installed package.
    """
    trees = [ast.parse((source.folder / name).read_bytes()) for name, _ in source.files]
    nodes = [node for tree in trees for node in ast.walk(tree)]
    names = {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
    names |= {str(node.module) for node in nodes if isinstance(node, ast.ImportFrom) and not node.level}
    own = {Path(name).parts[0].removesuffix(".py") for name, _ in source.files}
    others = sorted({name.partition(".")[0] for name in names} - own - {"datadiet"} - sys.stdlib_module_names)
    packages = packages_distributions()
    found = {package for name in others for package in packages.get(name, ())}
    search = [str(source.folder), *sys.path]
    lacking = [n for n in others if n not in packages and importlib.machinery.PathFinder.find_spec(n, search)]
    return [f"{package}=={version(package)}" for package in sorted(found)], lacking


def _find_module(model: str, name: str, search: list[str] | None) -> tuple[Path, Path]:
    """The file of a module, and the folder that its first name lies in.

    Args:
        search: Folders; None: those of Python, then the current one.
    """
    parts = name.split(".")
    if not all(part.isidentifier() for part in parts):
        raise UserError(f"model={model!r}: {name!r} is no name of a module; expected {FORMS}.")
    search = search or [*(entry or os.getcwd() for entry in sys.path), os.getcwd()]
    for count in range(1, len(parts) + 1):
        spec = importlib.machinery.PathFinder.find_spec(".".join(parts[:count]), search)
        if spec is None:
            missing = ".".join(parts[:count])
            raise UserError(f"model={model!r}: no module {missing!r} is found here; expected {FORMS}.")
        search = list(spec.submodule_search_locations or [])
    if spec.origin is None or not spec.origin.endswith(".py"):
        raise UserError(f"model={model!r}: {name!r} is no module in Python; expected {FORMS}.")
    path = Path(spec.origin).absolute()
    above = len(parts) - (path.name != "__init__.py")
    return path, path.parents[above]


def _closure(model: str, first: Path, folder: Path, only: str | None) -> set[Path]:
    """A file and what it imports, directly or not, from below a folder.

    Args:
        only: The package that counts; None: all that lies in the folder, but for this package itself.
    """
    found: set[Path] = set()
    waiting = [first]
    while waiting:
        if (path := waiting.pop()) in found:
            continue
        found.add(path)
        for base, parts in _imports(model, path, folder):
            top, *_ = (*base.relative_to(folder).parts, *parts, "") if base.is_relative_to(folder) else ("",)
            if top not in ("", "datadiet") and only in (None, top):
                waiting += [file for file in _resolve(base, parts, folder) if file.is_file()]
    return found


def _imports(model: str, path: Path, folder: Path) -> Iterator[tuple[Path, list[str]]]:
    """What a file imports: where it is looked for, and the parts of its name."""
    try:
        size_of(path)
        tree = ast.parse(path.read_bytes(), str(path))
    except FileNotFoundError:
        raise UserError(f"model={model!r}: no file {path}; expected {FORMS}.") from None
    except (OSError, SyntaxError, ValueError) as error:
        raise UserError(f"model={model!r}: {path} cannot be read ({error}).") from None
    return _found(tree, path, folder)


def _found(tree: ast.AST, path: Path, folder: Path) -> Iterator[tuple[Path, list[str]]]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((folder, alias.name.split(".")) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = path.parents[node.level - 1] if node.level else folder
            parts = node.module.split(".") if node.module else []
            yield base, parts
            yield from ((base, [*parts, alias.name]) for alias in node.names if alias.name != "*")


def _resolve(base: Path, parts: list[str], folder: Path) -> Iterator[Path]:
    """Files that importing a name would run, as far as there are such."""
    if base != folder:
        yield base / "__init__.py"
    for count in range(1, len(parts) + 1):
        here = base.joinpath(*parts[:count])
        yield here.with_name(f"{here.name}.py")
        yield here / "__init__.py"
