"""Every variant of both models against the reference.

`matrix.py` lists unsupported combinations and their messages.
"""

import pytest
import torch

from miniformer.model.execution_settings import set_attention_backend
from miniformer.model.seq2seq import Seq2SeqTransformer
from tests.battery.models import (
    LAYOUTS,
    LENGTH,
    build,
    call,
    close,
    every_variant,
    expected,
    ids_of,
    layouts_of,
    of,
    takes_matmul,
)
from tests.battery.variants import FOR_FLEX, name
from tests.kit import filled, tiny_model
from tests.reference import transformer as reference


@every_variant
def test_logits_match_the_reference(row):
    model = build(row)
    inputs = ids_of(model)
    for layout in layouts_of(row):
        segments = torch.tensor(LAYOUTS[layout])
        with torch.no_grad():
            reference = expected(model, inputs, LAYOUTS[layout])
            for backend in ("auto", "plain", "matmul") if takes_matmul(row) else ("auto", "plain"):
                set_attention_backend(model, backend)
                close(call(model, inputs, segments), reference, segments != 0)
                if layout != "packed":
                    close(call(model, inputs, segments, as_mask=True), reference, segments != 0)
    if not isinstance(model, Seq2SeqTransformer) and model.type_embedding is None:
        set_attention_backend(model, "auto")
        plain = LAYOUTS["no padding"]
        close(model(inputs), expected(model, inputs, plain), torch.tensor(plain) != 0)


@pytest.mark.parametrize("row", FOR_FLEX, ids=name)
def test_flex_logits_match_the_reference(row):
    model = build(row)
    set_attention_backend(model, "flex")
    inputs = ids_of(model)
    for layout, rows in LAYOUTS.items():
        segments = torch.tensor(rows)
        with torch.no_grad():
            reference = expected(model, inputs, rows)
            close(call(model, inputs, segments), reference, segments != 0)
            if layout == "left padding":
                close(call(model, inputs, segments, as_mask=True), reference, segments != 0)


@of("encoder", "causal")
def test_pooled_outputs_match_the_reference(row):
    models = {
        pooling: build(row, pooling=pooling)
        for pooling in ("mean", "max", "first", "last", "mean+max+first")
    }
    model = models["mean"]
    inputs = ids_of(model)
    types = inputs % model.config.token_types if model.config.token_types else None
    for layout in ("no padding", "left padding", "right padding"):
        segments, mask = LAYOUTS[layout], torch.tensor(LAYOUTS[layout]) != 0
        weights = {key: weight.double() for key, weight in model.state_dict().items()}
        features = [
            reference.features(
                weights, filled(model.config), inputs[b], segments[b],
                None if types is None else types[b],
            )
            for b in range(2)
        ]  # fmt: skip
        for pooling, pooled in models.items():
            expected = [
                reference.pool_features(weights, filled(pooled.config), features[b], segments[b])
                for b in range(2)
            ]
            with torch.no_grad():
                out = pooled.classify(inputs, mask, token_types=types)
            torch.testing.assert_close(
                out.double(), torch.stack(expected), rtol=1e-4, atol=1e-4, msg=pooling
            )


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("output_dim", [None, 3])
def test_feature_inputs_match_the_reference(causal, output_dim):
    model = tiny_model(causal=causal, input_dim=7, output_dim=output_dim)
    inputs = torch.randn(2, LENGTH, 7)
    segments = LAYOUTS["packed"]
    real = torch.tensor(segments) != 0
    out = model(inputs, segment_ids=torch.tensor(segments))
    assert out.shape == (2, LENGTH, output_dim or model.config.vocab_size)
    close(out, expected(model, inputs, segments), real)
    assert model.config.num_params() == sum(p.numel() for p in model.parameters())
