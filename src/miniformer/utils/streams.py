"""Standard streams: output prints any text, input is UTF-8."""

from __future__ import annotations

import contextlib
import io
import sys
from collections.abc import Iterator
from typing import IO, Any


@contextlib.contextmanager
def printable_output(*extra_streams: IO[str]) -> Iterator[None]:
    """Escapes characters that standard output and error cannot encode.

    A terminal or pipe may be latin-1, cp1252 or ASCII, where `print` raises UnicodeEncodeError. An
    error handler that the user set (PYTHONIOENCODING=latin-1:replace) is respected. The streams
    are restored when the block ends.

    Args:
        extra_streams: other text streams.
    """
    changed: list[tuple[Any, str]] = []
    for stream in dict.fromkeys((sys.stdout, sys.stderr, *extra_streams)):
        errors = getattr(stream, "errors", None)
        if isinstance(stream, io.TextIOWrapper) and errors in ("strict", "surrogateescape"):
            stream.reconfigure(errors="backslashreplace")
            changed.append((stream, errors))
    try:
        yield
    finally:
        for stream, errors in changed:
            if not stream.closed:
                stream.reconfigure(errors=errors)


def read_stdin() -> str:
    """All of standard input, as UTF-8 regardless of the locale.

    Raises:
        UnicodeDecodeError: the input is not UTF-8.
    """
    buffer = getattr(sys.stdin, "buffer", None)
    return sys.stdin.read() if buffer is None else buffer.read().decode("utf-8")
