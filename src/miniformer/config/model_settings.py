"""Model of a run and its initial weights: a part of `TrainConfig`."""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar

from miniformer.config.size_presets import SIZE_PRESETS
from miniformer.config.strict import StrictConfig, option

ADAPTERS = ("lora", "dora", "ia3", "bottleneck", "bitfit")


@dataclasses.dataclass(frozen=True)
class ModelSettings(StrictConfig):
    """Model and its initial weights.

    Args:
        model: decoder: causal Transformer; encoder: bidirectional Transformer (causal for
            language_modeling); seq2seq: encoder-decoder; null: depends on the task.
        model_config: fields of TransformerConfig. Those that follow from task, data and tokenizer,
            such as causal, output_dim and vocab_size, can be left out.
        model_size: default shape: tiny (2 layers, d_model 64), small (2, 128), medium (3, 192) or
            base (4, 256); null: depends on the number of training tokens.
        init_from: model directory to initialize from, such as one made by `miniformer import`: its
            config, weights and tokenizer; null: random weights.
        pretrain: settings of a masked_lm run on the training texts that precedes this run, such as
            {"max_epochs": 40}; for classification and regression of texts; null: no pretraining.
        wide_head: on: a linear model of n-grams or of features of a series in addition to the
            Transformer, fitted before training, whose outputs are added in evaluation (data in
            memory); off; auto: on for data of up to 5M tokens or vectors with validation data,
            without init_from and pretrain.
        transforms: transforms of the built model, such as [{"type": "lora", "rank": 8}] of a
            package that has it; with init_from, in addition to those of its model.
        adapter: method that trains few weights of a frozen model, with init_from: lora, dora, ia3,
            bottleneck or bitfit; see docs/finetuning.md. The run writes an adapter directory, too.
        adapter_config: options of the adapter, such as {"r": 8, "targets": "all-linear"}.
        base_weights: int8 or int4: integers in place of the matrices of the adapter's base, with a
            scale for each 32 weights of a row (QLoRA); null: as they are.
        quantize_aware: int8 or int4: trains the weights that `miniformer quantize` stores in this
            type, see docs/compression.md; null: as they are.
    """

    heading: ClassVar[str] = "model"

    model: str | None = option(None, choices=("encoder", "decoder", "seq2seq"))
    model_config: dict[str, Any] = option({})
    model_size: str | None = option(None, choices=tuple(SIZE_PRESETS))
    init_from: str | None = option(None)
    pretrain: dict[str, Any] | None = option(None)
    wide_head: str = option("auto", choices=("auto", "on", "off"))
    transforms: list[str | dict[str, Any]] = option([], kind="transform")
    adapter: str | None = option(None, choices=ADAPTERS)
    adapter_config: dict[str, Any] = option({})
    base_weights: str | None = option(None, choices=("int8", "int4"))
    quantize_aware: str | None = option(None, choices=("int8", "int4"))

    def all_transforms(self) -> list[str | dict[str, Any]]:
        """Transforms of the run, the last of which is its adapter or its rounding."""
        if self.quantize_aware is not None:
            rounding = {"type": "quantize_aware", "to": self.quantize_aware}
            # A base that was trained so has it already.
            return [*self.transforms, *([] if rounding in self.transforms else [rounding])]
        if self.adapter is None:
            return self.transforms
        own = {"type": "adapter", "method": self.adapter, **self.adapter_config}
        quantized: list[str | dict[str, Any]] = []
        if self.base_weights is not None:
            bits = int(self.base_weights.removeprefix("int"))
            quantized.append({"type": "quantized_base", "bits": bits})
        return [*self.transforms, *quantized, own]

    def cross_check(self) -> list[str]:
        problems = super().cross_check()
        if self.model == "decoder" and self.model_config.get("causal") is False:
            problems.append(
                "model=decoder is causal; leave causal out of model_config, or set model=encoder"
            )
        if self.model_size is not None and self.init_from is not None:
            problems.append(
                "model_size has no effect with init_from, which sets the shape; leave it out"
            )
        if self.pretrain is not None and self.init_from is not None:
            problems.append(
                "pretrain and init_from both set initial weights; leave one of them out"
            )
        if self.adapter is None and self.adapter_config:
            problems.append(f"adapter_config needs adapter; set one of {', '.join(ADAPTERS)}")
        if self.adapter is None and self.base_weights is not None:
            problems.append("base_weights needs adapter, since the base is frozen")
        if self.adapter is not None and self.init_from is None:
            problems.append("adapter needs init_from, the model directory of its base")
        if self.quantize_aware is not None and self.adapter is not None:
            problems.append(
                "quantize_aware trains all weights and adapter a few; leave one out (base_weights "
                "is for a base of integers)"
            )
        if self.pretrain is not None and self.quantize_aware is not None:
            problems.append(
                "pretrain and quantize_aware exclude each other: pretrain in another run, then set "
                "init_from"
            )
        if self.pretrain is not None and self.transforms:
            problems.append(
                "pretrain and transforms exclude each other: pretrain in a run of its own, then "
                "transform its model with init_from"
            )
        return problems
