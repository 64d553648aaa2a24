"""Kinds of components: the interface of each, and its built-in components.

A component is listed as `module:attribute`, or as `module`, and imported on first use. Options of a
component are those that a user gives in addition to its name.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from miniformer.registry.commands import CHECKS, COMMANDS


class Kind(NamedTuple):
    """A kind of components.

    Args:
        interface: the call of a component and its result, or its methods.
        builtin: import paths of the built-in components, by name.
        summaries: a line about each, where it is not that of the docstring.
        former_names: former names of built-in components, each with the current one.
        disjoint: kind whose names must differ, since one field of a config takes names of both.
    """

    interface: str
    builtin: Mapping[str, str] = {}
    summaries: Mapping[str, str] = {}
    former_names: Mapping[str, str] = {}
    disjoint: str | None = None


KINDS: dict[str, Kind] = {
    # Parts of a model.
    "activation": Kind(
        "(x) -> tensor of the shape of x",
        {
            "gelu": "miniformer.model.feed_forward:gelu",
            "gelu_tanh": "miniformer.model.feed_forward:gelu_tanh",
            "relu": "torch.nn.functional:relu",
            "silu": "torch.nn.functional:silu",
        },
        disjoint="gated_activation",
    ),
    "gated_activation": Kind(
        "(gate) -> tensor of the shape of gate",
        {
            "swiglu": "torch.nn.functional:silu",
            "geglu": "miniformer.model.feed_forward:gelu",
            "geglu_tanh": "miniformer.model.feed_forward:gelu_tanh",
            "reglu": "torch.nn.functional:relu",
        },
        disjoint="activation",
    ),
    "norm": Kind(
        "(dim, *, eps, bias) -> module",
        {
            "layernorm": "miniformer.model.norm:layernorm",
            "rmsnorm": "miniformer.model.norm:RMSNorm",
            "zero_centered_rmsnorm": "miniformer.model.norm:ZeroCenteredRMSNorm",
        },
    ),
    "position": Kind(
        "(config, *, causal) -> Position",
        {
            "rotary": "miniformer.model.position:RotaryPosition",
            "learned": "miniformer.model.position:LearnedPosition",
            "sinusoidal": "miniformer.model.position:SinusoidalPosition",
            "sinusoidal_fairseq": "miniformer.model.position:FairseqSinusoidalPosition",
            "alibi": "miniformer.model.position:ALiBiPosition",
            "t5_relative": "miniformer.model.position:RelativePosition",
            "none": "miniformer.model.position:Position",
        },
        former_names={"relative": "t5_relative"},
    ),
    "input": Kind(
        "(config, **options) -> Input, a module of inputs [B, T, ...] -> [B, N, D]",
        {
            "tokens": "miniformer.model.embedding:make_token_embedding",
            "features": "miniformer.model.embedding:make_feature_projection",
        },
    ),
    "attention": Kind(
        "(config, *, window) -> module",
        {"standard": "miniformer.model.attention:MultiHeadAttention"},
    ),
    "feed_forward": Kind(
        "(config) -> module",
        {"standard": "miniformer.model.feed_forward:FeedForward"},
    ),
    "attention_backend": Kind(
        "(q, k, v, mask, scores) -> [B, H, T, E]",
        {
            "plain": "miniformer.model.attention_backends.functions:plain",
            "sdpa": "miniformer.model.attention_backends.functions:sdpa",
            "flex": "miniformer.model.attention_backends.functions:flex",
            "varlen": "miniformer.model.attention_backends.functions:varlen",
            "matmul": "miniformer.model.attention_backends.matmul:matmul",
        },
    ),
    "model": Kind(
        "(config) -> module",
        {
            "encoder": "miniformer.model.transformer:Transformer",
            "decoder": "miniformer.model.transformer:Transformer",
            "seq2seq": "miniformer.model.seq2seq:Seq2SeqTransformer",
        },
    ),
    "transform": Kind(
        "(model, **options) -> model",
        {
            "adapter": "miniformer.adapters.api:adapter",
            "quantize_aware": "miniformer.compression.aware:quantize_aware",
            "quantized_base": "miniformer.adapters.base.quantized:quantized_base",
            "sparse_attention": (
                "miniformer.compression.sparse_attention.attention:sparse_attention"
            ),
        },
    ),
    "adapter_format": Kind(
        "module with check(method, options), load(directory, adapter), "
        "write(directory, base, out), export(directory, out, family), "
        "add_directory(pipeline, adapter, name) and "
        "predict(pipeline, inputs, names, **options)",
        {"peft": "miniformer.adapters.files"},
    ),
    "weight_storage": Kind(
        "encode(weight, **options) -> tensors by name, and decode, its inverse",
        {
            "integers": "miniformer.checkpoint.stored_types:Integers",
            "short_float": "miniformer.checkpoint.stored_types:ShortFloat",
            "short_integers": "miniformer.checkpoint.stored_types:ShortIntegers",
        },
    ),
    # Decoding.
    "cache": Kind(
        "(spec, **options) -> Cache",
        {
            "window": "miniformer.model.cache.kv_cache:WindowCache",
            "full": "miniformer.model.cache.kv_cache:KVCache",
            "int8": "miniformer.model.cache.kv_cache:Int8Cache",
        },
    ),
    "runtime": Kind(
        "(model, memory, options) -> Runtime, or None if it does not apply",
        {
            "native": "miniformer.runtime.native.decode_step:make_native_runtime",
            "cuda_graphs": "miniformer.runtime.cuda_graphs:make_cuda_graph_runtime",
        },
    ),
    "inference_model": Kind(
        "(model, weight_dtype) -> copy for inference, or None if it does not apply",
        {"rounded": "miniformer.runtime.rounded.model:rounded_model"},
    ),
    "logits_processor": Kind("(**options) -> function of tokens [B, T] and logits [B, V]"),
    # Data and tasks.
    "tokenizer": Kind(
        "(texts, vocab_size) -> tokenizers.Tokenizer",
        {
            "bpe": "miniformer.data.tokenizers.training:train_bpe",
            "unigram": "miniformer.data.tokenizers.training:train_unigram",
            "wordpiece": "miniformer.data.tokenizers.training:train_wordpiece",
            "byte": "miniformer.data.tokenizers.training:train_byte",
            "word": "miniformer.data.tokenizers.training:train_word",
            "char": "miniformer.data.tokenizers.training:train_char",
        },
    ),
    "task": Kind(
        "subclass of Task",
        {
            "language_modeling": "miniformer.tasks.language_modeling:LanguageModeling",
            "classification": "miniformer.tasks.classification:Classification",
            "multilabel_classification": (
                "miniformer.tasks.multilabel_classification:MultiLabelClassification"
            ),
            "token_classification": "miniformer.tasks.token_classification:TokenClassification",
            "ordinal_regression": "miniformer.tasks.ordinal_regression:OrdinalRegression",
            "regression": "miniformer.tasks.regression:Regression",
            "seq2seq": "miniformer.tasks.seq2seq:Seq2Seq",
            "masked_lm": "miniformer.tasks.masked_lm:MaskedLM",
            "embedding": "miniformer.tasks.embedding:EmbeddingTask",
        },
        former_names={"encoding": "embedding"},
    ),
    # Training.
    "optimizer": Kind(
        "(model, *, lr, weight_decay, ...) -> torch optimizer",
        {
            "muon": "miniformer.training.optim.optimizers:muon",
            "adamw": "miniformer.training.optim.optimizers:adamw",
            "schedulefree": "miniformer.training.optim.optimizers:schedulefree",
        },
    ),
    "scheduler": Kind(
        "progress of the run in [0, 1] -> learning rate multiplier",
        {
            "cosine": "miniformer.training.optim.schedules:cosine",
            "onecycle": "miniformer.training.optim.schedules:onecycle",
            "linear": "miniformer.training.optim.schedules:linear",
            "wsd": "miniformer.training.optim.schedules:wsd",
            "none": "miniformer.training.optim.schedules:none",
        },
    ),
    "loss_term": Kind(
        "(model, batch, **options) -> LossTerm, or a class built with the options",
        {"distillation": "miniformer.compression.distillation:Distillation"},
    ),
    "logger": Kind(
        "(run folder) -> Lightning logger",
        {
            "tensorboard": "miniformer.training.report.loggers:tensorboard",
            "csv": "miniformer.training.report.loggers:csv",
            "wandb": "miniformer.training.report.loggers:wandb",
            "mlflow": "miniformer.training.report.loggers:mlflow",
            "none": "miniformer.training.report.loggers:none",
        },
    ),
    "callback": Kind(
        "(**options) -> lightning.Callback",
        {
            "sparse_training": "miniformer.compression.sparse_training.callback:SparseTraining",
            "weight_masks": "miniformer.compression.pruning.weight_masks:WeightMasks",
        },
    ),
    "batch_order": Kind("(**options) -> BatchOrder"),
    # Tools.
    "command": Kind(
        "module with add_arguments(parser) and run(values) -> exit code or None",
        {name: path for name, (path, _) in COMMANDS.items()},
        {name: line for name, (_, line) in COMMANDS.items()},
    ),
    "check": Kind(
        "(model, directory, pipeline or tokenizer) -> problems and notes, a line each",
        {name: path for name, (path, _) in CHECKS.items()},
        {name: line for name, (_, line) in CHECKS.items()},
    ),
    "exporter": Kind(
        "(directory, out, **options) -> text to print, or None",
        {
            "hf": "miniformer.exporters.hf:export_hf",
            "onnx": "miniformer.exporters.onnx.write:export_onnx",
            "pt2": "miniformer.exporters.compiled.destinations:export_pt2",
            "aoti": "miniformer.exporters.compiled.destinations:export_aoti",
            "openvino": "miniformer.exporters.compiled.destinations:export_openvino",
            "gguf": "miniformer.exporters.gguf:export_gguf",
            "peft": "miniformer.exporters.peft:export_peft",
            "executorch": "miniformer.exporters.compiled.destinations:export_executorch",
            "tvm": "miniformer.exporters.compiled.destinations:export_tvm",
        },
    ),
}
