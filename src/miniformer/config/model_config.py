"""TransformerConfig: the checked settings of a model, its size and its cost."""

from __future__ import annotations

from miniformer import registry
from miniformer.config import estimates, model_checks
from miniformer.config.errors import ConfigError
from miniformer.config.model_fields import ModelFields

CACHE_KINDS = ("window", "full", "int8")  # see `miniformer.model.cache.kv_cache`


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
        return estimates.num_params(self, seq2seq=seq2seq)

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
        return round(estimates.forward_flops(self, tokens=1.0, length=length, **target))

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
        if kind not in CACHE_KINDS:
            problems.append(registry.unknown_name_message("kind of cache", kind, list(CACHE_KINDS)))
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
