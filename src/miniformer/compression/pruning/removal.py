"""Removal of the least important parts of a model: layers first, then heads and columns."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from miniformer.checkpoint.pipeline import Pipeline
from miniformer.compression.pruning.importance import (
    Scores,
    layer_scores,
    taylor_scores,
    weight_scores,
)
from miniformer.compression.pruning.request import COUNTS, count_removed
from miniformer.compression.pruning.structure import (
    Indices,
    attentions,
    check_columns,
    check_heads,
    keep_layers,
    keep_units,
    num_units,
    stack_of,
    stacks,
    unit_size,
)
from miniformer.compression.source import with_model
from miniformer.config import UserError
from miniformer.tasks.embedding import EmbeddingTask


def check_labels(task: Any, parts: dict[str, float]) -> None:
    """Checks that the task has labels if layers are to be removed, which they choose.

    Raises:
        UserError: it has none.
    """
    if isinstance(task, EmbeddingTask) and not parts.keys().isdisjoint(COUNTS):
        raise UserError(
            "remove: layers are chosen by labeled records, and a model for embedding has no "
            "labels; remove heads or ffn"
        )


def remove_parts(
    model: Any, pipeline: Pipeline | None, parts: dict[str, float], data: Any = None
) -> tuple[Any, list[str]]:
    """A model without its least important parts, and a line about each kind of part.

    Args:
        model: a Transformer or Seq2SeqTransformer; it is not changed.
        pipeline: the model with its task; None: it has none.
        parts: see `parse_removal`.
        data: labeled records, by which importance is computed; None: heads and columns by their
            weights.

    Raises:
        UserError: a part cannot be removed, or layers are to be removed without records.
    """
    lines = []
    heads, columns = "heads" in parts, "ffn" in parts
    if heads:
        check_heads(model)
        count_removed("heads", parts["heads"], num_units(model.config))
    if columns:
        check_columns(model)
        count_removed("ffn", parts["ffn"], model.config.ff_width)
    if counts := _layers_to_remove(model, parts):
        if pipeline is None or data is None:
            raise UserError("remove: layers are chosen by records; give them as data")
        kept_layers = _kept_layers(model, counts, layer_scores(pipeline, data))
        lines += [_describe_layers(path, retained, model) for path, retained in kept_layers.items()]
        model = keep_layers(model, kept_layers)
        pipeline = with_model(pipeline, model)
    if not heads and not columns:
        return model, lines
    if pipeline is None or data is None:
        scores = weight_scores(model)
    else:
        scores = taylor_scores(pipeline, data)
    config = model.config
    kept_heads: Indices = {}
    kept_columns: Indices = {}
    if heads:
        kept_heads = _kept_heads(model, parts["heads"], scores[0])
        size, count = unit_size(config), num_units(config)
        removed = count - len(next(iter(kept_heads.values())))
        lines.append(f"heads: {removed * size} of {config.n_heads} of each attention")
    if columns:
        number = config.ff_width - count_removed("ffn", parts["ffn"], config.ff_width)
        kept_columns = {path: _largest(score, number) for path, score in scores[1].items()}
        lines.append(
            f"feed-forward: {config.ff_width - number:,} of {config.ff_width:,} columns of each"
        )
    return keep_units(model, kept_heads, kept_columns), lines


def _layers_to_remove(model: Any, parts: dict[str, float]) -> dict[str, int]:
    """Number of layers to remove by path of a stack."""
    counts = {}
    for path, stack in stacks(model).items():
        name = f"{path}_layers" if path and f"{path}_layers" in parts else "layers"
        if name in parts:
            counts[path], total = int(parts[name]), len(stack.layers)
            if counts[path] >= total:
                raise UserError(
                    f"remove: {name}={counts[path]}, but the {path or 'model'} has {total} layers "
                    "and needs one"
                )
    single = [name for name in ("encoder_layers", "decoder_layers") if name in parts]
    if single and "" in stacks(model):
        raise UserError(f"remove: {single[0]} is for seq2seq; use layers")
    return counts


def _kept_layers(model: Any, counts: dict[str, int], scores: Scores) -> dict[str, list[int]]:
    """Layers that stay by path of a stack: those of the largest influence."""
    retained = {}
    for path, count in counts.items():
        score = scores[path].clone()
        if not model.config.first_attention_norm:
            score[0] = float("inf")  # it has no norm, and a layer in its place would lose its own
        retained[path] = _largest(score, len(score) - count)
    return retained


def _kept_heads(model: Any, share: float, scores: Scores) -> dict[str, list[int]]:
    """Units of heads that stay by path of an attention."""
    config = model.config
    total = num_units(config)
    number = total - count_removed("heads", share, total)
    units = {
        path: torch.unflatten(scores[path], 0, (total, unit_size(config))).sum(1)
        for path in attentions(model)
    }
    if config.position == "t5_relative":  # its bias has a column for each head of a stack
        shared: Scores = {}
        own = [path for path in units if not attentions(model)[path].cross]
        for path in own:
            stack = stack_of(path)
            shared[stack] = shared[stack] + units[path] if stack in shared else units[path]
        units |= {path: shared[stack_of(path)] for path in own}
    return {path: _largest(score, number) for path, score in units.items()}


def _largest(scores: Tensor, number: int) -> list[int]:
    """Indices of the largest scores, ascending; of equal ones the first."""
    order = scores.sort(descending=True, stable=True).indices
    return sorted(order[:number].tolist())


def _describe_layers(path: str, retained: list[int], model: Any) -> str:
    total = len(stacks(model)[path].layers)
    removed = [str(index) for index in range(total) if index not in retained]
    return f"{f'{path} ' if path else ''}layers: {', '.join(removed)} of 0 to {total - 1}"
