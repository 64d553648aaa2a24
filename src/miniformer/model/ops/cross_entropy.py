"""The vocabulary head and its cross-entropy in one step: logits of a few positions at a time.

With a large vocabulary the logits are the largest tensor of a training step, and plain
cross-entropy keeps three of that size: the logits, their log-softmax and the gradient. The gradient
follows from the logits alone, so it is taken chunk by chunk in the forward pass, while they are
there (as in Liger Kernel, Hsu et al. 2024, arXiv 2410.10989); what is kept is no larger than the
features and the weight.

Letters: N positions, n of them in a chunk, D width, V vocabulary.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from miniformer.model.ops.precision import matmul_dtype

_IGNORE_INDEX = -100  # the label, as in miniformer.data.batching.packing
_CHUNK_BYTES = 2**25  # a chunk's logits in float32: few enough to reuse, enough to multiply fast
_MIN_CHUNK_ROWS = 64  # with fewer the matrix products get slow
_WEIGHT_GRAD_BLOCK = 4096  # rows of the weight's gradient


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
    """Summed cross-entropy in nats of the logits `features @ weight.T + bias`.

    Under autocast the matrix products are in its type; softmax, and sums over positions, are in
    float32 at least. Gradients are taken in the forward pass, of what requires them; there is no
    second derivative, and `create_graph=True` raises a RuntimeError.

    Args:
        features: [N, D].
        weight: [V, D].
        labels: int64 [N], from 0 to V - 1, or -100: nothing is predicted there.
        bias: [V]; None: none.
        softcap: logits z become softcap * tanh(z / softcap); None: they stay.
        label_smoothing: share of each label that is spread over all V (Szegedy et al. 2016).
        chunk: positions whose logits are in memory at once, at most; None: about 32 MB of logits.

    Returns:
        A scalar, float32, or float64 for float64 features; 0 where no position is labelled.

    Raises:
        ValueError: there is not one label for each position, or `chunk` is below 1.
    """
    if labels.shape != features.shape[:1]:
        shapes = f"{list(features.shape[:1])}, as the features are, not {list(labels.shape)}"
        raise ValueError(f"labels must be {shapes}")
    if chunk_size is not None and chunk_size < 1:
        raise ValueError(f"chunk must be at least 1, not {chunk_size}")
    chunk_size = chunk_size or max(_MIN_CHUNK_ROWS, _CHUNK_BYTES // (4 * weight.shape[0]))
    sources = (features, weight, bias)
    options = (softcap, label_smoothing, chunk_size, matmul_dtype(features))
    if torch.is_grad_enabled() and any(x is not None and x.requires_grad for x in sources):
        loss: Tensor = _LinearCrossEntropy.apply(*sources, labels, *options)  # type: ignore[no-untyped-call]
        return loss
    return _dispatch(*sources, labels, *options, [False] * 3)[0]


class _LinearCrossEntropy(torch.autograd.Function):
    """Gradients come with the loss; the backward pass only scales them."""

    @staticmethod
    def forward(
        ctx: Any,
        features: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        labels: Tensor,
        softcap: float | None,
        label_smoothing: float,
        chunk: int,
        dtype: torch.dtype,
    ) -> Tensor:
        wanted = list(ctx.needs_input_grad[:3])
        options = (softcap, label_smoothing, chunk, dtype)
        loss, *gradients = _dispatch(features, weight, bias, labels, *options, wanted)
        ctx.save_for_backward(*gradients)
        return loss

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        # torch's own once_differentiable would pass the gradients off as constants.
        if torch.is_grad_enabled() and not torch.compiler.is_compiling():
            raise RuntimeError(
                "linear_cross_entropy has no second derivative: create_graph must be false"
            )
        # Not in place: the graph may be kept, to go through it again. Autograd casts each to the
        # type of what it is the gradient of.
        scaled = iter([x * grad for x in ctx.saved_tensors])
        return tuple(next(scaled) if wants else None for wants in ctx.needs_input_grad)


def _loss_and_gradients(
    features: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    labels: Tensor,
    softcap: float | None,
    label_smoothing: float,
    chunk: int,
    dtype: torch.dtype,
    wanted: list[bool],
) -> list[Tensor]:
    """The loss, and as far as wanted its gradients by features, weight and bias.

    The gradient by the features is in `dtype`, that of the matrix products, the others are in
    float32 at least.
    """
    wide = torch.promote_types(dtype, torch.float32)
    features, weight = features.to(dtype), weight.to(dtype)
    bias = None if bias is None else bias.to(dtype)
    positions, vocabulary = len(features), len(weight)
    kept = labels != _IGNORE_INDEX
    targets = labels.masked_fill(~kept, 0)[:, None]  # [N, 1]; other strays are an error in gather
    losses = features.new_zeros(positions, 1, dtype=wide)

    by_features = features.new_empty(features.shape) if wanted[0] else None
    by_weight = weight.new_zeros(weight.shape, dtype=wide) if wanted[1] else None
    by_bias = weight.new_zeros(vocabulary, dtype=wide) if wanted[2] else None
    # Ignored rows are taken out here, [N, D], which is cheaper than in the logits' gradient.
    inputs = features * kept.to(dtype)[:, None] if wanted[1] else features

    n_chunks = max(1, -(-positions // chunk))
    rows = max(1, -(-positions // n_chunks))  # chunks of one size, lest the last be a short one
    products = features.new_empty(min(rows, positions), vocabulary)
    logits = products if dtype == wide else torch.empty_like(products, dtype=wide)
    for start in range(0, positions, rows):
        part = slice(start, min(start + rows, positions))
        # Both [n, V], and the same memory unless the products are narrower; all is done in place.
        z, narrow = (buffer[: part.stop - start] for buffer in (logits, products))
        if bias is None:
            torch.mm(features[part], weight.t(), out=narrow)
        else:
            torch.addmm(bias, features[part], weight.t(), out=narrow)
        if narrow.dtype != wide:
            z.copy_(narrow)
        slope = None
        if softcap is not None:
            z.div_(softcap).tanh_()
            slope = z.square().neg_().add_(1) if any(wanted) else None  # [n, V]
            z.mul_(softcap)
        torch.log_softmax(z, -1, out=z)
        log_p = z.gather(1, targets[part])  # [n, 1]
        losses[part] -= (1 - label_smoothing) * log_p
        if label_smoothing:
            losses[part] -= label_smoothing * z.mean(-1, keepdim=True)
        if not any(wanted):
            continue
        # Now the gradient by the logits: p - 1 at the label, p elsewhere.
        z.exp_().scatter_(1, targets[part], log_p.expm1_())
        if label_smoothing:
            z.sub_(label_smoothing / vocabulary)
            z.scatter_add_(1, targets[part], torch.full_like(log_p, label_smoothing))
        if slope is not None:
            z.mul_(slope)
        if by_bias is not None:
            by_bias.addmv_(z.t(), kept[part].to(wide))
        if narrow.dtype != wide:
            narrow.copy_(z)
        if by_features is not None:
            torch.mm(narrow, weight, out=by_features[part])
        if by_weight is not None and narrow.dtype == wide:
            by_weight.addmm_(narrow.t(), inputs[part])
        elif by_weight is not None:
            # In blocks: on a CPU, adding narrow to wide first makes a wide copy of all there is.
            split: Any = torch.Tensor.split
            blocks = zip(
                split(by_weight, _WEIGHT_GRAD_BLOCK),
                split(narrow, _WEIGHT_GRAD_BLOCK, 1),
                strict=True,
            )
            for total, columns in blocks:
                total.add_(torch.mm(columns.t(), inputs[part]))
    if by_features is not None:
        by_features.mul_(kept.to(dtype)[:, None])
    gradients = (by_features, by_weight, by_bias)
    return [losses[:, 0].masked_fill_(~kept, 0).sum(), *(x for x in gradients if x is not None)]


_custom_op = torch.library.custom_op(
    "miniformer::linear_cross_entropy",
    _loss_and_gradients,
    mutates_args=(),
    schema="(Tensor features, Tensor weight, Tensor? bias, Tensor labels, float? softcap, "
    "float label_smoothing, int chunk, ScalarType dtype, bool[] wanted) -> Tensor[]",
)


@_custom_op.register_fake
def _fake_loss_and_gradients(
    features: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    labels: Tensor,
    softcap: float | None,
    label_smoothing: float,
    chunk: int,
    dtype: torch.dtype,
    wanted: list[bool],
) -> list[Tensor]:
    """What `_loss_and_gradients` returns, empty."""
    wide = torch.promote_types(dtype, torch.float32)
    gradients = [
        features.new_empty(features.shape, dtype=dtype),
        weight.new_empty(weight.shape, dtype=wide),
        weight.new_empty(weight.shape[:1], dtype=wide),
    ]
    return [
        features.new_empty((), dtype=wide),
        *(x for x, wants in zip(gradients, wanted, strict=True) if wants),
    ]


def _dispatch(*arguments: Any) -> list[Tensor]:
    """`_loss_and_gradients`; torch.compile takes it as one operation.

    It would unroll the loop otherwise, and take minutes over many chunks.
    """
    if torch.compiler.is_compiling():
        operation: list[Tensor] = _custom_op(*arguments)
        return operation
    return _loss_and_gradients(*arguments)
