"""Cached decoding against a full pass."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from miniformer.config import GenerationConfig
from miniformer.doctor.inputs import ModelInputs, max_difference
from miniformer.doctor.outcome import NotApplicable, Note
from miniformer.generation.inference import eval_mode
from miniformer.generation.runtime import PlainRuntime, Runtime, make_runtime

_ROWS = 3
_TOLERANCE = 1e-4  # of the largest logit


def check_cache(model: Any) -> list[str]:
    """Prefill and cached steps give the logits of a full pass."""
    inputs = ModelInputs(model)
    require_decoding(inputs)
    with eval_mode(model), torch.no_grad(), torch.random.fork_rng():
        torch.manual_seed(0)
        return [*_differences(inputs)]


def require_decoding(inputs: ModelInputs) -> None:
    """Raises NotApplicable for a model that predicts no next token."""
    config = inputs.config
    if config.output_dim is not None or not (inputs.seq2seq or config.causal):
        raise NotApplicable("the model predicts no next token")
    if not inputs.seq2seq and inputs.width is not None:
        raise NotApplicable("the model reads vectors, so no token continues its inputs")


def runtimes_of(model: Any, memory: list[Any], **options: Any) -> dict[str, Runtime]:
    """New runtimes by name: the modules of the model, and that of `generate` if it is another."""
    chosen = make_runtime(model, memory, GenerationConfig(temperature=0.0, **options))
    named: dict[str, Runtime] = {"modules": PlainRuntime(model, memory)}
    if type(chosen) is not PlainRuntime:
        named[type(chosen).__name__] = chosen
    return named


def _differences(inputs: ModelInputs) -> Iterator[str]:
    model, length = inputs.model, inputs.length
    ids, memory = inputs.ids(_ROWS, length), []
    mask = torch.ones_like(ids, dtype=torch.bool)
    mask[0, : length // 3] = False  # a shorter row is padded on the left
    padded = None if bool(mask.all()) else mask
    if inputs.seq2seq:
        source = inputs.inputs(_ROWS, inputs.source_length)
        embeds = {"source_embeds": source} if inputs.reads_vectors else {}
        memory = [model.encode(None if embeds else source, None, **embeds)]
        full = inputs.call(source, target=ids, target_mask=padded)
    else:
        full = inputs.call(ids, padded)
    worst: dict[str, float] = {}
    for start in sorted({max(1, length // 2), max(1, length - 1)}):
        for name, runtime in runtimes_of(model, memory).items():
            logits = _cached_logits(runtime, ids, padded, start)  # [B, T - start + 1, V]
            difference = max_difference(logits.float(), full[:, start - 1 :].float())
            worst[name] = max(worst.get(name, 0.0), difference)
    for name, difference in worst.items():
        if difference <= _TOLERANCE:
            yield Note(f"{name}: largest difference {difference:.1e} of the largest logit")
        else:
            yield f"{name}: logits differ by {difference:.1e} of the largest; limit {_TOLERANCE}"


def _cached_logits(runtime: Runtime, ids: Tensor, mask: Tensor | None, start: int) -> Tensor:
    """Logits after the first `start` tokens and after each later one, [B, T - start + 1, V]."""
    part = None if mask is None else mask[:, :start]
    logits = [runtime.prefill(ids[:, :start], part, ids.shape[1] - start)]
    logits += [runtime.step(column).clone() for column in ids[:, start:].unbind(1)]
    return torch.stack(logits, 1)
