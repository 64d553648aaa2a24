"""Import of GGUF files: the model that was exported comes back."""

import gguf
import numpy as np
import pytest
import torch

import miniformer
from miniformer import Pipeline, Seq2SeqTransformer, Transformer
from miniformer.config import GenerationConfig, UserError
from miniformer.data.tokenizers.tokenizer import Tokenizer
from miniformer.interop.gguf.load import import_gguf
from miniformer.tasks.language_modeling import LanguageModeling
from tests.kit import VERSE
from tests.unit.interop.gguf import cases


def load(folder, name):
    return (Seq2SeqTransformer if name in cases.SEQ2SEQ else Transformer).from_pretrained(folder)


@pytest.mark.catches("gemma_norms_come_back_with_one", "tied_heads_of_gguf_come_back_apart")
@pytest.mark.parametrize("name", cases.ALL)
def test_every_weight_comes_back_bit_for_bit(name, tmp_path):
    model = cases.build(name)
    cases.write(model, tmp_path / "model.gguf", weights="f32")
    import_gguf(tmp_path / "model.gguf", tmp_path / "back")
    back = load(tmp_path / "back", name)
    weights, expected = back.state_dict(), model.state_dict()
    if name in cases.ENCODERS:  # without their head
        expected = {key: value for key, value in expected.items() if not key.startswith("head.")}
    for key, value in expected.items():
        assert torch.equal(weights[key], value), key
    added = [weights[key] for key in weights.keys() - expected.keys()]
    assert not any(value.any() for value in added)  # zeros, for biases that GPT-NeoX needs
    local = name == "modernbert" or name.startswith(("gemma2", "gemma3"))
    assert back.config.sliding_window == (8 if local else None)
    ids = torch.arange(1, 25)[None]
    if name in cases.SEQ2SEQ:
        assert torch.equal(back(ids, ids), model(ids, ids))
    elif name in cases.ENCODERS:
        assert torch.equal(back.features(ids), model.features(ids))
    else:
        assert torch.allclose(back(ids), model(ids), atol=1e-6)


@pytest.mark.parametrize("weights", ["f16", "bf16"])
def test_a_file_of_short_floats_comes_back_and_goes_out_bit_for_bit(weights, tmp_path):
    model = cases.build("qwen3")
    cases.write(model, tmp_path / "model.gguf", weights=weights)
    import_gguf(tmp_path / "model.gguf", tmp_path / "back")
    dtype = {"f16": torch.float16, "bf16": torch.bfloat16}[weights]
    back = load(tmp_path / "back", "qwen3").state_dict()
    for key, value in model.state_dict().items():
        expected = value if "norm" in key else value.to(dtype).float()
        assert torch.equal(back[key], expected), key
    (tmp_path / "again").mkdir()
    cases.write(load(tmp_path / "back", "qwen3"), tmp_path / "again/model.gguf", weights=weights)
    assert (tmp_path / "again/model.gguf").read_bytes() == (tmp_path / "model.gguf").read_bytes()


@pytest.mark.catches("q8_0_scales_are_doubled")
def test_blocks_of_eight_bits_come_back_as_the_package_reads_them(tmp_path):
    cases.write(cases.build("llama"), tmp_path / "model.gguf", weights="q8_0")
    import_gguf(tmp_path / "model.gguf", tmp_path / "back")
    back = load(tmp_path / "back", "llama").state_dict()
    reader = gguf.GGUFReader(tmp_path / "model.gguf")
    tensor = next(item for item in reader.tensors if item.name == "blk.0.ffn_up.weight")
    expected = gguf.quants.dequantize(tensor.data, tensor.tensor_type)
    np.testing.assert_array_equal(back["layers.0.feed_forward.up_proj.weight"], expected)


def test_other_types_are_refused_by_name(tmp_path):
    cases.write(cases.build("llama"), tmp_path / "model.gguf", weights="q4_0")
    with pytest.raises(UserError, match="tensors of type q4_0, which is not read, only f32, f16"):
        import_gguf(tmp_path / "model.gguf", tmp_path / "back")
    assert not (tmp_path / "back").exists()


@pytest.mark.catches("special_tokens_of_gguf_are_plain", "merges_of_gguf_come_back_in_reverse")
@pytest.mark.parametrize("kind", ["bpe", "byte"])
def test_a_language_model_comes_back_with_its_tokenizer(kind, tmp_path):
    tokenizer = Tokenizer.train(kind, [VERSE] * 3, 300 if kind == "bpe" else None)
    model = cases.build("default", vocab_size=320)
    task = LanguageModeling()
    pipeline = Pipeline(model, tokenizer, task=task, generation=GenerationConfig(temperature=0.0))
    cases.write(pipeline, tmp_path / "model.gguf", weights="f32")
    import_gguf(tmp_path / "model.gguf", tmp_path / "back")
    back = miniformer.load(tmp_path / "back")
    for text in [VERSE, "🙂 x<|endoftext|>y", "  a\n\n\tb  ", "中文 naïve café", "<|pad|>"]:
        ids = back.tokenizer.encode(text)
        assert ids == tokenizer.encode(text)
        assert back.tokenizer.decode(ids) == text
    assert back.tokenizer.eos_id == tokenizer.eos_id
    assert back.tokenizer.vocab_size == tokenizer.vocab_size
    options = {"max_new_tokens": 12, "temperature": 0.0}
    assert back.generate("The cat", **options) == pipeline.generate("The cat", **options)
    keys = {key: field.contents() for key, field in
            gguf.GGUFReader(tmp_path / "model.gguf").fields.items()}  # fmt: skip
    kinds = dict(zip(keys["tokenizer.ggml.tokens"], keys["tokenizer.ggml.token_type"], strict=True))
    assert kinds["<|endoftext|>"] == gguf.TokenType.CONTROL
    assert kinds["a"] == gguf.TokenType.NORMAL
    assert kinds["[PAD319]"] == gguf.TokenType.UNUSED
    assert keys["tokenizer.ggml.eos_token_id"] == tokenizer.eos_id
    assert keys["tokenizer.ggml.add_bos_token"] is True


def test_max_seq_len_of_an_import(tmp_path):
    cases.write(cases.build("llama"), tmp_path / "model.gguf")
    result = import_gguf(tmp_path / "model.gguf", tmp_path / "back", max_seq_len=32)
    assert result.config.max_seq_len == 32
    cases.write(cases.build("gpt2"), tmp_path / "gpt2.gguf")
    with pytest.raises(UserError, match="learned position table"):
        import_gguf(tmp_path / "gpt2.gguf", tmp_path / "other", max_seq_len=32)
