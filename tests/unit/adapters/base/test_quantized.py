"""A quantized base compared with float matrices of the same values."""

import copy

import pytest
import torch
import torch.nn.functional as F

import miniformer
from miniformer import Transformer, UserError, adapters, apply_transforms, merge_transforms
from miniformer.adapters.base.quantized import QuantizedLinear
from tests.kit import tiny_model

IDS = torch.randint(0, 31, (2, 6), generator=torch.Generator().manual_seed(4))


def quantized(bits, **changes):
    base = tiny_model(d_model=64, n_layers=1, **changes)
    setting = {"type": "quantized_base", "bits": bits}
    return base, apply_transforms(copy.deepcopy(base), [setting]).eval()


def plain_weight(module):
    """The weight in numbers of Python: value x scale of its group."""
    values = module.values.long()
    if module.bits == 4:  # of eight columns, the first four are in the low bits
        values = torch.stack((values % 16, values // 16), 2).reshape(len(values), -1) - 8
    scales = module.scales.repeat_interleave(32, 1)
    return values.double() * scales.double()


@pytest.mark.catches("scales_are_of_the_next_group")
@pytest.mark.parametrize(("bits", "error", "share"), [(8, 0.005, 0.30), (4, 0.1, 0.17)])
def test_outputs_and_gradients_of_inputs_are_those_of_the_dequantized_weights(bits, error, share):
    base, model = quantized(bits)
    for name, module in model.named_modules():
        if not isinstance(module, QuantizedLinear):
            continue
        weight, original = plain_weight(module), base.get_submodule(name).weight
        assert (weight - original).abs().max() < error * original.abs().max()
        x = torch.randn(3, 5, module.in_features, requires_grad=True)
        twin = x.detach().double().requires_grad_()
        actual, expected = module(x), F.linear(twin, weight, module.bias.double())
        factors = torch.randn_like(actual)
        (actual * factors).sum().backward()
        (expected * factors).sum().backward()
        torch.testing.assert_close(actual.double(), expected, rtol=0, atol=1e-5)
        torch.testing.assert_close(x.grad.double(), twin.grad, rtol=0, atol=1e-5)
        stored = module.values.nbytes + module.scales.nbytes
        assert stored <= share * original.nbytes
        assert not any(p.shape == original.shape for p in module.parameters())
    torch.testing.assert_close(merge_transforms(model)(IDS), model(IDS), rtol=0, atol=1e-5)


@pytest.mark.parametrize("bits", [8, 4])
def test_kernels_read_the_same_integers(bits):
    """Decoding with weights of this type gives the texts of float weights of the same values."""
    _, model = quantized(bits)
    module = model.layers[0].feed_forward.down_proj
    again = QuantizedLinear(module.effective_weight(), None, bits)
    if bits == 8:
        assert torch.equal(again.values, module.values)
    torch.testing.assert_close(again.effective_weight(), module.effective_weight())
    text = model.generate([[1, 2, 3]], 8, temperature=0)
    assert text == merge_transforms(model).generate([[1, 2, 3]], 8, temperature=0)


@pytest.mark.parametrize("method", ["lora", "dora", "ia3", "bottleneck"])
def test_adapters_of_a_quantized_base_train_alone(method, tmp_path):
    _, model = quantized(8)
    before = model(IDS)
    adapters.add(model, method)
    torch.testing.assert_close(model(IDS), before, rtol=0, atol=1e-5)
    integers = {name: x.clone() for name, x in model.named_buffers() if x.dtype == torch.int8}
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    model(IDS).square().mean().backward()
    optimizer.step()
    assert not torch.allclose(model(IDS), before, atol=1e-4)
    assert all(torch.equal(dict(model.named_buffers())[name], x) for name, x in integers.items())
    model.save_pretrained(tmp_path)
    torch.testing.assert_close(Transformer.from_pretrained(tmp_path)(IDS), model.eval()(IDS))
    with adapters.disable(model):
        assert torch.equal(model(IDS), before)


def test_invalid_settings_are_named():
    with pytest.raises(UserError, match="bits must be 8 or 4, not 3"):
        quantized(3)
    with pytest.raises(UserError, match="multiple of 32"):
        apply_transforms(tiny_model(d_ff=20), ["quantized_base"])
    with pytest.raises(UserError, match="base_weights needs adapter"):
        miniformer.TrainConfig(train_path="x", base_weights="int8")
