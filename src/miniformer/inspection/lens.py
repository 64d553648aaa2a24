"""Logit lens: the outputs of the head for the hidden states of each layer (nostalgebraist 2020).

The hidden states of a layer pass through the final norm and the head, as those of the last layer
do. A wide head is left out: it does not read hidden states.

Letters: T length, P rows of outputs (positions, words, or one), D model width, V outputs.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from miniformer.inspection.reading import Reading, token_names
from miniformer.model.head import pool_sequences


class Prediction(NamedTuple):
    """A token, class or output, and its probability; of regression, its value."""

    name: str
    value: float


class LayerOutputs:
    """Stands for a model in `Task.logits`: the head reads the hidden states of one layer.

    Args:
        model: the model.
        features: hidden states behind the final norm, [1, T, D].
    """

    training = False
    wide_head = None

    def __init__(self, model: Any, features: Tensor) -> None:
        self.config, self._model, self._features = model.config, model, features

    def features(self, *arguments: Any, **inputs: Any) -> Tensor:
        """The hidden states, whatever the inputs are."""
        return self._features

    def embed(self, *arguments: Any, **inputs: Any) -> Tensor:
        """The pooled hidden states, [1, D]."""
        return pool_sequences(self._features, None, self.config.pooling)

    def classify(self, *arguments: Any, **inputs: Any) -> Tensor:
        """The head's outputs for the pooled hidden states, [1, V]."""
        return self.logits(self.embed())

    def logits(self, features: Tensor) -> Tensor:
        """The head's outputs."""
        out: Tensor = self._model.logits(features)
        return out

    def add_wide_head(self, outputs: Tensor, inputs: Any) -> Tensor:
        """The outputs without those of the wide head."""
        return outputs


def head_inputs(stack: Any, states: list[Tensor]) -> list[Tensor]:
    """Hidden states behind the final norm, which those of the last layer are already behind."""
    return [*(stack.final_norm(x) for x in states[:-1]), states[-1]]


def layer_logits(task: Any, model: Any, reading: Reading, features: Tensor) -> Tensor:
    """Outputs of the head for the hidden states of a layer, [P, V].

    Args:
        task, model, reading: of the inspection.
        features: hidden states behind the final norm, [1, T, D].
    """
    if reading.batch is None:
        out: Tensor = model.logits(features)[0]
        return out
    outputs: Tensor = task.logits(LayerOutputs(model, features), reading.batch)
    return outputs[0] if outputs.dim() == 3 else outputs


def predictions_of(
    task: Any, tokenizer: Any, reading: Reading, logits: Tensor, value: Any, top_k: int
) -> list[list[Prediction]]:
    """The most probable outputs of each row, at most `top_k`; of regression, all values.

    Args:
        task, tokenizer, reading: of the inspection.
        logits: [P, V].
        value: the input, as given by the user.
        top_k: maximum number of tokens or classes.
    """
    if reading.batch is not None and hasattr(task, "format_outputs"):
        (answer,) = task.format_outputs(logits.cpu(), [value])
        return [_from_answer(answer, top_k)]
    probs, best = logits.float().softmax(-1).topk(min(top_k, logits.shape[-1]))
    names = _output_names(task, tokenizer, reading)
    return [
        [Prediction(names(index), p) for index, p in zip(*row, strict=True)]
        for row in zip(best.tolist(), probs.tolist(), strict=True)
    ]


def _from_answer(answer: Any, top_k: int) -> list[Prediction]:
    if isinstance(answer, dict) and "scores" in answer:
        scores = sorted(answer["scores"].items(), key=lambda item: -item[1])
        return [Prediction(str(name), score) for name, score in scores[:top_k]]
    if isinstance(answer, dict):
        return [Prediction(str(name), float(value)) for name, value in answer.items()]
    if isinstance(answer, list):
        return [Prediction(str(n), float(value)) for n, value in enumerate(answer)]
    return [Prediction("value", float(answer))]


def _output_names(task: Any, tokenizer: Any, reading: Reading) -> Any:
    if reading.batch is not None:
        classes = getattr(task, "classes", None) or []
        return lambda index: str(classes[index]) if index < len(classes) else str(index)
    return lambda index: token_names(tokenizer, [index])[0]


@torch.inference_mode()
def masked_logprobs(
    model: Any, ids: list[int], skipped: set[int], mask: int, batch_tokens: int = 4096
) -> list[float | None]:
    """Log-probability of each token in nats, with that token alone masked (Salazar et al. 2020).

    Args:
        model: a masked language model.
        ids: token ids, [T].
        skipped: ids of special tokens, which have none.
        mask: id of the mask token.
        batch_tokens: tokens at once.
    """
    row = torch.tensor(ids, device=next(model.parameters()).device)
    positions = [n for n, token in enumerate(ids) if token not in skipped]
    logprobs: list[float | None] = [None] * len(ids)
    size = max(1, batch_tokens // len(ids))
    for first in range(0, len(positions), size):
        chunk = torch.tensor(positions[first : first + size], device=row.device)
        rows = row.repeat(len(chunk), 1)
        rows[torch.arange(len(chunk), device=row.device), chunk] = mask
        features = model.features(rows)[torch.arange(len(chunk), device=row.device), chunk]
        scores = model.logits(features).float().log_softmax(-1)
        values = scores.gather(1, row[chunk][:, None])[:, 0].tolist()
        for position, value in zip(chunk.tolist(), values, strict=True):
            logprobs[position] = value
    return logprobs
