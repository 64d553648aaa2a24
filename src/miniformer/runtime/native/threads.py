"""PyTorch's threads, kept from running beside those of the kernels.

After an operation on several threads those of OpenMP do not sleep at once: for milliseconds they
wait awake for the next, on the cores that the kernels need. On few rows PyTorch's operations gain
nothing by threads, and so have one while a text is written.
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
    """PyTorch's operations of this thread of Python use one thread, where its OpenMP is found.

    `torch.set_num_threads` is no choice: it holds for the first operations of other threads, too.
    """
    library = _openmp_library()
    if library is None:
        yield
        return
    before = library.omp_get_max_threads()
    library.omp_set_num_threads(1)
    try:
        yield
    finally:
        library.omp_set_num_threads(before)


@functools.cache
def _openmp_library() -> ctypes.CDLL | None:
    """The OpenMP library that PyTorch brings along."""
    for path in sorted((Path(torch.__file__).parent / "lib").glob("lib*omp*")):
        with contextlib.suppress(OSError, AttributeError):
            library = ctypes.CDLL(str(path))
            library.omp_get_max_threads, library.omp_set_num_threads  # noqa: B018 (are there)
            return library
    return None
