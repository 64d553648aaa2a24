"""Single components against closed forms."""

import math

import pytest
import torch

from miniformer.config import TransformerConfig, UserError
from miniformer.model.attention import AttentionContext
from miniformer.model.cache.kv_cache import KVCache
from miniformer.model.cache.protocol import CacheSpec
from miniformer.model.head import pool_sequences
from miniformer.model.masks import AttentionMask
from miniformer.model.position import (
    RelativePosition,
    RotaryPosition,
    Rotation,
    alibi_slopes,
    apply_rotary,
)
from miniformer.model.transformer import Transformer
from tests.kit import tiny_config, tiny_model


def rotation(position, at, length=None):
    at = torch.tensor([[at]])
    return position.rotation(at, length=at + 1 if length is None else torch.tensor([[length]]))


SCALINGS = [
    None,
    {"type": "linear", "factor": 3.0},
    {"type": "yarn", "factor": 4.0, "original_max_seq_len": 16},
    {"type": "llama3", "factor": 8.0, "original_max_seq_len": 64},
]


@pytest.mark.parametrize("scaling", SCALINGS, ids=str)
@pytest.mark.parametrize("share", [1.0, 0.5, 0.3])
def test_rotary_preserves_norms_and_depends_on_distance_only(share, scaling):
    config = TransformerConfig(d_model=64, n_heads=4, rotary_pct=share, rotary_scaling=scaling)
    position = RotaryPosition(config, causal=True)
    q, k = torch.randn(2, 1, 1, 1, 16)
    q[..., config.rotary_dim :] = 0  # YaRN scales the rotated part
    length = apply_rotary(q, rotation(position, 0)).norm()
    if scaling is None or scaling["type"] != "yarn":
        torch.testing.assert_close(length, q.norm())

    def score(at, key_position):
        turned = apply_rotary(q, rotation(position, at))
        torch.testing.assert_close(turned.norm(), length)
        return (turned * apply_rotary(k, rotation(position, key_position))).sum()

    torch.testing.assert_close(score(3, 1), score(103, 101), rtol=1e-3, atol=1e-3)
    assert not torch.allclose(score(3, 1), score(3, 2))


@pytest.mark.catches("rotation_turns_its_gradient_forward")
def test_rotary_gradient_matches_finite_differences():
    x = torch.randn(1, 2, 3, 6, dtype=torch.float64, requires_grad=True)
    angle = torch.randn(1, 1, 3, 2, dtype=torch.float64)
    torch.autograd.gradcheck(lambda x: apply_rotary(x, Rotation(angle.cos(), angle.sin())), x)


def test_rotary_at_position_zero_is_identity():
    q = torch.randn(1, 2, 1, 32)
    position = RotaryPosition(TransformerConfig(), causal=True)
    assert torch.equal(apply_rotary(q, rotation(position, 0)), q)


def test_dynamic_scaling_starts_beyond_the_original_length():
    scaling = {"type": "dynamic", "factor": 2.0, "original_max_seq_len": 10}
    position = RotaryPosition(TransformerConfig(rotary_scaling=scaling), causal=True)
    plain = RotaryPosition(TransformerConfig(), causal=True)
    for length, same in ((5, True), (10, True), (11, False), (40, False)):
        cos = rotation(position, 4, length).cos
        assert torch.equal(cos, rotation(plain, 4, length).cos) == same


def test_alibi_slopes():
    """Press et al. 2021, section 3: 8 heads 1/2 ... 1/256; 12 heads: those, and between them."""
    eight = [2.0**-n for n in range(1, 9)]
    assert alibi_slopes(8) == eight
    assert alibi_slopes(12) == [*eight, 2**-0.5, 2**-1.5, 2**-2.5, 2**-3.5]
    assert alibi_slopes(1) == [2**-8]


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize(("buckets", "farthest"), [(32, 128), (8, 20), (6, 9)])
def test_t5_buckets(causal, buckets, farthest):
    config = TransformerConfig(
        position="t5_relative", relative_buckets=buckets, relative_max_distance=farthest
    )
    part = RelativePosition(config, causal=causal)

    def by_hand(distances):
        count, bucket = buckets, 0
        if causal:
            distance = max(-distances, 0)
        else:
            count //= 2
            bucket, distance = (count if distances > 0 else 0), abs(distances)
        near = count // 2
        if distance < near:
            return bucket + distance
        share = math.log(distance / near) / math.log(farthest / near)
        return bucket + min(near + int(share * (count - near) + 1e-6), count - 1)

    distances = list(range(-farthest - 9, farthest + 9))
    assert part._bucket(torch.tensor(distances)).tolist() == [
        by_hand(offset) for offset in distances
    ]


@pytest.mark.catches("mean_of_a_sequence_counts_padding")
@pytest.mark.parametrize("how", ["mean", "first", "last"])
def test_pool_sequences(how):
    x = torch.randn(3, 4, 2)
    mask = torch.tensor([[True] * 4, [False, True, True, False], [False] * 4])
    real = x[1, 1:3]
    expected = {"mean": real.mean(0), "first": real[0], "last": real[1]}[how]
    torch.testing.assert_close(pool_sequences(x, mask, how)[1], expected)
    torch.testing.assert_close(pool_sequences(x, mask, how)[0], pool_sequences(x, None, how)[0])
    assert pool_sequences(x, mask, how)[2].isfinite().all()


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
def test_check_inputs_rejects_wrong_shapes_and_types(inputs, options, message):
    with pytest.raises(ValueError, match=message):
        tiny_model()(inputs, **options)


def test_check_inputs_rejects_features_of_wrong_width():
    with pytest.raises(ValueError, match=r"inputs must be \[B, T, 7\] floats"):
        tiny_model(input_dim=7)(torch.zeros(1, 4, 6))


def test_check_segments_rejects_cache():
    model = tiny_model()
    ids = torch.zeros(1, 4, dtype=torch.long)
    with pytest.raises(ValueError, match="segment_ids and cache exclude each other"):
        model(ids, segment_ids=ids + 1, cache=model.new_cache(1, 4))


def test_cache_rejects_more_tokens_than_its_capacity():
    cache = KVCache(CacheSpec([None], 1, 3, [1], 2, torch.device("cpu"), torch.float32))
    cache.extend(None, 2)
    cache.end_pass()
    with pytest.raises(ValueError, match="4 tokens do not fit a cache of capacity 3"):
        cache.extend(None, 2)


@pytest.mark.catches("writers_to_the_residual_stream_start_large")
def test_initialization_gives_near_uniform_predictions_at_any_depth():
    torch.manual_seed(0)
    model = Transformer(tiny_config(d_model=128, n_layers=12, vocab_size=500)).eval()
    ids = torch.randint(0, 500, (4, 32))
    entropy = torch.distributions.Categorical(logits=model(ids)).entropy().mean()
    assert entropy > 0.95 * torch.log(torch.tensor(500.0))
    assert (
        0.5
        < model.layers[0](torch.randn(1, 32, 128), AttentionContext("sdpa", AttentionMask())).std()
        < 3
    )


@pytest.mark.parametrize("masked", [True, False])
@pytest.mark.parametrize(("dtype", "value"), [(torch.float16, 1000.0), (torch.bfloat16, 1.0)])
def test_pool_sequences_mean_in_half_precision(dtype, value, masked):
    x = torch.full((1, 700, 2), value, dtype=dtype)
    mask = torch.arange(700)[None] < 597 if masked else None
    got = pool_sequences(x, mask, "mean")
    assert got.dtype == dtype
    assert torch.equal(got, x[:, 0])


@pytest.mark.catches("loaded_model_is_float32")
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_from_pretrained_preserves_dtype(tmp_path, dtype):
    model = tiny_model().to(dtype)
    model.save_pretrained(tmp_path)
    loaded = Transformer.from_pretrained(tmp_path)
    for name, tensor in loaded.state_dict().items():
        assert tensor.dtype == dtype, name
        assert torch.equal(tensor, model.state_dict()[name]), name


def test_from_pretrained_loads_mixed_dtypes_as_float32(tmp_path):
    model = tiny_model()
    model.layers[0].bfloat16()
    model.save_pretrained(tmp_path)
    loaded = Transformer.from_pretrained(tmp_path)
    assert {tensor.dtype for tensor in loaded.state_dict().values()} == {torch.float32}


@pytest.mark.catches("shared_tensors_are_saved_apart")
def test_save_pretrained_rejects_shared_weights(tmp_path):
    model = tiny_model()
    model.layers[1] = model.layers[0]
    with pytest.raises(UserError, match=r"tensors 'layers.0.\S+' and 'layers.1.\S+' share memory"):
        model.save_pretrained(tmp_path / "model")
    assert not (tmp_path / "model").exists()


def test_pool_sequences_rejects_empty_sequences():
    for pooling in ("mean", "max", "first", "last", "mean+first"):
        with pytest.raises(ValueError, match="sequences of length 0 have no vector"):
            tiny_model(pooling=pooling).embed(torch.zeros(2, 0).long())


def test_token_dropout_drops_tokens_in_training_only():
    """The input of the first layer is the scaled embedding of a token, or zeros."""
    torch.manual_seed(0)
    model = tiny_model(dropout=0.0, token_dropout=0.25, position="none")
    seen = []
    model.layers[0].register_forward_pre_hook(lambda module, args: seen.append(args[0].detach()))
    ids = torch.randint(1, model.config.vocab_size, (150, model.config.max_seq_len))
    model.eval()(ids)
    model.train()(ids)
    plain, dropped = seen
    gone = (dropped == 0).all(-1)
    torch.testing.assert_close(dropped[~gone], plain[~gone] / 0.75)
    assert gone.float().mean().item() == pytest.approx(0.25, abs=0.04)
    assert not (plain == 0).all(-1).any()
