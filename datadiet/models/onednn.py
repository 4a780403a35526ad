"""Convolutions by oneDNN on a CPU, as PyTorch has them, instead of by XLA: `DATADIET_PLUGINS=datadiet.models.onednn`.

Needs oneDNN 3 where pip puts it (`datadiet[onednn]`), and a C++ compiler: the first import compiles onednn.cc, which
takes seconds, into the user's cache. Results are equal to XLA's to rounding. Source: oneDNN's and XLA's C++ interfaces.
"""

from __future__ import annotations

import ctypes
import os
import subprocess
import sysconfig
from functools import partial
from hashlib import sha256
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from datadiet.errors import UserError
from datadiet.home import cache_folder
from datadiet.intake import check_ours, private_folder
from datadiet.models import conv
from datadiet.models.conv import Pads
from datadiet.temporary import temporary_path

SOURCE = Path(__file__).with_suffix(".cc")
TARGET = "datadiet_convolution"
FORWARD, INPUT_GRADIENT, KERNEL_GRADIENT = range(3)  # as in onednn.cc


def use() -> None:
    """Let oneDNN compute what `models.conv` has on a CPU.

    Raises:
        UserError: there is no oneDNN 3, or nothing that compiles.
    """
    library = ctypes.CDLL(str(compiled()))
    jax.ffi.register_ffi_target(TARGET, jax.ffi.pycapsule(library.Convolution), platform="cpu")
    conv.LIBRARY["forward"] = forward
    conv.LIBRARY["input_gradient"] = partial(computed, INPUT_GRADIENT)
    conv.LIBRARY["kernel_gradient"] = partial(computed, KERNEL_GRADIENT)


def compiled() -> Path:
    """The shared library, compiled where the cache has none of this source and these versions."""
    place = Path(sysconfig.get_path("data"))
    headers, dnnl = place / "include", place / "lib" / "libdnnl.so.3"
    if not dnnl.exists() or not (headers / "oneapi/dnnl/dnnl.hpp").exists():
        raise UserError(f"There is no oneDNN 3 below {place}. It comes with: pip install 'datadiet[onednn]'")
    source = SOURCE.read_bytes()
    name = sha256(f"{source} {dnnl.resolve()} {jax.__version__}".encode()).hexdigest()[:16]
    path = private_folder(cache_folder() / "onednn", ours=True) / f"{name}.so"
    if not path.exists():
        temporary = temporary_path(path)
        command = [os.environ.get("CXX", "g++"), "-O2", "-std=c++17", "-shared", "-fPIC", str(SOURCE)]
        command += [f"-I{headers}", f"-I{jax.ffi.include_dir()}", str(dnnl), f"-Wl,-rpath,{dnnl.parent}"]
        try:
            subprocess.run([*command, "-o", str(temporary)], check=True, capture_output=True, text=True)
        except (OSError, subprocess.CalledProcessError) as error:
            said = getattr(error, "stderr", None) or str(error)
            raise UserError(f"{SOURCE} was not compiled: {said.strip()}. CXX names a C++ compiler.") from error
        os.replace(temporary, path)
    check_ours(path)
    return path


def forward(strides: tuple[int, int], pads: Pads, precision: object, a: jax.Array, kernel: jax.Array) -> jax.Array:
    """As `conv.forward`."""
    sides = zip(a.shape[1:3], pads, kernel.shape, strides)
    outputs = ((n + sum(pad) - size) // stride + 1 for n, pad, size, stride in sides)
    return computed(FORWARD, strides, pads, precision, a, kernel, (len(a), *outputs, kernel.shape[3]))


def computed(kind: int, strides, pads, precision, first, second, shape) -> jax.Array:
    """One of the three as `conv` has it, by the foreign function; under vmap one after the other."""
    call = jax.ffi.ffi_call(TARGET, jax.ShapeDtypeStruct(shape, jnp.float32), vmap_method="sequential")
    numbers = {"strides": strides, "lows": [low for low, _ in pads], "highs": [high for _, high in pads]}
    return call(first, second, kind=np.int64(kind), **{name: np.array(n, np.int64) for name, n in numbers.items()})


use()
