"""Result of an inspection: values of one input in every layer."""

from __future__ import annotations

import dataclasses
from typing import Any

from torch import Tensor

from miniformer.inspection.lens import Prediction


@dataclasses.dataclass(frozen=True, eq=False)
class Inspection:
    """Attention, hidden states, logit lens and log-probabilities of one input.

    Letters: L layers, H heads, T length, S source or key length, D model width, P rows of outputs,
    V outputs.

    Attributes:
        task: name of the task.
        tokens: name of each position, T; of seq2seq, of the decoder.
        token_ids: their ids; None: the positions are vectors.
        source_tokens: name of each source position of seq2seq, S; else None.
        attentions: weights by stack: `encoder`, `decoder`, `cross`. L tensors [H, T, S] each; a row
            sums to 1, or to less where a layer has sinks.
        hidden_states: by stack, the input of each layer and then the input of the head, L + 1
            tensors [T, D].
        logits: outputs of the model, [P, V]; of tasks with labels without those of a wide head.
        rows: names of the outputs: positions, words, or the input.
        lens: predictions of each row, by layer, L + 1: the head's outputs for `hidden_states`. The
            last ones are those of `logits`. Empty for a model without a head.
        logprobs: log-probability of each token in nats, T; None where there is none. Of causal
            models and decoders given the tokens before it, as `Pipeline.score`; of a masked
            language model with that token masked; of other tasks None throughout.
        has_wide_head: the model adds outputs of a wide head, which reads no hidden states, to its
            predictions; `logits` and `lens` are without them.
    """

    task: str
    tokens: list[str]
    token_ids: list[int] | None
    source_tokens: list[str] | None
    attentions: dict[str, list[Tensor]]
    hidden_states: dict[str, list[Tensor]]
    logits: Tensor
    rows: list[str]
    lens: list[list[list[Prediction]]]
    logprobs: list[float | None]
    has_wide_head: bool = False

    @property
    def stack(self) -> str:
        """The stack that the head reads: encoder or decoder."""
        return "decoder" if "decoder" in self.hidden_states else "encoder"

    def stack_tokens(self, stack: str) -> tuple[list[str], list[str]]:
        """Names of the queries and of the keys of a stack's attention."""
        source = self.tokens if self.source_tokens is None else self.source_tokens
        if stack == "cross":
            return self.tokens, source
        names = source if stack == "encoder" else self.tokens
        return names, names

    def to_json(self) -> dict[str, Any]:
        """Tokens, lens and log-probabilities, and the mean attention of each layer's heads."""
        return {
            "task": self.task,
            "tokens": self.tokens,
            "token_ids": self.token_ids,
            "source_tokens": self.source_tokens,
            "logprobs": self.logprobs,
            "rows": self.rows,
            "has_wide_head": self.has_wide_head,
            "lens": [
                [[prediction._asdict() for prediction in row] for row in layer]
                for layer in self.lens
            ],
            "attention": {
                stack: [layer.mean(0).tolist() for layer in layers]
                for stack, layers in self.attentions.items()
            },
        }

    def __str__(self) -> str:
        from miniformer.inspection.text import render_text

        return render_text(self)

    def __repr__(self) -> str:
        return f"Inspection({self.task}: {len(self.tokens)} positions, {len(self.lens)} layers)"

    def _repr_html_(self) -> str:
        from miniformer.inspection.page import render_body

        return render_body(self)
