"""Names to data files; files to bytes; the folder for what is cached of them."""

from __future__ import annotations

import glob
import hashlib
import io
import os
import stat
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from miniformer.config import UserError

DataFiles = str | os.PathLike[str] | Sequence[str | os.PathLike[str]]
ProgressCallback = Callable[[str, int, int], None]

BYTE_ORDER_MARK = b"\xef\xbb\xbf"
_FILE_TYPES = (".jsonl", ".txt")
COMPRESSIONS = (".gz", ".zst")
_FINGERPRINT_BLOCKS, _FINGERPRINT_BLOCK_BYTES = 16, 1 << 16


class FileStat(NamedTuple):
    """By what a file is known to be unchanged."""

    size: int
    mtime_ns: int
    inode: int

    @classmethod
    def from_descriptor(cls, descriptor: int) -> FileStat:
        """That of an open file."""
        found = os.fstat(descriptor)
        return cls(found.st_size, found.st_mtime_ns, found.st_ino)


class RandomAccessFile:
    """An open file, read by position; it closes itself when nobody refers to it any more.

    A read by position moves nothing that forked processes or threads would share.

    Args:
        path: the file.
        name: what to call it in messages.
        stamp: what it must still be; None: what it is now.

    Raises:
        UserError: it cannot be opened, is no regular file, or has changed.
    """

    def __init__(self, path: Path, name: Path, file_stat: FileStat | None = None) -> None:
        if file_stat and not path.exists():
            raise file_changed_error(name)
        self._file = open_file(path, name)
        self.name = name
        self.stat = file_stat or FileStat.from_descriptor(self._file.fileno())
        self.check_unchanged()

    def __del__(self) -> None:
        if hasattr(self, "_file"):
            self._file.close()

    def read(self, size: int, offset: int) -> bytes:
        """Exactly `size` bytes from `offset` on.

        Raises:
            UserError: the file has changed since it was indexed.
        """
        parts = []
        while size > 0 and (part := os.pread(self._file.fileno(), size, offset)):
            parts.append(part)
            size, offset = size - len(part), offset + len(part)
        self.check_unchanged()
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def read_into(self, buffer: memoryview, offset: int) -> int:
        """Fills a buffer from `offset` on, and returns how many bytes it got; 0 at the end."""
        return os.preadv(self._file.fileno(), [buffer], offset)

    def check_unchanged(self) -> None:
        """Refuses to go on with a file that has changed."""
        if FileStat.from_descriptor(self._file.fileno()) != self.stat:
            raise file_changed_error(self.name)


def file_changed_error(name: Path) -> UserError:
    """The error of a file that is no longer what it was."""
    return UserError(
        f"{name}: changed while it was in use; start again (the run reads it as it goes)"
    )


def expand_paths(source: DataFiles) -> list[Path]:
    """The files that a path, a pattern such as `data/*.jsonl`, or a list of these names, in order.

    Raises:
        UserError: a pattern matches nothing, or nothing is named.
    """
    if isinstance(source, (str, os.PathLike)):
        path = Path(source)
        if not glob.has_magic(str(path)) or path.exists():
            return [path]
        found = sorted(glob.glob(str(path), recursive=True))  # noqa: PTH207  # takes absolute ones too
        if not found:
            raise UserError(f"{source}: no file matches this pattern; check it, or name a file")
        return [Path(name) for name in found]
    if not source:
        raise UserError("no data file is named: the list is empty; name at least one")
    return [path for item in source for path in expand_paths(item)]


def parse_suffixes(path: Path) -> tuple[str, str]:
    """What a file holds by its name, `.jsonl` or `.txt`, and how it is packed: `.gz`, `.zst` or "".

    Raises:
        UserError: it is a folder or of another kind.
    """
    if path.is_dir():
        raise UserError(f"{path}: Is a directory; name its files, such as {path}/*.jsonl")
    packing = path.suffix if path.suffix in COMPRESSIONS else ""
    kind = path.with_suffix("").suffix if packing else path.suffix
    if kind not in _FILE_TYPES:
        raise UserError(
            f"{path}: unknown kind of file {kind + packing!r}; use .jsonl or .txt, "
            "which may be packed as .gz or .zst"
        )
    return kind, packing


def are_plain_text(paths: Sequence[Path], fields: Sequence[str]) -> bool:
    """Whether files are running text rather than records.

    Args:
        paths: files that are to be read as one.
        fields: what their records must hold.

    Raises:
        UserError: some are and some are not, or records must hold more than text.
    """
    plain = [path for path in paths if parse_suffixes(path)[0] == ".txt"]
    if plain and len(plain) < len(paths):
        other = next(path for path in paths if path not in plain)
        raise UserError(f"{plain[0]} and {other}: running text and records; use one kind of file")
    if plain and (others := [name for name in fields if name != "text"]):
        raise UserError(f"{plain[0]}: a .txt file holds no {' and '.join(others)}; use .jsonl")
    return bool(plain)


def open_file(path: Path, name: Path | None = None, *, regular: bool = True) -> io.FileIO:
    """A file, open and without a buffer.

    Args:
        path: the file.
        name: what to call it in messages; None: its path.
        regular: whether to refuse what is no regular file, such as a pipe.

    Raises:
        UserError: it cannot be opened, or is no regular file.
    """
    name = name or path
    try:
        if regular and path.exists() and not path.is_file():  # to open a pipe might wait for ever
            raise UserError(
                f"{name}: not a regular file, so its records cannot be had in any order; "
                "write it to a file first"
            )
        return path.open("rb", buffering=0)
    except OSError as error:
        raise UserError(f"{name}: {error.strerror}") from None


def fingerprint(handle: RandomAccessFile, path: Path) -> str:
    """Names a file and its content: path, size, time of change, and blocks from all over it."""
    size, mtime_ns, _ = handle.stat
    content = hashlib.blake2b(f"{path.absolute()}\0{size}\0{mtime_ns}".encode(), digest_size=16)
    last = max(0, size - _FINGERPRINT_BLOCK_BYTES)
    for offset in sorted(
        {last * i // (_FINGERPRINT_BLOCKS - 1) for i in range(_FINGERPRINT_BLOCKS)}
    ):
        content.update(handle.read(min(_FINGERPRINT_BLOCK_BYTES, size - offset), offset))
    return content.hexdigest()


def get_cache_dir(cache_dir: str | os.PathLike[str] | None) -> Path:
    """The folder for caches, made if need be; by default one of this user's own for files to come.

    Args:
        cache_dir: the folder; None: one in the platform's folder for temporary files.

    Raises:
        UserError: it cannot be made, or that in the shared temporary folder is not this user's own.
    """
    folder = Path(cache_dir or Path(tempfile.gettempdir()) / f"miniformer-{os.getuid()}")
    try:
        if cache_dir:
            folder.mkdir(parents=True, exist_ok=True)
            return folder
        folder.mkdir(mode=0o700, exist_ok=True)
        found = folder.lstat()
    except OSError as error:
        raise UserError(f"cache_dir: cannot make {folder}: {error.strerror}") from None
    # Anybody may put a folder or a link of this name into a shared /tmp before this user does.
    own = stat.S_ISDIR(found.st_mode) and found.st_uid == os.getuid()
    if not own or found.st_mode & 0o077:
        raise UserError(
            f"{folder}: others may write there, or it is not your own folder; "
            "remove it, or name another as cache_dir"
        )
    return folder
