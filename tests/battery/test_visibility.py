"""Visibility of other rows, padding and later tokens, for every variant."""

import torch

from miniformer.model.seq2seq import Seq2SeqTransformer
from tests.battery.models import (
    LAYOUTS,
    LENGTH,
    SOURCE,
    SOURCES,
    build,
    call,
    decoding,
    every_variant,
    ids_of,
    of,
)


@every_variant
def test_batch_matches_single_rows(row):
    """Single rows have no padding."""
    model = build(row)
    inputs = ids_of(model)
    segments = torch.tensor(LAYOUTS["left padding"])
    together = call(model, inputs, segments)
    if isinstance(model, Seq2SeqTransformer):
        source = inputs[:1, :SOURCE]
        alone = model(source, inputs[:1, 3:])
    else:
        types = inputs % model.config.token_types if model.config.token_types else None
        alone = model(inputs[:1, 3:], token_types=None if types is None else types[:1, 3:])
    torch.testing.assert_close(together[:1, 3:], alone, rtol=1e-4, atol=1e-4)


@decoding
def test_no_later_token_changes_an_earlier_logit(row):
    model = build(row)
    inputs = ids_of(model, batch=2)
    segments = torch.tensor(LAYOUTS["no padding"])
    source = inputs[:, :SOURCE]

    def logits(target):
        if isinstance(model, Seq2SeqTransformer):
            return model(source, target, SOURCES.bool())
        return call(model, target, segments)

    before = logits(inputs)
    for t in range(1, LENGTH):
        changed = inputs.clone()
        changed[:, t:] = (changed[:, t:] + 1) % model.config.vocab_size
        after = logits(changed)
        torch.testing.assert_close(after[:, :t], before[:, :t], rtol=1e-5, atol=1e-5)
        assert not torch.allclose(after[:, t], before[:, t]), "a token's own logits must move"


@of("encoder", "seq2seq")
def test_encoder_sees_later_tokens(row):
    model = build(row)
    inputs = ids_of(model, batch=2)
    changed = inputs.clone()
    far = 1 if row["window"] != "nowindow" else SOURCE - 1  # within every window
    changed[:, far] = (changed[:, far] + 1) % model.config.vocab_size

    def features(ids):
        if isinstance(model, Seq2SeqTransformer):
            return model.encode(ids[:, :SOURCE]).features
        return model.features(ids)

    assert not torch.allclose(features(changed)[:, 0], features(inputs)[:, 0])
