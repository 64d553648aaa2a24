"""Rotary scaling at the sizes of real models: heads of 64, texts of thousands of tokens.

At the widths of the other tests a scaling by wavelength treats all pairs equally.
"""

import math

import pytest
import torch

from miniformer.model.position import RotaryPosition
from tests.battery.models import call, close, expected
from tests.kit import filled, tiny_config, tiny_model
from tests.reference import transformer as reference

REAL = {"d_model": 128, "n_heads": 2, "n_layers": 1, "max_seq_len": 16384, "rotary_base": 10000.0}
PAIRS = 32
SCALINGS = {
    "none": None,
    "linear": {"type": "linear", "factor": 4.0},
    "dynamic": {"type": "dynamic", "factor": 4.0, "original_max_seq_len": 2048},
    "yarn": {"type": "yarn", "factor": 4.0, "original_max_seq_len": 2048},
    "yarn, other limits": {"type": "yarn", "factor": 16.0, "original_max_seq_len": 4096,
                           "beta_fast": 16.0, "beta_slow": 2.0, "attention_factor": 1.25},
    "llama3": {"type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
               "original_max_seq_len": 8192},
    "longrope": {"type": "longrope", "factor": 4.0, "original_max_seq_len": 4096,
                 "short_factors": [1.0 + n / 32 for n in range(PAIRS)],
                 "long_factors": [1.0 + n * n / 32 for n in range(PAIRS)]},
}  # fmt: skip
every_scaling = pytest.mark.parametrize("scaling", SCALINGS)


def angles_of(scaling, positions, length):
    """Angle [T, pairs] in float64, bound of float32's error in it, and the factor."""
    rates, factor = reference.frequencies(REAL["rotary_base"], 2 * PAIRS, scaling, length)
    angles = torch.tensor(positions, dtype=torch.float64)[:, None] * rates
    # A rate is the result of some operations, each within half a unit in the last place.
    return angles, angles * 8 * 2.0**-24 + 1e-6, factor


@pytest.mark.catches("yarn_has_no_ramp")
@every_scaling
def test_rotation_in_long_texts_matches_the_reference(scaling):
    scaling, length = SCALINGS[scaling], 16384
    part = RotaryPosition(tiny_config(**REAL, rotary_scaling=scaling), causal=True)
    positions = [0, 1, 17, 2047, 2048, 2049, 8191, 8192, length - 1]
    result = part.rotation(torch.tensor([positions]), length=torch.tensor([[length]]))
    assert result.cos.shape == (1, 1, len(positions), PAIRS)
    angles, error, factor = angles_of(scaling, positions, length)
    assert (factor * angles.cos() - result.cos[0, 0]).abs().le(factor * error).all()
    assert (factor * angles.sin() - result.sin[0, 0]).abs().le(factor * error).all()


@pytest.mark.parametrize("scaling", ["yarn", "yarn, other limits", "llama3"])
def test_ramp_of_a_scaling_is_used_at_these_widths(scaling):
    """Some pairs are neither unchanged nor divided by the full factor."""
    scaling = SCALINGS[scaling]
    plain, _ = reference.frequencies(REAL["rotary_base"], 2 * PAIRS, None, 1)
    rates, _ = reference.frequencies(REAL["rotary_base"], 2 * PAIRS, scaling, 1)
    retained = rates > plain * (1 - 1e-9)
    divided = rates < plain / scaling["factor"] * (1 + 1e-9)
    between = ~retained & ~divided
    assert retained.sum() >= 4
    assert divided.sum() >= 4
    assert between.sum() >= 4


@pytest.mark.parametrize("scaling", ["dynamic", "longrope"])
def test_scaling_by_length_starts_beyond_the_original_length(scaling):
    scaling = SCALINGS[scaling]
    original = scaling["original_max_seq_len"]
    part = RotaryPosition(tiny_config(**REAL, rotary_scaling=scaling), causal=True)
    rates = {}
    for length in (original - 1, original, original + 1):
        actual = part.rotation(torch.ones(1, 1).long(), length=torch.tensor([[length]]))
        rates[length] = torch.atan2(actual.sin, actual.cos)[0, 0, 0].double()
        expected, _ = reference.frequencies(REAL["rotary_base"], 2 * PAIRS, scaling, length)
        torch.testing.assert_close(rates[length], expected, rtol=1e-5, atol=1e-9)
    assert torch.equal(rates[original - 1], rates[original])
    assert not torch.equal(rates[original], rates[original + 1])


@pytest.mark.catches("yarn_has_no_ramp")
@every_scaling
def test_logits_and_cached_steps_match_the_reference(scaling):
    model = tiny_model(**REAL, rotary_scaling=SCALINGS[scaling])
    segments = [[0] * 3 + [1] * 21, [1] * 24]
    real, inputs = torch.tensor(segments) != 0, torch.randint(0, 31, (2, 24))
    with torch.no_grad():
        reference = expected(model, inputs, segments)
        close(call(model, inputs, torch.tensor(segments)), reference, real)
        cache = model.new_cache(2, 24)
        cache.final_lengths = real.sum(1, keepdim=True)
        steps = [
            model(ids, mask, cache=cache)
            for ids, mask in zip(
                inputs.split([20, 1, 3], 1), real.split([20, 1, 3], 1), strict=True
            )
        ]
    close(torch.cat(steps, 1), reference, real)
    assert filled(model.config)["head_dim"] == 2 * PAIRS


def test_yarn_limits_match_the_paper():
    """Peng et al. 2023, section 3.2, by the rotations of a pair in the original length.

    Pairs with more than beta_fast rotations are unchanged; those with less than beta_slow are
    divided by the factor.
    """
    scaling = {"type": "yarn", "factor": 4.0, "original_max_seq_len": 2048}
    part = RotaryPosition(tiny_config(**REAL, rotary_scaling=scaling), causal=True)
    result = part.rotation(torch.ones(1, 1).long(), length=torch.tensor([[1]]))
    rates = torch.atan2(result.sin, result.cos)[0, 0, 0].double()
    plain = 10000.0 ** (-torch.arange(PAIRS, dtype=torch.float64) / PAIRS)
    turns = 2048 * plain / (2 * math.pi)
    share = rates / plain
    # The ramp of the paper has integer limits, so the pair next to a limit may be beyond it.
    step = 10000.0 ** (1 / PAIRS)
    torch.testing.assert_close(share[turns > 32 * step], torch.ones(8).double())
    slow = share[turns < 1 / step]
    torch.testing.assert_close(slow, torch.full_like(slow, 0.25))
    between = share[(turns < 32 / step) & (turns > step)]
    assert ((between > 0.25) & (between < 1)).all()
    assert (between.diff() < 0).all()
    radius = float((result.cos.square() + result.sin.square()).sqrt()[0, 0, 0, 0])
    assert radius == pytest.approx(0.1 * math.log(4) + 1)
