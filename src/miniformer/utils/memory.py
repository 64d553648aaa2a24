"""Memory of the process."""

from __future__ import annotations

import contextlib
import ctypes


def release_freed_memory() -> None:
    """Returns memory that the process has freed to the system, where its C library can (glibc)."""
    with contextlib.suppress(OSError, AttributeError, TypeError):
        ctypes.CDLL(None).malloc_trim(0)
