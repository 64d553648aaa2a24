"""Registry of components by kind and name, including those of plugins.

A config names a component, such as `norm="rmsnorm"`; the registry imports it. Built-in components
are listed here as `module:attribute`, as an installed package lists its own in `pyproject.toml`:

    [project.entry-points."miniformer.norm"]
    mynorm = "my_package.norms:MyNorm"

Nothing is imported until `get` is called, so configs can check names without importing torch. All
functions raise a ValueError for an unknown kind.
The interface of each kind is documented in the modules of its built-in components.
"""

from __future__ import annotations

import difflib
import importlib
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from typing import Any

from miniformer.utils.names import name_problem

_BUILTIN: dict[str, dict[str, str]] = {
    "activation": {  # elementwise function of a tensor
        "gelu": "miniformer.model.feed_forward:gelu",
        "gelu_tanh": "miniformer.model.feed_forward:gelu_tanh",
        "relu": "torch.nn.functional:relu",
        "silu": "torch.nn.functional:silu",
    },
    "gated_activation": {  # elementwise function of the gate
        "swiglu": "torch.nn.functional:silu",
        "geglu": "miniformer.model.feed_forward:gelu",
        "geglu_tanh": "miniformer.model.feed_forward:gelu_tanh",
        "reglu": "torch.nn.functional:relu",
    },
    "norm": {  # (dim, *, eps, bias) -> module
        "layernorm": "miniformer.model.norm:layernorm",
        "rmsnorm": "miniformer.model.norm:RMSNorm",
        "zero_centered_rmsnorm": "miniformer.model.norm:ZeroCenteredRMSNorm",
    },
    "position": {  # (config, *, causal) -> Position
        "rotary": "miniformer.model.position:RotaryPosition",
        "learned": "miniformer.model.position:LearnedPosition",
        "sinusoidal": "miniformer.model.position:SinusoidalPosition",
        "sinusoidal_fairseq": "miniformer.model.position:FairseqSinusoidalPosition",
        "alibi": "miniformer.model.position:ALiBiPosition",
        "t5_relative": "miniformer.model.position:RelativePosition",
        "none": "miniformer.model.position:Position",
    },
    "attention": {  # (config, *, window) -> module
        "standard": "miniformer.model.attention:MultiHeadAttention",
    },
    "feed_forward": {  # (config) -> module
        "standard": "miniformer.model.feed_forward:FeedForward",
    },
    "runtime": {  # (model, memory, options) -> Runtime, or None if it does not apply
        "native": "miniformer.runtime.native.decode_step:make_native_runtime",
        "cuda_graphs": "miniformer.runtime.cuda_graphs:make_cuda_graph_runtime",
    },
    "tokenizer": {  # (texts, vocab_size) -> tokenizers.Tokenizer
        "bpe": "miniformer.data.tokenizers.training:train_bpe",
        "unigram": "miniformer.data.tokenizers.training:train_unigram",
        "wordpiece": "miniformer.data.tokenizers.training:train_wordpiece",
        "byte": "miniformer.data.tokenizers.training:train_byte",
        "word": "miniformer.data.tokenizers.training:train_word",
        "char": "miniformer.data.tokenizers.training:train_char",
    },
    "task": {  # a subclass of Task
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
    "optimizer": {  # (model, *, lr, weight_decay, ...) -> torch optimizer
        "muon": "miniformer.training.optim.optimizers:muon",
        "adamw": "miniformer.training.optim.optimizers:adamw",
        "schedulefree": "miniformer.training.optim.optimizers:schedulefree",
    },
    "scheduler": {  # progress of the run in [0, 1] -> learning rate multiplier
        "cosine": "miniformer.training.optim.schedules:cosine",
        "onecycle": "miniformer.training.optim.schedules:onecycle",
        "linear": "miniformer.training.optim.schedules:linear",
        "wsd": "miniformer.training.optim.schedules:wsd",
        "none": "miniformer.training.optim.schedules:none",
    },
    "logger": {  # (run folder) -> Lightning logger
        "tensorboard": "miniformer.training.report.loggers:tensorboard",
        "csv": "miniformer.training.report.loggers:csv",
        "wandb": "miniformer.training.report.loggers:wandb",
        "mlflow": "miniformer.training.report.loggers:mlflow",
        "none": "miniformer.training.report.loggers:none",
    },
}
# Former names of built-in parts, by kind, each with the current one.
_FORMER_NAMES = {"position": {"relative": "t5_relative"}, "task": {"encoding": "embedding"}}
# One config field may take names of two kinds, which must then be disjoint.
_SHARED_NAMESPACES = {"activation": "gated_activation", "gated_activation": "activation"}
_registered: dict[str, dict[str, Any]] = {kind: {} for kind in _BUILTIN}


def kinds() -> list[str]:
    """Component kinds: `activation`, `norm`, `position`, ..."""
    return list(_BUILTIN)


def names(kind: str) -> list[str]:
    """Known names of `kind`: built in, registered in this process, or from a plugin."""
    _check_kind(kind)
    return [*_BUILTIN[kind], *_registered[kind], *_entry_points(kind)]


def builtin_names(kind: str) -> list[str]:
    """Built-in names of `kind`."""
    _check_kind(kind)
    return list(_BUILTIN[kind])


def current_name(kind: str, name: str) -> str:
    """The name that a former name of a built-in part has now; any other name as it is."""
    current = _FORMER_NAMES.get(kind, {}).get(name, name)
    return name if current == name or name in names(kind) else current


def register(kind: str, name: str, part: Any) -> None:
    """Registers `part` as `name` in this process; a package uses an entry point instead.

    Raises:
        ValueError: the name is taken, or is not a valid folder name (task names become folders).
    """
    _check_kind(kind)
    if (problem := name_problem(name)) is not None:
        raise ValueError(f"{kind} {name!r} cannot be registered: {problem}; choose another name")
    for namespace in filter(None, (kind, _SHARED_NAMESPACES.get(kind))):
        if name in names(namespace):
            raise ValueError(f"{namespace} {name!r} exists already; choose another name")
    _registered[kind][name] = part


def get(kind: str, name: str) -> Any:
    """Component of that name, imported on first use; a ValueError for an unknown name."""
    _check_kind(kind)
    name = current_name(kind, name)
    if name in _registered[kind]:
        return _registered[kind][name]
    if name in _BUILTIN[kind]:
        module, _, attribute = _BUILTIN[kind][name].partition(":")
        return getattr(importlib.import_module(module), attribute)
    if name in _entry_points(kind):
        return _entry_points(kind)[name].load()
    raise ValueError(unknown_name_message(kind, name, names(kind)))


def unknown_name_message(label: str, value: object, known: list[str]) -> str:
    """Message for an unknown name, with the closest and all known names."""
    closest = difflib.get_close_matches(str(value), known, n=1)
    hint = f" (did you mean {closest[0]!r}?)" if closest else ""
    return f"unknown {label} {value!r}{hint}; known: {', '.join(known)}"


def _check_kind(kind: str) -> None:
    if kind not in _BUILTIN:
        raise ValueError(f"no component kind {kind!r}; kinds: {', '.join(_BUILTIN)}")


@cache
def _entry_points(kind: str) -> dict[str, EntryPoint]:
    return {entry.name: entry for entry in entry_points(group=f"miniformer.{kind}")}
