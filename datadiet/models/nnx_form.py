"""Flax NNX modules as pure functions of variables; imported where there is one."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from functools import cache, partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax import nnx

from datadiet.errors import UserError
from datadiet.models.forms import Hook, Layer, Variables, mode

KINDS: dict[type[nnx.Module], type[nn.Module]] = {
    nnx.Linear: nn.Dense,
    nnx.LinearGeneral: nn.DenseGeneral,
    nnx.Conv: nn.Conv,
    nnx.BatchNorm: nn.BatchNorm,
    nnx.LayerNorm: nn.LayerNorm,
}  # layers that hooks are told of, by the Linen layers that they are like

Path = tuple[str, ...]
_hook: ContextVar[Hook | None] = ContextVar("hook", default=None)
_layers: ContextVar[dict[int, list[Path]]] = ContextVar("layers")  # parameters of the layers of the module being called


@dataclass(frozen=True)
class NnxForm:
    """What makes an NNX module from a random key. Its parameters are `nnx.Param`; all else that it keeps, but for
    random keys, stands in batch_stats."""

    make: Callable[[jax.Array], nnx.Module]
    kind: type[nnx.Module] = field(compare=False)
    evaluated: Any = field(compare=False, repr=False)  # GraphDef
    trained: Any = field(compare=False, repr=False)
    leaves: tuple[tuple[tuple[Any, ...], Any], ...] = field(compare=False, repr=False)  # abstract variables by path

    @classmethod
    def of(cls, make: Callable[[jax.Array], nnx.Module]) -> NnxForm:
        """Raises whatever `make` does."""

        def graph(training: bool) -> tuple[type, Any, Any]:
            module: Any = nnx.eval_shape(lambda: make(jax.random.key(0)))
            module.train() if training else module.eval()
            return type(module), *nnx.split(module)

        kind, evaluated, state = graph(False)
        return cls(make, kind, evaluated, graph(True)[1], tuple(nnx.to_flat_state(state)))

    @property
    def name(self) -> str:
        return self.kind.__name__

    def init(self, key: jax.Array, images: jax.Array) -> Variables:
        made = _values(self.make(key))
        if made.keys() != dict(self.leaves).keys():
            raise UserError(f"{self.name} has other variables each time that it is made; expected the same.")
        return self._variables(made)

    def evaluate(self, variables: Variables, images: jax.Array) -> jax.Array:
        logits, given, left = self._call(self.evaluated, variables, images, jax.random.key(0), False)
        if any(left[path] is not value for path, value in given.items() if issubclass(self._kinds[path], nnx.RngState)):
            raise UserError(f"{self.name} draws random numbers in evaluation mode; expected none after .eval().")
        return logits

    def train(self, variables: Variables, images: jax.Array, key: jax.Array) -> tuple[jax.Array, Variables]:
        logits, _, left = self._call(self.trained, variables, images, key, True)
        return logits, self._variables(left)["batch_stats"]

    @contextmanager
    def watched(self, hook: Hook) -> Iterator[None]:
        token = _hook.set(hook)
        try:
            yield
        finally:
            _hook.reset(token)

    @property
    def _kinds(self) -> dict[tuple[Any, ...], type]:
        return {path: type(leaf) for path, leaf in self.leaves}

    def _call(
        self, graph: Any, variables: Variables, images: jax.Array, key: jax.Array, training: bool
    ) -> tuple[jax.Array, dict[tuple[Any, ...], Any], dict[tuple[Any, ...], Any]]:
        """Logits, and the values of all variables before and after, by path."""
        given = {path: self._given(path, leaf, variables, key) for path, leaf in self.leaves}
        filled = [(p, f.replace(given[p]) if isinstance(f, nnx.Variable) else given[p]) for p, f in self.leaves]
        module: Any = nnx.merge(graph, nnx.from_flat_state(filled))
        if _hook.get() is None:
            logits = module(images, **mode(self.kind, training))
        else:
            token = _layers.set(_watch(module))
            try:
                logits = module(images, **mode(self.kind, training))
            finally:
                _layers.reset(token)
        return logits, given, _values(module)

    def _given(self, path: tuple[Any, ...], leaf: Any, variables: Variables, key: jax.Array) -> Any:
        """The value of a variable: a key of its own for each stream of random numbers, else what `variables` has."""
        if isinstance(leaf, nnx.RngKey):
            streams = [other for other, kind in self._kinds.items() if issubclass(kind, nnx.RngKey)]
            own = jax.random.fold_in(key, streams.index(path))
            return own if leaf.shape == () else jax.random.split(own, leaf.shape)
        if isinstance(leaf, nnx.RngState):
            return jnp.zeros(leaf.shape, leaf.dtype)
        found = variables[_collection(leaf)]
        for part in path:
            found = found[str(part)]
        return found

    def _variables(self, values: dict[tuple[Any, ...], Any]) -> Variables:
        """Values by path as nested dictionaries, without random keys."""
        found: Variables = {"params": {}, "batch_stats": {}}
        for path, leaf in self.leaves:
            if isinstance(leaf, nnx.RngState):
                continue
            *above, last = map(str, path)
            node = found[_collection(leaf)]
            for part in above:
                node = node.setdefault(part, {})
            node[last] = values[path]
        return found


def _collection(leaf: Any) -> str:
    return "params" if isinstance(leaf, nnx.Param) else "batch_stats"


def _values(module: nnx.Module) -> dict[tuple[Any, ...], Any]:
    """The arrays of a module by path."""
    state = nnx.to_flat_state(nnx.split(module)[1])
    return {path: leaf.get_value() if isinstance(leaf, nnx.Variable) else leaf for path, leaf in state}


# --- layers as hooks see them -----------------------------------------------------------------


def _watch(module: nnx.Module) -> dict[int, list[Path]]:
    """Make the layers of a module, which is thrown away after its call, tell the hook.

    Returns:
        The paths of their parameters, by the id of the layer.
    """
    layers, paths = [], {}
    for path, node in nnx.iter_graph(module):
        if isinstance(node, nnx.Param):
            paths[id(node)] = tuple(map(str, path))
        elif type(node) in KINDS:
            layers.append(node)
    found = {}
    for layer in layers:
        found[id(layer)] = [paths[id(value)] for value in vars(layer).values() if isinstance(value, nnx.Param)]
        object.__setattr__(layer, "__class__", _watched(type(layer)))
    return found


@cache
def _watched(kind: type[nnx.Module]) -> type[nnx.Module]:
    """The same layer, whose calls the hook stands around, where it is one of the module being called."""

    def __call__(self: Any, *args: Any, **kwargs: Any) -> Any:
        hook, call = _hook.get(), partial(kind.__call__, self, *args, **kwargs)
        params = _layers.get({}).get(id(self))
        if hook is None or params is None:
            return call()
        return hook(Layer(KINDS[kind], self, lambda: params), args, kwargs, call)

    return type(kind.__name__, (kind,), {"__call__": __call__})


# --- random keys ------------------------------------------------------------------------------

_lock = threading.RLock()


@contextmanager
def seeded(key: jax.Array) -> Iterator[None]:
    """While it lasts, every `nnx.Rngs` that is made draws from `key` and from the seed that it is given, so that a
    function which writes nnx.Rngs(0) makes other weights for another key."""

    def fold(seed: Any) -> Any:
        if isinstance(seed, int):
            return jax.random.fold_in(key, seed % 2**32)
        if isinstance(seed, jax.Array) and jnp.issubdtype(seed.dtype, jax.dtypes.prng_key):
            return jax.random.fold_in(key, jax.random.bits(seed))
        return seed

    def fold_all(seeds: Any) -> Any:
        return {name: fold(seed) for name, seed in seeds.items()} if isinstance(seeds, dict) else fold(seeds)

    made = nnx.Rngs.__init__

    def __init__(self: nnx.Rngs, default: Any = None, **rngs: Any) -> None:
        made(self, fold_all(default), **fold_all(rngs))

    with _lock:
        nnx.Rngs.__init__ = __init__
        try:
            yield
        finally:
            nnx.Rngs.__init__ = made
