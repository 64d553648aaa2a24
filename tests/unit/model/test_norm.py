"""Gradients of RMSNorm against those of autograd through the formula."""

import pytest
import torch
import torch.nn.functional as F
from torch.func import functional_call, grad, jvp, vmap

from miniformer.model.execution_settings import set_attention_backend
from miniformer.model.norm import RMSNorm
from tests.kit import tiny_model


def by_formula(x, weight, eps):
    return x / torch.sqrt((x * x).mean(-1, keepdim=True) + eps) * weight


@pytest.fixture
def norm():
    module = RMSNorm(6, eps=0.1).double()
    torch.nn.init.normal_(module.weight)
    return module


@pytest.mark.catches("rms_norm_has_the_gradient_of_layer_norm")
@pytest.mark.parametrize("shape", [(6,), (4, 6), (2, 3, 6), (2, 2, 3, 6), (0, 6)])
def test_rms_norm_value_and_gradients_match_the_formula(norm, shape):
    x = torch.randn(shape, dtype=torch.float64, requires_grad=True)
    grad = torch.randn(shape, dtype=torch.float64)
    out = norm(x)
    expected = by_formula(x, norm.weight, 0.1)
    torch.testing.assert_close(out, expected)
    got = torch.autograd.grad(out, (x, norm.weight), grad)
    for first, second in zip(
        got, torch.autograd.grad(expected, (x, norm.weight), grad), strict=True
    ):
        torch.testing.assert_close(first, second)


def test_rms_norm_derivatives_match_finite_differences(norm):
    x = torch.randn(3, 6, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(norm, x)
    assert torch.autograd.gradgradcheck(norm, x)


def test_rms_norm_of_strided_inputs_and_gradients(norm):
    x = torch.randn(6, 5, dtype=torch.float64).t().requires_grad_()
    norm(x).transpose(0, 1).square().sum().backward()
    got, x.grad = x.grad.clone(), None
    by_formula(x, norm.weight, 0.1).square().sum().backward()
    torch.testing.assert_close(got, x.grad)


@pytest.mark.parametrize("frozen", ["input", "weight"])
def test_rms_norm_with_frozen_input_or_weight(norm, frozen):
    x = torch.randn(3, 6, dtype=torch.float64, requires_grad=frozen != "input")
    norm.weight.requires_grad_(frozen != "weight")
    norm(x).sum().backward()
    assert (x.grad is None) == (frozen == "input")
    assert (norm.weight.grad is None) == (frozen == "weight")


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_rms_norm_in_half_precision(dtype):
    norm = RMSNorm(6, eps=0.0).to(dtype)
    for size in (1e-4, 1.0, 3e4):
        out = norm(torch.full((2, 6), size, dtype=dtype))
        assert out.dtype == dtype
        torch.testing.assert_close(out.float(), torch.ones(2, 6), rtol=1e-2, atol=0)


@pytest.mark.parametrize("frozen", ["input", "weight"])
def test_rms_norm_second_derivatives_with_frozen_input_or_weight(norm, frozen):
    x = torch.randn(3, 6, dtype=torch.float64, requires_grad=frozen != "input")
    norm.weight.requires_grad_(frozen != "weight")
    leaf = x if frozen == "weight" else norm.weight

    def twice(function):
        (first,) = torch.autograd.grad(function().pow(3).sum(), leaf, create_graph=True)
        return torch.autograd.grad(first.square().sum(), leaf)[0]

    expected = twice(lambda: by_formula(x, norm.weight, 0.1))
    torch.testing.assert_close(twice(lambda: norm(x)), expected)


def test_rms_norm_forward_mode(norm):
    x, tangent = torch.randn(2, 3, 6, dtype=torch.float64)
    weight = norm.weight.detach()
    expected = jvp(lambda y: by_formula(y, weight, 0.1), (x,), (tangent,))
    torch.testing.assert_close(jvp(norm, (x,), (tangent,)), expected)


def test_rms_norm_per_sample_gradients():
    model = tiny_model(norm="rmsnorm", qk_norm="head")
    set_attention_backend(model, "plain")  # torch has no batching rule for its fused kernel
    weights = dict(model.named_parameters())
    ids, labels = torch.randint(0, 31, (2, 3, 7))

    def loss(weights, ids, labels):
        return F.cross_entropy(functional_call(model, weights, (ids[None],))[0], labels)

    got = vmap(grad(loss), (None, 0, 0))(weights, ids, labels)
    for row in range(3):
        out = loss(weights, ids[row], labels[row])
        expected = torch.autograd.grad(out, list(weights.values()))
        for name, gradient in zip(weights, expected, strict=True):
            torch.testing.assert_close(got[name][row], gradient, msg=name)
