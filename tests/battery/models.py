"""Shared helpers of the battery: layouts of batches, and building and calling of variants."""

import pytest
import torch

from miniformer.model.seq2seq import Seq2SeqTransformer
from tests.battery.variants import EACH_VALUE, VARIANTS, fields, name
from tests.kit import filled, tiny_model
from tests.reference import transformer as reference

LENGTH, SOURCE = 9, 7
LAYOUTS = {  # rows of segments: 0 is padding
    "no padding": [[1] * 9, [1] * 9],
    "left padding": [[0, 0, 0, 1, 1, 1, 1, 1, 1], [1] * 9],
    "right padding": [[1, 1, 1, 1, 1, 0, 0, 0, 0], [1] * 9],
    "packed": [[1, 1, 1, 2, 2, 2, 2, 3, 3], [1, 2, 2, 2, 2, 2, 2, 0, 0]],
}
SOURCES = torch.tensor([[1] * 7, [1, 1, 1, 1, 0, 0, 0]])  # the same for every target layout


def of(*architectures):
    rows = [row for row in VARIANTS if row["architecture"] in architectures]
    return pytest.mark.parametrize("row", rows, ids=name)


def each_with(rows, *arguments, when=lambda row, *values: True):
    """Cases (row, *values) for which `when` is true."""
    return [
        pytest.param(row, *values, id="-".join((name(row), *values)))
        for row in rows
        for values in arguments
        if when(row, *values)
    ]


every_variant = pytest.mark.parametrize("row", VARIANTS, ids=name)
# For tests that do not depend on pairs of options.
each_value = pytest.mark.parametrize("row", EACH_VALUE, ids=name)
decoding = of("causal", "seq2seq")


def build(row, **more):
    changes = {"causal": False, **fields(row), **more}
    if row["architecture"] == "seq2seq":
        return tiny_model(model=Seq2SeqTransformer, **changes)
    return tiny_model(**changes)


def ids_of(model, batch=2, length=LENGTH):
    return torch.randint(0, model.config.vocab_size, (batch, length))


def call(model, inputs, segments, *, as_mask=False):
    """Logits of both kinds of model; source ids and token types are made from the inputs."""
    if isinstance(model, Seq2SeqTransformer):
        return model(inputs[:, :SOURCE], inputs, SOURCES.bool(), segments != 0)
    types = inputs % model.config.token_types if model.config.token_types else None
    if as_mask:
        return model(inputs, segments != 0, token_types=types)
    return model(inputs, segment_ids=segments, token_types=types)


def expected(model, inputs, segments, weights=None):
    weights, settings = weights or model.state_dict(), filled(model.config)
    rows = []
    for b, (ids, row) in enumerate(zip(inputs, segments, strict=True)):
        if isinstance(model, Seq2SeqTransformer):
            source = ids[:SOURCE], SOURCES[b].tolist()
            rows.append(reference.seq2seq_logits(weights, settings, *source, ids, row))
        else:
            types = ids % settings["token_types"] if settings["token_types"] else None
            rows.append(reference.logits(weights, settings, ids, row, types))
    return torch.stack(rows)


def layouts_of(row):
    return [name for name in LAYOUTS if name != "packed" or row["architecture"] != "seq2seq"]


def takes_matmul(row):
    return row["scores"] in ("scores", "scale") and row["position"] not in ("alibi", "t5_relative")


def close(actual, expected, real):
    """Compares real tokens only; outputs at padding are arbitrary."""
    torch.testing.assert_close(actual[real].double(), expected[real].double(), rtol=1e-4, atol=1e-4)
