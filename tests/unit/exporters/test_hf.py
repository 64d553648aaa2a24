"""`miniformer.export(module, out)`: a directory that transformers loads by itself."""

import json

import pytest
import torch

import miniformer
from miniformer import Seq2SeqTransformer, Transformer, TransformerConfig, UserError
from miniformer.config.architectures import architecture_config


@pytest.mark.parametrize("name", ["distilbert", "modernbert", "marian", "gpt2"])
def test_the_directory_of_a_module_is_complete(name, tmp_path):
    transformers = pytest.importorskip("transformers")
    fields = architecture_config(
        name, vocab_size=31, d_model=16, n_heads=2, n_layers=2, max_seq_len=32, dropout=0.0
    )
    torch.manual_seed(0)
    model_class = Seq2SeqTransformer if name == "marian" else Transformer
    model = model_class(TransformerConfig(**fields)).eval()
    assert "written to" in miniformer.export(model, tmp_path / "out")
    config = transformers.AutoConfig.from_pretrained(tmp_path / "out")
    loaded = getattr(transformers, config.architectures[0]).from_pretrained(tmp_path / "out").eval()
    ids = torch.arange(18).reshape(2, 9)  # with the ids that families use for padding
    mask = torch.ones_like(ids)
    with torch.no_grad():
        if name == "marian":
            actual = loaded(input_ids=ids, attention_mask=mask, decoder_input_ids=ids).logits
            expected = model(ids, ids)
        else:
            actual, expected = loaded(ids, attention_mask=mask).logits, model(ids)
    torch.testing.assert_close(actual, expected, atol=1e-6, rtol=0)


@pytest.mark.catches("families_are_not_passed_on")
def test_the_family_is_that_of_the_option(tmp_path):
    fields = architecture_config("llama", vocab_size=31, d_model=16, n_heads=2, n_layers=1)
    model = Transformer(TransformerConfig(**fields)).eval()
    for family in ("llama", "mistral"):
        miniformer.export(model, tmp_path / family, family=family)
        config = json.loads((tmp_path / family / "config.json").read_text())
        assert config["model_type"] == family
    with pytest.raises(UserError, match="family 'lama' is none of"):
        miniformer.export(model, tmp_path / "x", family="lama")
