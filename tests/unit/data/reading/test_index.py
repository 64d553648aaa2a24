"""Indexes of plain and compressed files, compared with reading them at once."""

import contextlib
import gzip
import os
import stat
import sys
import tempfile
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from miniformer.config import UserError
from miniformer.data.reading import decompression, files, index
from miniformer.data.reading.decompression import open_stream
from miniformer.data.reading.index import IndexedFile
from miniformer.data.reading.parsing import RecordError
from miniformer.utils.atomic import PendingFile

MARK = b"\xef\xbb\xbf"
LINES = st.lists(
    st.sampled_from([b"", b" ", b"\t \r", b"\r", b"a", b" b", b'{"x": 1}\r', b"\xff", MARK])
    | st.binary(max_size=40)
)


@pytest.fixture(autouse=True)
def _own_temporary_folder(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))


def write(folder, content, name="a.jsonl"):
    path = folder / name
    path.write_bytes(content)
    return path


def lines_of(content):
    """(line number, bytes) of each line that is not blank."""
    lines = content.removeprefix(MARK).split(b"\n")
    ended = [line + b"\n" for line in lines[:-1]] + lines[-1:]
    return [(i, line) for i, line in enumerate(ended, 1) if line.strip()]


@given(LINES, st.booleans(), st.booleans(), st.integers(1, 12))
def test_index_lines_match_a_naive_reader(tmp_path_factory, lines, marked, ended, chunk):
    content = MARK * marked + b"\n".join(lines) + b"\n" * ended
    expected = lines_of(content)
    path = write(tmp_path_factory.mktemp("lines"), content)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(index, "_SCAN_BYTES", chunk)
        if not expected:
            with pytest.raises(UserError, match="the file is empty"):
                IndexedFile(path, is_plain_text=False)
            return
        file = IndexedFile(path, is_plain_text=False)
    rows = range(len(file))
    assert list(zip(map(file.line_number, rows), file.read(rows), strict=True)) == expected
    assert file.sizes.tolist() == [len(line) for _, line in expected]
    for row, (_, line) in enumerate(expected):
        assert list(file.read([row])) == [line]
    assert file.index.n_bytes == file.sizes.sum()
    assert file.index.blank_lines.shape[1] + len(expected) >= content.removeprefix(MARK).count(
        b"\n"
    )


@pytest.mark.catches("text_is_cut_within_lines")
@given(
    st.text(st.sampled_from("ab\nÄ€😀\r"), min_size=1),
    st.booleans(),
    st.integers(1, 9),
    st.integers(4, 12),
)
def test_index_blocks_join_to_the_text(tmp_path_factory, text, marked, block_bytes, most):
    path = write(tmp_path_factory.mktemp("text"), MARK * marked + text.encode(), "a.txt")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(index, "TEXT_BLOCK_BYTES", block_bytes)
        patch.setattr(index, "MAX_TEXT_BLOCK_BYTES", max(most, block_bytes))
        patch.setattr(index, "_LINE_END_SEARCH_BYTES", 3)
        file = IndexedFile(path, is_plain_text=True)
    blocks = list(file.read(range(len(file))))
    assert b"".join(blocks) == text.encode()
    for row, block in enumerate(blocks):
        block.decode()  # cut between characters
        assert 1 <= len(block) <= max(most, block_bytes)
        assert file.line_number(row) == 1 + b"".join(blocks[:row]).count(b"\n")
    for block in blocks[:-1]:
        assert b"\n" not in block[block_bytes - 1 : -1], "a block ends at the first line end"
        assert block.endswith(b"\n") or len(block) > max(most, block_bytes) - 4


def test_index_blocks_without_line_ends_may_split_characters(tmp_path, monkeypatch):
    monkeypatch.setattr(index, "TEXT_BLOCK_BYTES", 4)
    monkeypatch.setattr(index, "MAX_TEXT_BLOCK_BYTES", 8)
    file = IndexedFile(write(tmp_path, b"\x80" * 20, "a.txt"), is_plain_text=True)
    assert [len(block) for block in file.read(range(3))] == [8, 8, 4]


def test_index_rejects_a_line_that_is_too_long_without_reading_it(tmp_path):
    path = tmp_path / "a.jsonl"
    with path.open("wb") as file:
        file.write(b'{"text": ""}\n\n')
        file.truncate(100 << 20)  # the rest are zeros that take no room
    with pytest.raises(RecordError) as caught:
        IndexedFile(path, is_plain_text=False)
    assert str(caught.value) == (
        f"{path}:3: the line has 104,857,586 bytes; the limit is 67,108,864; "
        "put one object on each line"
    )


def test_index_is_cached_and_reused(tmp_path, monkeypatch):
    path = write(tmp_path, b"a\n\nb\n")
    first = IndexedFile(path, is_plain_text=False, cache_dir=tmp_path / "cache")
    (cached,) = (tmp_path / "cache").iterdir()
    monkeypatch.setattr(index, "index_lines", None)
    second = IndexedFile(path, is_plain_text=False, cache_dir=tmp_path / "cache")
    assert list(second.read([0, 1])) == list(first.read([0, 1])) == [b"a\n", b"b\n"]
    assert second.line_number(1) == 3
    assert np.load(cached, allow_pickle=False).dtype == np.int64
    assert not second.index.starts.flags.owndata, "it stays on disk"


def test_index_is_cached_for_large_files_only(tmp_path, monkeypatch):
    path = write(tmp_path, b"a\nb\n")
    IndexedFile(path, is_plain_text=False)
    assert list(tmp_path.iterdir()) == [path]
    monkeypatch.setattr(index, "MIN_CACHED_FILE_BYTES", 3)
    IndexedFile(path, is_plain_text=False)
    (folder,) = set(tmp_path.iterdir()) - {path}
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert len(list(folder.iterdir())) == 1


def test_index_of_a_changed_file_is_rebuilt(tmp_path):
    path = write(tmp_path, b"aa\nbb\n")
    IndexedFile(path, is_plain_text=False, cache_dir=tmp_path / "cache")
    stat = path.stat()
    path.write_bytes(b"a\nbbb\n")
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))  # same size, same time
    file = IndexedFile(path, is_plain_text=False, cache_dir=tmp_path / "cache")
    assert list(file.read([0, 1])) == [b"a\n", b"bbb\n"]


@pytest.mark.parametrize("damage", ["empty", "cut", "text", "one bit", "of another file", "pickle"])
def test_index_of_a_broken_cache_file_is_rebuilt(tmp_path, damage):
    path = write(tmp_path, b"a\nbb\n\nccc\n")
    cache = tmp_path / "cache"
    IndexedFile(path, is_plain_text=False, cache_dir=cache)
    (cached,) = cache.iterdir()
    good = cached.read_bytes()
    second_path = write(tmp_path, b"1\n2\n\n3333\n", "b.jsonl")
    IndexedFile(second_path, is_plain_text=False, cache_dir=cache)
    (second_cached,) = set(cache.iterdir()) - {cached}
    np.save(tmp_path / "objects.npy", np.array([{}], dtype=object), allow_pickle=True)
    cached.write_bytes(
        {
            "empty": b"",
            "cut": good[:-8],
            "text": b"not an array",
            "one bit": good[:-24] + bytes([good[-24] ^ 1]) + good[-23:],
            "of another file": second_cached.read_bytes(),
            "pickle": (tmp_path / "objects.npy").read_bytes(),
        }[damage]
    )
    file = IndexedFile(path, is_plain_text=False, cache_dir=cache)
    assert list(file.read([0, 1, 2])) == [b"a\n", b"bb\n", b"ccc\n"]
    assert cached.read_bytes() == good


def test_index_cache_without_room_is_skipped(tmp_path, monkeypatch):
    def full(*args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(PendingFile, "__init__", full)
    file = IndexedFile(
        write(tmp_path, b"a\nb\n"), is_plain_text=False, cache_dir=tmp_path / "cache"
    )
    assert list(file.read([1])) == [b"b\n"]
    packed = write(tmp_path, gzip.compress(b"a\n"), "a.jsonl.gz")
    with pytest.raises(
        UserError, match=r"cannot decompress it into .*: No space left on device; free"
    ):
        IndexedFile(packed, is_plain_text=False, cache_dir=tmp_path / "cache")


def test_index_cache_dir_that_cannot_be_created_is_refused(tmp_path):
    path = write(tmp_path, b"a\n")
    with pytest.raises(UserError, match="cache_dir: cannot create"):
        IndexedFile(path, is_plain_text=False, cache_dir=path / "cache")


@pytest.mark.parametrize("trap", ["a link", "open to others", "a file"])
def test_index_cache_is_never_in_a_folder_that_others_may_write(tmp_path, trap):
    folder = tmp_path / f"miniformer-{os.getuid()}"
    if trap == "a link":
        (tmp_path / "elsewhere").mkdir(mode=0o700)
        folder.symlink_to(tmp_path / "elsewhere")
    elif trap == "open to others":
        folder.mkdir()
        folder.chmod(0o777)
    else:
        folder.write_text("")
    with pytest.raises(UserError, match=f"miniformer-{os.getuid()}"):
        IndexedFile(write(tmp_path, gzip.compress(b"a\n"), "a.jsonl.gz"), is_plain_text=False)
    assert not (tmp_path / "elsewhere").is_dir() or not list((tmp_path / "elsewhere").iterdir())


PACKERS = {"gz": gzip.compress, "zst": zstandard.ZstdCompressor().compress}


@pytest.mark.parametrize("packing", PACKERS)
def test_compressed_file_reads_like_the_plain_file(tmp_path, packing, monkeypatch):
    content = [b"%d\n" % i for i in range(50_000)]
    frames = [b"".join(content[:30_000]), b"", b"".join(content[30_000:])]
    calls = []
    path = write(tmp_path, b"".join(map(PACKERS[packing], frames)), f"a.jsonl.{packing}")
    file = IndexedFile(path, is_plain_text=False, progress=lambda *args: calls.append(args))
    assert list(file.read(range(len(file)))) == content
    size = path.stat().st_size
    assert (str(path), size, size) in calls
    assert calls[-1] == (str(path), len(b"".join(content)), len(b"".join(content)))
    assert all(0 < done <= total for _, done, total in calls)
    with open_stream(path) as stream:
        assert stream.read() == b"".join(content)

    monkeypatch.setattr(decompression, "PendingFile", None)
    assert len(IndexedFile(path, is_plain_text=False)) == len(content), "unpacked once"
    with contextlib.suppress(TypeError):  # and again when the packed file has changed
        write(tmp_path, PACKERS[packing](b"new\n"), path.name)
        IndexedFile(path, is_plain_text=False)
        pytest.fail("an old copy was used")


@pytest.mark.catches("cut_off_file_passes_for_whole")
@pytest.mark.parametrize("packing", PACKERS)
@pytest.mark.parametrize("damage", ["cut", "cut after the first frame", "spoilt", "not packed"])
def test_compressed_file_that_is_broken_leaves_no_files(tmp_path, packing, damage):
    packed = PACKERS[packing](os.urandom(40_000) + b"\n")
    content = {
        "cut": packed[:-100],
        "cut after the first frame": packed + packed[:20],
        "spoilt": packed + b"spoilt spoilt spoilt",
        "not packed": b'{"text": "a"}\n',
    }[damage]
    path = write(tmp_path, content, f"a.jsonl.{packing}")
    with pytest.raises(UserError, match=rf"a\.jsonl\.{packing}: (the file is cut off|not a valid)"):
        IndexedFile(path, is_plain_text=False, cache_dir=tmp_path / "cache")
    assert list((tmp_path / "cache").iterdir()) == []
    with open_stream(path) as stream, pytest.raises(UserError, match=r"cut off|not a valid"):
        stream.read()


def test_gzip_with_trailing_zeros_is_read(tmp_path):
    path = write(tmp_path, gzip.compress(b"a\n") + bytes(100_000), "a.jsonl.gz")
    assert list(IndexedFile(path, is_plain_text=False).read([0])) == [b"a\n"]


@pytest.mark.parametrize("packing", PACKERS)
def test_decompression_of_a_bomb_takes_little_memory(tmp_path, packing):
    path = write(tmp_path, PACKERS[packing](bytes(1 << 29)), f"a.txt.{packing}")
    tracemalloc.start()
    with open_stream(path) as stream:
        assert stream.read(10) == bytes(10)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1 << 28


@pytest.mark.skipif(sys.version_info >= (3, 14), reason="Python brings its own")
def test_zstd_without_its_package_is_an_error(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "zstandard", None)
    path = write(tmp_path, PACKERS["zst"](b"a\n"), "a.jsonl.zst")
    with pytest.raises(UserError, match=r'pip install "miniformer\[zstd\]"'):
        IndexedFile(path, is_plain_text=False)
    with pytest.raises(UserError, match=r'pip install "miniformer\[zstd\]"'):
        open_stream(path)


@pytest.mark.catches("changed_file_is_read_on")
@pytest.mark.parametrize("change", ["longer", "same size", "cut", "replaced", "gone"])
def test_file_that_changes_while_open_is_an_error(tmp_path, change):
    path = write(tmp_path, b"aa\nbb\n")
    file = IndexedFile(path, is_plain_text=False)
    later = path.stat().st_mtime_ns + 10**9
    if change == "replaced":
        write(tmp_path, b"aa\nbb\n", "b.jsonl").replace(path)
        file.close()
    elif change == "gone":
        path.unlink()
        file.close()
    else:
        content = {"longer": b"aa\nbb\ncc\n", "same size": b"aaa\nb\n", "cut": b"aa\n"}[change]
        path.write_bytes(content)
        os.utime(path, ns=(later, later))
    with pytest.raises(UserError) as caught:
        list(file.read([1]))
    assert str(caught.value) == (
        f"{path}: changed while it was in use; start again (the file is read during the run)"
    )


def test_data_paths_expand_patterns_and_lists(tmp_path, monkeypatch):
    for name in ("b.jsonl", "a.jsonl", "c.txt", "d[1].jsonl"):
        write(tmp_path, b"", name)
    monkeypatch.chdir(tmp_path)
    assert files.expand_paths("*.jsonl") == [Path("a.jsonl"), Path("b.jsonl"), Path("d[1].jsonl")]
    assert files.expand_paths("d[1].jsonl") == [Path("d[1].jsonl")]
    assert files.expand_paths(["c.txt", Path("a.jsonl")]) == [Path("c.txt"), Path("a.jsonl")]
    with pytest.raises(UserError, match=r"x\*\.jsonl: no file matches this pattern"):
        files.expand_paths("x*.jsonl")
    with pytest.raises(UserError, match="no data file: the list is empty"):
        files.expand_paths([])


def test_pipe_without_a_writer_does_not_block(tmp_path):
    os.mkfifo(tmp_path / "a.jsonl")
    with pytest.raises(UserError, match="not a regular file"):
        IndexedFile(tmp_path / "a.jsonl", is_plain_text=False)
