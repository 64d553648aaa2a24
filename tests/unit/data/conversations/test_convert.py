"""Conversion of ShareGPT and Alpaca files."""

import json

import pytest

from miniformer import UserError
from miniformer.commands import data_convert
from miniformer.data.conversations.convert import convert_file

SHAREGPT = [
    {"system": "S", "conversations": [{"from": "human", "value": "Q"},
                                      {"from": "gpt", "value": "A"}]},
    {"id": 7, "conversations": [{"from": "system", "value": "S"}, {"from": "user", "value": "Q"},
                                {"from": "function_call", "value": "f()"},
                                {"from": "observation", "value": "1"},
                                {"from": "assistant", "value": "A"}]},
]  # fmt: skip
ALPACA = [
    {"instruction": "Add.", "input": "1 + 1", "output": "2"},
    {"instruction": "Hi", "input": "", "output": "Hello", "system": "S", "history": [["q", "a"]]},
]


def turns(path):
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert all(line.keys() == {"messages"} for line in lines)
    return [[(m["role"], m["content"]) for m in line["messages"]] for line in lines]


def write(path, records, array=False):
    lines = "".join(json.dumps(record) + "\n" for record in records)
    path.write_text(json.dumps(records) if array else lines)
    return str(path)


def test_sharegpt(tmp_path):
    out = tmp_path / "out.jsonl"
    source = write(tmp_path / "a.json", SHAREGPT, array=True)
    assert convert_file(source, out, "sharegpt", drop_invalid=False) == (2, 0)
    assert turns(out) == [
        [("system", "S"), ("user", "Q"), ("assistant", "A")],
        [("system", "S"), ("user", "Q"), ("assistant", "f()"), ("tool", "1"), ("assistant", "A")],
    ]


@pytest.mark.catches("inputs_are_left_out")
def test_alpaca(tmp_path):
    out = tmp_path / "out.jsonl"
    source = write(tmp_path / "a.jsonl", ALPACA)
    assert convert_file(source, out, "alpaca", drop_invalid=False) == (2, 0)
    assert turns(out) == [
        [("user", "Add.\n\n1 + 1"), ("assistant", "2")],
        [
            ("system", "S"),
            ("user", "q"),
            ("assistant", "a"),
            ("user", "Hi"),
            ("assistant", "Hello"),
        ],
    ]


@pytest.mark.parametrize(
    ("layout", "record", "message"),
    [
        ("sharegpt", ALPACA[0], "has no list 'conversations' .* is it in the layout sharegpt"),
        ("sharegpt", {"conversations": [{"from": "human"}]}, "no 'from' and 'value' in turn 1"),
        ("sharegpt", {"conversations": [{"from": "elf", "value": "x"}]}, "has 'elf' as 'from'"),
        ("sharegpt", {"conversations": SHAREGPT[0]["conversations"][1:]}, "without a user turn"),
        ("alpaca", SHAREGPT[0], "has no text 'instruction'"),
        ("alpaca", {"instruction": "a", "output": ""}, "empty content"),
        ("alpaca", {**ALPACA[1], "history": ["x"]}, "part 1 of 'history'"),
    ],
)
def test_invalid_records_are_refused_or_dropped(tmp_path, layout, record, message):
    valid = SHAREGPT[0] if layout == "sharegpt" else ALPACA[0]
    source, out = write(tmp_path / "a.jsonl", [valid, record]), tmp_path / "out.jsonl"
    with pytest.raises(UserError, match=rf"a\.jsonl:2: the record .*{message}"):
        convert_file(source, out, layout, drop_invalid=False)
    assert not out.exists()
    assert convert_file(source, out, layout, drop_invalid=True) == (1, 1)


@pytest.mark.catches("invalid_records_are_dropped_unasked")
def test_the_command(tmp_path, capsys):
    source, out = write(tmp_path / "a.jsonl", ALPACA), tmp_path / "out.jsonl"
    options = {"file": source, "out": str(out), "from": "alpaca", "invalid": "refuse"}
    assert data_convert.run(options) == 0
    assert "2 conversations written" in capsys.readouterr().out
    for changes, message in [
        ({}, "exists; name another file"),
        ({"out": str(tmp_path / "x.txt")}, r"name a \.jsonl file"),
        ({"out": str(tmp_path / "no/x.jsonl")}, "does not exist"),
        ({"from": "vicuna"}, "from must be sharegpt or alpaca"),
        ({"invalid": "keep"}, "invalid must be refuse or drop"),
    ]:
        with pytest.raises(UserError, match=message):
            data_convert.run({**options, **changes})
    bad = write(tmp_path / "b.jsonl", [SHAREGPT[0]])
    with pytest.raises(UserError, match="each of 1 records is invalid"):
        convert_file(bad, tmp_path / "c.jsonl", "alpaca", drop_invalid=True)
