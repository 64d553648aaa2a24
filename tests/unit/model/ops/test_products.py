"""Products by oneDNN: those of float64 mathematics, and only where they are meant to be."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from miniformer import Transformer, TransformerConfig
from miniformer.model.ops import products
from miniformer.model.ops.cross_entropy import linear_cross_entropy
from miniformer.model.ops.products import (
    Linear,
    baddbmm,
    bmm,
    is_plain_linear,
    linear,
    matmul,
)

pytestmark = pytest.mark.skipif(
    not torch.backends.mkldnn.is_available(), reason="this build of torch has no oneDNN"
)


@pytest.fixture(autouse=True, name="calls")
def fixture_calls(monkeypatch):
    """Takes oneDNN for products of any size; the shapes of its calls."""
    shapes = []
    product = products._product

    def counted(x, weight, bias):
        shapes.append((*x.shape, *weight.shape))
        return product(x, weight, bias)

    monkeypatch.setattr(products, "_product", counted)
    monkeypatch.setattr(products, "_is_faster", lambda: True)
    monkeypatch.setattr(products, "_is_right", lambda: True)
    monkeypatch.setattr(products, "_MIN_WORK", {False: 0, True: 0})
    monkeypatch.setattr(products, "_MIN_ROWS", 0)
    return shapes


def close(actual, expected):
    torch.testing.assert_close(actual.double(), expected, rtol=1e-4, atol=1e-4)


def make(*shape, seed=0):
    generator = torch.Generator().manual_seed(seed + sum(shape))
    return torch.randn(*shape, generator=generator)


@pytest.mark.catches("product_without_its_bias")
@settings(max_examples=30, deadline=None)
@given(
    leading=st.lists(st.integers(1, 5), min_size=1, max_size=3),
    inputs=st.integers(1, 40),
    outputs=st.integers(1, 40),
    has_bias=st.booleans(),
    transposed=st.booleans(),
)
def test_outputs_and_gradients_are_those_of_float64(leading, inputs, outputs, has_bias, transposed):
    x = make(*leading, inputs)
    weight = make(inputs, outputs).t() if transposed else make(outputs, inputs)
    values = [x, weight, *([make(outputs)] if has_bias else [])]
    single = [value.detach().requires_grad_() for value in values]
    double = [value.detach().double().requires_grad_() for value in values]
    actual, expected = linear(*single), F.linear(*double)
    close(actual, expected)
    grad = make(*leading, outputs, seed=1)
    for single_value, exact_value in zip(
        torch.autograd.grad(actual, single, grad),
        torch.autograd.grad(expected, double, grad.double()),
        strict=True,
    ):
        close(single_value, exact_value)
    with torch.no_grad():
        close(linear(*values), expected)


def test_gradients_are_computed_where_they_are_needed(calls):
    x, weight = make(3, 5), make(4, 5).requires_grad_()
    (gradient,) = torch.autograd.grad(linear(x, weight).sum(), weight)
    close(gradient, x.double().sum(0).expand(4, 5))
    assert len(calls) == 2  # none by x


def test_second_derivatives_are_those_of_float64():
    def penalty(function, x, weight):
        (gradient,) = torch.autograd.grad(function(x, weight).tanh().sum(), x, create_graph=True)
        return torch.autograd.grad(gradient.square().sum(), (x, weight))

    values = make(3, 5), make(4, 5)
    single = [value.clone().requires_grad_() for value in values]
    double = [value.double().requires_grad_() for value in values]
    for single_value, exact_value in zip(
        penalty(linear, *single), penalty(F.linear, *double), strict=True
    ):
        close(single_value, exact_value)


def test_function_transforms_are_those_of_torch(calls):
    x, weight, bias = make(2, 3, 5), make(2, 4, 5), make(2, 4)
    double = [value.double() for value in (x, weight, bias)]
    close(torch.func.vmap(linear)(x, weight, bias), torch.func.vmap(F.linear)(*double))
    for argument in range(3):
        values, exact = [x[0], weight[0], bias[0]], [value[0] for value in double]
        tangents = [torch.zeros_like(value) for value in values]
        tangents[argument] = make(*values[argument].shape, seed=2)
        _, actual = torch.func.jvp(linear, tuple(values), tuple(tangents))
        _, expected = torch.func.jvp(F.linear, tuple(exact), tuple(t.double() for t in tangents))
        close(actual, expected)
        with torch.autograd.forward_ad.dual_level():
            inputs = list(values)
            inputs[argument] = torch.autograd.forward_ad.make_dual(
                values[argument], tangents[argument]
            )
            close(torch.autograd.forward_ad.unpack_dual(linear(*inputs)).tangent, expected)
        gradient = torch.func.grad(lambda *v: linear(*v).tanh().sum(), argument)(*values)
        close(gradient, torch.func.grad(lambda *v: F.linear(*v).tanh().sum(), argument)(*exact))
    traced = torch.jit.trace(lambda v: linear(v, weight[0]), x[0], check_trace=False)
    close(traced(x[1]), double[0][1] @ double[1][0].t())
    assert calls == []


@pytest.mark.catches("products_of_any_type_are_taken")
@pytest.mark.parametrize("case", ["float64", "autocast", "few rows", "small", "off", "compiling"])
def test_other_products_are_those_of_torch(case, calls, monkeypatch):
    dtype = torch.float64 if case == "float64" else torch.float32
    x, weight = make(8, 5).to(dtype), make(4, 5).to(dtype)
    if case == "few rows":
        monkeypatch.setattr(products, "_MIN_ROWS", 9)
    if case == "small":
        monkeypatch.setattr(products, "_MIN_WORK", {False: 161, True: 161})
    if case == "compiling":
        monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    if case == "off":
        monkeypatch.setattr(type(torch.backends.mkldnn), "enabled", False)
    with torch.autocast("cpu", torch.bfloat16, enabled=case == "autocast"):
        assert torch.equal(linear(x, weight), F.linear(x, weight))
    assert calls == []
    if case in ("float64", "few rows", "small"):
        linear(make(9, 90), make(9, 90))
        assert len(calls) == 1


class Tagged(torch.Tensor):
    """A tensor with products of its own."""


def test_subclasses_of_tensors_keep_their_products(calls):
    x, weight = make(8, 5).as_subclass(Tagged), make(4, 5)
    assert type(linear(x, weight)) is Tagged
    assert type(linear(make(8, 5), weight.as_subclass(Tagged))) is Tagged
    assert calls == []


def test_products_without_gradients(calls):
    a, b = make(6, 7), make(7, 5)
    for actual in (
        matmul(a, b),
        matmul(a, b.t().contiguous().t()),
        matmul(a.t().contiguous().t(), b),
    ):
        close(actual, a.double() @ b.double())
    many, others, sums = make(3, 6, 7), make(3, 7, 5), make(3, 6, 5)
    close(bmm(many, others), many.double() @ others.double())
    close(bmm(many, many.mT), many.double() @ many.double().mT)
    close(
        baddbmm(sums, many, others, beta=0.5, alpha=-2),
        0.5 * sums.double() - 2 * many.double() @ others.double(),
    )
    assert len(calls) == 3 + 3 * 3
    products._MIN_WORK[False] = 2**40
    close(matmul(a, b), a.double() @ b.double())
    close(baddbmm(sums, many, others, beta=0.5), 0.5 * sums.double() + (many @ others).double())
    assert len(calls) == 3 + 3 * 3


@pytest.mark.parametrize("has_bias", [False, True])
def test_fused_loss_has_the_gradients_of_float64(has_bias, calls):
    values = [make(40, 6), make(30, 6), *([make(30)] if has_bias else [])]
    labels = torch.arange(40) % 30
    single = [value.clone().requires_grad_() for value in values]
    double = [value.double().requires_grad_() for value in values]
    bias = single[2] if has_bias else None
    loss = linear_cross_entropy(*single[:2], labels, bias=bias, chunk_size=16)
    expected = F.cross_entropy(F.linear(*double), labels, reduction="sum")
    close(loss, expected)
    for single_value, exact_value in zip(
        torch.autograd.grad(loss, single), torch.autograd.grad(expected, double), strict=True
    ):
        close(single_value, exact_value)
    assert len(calls) == 3 * (1 if has_bias else 2)


def test_model_computes_the_same_with_either_library(calls, monkeypatch):
    torch.manual_seed(0)
    config = TransformerConfig(
        vocab_size=7, d_model=8, n_heads=2, n_layers=2, max_seq_len=16, dropout=0.0
    )
    model = Transformer(config)
    tokens = torch.arange(20).view(2, 10) % 7

    def gradients():
        model.zero_grad()
        model(tokens).square().mean().backward()
        return [parameter.grad.clone() for parameter in model.parameters()]

    actual = gradients()
    assert len(calls) > 10
    monkeypatch.setattr(products, "_is_faster", lambda: False)
    count = len(calls)
    for single_value, exact_value in zip(actual, gradients(), strict=True):
        torch.testing.assert_close(single_value, exact_value, rtol=1e-4, atol=1e-4)
    assert len(calls) == count


def test_linear_is_plain_and_others_are_not():
    layer, twin = Linear(5, 4), nn.Linear(5, 4)
    twin.load_state_dict(layer.state_dict())
    x = make(3, 5)
    torch.testing.assert_close(layer(x), twin(x))
    assert repr(layer) == repr(twin)

    class Own(nn.Linear):
        pass

    assert [is_plain_linear(m) for m in (layer, twin, Own(2, 2), nn.Identity())] == [
        True, True, False, False,
    ]  # fmt: skip


@pytest.mark.catches("every_cpu_is_of_one_maker")
def test_cpu_maker_is_that_of_the_first_cpu(tmp_path):
    path = tmp_path / "cpuinfo"
    path.write_text("processor\t: 0\nvendor_id\t: AuthenticAMD\nflags\t: fpu\nvendor_id\t: x\n")
    assert products._cpu_maker(path) == "AuthenticAMD"
    assert products._cpu_maker(tmp_path / "none") == ""
    path.write_text("CPU part\t: 0xd0c\n")
    assert products._cpu_maker(path) == ""


@pytest.mark.parametrize(
    ("maker", "capability", "mkl", "faster"),
    [
        ("AuthenticAMD", "AVX512", True, True),
        ("AuthenticAMD", "AVX2", True, False),
        ("GenuineIntel", "AVX512", True, False),
        ("", "AVX512", True, False),
        ("AuthenticAMD", "AVX512", False, False),
    ],
)
def test_library_follows_from_the_processor(maker, capability, mkl, faster, monkeypatch):
    monkeypatch.undo()
    monkeypatch.setattr(products, "_cpu_maker", lambda: maker)
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)
    monkeypatch.setattr(torch.backends.mkl, "is_available", lambda: mkl)
    assert products._is_faster.__wrapped__() is faster


@pytest.mark.catches("every_operator_is_right")
def test_another_operator_is_not_taken(monkeypatch):
    monkeypatch.undo()
    is_right = getattr(products._is_right, "__wrapped__", products._is_right)  # or a fault's
    assert is_right() is True
    monkeypatch.setattr(products, "_is_faster", lambda: True)
    monkeypatch.setattr(products, "_MIN_WORK", {False: 0, True: 0})
    monkeypatch.setattr(products, "_MIN_ROWS", 0)
    monkeypatch.setattr(products, "_is_right", is_right)
    for problem in (lambda *_: torch.zeros(2, 4), lambda: None):
        monkeypatch.setattr(products, "_product", problem)
        x, weight = make(8, 5), make(4, 5)
        assert torch.equal(linear(x, weight), F.linear(x, weight))
