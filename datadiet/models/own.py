"""Networks of functions of the user's own, imported and called."""

from __future__ import annotations

import importlib
import inspect
import sys
import warnings
from collections.abc import Callable
from contextlib import nullcontext
from functools import lru_cache
from hashlib import sha256
from pathlib import Path
from types import ModuleType
from typing import Any

import jax
import jax.numpy as jnp

from datadiet.errors import UserError
from datadiet.models.checked import cause, is_nnx
from datadiet.models.networks import Network
from datadiet.models.source import Source, find_source
from datadiet.plugins import module_of_file

GIVEN = ("num_classes", "image_shape", "width", "dtype", "rngs")
_imported: dict[str, tuple[Source, ModuleType]] = {}  # package.module by its name, as it was when it was imported


def own_network(
    model: str, num_classes: int, image_shape: tuple[int, ...], width: int | None, compute_dtype: str,
    code: str | None = None, copy: Path | None = None,
) -> Network:  # fmt: skip
    """The network of a function of the user's own.

    Args:
        model: `package.module:function` or `path/to/FILE.py:function`.
        num_classes, image_shape, width, compute_dtype: What it is called with, as far as it names it.
        code: sha256 that its code has to have; None: any.
        copy: A folder with a copy of its code, to be taken instead.
    Raises:
        UserError: it cannot be had, is called with what it does not take, gives no network or another number of
            logits, or its code has changed.
    """
    source = find_source(model, copy)
    if code not in (None, source.sha256):
        raise UserError(
            f"model={model}: its code ({source.told}) is not what it was: sha256 {str(code)[:12]} then, "
            f"{source.sha256[:12]} now."
        )
    network = _network(source, num_classes, tuple(image_shape), width, compute_dtype)
    if network.num_classes != num_classes:
        raise UserError(
            f"model={model}: its network gives {network.num_classes} logits; the data has {num_classes} classes."
        )
    return network


@lru_cache(maxsize=8)  # one object for equal arguments: programs that were compiled for it are found again
def _network(
    source: Source, num_classes: int, image_shape: tuple[int, ...], width: int | None, compute_dtype: str
) -> Network:
    function = _function(source)
    arguments = _arguments(source, function, width, compute_dtype)
    arguments |= {"num_classes": num_classes, "image_shape": image_shape}
    call = _Call(source.model, function, {name: arguments[name] for name in _named(function) if name in arguments})
    made = call()
    if isinstance(made, Network):
        return made
    try:
        network = Network.of(call if is_nnx(made) else made, image_shape)
    except UserError as error:
        raise UserError(f"model={source.model}: {error}") from error
    if is_nnx(made) and not _draws(network):
        warnings.warn(
            f"model={source.model}: every run begins with the same weights, whatever its model_seed: none are drawn "
            "from nnx.Rngs that the function makes or is given.",
            stacklevel=3,
        )
    return network


class _Call:
    """The function with its arguments; called with a key, its random numbers are drawn from that."""

    def __init__(self, model: str, function: Callable, arguments: dict[str, Any]) -> None:
        self.model, self.function, self.arguments = model, function, arguments

    def __call__(self, key: jax.Array | None = None) -> Any:
        arguments, seeding = self.arguments, nullcontext()
        if key is not None or "rngs" in arguments:
            from datadiet.models.nnx_form import nnx, seeded

            arguments = {**arguments, **({"rngs": nnx.Rngs(0 if key is None else key)} if "rngs" in arguments else {})}
            seeding = nullcontext() if key is None else seeded(key)
        try:
            with seeding:
                return self.function(**arguments)
        except Exception as error:
            given = ", ".join(f"{name}={value}" for name, value in arguments.items() if name != "rngs")
            raise UserError(f"model={self.model} called with ({given}): {cause(error)}") from error


def _draws(network: Network) -> bool:
    """Whether the weights that it begins with depend on the key."""
    drawn = jax.make_jaxpr(network.form.init)(jax.random.key(0), jnp.zeros((1, *network.image_shape)))
    return any(drawn.jaxpr.invars[0] in equation.invars for equation in drawn.jaxpr.eqns)


def _named(function: Callable) -> dict[str, inspect.Parameter]:
    return dict(inspect.signature(function).parameters)


def _arguments(source: Source, function: Callable, width: int | None, compute_dtype: str) -> dict[str, Any]:
    """Width, type and streams of random numbers, as far as the function is to be given them.

    Raises:
        UserError: it needs something else, or an option that was given would be without effect.
    """
    named, model = _named(function), source.model
    gaps = [
        name for name, p in named.items()
        if p.default is p.empty and p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)
        and (name not in GIVEN or p.kind == p.POSITIONAL_ONLY)
    ]  # fmt: skip
    if gaps:
        raise UserError(
            f"model={model}: its function needs {', '.join(gaps)}, which nothing gives; expected some of "
            f"{', '.join(GIVEN)}, by name."
        )
    if width is not None and "width" not in named:
        raise UserError(f"width={width}: the function of model={model} does not name width, so it has no effect.")
    if width is None and "width" in named and named["width"].default is inspect.Parameter.empty:
        raise UserError(f"model={model}: its function needs a width, which has no default there: give one.")
    if compute_dtype != "float32" and "dtype" not in named:
        raise UserError(
            f"compute_dtype={compute_dtype}: the function of model={model} does not name dtype, so it has no effect."
        )
    return {"dtype": jnp.dtype(compute_dtype), "rngs": None} | ({} if width is None else {"width": width})


def _function(source: Source) -> Callable:
    """The function itself, its module imported.

    Raises:
        UserError: it cannot be imported, or has no such function.
    """
    folder = str(source.folder)
    first = source.first  # as where Python runs the file
    if first or folder not in sys.path:
        sys.path.insert(0 if first else len(sys.path), folder)
    try:
        module = _module(source)
    except UserError:
        raise
    except (Exception, SystemExit) as error:
        raise UserError(f"model={source.model}: {source.path} cannot be imported ({cause(error)}).") from error
    finally:
        if first:
            sys.path.remove(folder)
            sys.path.extend([] if folder in sys.path else [folder])  # for what is imported when the function is called
    _check_siblings(source)
    function = getattr(module, source.function, None)
    if not callable(function):
        own = [name for name, value in vars(module).items() if getattr(value, "__module__", "") == module.__name__]
        there = ", ".join(own) or "none"
        raise UserError(f"model={source.model}: {source.path} has no function {source.function}; there are: {there}.")
    return function


def _module(source: Source) -> ModuleType:
    if source.module is not None:
        earlier, module = _imported.get(source.module, (source, None))
        if earlier.files != source.files:
            raise UserError(
                f"model={source.model}: its code ({source.told}) has changed since this process imported it; begin it "
                "anew."
            )
        module = module or importlib.import_module(source.module)
        _imported[source.module] = source, module
        return module
    place = sha256(f"{source.path}\0{source.sha256}".encode(errors="surrogateescape")).hexdigest()[:12]
    return module_of_file(f"datadiet_model_{place}", source.path)


_siblings: dict[str, tuple[str, str]] = {}  # by the name of a module: its file, and the sha256 it was imported with


def _check_siblings(source: Source) -> None:
    """Refuse files beside a model that this process has imported from elsewhere, or as they were before.

    Raises:
        UserError: names them.
    """
    for name, digest in source.files:
        path = source.folder / name
        if path == source.path and source.module is None:
            continue
        parts = Path(name).with_suffix("").parts
        module = sys.modules.get(".".join(parts[:-1] if parts[-1] == "__init__" else parts))
        if module is None:
            continue
        found = getattr(module, "__file__", None)
        if _siblings.get(module.__name__, ("", ""))[1] == digest:  # a copy of it
            continue
        if found is None or not (path.samefile(found) or sha256(Path(found).read_bytes()).hexdigest() == digest):
            raise UserError(
                f"model={source.model} imports {path}; this process has {found} under its name: begin anew."
            )
        if _siblings.setdefault(module.__name__, (found, digest)) != (found, digest):
            raise UserError(f"model={source.model}: {path} has changed since this process imported it; begin anew.")
