"""The start page: each line that a newcomer types, in order, in an empty folder."""

import shlex

import pytest

from miniformer import cli
from tests.contract.test_documents import blocks

# Installation is tried by `make setup`; the server does not end.
NOT_RUN = ("pip install", "miniformer serve")


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_start_page_runs_as_printed(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (code,) = blocks("docs/start.md", "python")
    exec(code, {})
    outputs = {}
    lines = [line for block in blocks("docs/start.md", "bash") for line in block.splitlines()]
    for line in lines:
        if line.startswith(NOT_RUN):
            continue
        arguments = shlex.split(line)[1:]
        assert cli.main(arguments) == 0, line
        outputs[arguments[0]] = capsys.readouterr().out
    assert list(outputs) == ["data", "train", "predict", "inspect", "doctor", "export"]
    assert '"label": "garden"' in outputs["predict"]
    assert '"label": "office"' in outputs["predict"]
    assert "garden" in outputs["inspect"]
    assert outputs["doctor"].count("passed ") == 4
    assert (tmp_path / "runs/classification/report.html").exists()
    assert list((tmp_path / "notes-onnx").glob("*.onnx"))
