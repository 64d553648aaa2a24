"""Rounded linear layers against float64 products with the same rounding."""

import os
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from miniformer.runtime.native.huge_pages import HugePageArena
from miniformer.runtime.rounded import linear as module
from miniformer.runtime.rounded.linear import RoundedLinear

DTYPES = ["int8", "int4", "bf16"]


def make_layer(inputs, outputs, dtype, *, bias=True, seed=0):
    """A linear layer and its rounded one."""
    torch.manual_seed(seed)
    linear = nn.Linear(inputs, outputs, bias=bias).requires_grad_(False)
    linear.weight.mul_(torch.logspace(-1, 1, outputs)[:, None])
    return linear, RoundedLinear(linear, dtype, HugePageArena())


def integers(x):
    """Integers of 8 bits and the scale of each 32 values of a row, in float64."""
    values, scales = torch.empty_like(x, dtype=torch.float64), []
    for row in range(len(x)):
        for first in range(0, x.shape[1], 32):
            group = x[row, first : first + 32]
            largest = group.abs().max()
            inverse = 127 / largest if largest > 0 else torch.tensor(0.0)  # in float32
            values[row, first : first + 32] = (group * inverse).round().double()
            scales.append(float(largest) / 127)
    return values, torch.tensor(scales, dtype=torch.float64).view(len(x), -1)


def int4_weights(weight):
    """The weights of 4 bits with the least error of the candidate scales, in float64."""
    groups = weight.unflatten(1, (-1, 32))
    extreme = groups.gather(-1, groups.abs().argmax(-1, keepdim=True))
    rounded = torch.stack(
        [
            (groups / (extreme / level)).round().clamp(-8, 7) * (extreme / level)
            for level in (-8.0, -7.6, -7.2, -6.8, 7.0)
        ]
    )
    best = (rounded - groups).square().sum(-1).argmin(0)
    return rounded.gather(0, best[None, ..., None].expand(1, *groups.shape))[0].flatten(1).double()


def product(x, linear, dtype):
    """The product in float64, with the rounding of the kernels."""
    if dtype == "bf16":
        out = x.bfloat16().double() @ linear.weight.bfloat16().double().T
    else:
        values, scales = integers(x)
        rounded = values * scales.repeat_interleave(32, 1)
        if dtype == "int4":
            weight = int4_weights(linear.weight)
        else:
            weight, weight_scales = integers(linear.weight)
            weight = weight * weight_scales.repeat_interleave(32, 1)
        out = rounded @ weight.T
    return out if linear.bias is None else out + linear.bias.double()


def assert_close(actual, expected):
    size = expected.abs().max().clamp_min(1e-30)
    torch.testing.assert_close(actual.double() / size, expected / size, rtol=0, atol=1e-5)


@pytest.mark.catches("rounded_products_lose_the_bias", "rounded_weights_are_those_of_other_rows")
@pytest.mark.parametrize("dtype", DTYPES)
@given(
    rows=st.integers(1, 130),
    groups=st.integers(1, 5),
    outputs=st.integers(1, 70),
    bias=st.booleans(),
    seed=st.integers(0, 99),
)
@settings(max_examples=25, deadline=None)
def test_rounded_products_match_float64(dtype, rows, groups, outputs, bias, seed):
    inputs = 32 * groups + (seed % 7 if dtype == "bf16" else 0)
    linear, rounded = make_layer(inputs, outputs, dtype, bias=bias, seed=seed)
    x = torch.randn(rows, inputs) * torch.logspace(-2, 2, inputs)
    with torch.inference_mode():
        assert_close(rounded(x), product(x, linear, dtype))


@pytest.mark.parametrize("dtype", DTYPES)
def test_rounded_products_have_the_same_bits_alone_and_in_threads(dtype, monkeypatch):
    """Each row has the bits that it has alone, for any number of rows and threads."""
    linear, rounded = make_layer(96, 300, dtype)
    x = torch.randn(5, 41, 96)
    threads = []
    monkeypatch.setattr(module.torch, "get_num_threads", lambda: threads[-1])
    with torch.inference_mode():
        results = []
        for count in (1, 2, 3, 16):
            threads.append(count)
            results.append(rounded(x))
            assert torch.equal(results[-1], results[0])
            assert torch.equal(rounded(x[:1, :20]), results[0][:1, :20])  # matrices are split
        singles = [rounded(row[None]) for row in x.flatten(0, 1)]
    assert torch.equal(torch.cat(singles), results[0].flatten(0, 1))
    assert_close(results[0].flatten(0, 1), product(x.flatten(0, 1), linear, dtype))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_rounded_products_propagate_nan_and_infinity(dtype, value):
    _, rounded = make_layer(64, 20, dtype)
    x = torch.randn(30, 64)
    with torch.inference_mode():
        expected = rounded(x)
        x[7, 40] = value
        actual = rounded(x)
    assert not actual[7].isfinite().any()
    others = torch.arange(30) != 7
    assert torch.equal(actual[others], expected[others])


def test_rounded_products_of_few_and_zero_inputs():
    linear, rounded = make_layer(32, 3, "int8")
    with torch.inference_mode():
        assert rounded(torch.empty(0, 4, 32)).shape == (0, 4, 3)
        assert torch.equal(rounded(torch.zeros(2, 32)), linear.bias.expand(2, 3))
        strided = torch.randn(32, 9).T
        assert torch.equal(rounded(strided), rounded(strided.contiguous()))


@pytest.mark.catches("rounded_layers_have_no_gradients")
def test_gradients_are_those_of_the_parameters():
    linear, rounded = make_layer(32, 5, "int8")
    x = torch.randn(4, 32, requires_grad=True)
    torch.testing.assert_close(rounded(x), linear(x))
    rounded(x).sum().backward()
    torch.testing.assert_close(x.grad, linear.weight.sum(0).expand(4, 32))
    assert torch.equal(rounded(x.double().float()), linear(x))
    assert rounded.weight is linear.weight
    assert rounded.bias is linear.bias


def test_rounded_layers_have_fewer_bytes():
    sizes = [make_layer(256, 64, dtype, bias=False)[1].nbytes for dtype in DTYPES]
    assert sizes == [256 * 64 * 1.125, 256 * 64 * 0.625, 256 * 64 * 2]


def test_instructions_are_those_of_the_processor():
    """A native build has the instructions that the system lists."""
    info = Path("/proc/cpuinfo")
    flags = set(info.read_text(encoding="utf-8").split()) if info.exists() else set()
    if os.environ.get("MINIFORMER_KERNELS_ARCH"):
        flags = set()
    assert module.has_instructions("bf16") <= ("avx512_bf16" in flags)
    expected = "avx512_vnni" in flags
    for dtype in ("int8", "int4"):  # a compiler may be older than the other instructions
        assert expected <= module.has_instructions(dtype) <= (expected or "avx_vnni" in flags)


def test_pytorch_has_threads_for_other_work():
    """Otherwise products have one thread."""
    assert module.parallel_function()
