"""Files of JSON, and rows of metrics in JSON Lines files."""

import pytest

from miniformer.utils.jsonl import append_row, is_due, read_json, read_rows


def test_log_rows_are_spread_over_a_run():
    assert is_due(0.0, -1.0, 8)  # the first
    assert not is_due(0.5, 0.4375, 8)
    assert is_due(0.5, 0.375, 8)
    assert is_due(0.5, 0.25, 8)
    assert is_due(0.25, 0.5, 8)  # of a run that has been extended
    written, last = [], -1.0
    for step in range(1, 65):
        if is_due(step / 64, last, 8):
            written.append(step)
            last = step / 64
    assert written == [1, 9, 17, 25, 33, 41, 49, 57]


@pytest.mark.catches("rows_of_steps_done_again_stay")
def test_resume_removes_rows_after_the_checkpoint(tmp_path):
    path, rows = tmp_path / "metrics.jsonl", [{"step": step} for step in range(5)]
    for row in rows:
        append_row(path, row)
    assert read_rows(path, 3, truncate=False) == rows[:3]
    assert read_rows(path, 9, truncate=True) == rows
    assert read_rows(path, 3, truncate=True) == rows[:3]
    assert read_rows(path, 9, truncate=True) == rows[:3]


@pytest.mark.catches("deep_files_overflow_the_stack")
def test_a_file_of_json_is_read_or_refused(tmp_path):
    path = tmp_path / "a.json"
    path.write_text('{"ü": [1, null]}', encoding="utf-8")
    assert read_json(path) == {"ü": [1, None]}
    for text in ("[" * 100_000, '{"a":' * 100_000, "[1", "\xff"):
        path.write_bytes(text.encode("latin-1"))
        with pytest.raises(ValueError, match=r"deeply|delimiter|decode"):
            read_json(path)
    with pytest.raises(FileNotFoundError):
        read_json(tmp_path / "b.json")
