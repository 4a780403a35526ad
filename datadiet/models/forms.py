"""What a network is made of, as pure functions of its variables: here of a Flax Linen module."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Any, NamedTuple, Protocol, cast

import jax
from flax import linen as nn

from datadiet.errors import UserError

Variables = dict[str, Any]

MODES = {"train": True, "training": True, "deterministic": False}  # arguments of a module: their values in training


class Layer(NamedTuple):
    """A call of a layer, as a hook is told of it."""

    kind: type[nn.Module]  # of Linen; the one like it where the layer is NNX's
    module: Any
    params: Callable[[], list[tuple[str, ...]]]  # paths of its parameters; to be asked after the call


# (layer, its arguments by position and by name, the call itself) -> what the layer is to return
Hook = Callable[[Layer, tuple, dict, Callable[[], Any]], Any]


class Form(Protocol):
    """Pure functions of variables {"params": …, "batch_stats": …} and images [B, …]. Hashable."""

    @property
    def kind(self) -> type:
        """Of the module."""
        ...

    @property
    def name(self) -> str:
        """What messages call it."""
        ...

    def init(self, key: jax.Array, images: jax.Array) -> Variables: ...

    def evaluate(self, variables: Variables, images: jax.Array) -> jax.Array: ...

    def train(self, variables: Variables, images: jax.Array, key: jax.Array) -> tuple[jax.Array, Variables]:
        """Logits and the new batch_stats; the key is for dropout and the like."""
        ...

    def watched(self, hook: Hook) -> AbstractContextManager[Any]:
        """While it lasts, `hook` stands around every layer that is called in this thread."""
        ...


@lru_cache
def mode_argument(kind: type) -> str | None:
    """The argument by which a module is told whether it trains; None where it takes images alone.

    Raises:
        UserError: it takes something else that it cannot do without.
    """
    _, *taken = inspect.signature(kind.__call__).parameters.values()
    plain = [
        parameter for parameter in taken if parameter.kind not in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD)
    ]
    needed = [p.name for p in plain[1:] if p.default is p.empty and p.name not in MODES]
    takes_any = any(p.kind == p.VAR_POSITIONAL for p in taken)  # as Sequential does
    if needed or not (plain or takes_any):
        raise UserError(
            f"{kind.__name__} is called with ({', '.join(p.name for p in plain)}); expected images alone, or images "
            f"and {' or '.join(MODES)}."
        )
    return next((p.name for p in plain[1:] if p.name in MODES), None)


def mode(kind: type, training: bool) -> dict[str, Any]:
    """The argument that tells a module whether it trains, with its value."""
    name = mode_argument(kind)
    return {} if name is None else {name: MODES[name] is training}


@dataclass(frozen=True)
class LinenForm:
    """A Flax Linen module, called with images, and with the mode where it takes one."""

    module: nn.Module

    @property
    def kind(self) -> type:
        return type(self.module)

    @property
    def name(self) -> str:
        return self.kind.__name__

    def init(self, key: jax.Array, images: jax.Array) -> Variables:
        variables = nn.meta.unbox(dict(self.module.init(key, images, **mode(self.kind, False))))
        if others := sorted(variables.keys() - {"params", "batch_stats"}):
            raise UserError(f"{self.name} keeps variables in {', '.join(others)}; expected params and batch_stats.")
        return {"params": variables.get("params", {}), "batch_stats": variables.get("batch_stats", {})}

    def evaluate(self, variables: Variables, images: jax.Array) -> jax.Array:
        logits = self.module.apply(variables, images, **mode(self.kind, False))
        return cast(jax.Array, logits)  # alone: nothing is mutable

    def train(self, variables: Variables, images: jax.Array, key: jax.Array) -> tuple[jax.Array, Variables]:
        given = mode(self.kind, True)
        # Of `params`, Linen draws for every name that has no key of its own.
        result = self.module.apply(variables, images, rngs={"params": key}, mutable=["batch_stats"], **given)
        logits, updated = cast(tuple[jax.Array, Variables], result)  # a pair: something is mutable
        return logits, updated.get("batch_stats", {})

    def watched(self, hook: Hook) -> AbstractContextManager[Any]:
        def intercept(call: Callable, args: tuple, kwargs: dict, context: nn.module.InterceptorContext) -> Any:
            if context.method_name != "__call__":
                return call(*args, **kwargs)
            layer = Layer(type(context.module), context.module, partial(_paths, context.module))
            return hook(layer, args, kwargs, partial(call, *args, **kwargs))

        return nn.intercept_methods(intercept)


def _paths(module: nn.Module) -> list[tuple[str, ...]]:
    assert module.scope is not None, "a layer that was called is bound"
    return [(*module.scope.path, name) for name in module.variables.get("params", {})]
