"""Several new tokens of each row in one call of the kernels, in all layers or in some of them.

The kernels sum in one order for any number of tokens. So keys, values and logits have the bits of
single steps.

Letters: R rows, N new tokens of a row, C capacity, H heads, D model width, V vocabulary.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

MAX_TOKENS = 32  # of a row; for more, PyTorch's products are faster


def append_tokens(
    runtime: Any,
    tokens: Tensor,
    *,
    start: int = 0,
    stop: int | None = None,
    hidden: Tensor | None = None,
    num_logits: int | None = None,
) -> Tensor:
    """Appends tokens to the cache of a `NativeRuntime`; returns logits.

    Args:
        runtime: runtime after prefill, without reordered rows.
        tokens: int [R, N].
        start: first layer to run.
        stop: end before this layer, whose input the final norm and the head take; None: run to the
            end.
        hidden: float32 [R, N, D], the input of layer `start` if that is above 0; with `stop`, the
            input of that layer is written to it.
        num_logits: number of the last tokens of a row to compute logits for; None: all.

    Returns:
        [R, `num_logits`, V].
    """
    cache, config = runtime.cache, runtime.engine.config
    rows, count = tokens.shape
    step = type(runtime.struct()).from_buffer_copy(runtime.struct())
    positions = cache.extend(None, count).expand(rows, count)
    columns = torch.arange(cache.start, cache.stop).repeat(rows)
    row_of_token = torch.arange(rows).repeat_interleave(count)
    num_logits = count if num_logits is None else num_logits
    outputs = torch.arange(rows * count).view(rows, count)[:, count - num_logits :].flatten()
    logits = torch.empty(rows, num_logits, config.vocab_size)
    work = torch.empty(rows * count * runtime.work_width)
    inputs = [x.flatten().contiguous() for x in (tokens, positions, row_of_token, columns, outputs)]
    pointers = (x.data_ptr() for x in inputs)
    step.tokens, step.positions, step.rows, step.token_columns, step.output_tokens = pointers
    step.count, step.columns, step.num_outputs = rows * count, cache.stop, len(outputs)
    step.rows_per_source *= count  # tokens of consecutive rows share a source
    step.key_positions = None if cache.positions is None else cache.positions.data_ptr()
    position_inputs = _position_inputs(runtime, step, positions)
    step.first_layer, step.stop_layer = start, 0 if stop is None else stop
    step.hidden = None if hidden is None else hidden.data_ptr()
    step.logits, step.work = logits.data_ptr(), work.data_ptr()
    runtime.engine.run(step)
    del position_inputs  # the kernels have read their memory
    cache.end_pass()
    return logits


def _position_inputs(runtime: Any, step: Any, positions: Tensor) -> list[Tensor]:
    """Adds vectors of positions, [R * N, D], and bias, [R * N, H, S]; returns the tensors."""
    cache, position, inputs = runtime.cache, runtime.position, []
    vectors = position.vectors(positions)
    if vectors is not None:
        vectors = vectors.expand(*positions.shape, -1).reshape(positions.numel(), -1)
        inputs.append(vectors.float().contiguous())
        step.vectors = inputs[-1].data_ptr()
    if position.adds_bias:
        keys = cache.layers[0].key_positions(cache)
        bias = position.bias(positions, keys).float()  # [R, H, N, S]
        inputs.append(bias.transpose(1, 2).flatten(0, 1).contiguous())
        step.bias, step.bias_per_row = inputs[-1].data_ptr(), True
    return inputs
