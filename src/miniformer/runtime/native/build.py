"""Compilation, caching and loading of the native kernels."""

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
# Allows reordering of sums and omits errno; preserves infinities and NaN.
_FLAGS = (
    "-std=c++20", "-O3", "-fno-math-errno", "-fno-trapping-math", "-fassociative-math",
    "-fno-signed-zeros", "-shared", "-fPIC", "-pthread",
)  # fmt: skip


class NativeKernelsUnavailable(Exception):
    """The native kernels are not available; the message is the reason."""


@functools.cache
def load_library() -> ctypes.CDLL:
    """Loads the kernels, which are compiled once per source, compiler, flags and processor.

    The library is cached in `~/.cache/miniformer`, or in the directory MINIFORMER_CACHE.
    MINIFORMER_KERNELS=off disables the kernels. MINIFORMER_KERNELS_ARCH is the compiler's `-march`,
    such as haswell or x86-64; default: native.

    Raises:
        NativeKernelsUnavailable: the kernels are disabled, there is no compiler, or it fails.
    """
    if os.environ.get("MINIFORMER_KERNELS", "").lower() in ("off", "0", "no", "false"):
        raise NativeKernelsUnavailable("MINIFORMER_KERNELS is off")
    compiler = _compiler()
    path = _cache_directory() / f"kernels-{_cache_key(compiler)}.so"
    if not path.exists():
        _compile(compiler, path)
    try:
        library = ctypes.CDLL(str(path))
    except OSError as error:
        raise NativeKernelsUnavailable(f"{path} cannot be loaded: {error}") from None
    ctypes_structs.declare_signatures(library)
    return library


def _compiler() -> str:
    for name in (os.environ.get("CXX"), "c++", "g++", "clang++"):
        path = shutil.which(name) if name else None
        if path:
            return path
    raise NativeKernelsUnavailable("there is no C++ compiler (CXX, c++, g++ or clang++)")


def _cache_directory() -> Path:
    override = os.environ.get("MINIFORMER_CACHE")
    directory = Path(override) if override else Path.home() / ".cache" / "miniformer"
    try:
        directory.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise NativeKernelsUnavailable(f"cannot create {directory}: {error.strerror}") from None
    return directory


def _compiler_flags() -> tuple[str, ...]:
    return (*_FLAGS, f"-march={os.environ.get('MINIFORMER_KERNELS_ARCH') or 'native'}")


def _cache_key(compiler: str) -> str:
    """Hash of everything that the library depends on."""
    version = subprocess.run([compiler, "--version"], capture_output=True, check=False).stdout
    content = (
        *(path.read_bytes() for path in (_SOURCE, *_HEADERS)),
        version,
        " ".join(_compiler_flags()).encode(),
        _cpu_description().encode(),
    )
    return hashlib.sha256(b"\0".join(content)).hexdigest()[:16]


def _cpu_description() -> str:
    """Model and features of the processor, as far as the system reports them."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return f"{platform.machine()} {platform.processor()}"
    fields = ("model name", "flags", "Features", "CPU part")
    return "\n".join(sorted({line for line in lines if line.startswith(fields)}))


def _compile(compiler: str, path: Path) -> None:
    if sys.stderr.isatty():
        print("compiling the decoding kernels (once, some seconds)", file=sys.stderr)
    with atomic_path(path) as tmp_path:  # other processes may compile at the same time
        result = subprocess.run(
            [compiler, *_compiler_flags(), str(_SOURCE), "-o", str(tmp_path)],
            capture_output=True,
            text=True,
            encoding="utf-8",
            errors="replace",
            check=False,
        )
        if result.returncode:
            message = (result.stderr.strip().splitlines() or ["no error message"])[0]
            raise NativeKernelsUnavailable(f"{compiler} cannot compile them: {message}")
