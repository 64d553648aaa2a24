"""Special tokens that are added to a model."""

import json

import pytest
import torch

from miniformer import Tokenizer, UserError
from miniformer.checkpoint.add_tokens import add_tokens
from miniformer.checkpoint.pipeline import Pipeline, load
from miniformer.tasks.language_modeling import LanguageModeling
from tests.kit import tiny_model

TOKENS = ["<|im_start|>", "<|im_end|>"]


@pytest.fixture(params=["tied", "untied", "spare"])
def directory(request, tmp_path):
    tokenizer = Tokenizer.train("byte", [])
    size = tokenizer.vocab_size + (5 if request.param == "spare" else 0)
    options = {"tie_embeddings": request.param == "tied", "head_bias": request.param != "tied"}
    model = tiny_model(vocab_size=size, **options)
    Pipeline(model, tokenizer, task=LanguageModeling()).save(tmp_path / "model")
    return tmp_path / "model"


@pytest.mark.catches("new_tokens_have_no_mean")
def test_old_logits_stay_and_new_rows_are_means(directory, tmp_path):
    before = load(directory)
    result = add_tokens(directory, tmp_path / "out", TOKENS)
    after = load(tmp_path / "out")
    used, size = before.tokenizer.vocab_size, before.model.config.vocab_size
    assert result.new == {TOKENS[0]: used, TOKENS[1]: used + 1}
    assert result.vocab_size == (size, max(size, used + 2))
    assert after.model.config.vocab_size == max(size, used + 2)
    ids = torch.tensor([before.tokenizer.encode("Old texts are read as before.")])
    assert ids.tolist() == [after.tokenizer.encode("Old texts are read as before.")]
    with torch.no_grad():
        old, new = before.model(ids), after.model(ids)
    torch.testing.assert_close(new[..., :used], old[..., :used], rtol=0, atol=1e-6)
    # A head that is linear: the logits of a mean row are the mean of the logits.
    torch.testing.assert_close(
        new[..., used : used + 2],
        old[..., :used].mean(-1, keepdim=True).expand(-1, -1, 2),
        rtol=1e-4, atol=1e-4,
    )  # fmt: skip
    rows = after.model.state_dict()["embedding.weight"]
    torch.testing.assert_close(rows[used], rows[:used].mean(0))
    assert after.tokenizer.encode_template("<|im_end|>").ids == [used + 1]


@pytest.mark.catches("old_tokenizer_files_stay")
def test_an_imported_model_has_one_tokenizer(directory, tmp_path):
    """Its files are those that transformers reads."""
    (directory / "huggingface.json").write_text(json.dumps({"model_type": "gpt2"}))
    add_tokens(directory, tmp_path / "out", TOKENS)
    content = json.loads((tmp_path / "out/tokenizer.json").read_text())
    assert {token["content"] for token in content["added_tokens"]} >= {*TOKENS}
    assert json.loads((tmp_path / "out/tokenizer_config.json").read_text())["eos_token"]


def test_invalid_tokens(tmp_path):
    tokenizer = Tokenizer.train("byte", [])
    model = tiny_model(vocab_size=tokenizer.vocab_size)
    Pipeline(model, tokenizer, task=LanguageModeling()).save(tmp_path / "model")
    source, out = tmp_path / "model", tmp_path / "out"
    for tokens, message in [
        ([" "], "' ' is empty"),
        (["<|endoftext|>"], r"has each of <\|endoftext\|> already"),
    ]:
        with pytest.raises(UserError, match=message):
            add_tokens(source, out, tokens)
    with pytest.raises(UserError, match="exists and is not empty"):
        add_tokens(source, source, TOKENS)
    result = add_tokens(source, out, ["<|endoftext|>", "<x>", "<x>"])
    assert result.existing == ["<|endoftext|>"]
    assert len(result.new) == 1
