"""A saved and loaded copy against the model."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from miniformer.checkpoint.pipeline import load
from miniformer.doctor.inputs import ModelInputs
from miniformer.generation.inference import eval_mode


def check_saving(pipeline: Any) -> list[str]:
    """A saved and loaded copy has the same settings, tensors and outputs."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name) / "model"
        pipeline.save(folder)
        return [*_differences(pipeline, load(folder))]


def _differences(pipeline: Any, copied: Any) -> Iterator[str]:
    if copied.model.config != pipeline.model.config:
        yield "the config differs"
    if copied.task != pipeline.task or copied.generation != pipeline.generation:
        yield "the task or the decoding options differ"
    tensors, again = pipeline.model.state_dict(), copied.model.state_dict()
    for name in sorted(tensors.keys() | again.keys()):
        if name not in tensors or name not in again:
            yield f"{name} is in one of them only"
        elif not torch.equal(_bits(tensors[name]), _bits(again[name])):
            yield f"{name} differs"
    if not _equal_outputs(pipeline.model, copied.model):
        yield "the outputs differ"


def _bits(tensor: torch.Tensor) -> torch.Tensor:
    """The bytes of a tensor: NaN equals itself, and zero is not minus zero."""
    return tensor.detach().contiguous().reshape(-1).view(torch.uint8)


def _equal_outputs(model: Any, copied: Any) -> bool:
    inputs = ModelInputs(model)
    with eval_mode(model), eval_mode(copied), torch.no_grad(), torch.random.fork_rng():
        torch.manual_seed(0)
        x = inputs.inputs(2, inputs.source_length if inputs.seq2seq else inputs.length)
        target = inputs.ids(2, inputs.length) if inputs.seq2seq else None
        first = inputs.call(x, target=target)
        return torch.equal(_bits(first), _bits(ModelInputs(copied).call(x, target=target)))
