"""Gradients of every variant of both models against those of the plain reference."""

import copy

import pytest
import torch

from miniformer.config import UserError
from miniformer.model.stack import set_attention_backend
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


@pytest.mark.parametrize(
    ("row", "backend"),
    each_with(
        VARIANTS, ("auto",), ("plain",), ("matmul",),
        when=lambda row, backend: backend != "matmul" or takes_matmul(row),
    ),
)  # fmt: skip
def test_gradients_are_those_of_the_plain_reference(row, backend):
    model = build(row)
    set_attention_backend(model, backend)
    segments = LAYOUTS["left padding" if row["architecture"] == "seq2seq" else "packed"]
    real = torch.tensor(segments) != 0
    inputs = ids_of(model)
    weight = torch.randn(*real.shape, model.config.output_dim or model.config.vocab_size)
    (call(model, inputs, torch.tensor(segments)) * weight)[real].sum().backward()
    twin = copy.deepcopy(model).double()
    parameters = dict(twin.named_parameters())
    (expected(model, inputs, segments, parameters) * weight)[real].sum().backward()
    for (label, parameter), other in zip(
        model.named_parameters(), parameters.values(), strict=True
    ):
        assert parameter.grad is not None, f"no gradient reaches {label}"
        # A key bias adds the same to a row's scores, so its gradient is 0 but for rounding.
        scale = max(1.0, float(other.grad.abs().max()))
        torch.testing.assert_close(
            parameter.grad.double() / scale, other.grad / scale, rtol=1e-3, atol=1e-4
        )


@pytest.mark.parametrize("row", [row for row in VARIANTS if not takes_matmul(row)], ids=name)
def test_matmul_refuses_scores_that_it_cannot_compute(row):
    model = build(row)
    set_attention_backend(model, "matmul")
    with pytest.raises(UserError, match="attention backend 'matmul': it has no"):
        call(model, ids_of(model), torch.tensor(LAYOUTS["no padding"]))
