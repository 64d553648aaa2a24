"""Conversion to fewer heads of keys and values."""

import pytest
import torch

import miniformer
from miniformer import Pipeline, Seq2SeqTransformer, UserError, cli
from miniformer.adapters.base.gqa import convert_heads, input_moments
from miniformer.data.tokenizers.tokenizer import Tokenizer
from miniformer.registry import get
from tests.kit import VERSE, tiny_model, write_jsonl

IDS = torch.randint(0, 31, (3, 9), generator=torch.Generator().manual_seed(4))
MODELS = {
    "rotary": {},
    "part_rotary": {"rotary_pct": 0.5, "d_model": 32},
    "learned": {"position": "learned", "bias": False},
    "grouped": {"n_kv_heads": 4, "n_heads": 8, "d_model": 32},
    "seq2seq": {"model": Seq2SeqTransformer, "causal": False},
}


def make(name):
    return tiny_model(**{"d_model": 32, **MODELS[name]})


def outputs(model):
    if isinstance(model, Seq2SeqTransformer):
        return model(IDS, IDS[:, :4])
    return model(IDS)


def repeat_heads(model, copies):
    """Makes consecutive heads of keys and values equal."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "k_proj" in name or "v_proj" in name:
                heads = parameter.view(-1, copies, 32 // model.config.n_heads, *parameter.shape[1:])
                heads.copy_(heads[:, :1].expand_as(heads).clone())


@pytest.mark.parametrize("method", ["mean", "svd"])
@pytest.mark.parametrize("name", MODELS)
@pytest.mark.catches("groups_are_of_distant_heads", "queries_keep_their_turn")
def test_equal_heads_lose_nothing(name, method):
    model = make(name)
    same = convert_heads(model, model.config.kv_heads, method)
    assert torch.equal(outputs(same), outputs(model))
    repeat_heads(model, 2)
    with input_moments(model) as moments:
        expected = outputs(model)
    converted = convert_heads(model, model.config.kv_heads // 2, method, moments)
    assert converted.config.kv_heads == model.config.kv_heads // 2
    torch.testing.assert_close(outputs(converted), expected, rtol=0, atol=1e-5)


@pytest.mark.catches("queries_keep_their_turn")
@pytest.mark.parametrize("name", ["rotary", "part_rotary", "learned"])
def test_svd_finds_heads_that_are_turned_copies(name):
    """Heads that differ by a factor, and in pairs by a turn, lose nothing by svd, but by means."""
    model = make(name)
    repeat_heads(model, 2)
    width = model.layers[0].attention.head_dim
    half = (model.config.rotary_dim if model.config.position == "rotary" else width) // 2
    with torch.no_grad():
        for layer in model.layers:
            for item in ("weight", "bias"):
                tensor = getattr(layer.attention.k_proj, item)
                if tensor is None:
                    continue
                rows = tensor.view(2, 2, width, -1)
                turned = torch.cat((-rows[:, 1, half : 2 * half], rows[:, 1, :half]), 1)
                rows[:, 1, : 2 * half] = 0.5 * turned
                tensor = getattr(layer.attention.v_proj, item)
                tensor.view(2, 2, width, -1)[:, 1] *= -2
    with input_moments(model) as moments:
        expected = outputs(model)
    means = (outputs(convert_heads(model, 2, "mean")) - expected).abs().max()
    svd = (outputs(convert_heads(model, 2, "svd", moments)) - expected).abs().max()
    assert svd < 1e-4 < 0.1 < means


def test_svd_on_samples_loses_less_than_means_there():
    model = make("rotary")
    with input_moments(model) as moments:
        expected = outputs(model)
    errors = {
        method: (outputs(convert_heads(model, 2, method, moments)) - expected).square().mean()
        for method in ("mean", "svd")
    }
    assert errors["svd"] < 0.7 * errors["mean"]


@pytest.mark.catches("cache_is_counted_in_bits")
def test_command_prints_cache_and_loss(tmp_path, capsys):
    tokenizer = Tokenizer.train("byte", [])
    model = tiny_model(vocab_size=tokenizer.vocab_size)
    task = get("task", "language_modeling")()
    Pipeline(model, tokenizer, task).save(tmp_path / "model")
    data = write_jsonl(tmp_path / "v.jsonl", [VERSE[:60]])
    out, arguments = tmp_path / "out", ["--n_kv_heads", "1", "--method", "svd", "--data", str(data)]
    assert cli.main(["convert", str(tmp_path / "model"), str(out), *arguments]) == 0
    text = capsys.readouterr().out
    assert "cache: 256 bytes per token before, 64 after" in text
    assert "loss: " in text
    loaded = miniformer.load(out)
    assert loaded.model.config.n_kv_heads == 1
    assert loaded.generate("The", max_new_tokens=3, temperature=0) is not None
    assert cli.main(["convert", str(tmp_path / "model"), str(out), *arguments]) == 2
    assert "not empty" in capsys.readouterr().err


def test_invalid_settings_are_named():
    with pytest.raises(UserError, match=r"must divide the 4 heads.*1, 2, 4, not 3"):
        convert_heads(make("rotary"), 3)
    with pytest.raises(UserError, match="method must be one of"):
        convert_heads(make("rotary"), 2, "median")
    with pytest.raises(UserError, match="no linear map of the keys"):
        convert_heads(tiny_model(qk_norm="head"), 2, "svd")
