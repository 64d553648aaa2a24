"""Muon: momentum with orthogonalized updates for matrices, AdamW for other parameters.

Jordan et al. 2024 (https://kellerjordan.github.io/posts/muon/): the update of a matrix is U V^T of
the singular value decomposition U S V^T of its momentum, approximated by matrix polynomials. Its
entries are scaled to the RMS of AdamW updates (Liu et al. 2025, arXiv 2502.16982), so that both
use one learning rate.

The tests compare it with `torch.optim.Muon`, which processes matrices one by one and in bfloat16:
slow for small models, and on CPUs without bfloat16 units. This one stacks matrices of one shape.

Letters: N matrices of one shape, rows by columns.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor
from torch.optim.adamw import adamw as adamw_step

from miniformer.model.ops.products import baddbmm, bmm
from miniformer.training.distributed.strategies import full_tensor, shard_like

# Odd polynomials a x + b x^3 + c x^5, one per step. Each minimizes the maximum distance from 1 over
# the range of singular values after the previous step (as in Amsel et al. 2025, arXiv 2505.16932).
# The first range is [0.01, 1], [0.003, 1] or [0.001, 1]. Three steps replace five of Newton-Schulz.
_NEWTON_SCHULZ_COEFFICIENTS = {
    3: ((8.0934, -23.6206, 17.4462), (3.6367, -2.7220, 0.5366), (2.6614, -1.9772, 0.4526)),
    4: (
        (8.3837, -24.766, 18.3572),
        (4.0435, -3.0115, 0.5695),
        (3.5058, -2.6268, 0.5257),
        (2.4904, -1.8345, 0.4369),
    ),
    5: (
        (8.4703, -25.1081, 18.6293),
        (4.1829, -3.1087, 0.5806),
        (3.9621, -2.9542, 0.563),
        (3.2872, -2.4652, 0.5074),
        (2.2742, -1.6451, 0.4162),
    ),
}
_UPDATE_RMS = 0.2  # of the entries of an update, as typical for AdamW


class Muon(torch.optim.Optimizer):
    """Muon and AdamW in one optimizer.

    Args:
        params: parameter groups; Muon updates the matrices of groups with `kind="muon"`, stacked
            ones [..., rows, columns] too, and AdamW the others. Each may have its own
            `weight_decay`.
        lr: learning rate of both.
        momentum: Nesterov momentum of Muon.
        steps: steps of the orthogonalization: 3, 4 or 5.
        betas, eps: options of AdamW.
    """

    def __init__(
        self,
        params: Iterable[dict[str, Any]],
        *,
        lr: float = 1e-3,
        momentum: float = 0.95,
        steps: int = 3,
        betas: tuple[float, float] = (0.9, 0.95),
        eps: float = 1e-8,
    ) -> None:
        defaults = {
            "lr": lr, "momentum": momentum, "steps": steps, "betas": tuple(betas), "eps": eps,
            "weight_decay": 0.0, "kind": "adamw",
        }  # fmt: skip
        super().__init__(params, defaults)

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Takes a step; parameters without a gradient do not change."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            parameters = [p for p in group["params"] if p.grad is not None]
            if parameters and group["kind"] == "muon":
                self._muon_step(group, parameters)
            elif parameters:
                self._adamw_step(group, parameters)
        return loss

    def _muon_step(self, group: dict[str, Any], parameters: list[Tensor]) -> None:
        gradients = [p.grad for p in parameters if p.grad is not None]
        momenta = [self._get_state(p, "momentum") for p in parameters]
        torch._foreach_lerp_(momenta, gradients, 1 - group["momentum"])
        updates = torch._foreach_lerp(gradients, momenta, group["momentum"])  # Nesterov
        shapes: dict[torch.Size, list[int]] = {}
        for index, parameter in enumerate(parameters):
            shapes.setdefault(parameter.shape, []).append(index)
        scaled: list[Tensor] = [torch.empty(0)] * len(parameters)
        for shape, indices in shapes.items():
            stack = torch.stack([full_tensor(updates[i]) for i in indices])
            matrices = orthogonalize(stack.flatten(0, -3), group["steps"])  # [N, rows, columns]
            matrices.mul_(_UPDATE_RMS * max(shape[-2:]) ** 0.5)
            for index, update in zip(indices, matrices.view(stack.shape).unbind(), strict=True):
                scaled[index] = shard_like(update, parameters[index])
        if group["weight_decay"]:
            torch._foreach_mul_(parameters, 1 - group["lr"] * group["weight_decay"])
        torch._foreach_add_(parameters, scaled, alpha=-group["lr"])

    def _adamw_step(self, group: dict[str, Any], parameters: list[Tensor]) -> None:
        steps = [self._get_state(p, "step") for p in parameters]
        adamw_step(
            parameters,
            [p.grad for p in parameters if p.grad is not None],
            [self._get_state(p, "exp_avg") for p in parameters],
            [self._get_state(p, "exp_avg_sq") for p in parameters],
            [],
            steps,
            fused=_supports_fused(parameters[0]),
            amsgrad=False,
            beta1=group["betas"][0],
            beta2=group["betas"][1],
            lr=group["lr"],
            weight_decay=group["weight_decay"],
            eps=group["eps"],
            maximize=False,
        )

    def _get_state(self, parameter: Tensor, name: str) -> Tensor:
        state = self.state[parameter]
        if name not in state:
            if name == "step":
                device = parameter.device if _supports_fused(parameter) else "cpu"
                state[name] = torch.zeros((), dtype=torch.float32, device=device)
            else:
                state[name] = torch.zeros_like(parameter, memory_format=torch.preserve_format)
        value: Tensor = state[name]
        return value


def orthogonalize(matrices: Tensor, steps: int = 3) -> Tensor:
    """Moves the singular values of each matrix to approximately 1.

    Values of at least 0.01 times the Frobenius norm (0.003 with four steps, 0.001 with five) become
    0.73 to 1.27. Smaller values grow. Products are in bfloat16 on a GPU and under autocast, and in
    float32 elsewhere.

    Args:
        matrices: [N, rows, columns].
        steps: 3, 4 or 5.
    """
    tall = matrices.shape[-2] > matrices.shape[-1]
    x = matrices.mT if tall else matrices  # the Gram matrix has the size of the shorter side
    x = x.bfloat16() if x.is_cuda else x.float()
    x = x / x.flatten(1).norm(dim=1).clamp_min(1e-7)[:, None, None]
    device = x.device.type
    if torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device):
        x = x.to(torch.get_autocast_dtype(device))  # once, instead of in each product
    polynomials = _NEWTON_SCHULZ_COEFFICIENTS[steps]
    if x.shape[-1] >= 2 * x.shape[-2] and not x.is_cuda:
        x = bmm(_gram_newton_schulz(bmm(x, x.mT), polynomials), x)
    else:
        for a, b, c in polynomials:
            gram = bmm(x, x.mT)  # [N, rows, rows]
            x = baddbmm(x, baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return (x.mT if tall else x).to(matrices.dtype)


def _gram_newton_schulz(gram: Tensor, coefficients: Sequence[tuple[float, float, float]]) -> Tensor:
    """Product of all steps for wide matrices, from their Gram matrices [N, rows, rows].

    Polynomials of one matrix commute, so that only small matrices are multiplied.
    """
    product: Tensor | None = None
    for index, (a, b, c) in enumerate(coefficients):
        step = baddbmm(gram, gram, gram, beta=b, alpha=c)
        step.diagonal(dim1=-2, dim2=-1).add_(a)
        product = step if product is None else bmm(step, product)
        if index + 1 < len(coefficients):
            gram = bmm(bmm(step, gram), step)
    assert product is not None
    return product


def _supports_fused(parameter: Tensor) -> bool:
    return parameter.device.type in ("cpu", "cuda") and not isinstance(parameter, DTensor)
