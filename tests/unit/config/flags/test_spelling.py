"""Other spellings of flags give the values of the usual one; a switch takes no value."""

import pytest

from miniformer import cli
from miniformer.config import UserError
from miniformer.config.command_line import parse_flags
from miniformer.trainer import train_parser


@pytest.mark.parametrize(
    ("usual", "hyphenated"),
    [
        (["a.csv", "--max_steps", "3"], ["a.csv", "--max-steps", "3"]),
        (["a.csv", "--max_steps=3"], ["a.csv", "--max-steps=3"]),
        (["--dry_run", "a.csv"], ["--dry-run", "a.csv"]),
        (
            ["a.csv", "--task_config.label_smoothing", "0.1"],
            ["a.csv", "--task-config.label_smoothing", "0.1"],
        ),
        (["a.csv", "--sample_prompt", "x-y"], ["a.csv", "--sample-prompt", "x-y"]),
    ],
)
@pytest.mark.catches("hyphens_in_flags_are_unknown")
def test_hyphens_stand_for_underscores(usual, hyphenated):
    values = [parse_flags(train_parser(), argv, defaults=False) for argv in (usual, hyphenated)]
    assert values[0] == values[1]


def test_flag_with_a_hyphen_has_a_spelling_with_an_underscore(tmp_path, capsys):
    """`--no-verify` of export is read; the folder is what is missing."""
    missing = str(tmp_path / "none")
    assert cli.main(["export", missing, str(tmp_path / "out"), "--no_verify", "--to", "onnx"]) == 2
    assert "no such model directory" in capsys.readouterr().err


def test_unknown_flag_stays_unknown(monkeypatch):
    monkeypatch.setattr(UserError, "num_commands", 1)
    with pytest.raises(UserError, match="unknown flag --max-stepz; did you mean --max_steps"):
        parse_flags(train_parser(), ["a.csv", "--max-stepz", "3"])


@pytest.mark.parametrize(
    "argv", [["a.csv", "--quiet", "true"], ["--quiet", "False", "a.csv"], ["a.csv", "--quiet=true"]]
)
@pytest.mark.catches("switches_take_values")
def test_switch_takes_no_value(argv, monkeypatch):
    monkeypatch.setattr(UserError, "num_commands", 1)
    with pytest.raises(UserError, match="--quiet is a switch and takes no value: leave out '"):
        parse_flags(train_parser(), argv)


def test_switch_of_a_command_without_files_flag(capsys):
    assert cli.main(["evaluate", "model", "a.csv", "--json", "true"]) == 2
    assert "--json is a switch and takes no value" in capsys.readouterr().err
