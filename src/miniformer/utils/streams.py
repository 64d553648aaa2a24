"""Standard streams: output prints any text, input is UTF-8; consoles and progress bars."""

from __future__ import annotations

import contextlib
import io
import os
import select
import sys
from collections.abc import Callable, Iterator
from typing import IO, TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import TaskID


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


def discard_closed_output() -> bool:
    """Returns whether standard output is a closed pipe, as `head` leaves it; discards the rest."""
    try:
        descriptor = sys.stdout.fileno()
    except OSError:  # a stream in memory
        return False
    poll = select.poll()
    poll.register(descriptor, select.POLLOUT)
    if not any(event & (select.POLLERR | select.POLLHUP) for _, event in poll.poll(0)):
        return False
    os.dup2(os.open(os.devnull, os.O_WRONLY), descriptor)
    return True


def read_stdin() -> str:
    """All of standard input, as UTF-8 regardless of the locale.

    Raises:
        UnicodeDecodeError: the input is not UTF-8.
    """
    buffer = getattr(sys.stdin, "buffer", None)
    return sys.stdin.read() if buffer is None else buffer.read().decode("utf-8")


def make_console(*, quiet: bool = False) -> Console:
    """A console that prints text verbatim: without markup, highlighting or wrapping.

    Args:
        quiet: print nothing.
    """
    from rich.console import Console

    return Console(soft_wrap=True, highlight=False, markup=False, quiet=quiet)


@contextlib.contextmanager
def progress_bars(console: Console) -> Iterator[Callable[[str, int, int], None]]:
    """Yields an `update(name, done, total)` callback, which shows a progress bar for each name."""
    if not console.is_terminal:
        yield lambda name, done, total: None
        return
    from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn

    with Progress(
        TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeElapsedColumn(),
        console=console, transient=True,
    ) as bar:  # fmt: skip
        tasks: dict[str, TaskID] = {}

        def update(name: str, done: int, total: int) -> None:
            if name not in tasks:
                tasks[name] = bar.add_task(name)
            bar.update(tasks[name], completed=done, total=total)

        yield update
