"""Gradients of every variant of both models against those of the plain reference."""

import functools

import pytest
import torch

from miniformer.config import UserError
from miniformer.model.execution_settings import set_attention_backend
from tests.battery.models import (
    LAYOUTS,
    build,
    call,
    each_with,
    expected,
    ids_of,
    takes_matmul,
)
from tests.battery.variants import VARIANTS, name

BY_NAME = {name(row): row for row in VARIANTS}


@functools.lru_cache(maxsize=2)  # a variant's cases come one after the other
def reference_gradients(variant):
    """Inputs, segments and weights of the outputs; and the gradient of each parameter by name."""
    row = BY_NAME[variant]
    model = build(row).double()
    segments = LAYOUTS["left padding" if row["architecture"] == "seq2seq" else "packed"]
    inputs, real = ids_of(model), torch.tensor(segments) != 0
    weight = torch.randn(*real.shape, model.config.output_dim or model.config.vocab_size)
    parameters = dict(model.named_parameters())
    (expected(model, inputs, segments, parameters) * weight)[real].sum().backward()
    reference = {label: parameter.grad for label, parameter in parameters.items()}
    return inputs, segments, weight, reference


@pytest.mark.parametrize(
    ("row", "backend"),
    each_with(
        VARIANTS, ("auto",), ("plain",), ("matmul",),
        when=lambda row, backend: backend != "matmul" or takes_matmul(row),
    ),
)  # fmt: skip
def test_gradients_match_the_reference(row, backend):
    model = build(row)
    set_attention_backend(model, backend)
    inputs, segments, weight, expected = reference_gradients(name(row))
    real = torch.tensor(segments) != 0
    (call(model, inputs, torch.tensor(segments)) * weight)[real].sum().backward()
    actual = dict(model.named_parameters())
    assert actual.keys() == expected.keys()
    for label, parameter in actual.items():
        assert parameter.grad is not None, f"no gradient reaches {label}"
        # A key bias adds the same to a row's scores, so its gradient is 0 but for rounding.
        scale = max(1.0, float(expected[label].abs().max()))
        torch.testing.assert_close(
            parameter.grad.double() / scale, expected[label] / scale, rtol=1e-3, atol=1e-4
        )


@pytest.mark.parametrize("row", [row for row in VARIANTS if not takes_matmul(row)], ids=name)
def test_matmul_rejects_unsupported_scores(row):
    model = build(row)
    set_attention_backend(model, "matmul")
    with pytest.raises(UserError, match=r"attention backend 'matmul': .* is not supported"):
        call(model, ids_of(model), torch.tensor(LAYOUTS["no padding"]))
