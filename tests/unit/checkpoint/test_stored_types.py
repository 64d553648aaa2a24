"""Integers and short floats of stored matrices."""

import numpy as np
import pytest
import torch

from miniformer.adapters.base.quantized import dequantize, quantize_int8
from miniformer.checkpoint.stored_types import Integers, ShortFloat
from miniformer.runtime.native.weight_layout import quantize_int4

LEVELS = (-8.0, -7.6, -7.2, -6.8, 7.0)


def weights():
    """Ordinary rows, then rows of zeros, equal magnitudes, and very small and large weights."""
    dice = torch.Generator().manual_seed(0)
    weight = torch.randn(40, 96, generator=dice) * torch.rand(40, 1, generator=dice)
    weight[30] = 0
    weight[31, :32] = 0
    weight[31, 5] = 0.3
    weight[32] = torch.randint(-8, 8, (96,), generator=dice) * 7.0
    weight[33] = torch.randint(-1, 2, (96,), generator=dice) * 0.1
    weight[34] *= 1e-34
    weight[35] *= 1e30
    weight[36, ::2] = 3.0
    return weight


def unpacked(tensors, bits):
    """Integers of the two columns of each byte, int64 [O, I]."""
    values = tensors["values"].numpy().astype(np.int64)
    if bits == 4:
        values = np.stack((values % 16, values // 16), 2).reshape(len(values), -1) - 8
    return values


def loss_of(group, scale, low, high):
    """Squared error of a group of weights with a scale, in a loop."""
    loss = 0.0
    for weight in group:
        value = min(max(round(weight / scale), low), high)
        loss += (weight - value * scale) ** 2
    return loss


@pytest.mark.catches(
    "scales_of_stored_integers_are_of_rows", "four_bits_have_seven_steps_below_zero"
)
@pytest.mark.parametrize("bits", [8, 4])
def test_rounding_equals_a_loop_in_float64(bits):
    weight = weights()[:30]
    tensors = Integers.encode(weight, bits=bits)
    values = unpacked(tensors, bits)
    scales = tensors["scales"].double().numpy()
    assert scales.shape == (30, 3)
    for row in range(30):
        for number in range(3):
            columns = slice(32 * number, 32 * number + 32)
            group = weight[row, columns].double().tolist()
            extreme = max(group, key=abs)
            candidates = [abs(extreme) / 127] if bits == 8 else [extreme / x for x in LEVELS]
            low, high = (-127, 127) if bits == 8 else (-8, 7)
            least = min(loss_of(group, scale, low, high) for scale in candidates)
            scale = scales[row, number]
            assert loss_of(group, scale, low, high) <= least * (1 + 1e-3)
            if bits == 8:
                assert scale == pytest.approx(candidates[0], rel=2**-17)
            expected = np.clip(np.round(np.array(group) / scale), low, high)
            assert np.array_equal(values[row, columns], expected)


@pytest.mark.catches("scales_of_stored_integers_have_all_bits", "four_bits_are_rounded_once")
@pytest.mark.parametrize("bits", [8, 4])
def test_decoded_weights_are_exact_and_round_to_the_same_bits(bits):
    tensors = Integers.encode(weights(), bits=bits)
    decoded = Integers.decode(tensors, bits=bits)
    exact = (
        unpacked(tensors, bits).reshape(40, 3, 32) * tensors["scales"].double().numpy()[..., None]
    )
    assert np.array_equal(decoded.double().numpy(), exact.reshape(40, 96))
    again = Integers.encode(decoded, bits=bits)
    assert all(torch.equal(tensors[name], again[name]) for name in tensors)


def test_a_quantized_base_and_the_kernels_get_the_same_weights():
    decoded = Integers.decode(Integers.encode(weights(), 8), 8)
    values, scales = quantize_int8(decoded)
    assert torch.equal(dequantize(values, scales, 8), decoded)
    decoded = Integers.decode(Integers.encode(weights(), bits=4), bits=4)
    packed, scales = quantize_int4(decoded, 32)
    assert torch.equal(dequantize(packed, scales, 4), decoded)


def test_short_floats_are_those_of_torch():
    weight = weights()[:30]
    for name, dtype in (("bf16", torch.bfloat16), ("fp16", torch.float16)):
        tensors = ShortFloat.encode(weight, form=name)
        assert torch.equal(ShortFloat.decode(tensors, form=name), weight.to(dtype))


@pytest.mark.parametrize(
    ("changes", "options", "message"),
    [
        ({"values": torch.zeros(4, 64)}, {}, "values are torch.float32"),
        ({"scales": torch.ones(1, 1)}, {}, r"values \(4, 64\) do not fit scales \(1, 1\)"),
        ({"scales": torch.ones(4, 2, dtype=torch.float16)}, {}, "scales torch.float16"),
        ({}, {"bits": 3}, "bits must be 8 or 4, not 3"),
        ({}, {"bits": 4}, "values are torch.int8"),
    ],
)
def test_tensors_that_do_not_fit_are_errors(changes, options, message):
    tensors = Integers.encode(torch.ones(4, 64), 8) | changes
    with pytest.raises(ValueError, match=message):
        Integers.decode(tensors, **{"bits": 8, **options})
    with pytest.raises(ValueError, match="not fp16"):
        ShortFloat.decode({"values": torch.zeros(2, 2)}, form="fp16")
