"""Fused linear layer and cross-entropy: logits of a chunk of positions at a time.

With a large vocabulary the logits are the largest tensor of a training step, and plain
cross-entropy saves three of that size: the logits, their log-softmax and the gradient. The gradient
depends on the logits only, so the forward pass computes it chunk by chunk (as in Liger Kernel, Hsu
et al. 2024, arXiv 2410.10989). The saved tensors are no larger than the features and the weight.

Letters: N positions, n of them in a chunk, D width, V vocabulary.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from miniformer.model.ops.linear import matmul_dtype
from miniformer.model.ops.products import matmul, takes_onednn

_IGNORE_INDEX = -100  # as in miniformer.data.batching.packing
_CHUNK_BYTES = 2**25  # of a chunk's logits in float32: small for memory, large for speed
_MIN_CHUNK_ROWS = 64  # with fewer rows the matrix products are slow
_WEIGHT_GRAD_BLOCK = 4096  # rows of the weight's gradient per product


def linear_cross_entropy(
    features: Tensor,
    weight: Tensor,
    labels: Tensor,
    *,
    bias: Tensor | None = None,
    softcap: float | None = None,
    label_smoothing: float = 0.0,
    chunk_size: int | None = None,
) -> Tensor:
    """Computes the summed cross-entropy in nats of the logits `features @ weight.T + bias`.

    Under autocast the matrix products are in its type; softmax, and sums over positions, are in
    float32 at least. The forward pass computes the gradients of the inputs that require them. There
    is no second derivative: `create_graph=True` raises a RuntimeError.

    Args:
        features: [N, D].
        weight: [V, D].
        labels: int64 [N], from 0 to V - 1, or -100: ignored.
        bias: [V]; None: no bias.
        softcap: logits z become softcap * tanh(z / softcap); None: no soft-cap.
        label_smoothing: share of each label that is spread over all V (Szegedy et al. 2016).
        chunk_size: maximum number of positions with logits in memory; None: about 32 MB of logits.

    Returns:
        A scalar, float32, or float64 for float64 features; 0 if all labels are ignored.

    Raises:
        ValueError: the number of labels is not that of positions, or `chunk_size` is below 1.
    """
    if labels.shape != features.shape[:1]:
        shapes = f"{list(features.shape[:1])}, as the features are, not {list(labels.shape)}"
        raise ValueError(f"labels must be {shapes}")
    if chunk_size is not None and chunk_size < 1:
        raise ValueError(f"chunk_size must be at least 1, not {chunk_size}")
    chunk_size = chunk_size or max(_MIN_CHUNK_ROWS, _CHUNK_BYTES // (4 * weight.shape[0]))
    inputs = (features, weight, bias)
    options = (softcap, label_smoothing, chunk_size, matmul_dtype(features))
    if torch.is_grad_enabled() and any(x is not None and x.requires_grad for x in inputs):
        loss: Tensor = _LinearCrossEntropy.apply(*inputs, labels, *options)  # type: ignore[no-untyped-call]
        return loss
    return _dispatch(*inputs, labels, *options, [False] * 3)[0]


class _LinearCrossEntropy(torch.autograd.Function):
    """Gradients come with the loss; the backward pass only scales them."""

    @staticmethod
    def forward(ctx: Any, *arguments: Any) -> Tensor:
        loss, *gradients = _dispatch(*arguments, list(ctx.needs_input_grad[:3]))
        ctx.save_for_backward(*gradients)
        return loss

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        # torch's once_differentiable would treat the gradients as constants.
        if torch.is_grad_enabled() and not torch.compiler.is_compiling():
            raise RuntimeError(
                "linear_cross_entropy has no second derivative: create_graph must be false"
            )
        # Not in place: the graph may be retained. Autograd casts each gradient to its input's type.
        scaled = iter([x * grad for x in ctx.saved_tensors])
        return tuple(next(scaled) if needed else None for needed in ctx.needs_input_grad)


def _loss_and_gradients(
    features: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    labels: Tensor,
    softcap: float | None,
    label_smoothing: float,
    chunk: int,
    dtype: torch.dtype,
    needs_grad: list[bool],
) -> list[Tensor]:
    """Computes the loss, and its gradients by features, weight and bias as `needs_grad` says.

    The gradient by the features is in `dtype`, the type of the matrix products; the others are in
    float32 at least.
    """
    wide = torch.promote_types(dtype, torch.float32)
    features, weight = features.to(dtype), weight.to(dtype)
    bias = None if bias is None else bias.to(dtype)
    positions, vocabulary = len(features), len(weight)
    valid = labels != _IGNORE_INDEX
    targets = labels.masked_fill(~valid, 0)[:, None]  # [N, 1]; gather fails for other wrong labels
    losses = features.new_zeros(positions, 1, dtype=wide)

    by_features = features.new_empty(features.shape) if needs_grad[0] else None
    by_weight = weight.new_zeros(weight.shape, dtype=wide) if needs_grad[1] else None
    by_bias = weight.new_zeros(vocabulary, dtype=wide) if needs_grad[2] else None
    # Ignored rows are set to zero here, [N, D]: cheaper than in the gradient by the logits.
    inputs = features * valid.to(dtype)[:, None] if needs_grad[1] else features

    n_chunks = max(1, -(-positions // chunk))
    rows = max(1, -(-positions // n_chunks))  # chunks of equal size: a short last one is slow
    products = features.new_empty(min(rows, positions), vocabulary)
    logits = products if dtype == wide else torch.empty_like(products, dtype=wide)
    for start in range(0, positions, rows):
        part = slice(start, min(start + rows, positions))
        # Both [n, V], in the same memory unless the products are narrower; modified in place.
        z, narrow = (buffer[: part.stop - start] for buffer in (logits, products))
        if bias is not None:
            torch.addmm(bias, features[part], weight.t(), out=narrow)
        elif takes_onednn(features[part], weight.t()):
            narrow.copy_(matmul(features[part], weight.t()))
        else:
            torch.mm(features[part], weight.t(), out=narrow)
        if narrow.dtype != wide:
            z.copy_(narrow)
        slope = None
        if softcap is not None:
            z.div_(softcap).tanh_()
            slope = z.square().neg_().add_(1) if any(needs_grad) else None  # [n, V]
            z.mul_(softcap)
        torch.log_softmax(z, -1, out=z)
        log_p = z.gather(1, targets[part])  # [n, 1]
        losses[part] -= (1 - label_smoothing) * log_p
        if label_smoothing:
            losses[part] -= label_smoothing * z.mean(-1, keepdim=True)
        if not any(needs_grad):
            continue
        # z becomes the gradient by the logits: p - 1 at the label, p elsewhere.
        z.exp_().scatter_(1, targets[part], log_p.expm1_())
        if label_smoothing:
            z.sub_(label_smoothing / vocabulary)
            z.scatter_add_(1, targets[part], torch.full_like(log_p, label_smoothing))
        if slope is not None:
            z.mul_(slope)
        if by_bias is not None:
            by_bias.addmv_(z.t(), valid[part].to(wide))
        if narrow.dtype != wide:
            narrow.copy_(z)
        if by_features is not None:
            torch.mm(narrow, weight, out=by_features[part])
        if by_weight is None:
            continue
        if narrow.dtype == wide and not takes_onednn(narrow.t(), inputs[part]):
            by_weight.addmm_(narrow.t(), inputs[part])
        else:
            # In blocks: on a CPU, adding narrow to wide makes a wide copy of the narrow tensor.
            split: Any = torch.Tensor.split
            blocks = zip(
                split(by_weight, _WEIGHT_GRAD_BLOCK),
                split(narrow, _WEIGHT_GRAD_BLOCK, 1),
                strict=True,
            )
            for total, columns in blocks:
                total.add_(matmul(columns.t(), inputs[part]))
    if by_features is not None:
        by_features.mul_(valid.to(dtype)[:, None])
    gradients = (by_features, by_weight, by_bias)
    return [losses[:, 0].masked_fill_(~valid, 0).sum(), *(x for x in gradients if x is not None)]


_custom_op = torch.library.custom_op(
    "miniformer::linear_cross_entropy",
    _loss_and_gradients,
    mutates_args=(),
    schema="(Tensor features, Tensor weight, Tensor? bias, Tensor labels, float? softcap, "
    "float label_smoothing, int chunk, ScalarType dtype, bool[] needs_grad) -> Tensor[]",
)


@_custom_op.register_fake
def _fake_loss_and_gradients(features: Tensor, weight: Tensor, *others: Any) -> list[Tensor]:
    """Returns empty tensors of the shapes and types of `_loss_and_gradients`."""
    dtype, needs_grad = others[-2:]
    wide = torch.promote_types(dtype, torch.float32)
    gradients = [
        features.new_empty(features.shape, dtype=dtype),
        weight.new_empty(weight.shape, dtype=wide),
        weight.new_empty(weight.shape[:1], dtype=wide),
    ]
    return [
        features.new_empty((), dtype=wide),
        *(x for x, needed in zip(gradients, needs_grad, strict=True) if needed),
    ]


def _dispatch(*arguments: Any) -> list[Tensor]:
    """Calls `_loss_and_gradients`, in torch.compile as a custom operator.

    Otherwise torch.compile would unroll the loop, which takes minutes for many chunks.
    """
    if torch.compiler.is_compiling():
        results: list[Tensor] = _custom_op(*arguments)
        return results
    return _loss_and_gradients(*arguments)
