"""`miniformer data check` shows what is learned of a record."""

import json

import pytest

from miniformer.cli import main

RECORDS = {
    "messages": {
        "messages": [
            {"role": "user", "content": "Two and two?"},
            {"role": "assistant", "content": "Four."},
            {"role": "user", "content": "Sure?"},
            {"role": "assistant", "content": "Yes.", "learn": False},
        ]
    },
    "parts": {"prompt": "Two and two? ", "completion": "Four."},
}


@pytest.mark.catches("nothing_is_marked_as_learned")
@pytest.mark.parametrize("kind", RECORDS)
def test_data_check_marks_what_is_learned(kind, tmp_path, capsys):
    path = tmp_path / "chats.jsonl"
    path.write_text(json.dumps(RECORDS[kind]) + "\n")
    flags = ["--task_config", '{"chat_template": "plain"}'] if kind == "messages" else []
    assert main(["data", "check", str(path), *flags]) == 0
    out = capsys.readouterr().out
    assert "learned: in [[ ]]" in out
    example = out[out.index("learned: in [[ ]]") + len("learned: in [[ ]]") :]
    assert example.count("[[") == 1
    learned = example[example.index("[[") + 2 : example.index("]]")]
    assert learned.strip().startswith("Four.")
    assert "Yes." not in learned
    assert "Two and two?" in example[: example.index("[[")]
