"""Matrix products in float32 on a CPU, by the faster of torch's two libraries.

torch computes them with MKL, which uses 512-bit instructions of Intel's processors only. oneDNN,
which torch has for narrower types, also uses those of others, at twice the rate there. Its operator
is one that torch.compile emits.
"""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any, TypeGuard

import torch
import torch.nn.functional as F
from torch import Tensor, nn

_MIN_ROWS = 16  # with fewer, a product reads the weight, and is no faster
_MIN_WORK = {False: 2**22, True: 2**24}  # multiplications that a call is worth, by gradients
_PLAIN = (Tensor, nn.Parameter)  # others, such as a DTensor, have products of their own


class Linear(nn.Linear):
    """`nn.Linear` by `linear`."""

    def forward(self, input: Tensor) -> Tensor:
        """See `nn.Linear`."""
        return linear(input, self.weight, self.bias)


def is_plain_linear(module: nn.Module) -> TypeGuard[nn.Linear]:
    """True for a linear layer with no behavior of its own."""
    return type(module) in (nn.Linear, Linear)


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Computes x @ weight.T + bias, as `torch.nn.functional.linear` does.

    Args:
        x: [..., in].
        weight: [out, in].
        bias: [out]; None: no bias.
    """
    has_grad = torch.is_grad_enabled() and (x.requires_grad or weight.requires_grad)
    if torch.compiler.is_compiling() or not _takes_onednn(x, weight, _MIN_WORK[has_grad]):
        return F.linear(x, weight, bias)
    if has_grad:
        out: Tensor = _Linear.apply(x, weight, bias)  # type: ignore[no-untyped-call]
        return out
    return _product(x, weight, bias)


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(x, weight)
        return _product(x, weight, bias)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        needs_x, needs_weight, needs_bias = ctx.needs_input_grad
        rows = grad.flatten(0, -2)
        return (
            linear(grad, weight.t()) if needs_x else None,
            linear(rows.t(), x.flatten(0, -2).t()) if needs_weight else None,
            rows.sum(0) if needs_bias else None,
        )


def matmul(a: Tensor, b: Tensor) -> Tensor:
    """Computes a @ b without gradients, [rows, n] by [n, columns]."""
    return _product(a, b.t(), None) if takes_onednn(a, b) else torch.mm(a, b)


def takes_onednn(a: Tensor, b: Tensor) -> bool:
    """True if a @ b, without gradients, is oneDNN's, which copies an operand that is transposed."""
    return _takes_onednn(a, b.t(), _MIN_WORK[False])


def bmm(a: Tensor, b: Tensor) -> Tensor:
    """Computes a @ b without gradients, of N pairs of matrices."""
    if not takes_onednn(a[0], b[0]):
        return torch.bmm(a, b)
    return torch.stack([_product(x, y.t(), None) for x, y in zip(a, b, strict=True)])


def baddbmm(total: Tensor, a: Tensor, b: Tensor, *, beta: float, alpha: float = 1) -> Tensor:
    """Computes beta * total + alpha * a @ b without gradients, of N pairs of matrices."""
    if not takes_onednn(a[0], b[0]):
        return torch.baddbmm(total, a, b, beta=beta, alpha=alpha)
    return bmm(a, b).mul_(alpha).add_(total, alpha=beta)


def _product(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    out: Tensor = torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")
    return out


def _takes_onednn(x: Tensor, weight: Tensor, min_work: int) -> bool:
    """True for large products in float32 of plain tensors on a processor where it is faster."""
    return (
        _is_faster()
        and not _is_transformed()  # first: sizes of traced tensors are no numbers
        and type(x) in _PLAIN
        and type(weight) in _PLAIN
        and x.dtype == weight.dtype == torch.float32
        and x.device.type == weight.device.type == "cpu"
        and x.numel() >= _MIN_ROWS * weight.shape[1]
        and x.numel() * weight.shape[0] >= min_work
        and not torch.is_autocast_enabled("cpu")
        and bool(torch.backends.mkldnn.enabled)
        and _is_right()  # last: neither autocast nor a transform changes its products
    )


def _is_transformed() -> bool:
    """True within torch.jit.trace, `torch.func` and forward-mode differentiation."""
    try:
        return (
            torch._C._is_tracing()
            or torch._C._functorch.peek_interpreter_stack() is not None
            or torch.autograd.forward_ad._current_level >= 0
        )
    except AttributeError:  # another version of torch: its own products
        return True


@functools.cache
def _is_faster() -> bool:
    """True if torch has both libraries, and the processor is one with AVX-512 by another maker."""
    return (
        torch.backends.mkl.is_available()  # type: ignore[no-untyped-call]
        and torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
        and torch.backends.cpu.get_cpu_capability().startswith("AVX512")
        and _cpu_maker() not in ("", "GenuineIntel")
    )


def _cpu_maker(path: Path = Path("/proc/cpuinfo")) -> str:
    """Name of the maker of the first CPU; empty without the file."""
    try:
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return ""
    makers = (line.partition(":")[2].strip() for line in lines if line.startswith("vendor_id"))
    return next(makers, "")


@functools.cache
def _is_right() -> bool:
    """True if torch's operator has the arguments and the result of the tested versions."""
    x, weight, bias = (torch.ones(shape, device="cpu") for shape in ((2, 3), (4, 3), (4,)))
    try:
        return torch.equal(_product(x, weight, bias), F.linear(x, weight, bias))
    except (AttributeError, RuntimeError, TypeError):
        return False
