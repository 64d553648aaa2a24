"""Transformer: an encoder, or with `causal=True` a decoder-only language model.

    inputs -> embedding -> n_layers x EncoderLayer -> final norm -> head
              (ids or features)                       (pre-norm only)

Letters: B batch, T length, D model width.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from miniformer import registry
from miniformer.config import ConfigError, GenerationConfig, TransformerConfig
from miniformer.generation import generate
from miniformer.model.cache import KVCache
from miniformer.model.initialization import initialize
from miniformer.model.layers import EncoderLayer
from miniformer.model.masks import make_mask, make_positions
from miniformer.model.norm import make_norm
from miniformer.model.pretrained import PretrainedMixin


class Transformer(PretrainedMixin, nn.Module):
    """A stack of encoder layers over token ids or feature vectors.

    Args:
        config: its shape and parts.

    Example:
        >>> model = Transformer(TransformerConfig(vocab_size=100, d_model=32, n_heads=4))
        >>> model(torch.randint(0, 100, (2, 16))).shape
        torch.Size([2, 16, 100])
    """

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.config = config
        self.embedding = (
            nn.Embedding(config.vocab_size, config.d_model)
            if config.input_dim is None
            else nn.Linear(config.input_dim, config.d_model, bias=config.bias)
        )
        self.dropout = nn.Dropout(config.dropout)
        self.position: nn.Module = registry.get("position", config.position)(config)
        self.layers = nn.ModuleList(EncoderLayer(config) for _ in range(config.n_layers))
        self.final_norm = (
            make_norm(config.norm, config.d_model, eps=config.norm_eps, bias=config.bias)
            if config.pre_norm
            else nn.Identity()
        )
        # A tied head is no module of its own: there is one weight, so nothing can come untied.
        self.head = None
        if not config.head_tied:
            width = config.output_dim or config.vocab_size
            bias = config.output_dim is not None and config.bias
            self.head = nn.Linear(config.d_model, width, bias=bias)
        initialize(self, n_layers=config.n_layers)

    def forward(
        self,
        inputs: Tensor,
        attention_mask: Tensor | None = None,
        *,
        segment_ids: Tensor | None = None,
        cache: KVCache | None = None,
    ) -> Tensor:
        """Logits at each position.

        Args:
            inputs: token ids, int [B, T], or with `input_dim` features, float [B, T, input_dim].
            attention_mask: bool [B, T], True = a real position; None: all are.
            segment_ids: int [B, T]: several sequences packed in a row, numbered from 1; 0 is
                padding. Each sees only itself, and its positions start from 0.
            cache: keys and values of earlier tokens, from `new_cache`; `inputs` are the tokens
                after them.

        Returns:
            [B, T, vocab_size], or [B, T, output_dim] where that is set.

        Raises:
            ValueError: the inputs have the wrong shape or type, or are longer than `max_seq_len`.
        """
        return self.logits(
            self.features(inputs, attention_mask, segment_ids=segment_ids, cache=cache)
        )

    def features(
        self,
        inputs: Tensor,
        attention_mask: Tensor | None = None,
        *,
        segment_ids: Tensor | None = None,
        cache: KVCache | None = None,
    ) -> Tensor:
        """What the head reads: the last layer's output, normalised, [B, T, D]; see `forward`."""
        self._check(inputs, attention_mask, segment_ids, cache)
        batch, length = inputs.shape[:2]
        if cache is None:
            mask = make_mask(
                causal=self.config.causal, attention_mask=attention_mask, segment_ids=segment_ids
            )
            positions = make_positions(
                batch,
                length,
                attention_mask=attention_mask,
                segment_ids=segment_ids,
                device=inputs.device,
            )
        else:
            positions, mask = cache.extend(attention_mask, length)
        rotation = self.position(positions)
        x = self.dropout(self.embedding(inputs))  # [B, T] -> [B, T, D]
        for index, layer in enumerate(self.layers):
            x = layer(x, mask, rotation=rotation, cache=cache, layer=index)
        out: Tensor = self.final_norm(x)
        return out

    def logits(self, features: Tensor) -> Tensor:
        """The head: [..., D] -> [..., vocab_size or output_dim]."""
        if self.head is None:
            return F.linear(features, self.embedding.weight)
        out: Tensor = self.head(features)
        return out

    def new_cache(self, batch_size: int, capacity: int) -> KVCache:
        """An empty cache for `batch_size` rows of at most `capacity` tokens each.

        Raises:
            ConfigError: the model is not causal: its earlier outputs would change with later
                tokens.
        """
        if not self.config.causal:
            raise ConfigError(
                "TransformerConfig", ["causal must be true for cached decoding, not false"]
            )
        weight = next(self.parameters())
        return KVCache(
            n_layers=self.config.n_layers,
            batch_size=batch_size,
            capacity=capacity,
            kv_heads=self.config.kv_heads,
            head_dim=self.config.head_width,
            device=weight.device,
            dtype=weight.dtype,
        )

    def generate(
        self,
        input_ids: Tensor | Sequence[Sequence[int]],
        max_new_tokens: int = 50,
        *,
        temperature: float = 1.0,
        top_k: int | None = None,
        top_p: float | None = None,
        eos_id: int | None = None,
        seed: int | None = None,
    ) -> Tensor | list[list[int]]:
        """Continues prompts, token by token, with a key-value cache.

        Args:
            input_ids: prompts of one length, int [B, T], or a list of prompts of any lengths.
            max_new_tokens, temperature, top_k, top_p, eos_id, seed: see `GenerationConfig`.

        Returns:
            Prompts and continuations: for a tensor int [B, T + new], rows that ended early filled
            with `eos_id`; for a list, lists without padding and without `eos_id`.

        Raises:
            ValueError: an option is out of its limits, a prompt is empty, holds an id outside the
                vocabulary, or leaves no room for `max_new_tokens` within `max_seq_len`.
        """
        options = GenerationConfig(
            max_new_tokens=max_new_tokens,
            temperature=temperature,
            top_k=top_k,
            top_p=top_p,
            eos_id=eos_id,
            seed=seed,
        )
        if isinstance(input_ids, Tensor):
            return generate.generate(self, input_ids, options)
        return generate.generate_ragged(self, input_ids, options)

    def _check(
        self,
        inputs: Tensor,
        attention_mask: Tensor | None,
        segment_ids: Tensor | None,
        cache: KVCache | None,
    ) -> None:
        wanted = (
            "[B, T] token ids"
            if self.config.input_dim is None
            else f"[B, T, {self.config.input_dim}] floats"
        )
        shape = tuple(inputs.shape)
        if self.config.input_dim is None:
            fits = inputs.dim() == 2 and not (inputs.is_floating_point() or inputs.is_complex())
        else:
            fits = (
                inputs.dim() == 3
                and shape[2] == self.config.input_dim
                and inputs.is_floating_point()
            )
        if not fits:
            raise ValueError(f"inputs must be {wanted}, not {inputs.dtype} {list(shape)}")
        for name, given in (("attention_mask", attention_mask), ("segment_ids", segment_ids)):
            if given is not None and given.shape != shape[:2]:
                raise ValueError(
                    f"{name} must be {list(shape[:2])}, as the inputs are, not {list(given.shape)}"
                )
        if attention_mask is not None and attention_mask.dtype != torch.bool:
            raise ValueError(
                "attention_mask must be bool (True = a real position), "
                f"not {attention_mask.dtype}; use .bool()"
            )
        if cache is not None and segment_ids is not None:
            raise ValueError(
                "segment_ids and cache exclude each other: a cache row holds one sequence"
            )
        length = shape[1] + (cache.length if cache is not None else 0)
        if length > self.config.max_seq_len:
            raise ValueError(
                f"a sequence of {length} tokens is longer than "
                f"max_seq_len={self.config.max_seq_len}; shorten it, or build the model with a "
                "larger max_seq_len"
            )
