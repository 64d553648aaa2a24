"""Programs of a model: functions of tensors with names, which `torch.export` takes.

    decoder-only      decoder   ids, mask, past -> logits, present
    encoder-decoder   encoder   source, source mask -> keys and values of the source
                      decoder   ids, mask, past, these, source mask -> logits, present
    other             model     inputs, mask -> logits, or an embedding of each input

Names are those of optimum. Masks are int64. The logits of a decoder are those of the columns in
`logits_to_keep`, which may be all or the last one. A past begins with one masked column.

Letters: B batch, T new tokens, P past columns, S source length, N columns of logits, L layers, K
key-value heads, E head width, V vocabulary, W words, C classes, F numbers of a vector.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.export import Dim

from miniformer.config import UserError
from miniformer.exporters.source import Source
from miniformer.model.cache.static_view import (
    CachedDecoder,
    Layers,
    Past,
    SourceEncoder,
    StaticView,
)
from miniformer.model.seq2seq import Seq2SeqTransformer
from miniformer.tasks.common.sequence_input import InputTask
from miniformer.tasks.embedding import EmbeddingTask
from miniformer.tasks.masked_lm import MaskedLM
from miniformer.tasks.token_classification import TokenClassification


class Program(NamedTuple):
    """A view of a model with names.

    Args:
        name: `model`, `encoder` or `decoder`.
        view: module with `example_inputs`, `dynamic_shapes` and `export`.
        inputs: names of its arguments, in order; lists of tensors are flat.
        outputs: names of its results.
    """

    name: str
    view: StaticView
    inputs: list[str]
    outputs: list[str]


def make_programs(source: Source) -> list[Program]:
    """The programs of a model, in the order in which they run.

    Raises:
        UserError: the model has a part that no program can compute.
    """
    check_exportable(source)
    model = source.model
    if isinstance(model, Seq2SeqTransformer):
        encoder, decoder = EncoderProgram(model), DecoderProgram(model)
        layers = range(len(decoder.decoder.kv_heads))
        cross = [f"present.{n}.encoder.{part}" for part in ("key", "value") for n in layers]
        return [
            Program("encoder", encoder, [_input_name(source), "attention_mask"], cross),
            _decoder_program(decoder, ".decoder"),
        ]
    if source.config.causal and not isinstance(source.task, InputTask | TokenClassification):
        return [_decoder_program(DecoderProgram(model), "")]
    view = ModelProgram(model, source.task)
    inputs = [_input_name(source), "attention_mask", *view.extra_inputs]
    output = "sentence_embedding" if isinstance(source.task, EmbeddingTask) else "logits"
    return [Program("model", view, inputs, [output])]


def check_exportable(source: Source) -> None:
    """Checks that a model has only parts that programs can compute.

    Raises:
        UserError: names the field and its fix.
    """
    for group in source.config.wide_head or ():
        if group["type"] == "words":
            raise UserError(
                "wide_head: features of words are computed from the text of each word, which no "
                "exported program reads; train with --wide_head off to export the model"
            )


def _decoder_program(view: DecoderProgram, infix: str) -> Program:
    layers, parts = range(len(view.decoder.kv_heads)), ("key", "value")
    inputs = ["input_ids", "attention_mask"]
    inputs += [f"past_key_values.{n}{infix}.{part}" for part in parts for n in layers]
    if view.decoder.has_source:
        inputs += [f"past_key_values.{n}.encoder.{part}" for part in parts for n in layers]
        inputs.append("encoder_attention_mask")
    inputs.append("logits_to_keep")
    outputs = ["logits", *(f"present.{n}{infix}.{part}" for part in parts for n in layers)]
    return Program("decoder", view, inputs, outputs)


def _input_name(source: Source) -> str:
    return "input_ids" if source.config.input_dim is None else "input_features"


class DecoderProgram(StaticView):
    """`CachedDecoder` with int64 masks, which computes the logits of chosen columns.

    Args:
        model: causal Transformer or Seq2SeqTransformer in eval mode.
    """

    def __init__(self, model: Any) -> None:
        super().__init__(model)
        self.decoder = CachedDecoder(model)

    def forward(
        self, ids: Tensor, attention_mask: Tensor, keys: Layers, values: Layers, *rest: Any
    ) -> tuple[Tensor, Layers, Layers]:
        """Computes a prompt or a step.

        Args:
            ids: token ids, int64 [B, T].
            attention_mask: 1 = a real token of the past or of `ids`, int64 [B, P + T].
            keys, values: of the past, L of [B, K, P, E].
            rest: of an encoder-decoder model keys and values of the source, L of [B, K, S, E], and
                its mask, int64 [B, S]; then `logits_to_keep`, columns of `ids`, int64 [N].

        Returns:
            Logits [B, N, V], then keys and values of past and pass, L of [B, K, P + T, E] each.
        """
        *source, columns = rest
        if source:
            source[-1] = source[-1] != 0
        return self.decoder(  # type: ignore[no-any-return]
            ids, attention_mask != 0, keys, values, *source, columns=columns
        )

    def example_inputs(self) -> tuple[Any, ...]:
        """Implements `StaticView.example_inputs`."""
        inputs = [_as_integers(value) for value in self.decoder.example_inputs()]
        return (*inputs, torch.arange(2, device=inputs[0].device))

    def dynamic_shapes(self) -> tuple[Any, ...]:
        """Implements `StaticView.dynamic_shapes`."""
        (*shapes,) = self.decoder.dynamic_shapes()
        return (*shapes[:4], (*shapes[4:], {0: Dim("kept", min=1)}))


class EncoderProgram(SourceEncoder):
    """`SourceEncoder` with an int64 mask."""

    def forward(self, source: Tensor, source_mask: Tensor | None = None) -> Past:
        """Maps a source to its keys and values; see `SourceEncoder`.

        Args:
            source: input of the encoder, such as token ids, int64 [B, S].
            source_mask: int64 [B, S], 1 = a real position; None: all are.
        """
        return super().forward(source, None if source_mask is None else source_mask != 0)

    def example_inputs(self) -> tuple[Any, ...]:
        """Implements `StaticView.example_inputs`."""
        return tuple(map(_as_integers, super().example_inputs()))


class ModelProgram(StaticView):
    """Model without a past: the `logits` of its task, or of each token.

    Args:
        model: Transformer in eval mode.
        task: its task; None, or masked language modeling: logits of each token.

    Attributes:
        extra_inputs: names of the inputs after the mask.
    """

    def __init__(self, model: Any, task: Any) -> None:
        super().__init__(model)
        self.task = task
        self.extra_inputs: tuple[str, ...] = ()
        if isinstance(task, TokenClassification):
            self.extra_inputs = ("word_starts", "word_lengths")
        elif self.config.token_types is not None:
            self.extra_inputs = ("token_type_ids",)

    def forward(self, inputs: Tensor, attention_mask: Tensor, *extra: Tensor) -> Tensor:
        """Computes outputs.

        Args:
            inputs: token ids, int64 [B, T], or vectors, float [B, T, F].
            attention_mask: 1 = a real position, int64 [B, T].
            extra: token types, int64 [B, T], if the model has any; for tags, first token and number
                of tokens of each word, int64 [B, W].

        Returns:
            [B, C]; for tags [B, W, C]; of each token [B, T, V]; or embeddings, [B, D].
        """
        batch: dict[str, Any] = {"inputs": inputs, "attention_mask": attention_mask != 0}
        names: dict[str, str] = {"token_type_ids": "token_types"}
        for name, value in zip(self.extra_inputs, extra, strict=True):
            batch[names.get(name, name)] = value
        if isinstance(self.task, InputTask | TokenClassification) and not isinstance(
            self.task, MaskedLM
        ):
            logits: Tensor = self.task.logits(self.model, batch)
            return logits
        arguments = {"attention_mask": batch["attention_mask"]}
        features = self.model.features(inputs, **arguments, token_types=batch.get("token_types"))
        out: Tensor = self.model.logits(features)
        return out

    def example_inputs(self) -> tuple[Any, ...]:
        """Implements `StaticView.example_inputs`."""
        weight, width = next(self.model.parameters()), self.config.input_dim
        ids = torch.zeros(2, 5, dtype=torch.long, device=weight.device)
        inputs = ids if width is None else weight.new_zeros(2, 5, width)
        extra = [ids.clone() for _ in self.extra_inputs]
        if isinstance(self.task, TokenClassification):
            starts = torch.arange(3, device=weight.device).repeat(2, 1)
            extra = [starts, torch.ones_like(starts)]
        return inputs, torch.ones_like(ids), *extra

    def dynamic_shapes(self) -> tuple[Any, ...]:
        """Implements `StaticView.dynamic_shapes`."""
        batch, length = Dim("batch", min=1), Dim("length", min=1, max=self.config.max_seq_len)
        rows = {0: batch, 1: length}
        extra = (
            {0: batch, 1: Dim("words", min=1)}
            if isinstance(self.task, TokenClassification)
            else rows
        )
        if not self.extra_inputs:
            return rows, rows
        return rows, rows, (extra,) * len(self.extra_inputs)


def _as_integers(value: Any) -> Any:
    """A mask as int64; another value as it is."""
    is_mask = isinstance(value, Tensor) and value.dtype == torch.bool
    return value.long() if is_mask else value
