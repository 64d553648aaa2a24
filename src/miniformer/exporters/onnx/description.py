"""`export.json`: what the runner needs in addition to the graphs.

input        special tokens and limits of inputs, statistics of vectors
output       kind of the answers; classes, or mean and standard deviation of values
generation   defaults of decoding options
"""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import numpy as np

from miniformer import __version__
from miniformer.config import GenerationConfig
from miniformer.data.tokenizers.tokenizer import SpecialTokenTemplate, Tokenizer
from miniformer.exporters.onnx.runner.decoding import OPTIONS
from miniformer.exporters.source import Source
from miniformer.tasks.base import Task
from miniformer.tasks.common.sequence_input import InputTask
from miniformer.tasks.language_modeling import LanguageModeling
from miniformer.tasks.masked_lm import MaskedLM, mask_token_id
from miniformer.tasks.multilabel_classification import MultiLabelClassification
from miniformer.tasks.regression import Regression
from miniformer.tasks.seq2seq import Seq2Seq

FORMAT = 1
# Commands of the runner by task, for the tasks of this package.
_COMMANDS = {
    "language_modeling": "generate",
    "seq2seq": "translate",
    "classification": "classify",
    "ordinal_regression": "classify",
    "multilabel_classification": "classify",
    "regression": "regress",
    "embedding": "embed",
    "masked_lm": "fill",
}
_OUTPUT_KINDS = {
    "classification": "label",
    "ordinal_regression": "ordered_label",
    "multilabel_classification": "labels",
    "regression": "values",
    "masked_lm": "fills",
}
# Fields of `GenerationConfig` about how texts are computed, not which.
_RUNTIME_FIELDS = ("weight_dtype", "cache_kind", "cuda_graph")


def describe(source: Source, files: dict[str, str], weights: str) -> dict[str, Any]:
    """The content of `export.json`.

    Args:
        source: the model.
        files: graphs by part: `model`, or `decoder`, or `encoder` and `decoder`.
        weights: type of the stored weights.
    """
    config, task, tokenizer = source.config, source.task, source.tokenizer
    return {
        "format": FORMAT,
        "miniformer": __version__,
        "command": command_of(source, files),
        "files": files,
        "weights": weights,
        "max_seq_len": config.max_seq_len,
        "vocab_size": config.vocab_size,
        "layers": config.n_layers,
        "kv_heads": config.kv_heads,
        "head_width": config.head_width,
        "task": None if task is None else task.settings(),
        "tokenizer": None if tokenizer is None else _describe_tokenizer(tokenizer),
        "input": _describe_input(source),
        "start": _start_tokens(source) if "encoder" in files else None,
        "output": _describe_output(task),
        "generation": _describe_generation(source.generation),
    }


def command_of(source: Source, files: dict[str, str]) -> str | None:
    """Command of the runner; None: it has none for the model.

    A model without a task, or of a task that a user has written, has graphs only.
    """
    if source.task is None:
        return "generate" if files.keys() == {"decoder"} else None
    is_own = type(source.task).__module__.startswith("miniformer.tasks.")
    return _COMMANDS.get(source.task.name) if is_own else None


def _describe_tokenizer(tokenizer: Tokenizer) -> dict[str, Any]:
    """Special tokens, and properties of the decoder that matter for streaming."""
    decoder = json.dumps(json.loads(tokenizer.backend.to_str())["decoder"])
    return {
        "bos_id": tokenizer.bos_id,
        "eos_id": tokenizer.eos_id,
        "joins_bytes": "ByteFallback" in decoder,
        "joins_words": tokenizer.has_contextual_decoding,
    }


def _describe_input(source: Source) -> dict[str, Any]:
    """Encoding of inputs; see `Task.encode` of the tasks."""
    task, tokenizer, max_length = source.task, source.tokenizer, source.config.max_seq_len
    frame = SpecialTokenTemplate([], [], [], 0, 0)
    settings: dict[str, Any] = {"kind": "text", "if_empty": [], "keeps_end": False}
    settings |= {"marks_shared": False, "can_truncate": True, "series": None, "mask_id": None}
    statistics: Any = None  # a task with those of features
    if isinstance(task, LanguageModeling) and tokenizer is not None:
        settings |= {"keeps_end": True, "if_empty": [tokenizer.bos_id]}
        frame = frame._replace(prefix=[tokenizer.bos_id] if task.prepend_bos else [])
    elif isinstance(task, Seq2Seq) and tokenizer is not None:
        statistics = task
        max_length = min(task.max_source_len or max_length, max_length)
        if task.required_input_dim() is None:
            frame = tokenizer.source_tokenizer.sequence_template
        else:
            settings["kind"] = "features"
            max_length = min(task.max_input_len or max_length, max_length)
    elif isinstance(task, InputTask):
        statistics = task
        settings |= {"kind": task.resolved_input_kind(), "marks_shared": task.shared_token_types}
        settings["can_truncate"] = task.can_truncate()
        max_length = task.max_input_len or max_length
        frame = frame if tokenizer is None else tokenizer.input_template
        if isinstance(task, Regression) and task.is_series():
            settings["series"] = {"feature": task.target_delta_of, "epsilon": task.scale_epsilon}
        if isinstance(task, MaskedLM) and tokenizer is not None:
            settings |= {"kind": "text", "mask_id": mask_token_id(tokenizer)}
            max_length = source.config.max_seq_len
    return {
        **settings,
        "max_length": max_length,
        "prefix": frame.prefix,
        "separator": frame.separator,
        "suffix": frame.suffix,
        "separator_type": frame.separator_type_id,
        "second_type": frame.second_type_id,
        "width": source.config.input_dim,
        "means": getattr(statistics, "feature_means", None),
        "stds": getattr(statistics, "feature_stds", None),
    }


def _start_tokens(source: Source) -> list[int] | None:
    """First tokens of targets; None: the model has no tokenizer."""
    task, tokenizer = source.task, source.tokenizer
    if tokenizer is None or task is None:
        return None
    if isinstance(task, Seq2Seq):
        return [task.decoder_start_token_id(tokenizer)]
    return [tokenizer.eos_id]


def _describe_output(task: Task | None) -> dict[str, Any]:
    """Meaning of the outputs; see `format_outputs` of the tasks."""
    name = "" if task is None else task.name
    settings: dict[str, Any] = {"kind": _OUTPUT_KINDS.get(name, "vector")}
    settings["labels"] = getattr(task, "classes", None)
    if isinstance(task, MultiLabelClassification):
        settings["thresholds"] = 0.5 if task.thresholds is None else task.thresholds
    if isinstance(task, Regression):
        settings |= {"labels": task.value_names, "is_list": task.num_values is not None}
        settings["means"] = np.atleast_1d(np.array(task.target_mean, float)).tolist()
        settings["stds"] = np.atleast_1d(np.array(task.target_std, float)).tolist()
    return settings


def _describe_generation(generation: GenerationConfig | None) -> dict[str, Any]:
    """Decoding options of the runner, and further ones that are set, which it refuses."""
    generation, default = generation or GenerationConfig(), GenerationConfig()
    return {
        field.name: getattr(generation, field.name)
        for field in dataclasses.fields(GenerationConfig)
        if field.name in OPTIONS
        or (
            field.name not in _RUNTIME_FIELDS
            and getattr(generation, field.name) != getattr(default, field.name)
        )
    }
