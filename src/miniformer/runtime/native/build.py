"""The kernels as a library: compiled once for this machine, then loaded."""

from __future__ import annotations

import ctypes
import functools
import hashlib
import os
import platform
import shutil
import subprocess
import sys
from pathlib import Path

from miniformer.runtime.native import ctypes_structs
from miniformer.utils.atomic import atomic_path

_SOURCE = Path(__file__).with_name("kernels.cpp")
_HEADERS = sorted(_SOURCE.parent.glob("*.h"))
# Sums may be taken in any order, and nothing reads errno; infinities and NaN stay what they are.
_FLAGS = (
    "-std=c++20", "-O3", "-fno-math-errno", "-fno-trapping-math", "-fassociative-math",
    "-fno-signed-zeros", "-shared", "-fPIC", "-pthread",
)  # fmt: skip


class NativeKernelsUnavailable(Exception):
    """The kernels cannot be had; says why."""


@functools.cache
def load_library() -> ctypes.CDLL:
    """The compiled kernels.

    They are kept in `~/.cache/miniformer`, or in the folder that MINIFORMER_CACHE names, for this
    source, compiler and processor. MINIFORMER_KERNELS=off does without them.
    MINIFORMER_KERNELS_ARCH is the compiler's `-march`, such as haswell or x86-64; the default is
    native, which is all that this processor can do.

    Raises:
        NoKernels: they are switched off, there is no compiler, or it fails.
    """
    if os.environ.get("MINIFORMER_KERNELS", "").lower() in ("off", "0", "no", "false"):
        raise NativeKernelsUnavailable("MINIFORMER_KERNELS is off")
    compiler = _compiler()
    path = _cache_directory() / f"kernels-{_cache_key(compiler)}.so"
    if not path.exists():
        _compile(compiler, path)
    try:
        loaded = ctypes.CDLL(str(path))
    except OSError as error:
        raise NativeKernelsUnavailable(f"{path} cannot be loaded: {error}") from None
    ctypes_structs.declare_signatures(loaded)
    return loaded


def _compiler() -> str:
    for name in (os.environ.get("CXX"), "c++", "g++", "clang++"):
        found = shutil.which(name) if name else None
        if found:
            return found
    raise NativeKernelsUnavailable("there is no C++ compiler (CXX, c++, g++ or clang++)")


def _cache_directory() -> Path:
    given = os.environ.get("MINIFORMER_CACHE")
    folder = Path(given) if given else Path.home() / ".cache" / "miniformer"
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise NativeKernelsUnavailable(f"{folder} cannot be made: {error.strerror}") from None
    return folder


def _compiler_flags() -> tuple[str, ...]:
    return (*_FLAGS, f"-march={os.environ.get('MINIFORMER_KERNELS_ARCH') or 'native'}")


def _cache_key(compiler: str) -> str:
    """Of everything that the library depends on."""
    version = subprocess.run([compiler, "--version"], capture_output=True, check=False).stdout
    parts = (
        *(each.read_bytes() for each in (_SOURCE, *_HEADERS)),
        version,
        " ".join(_compiler_flags()).encode(),
        _cpu_description().encode(),
    )
    return hashlib.sha256(b"\0".join(parts)).hexdigest()[:16]


def _cpu_description() -> str:
    """What the processor is and can do, as far as the system tells."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return f"{platform.machine()} {platform.processor()}"
    wanted = ("model name", "flags", "Features", "CPU part")
    return "\n".join(sorted({line for line in lines if line.startswith(wanted)}))


def _compile(compiler: str, path: Path) -> None:
    if sys.stderr.isatty():
        print("compiling the decoding kernels, once: some seconds", file=sys.stderr)
    with atomic_path(path) as made:  # complete, whoever else compiles at the same time
        done = subprocess.run(
            [compiler, *_compiler_flags(), str(_SOURCE), "-o", str(made)],
            capture_output=True,
            text=True,
            encoding="utf-8",
            errors="replace",
            check=False,
        )
        if done.returncode:
            told = done.stderr.strip().splitlines()[:1] or ["no reason given"]
            raise NativeKernelsUnavailable(f"{compiler} cannot compile them: {told[0]}")
