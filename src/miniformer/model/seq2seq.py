"""Seq2SeqTransformer: an encoder of a source and a decoder of a target (Vaswani 2017).

    source -> embedding -> encoder -> memory
                                         |
    target -> embedding -> decoder (self-attention, attention to the memory, feed-forward) -> head

Source, target and a tied head share one embedding; with `source_vocab_size` the source has another.

Letters: B batch, S source length, T target length, D model width, V vocabulary.
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
from miniformer.model.embedding import embed_inputs, make_embedding
from miniformer.model.head import Head
from miniformer.model.initialization import initialize
from miniformer.model.memory import Memory
from miniformer.model.ops.linear import effective_weight
from miniformer.model.outputs import Recorder, Seq2SeqOutput, given, make_recorders
from miniformer.model.pretrained import PretrainedMixin
from miniformer.model.stack import Stack


class Seq2SeqTransformer(PretrainedMixin, nn.Module):
    """An encoder and a decoder.

    Args:
        config: sizes and components of both; the decoder is causal.

    Example:
        >>> model = Seq2SeqTransformer(TransformerConfig(vocab_size=100, d_model=32, n_heads=4))
        >>> source, target = torch.randint(0, 100, (2, 16)), torch.randint(0, 100, (2, 9))
        >>> model(source, target).shape
        torch.Size([2, 9, 100])
    """

    def __init__(self, config: TransformerConfig) -> None:
        problems = [
            f"{name} is for a Transformer; omit it for a Seq2SeqTransformer"
            for name in (
                "causal",
                "output_dim",
                "token_types",
                "parallel_residual",
                "wide_head",
            )
            if getattr(config, name)
        ]
        if problems:
            raise ConfigError("TransformerConfig", problems)
        super().__init__()
        self.config = config
        self.embedding = nn.Embedding(config.vocab_size, config.d_model)
        self.source_embedding: Any = None  # None: that of the target
        if config.input_type != "tokens":
            self.source_embedding = make_embedding(config)
        elif config.source_vocab_size is not None:
            self.source_embedding = nn.Embedding(config.source_vocab_size, config.d_model)
        self.encoder = Stack(config, n_layers=config.n_layers, causal=False)
        self.decoder = Stack(config, n_layers=config.decoder_layers, causal=True, cross=True)
        self.head = Head(config, tied=config.tie_embeddings)
        initialize(self)

    def forward(
        self,
        source: Tensor | None = None,
        target: Tensor | None = None,
        source_mask: Tensor | None = None,
        target_mask: Tensor | None = None,
        *,
        source_embeds: Tensor | None = None,
        target_embeds: Tensor | None = None,
        source_positions: Tensor | None = None,
        target_positions: Tensor | None = None,
        return_hidden: bool = False,
        return_attention: bool = False,
    ) -> Tensor | Seq2SeqOutput:
        """Computes next-token logits at each target position.

        Args:
            source: token ids, int [B, S], or with `input_dim` features, float [B, S, input_dim]; or
                what the `input` of the config reads.
            target: the decoder's input (shifted right), int [B, T].
            source_mask: bool [B, S], True = a real position; None: all are.
            target_mask: bool [B, T].
            source_embeds, target_embeds: in place of `source` or `target`, the output of their
                embedding, [B, S or T, D].
            source_positions, target_positions: int [B, S or T], in place of those that follow from
                the masks.
            return_hidden, return_attention: return these too, as a `Seq2SeqOutput`. Attention
                weights are computed by the backend `plain`.

        Returns:
            [B, T, vocab_size], or a `Seq2SeqOutput`.

        Raises:
            ValueError: an input has the wrong shape or type, or is longer than `max_seq_len`.
        """
        encoder, decoder = make_recorders(2, hidden=return_hidden, attention=return_attention)
        memory = self.encode(
            source,
            source_mask,
            **given(
                source_embeds=source_embeds, source_positions=source_positions, recorder=encoder
            ),
        )
        features = self.features(
            target,
            memory,
            target_mask,
            **given(
                target_embeds=target_embeds, target_positions=target_positions, recorder=decoder
            ),
        )
        logits = self.logits(features)
        if encoder is None or decoder is None:
            return logits
        return Seq2SeqOutput(
            logits,
            decoder.hidden_states,
            decoder.attentions,
            decoder.cross_attentions,
            encoder.hidden_states,
            encoder.attentions,
        )

    def encode(
        self,
        source: Tensor | None = None,
        source_mask: Tensor | None = None,
        *,
        source_embeds: Tensor | None = None,
        source_positions: Tensor | None = None,
        recorder: Recorder | None = None,
    ) -> Memory:
        """Encodes the source; see `forward`."""
        x, mask = embed_inputs(
            self.embedding if self.source_embedding is None else self.source_embedding,
            source,
            source_mask,
            source_embeds,
            self.config,
            name="source",
        )
        features = self.encoder.run_layers(
            self._scale(x),
            attention_mask=mask,
            positions=source_positions,
            recorder=recorder,
        )
        return Memory(features, mask)

    def features(
        self,
        target: Tensor | None,
        memory: Memory,
        target_mask: Tensor | None = None,
        *,
        target_embeds: Tensor | None = None,
        target_positions: Tensor | None = None,
        cache: PassCache | None = None,
        recorder: Recorder | None = None,
        stop: int | None = None,
    ) -> Tensor:
        """Computes the inputs of the head, [B, T, D].

        Args:
            target: the decoder's input, int [B, T]; with a cache, the tokens after those in it.
            memory: from `encode`.
            target_mask: bool [B, T], True = a real token; None: all are.
            target_embeds, target_positions: see `forward`.
            cache: from `new_cache`; it stores keys and values of the memory. With it the memory may
                grow between passes, and consecutive targets may share a row of it.
            recorder: takes hidden states and attention weights.
            stop: return the input of this layer instead; see `Stack.run_layers`.
        """
        x, target_mask = embed_inputs(
            self.embedding, target, target_mask, target_embeds, self.config, cache, "target"
        )
        sources, targets = memory.features.shape[0], x.shape[0]
        if sources != targets and (cache is None or not sources or targets % sources):
            rows = f"{sources} sources, {targets} targets"
            raise ValueError(f"each target needs its own source: {rows}")
        return self.decoder.run_layers(
            self._scale(x),
            attention_mask=target_mask,
            positions=target_positions,
            cache=cache,
            memory=memory,
            recorder=recorder,
            stop=stop,
        )

    def logits(self, features: Tensor) -> Tensor:
        """Applies the head: [..., D] -> [..., vocab_size]."""
        out: Tensor = self.head(features, effective_weight(self.embedding))
        return out

    def cross_entropy(
        self, features: Tensor, labels: Tensor, label_smoothing: float = 0.0
    ) -> Tensor:
        """See `Transformer.cross_entropy`."""
        embedding = effective_weight(self.embedding)
        return self.head.cross_entropy(features, embedding, labels, label_smoothing)

    def generate(
        self,
        source: Tensor | Sequence[Sequence[int] | Tensor],
        max_new_tokens: int = 50,
        *,
        source_mask: Tensor | None = None,
        start_id: int = 0,
        prefix: Sequence[int] = (),
        processors: Sequence[Processor] = (),
        **options: Any,
    ) -> Tensor | list[list[int]]:
        """Generates targets of sources with a key-value cache.

        Args:
            source: token ids, int [B, S], or vectors, float [B, S, input_dim]; or a list of sources
                of any lengths.
            source_mask: bool [B, S], True = a real token; None: all are. Not for a list.
            max_new_tokens: maximum number of tokens of a target.
            start_id: the decoder's first input; it is not part of the target.
            prefix: first token ids of each target; they are not returned.
            processors: functions that change logits; see `miniformer.generation.logits_processors`.
            **options: the other fields of `GenerationConfig`.

        Returns:
            Targets, `num_return_sequences` (N) per source: for a tensor int [B * N, new], rows that
            finish early padded with `eos_id`; for a list, lists without padding and without
            `eos_id`.

        Raises:
            ValueError: an option is out of range, a source is empty or has an id outside the
                vocabulary, or `max_new_tokens` exceeds `max_seq_len`.
        """
        config = GenerationConfig.from_dict({"max_new_tokens": max_new_tokens, **options})
        start = as_token_ids([start_id, *prefix])
        generate = partial(
            api.generate, self, options=config, processors=processors, return_logprobs=False
        )
        if isinstance(source, Tensor):
            ids = torch.tensor([start]).expand(len(source), -1)
            outputs = generate(PromptBatch(ids, None, source, source_mask))
            return api.pad_outputs(outputs, config.eos_token_ids).to(source.device)
        sources = [row if _is_vectors(row) else as_token_ids(row) for row in source]
        outputs = generate([api.GenerationInput(start, row) for row in sources])
        return [output.tokens for output in outputs]

    def new_cache(
        self, batch_size: int, capacity: int, kind: str | Mapping[str, Any] = "window"
    ) -> Cache:
        """Makes an empty cache of the decoder; see `Stack.new_cache`."""
        return self.decoder.new_cache(batch_size, capacity, kind)

    def backend_report(
        self, *, ragged: bool = False, cached: bool = False, keys: int | None = None
    ) -> list[str]:
        """See `Stack.backend_report`."""
        stacks = (("encoder", self.encoder, False), ("decoder", self.decoder, cached))
        return [
            f"{name}.{line}"
            for name, stack, is_cached in stacks
            for line in stack.backend_report(ragged=ragged, cached=is_cached, keys=keys)
        ]

    def _scale(self, x: Tensor) -> Tensor:
        scale = self.config.embedding_scale
        return x if scale is None else x * scale


def _is_vectors(row: Any) -> bool:
    return isinstance(row, Tensor) and row.is_floating_point() and row.dim() > 1
