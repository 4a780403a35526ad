"""Devices that do one piece of work together: each does its part of every batch, and has all else."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from datadiet.option import refuse

BATCH = "batch"  # the axis of a mesh
ALL = "all"


@dataclass(frozen=True)
class Devices:
    """One device, or several. Hashable, so that it can be a static argument of jit."""

    mesh: Mesh | None = None  # None: one, whichever JAX takes

    @classmethod
    def asked(cls, devices: str) -> Devices:
        """The first so many that JAX has in this process, or all; of several processes (`hosts`), those of each.

        Args:
            devices: A number, or 'all'.
        Raises:
            UserError: there are fewer.
        """
        there = jax.local_devices()
        count = len(there) if devices == ALL else int(devices)
        if count > len(there):
            kind = f"{jax.default_backend()} device{'s' * (len(there) > 1)} that JAX has here"
            raise refuse("devices", devices, f"all, or at most {len(there)}: the {kind}")
        taken = there[:count] if jax.process_count() == 1 else _of_each_process(count)
        return cls(Mesh(np.array(taken), (BATCH,))) if len(taken) > 1 else cls()

    @classmethod
    def of(cls, array: Any) -> Devices:
        """Those that an array lies on."""
        sharding = getattr(array, "sharding", None)
        return cls(sharding.mesh) if isinstance(sharding, NamedSharding) and isinstance(sharding.mesh, Mesh) else cls()

    @property
    def count(self) -> int:
        return self.mesh.size if self.mesh else 1

    @property
    def are_apart(self) -> bool:
        """Whether they are of several processes, each of which has to run every program that they share."""
        return self.mesh is not None and self.mesh.is_multi_process

    @property
    def own(self) -> int:
        """How many of them are of this process."""
        return self.mesh.local_mesh.size if self.mesh else 1

    def parts(self, size: int) -> list[int]:
        """Examples of a batch that each of them takes: as many on each, as far as that goes."""
        most = -(-size // self.count)
        return [min(most, max(0, size - most * position)) for position in range(self.count)]

    def put(self, tree: Any) -> Any:
        """All of these arrays on every device; where these are apart, every process gives the same ones."""
        return jax.tree.map(self._put_apart, tree) if self.are_apart else jax.device_put(tree, self._whole())

    def _put_apart(self, array: Any) -> jax.Array:
        if isinstance(array, jax.Array) and jax.dtypes.issubdtype(array.dtype, jax.dtypes.prng_key):  # pyright: ignore[reportPrivateImportUsage]
            return jax.random.wrap_key_data(self._put_apart(jax.random.key_data(array)))
        held, sharding = np.asarray(array), self._whole()
        assert sharding is not None
        return jax.make_array_from_callback(held.shape, sharding, lambda at: held[at])

    def like(self, array: Any, shape: tuple[int, ...] | None = None) -> jax.ShapeDtypeStruct:
        """What a program is compiled for that takes such an array, of another shape where one is given; one of NumPy
        it brings to every device."""
        return jax.ShapeDtypeStruct(array.shape if shape is None else shape, array.dtype, sharding=self._whole())

    def whole(self, tree: Any) -> Any:
        """In a program: these arrays, all of them on every device."""
        return tree if self.mesh is None else jax.lax.with_sharding_constraint(tree, self._whole())

    def split(self, batch: jax.Array) -> jax.Array:
        """In a program: a batch [B, …], each device having its part; B need not divide by their number."""
        if self.mesh is None:
            return batch
        return jax.lax.with_sharding_constraint(batch, NamedSharding(self.mesh, PartitionSpec(BATCH)))

    def apart(self, call: Callable[..., Any]) -> Callable[..., Any]:
        """A function of (what all have, batches [B, …] …) -> [B, …] in which examples do not mix, each device doing its
        part of the batches on its own; their number divides B."""
        if self.mesh is None:
            return call
        part = PartitionSpec(BATCH)

        def joined(common: Any, *batches: Any) -> Any:
            specs = (PartitionSpec(), *[part] * len(batches))
            return jax.shard_map(call, mesh=self.mesh, in_specs=specs, out_specs=part, check_vma=False)(
                common, *batches
            )

        return joined

    def _whole(self) -> NamedSharding | None:
        return None if self.mesh is None else NamedSharding(self.mesh, PartitionSpec())


def _of_each_process(count: int) -> list[Any]:
    """The first so many devices of each process.

    Raises:
        UserError: one has fewer.
    """
    of = [[d for d in jax.devices() if d.process_index == index] for index in range(jax.process_count())]
    if (least := min(map(len, of))) < count:
        told = f"process {[*map(len, of)].index(least)} has {least}"
        raise refuse("devices", count, f"at most {least} of each process, for {told}")
    return [device for each in of for device in each[:count]]


ONE = Devices()
