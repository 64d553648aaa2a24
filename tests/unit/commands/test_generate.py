"""The command `generate`."""

import json

import pytest
import torch

from miniformer import GenerationConfig, Pipeline, Seq2SeqTransformer, cli
from miniformer.data.tokenizers.tokenizer import Tokenizer
from miniformer.tasks.language_modeling import LanguageModeling
from miniformer.tasks.seq2seq import Seq2Seq
from tests.kit import tiny_config, tiny_model

SOURCES = ["xyz", "pq"]


@pytest.fixture(scope="module")
def answering(tmp_path_factory):
    """Directory of a seq2seq model, and its greedy answers to SOURCES."""
    torch.manual_seed(3)
    model = Seq2SeqTransformer(tiny_config(vocab_size=258, causal=False)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    pipeline = Pipeline(model, Tokenizer.train("byte", []), Seq2Seq())
    directory = tmp_path_factory.mktemp("answering") / "model"
    pipeline.save(directory)
    return directory, pipeline.generate(SOURCES, temperature=0, max_new_tokens=5)


@pytest.mark.catches("answer_is_glued_to_its_source")
@pytest.mark.parametrize("count", [1, 2])
def test_generate_prints_answers_without_their_sources(answering, count, capsys):
    directory, answers = answering
    flags = ["--temperature", "0", "--max_new_tokens", "5"]
    assert cli.main(["generate", str(directory), *SOURCES[:count], *flags]) == 0
    assert capsys.readouterr().out == "".join(f"{answer}\n" for answer in answers[:count])


def test_generate_prints_a_continuation_behind_its_prompt(tmp_path, capsys):
    model = tiny_model(vocab_size=258)
    pipeline = Pipeline(model, Tokenizer.train("byte", []), LanguageModeling())
    pipeline.save(tmp_path / "model")
    text = pipeline.generate("ab", temperature=0, max_new_tokens=4)
    arguments = ["--temperature", "0", "--max_new_tokens", "4"]
    assert cli.main(["generate", str(tmp_path / "model"), "ab", *arguments]) == 0
    assert capsys.readouterr().out == f"ab{text}\n"


@pytest.mark.catches("help_shows_no_default_of_the_directory")
def test_generate_help_shows_the_defaults_of_the_directory(answering, capsys):
    directory, _ = answering
    with pytest.raises(SystemExit):
        cli.main(["generate", str(directory), "--help"])
    text = " ".join(capsys.readouterr().out.split())
    stored = json.loads((directory / "generation_config.json").read_text())
    assert f"greedy decoding. (default: {stored['temperature']})" in text
    assert f"new tokens per prompt. (default: {stored['max_new_tokens']})" in text
    assert stored["max_new_tokens"] != GenerationConfig().max_new_tokens
