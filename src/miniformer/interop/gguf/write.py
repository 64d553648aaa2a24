"""Writes a GGUF file, one tensor at a time."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from miniformer.config import UserError
from miniformer.data.tokenizers.tokenizer import SpecialTokenTemplate
from miniformer.interop.gguf import names
from miniformer.interop.gguf.families import Architecture, select_architecture
from miniformer.interop.gguf.metadata import Metadata, write_hyperparameters
from miniformer.interop.gguf.tokenizer import write_tokenizer
from miniformer.interop.gguf.types import TYPES, encode, num_bytes
from miniformer.interop.hf.export import ExportSource
from miniformer.interop.hf.files import CheckpointDirectory
from miniformer.interop.hf.weights import TensorMapping, map_tensors
from miniformer.utils.atomic import atomic_path

_CHUNK_BYTES = 32 * 2**20  # of float32 rows that are rounded together
# Keys that llama.cpp does not read: settings of a rotary scaling that the format has no keys for,
# and what the sums with one lose of the weights of norms, so that an import restores every bit.
SCALING_KEY = "miniformer.rotary_scaling"
REMAINDERS_KEY = "miniformer.norm_remainders"


class Plan(NamedTuple):
    """A tensor of the file.

    Args:
        name: in the file.
        kind: type.
        shape: in torch's order of axes.
        load: reads it.
    """

    name: str
    kind: str
    shape: torch.Size
    load: Any


class Written(NamedTuple):
    """Summary of a file."""

    architecture: str
    n_tensors: int
    n_bytes: int


def write_gguf(
    source: ExportSource,
    path: Path,
    *,
    weights: str = "f16",
    tokenizer: bool = True,
    name: str | None = None,
) -> Written:
    """Writes a model as a GGUF file.

    Args:
        source: the model.
        path: the file; it replaces an existing one when it is complete.
        weights: type of the matrices. A matrix whose rows are not whole blocks becomes f16.
        tokenizer: false: the file takes token ids only.
        name: name of the model in the file; None: that of the file.

    Raises:
        UserError: llama.cpp has no such model or tokenizer, or the file cannot be written.
    """
    if weights not in TYPES:
        raise UserError(f"weights={weights!r} is none of {', '.join(TYPES)}")
    model_type = source.hf_metadata.get("model_type")
    item = select_architecture(source.config, seq2seq=source.seq2seq, model_type=model_type)
    metadata = {
        "general.architecture": item.name,
        "general.name": name or path.stem,
        "general.file_type": TYPES[weights].file_type,
        "general.quantization_version": 2,
        **write_hyperparameters(item, source.config),
        **_tokenizer_keys(source, item, tokenizer),
    }
    if "start_id" in source.task and source.task["start_id"] is not None:
        metadata[f"{item.name}.decoder_start_token_id"] = source.task["start_id"]
    scaling = source.config.rotary_scaling
    if scaling is not None and scaling["type"] == "llama3":
        metadata[SCALING_KEY] = json.dumps(scaling)
    mappings = map_tensors(item.rules(source.config), weight_shapes(item, source))
    if remainders := _norm_remainders(source, mappings):
        metadata[REMAINDERS_KEY] = remainders
    plan = list(plan_tensors(item, source, mappings, weights))
    try:
        with atomic_path(path) as temporary:
            _write_file(temporary, item.name, metadata, plan)
            size = temporary.stat().st_size
    except OSError as error:
        raise UserError(f"{path}: cannot be written: {error.strerror or error}") from None
    return Written(item.name, len(plan), size)


def _tokenizer_keys(source: ExportSource, item: Architecture, with_tokenizer: bool) -> Metadata:
    tokenizer = source.tokenizer if with_tokenizer else None
    if tokenizer is None:
        keys = write_tokenizer(None, source.config.vocab_size, template=None)
        return keys | _type_count(item, source)
    if item.encoder:
        template = tokenizer.input_template
    elif item.seq2seq:
        template = tokenizer.sequence_template
    else:
        bos = [tokenizer.bos_id] if source.task.get("prepend_bos", True) else []
        template = SpecialTokenTemplate(bos, [], [], 0, 0)
    keys = write_tokenizer(
        tokenizer,
        source.config.vocab_size,
        template=template,
        chat_template=source.task.get("chat_template") or _chat_template(source.directory),
    )
    return keys | _type_count(item, source)


def _type_count(item: Architecture, source: ExportSource) -> Metadata:
    if item.name != "bert":
        return {}
    return {"tokenizer.ggml.token_type_count": source.config.token_types or 1}


def _chat_template(directory: Path | None) -> str | None:
    """Chat format of an imported model."""
    if directory is None:
        return None
    files = CheckpointDirectory(directory)
    text = files.read_text("chat_template.jinja")
    if text is not None:
        return text
    template = (files.read_json("tokenizer_config.json") or {}).get("chat_template")
    return template if isinstance(template, str) else None


def weight_shapes(item: Architecture, source: ExportSource) -> dict[str, torch.Size]:
    """Shapes of the weights that go out: all but the head of an encoder."""
    return {
        name: spec.shape
        for name, spec in source.tensor_specs.items()
        if not (item.encoder and name.startswith("head."))
    }


def _norm_remainders(source: ExportSource, mappings: list[TensorMapping]) -> list[float]:
    """Bits of the weights of norms that adding one loses, in the order of the tensors."""
    values: list[float] = []
    for mapping in mappings:
        if mapping.layout is names.PLUS_ONE:
            weight = source.load_tensor(mapping.names[0]).float()
            values += (weight - ((weight + 1.0) - 1.0)).tolist()
    return values


def plan_tensors(
    item: Architecture, source: ExportSource, mappings: list[TensorMapping], weights: str
) -> Iterator[Plan]:
    """Tensors of the file, in order."""
    config = source.config
    written = set()
    for mapping in mappings:

        def load(mapping: Any = mapping) -> Tensor:
            tensors = [source.load_tensor(name) for name in mapping.names]
            joined: Tensor = mapping.layout.join(tensors)
            return joined

        yield _plan(mapping.hf_name, mapping.shape(), weights, load)
        written.add(mapping.hf_name)
    if "output.weight" not in written and (item.separate_head or config.logit_scale is not None):
        # The embedding a second time; T5 scales the input of its tied head.
        scale = 1.0 if config.logit_scale is None else config.logit_scale

        def load_head() -> Tensor:
            embedding = source.load_tensor("embedding.weight")
            return embedding if scale == 1.0 else embedding * scale

        shape = source.tensor_specs["embedding.weight"].shape
        yield _plan("output.weight", shape, weights, load_head)
    if item.biases:
        for mapping in mappings:
            bias = mapping.hf_name.removesuffix(".weight") + ".bias"
            linear = mapping.hf_name.startswith("blk.") and mapping.hf_name.endswith(".weight")
            if linear and bias not in written:
                yield _plan(bias, mapping.shape()[:1], weights, _zeros(mapping.shape()[0]))
    for name, factors in names.rotary_factors(config).items():
        yield _plan(name, factors.shape, weights, lambda factors=factors: factors)


def _zeros(size: int) -> Any:
    return lambda: torch.zeros(size)


def _plan(name: str, shape: torch.Size, weights: str, load: Any) -> Plan:
    kind = weights
    if names.is_vector(name):
        kind = "f32"
    elif shape[-1] % TYPES[kind].block:
        kind = "f16"
    return Plan(name, kind, shape, load)


def _write_file(path: Path, architecture: str, metadata: Metadata, plan: list[Plan]) -> None:
    import gguf

    writer = gguf.GGUFWriter(path, architecture)
    for key, value in metadata.items():
        if key != "general.architecture":
            _add(writer, key, value)
    for name, kind, shape, _ in plan:
        writer.add_tensor_info(
            name,
            shape,
            np.dtype(np.float32),  # not read: the raw type replaces it
            num_bytes(kind, shape.numel()),
            raw_dtype=gguf.GGMLQuantizationType[kind.upper()],
        )
    try:
        writer.write_header_to_file(path)
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        (file,) = writer.fout or []
        for name, kind, shape, load in plan:
            file.write(bytes(writer.ggml_pad(file.tell(), writer.data_alignment) - file.tell()))
            tensor = load()
            assert tensor.shape == shape, name
            rows = tensor if tensor.dim() > 1 else tensor[None]
            step = max(1, _CHUNK_BYTES // (4 * rows[0].numel()))
            for start in range(0, len(rows), step):
                file.write(encode(rows[start : start + step], kind).data)
        file.write(bytes(writer.ggml_pad(file.tell(), writer.data_alignment) - file.tell()))
    finally:
        writer.close()


def _add(writer: Any, key: str, value: Any) -> None:
    """Adds a key with the type of the format for a Python value."""
    from gguf import GGUFValueType as Kind

    kinds = {bool: Kind.BOOL, int: Kind.UINT32, float: Kind.FLOAT32, str: Kind.STRING}
    if isinstance(value, bytes):
        writer.add_key_value(key, value, Kind.ARRAY, sub_type=Kind.UINT8)
    elif isinstance(value, list):
        sub_type = Kind.INT32 if type(value[0]) is int else kinds[type(value[0])]
        writer.add_key_value(key, value, Kind.ARRAY, sub_type=sub_type)
    else:
        writer.add_key_value(key, value, kinds[type(value)])
