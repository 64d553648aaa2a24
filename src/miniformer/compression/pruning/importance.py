"""Importance of heads, feed-forward columns and layers.

    heads, columns   sum over the sequences of |sum of activation x gradient|: the first-order
                     change of the loss without them (Molchanov et al. 2019, Michel et al. 2019)
                     without records: the product of the norms of their weights
    layers           1 - mean cosine of their inputs and outputs (ShortGPT, Men et al. 2024)

Letters: B batch, T length, H heads, E head width, F inner width.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from miniformer.checkpoint.pipeline import Pipeline
from miniformer.compression.pruning.structure import attentions, feed_forwards, stacks
from miniformer.config import UserError
from miniformer.data.batching.length_bucketing import Batch
from miniformer.data.batching.loader import find_token_tensors
from miniformer.data.reading.records import as_records
from miniformer.evaluation.run_batches import labeled_batches
from miniformer.generation.inference import eval_mode
from miniformer.tasks.embedding import EmbeddingTask

Scores = dict[str, Tensor]  # by path of a module


def record_batches(pipeline: Pipeline, data: Any) -> Iterator[Batch]:
    """Batches of labeled records, as validation has them.

    Raises:
        UserError: a record is of another task, or the task has no labels.
    """
    if isinstance(pipeline.task, EmbeddingTask):
        raise UserError("data: a model for embedding has no labels; leave data out")
    settings = pipeline.data_settings
    records = as_records(data, pipeline.task.schema, mapping=settings.override({}))
    return labeled_batches(
        pipeline.model, pipeline.task, pipeline.tokenizer, records, settings.batches()
    )


def taylor_scores(pipeline: Pipeline, data: Any) -> tuple[Scores, Scores]:
    """Importance of heads, [H] by attention, and of columns, [F] by feed-forward.

    Args:
        pipeline: the model with its task.
        data: labeled records.
    """
    model = pipeline.model
    readers = {path: part.o_proj for path, part in attentions(model).items()}
    heads = {path: part.n_heads for path, part in attentions(model).items()}
    readers |= {path: part.down_proj for path, part in feed_forwards(model).items()}
    scores: Scores = {}
    inputs: dict[str, Tensor] = {}

    def reader_hook(path: str) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
        def record_input(_: nn.Module, arguments: tuple[Tensor, ...]) -> None:
            (x,) = arguments
            inputs[path] = x if x.requires_grad else x.requires_grad_()

        return record_input

    with contextlib.ExitStack() as hooks, torch.enable_grad(), eval_mode(model):
        for path, module in readers.items():
            handle = module.register_forward_pre_hook(reader_hook(path))
            hooks.callback(handle.remove)
        for batch in record_batches(pipeline, data):
            loss, *_ = pipeline.task.loss(model, batch)
            gradients = torch.autograd.grad(loss, [*inputs.values()], allow_unused=True)
            for (path, x), gradient in zip(inputs.items(), gradients, strict=True):
                if gradient is None:
                    continue
                products = (x.detach() * gradient).double().sum(1)  # [B, H*E or F]
                if path in heads:
                    products = torch.unflatten(products, -1, (heads[path], -1)).sum(-1)
                change = products.abs().sum(0)
                scores[path] = scores[path] + change if path in scores else change
            inputs.clear()
    _check_finite(scores)
    return (
        {path: score for path, score in scores.items() if path in heads},
        {path: score for path, score in scores.items() if path not in heads},
    )


def weight_scores(model: nn.Module) -> tuple[Scores, Scores]:
    """Products of the norms of weights: of heads, [H], and of columns, [F]; see `taylor_scores`."""
    heads: Scores = {}
    for path, part in attentions(model).items():
        values = torch.unflatten(part.v_proj.weight.detach().double(), 0, (part.kv_heads, -1))
        outputs = torch.unflatten(part.o_proj.weight.detach().double(), 1, (part.n_heads, -1))
        norms = values.flatten(1).norm(dim=1).repeat_interleave(part.n_heads // part.kv_heads)
        heads[path] = norms * outputs.norm(dim=(0, 2))
    columns: Scores = {}
    for path, module in feed_forwards(model).items():
        score = module.down_proj.weight.detach().double().norm(dim=0)
        for proj in (module.up_proj, module.gate_proj):
            if proj is not None:
                score = score * proj.weight.detach().double().norm(dim=1)
        columns[path] = score
    return heads, columns


def layer_scores(pipeline: Pipeline, data: Any) -> Scores:
    """Influence of each layer by path of its stack, float64 [layers]; see above.

    Args:
        pipeline: the model with its task.
        data: labeled records.
    """
    model = pipeline.model
    parts = stacks(model)
    sums = {
        path: torch.zeros(len(part.layers), dtype=torch.float64) for path, part in parts.items()
    }
    counts = dict.fromkeys(parts, 0)
    masks: dict[str, Tensor | None] = {}

    def layer_hook(path: str, index: int) -> Callable[..., None]:
        def add(_: nn.Module, arguments: Sequence[Any], output: Tensor) -> None:
            cosines = F.cosine_similarity(arguments[0].float(), output.float(), dim=-1)  # [B, T]
            mask = masks.get(path)
            real = cosines[mask] if mask is not None and mask.shape == cosines.shape else cosines
            sums[path][index] += (1 - real).double().sum().cpu()
            counts[path] += real.numel() if index == 0 else 0

        return add

    with contextlib.ExitStack() as hooks, torch.inference_mode(), eval_mode(model):
        for path, stack in parts.items():
            for index, layer in enumerate(stack.layers):
                hooks.callback(layer.register_forward_hook(layer_hook(path, index)).remove)
        for batch in record_batches(pipeline, data):
            masks = _real_positions(batch, pipeline.task.token_tensors)
            pipeline.task.loss(model, batch)
    _check_finite(sums)
    return {path: sums[path] / max(counts[path], 1) for path in parts}


def _check_finite(scores: Scores) -> None:
    for path, score in scores.items():
        if not score.isfinite().all():
            raise UserError(
                f"remove: {path or 'the model'} has values on these records that are not finite; "
                "train the model again"
            )


def _real_positions(batch: Batch, declared: Mapping[str, str]) -> dict[str, Tensor | None]:
    """Masks of the real positions of a batch, bool [B, T], by path of a stack."""
    masks: dict[str, Tensor | None] = {}
    for tensor, name in find_token_tensors(batch, declared).items():
        mask = batch.get(name)
        if mask is not None:
            mask = mask != -100 if name == "labels" else mask != 0
        masks["decoder" if tensor == "target" else "encoder"] = mask
        masks[""] = mask
    return masks
