"""Calibration records, and the inputs that linear layers have on them."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from miniformer.checkpoint.pipeline import Pipeline
from miniformer.config import UserError
from miniformer.data.batching.length_bucketing import Batch
from miniformer.data.reading.records import Records, as_records
from miniformer.data.selection import RecordSubset
from miniformer.evaluation.run_batches import labeled_batches
from miniformer.generation.inference import eval_mode
from miniformer.model.stack import Stack
from miniformer.tasks.embedding import EmbeddingTask, embed_batch

MIN_RECORDS, MAX_RECORDS = 32, 512
_IGNORED = -100  # label of padding


class CalibrationData:
    """Calibration records of a task, encoded in the batches of its evaluation.

    Args:
        pipeline: the model that they are for.
        data: files or records in memory; of more than 512 records, as many at equal distances are
            used, and of long texts as many windows.

    Raises:
        UserError: there are under 32 records or windows, or a record is none of the task.
    """

    def __init__(self, pipeline: Pipeline, data: Any) -> None:
        self.task, self.tokenizer = pipeline.task, pipeline.tokenizer
        self._inputs: list[Any] = []  # of embedding, which has no loss
        self._batches: list[Batch] = []
        self._batch: Batch = {}  # the current one
        mapping = pipeline.data_settings.mapping()
        try:
            records = as_records(data, self.task.schema, mapping=mapping)
            total, num_windows = len(records), 0
            records = used_records(records)
            if isinstance(self.task, EmbeddingTask):
                self._inputs = [record["input"] for record in records]
            else:
                settings = pipeline.data_settings.batches()
                batches = list(
                    labeled_batches(pipeline.model, self.task, self.tokenizer, records, settings)
                )
                num_windows = sum(map(self._num_rows, batches))
                self._batches = _spread(batches, MAX_RECORDS / max(1, num_windows))
            if max(total, num_windows) < MIN_RECORDS:
                raise UserError(f"{records.name} has {total} records, and {MIN_RECORDS} are needed")
        except UserError as error:
            raise UserError(f"calibrate: {error} (task {self.task.name})") from None

    def run(self, model: nn.Module) -> None:
        """Computes the outputs of a model for all records; a hook may end a batch by `EndBatch`."""
        with torch.no_grad(), eval_mode(model):
            if self._inputs:
                self.task.predict_outputs(  # type: ignore[attr-defined]
                    model, self.tokenizer, self._inputs, truncate=True, output_fn=_embed_or_end
                )
            device = next(model.parameters()).device
            for batch in self._batches:
                moved = {
                    name: x.to(device) if isinstance(x, Tensor) else x for name, x in batch.items()
                }
                self._batch = moved
                with contextlib.suppress(EndBatch):
                    self.task.loss(model, moved)

    def _num_rows(self, batch: Batch) -> int:
        """Number of windows of a batch, such as those of a long text."""
        return max((len(batch[x]) for x in self.task.token_tensors if x in batch), default=0)

    def padding_mask(self, shape: torch.Size) -> Tensor | None:
        """Mask of the tokens of the current batch whose shape is [B, T]: True = a real one.

        For inputs whose padding comes last, which a causal model needs no mask for.
        """
        for name, mask_name in reversed(self.task.token_tensors.items()):
            mask = self._batch.get(mask_name)
            if name in self._batch and mask is not None and mask.shape == shape:
                real: Tensor = mask != (_IGNORED if mask_name == "labels" else 0)
                return real
        return None


class EndBatch(Exception):
    """The rest of a batch is of no use."""


def input_moments(
    model: nn.Module, modules: Mapping[str, nn.Module], data: CalibrationData
) -> dict[str, Tensor]:
    """Sums of X^T X over the inputs X of linear layers, without padding.

    Args:
        model: the model.
        modules: linear layers by name; the rest of a batch is left out once all have been called.
        data: the calibration records.

    Returns:
        By name of the layers that were called, float64 [I, I].

    Raises:
        UserError: an input is not finite, or too large for its square.
    """
    sums: dict[str, Tensor] = {}
    called: set[str] = set()
    last: list[tuple[Any, Tensor]] = []  # one input and its product: several layers have the same

    with _recorded_masks(model, data) as masks, contextlib.ExitStack() as hooks:

        def add(name: str, x: Tensor) -> None:
            if not last or last[0][0] is not x:
                rows = _real_rows(x, masks.of(name, x)).float()
                last[:] = [(x, (rows.T @ rows).double())]
            sums[name] = sums[name] + last[0][1] if name in sums else last[0][1]

        def hook_of(name: str) -> Callable[..., None]:
            def before(_: nn.Module, arguments: tuple[Any, ...]) -> None:
                add(name, arguments[0])
                called.add(name)

            return before

        def after(*_: Any) -> None:
            if called >= modules.keys():
                called.clear()
                raise EndBatch

        for name, module in modules.items():
            hooks.callback(module.register_forward_pre_hook(hook_of(name)).remove)
            hooks.callback(module.register_forward_hook(after).remove)
        data.run(model)
    for name, total in sums.items():
        if not total.isfinite().all():
            raise UserError(
                f"calibrate: {name} has inputs on these records that are not finite, or too large; "
                "train the model again"
            )
    return sums


class _Masks:
    """Masks of the real positions of each stack in the current pass."""

    def __init__(self) -> None:
        self.by_stack: dict[str, Tensor | None] = {}
        self.memories: list[Any] = []

    def of(self, name: str, x: Tensor) -> Tensor | None:
        """Mask of the input of a layer, bool [B, T]; None: all positions are real."""
        for memory in self.memories:
            if memory.features is x:
                mask: Tensor | None = memory.mask
                return mask
        stacks = [path for path in self.by_stack if not path or name.startswith(f"{path}.")]
        return self.by_stack[max(stacks, key=len)] if stacks else None


@contextlib.contextmanager
def _recorded_masks(model: nn.Module, data: CalibrationData) -> Iterator[_Masks]:
    """Context that records the masks of the stacks of a model."""
    masks, stacks = _Masks(), []

    def record(path: str, stack: Any) -> None:
        original = stack.run_layers

        def run_layers(x: Tensor, **options: Any) -> Any:
            mask, segments = options.get("attention_mask"), options.get("segment_ids")
            if segments is not None:
                mask = segments > 0 if mask is None else mask & (segments > 0)
            if mask is None:
                mask = data.padding_mask(x.shape[:2])
            masks.by_stack[path] = mask
            masks.memories = [options["memory"]] if options.get("memory") is not None else []
            return original(x, **options)

        stack.run_layers = run_layers

    for path, module in model.named_modules():
        if isinstance(module, Stack):
            record(path, module)
            stacks.append(module)
    try:
        yield masks
    finally:
        for stack in stacks:
            del stack.run_layers


def used_records(records: Records) -> Records:
    """The records that calibrate: of more than 512, as many at equal distances."""
    if len(records) <= MAX_RECORDS:
        return records
    spread = np.linspace(0, len(records) - 1, MAX_RECORDS).round().astype(np.int64)
    return RecordSubset(records, spread)


def _spread(batches: list[Batch], share: float) -> list[Batch]:
    """A share of the batches, at equal distances; at least one, and at most all."""
    count = min(len(batches), max(1, round(share * len(batches))))
    return [batches[i] for i in np.linspace(0, len(batches) - 1, count).round().astype(np.int64)]


def _real_rows(x: Tensor, mask: Tensor | None) -> Tensor:
    """Inputs of real positions, [N, I]."""
    if mask is not None and mask.shape == x.shape[:-1]:
        return x[mask]
    return x.flatten(0, -2)


def _embed_or_end(model: Any, batch: Batch) -> Tensor:
    try:
        return embed_batch(model, batch)
    except EndBatch:
        return torch.zeros(len(batch["inputs"]), 1)
