"""Single parts against closed forms."""

import pytest
import torch

from miniformer.config import TransformerConfig
from miniformer.model.cache import KVCache
from miniformer.model.position import RotaryPosition, rotate
from miniformer.model.transformer import Transformer
from tests.kit import tiny_config, tiny_model


@pytest.mark.parametrize("share", [1.0, 0.5, 0.3])
def test_rotation_keeps_lengths_and_depends_on_distance_only(share):
    config = TransformerConfig(d_model=64, n_heads=4, rotary_pct=share)
    position = RotaryPosition(config)
    q, k = torch.randn(2, 1, 1, 1, 16)

    def score(at, other):
        turned = rotate(q, position(torch.tensor([[at]])))
        assert torch.allclose(turned.norm(), q.norm(), rtol=1e-5)
        return (turned * rotate(k, position(torch.tensor([[other]])))).sum()

    torch.testing.assert_close(score(3, 1), score(103, 101), rtol=1e-4, atol=1e-4)
    assert not torch.allclose(score(3, 1), score(3, 2))


def test_rotation_at_position_zero_changes_nothing():
    q = torch.randn(1, 2, 1, 32)
    position = RotaryPosition(TransformerConfig())
    assert torch.equal(rotate(q, position(torch.tensor([[0]]))), q)


@pytest.mark.parametrize(
    ("inputs", "options", "message"),
    [
        (torch.zeros(4, dtype=torch.long), {}, r"inputs must be \[B, T\] token ids, not .* \[4\]"),
        (torch.zeros(1, 4), {}, "inputs must be .* not torch.float32"),
        (
            torch.zeros(1, 33, dtype=torch.long),
            {},
            "a sequence of 33 tokens is longer than max_seq_len=32; shorten it",
        ),
        (
            torch.zeros(1, 4, dtype=torch.long),
            {"attention_mask": torch.ones(1, 4)},
            "attention_mask must be bool",
        ),
        (
            torch.zeros(1, 4, dtype=torch.long),
            {"attention_mask": torch.ones(1, 3, dtype=torch.bool)},
            r"attention_mask must be \[1, 4\], as the inputs are, not \[1, 3\]",
        ),
    ],
)
def test_wrong_inputs_are_refused_with_their_shape(inputs, options, message):
    with pytest.raises(ValueError, match=message):
        tiny_model()(inputs, **options)


def test_wrong_features_are_refused_with_the_width_wanted():
    with pytest.raises(ValueError, match=r"inputs must be \[B, T, 7\] floats"):
        tiny_model(input_dim=7)(torch.zeros(1, 4, 6))


def test_segments_and_a_cache_exclude_each_other():
    model = tiny_model()
    ids = torch.zeros(1, 4, dtype=torch.long)
    with pytest.raises(ValueError, match="segment_ids and cache exclude each other"):
        model(ids, segment_ids=ids + 1, cache=model.new_cache(1, 4))


def test_a_full_cache_says_so():
    cache = KVCache(
        n_layers=1, batch_size=1, capacity=3, kv_heads=1, head_dim=2,
        device=torch.device("cpu"), dtype=torch.float32,
    )  # fmt: skip
    cache.extend(None, 2)
    with pytest.raises(ValueError, match="4 tokens do not fit a cache of capacity 3"):
        cache.extend(None, 2)


def test_initial_predictions_are_near_uniform_and_depth_does_not_blow_up():
    torch.manual_seed(0)
    model = Transformer(tiny_config(d_model=128, n_layers=12, vocab_size=500)).eval()
    ids = torch.randint(0, 500, (4, 32))
    entropy = torch.distributions.Categorical(logits=model(ids)).entropy().mean()
    assert entropy > 0.95 * torch.log(torch.tensor(500.0))
    assert 0.5 < model.layers[0](torch.randn(1, 32, 128), _no_mask()).std() < 3


def _no_mask():
    from miniformer.model.masks import AttentionMask

    return AttentionMask(is_causal=True)
