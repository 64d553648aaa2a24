"""Architectures of llama.cpp, and the models that each can express.

An architecture takes the models of a Hugging Face family, with fewer values of some fields.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

from miniformer.config import TransformerConfig, UserError
from miniformer.interop.gguf import names
from miniformer.interop.hf.configs import Family, effective_fields, write_config
from miniformer.interop.hf.families import encoders, gpt, llama
from miniformer.interop.hf.families import seq2seq as t5
from miniformer.interop.hf.weights import IDENTITY, NameTable, Rule, make_rules

POOLINGS = {"mean": 1, "first": 2, "last": 3}  # numbers of llama.cpp
_GELU = ("gelu", "gelu_tanh")
# Layer counts of Gemma's 27B models, for which llama.cpp has another scale of attention.
_LARGE_GEMMA_LAYERS = {"gemma2": 46, "gemma3": 62}


@dataclasses.dataclass(frozen=True)
class Architecture:
    """An architecture of llama.cpp.

    Args:
        name: `general.architecture` of a file.
        family: Hugging Face family whose models it takes.
        layer: names of a layer's weights.
        stem: names of the other weights.
        activations: supported activations.
        scalings: supported types of rotary scaling.
        adjacent: true if rotated pairs are adjacent elements of a head.
        windows: true if layers may have a sliding window.
        free_head_width: true if the heads together may be wider or narrower than the model.
        separate_head: true if a tied head is written a second time.
        biases: true if every linear layer has a bias in the file.
        encoder: true for an encoder, which goes out without its head.
    """

    name: str
    family: Family
    layer: NameTable = dataclasses.field(default_factory=lambda: names.GATED_LAYER)
    stem: NameTable = dataclasses.field(default_factory=lambda: names.STEM)
    activations: tuple[str, ...] = ("swiglu",)
    scalings: tuple[str, ...] = ("linear", "yarn")
    adjacent: bool = False
    windows: bool = False
    free_head_width: bool = False
    separate_head: bool = False
    biases: bool = False
    encoder: bool = False

    @property
    def seq2seq(self) -> bool:
        """True if it has an encoder and a decoder."""
        return self.family.seq2seq

    @property
    def classes(self) -> tuple[str, ...]:
        """Classes of the family that it takes: language models, and encoders without a head."""
        known = [name for name, item in self.family.model_classes.items() if not item.is_classifier]
        return tuple(known if self.encoder else known[:1])

    def rules(self, config: TransformerConfig) -> list[Rule]:
        """Rules of all weights."""
        if self.seq2seq:
            return make_rules(names.T5_NAMES)
        rules = make_rules(self.stem) + make_rules(self.layer, "layers.{}.", "blk.{}.")
        return [self._adapt(config, rule) for rule in rules]

    def _adapt(self, config: TransformerConfig, rule: Rule) -> Rule:
        if rule.layout is not IDENTITY:
            return rule
        if self.adjacent and rule.hf_name.endswith(("attn_q", "attn_k")):
            return dataclasses.replace(rule, layout=names.adjacent_pairs(config.head_width))
        if config.norm == "zero_centered_rmsnorm" and rule.hf_name.endswith("norm"):
            return dataclasses.replace(rule, layout=names.PLUS_ONE)
        return rule

    def problems(self, config: TransformerConfig) -> Iterator[str]:
        """Fields that the family supports and the architecture does not, each with the limit."""
        if config.activation not in self.activations:
            known = " or ".join(self.activations)
            yield f"activation={config.activation!r} (only {known})"
        scaling = config.rotary_scaling
        if scaling is not None and scaling["type"] not in self.scalings:
            known = " or ".join(self.scalings) or "none"
            yield f"rotary_scaling of type {scaling['type']!r} (only {known})"
        width = config.n_heads * config.head_width
        if width != config.d_model and not self.free_head_width:
            yield f"head_dim={config.head_width} (only d_model / n_heads)"
        windows = {config.layer_window(layer) for layer in range(config.n_layers)} - {None}
        if not self.windows and any(size < config.max_seq_len for size in windows if size):
            yield (
                f"sliding_window={config.sliding_window} (none below "
                f"max_seq_len={config.max_seq_len})"
            )
        biased = config.has_qkv_bias or config.has_attention_bias
        if biased and self.family.preset in ("qwen3", "olmo2", "gemma", "gemma2", "gemma3"):
            yield "attention_bias=True (only False)"
        if self.encoder and config.pooling not in POOLINGS:
            yield f"pooling={config.pooling!r} (only {', '.join(POOLINGS)})"
        yield from self._gemma_problems(config)
        if self.seq2seq and config.relative_max_distance != 128:
            yield f"relative_max_distance={config.relative_max_distance} (only 128)"
        if self.seq2seq and config.decoder_layers > config.n_layers:
            yield f"n_decoder_layers={config.decoder_layers} (at most n_layers={config.n_layers})"
        if self.name == "modern-bert" and (config.has_norm_bias or config.bias):
            yield "bias or norm_bias=True (only False)"

    def _gemma_problems(self, config: TransformerConfig) -> Iterator[str]:
        if self.name.startswith("gemma") and not config.tie_embeddings and self.name != "gemma3":
            yield "tie_embeddings=False (only True)"
        if self.name == "gemma2":
            for field in ("logit_softcap", "final_softcap"):
                if getattr(config, field) is None:
                    yield f"{field}=None (only a number)"
            if config.window_pattern is None and config.sliding_window is None:
                yield "sliding_window=None (only a number)"
        if self.name in _LARGE_GEMMA_LAYERS:
            default = config.head_width**-0.5
            scale = self.large_scale(config.n_layers, config.d_model, config.n_heads) or default
            if abs((config.attention_scale or default) / scale - 1) > 1e-6:
                yield f"attention_scale={config.attention_scale} (only {scale:.6g})"

    def large_scale(self, n_layers: int, d_model: int, n_heads: int) -> float | None:
        """The scale of the attention of Gemma's 27B models; None: 1 / sqrt(head_dim)."""
        is_large = n_layers == _LARGE_GEMMA_LAYERS.get(self.name)
        return float((d_model // n_heads) ** -0.5) if is_large else None


_GEMMA: dict[str, Any] = {
    "activations": ("geglu_tanh",),
    "scalings": ("linear",),
    "free_head_width": True,
}
_LLAMA: dict[str, Any] = {
    "scalings": ("linear", "yarn", "llama3", "longrope"),
    "adjacent": True,
    "free_head_width": True,
}
_BERT: dict[str, Any] = {
    "layer": names.POST_NORM_LAYER,
    "stem": names.ENCODER_STEM,
    "activations": _GELU,
    "encoder": True,
}

# In the order in which an export tries them.
ARCHITECTURES: tuple[Architecture, ...] = (
    Architecture("llama", llama.LLAMA, **_LLAMA),
    Architecture("gpt2", gpt.GPT2, names.STACKED_LAYER, activations=_GELU),
    Architecture(
        "gptneox",
        gpt.GPT_NEOX,
        names.STACKED_LAYER,
        activations=_GELU,
        separate_head=True,
        biases=True,
    ),
    Architecture("llama", llama.MISTRAL, **_LLAMA),
    Architecture("qwen2", llama.QWEN2),
    Architecture("qwen3", llama.QWEN3, free_head_width=True),
    Architecture("olmo2", llama.OLMO2, separate_head=True),
    Architecture("gemma", llama.GEMMA, **_GEMMA),
    Architecture("gemma2", llama.GEMMA2, **_GEMMA, windows=True),
    Architecture("gemma3", llama.GEMMA3, **_GEMMA, windows=True),
    Architecture(
        "phi3",
        llama.PHI3,
        names.STACKED_GATED_LAYER,
        scalings=("linear", "yarn", "longrope"),
    ),
    *(
        Architecture("bert", family, **_BERT)
        for family in (encoders.BERT, encoders.ROBERTA, encoders.DISTILBERT)
    ),
    Architecture(
        "modern-bert",
        encoders.MODERNBERT,
        names.STACKED_GATED_LAYER,
        stem=names.ENCODER_STEM,
        activations=("geglu",),
        scalings=(),
        windows=True,
        encoder=True,
    ),
    Architecture("t5", t5.T5, activations=("relu",), free_head_width=True),
    Architecture("t5", t5.T5_V1_1, activations=("geglu_tanh",), free_head_width=True),
)


def select_architecture(
    config: TransformerConfig, *, seq2seq: bool, model_type: str | None = None
) -> Architecture:
    """The architecture of a model.

    Args:
        config: of the model.
        seq2seq: true for an encoder-decoder model.
        model_type: Hugging Face family that is tried first.

    Raises:
        UserError: none fits; the message names the nearest and the fields that differ.
    """
    if config.output_dim is not None:
        raise UserError(
            f"output_dim={config.output_dim}: GGUF files hold language models and encoders; a "
            "classifier or regressor goes out with --to onnx"
        )
    if config.input_type != "tokens":
        raise UserError(f"input {config.input_type!r}: llama.cpp reads tokens only")
    nearest: tuple[list[str], Architecture] | None = None
    for item in sorted(ARCHITECTURES, key=lambda item: item.family.model_type != model_type):
        if item.seq2seq != seq2seq:
            continue
        for name in item.classes:
            problems = [*_family_problems(item.family, name, config), *item.problems(config)]
            if not problems:
                return item
            if nearest is None or len(problems) < len(nearest[0]):
                nearest = problems, item
    assert nearest is not None
    problems, item = nearest
    raise UserError(
        f"llama.cpp has no architecture for this model; the nearest is {item.name} "
        f"({next(iter(item.family.model_classes))}), which does not support {', '.join(problems)}"
    )


def _family_problems(family: Family, name: str, config: TransformerConfig) -> list[str]:
    _, blocked = write_config(family, name, config)
    values = effective_fields(config) | {
        field: value for field, value in config.to_dict().items() if value is not None
    }
    return [f"{field}={values[field]!r}" if field in values else field for field in blocked]
