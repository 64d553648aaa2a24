"""Miniformer takes a Transformer from a file of yours to a model in use, on the machine you have.

Everything public can be imported from here; torch is imported only when something that needs it is.
"""

from __future__ import annotations

import contextlib
import importlib
import sys
import warnings
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

_PUBLIC = {
    "TransformerConfig": "miniformer.config.model_config",
    "GenerationConfig": "miniformer.config.generation_config",
    "ConfigError": "miniformer.config.errors",
    "UserError": "miniformer.config.errors",
    "register": "miniformer.registry",
    "Transformer": "miniformer.model.transformer",
    "Seq2SeqTransformer": "miniformer.model.seq2seq",
    "EncoderLayer": "miniformer.model.layers",
    "DecoderLayer": "miniformer.model.layers",
    "MultiHeadAttention": "miniformer.model.attention",
    "CrossAttention": "miniformer.model.attention",
    "FeedForward": "miniformer.model.feed_forward",
    "find_leaks": "miniformer.doctor.leaks",
    "assert_no_leaks": "miniformer.doctor.leaks",
    "set_attention_backend": "miniformer.model.execution_settings",
    "set_activation_checkpointing": "miniformer.model.execution_settings",
    "weight_matrices": "miniformer.model.matrices",
    "effective_weight": "miniformer.model.ops.linear",
    "apply_transforms": "miniformer.model.transforms",
    "merge_transforms": "miniformer.model.transforms",
    "KVCache": "miniformer.model.cache.kv_cache",
    "GenerationInput": "miniformer.generation.api",
    "SlotDecoder": "miniformer.generation.slots",
    "JSONLinesDataset": "miniformer.data.reading.records",
    "Mixture": "miniformer.data.reading.mixture",
    "Tokenizer": "miniformer.data.tokenizers.tokenizer",
    "MiniFormerDataModule": "miniformer.data.datamodule",
    "Pipeline": "miniformer.checkpoint.pipeline",
    "load": "miniformer.checkpoint.pipeline",
    "from_hf": "miniformer.interop.hf.api",
    "import_hf": "miniformer.interop.hf.api",
    "to_hf": "miniformer.interop.hf.export",
    "export": "miniformer.exporters.api",
    "compare": "miniformer.compression.comparison.compare",
    "quantize": "miniformer.compression.quantize",
    "prune": "miniformer.compression.pruning.prune",
    "serve": "miniformer.serving.server",
    "MiniFormerLitModule": "miniformer.training.lit_module",
    "LossTerm": "miniformer.tasks.loss_terms",
    "TrainConfig": "miniformer.train_config",
    "stop_run": "miniformer.training.callbacks.stop_request",
    "train": "miniformer.training.api",
}

__all__ = [
    *_PUBLIC,
    "__version__",
]

if TYPE_CHECKING:
    from miniformer.checkpoint.pipeline import Pipeline, load
    from miniformer.compression.comparison.compare import compare
    from miniformer.compression.pruning.prune import prune
    from miniformer.compression.quantize import quantize
    from miniformer.config import ConfigError, GenerationConfig, TransformerConfig, UserError
    from miniformer.data.datamodule import MiniFormerDataModule
    from miniformer.data.reading.mixture import Mixture
    from miniformer.data.reading.records import JSONLinesDataset
    from miniformer.data.tokenizers.tokenizer import Tokenizer
    from miniformer.doctor.leaks import assert_no_leaks, find_leaks
    from miniformer.exporters.api import export
    from miniformer.generation.api import GenerationInput
    from miniformer.generation.slots import SlotDecoder
    from miniformer.interop.hf.api import from_hf, import_hf
    from miniformer.interop.hf.export import to_hf
    from miniformer.model.attention import CrossAttention, MultiHeadAttention
    from miniformer.model.cache.kv_cache import KVCache
    from miniformer.model.execution_settings import (
        set_activation_checkpointing,
        set_attention_backend,
    )
    from miniformer.model.feed_forward import FeedForward
    from miniformer.model.layers import DecoderLayer, EncoderLayer
    from miniformer.model.matrices import weight_matrices
    from miniformer.model.ops.linear import effective_weight
    from miniformer.model.seq2seq import Seq2SeqTransformer
    from miniformer.model.transformer import Transformer
    from miniformer.model.transforms import apply_transforms, merge_transforms
    from miniformer.registry import register
    from miniformer.serving.server import serve
    from miniformer.tasks.loss_terms import LossTerm
    from miniformer.train_config import TrainConfig
    from miniformer.training.api import train
    from miniformer.training.callbacks.stop_request import stop_run
    from miniformer.training.lit_module import MiniFormerLitModule


def __getattr__(name: str) -> Any:
    if name not in _PUBLIC:
        raise AttributeError(f"module 'miniformer' has no attribute {name!r}")
    if "ipykernel.zmqshell" in sys.modules:
        _import_progress_bars()
    return getattr(importlib.import_module(_PUBLIC[name]), name)


def _import_progress_bars() -> None:
    """Imports tqdm, which a dependency imports, without its warning about a missing ipywidgets.

    Training in a notebook has a display of its own.
    """
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="IProgress not found")
        with contextlib.suppress(ImportError):
            importlib.import_module("tqdm.auto")


def __dir__() -> list[str]:
    return sorted(__all__)
