"""Models in bfloat16 stay within the error of rounding.

The error depends on a model's weights and on its propagation from layer to layer, so no fixed
tolerance fits all models. The tests estimate it: they run the model in float32 several times, with
a random error of the size of bfloat16 rounding on each result (Monte Carlo arithmetic: Parker
1997). A pass in bfloat16 must stay within the largest of these differences, times a safety factor.
"""

import pytest
import torch
import torch.nn.functional as F
from torch.overrides import TorchFunctionMode

from miniformer.model.execution_settings import set_attention_backend
from tests.battery.models import LAYOUTS, build, call, each_value, ids_of

UNIT = 2.0**-8  # bfloat16 has 8 bits of significand: the relative error of one rounding is below it
RUNS, SAFETY = 6, 2.0  # passes with random errors; a real pass may have larger ones than all
PRODUCTS = {F.linear, torch.matmul, torch.Tensor.matmul}
ROUNDED = {
    F.layer_norm, F.gelu, F.silu, torch.softmax, torch.Tensor.softmax, torch.tanh, torch.Tensor.add,
    torch.Tensor.mul, torch.Tensor.div,
}  # fmt: skip


class Rounding(TorchFunctionMode):
    """Adds bfloat16 rounding errors to results that depend on weights, not to angles and masks.

    On a CPU that also accumulates products in bfloat16, the error of a sum of K grows with the root
    of K, and is relative to the magnitudes of its terms, not to the sum.
    """

    def __init__(self):
        super().__init__()
        products = torch.full((5, 16), 2.0**-9, dtype=torch.bfloat16)
        products[:, 0] = 1.0  # to which 2 ** -9 cannot be added in bfloat16
        self.sums_are_rounded = bool((F.linear(products, torch.ones_like(products)) == 1).any())

    def __torch_function__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        if not (isinstance(out, torch.Tensor) and out.is_floating_point() and out.requires_grad):
            return out
        if func in PRODUCTS and self.sums_are_rounded:
            x, y = args[0].detach(), args[1].detach()
            y = y.mT if func is F.linear else y
            magnitude = (x.square() @ y.square()).sqrt() * x.shape[-1] ** 0.5
        elif func in PRODUCTS | ROUNDED:
            magnitude = out.detach().abs()
        else:
            return out
        return out + UNIT * magnitude * (2 * torch.rand_like(out) - 1)


def off(first, second):
    """Relative distance of a tensor from another."""
    return float((first - second).detach().float().norm() / second.detach().norm())


def gradients(model, out, real):
    loss = out.float()[real].square().mean()
    grads = torch.autograd.grad(loss, list(model.parameters()))
    return torch.cat([grad.float().flatten() for grad in grads])


def rounded_by_chance(model, inputs, segments):
    """Largest distances of logits and of gradients under random rounding errors."""
    real, far = segments != 0, []
    exact = call(model, inputs, segments)
    expected = gradients(model, exact, real)
    set_attention_backend(model, "plain")  # whose arithmetic can be seen
    by_chance = Rounding()
    for _ in range(RUNS):
        with by_chance:
            out = call(model, inputs, segments)
        far.append((off(out[real], exact[real]), off(gradients(model, out, real), expected)))
    set_attention_backend(model, "auto")
    return [max(errors) for errors in zip(*far, strict=True)], exact[real], expected


@pytest.mark.catches("bfloat16_attention_rounds_its_scale")
@each_value
def test_bfloat16_error_of_logits_and_gradients_is_that_of_rounding(row):
    model = build(row).bfloat16().float()  # weights are rounded alike
    inputs, segments = ids_of(model), torch.tensor(LAYOUTS["left padding"])
    real = segments != 0
    (most, most_of_gradients), exact, expected = rounded_by_chance(model, inputs, segments)
    assert SAFETY * most < 0.5, "a bound that other weights would pass, too"
    with torch.autocast("cpu", torch.bfloat16):
        mixed = call(model, inputs, segments)
    of_mixed = off(gradients(model, mixed, real), expected)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        actual = {"autocast": mixed, "autocast without gradients": call(model, inputs, segments)}
    model.bfloat16()
    full = call(model, inputs, segments)
    of_whole = off(gradients(model, full, real), expected)
    with torch.no_grad():  # which decides the backend
        actual |= {"bfloat16": full, "bfloat16 without gradients": call(model, inputs, segments)}
    assert full.dtype == actual["bfloat16 without gradients"].dtype == torch.bfloat16
    for name, logits in actual.items():
        assert off(logits[real], exact) < SAFETY * most, name
    assert of_mixed < SAFETY * most_of_gradients
    assert of_whole < SAFETY * most_of_gradients
