"""Encoder outputs of sources: equal ones are encoded once, and recent ones can be kept.

Letters: B rows, S source length.
"""

from __future__ import annotations

import weakref
from collections import OrderedDict
from typing import Any

import torch

from miniformer.generation.inference import inference_model
from miniformer.generation.inputs import INTEGER_DTYPES, PromptBatch

_Key = tuple[int, ...]  # real token ids of a source


def encode_sources(
    model: Any,
    batch: PromptBatch,
    encoder_cache: EncoderCache | None = None,
    *,
    weight_dtype: str = "float32",
) -> list[Any]:
    """Encodes the sources of a batch; returns one encoder output, or none without sources.

    Args:
        model: encoder-decoder model in eval mode, if the batch has sources.
        batch: prompts on the device of the model.
        encoder_cache: encoder outputs of earlier sources.
        weight_dtype: type of the encoder's weights; see `inference_model`.

    Raises:
        UserError: see `inference_model`.
    """
    if batch.source is None:
        return []
    if batch.source.dtype not in INTEGER_DTYPES or batch.source.dim() > 2:  # not token ids
        return [inference_model(model, weight_dtype).encode(batch.source, batch.source_mask)]
    keys = _source_keys(batch)
    first = {key: row for row, key in reversed([*enumerate(keys)])}
    rows_differ = getattr(model, "row_runtime", None) is not None  # equal sources are not shared
    if encoder_cache is None and (rows_differ or len(first) == len(keys)):
        return [inference_model(model, weight_dtype).encode(batch.source, batch.source_mask)]
    rows = torch.tensor(sorted(first.values()), device=batch.source.device)
    distinct = [keys[row] for row in rows.tolist()]
    if encoder_cache is None:
        mask = None if batch.source_mask is None else batch.source_mask[rows]
        memory = inference_model(model, weight_dtype).encode(batch.source[rows], mask)
    else:
        memory = encoder_cache.encode(model, distinct, weight_dtype)
    index_of = {key: number for number, key in enumerate(distinct)}
    return [memory.select(torch.tensor([index_of[key] for key in keys], device=rows.device))]


class EncoderCache:
    """Encoder outputs of the sources that were used last.

    It belongs to one model and type of weights at a time, and is emptied when the weights change.

    Args:
        max_bytes: size at which the outputs that were used least recently are evicted.
    """

    def __init__(self, max_bytes: int = 2**28) -> None:
        self.max_bytes, self.nbytes, self.num_encoded = max_bytes, 0, 0
        self._outputs: OrderedDict[_Key, Any] = OrderedDict()  # each of one row without padding
        self._model: weakref.ref[Any] | None = None
        self._version: list[Any] = []

    def __len__(self) -> int:
        return len(self._outputs)

    def encode(self, model: Any, sources: list[_Key], weight_dtype: str = "float32") -> Any:
        """Returns the encoder output of distinct sources, padded on the right; encodes new ones."""
        self._check_version(model, weight_dtype)
        new = [key for key in sources if key not in self._outputs]
        outputs = {key: self._outputs[key] for key in sources if key in self._outputs}
        if new:
            device = next(model.parameters()).device
            width = max(map(len, new))
            ids = torch.tensor([[*key, *[0] * (width - len(key))] for key in new], device=device)
            lengths = torch.tensor([len(key) for key in new], device=device)
            mask = torch.arange(width, device=device) < lengths[:, None]
            encoder = inference_model(model, weight_dtype)
            memory = encoder.encode(ids, None if bool(mask.all()) else mask)
            outputs |= zip(new, memory.split(), strict=True)
            self.num_encoded += len(new)
        for key in sources:
            self._store(key, outputs[key])
        return type(outputs[sources[0]]).join([outputs[key] for key in sources])

    def _store(self, key: _Key, output: Any) -> None:
        """Stores an output as the one that was used last, and evicts others."""
        if self._outputs.pop(key, None) is None:
            self.nbytes += output.nbytes
        self._outputs[key] = output
        while self.nbytes > self.max_bytes:
            self.nbytes -= self._outputs.popitem(last=False)[1].nbytes

    def _check_version(self, model: Any, weight_dtype: str) -> None:
        """Empties the cache if the model or its weights are not those of its outputs."""
        version: list[Any] = [weight_dtype]
        version += [
            (parameter.data_ptr(), 0 if parameter.is_inference() else parameter._version)
            for parameter in model.parameters()
        ]
        if self._model is None or self._model() is not model or version != self._version:
            self._outputs.clear()
            self.nbytes, self._model, self._version = 0, weakref.ref(model), version


def _source_keys(batch: PromptBatch) -> list[_Key]:
    """The real token ids of each source, which identify it."""
    assert batch.source is not None
    rows: list[list[int]] = batch.source.tolist()
    if batch.source_mask is None:
        return [tuple(row) for row in rows]
    masks: list[list[bool]] = batch.source_mask.tolist()
    return [
        tuple(token for token, real in zip(row, mask, strict=True) if real)
        for row, mask in zip(rows, masks, strict=True)
    ]
