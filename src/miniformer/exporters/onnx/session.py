"""Exported graphs as a model: onnxruntime computes what a task reads of a model.

Letters: B batch, T new tokens, P past columns, S source length, N labeled positions, V vocabulary,
K key-value heads, E head width.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from miniformer.data.batching.length_bucketing import Batch, pad_sequences
from miniformer.exporters.programs import Program
from miniformer.exporters.source import Source
from miniformer.exporters.verify import Run
from miniformer.tasks.base import Task

Arrays = dict[str, np.ndarray]
_BATCH_NAMES = {"token_types": "token_type_ids"}  # names of graphs that differ from a batch's


class EncodedSource(NamedTuple):
    """Keys and values of a source by the name of the decoder's input, and its mask."""

    arrays: Arrays
    mask: Tensor  # bool [B, S]


class OnnxModel:
    """A model whose outputs are those of its graphs.

    Its features are its logits, so that `logits` changes nothing.

    Args:
        source: the model that was exported.
        folder: folder of the graphs.
        files: graphs by part; see `write_graphs`.
    """

    training = False

    def __init__(self, source: Source, folder: Path, files: dict[str, str]) -> None:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        options.intra_op_num_threads = torch.get_num_threads()
        self.config = source.config
        self.sessions = {
            part: onnxruntime.InferenceSession(
                str(folder / name), options, providers=["CPUExecutionProvider"]
            )
            for part, name in files.items()
        }

    def run(self, part: str, arrays: Arrays) -> Arrays:
        """Outputs of a graph by name, for inputs by name."""
        session = self.sessions[part]
        names = [output.name for output in session.get_outputs()]
        return dict(zip(names, session.run(names, arrays), strict=True))

    def run_of(self, program: Program) -> Run:
        """The graph of a program as a function of its inputs, in order."""
        read = {item.name for item in self.sessions[program.name].get_inputs()}

        def run(inputs: Sequence[Tensor]) -> list[Tensor]:
            named = zip(program.inputs, inputs, strict=True)
            outputs = self.run(program.name, {name: x.numpy() for name, x in named if name in read})
            return [torch.from_numpy(outputs[name]) for name in program.outputs]

        return run

    def empty_past(self, rows: int) -> Arrays:
        """Past of a prompt: one column of zeros, which is masked."""
        return {
            item.name: np.zeros((rows, item.shape[1], 1, item.shape[3]), np.float32)
            for item in self.sessions["decoder"].get_inputs()
            if item.name.startswith("past_key_values") and ".encoder." not in item.name
        }

    def step(
        self,
        ids: Tensor,
        mask: Tensor,
        past: Arrays,
        source: EncodedSource | None = None,
        columns: Tensor | None = None,
    ) -> tuple[Tensor, Arrays]:
        """Logits, float [B, T, V], and the past of the next step.

        Args:
            ids: int64 [B, T].
            mask: of past and `ids`, bool [B, P + T].
            past: of the step before, or `empty_past`.
            source: of `encode`, for an encoder-decoder model.
            columns: columns of `ids` that have logits; None: all.
        """
        columns = torch.arange(ids.shape[1]) if columns is None else columns
        arrays = {"input_ids": ids.numpy(), "attention_mask": mask.long().numpy(), **past}
        arrays["logits_to_keep"] = columns.numpy()
        if source is not None:
            arrays |= source.arrays
            arrays["encoder_attention_mask"] = source.mask.long().numpy()
        outputs = self.run("decoder", arrays)
        logits = torch.from_numpy(outputs.pop("logits"))
        return logits, {_past_name(name): array for name, array in outputs.items()}

    def encode(self, source: Tensor, source_mask: Tensor | None = None) -> EncodedSource:
        """Keys and values of a source, int64 [B, S] or vectors; see `Seq2SeqTransformer.encode`."""
        mask = (
            torch.ones(source.shape[:2], dtype=torch.bool) if source_mask is None else source_mask
        )
        outputs = self.run("encoder", {**self._inputs(source), "attention_mask": _integers(mask)})
        return EncodedSource({_past_name(name): x for name, x in outputs.items()}, mask)

    def outputs(self, batch: Batch) -> Tensor:
        """Outputs of `model.onnx` for a batch of a task."""
        inputs, mask = batch["inputs"], batch.get("attention_mask")
        mask = torch.ones(inputs.shape[:2], dtype=torch.bool) if mask is None else mask
        arrays = {**self._inputs(inputs), "attention_mask": _integers(mask)}
        names = {item.name for item in self.sessions["model"].get_inputs()}
        for name, value in batch.items():
            key = _BATCH_NAMES.get(name, name)
            if key in names - arrays.keys():
                arrays[key] = value.numpy()
        for name in names - arrays.keys():  # token types of a text
            arrays[name] = np.zeros(inputs.shape[:2], np.int64)
        (array,) = self.run("model", arrays).values()
        return torch.from_numpy(array)

    def features(
        self,
        inputs: Tensor,
        context: Any = None,
        *,
        attention_mask: Tensor | None = None,
        segment_ids: Tensor | None = None,
        token_types: Tensor | None = None,
    ) -> Tensor:
        """Logits, [B, T, V], in place of features.

        Args:
            inputs: token ids, int64 [B, T].
            context: of `encode`, for an encoder-decoder model; else as `attention_mask`.
            attention_mask, segment_ids, token_types: see `Transformer.features`.
        """
        source = context if isinstance(context, EncodedSource) else None
        mask = attention_mask if source is not None or context is None else context
        if "model" in self.sessions:
            batch = {"inputs": inputs, "attention_mask": mask, "token_types": token_types}
            return self.outputs({name: x for name, x in batch.items() if x is not None})
        if segment_ids is not None:
            return self._packed(inputs, segment_ids)
        mask = torch.ones_like(inputs, dtype=torch.bool) if mask is None else mask
        mask = F.pad(mask, (1, 0))  # the masked column of an empty past
        return self.step(inputs, mask, self.empty_past(len(inputs)), source)[0]

    def logits(self, features: Tensor) -> Tensor:
        """The features, which are logits."""
        return features

    def cross_entropy(
        self, features: Tensor, labels: Tensor, label_smoothing: float = 0.0
    ) -> Tensor:
        """Summed cross-entropy in nats of logits [N, V] and labels, int64 [N]."""
        return F.cross_entropy(features, labels, reduction="sum", label_smoothing=label_smoothing)

    def _packed(self, ids: Tensor, segments: Tensor) -> Tensor:
        """Logits of rows with several sequences each, [B, T, V]: a row of the graph for each."""
        sequences = [
            (row, (segments[row] == number).nonzero()[:, 0])
            for row in range(len(ids))
            for number in sorted(set(segments[row].tolist()))
            if number
        ]
        rows, mask = pad_sequences([ids[row, columns].numpy() for row, columns in sequences])
        logits = self.features(rows, mask)
        result = logits.new_zeros(*ids.shape, logits.shape[-1])
        for number, (row, columns) in enumerate(sequences):
            result[row, columns] = logits[number, : len(columns)]
        return result

    def _inputs(self, inputs: Tensor) -> Arrays:
        name = "input_features" if inputs.is_floating_point() else "input_ids"
        return {name: inputs.numpy()}


def through_graphs(task: Task) -> Task:
    """A copy of a task that takes the outputs of an `OnnxModel` as its logits."""
    changed = copy.copy(task)
    if hasattr(changed, "logits"):
        vars(changed)["logits"] = lambda model, batch: model.outputs(batch)
    return changed


def _past_name(name: str) -> str:
    return "past_key_values" + name.removeprefix("present")


def _integers(mask: Tensor) -> np.ndarray:
    array: np.ndarray = mask.long().numpy()
    return array
