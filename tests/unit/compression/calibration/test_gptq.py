"""Rounding of a matrix by its inputs, against least squares in float64."""

import numpy as np
import pytest
import torch

from miniformer.checkpoint.stored_types import Integers
from miniformer.compression.calibration.gptq import DAMPING, round_matrix

LEVELS = {4: (-8.0, -7.6, -7.2, -6.8, 7.0), 8: (127.0,)}
RANGES = {4: (-8, 7, 7), 8: (-127, 127, 127)}


def short(scale):
    """A scale with 17 significant bits."""
    mantissa, exponent = np.frexp(scale)
    return float(np.ldexp(np.round(mantissa * 2**17), exponent - 17))


def best_rest(start, fixed, hessian):
    """The weights after the fixed ones that make the outputs of a row differ least."""
    count = len(fixed)
    change = -np.linalg.solve(
        hessian[count:, count:], hessian[count:, :count] @ (fixed - start[:count])
    )
    return start[count:] + change


def output_change(start, fixed, hessian):
    """Squared change of the outputs of a row, with the best weights after the fixed ones."""
    rest = best_rest(start, fixed, hessian) if len(fixed) < len(start) else np.empty(0)
    difference = np.concatenate([fixed, rest]) - start
    return difference @ hessian @ difference


def reference(row, hessian, bits):
    """Rounds a row, each weight after the best change of it for those before, in a loop."""
    low, high, end = RANGES[bits]
    done = np.empty(0)
    for first in range(0, len(row), 32):
        current = best_rest(row, done, hessian)[:32]
        extreme = int(np.abs(current).argmax())
        options = []
        for level in LEVELS[bits]:
            scale = short(abs(current[extreme]) / 127 if bits == 8 else current[extreme] / level)
            at_end = level * (np.sign(current[extreme]) if bits == 8 else 1)
            for is_fixed in (False, True):
                part = done
                for column in range(32):
                    target = best_rest(row, part, hessian)[0]
                    value = np.clip(np.round(target / scale), low, high)
                    if is_fixed and column == extreme:
                        value = np.round(at_end)
                    part = np.append(part, value * scale)
                integers = np.round(part[first:] / scale)
                if np.abs(integers).max() >= end:
                    options.append((output_change(row, part, hessian), part))
        done = min(options, key=lambda option: option[0])[1]
    return done


@pytest.fixture(scope="module")
def inputs():
    """Inputs that depend on each other, [N, I]."""
    dice = torch.Generator().manual_seed(0)
    mixed = torch.randn(200, 48, generator=dice) @ torch.randn(48, 64, generator=dice)
    return mixed + 0.3 * torch.randn(200, 64, generator=dice)


@pytest.mark.catches("gptq_carries_no_error")
@pytest.mark.parametrize("bits", [4, 8])
def test_rounding_equals_least_squares_in_float64(bits, inputs):
    weight = torch.randn(2, 64, generator=torch.Generator().manual_seed(1))
    moments = inputs.double().T @ inputs.double()
    rounded = round_matrix(weight, moments, bits)
    damped = moments.numpy() + DAMPING * moments.diagonal().mean().item() * np.eye(64)
    expected = np.stack([reference(row, damped, bits) for row in weight.double().numpy()])
    stored = Integers.encode(rounded, bits=bits)
    assert torch.equal(Integers.decode(stored, bits=bits), rounded)
    quantum = stored["scales"].abs().repeat_interleave(32, 1).numpy()
    assert (np.abs(rounded.numpy() - expected) <= 1.01 * quantum).all()
    assert (np.abs(rounded.numpy() - expected) < 0.01 * quantum).mean() > 0.95


@pytest.mark.catches("gptq_carries_no_error", "gptq_has_no_end_of_range")
@pytest.mark.parametrize("bits", [4, 8])
def test_outputs_change_less_than_by_the_nearest_integers(bits, inputs):
    weight = torch.randn(200, 64, generator=torch.Generator().manual_seed(2))
    moments = inputs.double().T @ inputs.double()
    rounded = round_matrix(weight, moments, bits)
    assert torch.equal(Integers.decode(Integers.encode(rounded, bits=bits), bits=bits), rounded)
    nearest = Integers.decode(Integers.encode(weight, bits=bits), bits=bits)
    errors = [(inputs @ (x - weight).T).square().sum() for x in (rounded, nearest)]
    assert errors[0] < 0.6 * errors[1]


@pytest.mark.parametrize("bits", [4, 8])
def test_rows_of_zeros_and_inputs_that_never_occur(bits):
    weight = torch.randn(4, 64, generator=torch.Generator().manual_seed(3))
    weight[1] = 0
    weight[2, :32] = 0
    rounded = round_matrix(weight, torch.zeros(64, 64, dtype=torch.float64), bits)
    assert torch.equal(rounded[1], torch.zeros(64))
    nearest = Integers.decode(Integers.encode(weight, bits=bits), bits=bits)
    torch.testing.assert_close(rounded, nearest)
    moments = torch.zeros(64, 64, dtype=torch.float64)
    moments[5, 5] = 3.0
    rounded = round_matrix(weight, moments, bits)
    assert torch.equal(Integers.decode(Integers.encode(rounded, bits=bits), bits=bits), rounded)


def test_larger_groups(inputs):
    weight = torch.randn(50, 64, generator=torch.Generator().manual_seed(4))
    moments = inputs.double().T @ inputs.double()
    rounded = round_matrix(weight, moments, 4, 64)
    stored = Integers.encode(rounded, bits=4, group=64)
    assert stored["scales"].shape == (50, 1)
    assert torch.equal(Integers.decode(stored, bits=4, group=64), rounded)
    nearest = Integers.decode(Integers.encode(weight, bits=4, group=64), bits=4, group=64)
    errors = [(inputs @ (x - weight).T).square().sum() for x in (rounded, nearest)]
    assert errors[0] < 0.6 * errors[1]
