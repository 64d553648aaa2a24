"""PyTorch's threads: their limit while the kernels decode, and work on them.

After a parallel operation OpenMP threads spin for milliseconds on the cores that the kernels need.
PyTorch's operations on few rows gain nothing from several threads, so they use one.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
from collections.abc import Iterator
from pathlib import Path

import torch


@contextlib.contextmanager
def single_openmp_thread() -> Iterator[None]:
    """Limits PyTorch's operations in this Python thread to one thread, if OpenMP is found.

    `torch.set_num_threads` would also affect other Python threads.
    """
    library = _openmp_library()
    if library is None:
        yield
        return
    previous = library.omp_get_max_threads()
    library.omp_set_num_threads(1)
    try:
        yield
    finally:
        library.omp_set_num_threads(previous)


def parallel_function() -> int | None:
    """Address of the function that runs work on PyTorch's own threads; None: not found.

    It is `GOMP_parallel`, which the OpenMP libraries of GCC and LLVM have. Threads of another
    library would compete with PyTorch's, which spin after each operation.
    """
    library = _openmp_library()
    if library is None or not hasattr(library, "GOMP_parallel"):
        return None
    return ctypes.cast(library.GOMP_parallel, ctypes.c_void_p).value


@functools.cache
def _openmp_library() -> ctypes.CDLL | None:
    """The OpenMP library bundled with PyTorch."""
    for path in sorted((Path(torch.__file__).parent / "lib").glob("lib*omp*")):
        with contextlib.suppress(OSError, AttributeError):
            library = ctypes.CDLL(str(path))
            library.omp_get_max_threads, library.omp_set_num_threads  # noqa: B018 (checks presence)
            return library
    return None
