"""Rounded weights and masks of zeros equal those of torchao.

In an environment with the package `torchao`; `python -m tests.slow torchao` runs it.
"""

import pytest
import torch
from torch import nn

import miniformer
from miniformer.checkpoint.stored_types import Integers
from miniformer.compression.pruning.magnitude import magnitude_mask, wanda_mask
from miniformer.model.matrices import weight_matrices
from tests.kit import tiny_model

sparsity = pytest.importorskip("torchao.sparsity")
primitives = pytest.importorskip("torchao.quantization.quant_primitives")
pytestmark = pytest.mark.filterwarnings("default")
LIMITS = {8: (-127, 127), 4: (-8, 7)}


@pytest.fixture(params=[(48, 64), (5, 96), (1, 32)], ids=str)
def weight(request):
    """A random matrix whose columns differ in size."""
    dice = torch.Generator().manual_seed(request.param[0])
    rows, width = request.param
    return torch.randn(rows, width, generator=dice) * torch.rand(width, generator=dice) ** 3


def their_values(weight, bits, group, scales=None):
    """Integers and the matrix of them; without scales, torchao chooses them."""
    low, high = LIMITS[bits]
    block = (1, group)
    if scales is None:
        scales, zeros = primitives.choose_qparams_affine(
            weight, primitives.MappingType.SYMMETRIC, block, torch.int8, low, high
        )
    else:
        zeros = torch.zeros_like(scales, dtype=torch.int32)
    values = primitives.quantize_affine(weight, block, scales, zeros, torch.int8, low, high)
    matrix = primitives.dequantize_affine(values, block, scales, zeros, torch.int8, low, high)
    return values, matrix, scales


@pytest.mark.parametrize("group", [32, "channel"])
def test_8_bits_are_those_of_torchao_within_a_quantum(weight, group):
    group = weight.shape[1] if group == "channel" else group
    ours = Integers.encode(weight, 8, group)
    matrix = Integers.decode(ours, 8, group)
    values, theirs, scales = their_values(weight, 8, group)
    torch.testing.assert_close(ours["scales"], scales.view_as(ours["scales"]), rtol=2**-17, atol=0)
    difference = (ours["values"].int() - values.int()).abs()
    assert difference.max() <= 1
    assert (difference == 0).float().mean() > 0.99
    quantum = scales.reshape(len(weight), -1).repeat_interleave(group, 1)
    assert ((matrix - theirs).abs() <= 1.001 * quantum).all()


@pytest.mark.parametrize("bits", [8, 4])
def test_integers_follow_from_the_scales_as_in_torchao(weight, bits):
    ours = Integers.encode(weight, bits)
    matrix = Integers.decode(ours, bits)
    values, theirs, _ = their_values(matrix, bits, 32, ours["scales"])
    torch.testing.assert_close(theirs, matrix, rtol=0, atol=0)
    nearest = their_values(weight, bits, 32, ours["scales"])[0]
    assert ((values.int() - nearest.int()).abs() <= 1).all()
    assert (values == nearest).float().mean() > 0.98


def test_4_bits_have_a_smaller_error_than_those_of_torchao(weight):
    ours = Integers.decode(Integers.encode(weight, 4), 4)
    _, theirs, _ = their_values(weight, 4, 32)
    assert (ours - weight).square().sum() < (theirs - weight).square().sum()


def test_2_of_4_weights_by_magnitude_are_those_of_torchao(tmp_path):
    model = tiny_model(d_model=32, d_ff=64)
    miniformer.prune(model, tmp_path / "out", sparsity="2:4", method="magnitude")
    names = {x.name for x in weight_matrices(model) if x.layer is not None}
    sparsity.apply_fake_sparsity(model, filter_fn=lambda _, name: name in names)
    ours = miniformer.Transformer.from_pretrained(tmp_path / "out").state_dict()
    theirs = model.state_dict()
    assert all(torch.equal(ours[f"{name}.weight"], theirs[f"{name}.weight"]) for name in names)


def their_wanda(weight, norms, share, block=None):
    """Mask of the weights that stay. torchao has the squared norm of an input as its norm."""
    linear = nn.Linear(weight.shape[1], len(weight), bias=False)
    linear.weight.data.copy_(weight)
    model = nn.Sequential(linear)
    sparsifier = sparsity.WandaSparsifier(share, block)
    sparsifier.prepare(model, [{"tensor_fqn": "0.weight"}])
    model(norms.sqrt()[None])
    sparsifier.step()
    sparsifier.squash_mask()
    return model[0].weight.detach() != 0


def test_wanda_masks_are_those_of_torchao(weight):
    """A share is that of each row, as in the paper; that of torchao is of its matrix."""
    dice = torch.Generator().manual_seed(7)
    inputs = torch.randn(40, weight.shape[1], generator=dice, dtype=torch.float64)
    inputs *= torch.rand(weight.shape[1], generator=dice).square()
    moments, norms = inputs.T @ inputs, inputs.norm(dim=0).float()
    assert torch.equal(wanda_mask(weight, moments, "2:4"), their_wanda(weight, norms, 0.5, 4))
    rows = [their_wanda(row[None], norms, 0.75)[0] for row in weight]
    assert torch.equal(wanda_mask(weight, moments, 0.75), torch.stack(rows))
    assert not torch.equal(magnitude_mask(weight, "2:4"), wanda_mask(weight, moments, "2:4"))
