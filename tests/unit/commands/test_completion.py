"""Shell completion."""

import shutil
import subprocess

import pytest

from miniformer import cli, registry
from miniformer.commands import completion


@pytest.fixture(scope="module")
def table():
    return completion.flags_by_command()


def complete(script, *typed):
    """Completions of the last word in bash."""
    line = " ".join(f"'{item}'" for item in typed)
    code = f"{script}\nCOMP_WORDS=({line}); COMP_CWORD={len(typed) - 1}; _miniformer; "
    code += 'printf "%s\\n" "${COMPREPLY[@]}"'
    done = subprocess.run(["bash", "-c", code], capture_output=True, text=True, check=True)
    assert done.stderr == ""
    return done.stdout.split()


@pytest.mark.catches("completion_knows_no_values")
@pytest.mark.parametrize(
    ("typed", "expected"),
    [
        (["t"], ["train", "tokenizer"]),
        (["train", "--max_t"], ["--max_time"]),
        (["train", "--task", "cl"], ["classification"]),
        (["train", "a.csv", "--find_lr", ""], ["true", "false"]),
        (["generate", "runs", "--weight_dtype", "int"], ["int8", "int4"]),
        (["data", "c"], ["check", "convert"]),
        (["data", "check", "--fau"], ["--faults"]),
        (["nothing", "--x"], []),
    ],
)
def test_bash_completes(table, typed, expected):
    assert complete(completion.bash_script(table), "miniformer", *typed) == expected


def test_bash_completes_files(table, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.csv").touch()
    script = completion.bash_script(table)
    assert complete(script, "miniformer", "train", "a") == ["a.csv"]
    assert complete(script, "miniformer", "train", "--val_path", "a") == ["a.csv"]


@pytest.mark.parametrize("shell", completion.SHELLS)
def test_completion_prints_a_script(shell, capsys):
    assert cli.main(["completion", shell]) == 0
    out = capsys.readouterr().out
    for name in registry.names("command"):
        assert name in out
    if shutil.which(shell):
        subprocess.run([shell, "-n"], input=out, text=True, check=True)


def test_fish_script_has_help_and_values(table):
    script = completion.fish_script(table)
    seen = "complete -c miniformer -n '__fish_seen_subcommand_from train' "
    assert f"{seen}-l lr -r -d 'peak learning rate'\n" in script
    assert f"{seen}-l quiet -d 'print errors and the final result only'\n" in script
    assert f"{seen}-l accelerator -x -a 'auto cpu cuda mps' -d " in script
    assert "complete -c miniformer -n '__fish_seen_subcommand_from data' -f -a check\n" in script


def test_completion_of_an_unknown_shell_names_the_nearest(capsys):
    assert cli.main(["completion", "fihs"]) == 2
    assert "unknown shell 'fihs' (did you mean 'fish'?)" in capsys.readouterr().err
