"""Loss by the precision of the weights."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from miniformer.config import GenerationConfig, UserError
from miniformer.doctor.checks.cache import require_decoding
from miniformer.doctor.inputs import ModelInputs
from miniformer.doctor.outcome import NotApplicable, Note
from miniformer.generation.inference import eval_mode
from miniformer.generation.runtime import Runtime, make_runtime

_ROWS, _TOKENS = 8, 32
_LIMITS = {"bf16": 0.05, "int8": 0.05, "int4": 0.5}  # nats per token more than float32


def check_precision(model: Any) -> list[str]:
    """Weights in bf16, int8 and int4 lose little on texts that the model samples."""
    inputs = ModelInputs(model)
    require_decoding(inputs)
    if inputs.reads_vectors:
        raise NotApplicable("the inputs of a plug-in are decoded in float32")
    with eval_mode(model), torch.no_grad(), torch.random.fork_rng():
        torch.manual_seed(0)
        return [*_problems(inputs)]


def _problems(inputs: ModelInputs) -> Iterator[str]:
    memory = []
    if inputs.seq2seq:
        memory = [inputs.model.encode(inputs.inputs(_ROWS, inputs.source_length), None)]
    count = min(_TOKENS, inputs.config.max_seq_len - 1)
    if count < 1:
        raise NotApplicable("the context has a single token")
    first = inputs.ids(_ROWS, 1)
    sampled, losses = _decode(_runtime(inputs, memory, "float32"), first, count=count)
    if not bool(losses.isfinite().all()):
        yield "the log-probabilities in float32 are not finite"
        return
    base = float(losses.mean())
    results = [f"float32 {base:.4f}"]
    for dtype, limit in _LIMITS.items():
        try:
            runtime = _runtime(inputs, memory, dtype)
        except UserError as error:
            raise NotApplicable(str(error)) from None
        more = float(_decode(runtime, first, tokens=sampled)[1].mean()) - base
        results.append(f"{dtype} {more:+.4f}")
        if not more <= limit:
            yield f"{dtype}: {more:.4f} nats per token more than float32; limit {limit}"
    yield Note(f"nats per token of {_ROWS} sampled texts: {', '.join(results)}")


def _runtime(inputs: ModelInputs, memory: list[Any], dtype: str) -> Runtime:
    return make_runtime(inputs.model, memory, GenerationConfig(weight_dtype=dtype))


def _decode(
    runtime: Runtime, first: Tensor, *, count: int = 0, tokens: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Samples `count` tokens after `first`, int [R, 1], or takes `tokens`, int [R, N].

    Returns:
        The tokens, int [R, N], and their losses, [R, N].
    """
    count = count if tokens is None else tokens.shape[1]
    logits, taken, losses = runtime.prefill(first, None, count), [], []
    for index in range(count):
        logprobs = logits.float().log_softmax(-1)
        if tokens is not None:
            token = tokens[:, index]
        elif bool(logprobs.isnan().any()):
            token = first[:, 0]
        else:
            token = logprobs.exp().multinomial(1)[:, 0]
        taken.append(token)
        losses.append(-logprobs.gather(1, token[:, None])[:, 0])
        if index + 1 < count:
            logits = runtime.step(token)
    return torch.stack(taken, 1), torch.stack(losses, 1)
