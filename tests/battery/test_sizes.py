"""Parameters and FLOPs computed from a config, against those of its model."""

import pytest
import torch

from miniformer.model.seq2seq import Seq2SeqTransformer
from miniformer.model.transformer import Transformer
from tests.battery.models import LENGTH, build, every_variant
from tests.kit import tiny_config


@every_variant
def test_size_matches_the_config(row):
    model = build(row)
    seq2seq = row["architecture"] == "seq2seq"
    counted = sum(parameter.numel() for parameter in model.parameters())
    assert model.config.num_params(seq2seq=seq2seq) == counted


@pytest.mark.parametrize(
    "changes",
    [
        {}, {"activation": "swiglu"}, {"n_kv_heads": 1}, {"output_dim": 3},
        {"head": "masked_lm"}, {"head_dim": 6},
    ],
    ids=str,
)  # fmt: skip
def test_flops_match_matrix_products(changes):
    """Compared with torch's counter, on the full attention of an encoder."""
    from torch.nn.attention import SDPBackend, sdpa_kernel
    from torch.utils.flop_counter import FlopCounterMode

    config = tiny_config(causal=False, **changes)
    model = Transformer(config).eval()
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        model(torch.zeros(1, LENGTH, dtype=torch.long))
    assert counter.get_total_flops() == LENGTH * config.flops_per_token(LENGTH)


def test_flops_of_seq2seq_match_matrix_products():
    """Self-attention of the decoder counts the pairs that its causal mask allows."""
    from torch.nn.attention import SDPBackend, sdpa_kernel
    from torch.utils.flop_counter import FlopCounterMode

    config = tiny_config(causal=False, n_decoder_layers=3)
    model = Seq2SeqTransformer(config).eval()
    ids = torch.zeros(1, LENGTH, dtype=torch.long)
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        model(ids, ids)
    unseen = 3 * 4 * config.d_model * (LENGTH - 1) / 2  # the counter includes masked pairs
    expected = LENGTH * (config.flops_per_token(LENGTH, seq2seq=True) + unseen)
    assert counter.get_total_flops() == expected


@pytest.mark.catches("operations_ignore_the_window")
@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("window", [1, 2, 3, 4, 5, 8, 9, 20])
def test_flops_of_a_window_count_visible_pairs(causal, window):
    full = tiny_config(causal=False, n_layers=1)
    config = tiny_config(causal=causal, n_layers=1, sliding_window=window)
    pairs = sum(
        (t - window < s <= t) if causal else abs(s - t) <= window // 2
        for t in range(LENGTH)
        for s in range(LENGTH)
    )
    fewer = (LENGTH * LENGTH - pairs) * 4 * config.d_model
    expected = full.flops_per_token(LENGTH) * LENGTH - fewer
    assert LENGTH * config.flops_per_token(LENGTH) == pytest.approx(expected, abs=LENGTH)
