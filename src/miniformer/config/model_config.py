"""TransformerConfig: the checked settings of a model, its size and its cost."""

from __future__ import annotations

from miniformer import registry
from miniformer.config import model_checks
from miniformer.config.errors import ConfigError
from miniformer.config.model_fields import ModelFields

MatrixShape = tuple[int, int, bool]  # inputs, outputs, has a bias


class TransformerConfig(ModelFields):
    """Shape and components of a Transformer; `ModelFields` describes the settings."""

    def cross_check(self) -> list[str]:
        """Problems between fields, each with its fix."""
        return model_checks.find_problems(self)

    def num_params(self, *, seq2seq: bool = False) -> int:
        """Number of parameters of the built model; a tied weight counts once.

        Args:
            seq2seq: whether the model is a Seq2SeqTransformer.
        """
        count = 0
        if seq2seq or self.input_type == "tokens":
            count = self.vocab_size * self.d_model
        if self.input_type == "features":
            count += _linear_params(self.input_dim or 0, self.d_model, self.bias)
        count += (self.token_types or 0) * self.d_model
        count += _stack_params(self, self.n_layers)
        if seq2seq:
            count += _stack_params(self, self.decoder_layers, cross=True)
            count += (self.source_vocab_size or 0) * self.d_model
        count += sum(_linear_params(*matrix) for matrix in _head_matrices(self))
        if self.tie_embeddings if seq2seq else self.is_head_tied:
            count -= self.d_model * self.vocab_size
        if self.ordered_outputs and self.output_dim is not None:
            count += self.output_dim - 1  # thresholds, besides that of the one score
        return count + (_norm_params(self) if self.head == "masked_lm" else 0)

    def flops_per_token(self, seq_len: int | None = None, *, seq2seq: bool = False) -> int:
        """FLOPs of a forward pass per token; training takes three times as many.

        Matrix products only: a multiply-add is two (Kaplan et al. 2020, PaLM). Attention counts
        every query-key pair that the mask allows.

        Args:
            seq_len: tokens in the sequence; None: `max_seq_len`.
            seq2seq: whether the model is a Seq2SeqTransformer: FLOPs per pair of a source and a
                target token, both sequences `seq_len` long.

        Raises:
            ConfigError: `seq_len` is below 1.
        """
        length = self.max_seq_len if seq_len is None else seq_len
        self._check_sizes([], seq_len=length)
        target = {"target_tokens": 1.0, "target_length": length} if seq2seq else {}
        return round(self.forward_flops(tokens=1.0, length=length, **target))

    def forward_flops(
        self,
        *,
        tokens: float,
        length: float,
        head_tokens: float | None = None,
        target_tokens: float = 0.0,
        target_length: float = 0.0,
    ) -> float:
        """FLOPs of the matrix products of a forward pass; a multiply-add is two operations.

        Attention counts every query-key pair that the mask allows in rows without padding.

        Args:
            tokens: input tokens; of an encoder-decoder model, source tokens.
            length: tokens per row.
            head_tokens: positions that the head reads; None: every token, or every target token.
            target_tokens: tokens that the decoder reads; 0: no decoder.
            target_length: target tokens per row.
        """
        count = tokens * _stack_multiply_adds(self, self.n_layers, length, causal=self.causal)
        count += tokens * (self.input_dim or 0) * self.d_model
        if target_tokens:
            layers = self.decoder_layers
            count += target_tokens * _stack_multiply_adds(self, layers, target_length, causal=True)
            # Cross-attention: q and o per target token, k and v per source token.
            q, k, v, o = _attention_matrices(self)
            pairs = 2 * length * self.n_heads * self.head_width
            count += layers * (
                target_tokens * (_multiply_adds(q, o) + pairs) + tokens * _multiply_adds(k, v)
            )
        if head_tokens is None:
            head_tokens = target_tokens or tokens
        return 2 * (count + head_tokens * _multiply_adds(*_head_matrices(self)))

    def cache_bytes(
        self,
        batch_size: int,
        seq_len: int,
        bytes_per_value: int = 4,
        *,
        kind: str = "full",
        source_len: int | None = None,
    ) -> int:
        """Bytes of the keys and values in a cache of `batch_size` x `seq_len` tokens.

        Args:
            batch_size: rows.
            seq_len: columns.
            bytes_per_value: 4 for float32, 2 for bfloat16; kind int8 has its own.
            kind: kind of cache: full, window or int8 (see `miniformer.model.cache.kv_cache`).
            source_len: source length of a Seq2SeqTransformer, whose cross-attention keys and values
                are cached too; None: a Transformer.

        Raises:
            ConfigError: a size is below 1, or the kind is unknown.
        """
        problems = []
        if kind not in (known := registry.builtin_names("cache")):
            problems.append(registry.unknown_name_message("kind of cache", kind, known))
        sizes = {"batch_size": batch_size, "seq_len": seq_len, "bytes_per_value": bytes_per_value}
        self._check_sizes(problems, **sizes, source_len=source_len)
        # int8: one byte per value and a float32 scale per head vector.
        vector = self.head_width + 4 if kind == "int8" else self.head_width * bytes_per_value
        layers = self.n_layers if source_len is None else self.decoder_layers
        columns = 0
        for layer in range(layers):
            window = self.layer_window(layer) if kind == "window" else None
            columns += min(window or seq_len, seq_len)
        cross = (source_len or 0) * layers * self.head_width * bytes_per_value
        return 2 * batch_size * self.kv_heads * (columns * vector + cross)

    def _check_sizes(self, problems: list[str], **sizes: int | None) -> None:
        """Raises a ConfigError for sizes below 1 and for other problems."""
        too_small = [
            f"{name} must be at least 1, not {value}"
            for name, value in sizes.items()
            if value is not None and not value >= 1
        ]
        if too_small or problems:
            raise ConfigError(type(self).__name__, too_small + problems)


def _linear_params(inputs: int, outputs: int, bias: bool) -> int:
    return inputs * outputs + (outputs if bias else 0)


def _norm_params(config: TransformerConfig, width: int | None = None) -> int:
    biased = config.norm == "layernorm" and config.has_norm_bias
    return (width or config.d_model) * (2 if biased else 1)


def _attention_matrices(config: TransformerConfig) -> list[MatrixShape]:
    """Linear layers of one attention: query, key, value, output."""
    width, heads = config.d_model, config.n_heads * config.head_width
    kv, bias = config.kv_heads * config.head_width, config.has_qkv_bias
    out = (heads, width, config.has_attention_bias)
    return [(width, heads, bias), (width, kv, bias), (width, kv, bias), out]


def _feed_forward_matrices(config: TransformerConfig) -> list[MatrixShape]:
    bias = config.has_feed_forward_bias
    up = [(config.d_model, config.ff_width, bias)] * (2 if config.is_gated else 1)
    return [*up, (config.ff_width, config.d_model, bias)]


def _attention_params(config: TransformerConfig, *, cross: bool = False) -> int:
    count = sum(_linear_params(*matrix) for matrix in _attention_matrices(config))
    if config.qk_norm == "head":
        count += 2 * _norm_params(config, config.head_width)
    elif config.qk_norm == "projection":
        count += _norm_params(config, config.n_heads * config.head_width)
        count += _norm_params(config, config.kv_heads * config.head_width)
    return count + (config.n_heads if config.attention_sinks and not cross else 0)


def _stack_params(config: TransformerConfig, layers: int, *, cross: bool = False) -> int:
    """Parameters of the layers, the position embedding and the norms around the layers."""
    sublayers = 3 if cross else 2
    norms = (
        sublayers * (2 if config.effective_norm_placement == "both" else 1) * _norm_params(config)
    )
    layer = _attention_params(config) + sum(
        _linear_params(*matrix) for matrix in _feed_forward_matrices(config)
    )
    if cross:
        layer += _attention_params(config, cross=True)
    position = {
        "learned": config.max_seq_len * config.d_model,
        "t5_relative": config.relative_buckets * config.n_heads,
    }.get(config.position, 0)
    outer_norms = config.embedding_norm + (config.effective_norm_placement != "post")
    count = layers * (layer + norms) + position + outer_norms * _norm_params(config)
    return count if config.first_attention_norm else count - _norm_params(config)


def _head_matrices(config: TransformerConfig) -> list[MatrixShape]:
    """Linear layers of the head; the last one maps to the outputs."""
    width = 1 if config.ordered_outputs else config.output_dim or config.vocab_size
    last = (config.d_model, width, config.has_head_bias)
    dense = (config.d_model, config.d_model, config.bias)
    return [last] if config.head == "linear" else [dense, last]


def _mean_visible_keys(
    config: TransformerConfig, layer: int, seq_len: float, *, causal: bool
) -> float:
    """Visible keys of a query, averaged over the sequence."""
    window = config.layer_window(layer)
    if causal:
        reach = min(window or seq_len, seq_len)
        return reach - reach * (reach - 1) / (2 * seq_len)
    side = seq_len if window is None else min(window // 2, seq_len - 1)
    if side >= seq_len:
        return seq_len
    return 1 + 2 * side - side * (side + 1) / seq_len


def _multiply_adds(*matrices: MatrixShape) -> int:
    """Multiply-adds of linear layers per token."""
    return sum(inputs * outputs for inputs, outputs, _ in matrices)


def _stack_multiply_adds(
    config: TransformerConfig, layers: int, length: float, *, causal: bool
) -> float:
    """Multiply-adds of a stack per token, without cross-attention."""
    matrices = _multiply_adds(*_attention_matrices(config), *_feed_forward_matrices(config))
    keys = sum(_mean_visible_keys(config, layer, length, causal=causal) for layer in range(layers))
    return layers * matrices + 2 * keys * config.n_heads * config.head_width
