"""Transformer: an encoder, or with `causal=True` a decoder-only language model.

    inputs -> embedding -> + token types -> Stack (positions, layers, final norm) -> head
              (ids or features)

Letters: B batch, T length, D model width, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from miniformer import registry
from miniformer.config import ConfigError, GenerationConfig, TransformerConfig
from miniformer.generation import api
from miniformer.generation.logits_processors import Processor
from miniformer.model.cache.kv_cache import KVCache
from miniformer.model.embedding import check_inputs, check_mask, check_segments, make_embedding
from miniformer.model.head import Head, pool
from miniformer.model.initialization import initialize
from miniformer.model.pretrained import PretrainedMixin
from miniformer.model.stack import Stack


class Transformer(PretrainedMixin, Stack):
    """A stack of encoder layers over token ids or feature vectors.

    Args:
        config: its shape and parts.

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
        initialize(self)

    def forward(
        self,
        inputs: Tensor,
        attention_mask: Tensor | None = None,
        *,
        segment_ids: Tensor | None = None,
        token_types: Tensor | None = None,
        cache: KVCache | None = None,
    ) -> Tensor:
        """Logits at each position.

        Args:
            inputs: token ids, int [B, T], or with `input_dim` features, float [B, T, input_dim].
            attention_mask: bool [B, T], True = a real position; None: all are.
            segment_ids: int [B, T]: several sequences packed in a row, numbered from 1; 0 is
                padding. Each sees only itself, and its positions start from 0.
            token_types: int [B, T], where the config has them; None: all are of type 0.
            cache: keys and values of earlier tokens, from `new_cache`; `inputs` are the tokens
                after them.

        Returns:
            [B, T, vocab_size], or [B, T, output_dim] where that is set.

        Raises:
            ValueError: the inputs have the wrong shape or type, or are longer than `max_seq_len`.
        """
        features = self.features(
            inputs, attention_mask, segment_ids=segment_ids, token_types=token_types, cache=cache
        )
        return self.logits(features)

    def features(
        self,
        inputs: Tensor,
        attention_mask: Tensor | None = None,
        *,
        segment_ids: Tensor | None = None,
        token_types: Tensor | None = None,
        cache: KVCache | None = None,
    ) -> Tensor:
        """What the head reads: the last layer's output, normalised, [B, T, D]; see `forward`."""
        check_inputs(inputs, self.config, cache=cache)
        check_mask(attention_mask, inputs)
        check_segments(segment_ids, inputs, cache)
        x = self.embedding(inputs)  # [B, T] -> [B, T, D]
        if self.config.embedding_scale is not None:
            x = x * self.config.embedding_scale
        if self.type_embedding is not None:
            kinds = self.type_embedding.weight[0]
            x = x + (kinds if token_types is None else self.type_embedding(token_types))
        elif token_types is not None:
            raise ValueError("the model has no token types; set token_types in its config")
        return self.run_layers(
            x, attention_mask=attention_mask, segment_ids=segment_ids, cache=cache
        )

    def logits(self, features: Tensor) -> Tensor:
        """The head: [..., D] -> [..., vocab_size or output_dim]."""
        out: Tensor = self.head(features, self.embedding.weight)
        return out

    def cross_entropy(
        self, features: Tensor, labels: Tensor, label_smoothing: float = 0.0
    ) -> Tensor:
        """Summed cross-entropy of `logits(features)` in nats, without ever holding them all.

        Args:
            features: [N, D].
            labels: int [N]; -100: nothing is predicted there.
            label_smoothing: share of each label that is spread over the vocabulary.
        """
        return self.head.cross_entropy(features, self.embedding.weight, labels, label_smoothing)

    def embed(
        self,
        inputs: Tensor,
        attention_mask: Tensor | None = None,
        *,
        token_types: Tensor | None = None,
    ) -> Tensor:
        """One vector for each sequence, [B, D], as the config's `pooling` says; see `forward`."""
        features = self.features(inputs, attention_mask, token_types=token_types)
        return pool(features, attention_mask, self.config.pooling)

    def classify(
        self,
        inputs: Tensor,
        attention_mask: Tensor | None = None,
        *,
        token_types: Tensor | None = None,
    ) -> Tensor:
        """The head on each sequence's one vector: [B, output_dim or vocab_size]; see `forward`."""
        return self.logits(self.embed(inputs, attention_mask, token_types=token_types))

    def new_cache(self, batch_size: int, capacity: int, kind: str = "window") -> KVCache:
        """An empty cache for `batch_size` rows of at most `capacity` tokens each; see `KVCache`.

        Raises:
            ConfigError: the model is not causal: its earlier outputs would change with later
                tokens.
        """
        if not self.config.causal:
            raise ConfigError(
                "TransformerConfig", ["causal must be true for cached decoding, not false"]
            )
        return super().new_cache(batch_size, capacity, kind)

    def engine(self, weight_dtype: str = "float32") -> Any:
        """What decodes on a CPU, as long as weights and parts allow it; see `native.engine`."""
        return registry.get("runtime", "native")(self, weight_dtype)

    def cuda_graph_capture(self) -> Any:
        """What records decoding steps as a CUDA graph, or a UserError; see `graphs`."""
        return registry.get("runtime", "cuda_graphs")(self)

    def generate(
        self,
        input_ids: Tensor | Sequence[Sequence[int]],
        max_new_tokens: int = 50,
        *,
        processors: Sequence[Processor] = (),
        **options: Any,
    ) -> Tensor | list[list[int]]:
        """Continues prompts, token by token, with a key-value cache.

        Args:
            input_ids: prompts of one length, int [B, T], or a list of prompts of any lengths.
            max_new_tokens: tokens to add at most.
            processors: functions that change logits; see `miniformer.generation.logits_processors`.
            **options: the other fields of `GenerationConfig`.

        Returns:
            Prompts and continuations, `num_return_sequences` of the first, then of the second, and
            so on: for a tensor int [B * N, T + new], rows that ended early filled with `eos_id`;
            for a list, lists without padding and without `eos_id`.

        Raises:
            ValueError: an option is out of its limits, a prompt is empty, holds an id outside the
                vocabulary, or leaves no room for `max_new_tokens` within `max_seq_len`.
        """
        settings = GenerationConfig.from_dict({"max_new_tokens": max_new_tokens, **options})
        return api.generate(self, input_ids, settings, processors)
