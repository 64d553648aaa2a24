"""Inputs as registered parts: tokens, features, and a plug-in that shortens the sequence."""

import pytest
import torch

import miniformer
from miniformer import Seq2SeqTransformer, Transformer, TransformerConfig
from miniformer.config import ConfigError, UserError
from miniformer.model.embedding import max_inputs
from tests.kit import tiny_config, tiny_model
from tests.kit.plugins import registered

FRAMES = {"input": {"type": "frames", "size": 4, "stride": 2}, "input_dim": 3, "causal": False}


@pytest.fixture(autouse=True, scope="module")
def plugins():
    with registered():
        yield


def close(actual, expected):
    torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-5)


def test_built_in_inputs_have_names():
    """`input` names what `input_dim` selects; the models are the same bits."""
    for name, changes in (("tokens", {}), ("features", {"input_dim": 3})):
        model, named = tiny_model(**changes), tiny_model(**changes, input=name)
        assert model.state_dict().keys() == named.state_dict().keys()
        inputs = torch.randn(2, 5, 3) if changes else torch.randint(0, 31, (2, 5))
        assert torch.equal(model(inputs), named(inputs))


@pytest.mark.catches("windows_of_padding_are_real")
@pytest.mark.parametrize("length", [1, 3, 4, 5, 6, 7, 11])
def test_frames_in_a_batch_are_those_of_each_alone(length):
    model = tiny_model(**FRAMES, output_dim=5, pooling="mean+last")
    inputs, mask = torch.zeros(2, 11, 3), torch.ones(2, 11, dtype=torch.bool)
    inputs[0] = torch.randn(11, 3)
    inputs[1, :length] = torch.randn(length, 3)
    mask[1, length:] = False
    alone = inputs[1:, :length]
    count = max(1, -(-(length - 4) // 2) + 1)
    assert model(alone).shape == (1, count, 5)
    assert max_inputs(model.embedding, count) >= length
    close(model.classify(inputs, mask)[1:], model.classify(alone))
    close(model(inputs, mask)[1:, :count], model(alone))


@pytest.mark.parametrize("model", [Transformer, Seq2SeqTransformer])
def test_model_of_a_registered_input_is_saved_and_loaded(model, tmp_path):
    original = tiny_model(model=model, **FRAMES)
    original.save_pretrained(tmp_path)
    loaded = model.from_pretrained(tmp_path)
    assert loaded.config.input == FRAMES["input"]
    inputs, target = torch.randn(2, 7, 3), torch.tensor([[1, 2], [3, 4]])
    arguments = [inputs] if model is Transformer else [inputs, target]
    assert torch.equal(loaded.eval()(*arguments), original(*arguments))
    miniformer.assert_no_leaks(loaded)


def test_features_of_a_source_have_the_leaks_checked():
    miniformer.assert_no_leaks(tiny_model(model=Seq2SeqTransformer, causal=False, input_dim=3))


@pytest.mark.parametrize("num_beams", [1, 3])
def test_targets_of_features_decode_with_a_cache_as_without(num_beams):
    """Sources of other lengths in the batch change nothing."""
    model = tiny_model(model=Seq2SeqTransformer, causal=False, input_dim=3, n_layers=1)
    assert model.head.tied
    sources = [torch.randn(length, 3) for length in (5, 2, 7)]
    options = {"temperature": 0.0, "num_beams": num_beams}
    rows = model.generate(sources, 6, **options)
    for source, row in zip(sources, rows, strict=True):
        assert model.generate(source[None], 6, **options).tolist() == [row]
        tokens = [0]
        for _ in range(6 if num_beams == 1 else 0):
            with torch.no_grad():
                logits = model(source[None], torch.tensor([tokens]))
            tokens.append(int(logits[0, -1].argmax()))
        assert num_beams > 1 or tokens[1:] == row


def test_seq2seq_of_features_has_as_many_parameters_as_its_config_says():
    for changes in ({"tie_embeddings": True}, {"tie_embeddings": False}):
        config = tiny_config(causal=False, input_dim=3, **changes)
        count = sum(parameter.numel() for parameter in Seq2SeqTransformer(config).parameters())
        assert config.num_params(seq2seq=True) == count


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"input": "framez"}, r"unknown input 'framez' .*did you mean 'frames'"),
        ({"input": {"type": "framez"}}, r"input: unknown input 'framez'"),
        ({"input": {"size": 4}}, "input must be a name, or an object with a name as type"),
        ({"input": "features"}, "input=features needs input_dim"),
        ({"input": "tokens", "input_dim": 3}, "input_dim=3 has no effect with input=tokens"),
        ({"input_dim": 3, "source_vocab_size": 9}, "source_vocab_size is for sources of token"),
    ],
)
def test_input_of_a_config_is_checked(changes, message):
    with pytest.raises(ConfigError, match=message):
        TransformerConfig(**changes)


def test_options_of_an_input_are_checked():
    for setting, message in (
        ({"type": "frames", "length": 2}, "input: frames has no option 'length'.*size, stride"),
        ({"type": "frames", "size": 2, "stride": 3}, "frames: stride must be at most size=2"),
    ):
        with pytest.raises(UserError, match=message):
            Transformer(tiny_config(input=setting, input_dim=3))


def test_model_of_features_generates_no_text_without_a_source():
    with pytest.raises(UserError, match="a model with input_dim=3 cannot generate tokens"):
        tiny_model(input_dim=3).generate([[1, 2]], 3)
