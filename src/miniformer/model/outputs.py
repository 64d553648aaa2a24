"""Further outputs of a model: hidden states and attention weights.

Letters: B batch, T length, S source or key length, H heads, D model width, V vocabulary.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from torch import Tensor, nn


class TransformerOutput(NamedTuple):
    """Outputs of a Transformer that is called with `return_hidden` or `return_attention`.

    Attributes:
        logits: [B, T, V].
        hidden_states: the input of each layer and then the inputs of the head, [B, T, D] each, as
            in Hugging Face's transformers; None: not requested.
        attentions: weights of each layer's attention, [B, H, T, T], or with a cache [B, H, T, S]
            over its columns; None: not requested.
    """

    logits: Tensor
    hidden_states: list[Tensor] | None = None
    attentions: list[Tensor] | None = None


class Seq2SeqOutput(NamedTuple):
    """Outputs of a Seq2SeqTransformer; see `TransformerOutput`.

    `cross_attentions` are the weights of each decoder layer over the source, [B, H, T, S].
    """

    logits: Tensor
    decoder_hidden_states: list[Tensor] | None = None
    decoder_attentions: list[Tensor] | None = None
    cross_attentions: list[Tensor] | None = None
    encoder_hidden_states: list[Tensor] | None = None
    encoder_attentions: list[Tensor] | None = None


class Recorder:
    """Takes the hidden states and attention weights of one pass through a stack.

    Args:
        hidden: take hidden states.
        attention: take attention weights; all layers then use the backend `plain`.
    """

    def __init__(self, *, hidden: bool = True, attention: bool = True) -> None:
        self.hidden_states: list[Tensor] | None = [] if hidden else None
        self.attentions: list[Tensor] | None = [] if attention else None
        self.cross_attentions: list[Tensor] | None = [] if attention else None

    def add_hidden(self, x: Tensor) -> None:
        """Takes the input of a layer or of the head, if hidden states are requested."""
        if self.hidden_states is not None:
            self.hidden_states.append(x)

    def finish(self, x: Tensor, layers: nn.ModuleList) -> None:
        """Takes the inputs of the head, and copies the lists.

        Recomputed layers append to the original lists in the backward pass.

        Raises:
            ValueError: the attention of a layer has not handed out its weights.
        """
        if self.hidden_states is not None:
            self.hidden_states = [*self.hidden_states, x]
        if self.attentions is None or self.cross_attentions is None:
            return
        self.attentions, self.cross_attentions = [*self.attentions], [*self.cross_attentions]
        if len(self.attentions) != len(layers):
            kinds = {type(getattr(layer, "attention", layer)).__name__ for layer in layers}
            raise ValueError(
                f"return_attention: {len(self.attentions)} of {len(layers)} layers gave attention "
                f"weights; {', '.join(sorted(kinds))} must compute them with the backend of its "
                "context, or append them to `context.weights`"
            )


def make_recorders(count: int, *, hidden: bool, attention: bool) -> list[Recorder | None]:
    """Makes a recorder for each stack of a model; None: nothing is requested."""
    if not (hidden or attention):
        return [None] * count
    return [Recorder(hidden=hidden, attention=attention) for _ in range(count)]


def given(**options: Any) -> dict[str, Any]:
    """The options that are not None: subclasses may override a method without the others."""
    return {name: value for name, value in options.items() if value is not None}
