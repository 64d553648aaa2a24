"""What commands print and which exit code they have, without what they run."""

import types
from pathlib import Path

import pytest
from rich.console import Console

from miniformer import cli
from miniformer.config import UserError
from miniformer.trainer import report_result


@pytest.mark.catches("verify_resume_exits_with_0")
@pytest.mark.parametrize("exact", [True, False])
def test_verify_resume_exits_with_1_where_runs_differ(exact, tmp_path, monkeypatch, capsys):
    verdict = types.SimpleNamespace(
        exact=exact, steps=5, kills=[2], states=[1], different=3, parts=["model"]
    )
    monkeypatch.setattr(
        "miniformer.training.resume.verify.verify_resume", lambda config, folder, **options: verdict
    )
    (tmp_path / "a.jsonl").write_text('{"text": "a"}\n')
    assert cli.main(["verify-resume", "--train_path", str(tmp_path / "a.jsonl")]) == 1 - exact
    out = capsys.readouterr().out
    assert out.startswith("exact: 5 losses" if exact else "NOT exact: the resumed run differs")


@pytest.mark.catches("interrupted_run_exits_with_0")
@pytest.mark.parametrize(("number", "code"), [(None, 0), (2, 130), (15, 143)])
def test_a_run_that_a_signal_ends_has_the_exit_code_of_the_signal(number, code):
    task = types.SimpleNamespace(metrics=("loss",), command=lambda directory: f"x {directory}")
    result = types.SimpleNamespace(
        interrupted=number, figures={"val_loss": 1.5, "step": 3.0}, task=task, model=Path("best")
    )
    assert report_result(result, Console(quiet=True)) == code


@pytest.mark.catches("lines_of_standard_input_are_not_numbered")
@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            '{"input": "a"}\n\n{"txt": "b"}\n',
            "standard input:3: the record has no 'input' and no 'source' and no 'text'",
        ),
        ('"a"\nb\n', "standard input:2: not JSON"),
    ],
)
def test_a_mistake_on_standard_input_is_named_by_its_line(text, message):
    with pytest.raises(UserError, match=message):
        cli._parse_json_lines(text, ["text"])
