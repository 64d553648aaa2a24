"""Standard streams: output prints any text, input is UTF-8."""

from __future__ import annotations

import contextlib
import io
import sys
from collections.abc import Iterator
from typing import IO, Any


@contextlib.contextmanager
def printable_output(*extra_streams: IO[str]) -> Iterator[None]:
    """Has standard output and error print any text: a character they cannot encode is escaped.

    A terminal or pipe may be latin-1, cp1252 or ASCII, where `print` raises UnicodeEncodeError. A
    way to handle this that the user has chosen (PYTHONIOENCODING=latin-1:replace) stays. The
    streams are as before when the block ends.

    Args:
        more: other text streams.
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
    """All of standard input, as UTF-8 whatever the locale says.

    Raises:
        UnicodeDecodeError: it is not UTF-8.
    """
    buffer = getattr(sys.stdin, "buffer", None)
    return sys.stdin.read() if buffer is None else buffer.read().decode("utf-8")
