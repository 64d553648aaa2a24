"""Runs a model on one input and records what its layers compute."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from miniformer.config import UserError
from miniformer.data.tokenizers.tokenizer import Tokenizer
from miniformer.generation.inference import eval_mode
from miniformer.inspection.lens import head_inputs, layer_logits, masked_logprobs, predictions_of
from miniformer.inspection.reading import Reading, read_input
from miniformer.inspection.result import Inspection
from miniformer.model.seq2seq import Seq2SeqTransformer
from miniformer.tasks.masked_lm import MaskedLM, mask_token_id, special_token_ids


def inspect_input(
    task: Any,
    model: Any,
    tokenizer: Tokenizer | None,
    value: Any,
    target: Sequence[int] | None = None,
    *,
    top_k: int = 5,
    truncate: bool = False,
) -> Inspection:
    """Inspects one input; see `Pipeline.inspect`.

    Args:
        task, model, tokenizer: those of the model directory.
        value: the input, as given by the user.
        target: token ids of the target of seq2seq.
        top_k: tokens or classes of each row of the lens.
        truncate: truncate an input that is too long, as training does.

    Raises:
        UserError: the input is too long or of another kind, or `top_k` is below 1.
    """
    if top_k < 1:
        raise UserError(f"top_k must be at least 1, not {top_k}")
    with eval_mode(model), torch.inference_mode():
        reading = read_input(task, model, tokenizer, value, target, truncate=truncate)
        output = model(**reading.inputs, return_hidden=True, return_attention=True)
        hidden, attentions = _stacks(model, output)
        stack = model.decoder if isinstance(model, Seq2SeqTransformer) else model
        states = hidden["decoder" if "decoder" in hidden else "encoder"]
        features = head_inputs(stack, states) if reading.rows else []
        logits = [layer_logits(task, model, reading, x).cpu() for x in features]
        lens = [predictions_of(task, tokenizer, reading, x, value, top_k) for x in logits]
        logprobs = _logprobs(task, model, tokenizer, reading, logits)
    return Inspection(
        task=task.name,
        tokens=reading.tokens,
        token_ids=reading.token_ids,
        source_tokens=reading.source_tokens,
        attentions={name: [x[0].float().cpu() for x in xs] for name, xs in attentions.items()},
        hidden_states={name: [x[0].float().cpu() for x in xs] for name, xs in hidden.items()},
        logits=logits[-1].float() if logits else torch.empty(0, 0),
        rows=reading.rows,
        lens=lens,
        logprobs=logprobs,
        has_wide_head=getattr(model, "wide_head", None) is not None,
    )


def _stacks(model: Any, output: Any) -> tuple[dict[str, list[Tensor]], dict[str, list[Tensor]]]:
    """Hidden states and attention weights of each stack, [1, ...] each."""
    if isinstance(model, Seq2SeqTransformer):
        hidden = {"encoder": output.encoder_hidden_states, "decoder": output.decoder_hidden_states}
        return hidden, {
            "encoder": output.encoder_attentions,
            "decoder": output.decoder_attentions,
            "cross": output.cross_attentions,
        }
    name = "decoder" if model.config.causal else "encoder"
    return {name: output.hidden_states}, {name: output.attentions}


def _logprobs(
    task: Any, model: Any, tokenizer: Any, reading: Reading, logits: list[Tensor]
) -> list[float | None]:
    """Log-probability of each token; see `Inspection`."""
    ids, first = reading.token_ids, reading.first_scored
    if ids is None or first is None:
        return [None] * len(reading.tokens)
    if isinstance(task, MaskedLM):
        skipped = {int(token) for token in special_token_ids(tokenizer)}
        return masked_logprobs(model, ids, skipped, mask_token_id(tokenizer))
    if first >= len(ids):
        return [None] * len(ids)
    scores = logits[-1].float()[first - 1 : len(ids) - 1].log_softmax(-1)
    values = scores.gather(1, torch.tensor(ids[first:])[:, None])[:, 0].tolist()
    return [*[None] * first, *values]
