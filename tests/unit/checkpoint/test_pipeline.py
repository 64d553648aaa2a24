"""A loaded model directory: its settings, and writing it again."""

import re

import pytest
import torch

import miniformer
from miniformer.checkpoint.pipeline import Pipeline
from miniformer.config import GenerationConfig, UserError
from miniformer.data.tokenizers.tokenizer import Tokenizer
from miniformer.tasks.classification import Classification
from miniformer.tasks.embedding import EmbeddingTask
from miniformer.tasks.language_modeling import LanguageModeling
from tests.kit import tiny_model


@pytest.fixture
def pipeline():
    generation = GenerationConfig(max_new_tokens=3, temperature=0.0, no_repeat_ngram_size=2)
    return Pipeline(
        tiny_model(vocab_size=258, max_seq_len=64),
        Tokenizer.train("byte", []),
        task=LanguageModeling(prepend_bos=False),
        generation=generation,
    )


@pytest.mark.catches("settings_of_the_directory_are_ignored")
def test_pipeline_generation_defaults_are_those_of_the_directory(pipeline):
    ids = pipeline.tokenizer.encode("ab")
    expected = pipeline.model.generate([ids], 3, temperature=0.0, no_repeat_ngram_size=2)[0][
        len(ids) :
    ]
    ((_, written),) = pipeline.generate_outputs(["ab"])
    assert written.tokens == expected
    ((_, written),) = pipeline.generate_outputs(["ab"], max_new_tokens=1)
    assert written.tokens == expected[:1]


@pytest.mark.catches("saved_pipeline_samples_by_default")
def test_pipeline_save_and_load_round_trip(pipeline, tmp_path):
    pipeline.save(tmp_path / "model")
    again = miniformer.load(tmp_path / "model")
    assert again.generation == pipeline.generation
    assert again.task == pipeline.task
    assert again.model.config == pipeline.model.config
    assert again.generate("ab") == pipeline.generate("ab")


@pytest.mark.catches("vectors_are_those_of_the_first_token")
def test_pipeline_embed_is_the_pooling_of_features():
    tokenizer = Tokenizer.train("byte", [])
    model = tiny_model(vocab_size=258, max_seq_len=64, causal=False, pooling="mean")
    task, texts = EmbeddingTask(input_kind="text"), ["ab", "abcdef"]
    actual = Pipeline(model, tokenizer, task=task, generation=GenerationConfig()).embed(texts)
    for vector, text in zip(actual, texts, strict=True):
        ids = [tokenizer.eos_id, *tokenizer.encode(text)]
        expected = model.features(torch.tensor([ids]))[0].mean(0)
        torch.testing.assert_close(vector, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("prompts", [["ab", "c"], ("ab", "c"), {"ab": 1, "c": 2}])
def test_pipeline_generate_takes_one_or_several(pipeline, prompts):
    assert pipeline.generate(prompts) == [pipeline.generate("ab"), pipeline.generate("c")]
    assert pipeline.generate([]) == []


@pytest.mark.catches("prompts_of_any_type_are_taken")
@pytest.mark.parametrize(
    ("method", "argument", "message"),
    [
        ("generate", None, "generate takes a string or a list of strings as prompts, not a None"),
        ("generate", 5, "generate takes a string or a list of strings as prompts, not a int"),
        ("generate", ["a", 5], "prompts 1 must be a string, not a int"),
        ("generate", [["a"]], "prompts 0 must be a string, not a list"),
        ("generate_outputs", "ab", "generate takes"),
        ("stream", ["a"], "stream takes one prompt, a string, not a list; generate takes several"),
        ("stream", None, "stream takes one prompt, a string, not a NoneType"),
        ("score", "ab", "score takes a list of strings as texts, not a str"),
        ("score", [1], "texts 0 must be a string, not a int"),
    ],
)
def test_pipeline_refuses_other_types_of_prompts(pipeline, method, argument, message):
    with pytest.raises(UserError, match=re.escape(message)):
        getattr(pipeline, method)(argument)


def test_pipeline_perplexity_of_another_task_names_evaluate():
    task = EmbeddingTask(input_kind="text")
    pipeline = Pipeline(tiny_model(causal=False), Tokenizer.train("byte", []), task)
    with pytest.raises(UserError, match="this model is for embedding; for its metrics on records"):
        pipeline.perplexity("a.txt")


@pytest.mark.catches("pipeline_needs_decoding_options")
def test_pipeline_of_parts_has_the_decoding_options_of_its_task():
    model, tokenizer = tiny_model(vocab_size=258), Tokenizer.train("byte", [])
    pipeline = Pipeline(model, tokenizer, LanguageModeling())
    assert pipeline.generation.max_new_tokens == 16
    assert pipeline.generation.eos_id == tokenizer.eos_id
    assert repr(pipeline) == "Pipeline(language_modeling: Transformer of 10,720 parameters)"


@pytest.mark.catches("pipeline_predicts_with_dropout")
def test_pipeline_of_a_model_in_training_has_no_dropout():
    """A model that was just trained is in training mode, and stays in it."""
    model = tiny_model(vocab_size=258, max_seq_len=64, causal=False, dropout=0.5, output_dim=2)
    task = Classification(input_kind="text", classes=["a", "b"])
    pipeline = Pipeline(model, Tokenizer.train("byte", []), task)
    predicted, embedded = pipeline.predict(["abc"]), pipeline.embed(["abc"])
    model.train()
    assert pipeline.predict(["abc"]) == predicted
    assert torch.equal(pipeline.embed(["abc"]), embedded)
    assert model.training


@pytest.mark.catches("deep_files_overflow_the_stack")
@pytest.mark.parametrize(
    "name",
    ["config", "task", "generation_config", "data", "tokenizer_config", "huggingface"],
)
def test_a_file_that_is_nested_too_deeply_is_refused(name, tmp_path):
    tokenizer = Tokenizer.train("byte", [])
    model = tiny_model(vocab_size=tokenizer.vocab_size)
    Pipeline(model, tokenizer, task=LanguageModeling()).save(tmp_path / "model")
    for text in ("[" * 100_000, '{"a":' * 100_000):
        (tmp_path / "model" / f"{name}.json").write_text(text)
        with pytest.raises(UserError, match=f"{name}.json: .*nested too deeply"):
            miniformer.load(tmp_path / "model")
