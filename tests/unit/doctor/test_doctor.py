"""`miniformer doctor`: reports on models and on the machine."""

import json
import re
import shutil

import pytest
import torch

from miniformer import FeedForward, registry
from miniformer.doctor.__main__ import main
from tests.kit import ROOT, tiny_model

FIXTURE = ROOT / "tests" / "fixtures" / "format_1" / "language_modeling" / "best"
FAST = ["--check", "leak", "batch"]
PASSED = "passed          leak: no output depends on masked inputs"


@pytest.mark.catches("description_lacks_the_cache")
def test_doctor_command_on_a_model_directory(tmp_path, capsys):
    tiny_model().save_pretrained(tmp_path)
    assert main([str(tmp_path), *FAST]) == 0
    out = capsys.readouterr().out
    for text in ("Transformer: ", "cache of 32 tokens", "cached decoding", PASSED,
                 "layers.1.attention: sdpa (torch's fused attention)"):  # fmt: skip
        assert text in out


def test_doctor_command_on_a_model_of_few_positions(tmp_path, capsys):
    tiny_model(max_seq_len=4).save_pretrained(tmp_path)
    assert main([str(tmp_path), "--check", "leak", "batch", "cache", "gradients"]) == 0
    assert PASSED in capsys.readouterr().out


@pytest.mark.parametrize("name", ["llama", "t5", "bert"])
def test_doctor_command_on_an_architecture(name, capsys):
    assert main(["--family", name]) == 0
    assert PASSED in capsys.readouterr().out


@pytest.mark.catches("leaking_model_exits_with_0")
def test_doctor_command_exits_with_1_for_a_leak(tmp_path, capsys, monkeypatch):
    tiny_model().save_pretrained(tmp_path)
    monkeypatch.setattr(FeedForward, "forward", lambda self, x: x.roll(-1, dims=1))
    assert main([str(tmp_path), *FAST]) == 1
    out = capsys.readouterr().out
    assert "FAILED          leak: no output" in out
    assert "future: changing tokens" in out
    assert out.splitlines()[-1] == "2 of 2 checks failed: leak, batch"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--family", "lama"], "unknown architecture 'lama' (did you mean 'llama'?)"),
        (["nowhere"], "nowhere: no such model directory"),
        (["a", "--family", "llama"], "name a model directory or a family, not both"),
        (["--famly", "llama"], "unknown flag --famly; did you mean --family?"),
    ],
)
def test_doctor_command_user_errors(arguments, message, capsys):
    assert main(arguments) == 2
    assert message in capsys.readouterr().err


def test_doctor_command_without_arguments_describes_the_machine(capsys):
    assert main([]) == 0
    out = capsys.readouterr().out
    assert f"torch {torch.__version__}" in out
    assert out.count("GFLOP/s") == 2


def no_dropout(model):
    """No dropout is active."""
    return ["dropout is 0.5"] if model.config.dropout == 0.5 else []


@pytest.mark.catches("checks_of_others_do_not_count")
def test_doctor_runs_registered_checks(monkeypatch, capsys, tmp_path):
    monkeypatch.setitem(registry._registered, "check", {"dropout": no_dropout})
    for dropout, code, line in (
        (0.5, 1, "FAILED          dropout: No dropout is active"),
        (0.1, 0, "passed          dropout: No dropout is active"),
    ):
        tiny_model(dropout=dropout).save_pretrained(tmp_path / f"{dropout}")
        assert main([str(tmp_path / f"{dropout}"), "--check", "leak", "dropout"]) == code
        assert line in capsys.readouterr().out.splitlines()
    assert main([str(tmp_path / "0.5"), "--check", "leak"]) == 0
    assert "dropout" not in capsys.readouterr().out


def test_doctor_check_mistakes_are_user_errors(capsys):
    assert main(["--check", "leek", "--family", "gpt2"]) == 2
    assert (
        "unknown check 'leek' (did you mean 'leak'?); known: files, leak, batch,"
        in capsys.readouterr().err
    )
    assert main(["--check", "leak"]) == 2
    assert "check is for a model; name a model directory or a family" in capsys.readouterr().err


def test_doctor_skips_a_check_that_cannot_be_imported(install, capsys):
    folder = install("checks", {"check": {"broken": "checks:run"}}, code="import no_such_module\n")
    assert main(["--family", "gpt2"]) == 0
    done = capsys.readouterr()
    assert PASSED in done.out
    assert done.err == (
        "miniformer: warning: check 'broken' of checks 1.0 (checks:run) cannot be imported: "
        f"ModuleNotFoundError: No module named 'no_such_module' ({folder}/checks.py:1); it is "
        "skipped\n"
    )
    assert main(["--family", "gpt2", "--check", "broken"]) == 2
    assert "miniformer: error: check 'broken' of checks 1.0" in capsys.readouterr().err


@pytest.mark.catches("problems_are_not_in_json", "page_lacks_problems")
def test_doctor_writes_json_and_a_page(tmp_path, capsys):
    directory = tmp_path / "my model"
    shutil.copytree(FIXTURE, directory)
    card = directory / "README.md"
    card.write_text(card.read_text().replace(" parameters", " weights"))
    page, names = tmp_path / "report.html", ["batch", "card", "tokenizer"]
    arguments = [str(directory), "--check", *names, "--json", "--html", str(page)]
    assert main(arguments) == 1
    report = json.loads(capsys.readouterr().out)
    assert report["description"][0].startswith("Transformer: ")
    checks = {check["name"]: check for check in report["checks"]}
    assert {name: check["status"] for name, check in checks.items()} == {
        "batch": "passed", "card": "failed", "tokenizer": "passed",
    }  # fmt: skip
    (problem,) = checks["card"]["problems"]
    assert re.fullmatch(r"README.md does not state [\d,]+ parameters", problem)
    assert checks["card"]["command"] == f"miniformer doctor '{directory}' --check card"
    text = page.read_text()
    assert problem in text
    assert "1 of 3 checks failed" in text
    assert "as alone" in text
    assert main([str(directory), "--html", str(tmp_path)]) == 2
    assert "is a directory; name a file" in capsys.readouterr().err


@pytest.mark.catches("environment_has_paths")
def test_doctor_env_has_versions_and_no_paths(capsys, monkeypatch):
    monkeypatch.setenv("USER", "somebody")
    assert main(["env"]) == 0
    out = capsys.readouterr().out
    for line in (
        f"torch: {torch.__version__}",
        "device: ",
        "python: ",
        "lightning: ",
        "instructions: ",
    ):
        assert line in out
    assert "/" not in out
    assert "somebody" not in out
    assert main(["env", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["cores"].isdigit()
