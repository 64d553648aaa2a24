"""Model directories that the commands accept: those of runs, too."""

import shutil

import pytest
import torch

from miniformer import Pipeline, Transformer, TransformerConfig, cli
from miniformer.config.architectures import architecture_config
from miniformer.data.tokenizers.tokenizer import Tokenizer
from miniformer.tasks.language_modeling import LanguageModeling

FILE = "FILE"  # stands for a file of texts
COMMANDS = {
    "generate": ["ab", "--temperature", "0", "--max_new_tokens", "2"],
    "score": [FILE],
    "evaluate": [FILE, "--resamples", "0", "--json"],
    "doctor": ["--check", "leak"],
    "export": [],
}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Folder of a run whose best model and last model differ, and a file of texts."""
    folder = tmp_path_factory.mktemp("runs") / "poems"
    for name, seed in (("best", 0), ("last", 1)):
        shape = architecture_config("llama", vocab_size=258, d_model=16, n_heads=2, n_layers=1)
        torch.manual_seed(seed)
        model = Transformer(TransformerConfig.from_dict({**shape, "max_seq_len": 32}))
        Pipeline(model, Tokenizer.train("byte", []), LanguageModeling()).save(folder / name)
    (folder / "train_config.json").write_text("{}")
    (folder / "texts.jsonl").write_text('{"text": "abc abc"}\n')
    return folder


def command_line(name, directory, run, out):
    more = [str(run / "texts.jsonl") if item is FILE else item for item in COMMANDS[name]]
    return [name, str(directory), *more, *([str(out)] if name == "export" else [])]


@pytest.mark.catches("run_folder_is_refused")
@pytest.mark.parametrize("name", COMMANDS)
def test_command_takes_the_best_model_of_a_run_folder(name, run, tmp_path, capsys):
    def call(directory):
        code = cli.main(command_line(name, directory, run, tmp_path / "exported"))
        weights = None
        if name == "export":
            weights = (tmp_path / "exported/model.safetensors").read_bytes()
            shutil.rmtree(tmp_path / "exported")
        out, err = capsys.readouterr()
        return (code, out, weights), err

    result, err = call(run)
    expected, expected_err = call(run / "best")
    assert expected[0] == 0
    assert result == expected
    assert err == f"note: {run} is a run folder; using {run / 'best'}\n{expected_err}"


def test_command_takes_the_last_model_of_a_run_without_best(run, tmp_path, capsys):
    folder = tmp_path / "new"
    folder.mkdir()
    (folder / "train_config.json").write_text("{}")
    (folder / "last").symlink_to(run / "last")
    assert cli.main(command_line("generate", folder, run, None)) == 0
    assert f"using {folder / 'last'}" in capsys.readouterr().err


@pytest.mark.parametrize("name", COMMANDS)
def test_command_suggests_the_nearest_model(name, run, tmp_path, capsys):
    wrong = run.with_name("poem")
    assert cli.main(command_line(name, wrong, run, tmp_path / "out")) == 2
    expected = f"miniformer: error: {wrong}: no such model directory; did you mean {run}/best?\n"
    assert capsys.readouterr().err == expected


def test_draft_may_be_a_run_folder(run, capsys):
    options = ["--temperature", "0", "--max_new_tokens", "4"]
    assert cli.main(["generate", str(run), "ab", "--draft", str(run), *options]) == 0
    out, err = capsys.readouterr()
    assert err.count("is a run folder") == 2
    assert "speculation:" in err
    assert cli.main(["generate", str(run / "best"), "ab", *options]) == 0
    assert capsys.readouterr().out == out


def test_generate_help_shows_the_defaults_of_a_run(run, capsys):
    with pytest.raises(SystemExit):
        cli.main(["generate", str(run), "--help"])
    out, err = capsys.readouterr()
    assert "(default: 0.8)" in out
    assert "note:" not in err
