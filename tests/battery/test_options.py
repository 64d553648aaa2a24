"""Each option of a model alone against the reference, so that a failure names the option."""

import pytest
import torch

from miniformer.model.execution_settings import set_attention_backend
from miniformer.model.seq2seq import Seq2SeqTransformer
from tests.battery.variants import OPTIONS
from tests.kit import filled, tiny_model
from tests.reference import transformer as reference

LAYOUTS = {  # rows of segments: 0 is padding
    "padding": [[0, 0, 1, 1, 1, 1, 1, 1, 1], [1, 1, 1, 1, 1, 1, 0, 0, 0]],
    "packed": [[1, 1, 1, 2, 2, 2, 2, 3, 3], [1, 2, 2, 2, 2, 2, 2, 0, 0]],
}
NEEDS = {"localbase": {"sliding_window": 3, "window_pattern": "LG"}}
CATCHES = {
    "alibi": pytest.mark.catches("alibi_slopes_start_at_one"),
    "dynamic": pytest.mark.catches("dynamic_scaling_counts_padding"),
    "gqa": pytest.mark.catches("shared_heads_are_interleaved"),
    "localbase": pytest.mark.catches("local_layers_rotate_with_the_global_base"),
    "longrope": pytest.mark.catches("longrope_stays_short"),
    "pattern": pytest.mark.catches("every_layer_has_the_window"),
    "output": pytest.mark.catches("output_norm_is_left_out"),
    "parallel": pytest.mark.catches("parallel_feed_forward_reads_attention"),
    "rmsnorm": pytest.mark.catches("rms_norm_subtracts_the_mean"),
    "rotary": pytest.mark.catches("rotary_pairs_neighbors"),
    "sinks": pytest.mark.catches("sinks_are_dropped"),
    "swiglu": pytest.mark.catches("gate_and_value_are_swapped"),
    "capped": pytest.mark.catches("logit_scale_is_dropped"),
}
ONE_STACK = [
    pytest.param(changes, id=f"{option}-{value}", marks=CATCHES.get(value, ()))
    for option, values in OPTIONS.items()
    for value, changes in values.items()
    if option != "architecture" and value != "two"
]


def close(actual, expected, real):
    torch.testing.assert_close(actual[real].double(), expected[real].double(), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("changes", ONE_STACK)
def test_one_option_of_a_decoder_matches_the_reference(changes):
    compare(tiny_model(**with_needs(changes)))


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"sliding_window": 3},
        {"position": "alibi"},
        pytest.param(
            {"position": "t5_relative", "relative_buckets": 8, "relative_max_distance": 7},
            marks=pytest.mark.catches("relative_buckets_ignore_direction"),
        ),
        pytest.param(
            {"position": "alibi", "logit_softcap": 2.0},
            marks=pytest.mark.catches("position_bias_comes_after_the_softcap"),
        ),
    ],
    ids=str,
)
def test_one_option_of_an_encoder_matches_the_reference(changes):
    compare(tiny_model(**changes, causal=False))


def with_needs(changes):
    return {**NEEDS["localbase"], **changes} if "rotary_base_local" in changes else changes


def compare(model):
    settings, inputs = filled(model.config), torch.randint(0, 31, (2, 9))
    types = inputs % model.config.token_types if model.config.token_types else None
    for rows in LAYOUTS.values():
        segments = torch.tensor(rows)
        with torch.no_grad():
            expected = [
                reference.logits(
                    model.state_dict(), settings, ids, row, None if types is None else types[b]
                )
                for b, (ids, row) in enumerate(zip(inputs, rows, strict=True))
            ]
            for backend in ("auto", "plain"):
                set_attention_backend(model, backend)
                actual = model(inputs, segment_ids=segments, token_types=types)
                close(actual, torch.stack(expected), segments != 0)


@pytest.mark.parametrize(
    "changes",
    [
        pytest.param({}, marks=pytest.mark.catches("padding_of_a_source_is_attended_to")),
        pytest.param(
            {"source_vocab_size": 41}, marks=pytest.mark.catches("targets_are_embedded_as_sources")
        ),
    ],
    ids=str,
)
def test_one_option_of_seq2seq_matches_the_reference(changes):
    model = tiny_model(model=Seq2SeqTransformer, causal=False, n_decoder_layers=2, **changes)
    settings, targets = filled(model.config), torch.randint(0, 31, (2, 6))
    sources, rows = torch.randint(0, 31, (2, 7)), [[1] * 7, [1, 1, 1, 1, 0, 0, 0]]
    with torch.no_grad():
        actual = model(sources, targets, torch.tensor(rows).bool())
        expected = [
            reference.seq2seq_logits(model.state_dict(), settings, source, row, target, [1] * 6)
            for source, row, target in zip(sources, rows, targets, strict=True)
        ]
    close(actual, torch.stack(expected), torch.ones(2, 6).bool())


@pytest.mark.catches("vectors_of_sequences_ignore_token_types")
def test_one_vector_depends_on_token_types():
    model = tiny_model(causal=False, token_types=3, output_dim=5, pooling="mean")
    inputs, rows = torch.randint(0, 31, (2, 9)), LAYOUTS["padding"]
    with torch.no_grad():
        actual = model.classify(inputs, torch.tensor(rows) != 0, token_types=inputs % 3)
        expected = [
            reference.pooled(model.state_dict(), filled(model.config), ids, row, ids % 3)
            for ids, row in zip(inputs, rows, strict=True)
        ]
    torch.testing.assert_close(actual.double(), torch.stack(expected), rtol=1e-4, atol=1e-4)
