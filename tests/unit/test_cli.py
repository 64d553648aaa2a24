"""Output and exit codes of commands, with stand-ins for the work that they do."""

import dataclasses
import json
import re
import types
from pathlib import Path

import pytest
from rich.console import Console

from miniformer import cli, registry
from miniformer.train_config import TrainConfig
from miniformer.trainer import USUAL_FLAGS, report_result


@pytest.mark.catches("verify_resume_exits_with_0")
@pytest.mark.parametrize("exact", [True, False])
def test_verify_resume_exits_with_1_if_runs_differ(exact, tmp_path, monkeypatch, capsys):
    verdict = types.SimpleNamespace(
        bit_exact=exact,
        steps=5,
        kills=[2],
        resumed_steps=[1],
        first_different_step=3,
        different_parts=["model"],
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
def test_train_exit_code_after_a_signal(number, code):
    task = types.SimpleNamespace(
        metrics=("loss",), usage_command=lambda directory: f"x {directory}"
    )
    result = types.SimpleNamespace(
        interrupted=number, metrics={"val_loss": 1.5, "step": 3.0}, task=task, model=Path("best")
    )
    assert report_result(result, Console(quiet=True)) == code


GROUPS = [
    "data",
    "columns",
    "model",
    "optimization",
    "evaluation",
    "trials",
    "budgets",
    "hardware",
    "output",
]


def flags_by_group(text):
    """The flags below each heading of a help text, each with its description."""
    result, flags = {}, {}
    for line in text.splitlines():
        if line and not line.startswith(" ") and line.endswith(":"):
            flags = result.setdefault(line.removesuffix(":"), {})
        elif match := re.match(r"  --(\w+)", line):
            name = match[1]
            flags[name] = line
        elif flags and line.startswith("      "):
            flags[name] += " " + line.strip()
    return result


@pytest.mark.catches("help_has_no_groups", "help_shows_no_default")
def test_help_of_train_is_grouped_and_shows_every_default(capsys):
    with pytest.raises(SystemExit):
        cli.main(["train", "--help"])
    groups = flags_by_group(capsys.readouterr().out)
    assert [*groups] == ["options", "usual flags", *GROUPS]
    usual = list(groups["usual flags"])
    assert sorted(usual) == sorted(USUAL_FLAGS)
    for group, part in zip(GROUPS, reversed(TrainConfig.__bases__), strict=True):
        names = [field.name for field in dataclasses.fields(part)]
        assert list(groups[group]) == [name for name in names if name not in usual]
        usual += groups[group]
    assert sorted(usual) == sorted(field.name for field in dataclasses.fields(TrainConfig))
    config = TrainConfig(train_path="a")
    for flags in groups.values():
        for name, text in flags.items():
            default = getattr(config, name, None)
            if hasattr(config, name) and name != "train_path":
                assert text.endswith(f"(default: {default or json.dumps(default)})"), name


def test_help_of_generate_shows_the_defaults_of_the_config(capsys):
    with pytest.raises(SystemExit):
        cli.main(["generate", "--help"])
    text = " ".join(capsys.readouterr().out.split())
    assert "(default: 50)" in text
    assert "--stop_strings+" not in text


@pytest.mark.catches("bare_command_is_an_error")
@pytest.mark.parametrize(
    ("argv", "line"),
    [([], "usage: miniformer"), (["data"], "usage: miniformer data"), (["tokenizer"], "usage: ")],
)
def test_command_without_arguments_prints_help(argv, line, capsys):
    with pytest.raises(SystemExit) as stop:
        cli.main(argv)
    assert stop.value.code == 0
    assert capsys.readouterr().out.startswith(line)


def test_help_lists_every_command(capsys):
    with pytest.raises(SystemExit):
        cli.main(["--help"])
    listed = re.findall(r"^    ([a-z-]+)  ", capsys.readouterr().out, re.MULTILINE)
    assert listed == registry.names("command")


@pytest.mark.catches("usage_lists_every_flag")
@pytest.mark.parametrize("command", registry.names("command"))
def test_usage_of_a_command_is_short(command, capsys):
    with pytest.raises(SystemExit):
        cli.main([command, "--help"])
    usage = capsys.readouterr().out.partition("\n\n")[0]
    assert usage.startswith(f"usage: miniformer {command} ")
    assert len(usage.splitlines()) <= 4


def test_unknown_command_names_the_nearest(capsys):
    assert cli.main(["trian"]) == 2
    assert "unknown command 'trian' (did you mean 'train'?); known: " in capsys.readouterr().err


def test_doctor_is_a_command(capsys):
    assert cli.main(["doctor", "--family", "gpt", "x"]) == 2
    assert "name a model directory or a family, not both" in capsys.readouterr().err
