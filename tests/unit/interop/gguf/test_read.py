"""Damaged GGUF files are refused without large allocations."""

import random
import struct
import tracemalloc

import pytest

from miniformer.config import UserError
from miniformer.interop.gguf.load import import_gguf, open_gguf
from miniformer.interop.gguf.read import GgufFile
from tests.unit.interop.gguf import cases


def text(value):
    return struct.pack("<Q", len(value)) + value.encode()


def header(tensors=0, keys=0, version=3):
    return b"GGUF" + struct.pack("<IQQ", version, tensors, keys)


def a_key(name, kind, payload):
    return text(name) + struct.pack("<I", kind) + payload


def info(name, shape, kind, offset):
    dims = struct.pack(f"<I{len(shape)}Q", len(shape), *shape)
    return text(name) + dims + struct.pack("<IQ", kind, offset)


DAMAGED = {
    "no file of the format": (b"PK\3\4" + bytes(60), "not a GGUF file"),
    "a version of the future": (header(version=9), "version 9 is not supported"),
    "big-endian": (b"GGUF" + struct.pack(">IQQ", 3, 0, 0), "a big-endian file"),
    "keys without end": (header(keys=2**62), "it names 0 tensors and"),
    "tensors without end": (header(tensors=2**40), "tensors and 0 keys"),
    "a string of an exabyte": (
        header(keys=1) + a_key("a", 8, struct.pack("<Q", 2**60)), "has a string of"
    ),
    "an array of an exabyte": (
        header(keys=1) + a_key("a", 9, struct.pack("<IQ", 12, 2**57)), "has an array of"
    ),
    "strings that are not there": (
        header(keys=1) + a_key("a", 9, struct.pack("<IQ", 8, 2**23)), "ends within its header"
    ),
    "nested arrays": (
        header(keys=1) + a_key("a", 9, struct.pack("<IQ", 9, 1)), "items of the type 9"
    ),
    "an unknown type of values": (header(keys=1) + a_key("a", 77, b""), "unknown type 77"),
    "the end within a number": (header(keys=1) + a_key("a", 4, b"\1"), "ends within its header"),
    "no UTF-8": (
        header(keys=1) + a_key("a", 8, struct.pack("<Q", 2) + b"\xff\xfe"), "is not UTF-8"
    ),
    "a key twice": (
        header(keys=2) + 2 * a_key("a", 0, b"\1"), "the key 'a' occurs twice"
    ),
    "an unknown type of tensors": (
        header(tensors=1) + info("t", [32], 99, 0) + bytes(64), "type 99, which is not supported"
    ),
    "a shape beyond numbers": (
        header(tensors=1) + info("t", [2**40, 2**40], 0, 0), "has shape"
    ),
    "part of a block": (header(tensors=1) + info("t", [16], 8, 0) + bytes(64), "has shape"),
    "ten axes": (header(tensors=1) + text("t") + struct.pack("<I", 10), "has 10 axes"),
    "data beyond the file": (
        header(tensors=1) + info("t", [2**30], 0, 0) + bytes(64), "ends beyond the file"
    ),
    "an offset that is not aligned": (
        header(tensors=1) + info("t", [4], 0, 8) + bytes(128), "is not aligned"
    ),
    "data twice": (
        header(tensors=2) + info("t", [32], 0, 0) + info("u", [8], 0, 32) + bytes(512), "overlap"
    ),
    "an alignment of nothing": (
        header(keys=1) + a_key("general.alignment", 4, struct.pack("<I", 0)), "multiple of 8"
    ),
}  # fmt: skip


@pytest.mark.catches("gguf_headers_are_padded_with_zeros")
@pytest.mark.parametrize("name", DAMAGED)
def test_damaged_files_are_refused_in_little_memory(name, tmp_path):
    content, message = DAMAGED[name]
    (tmp_path / "model.gguf").write_bytes(content)
    tracemalloc.start()
    try:
        with pytest.raises(UserError) as error:
            GgufFile(tmp_path / "model.gguf")
        assert tracemalloc.get_traced_memory()[1] < 2**20
    finally:
        tracemalloc.stop()
    assert message in str(error.value)
    assert str(error.value).startswith(str(tmp_path / "model.gguf"))
    assert "\n" not in str(error.value)


def test_a_missing_file_is_one_message(tmp_path):
    with pytest.raises(UserError, match="cannot be read: No such file"):
        open_gguf(tmp_path / "model.gguf")


@pytest.mark.parametrize("name", ["llama3", "gpt_neox", "gemma3", "bert", "t5"])
def test_files_with_changed_bytes_load_or_are_refused(name, tmp_path):
    path, dice = tmp_path / "model.gguf", random.Random(name)
    cases.write(cases.build(name, vocab_size=32, d_ff=32), path, weights="q8_0")
    original = path.read_bytes()
    start = min(item.start for item in GgufFile(path).tensors.values())
    refused = 0
    for number in range(60):
        data = bytearray(original)
        for _ in range(dice.choice([1, 2, 5])):
            data[dice.randrange(start)] = dice.choice([0, 1, 127, 255, dice.randrange(256)])
        if number % 10 == 0:
            del data[dice.randrange(len(data)) :]
        path.write_bytes(data)
        try:
            open_gguf(path)
        except UserError:
            refused += 1
    assert refused > 10


def test_keys_that_do_not_fit_the_tensors_are_refused(tmp_path):
    path = tmp_path / "model.gguf"
    cases.write(cases.build("llama"), path)
    data = path.read_bytes()
    key = text("llama.block_count") + struct.pack("<I", 4)
    position = data.index(key) + len(key)
    for number, message in [(9999, "more than there are tensors"), (2, "is unknown"),
                            (4, "it has no tensor blk.3"), (0, "positive integer"),
                            (10**6, "more than 10000 layers")]:  # fmt: skip
        path.write_bytes(data[:position] + struct.pack("<I", number) + data[position + 4 :])
        with pytest.raises(UserError, match=message):
            import_gguf(path, tmp_path / "back")
    assert not (tmp_path / "back").exists()
