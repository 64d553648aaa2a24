"""Static views equal the model: in eager mode for all parts, and exported with dynamic sizes."""

from functools import cache as memoize

import pytest
import torch

from miniformer import Seq2SeqTransformer, Transformer, UserError
from miniformer.model.cache.protocol import PassCache
from miniformer.model.cache.static_view import CachedDecoder, SourceEncoder, TensorCache
from tests.kit import tiny_model

VARIANTS = {
    "default": {},
    "window": {"sliding_window": 3},
    "pattern": {"sliding_window": 4, "window_pattern": "LG", "attention_sinks": True},
    "alibi": {"position": "alibi", "n_kv_heads": 2},
    "t5": {"position": "t5_relative", "relative_buckets": 8, "relative_max_distance": 9},
    "learned": {"position": "learned", "qk_norm": "head", "norm": "rmsnorm"},
    "softcap": {"logit_softcap": 4.0, "position": "none", "tie_embeddings": False},
    "seq2seq": {"model": Seq2SeqTransformer, "causal": False},
    "seq2seq of two vocabularies": {
        "model": Seq2SeqTransformer, "causal": False, "source_vocab_size": 31,
        "position": "t5_relative", "relative_buckets": 8, "relative_max_distance": 9,
    },
}  # fmt: skip
# One export takes seconds, so each has several parts.
EXPORTED = {
    "default": {},
    "alibi and window": {"position": "alibi", "sliding_window": 3},
    "t5 and qk-norm": {**VARIANTS["t5"], "qk_norm": "projection"},
    "learned and grouped heads": {"position": "learned", "n_kv_heads": 2, "qk_norm": "head"},
    "seq2seq": VARIANTS["seq2seq"],
}


def close(actual, expected):
    torch.testing.assert_close(actual, expected, rtol=1e-6, atol=1e-6)


def model_of(fields):
    """In float64, in which the order of sums does not show."""
    return tiny_model(**fields).double()


def check_steps(model, decode, view, encode=None, batch_size=3):
    """Prompts of unequal lengths, padded on the left, then chunks and steps of all rows."""
    sizes = [1, 5, 1, 4, 1, 3]  # the least ones first: a past of one column, and one token
    ids = torch.randint(0, 31, (batch_size, 15))
    mask = torch.arange(15) >= torch.arange(batch_size)[:, None] % 4
    source, past = (), view.empty_past(batch_size)
    seen = torch.zeros(batch_size, 1, dtype=torch.bool)
    if encode is None:
        expected = model(ids, mask)
    else:
        sources = torch.randint(0, 31, (batch_size, 4 + batch_size))
        source_mask = torch.arange(4 + batch_size) < 3 + torch.arange(batch_size)[:, None]
        expected = model(sources, ids, source_mask, mask)
        source = (*encode(sources, source_mask), source_mask)
    parts = []
    for part, real in zip(ids.split(sizes, 1), mask.split(sizes, 1), strict=True):
        seen = torch.cat((seen, real), 1)
        logits, *past = decode(part, seen, *past, *source)
        parts.append(logits)
        assert past[0][-1].shape[:3:2] == (batch_size, seen.shape[1])
    close(torch.cat(parts, 1)[mask], expected[mask])


@pytest.mark.catches("exported_positions_count_padding", "exported_layers_share_the_first_source")
@pytest.mark.parametrize("variant", VARIANTS)
@torch.no_grad()
def test_view_equals_the_model(variant):
    model = model_of(VARIANTS[variant])
    view = CachedDecoder(model)
    encode = SourceEncoder(model) if isinstance(model, Seq2SeqTransformer) else None
    check_steps(model, view, view, encode)


@memoize
def exported(variant):
    """Model, view and program of the view."""
    model = model_of({"n_layers": 1, **EXPORTED[variant]})
    view = CachedDecoder(model)
    return model, view, view.export().module()


@pytest.mark.catches("exported_model_has_one_batch_size")
@pytest.mark.parametrize("variant", EXPORTED)
@torch.no_grad()
def test_exported_decoder_equals_the_model_at_other_sizes(variant):
    """Batch, length and past are not those of the example, which was 2, 3 and 4; 1 each, too."""
    model, view, program = exported(variant)
    encode = SourceEncoder(model) if variant == "seq2seq" else None
    for batch_size in (1, 2, 5):
        check_steps(model, program, view, encode, batch_size)


@torch.no_grad()
def test_exported_source_encoder_equals_the_model_at_other_sizes():
    model, view, decode = exported("seq2seq")
    encoder = SourceEncoder(model)
    program = encoder.export().module()
    for batch_size in (1, 4):
        check_steps(model, decode, view, program, batch_size)


@torch.no_grad()
def test_exported_program_decodes_greedily_like_generate():
    model = tiny_model(n_layers=1)
    view = CachedDecoder(model, last_only=True)
    prompts = [[3, 1, 4, 1], [5], [9, 2]]
    ids = torch.tensor([[0] * (4 - len(row)) + row for row in prompts])
    mask = torch.tensor([[False] * (5 - len(row)) + [True] * len(row) for row in prompts])
    past, texts = view.empty_past(3), [[*row] for row in prompts]
    for _ in range(9):
        logits, *past = view(ids, mask, *past)
        assert logits.shape[1] == 1
        ids = logits.argmax(-1)
        mask = torch.cat((mask, torch.ones(3, 1, dtype=torch.bool)), 1)
        texts = [[*row, int(token)] for row, token in zip(texts, ids, strict=True)]
    assert texts == model.generate(prompts, 9, temperature=0)


@torch.no_grad()
def test_dynamic_rotary_scaling_has_the_longest_length():
    dynamic = {"type": "dynamic", "factor": 2.0, "original_max_seq_len": 4}
    model = tiny_model(rotary_scaling=dynamic)
    view, ids = CachedDecoder(model), torch.randint(0, 31, (2, 9))
    mask = torch.cat((torch.zeros(2, 1, dtype=torch.bool), torch.ones_like(ids).bool()), 1)
    logits, *_ = view(ids, mask, *view.empty_past(2))
    expected = model(ids, cache=model.new_cache(2, model.config.max_seq_len))
    torch.testing.assert_close(logits, expected)


def test_view_of_an_encoder_is_refused():
    with pytest.raises(UserError, match="a model with causal=false has no cached decoder"):
        CachedDecoder(tiny_model(causal=False))
    assert {name for name in vars(PassCache) if not name.startswith("_")} <= {*dir(TensorCache)}
    assert isinstance(CachedDecoder(tiny_model()).model, Transformer)
