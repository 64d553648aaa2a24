"""Transformer: an encoder, or with `causal=True` a decoder-only model.

    inputs -> embedding -> + token types -> Stack (positions, layers, final norm) -> head
              (ids or features)

Letters: B batch, T length, D model width, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from miniformer.config import ConfigError, GenerationConfig, TransformerConfig
from miniformer.generation import api
from miniformer.generation.inputs import PromptBatch, as_token_ids
from miniformer.generation.logits_processors import Processor
from miniformer.model.cache.protocol import Cache, PassCache
from miniformer.model.embedding import (
    check_segments,
    embed_inputs,
    make_embedding,
    output_mask,
)
from miniformer.model.exit_policy import ExitPolicy
from miniformer.model.head import Head, pool_segments, pool_sequences
from miniformer.model.initialization import initialize
from miniformer.model.ops.linear import effective_weight, embedding_weight
from miniformer.model.outputs import Recorder, TransformerOutput, given, make_recorders
from miniformer.model.pretrained import PretrainedMixin
from miniformer.model.stack import Stack
from miniformer.model.wide_head.chain import make_wide_head


class Transformer(PretrainedMixin, Stack):
    """A stack of encoder layers over token ids or feature vectors.

    Args:
        config: sizes and components of the model.

    Example:
        >>> model = Transformer(TransformerConfig(vocab_size=100, d_model=32, n_heads=4))
        >>> model(torch.randint(0, 100, (2, 16))).shape
        torch.Size([2, 16, 100])
    """

    def __init__(self, config: TransformerConfig) -> None:
        problems = [
            f"{name}={getattr(config, name)} is for a Seq2SeqTransformer"
            for name in ("n_decoder_layers", "source_vocab_size")
            if getattr(config, name) is not None
        ]
        if problems:
            raise ConfigError("TransformerConfig", problems)
        super().__init__(config, n_layers=config.n_layers, causal=config.causal)
        self.embedding: Any = make_embedding(config)
        self.type_embedding = (
            None if config.token_types is None else nn.Embedding(config.token_types, config.d_model)
        )
        self.head = Head(config)
        self.wide_head = None if config.wide_head is None else make_wide_head(config)
        self.exit_policy: ExitPolicy | None = None  # of a loaded classifier
        initialize(self)

    def forward(
        self,
        inputs: Tensor | None = None,
        attention_mask: Tensor | None = None,
        *,
        inputs_embeds: Tensor | None = None,
        segment_ids: Tensor | None = None,
        token_types: Tensor | None = None,
        positions: Tensor | None = None,
        cache: PassCache | None = None,
        return_hidden: bool = False,
        return_attention: bool = False,
    ) -> Tensor | TransformerOutput:
        """Computes logits at each position.

        Args:
            inputs: token ids, int [B, T], or with `input_dim` features, float [B, T, input_dim]; or
                what the `input` of the config reads.
            attention_mask: bool [B, T], True = a real position; None: all are.
            inputs_embeds: in place of `inputs`, the output of `embedding`, [B, T, D].
            segment_ids: int [B, T]: sequences packed in a row, numbered from 1; 0 is padding. Each
                sees only itself, and its positions start from 0.
            token_types: int [B, T], if the config has `token_types`; None: all are 0.
            positions: int [B, T], in place of those that follow from mask and segments; who sees
                whom follows from these in any case.
            cache: keys and values of the tokens before `inputs`, from `new_cache`.
            return_hidden, return_attention: return these too, as a `TransformerOutput`. Attention
                weights are computed by the backend `plain`.

        Returns:
            [B, T, vocab_size], or [B, T, output_dim] if that is set; or a `TransformerOutput`.

        Raises:
            ValueError: the inputs have the wrong shape or type, or are longer than `max_seq_len`.
        """
        (recorder,) = make_recorders(1, hidden=return_hidden, attention=return_attention)
        features = self.features(
            inputs,
            attention_mask,
            segment_ids=segment_ids,
            token_types=token_types,
            cache=cache,
            **given(inputs_embeds=inputs_embeds, positions=positions, recorder=recorder),
        )
        logits = self.logits(features)
        if recorder is None:
            return logits
        return TransformerOutput(logits, recorder.hidden_states, recorder.attentions)

    def features(
        self,
        inputs: Tensor | None = None,
        attention_mask: Tensor | None = None,
        *,
        inputs_embeds: Tensor | None = None,
        segment_ids: Tensor | None = None,
        token_types: Tensor | None = None,
        positions: Tensor | None = None,
        cache: PassCache | None = None,
        recorder: Recorder | None = None,
        stop: int | None = None,
    ) -> Tensor:
        """Computes the inputs of the head: normalized last layer, [B, T, D]; see `forward`.

        With `stop`, computes the input of that layer instead; see `Stack.run_layers`.
        """
        x, attention_mask = embed_inputs(
            self.embedding, inputs, attention_mask, inputs_embeds, self.config, cache
        )
        if segment_ids is not None:
            check_segments(segment_ids, x, cache)
        if self.config.embedding_scale is not None:
            x = x * self.config.embedding_scale
        if self.type_embedding is not None:
            type_zero = effective_weight(self.type_embedding)[0]
            x = x + (type_zero if token_types is None else self.type_embedding(token_types))
        elif token_types is not None:
            raise ValueError("the model has no token types; set token_types in its config")
        rows: dict[str, Any] = {"attention_mask": attention_mask, "segment_ids": segment_ids}
        return self.run_layers(
            x, **rows, positions=positions, cache=cache, recorder=recorder, stop=stop
        )

    def logits(self, features: Tensor) -> Tensor:
        """Applies the head: [..., D] -> [..., vocab_size or output_dim]."""
        out: Tensor = self.head(features, embedding_weight(self.embedding))
        return out

    def cross_entropy(
        self, features: Tensor, labels: Tensor, label_smoothing: float = 0.0
    ) -> Tensor:
        """Computes the summed cross-entropy of `logits(features)` in nats, in chunks of logits.

        Args:
            features: [N, D].
            labels: int [N]; -100: ignored.
            label_smoothing: share of each label that is spread over the vocabulary.
        """
        embedding = embedding_weight(self.embedding)
        return self.head.cross_entropy(features, embedding, labels, label_smoothing)

    def embed(
        self,
        inputs: Tensor | None = None,
        attention_mask: Tensor | None = None,
        *,
        inputs_embeds: Tensor | None = None,
        segment_ids: Tensor | None = None,
        token_types: Tensor | None = None,
        positions: Tensor | None = None,
    ) -> Tensor:
        """Pools each sequence to a vector by the config's `pooling`; see `forward`.

        Returns:
            [B, D]; with `segment_ids`, a vector for each segment, [B, largest id, D], which is that
            of a row of padding where a row has no such segment.
        """
        options = given(inputs_embeds=inputs_embeds, segment_ids=segment_ids, positions=positions)
        features = self.features(inputs, attention_mask, token_types=token_types, **options)
        if inputs_embeds is None:
            attention_mask = output_mask(self.embedding, attention_mask)
        if segment_ids is None:
            return pool_sequences(features, attention_mask, self.config.pooling)
        return pool_segments(features, attention_mask, segment_ids, self.config.pooling)

    def classify(
        self,
        inputs: Tensor,
        attention_mask: Tensor | None = None,
        *,
        token_types: Tensor | None = None,
    ) -> Tensor:
        """Applies the head to pooled vectors: [B, output_dim or vocab_size]; see `forward`.

        In evaluation, a model with `wide_head` adds the outputs of its wide head, and one with
        `exit_policy` has the outputs of the exit of each record.
        """
        if self.exit_policy is not None and not self.training:
            return self.exit_policy.classify(self, inputs, attention_mask, token_types)
        outputs = self.logits(self.embed(inputs, attention_mask, token_types=token_types))
        columns = {"inputs": inputs, "attention_mask": attention_mask, "token_types": token_types}
        return self.add_wide_head(outputs, columns)

    def add_wide_head(self, outputs: Tensor, inputs: Mapping[str, Tensor | None]) -> Tensor:
        """Adds the outputs of the wide head, if there is one, in evaluation: [B, ..., output_dim].

        Args:
            outputs: of the head, [B, ..., output_dim].
            inputs: tensors of the batch by name; see `WideHead`.
        """
        if self.wide_head is None or self.training:
            return outputs
        mixed: Tensor = self.wide_head(outputs, inputs)
        return mixed

    def new_cache(
        self, batch_size: int, capacity: int, kind: str | Mapping[str, Any] = "window"
    ) -> Cache:
        """Makes an empty cache for rows of up to `capacity` tokens; see `Stack.new_cache`.

        Raises:
            ConfigError: the model is not causal, so later tokens would change earlier outputs.
        """
        if not self.config.causal:
            raise ConfigError(
                "TransformerConfig", ["causal must be true for cached decoding, not false"]
            )
        return super().new_cache(batch_size, capacity, kind)

    def generate(
        self,
        input_ids: Tensor | Sequence[Sequence[int]],
        max_new_tokens: int = 50,
        *,
        processors: Sequence[Processor] = (),
        **options: Any,
    ) -> Tensor | list[list[int]]:
        """Generates continuations of prompts with a key-value cache.

        Args:
            input_ids: prompts of equal length, int [B, T], or a list of prompts of any lengths.
            max_new_tokens: maximum number of new tokens.
            processors: functions that change logits; see `miniformer.generation.logits_processors`.
            **options: the other fields of `GenerationConfig`.

        Returns:
            Prompts with their continuations, `num_return_sequences` (N) per prompt: for a tensor
            int [B * N, T + new], rows that finish early padded with `eos_id`; for a list, lists
            without padding and without `eos_id`.

        Raises:
            ValueError: an option is out of range, a prompt is empty or has an id outside the
                vocabulary, or prompt and `max_new_tokens` exceed `max_seq_len`.
        """
        config = GenerationConfig.from_dict({"max_new_tokens": max_new_tokens, **options})
        generate = partial(
            api.generate, self, options=config, processors=processors, return_logprobs=False
        )
        copies = config.num_return_sequences
        if isinstance(input_ids, Tensor):
            new = api.pad_outputs(generate(PromptBatch(input_ids)), config.eos_token_ids)
            return torch.cat((input_ids.repeat_interleave(copies, 0), new.to(input_ids)), 1)
        rows = [as_token_ids(row) for row in input_ids]
        outputs = generate([api.GenerationInput(row) for row in rows])
        return [rows[n // copies] + output.tokens for n, output in enumerate(outputs)]
