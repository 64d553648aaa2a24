"""Data files: path expansion, opening, fingerprints and the cache folder."""

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
UTF16_MARKS = (b"\xff\xfe", b"\xfe\xff")
UTF16_FIX = (
    "the file is UTF-16, as spreadsheets save 'Unicode text'; save it as UTF-8, or convert it: "
    "iconv -f utf-16 -t utf-8 < FILE > NEW_FILE"
)
TABLE_TYPES = (".csv", ".tsv")
TAGGED_TYPES = (".conllu", ".conll", ".bio")
ARROW_TYPES = (".parquet", ".arrow")
DATASET_FOLDER = "folder"  # written by save_to_disk of Hugging Face datasets
_FILE_TYPES = (".jsonl", ".json", ".txt", *TABLE_TYPES, *TAGGED_TYPES, *ARROW_TYPES)
COMPRESSIONS = (".gz", ".zst")
_SPREADSHEETS = (".xls", ".xlsx", ".xlsm", ".ods", ".numbers")
_ARCHIVES = (".zip", ".tar", ".tgz", ".7z", ".rar", ".bz2", ".xz")
_SAME_TYPES = {".ndjson": ".jsonl", ".tab": ".tsv", ".pq": ".parquet", ".feather": ".arrow"}
_SIGNATURES = {  # first bytes of files that are no text, whatever their name
    b"PK\x03\x04": "a zip archive, as .xlsx, .ods and .docx are; save a table as .csv (UTF-8)",
    b"\xd0\xcf\x11\xe0": "a file of Microsoft Office; save a table as .csv (UTF-8)",
    b"%PDF-": "a PDF; extract its text first",
    b"PAR1\x15": "a Parquet file; give its name the ending .parquet",
    b"ARROW1\x00": "an Arrow file; give its name the ending .arrow",
    b"\x1f\x8b": "compressed by gzip; give its name the ending .gz",
    b"\x28\xb5\x2f\xfd": "compressed by zstd; give its name the ending .zst",
}
_FINGERPRINT_BLOCKS, _FINGERPRINT_BLOCK_BYTES = 16, 1 << 16


class FileStat(NamedTuple):
    """Identity of an unchanged file."""

    size: int
    mtime_ns: int
    inode: int

    @classmethod
    def from_descriptor(cls, descriptor: int) -> FileStat:
        """Identity of an open file."""
        stat_result = os.fstat(descriptor)
        return cls(stat_result.st_size, stat_result.st_mtime_ns, stat_result.st_ino)


class RandomAccessFile:
    """Open file with random access; closed when the object is collected.

    Reads use `pread`, so forked processes and threads share no file position.

    Args:
        path: the file.
        name: its name in messages.
        file_stat: expected identity; None: the current one.

    Raises:
        UserError: the file cannot be opened, is not a regular file, or has changed.
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
        """Reads exactly `size` bytes at `offset`.

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
        """Fills a buffer from `offset`; returns the number of bytes read, 0 at the end."""
        return os.preadv(self._file.fileno(), [buffer], offset)

    def check_unchanged(self) -> None:
        """Raises a UserError if the file has changed."""
        if FileStat.from_descriptor(self._file.fileno()) != self.stat:
            raise file_changed_error(self.name)


def file_changed_error(name: Path) -> UserError:
    """Error for a file that changed during use."""
    return UserError(
        f"{name}: changed while it was in use; start again (the file is read during the run)"
    )


def reject_binary(handle: RandomAccessFile) -> None:
    """Refuses a file that begins as files of other types do.

    Raises:
        UserError: it is no text.
    """
    start = handle.read(min(8, handle.stat.size), 0)
    for signature, text in _SIGNATURES.items():
        if start.startswith(signature):
            raise UserError(f"{handle.name}: the file is {text}")


def expand_paths(source: DataFiles) -> list[Path]:
    """Expands a path, a pattern such as `data/*.jsonl`, or a list of these.

    Raises:
        UserError: a pattern matches no file, or the list is empty.
    """
    if isinstance(source, (str, os.PathLike)):
        path = Path(source)
        if not glob.has_magic(str(path)) or path.exists():
            return [path]
        # pathlib's glob does not accept absolute patterns.
        matches = sorted(glob.glob(str(path), recursive=True))  # noqa: PTH207
        if not matches:
            raise UserError(f"{source}: no file matches this pattern; check it, or name a file")
        return [Path(match) for match in matches]
    if not source:
        raise UserError("no data file: the list is empty; name at least one")
    return [path for item in source for path in expand_paths(item)]


def parse_suffixes(path: Path) -> tuple[str, str]:
    """File type such as `.jsonl`, and compression, `.gz`, `.zst` or "", by file name.

    Upper case is read as lower case. A folder of Hugging Face `datasets` is a `DATASET_FOLDER`.

    Raises:
        UserError: the path is another folder or has another suffix.
    """
    if path.is_dir():
        return _dataset_folder(path), ""
    compression = suffix if (suffix := path.suffix.lower()) in COMPRESSIONS else ""
    file_type = path.with_suffix("").suffix.lower() if compression else suffix
    if file_type not in _FILE_TYPES:
        raise _unknown_type_error(path, file_type, compression)
    if compression and file_type in ARROW_TYPES:
        raise UserError(f"{path}: a {file_type} file is compressed within; decompress it first")
    return file_type, compression


def _dataset_folder(path: Path) -> str:
    """The type of a folder.

    Raises:
        UserError: it is not one data set of Hugging Face `datasets`.
    """
    if (path / "state.json").is_file():
        return DATASET_FOLDER
    if (path / "dataset_dict.json").is_file():
        splits = sorted(entry.name for entry in path.iterdir() if entry.is_dir())
        raise UserError(f"{path}: has the splits {', '.join(splits)}; name one: {path}/{splits[0]}")
    suffixes = (entry.suffix for entry in sorted(path.iterdir()))
    suffix = next((suffix for suffix in suffixes if suffix in _FILE_TYPES), ".jsonl")
    raise UserError(f"{path}: Is a directory; name its files, such as {path}/*{suffix}")


def _unknown_type_error(path: Path, file_type: str, compression: str) -> UserError:
    problem = f"unknown file type {file_type + compression!r}"
    if file_type in _SPREADSHEETS:
        problem += ", a spreadsheet: save it as .csv (UTF-8)"
    elif file_type in _ARCHIVES:
        problem += ", an archive: extract the files in it"
    elif file_type in _SAME_TYPES:
        problem += f": give its name the ending {_SAME_TYPES[file_type] + compression}"
    elif not file_type:
        exists = "" if path.exists() else ", and no such file"
        problem = f"the name has no ending for the type of the file{exists}"
    return UserError(
        f"{path}: {problem}; use {', '.join(_FILE_TYPES)}; text files optionally compressed as "
        ".gz or .zst"
    )


def text_start(handle: RandomAccessFile) -> int:
    """Offset of the text after a byte-order mark of UTF-8."""
    size = min(len(BYTE_ORDER_MARK), handle.stat.size)
    return size if handle.read(size, 0) == BYTE_ORDER_MARK else 0


def are_plain_text(paths: Sequence[Path], fields: Sequence[str]) -> bool:
    """Returns whether the files of a data set are plain text rather than JSON lines.

    Raises:
        UserError: the file types are mixed, or fields other than text are required of plain text.
    """
    plain = [path for path in paths if parse_suffixes(path)[0] == ".txt"]
    if plain and len(plain) < len(paths):
        structured = next(path for path in paths if path not in plain)
        raise UserError(f"{plain[0]} and {structured}: plain text and records; use one file type")
    if plain and (missing := [name for name in fields if name != "text"]):
        raise UserError(
            f"{plain[0]}: a .txt file has no {' and '.join(missing)}; use .jsonl, or give a table "
            "the ending .csv or .tsv"
        )
    return bool(plain)


def open_file(path: Path, name: Path | None = None, *, regular: bool = True) -> io.FileIO:
    """Opens a file without a buffer; `regular` refuses others, such as pipes.

    Raises:
        UserError: the file cannot be opened, or is not a regular file.
    """
    name = name or path
    try:
        if regular and path.exists() and not path.is_file():  # opening a pipe may block forever
            raise UserError(
                f"{name}: not a regular file, so its records have no random access; "
                "write it to a file first"
            )
        return path.open("rb", buffering=0)
    except OSError as error:
        raise UserError(f"{name}: {error.strerror}") from None


def fingerprint(handle: RandomAccessFile, path: Path) -> str:
    """Hash of a file's path, size, modification time, and evenly spaced blocks."""
    size, mtime_ns, _ = handle.stat
    content = hashlib.blake2b(f"{path.absolute()}\0{size}\0{mtime_ns}".encode(), digest_size=16)
    last = max(0, size - _FINGERPRINT_BLOCK_BYTES)
    for offset in sorted(
        {last * i // (_FINGERPRINT_BLOCKS - 1) for i in range(_FINGERPRINT_BLOCKS)}
    ):
        content.update(handle.read(min(_FINGERPRINT_BLOCK_BYTES, size - offset), offset))
    return content.hexdigest()


def get_cache_dir(cache_dir: str | os.PathLike[str] | None) -> Path:
    """Cache folder, created if missing.

    Args:
        cache_dir: the folder; None: a private one in the platform's temporary folder.

    Raises:
        UserError: the folder cannot be created, or the default one is not private to this user.
    """
    folder = Path(cache_dir or Path(tempfile.gettempdir()) / f"miniformer-{os.getuid()}")
    try:
        if cache_dir:
            folder.mkdir(parents=True, exist_ok=True)
            return folder
        folder.mkdir(mode=0o700, exist_ok=True)
        folder_stat = folder.lstat()
    except OSError as error:
        raise UserError(f"cache_dir: cannot create {folder}: {error.strerror}") from None
    # Other users can create a folder or link of this name in a shared /tmp.
    is_own = stat.S_ISDIR(folder_stat.st_mode) and folder_stat.st_uid == os.getuid()
    if not is_own or folder_stat.st_mode & 0o077:
        raise UserError(
            f"{folder}: other users may write there, or it is not your folder; "
            "remove it, or set another cache_dir"
        )
    return folder
