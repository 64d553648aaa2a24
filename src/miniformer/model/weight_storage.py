"""Stored types of weight matrices: a step between `model.safetensors` and `state_dict`.

`quantization.json` has the type of each matrix that is not stored as it is:

    {"matrices": {"layers.0.attention.q_proj": {"type": "int8", "tensors": ["scale", "values"],
                                                "dtype": "float32", ...options}}}

A component of the kind `weight_storage` encodes a matrix as tensors, which the file has under the
name of the matrix, such as `layers.0.attention.q_proj.values`. A model whose module has these
tensors itself gets them as they are.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from miniformer import registry
from miniformer.config import UserError
from miniformer.model.matrices import WeightMatrix, named_components, weight_matrices
from miniformer.model.weight_file import WeightSource
from miniformer.utils.jsonl import read_json

Entries = dict[str, dict[str, Any]]
_KIND = "weight_storage"
_OWN_KEYS = ("type", "tensors", "dtype")
_DTYPES = {
    name: getattr(torch, name)
    for name in ("float32", "float64", "bfloat16", "float16", "int32", "int64")
}  # of decoded matrices and tables
_LONGEST_REASON = 500  # characters of a message
_LARGEST_FILE = 2**26  # bytes of `quantization.json`: more than 400,000 matrices


def encode_weights(
    model: nn.Module, weights: Mapping[str, Tensor], types: Mapping[str, Mapping[str, Any]]
) -> tuple[dict[str, Tensor], Entries]:
    """Encodes the weights of a model for its file.

    Args:
        model: the model.
        weights: its `state_dict`.
        types: `{"type": name, options}` by name of a matrix or an embedding.

    Returns:
        Tensors of the file by name, and the entries of `quantization.json`.

    Raises:
        UserError: a type is unknown, an option has a name of the file's own, or there is no matrix
            of a name.
    """
    for name, options in types.items():
        if taken := [key for key in options if key in _OWN_KEYS and key != "type"]:
            raise UserError(
                f"weight_storage: {name}: {taken[0]!r} is a name of quantization.json itself; "
                "rename the option"
            )
    stored, entries = dict(weights), {}
    matrices = {matrix.name: matrix for matrix in _stored_matrices(model)}
    if unknown := [name for name in types if name not in matrices]:
        closest = difflib.get_close_matches(unknown[0], matrices, n=1)
        hint = f"; did you mean {closest[0]!r}?" if closest else ""
        raise UserError(f"weight_storage: the model has no weight matrix {unknown[0]!r}{hint}")
    # Matrices of a stacked parameter are stored one by one if one of them has a type.
    divided = {matrices[name].parameter_name for name in types}
    for name, matrix in matrices.items():
        if matrix.parameter is None and name in types:
            tensors = [
                key for key in weights if key.startswith(f"{name}.") and key != f"{name}.bias"
            ]
            entries[name] = {**types[name], "tensors": [key[len(name) + 1 :] for key in tensors]}
        elif matrix.parameter_name in divided and matrix.parameter is not None:
            stored.pop(matrix.parameter_name, None)
            weight = weights[matrix.parameter_name]
            if matrix.index is not None:
                weight = weight[matrix.index]
            if name not in types:
                stored[name] = weight
                continue
            storage, options = _storage(types[name], f"weight_storage: {name}")
            parts = storage.encode(weight, **options)
            entries[name] = {
                **types[name],
                "tensors": sorted(parts),
                "dtype": str(weight.dtype).removeprefix("torch."),
            }
            for part, tensor in parts.items():
                if f"{name}.{part}" in weights:
                    raise UserError(f"weight_storage: the model has a tensor {name}.{part} already")
                stored[f"{name}.{part}"] = tensor.contiguous()
    return stored, entries


def decode_weights(
    model: nn.Module, stored: Mapping[str, WeightSource], entries: Entries, path: Path
) -> dict[str, WeightSource]:
    """The tensors of a `state_dict`, which are decoded when they are read.

    The inverse of `encode_weights`.

    Args:
        model: the model, whose weights are not used.
        stored: tensors of the file.
        entries: of `quantization.json`.
        path: that file, for messages.

    Raises:
        UserError: an entry has no matrix or no tensor, or its type is unknown; or when it is read,
            it cannot be decoded.
    """
    weights, stacks = dict(stored), dict[str, list[WeightSource]]()
    matrices = {matrix.name: matrix for matrix in _stored_matrices(model)}
    if unknown := [name for name in entries if name not in matrices]:
        name = unknown[0][:_LONGEST_REASON]
        raise UserError(f"{path}: {name!r} is no weight matrix of the model")
    divided = {matrices[name].parameter_name for name in entries}
    for name, matrix in matrices.items():
        if matrix.parameter is None or matrix.parameter_name not in divided:
            continue
        if name in entries:
            weight = _decoded(matrix, entries[name], weights, path)
        elif name in weights:
            weight = weights.pop(name)
        else:
            raise UserError(f"{path}: the file has no tensor {name!r}")
        if matrix.index is None:
            weights[matrix.parameter_name] = weight
        else:
            stacks.setdefault(matrix.parameter_name, []).append(weight)
    return weights | {name: _stacked(parts) for name, parts in stacks.items()}


def read_entries(path: Path) -> Entries:
    """Reads the entries of a `quantization.json`.

    Raises:
        UserError: the file is invalid.
    """
    try:
        if path.stat().st_size > _LARGEST_FILE:
            raise ValueError(f"larger than {_LARGEST_FILE:,} bytes")
        entries: Entries = read_json(path)["matrices"]
        for name, entry in entries.items():
            tensors = entry["tensors"]
            is_valid = isinstance(entry["type"], str) and isinstance(tensors, list)
            if not is_valid or not all(isinstance(part, str) for part in tensors):
                raise ValueError(f"{name}: {entry}")
            if entry.get("dtype", "float32") not in _DTYPES:
                raise ValueError(f"{name}: dtype {entry['dtype']!r} is none of {[*_DTYPES]}")
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        reason = repr(error)[:_LONGEST_REASON]
        raise UserError(f"{path}: not a description of stored weights: {reason}") from None
    return entries


def types_of(entries: Entries) -> Entries:
    """`{"type": name, options}` of each entry, as `encode_weights` takes them."""
    own = [key for key in _OWN_KEYS if key != "type"]
    return {
        name: {key: value for key, value in entry.items() if key not in own}
        for name, entry in entries.items()
    }


def named_tables(model: nn.Module) -> Iterator[tuple[str, nn.Module, Any]]:
    """Buffers that can have a stored type: name in the `state_dict`, module and tensor.

    A module lists them in `stored_tables`.
    """
    for path, module in named_components(model):
        for name in getattr(module, "stored_tables", ()):
            yield f"{path}.{name}" if path else name, module, module._buffers[name]


def _stored_matrices(model: nn.Module) -> Iterator[WeightMatrix]:
    """Weight matrices, and the tables of embeddings and of other modules."""
    yield from weight_matrices(model)
    for path, module in named_components(model):
        if isinstance(module, nn.Embedding):
            yield WeightMatrix(path, module, module._parameters["weight"], f"{path}.weight")
    for name, module, table in named_tables(model):
        yield WeightMatrix(name, module, table, name)


def _storage(entry: Mapping[str, Any], label: str) -> tuple[Any, dict[str, Any]]:
    """The component of an entry, and its options."""
    options = {key: value for key, value in entry.items() if key not in _OWN_KEYS}
    try:
        return registry.get(_KIND, entry["type"]), options
    except KeyError:
        raise UserError(f'{label}: {dict(entry)} has no "type"') from None
    except UserError as error:
        raise UserError(f"{label}: {error}") from None


def _decoded(
    matrix: WeightMatrix, entry: dict[str, Any], weights: dict[str, WeightSource], path: Path
) -> WeightSource:
    """A matrix that is decoded when it is read; its tensors are removed from `weights`."""
    storage, options = _storage(entry, f"{path}: {matrix.name}")
    parts: dict[str, WeightSource] = {}
    for part in entry["tensors"]:
        name = f"{matrix.name}.{part}"
        if name not in weights:
            missing = name[:_LONGEST_REASON]
            raise UserError(f"{path}: {matrix.name}: the file has no tensor {missing!r}")
        parts[part] = weights.pop(name)
    if "dtype" not in entry:
        raise UserError(f"{path}: {matrix.name}: has no dtype")
    shape, dtype = tuple(matrix.weight.shape), _DTYPES[entry["dtype"]]

    def read() -> Tensor:
        try:
            tensors = {part: source.read() for part, source in parts.items()}
            # The size is checked before it is decoded, if the type has a method `shape`.
            stored = storage.shape(tensors, **options) if hasattr(storage, "shape") else shape
            if tuple(stored) != shape:
                raise ValueError(f"it is {tuple(stored)}, and that of config {shape}")
            weight: Tensor = storage.decode(tensors, **options)
            if tuple(weight.shape) != shape:
                raise ValueError(f"it is {tuple(weight.shape)}, and that of config {shape}")
            return weight.to(dtype)
        except Exception as error:
            reason = " ".join(f"{type(error).__name__}: {error}".split())[:_LONGEST_REASON]
            raise UserError(
                f"{path}: {matrix.name} cannot be decoded as {entry['type']}: {reason}"
            ) from error

    return WeightSource(shape, dtype, read)


def _stacked(parts: list[WeightSource]) -> WeightSource:
    """The matrices of a stacked parameter."""
    shape, dtype, _ = parts[0]

    def read() -> Tensor:
        result = torch.empty(len(parts), *shape, dtype=dtype)
        for index, part in enumerate(parts):
            result[index] = part.read()
        return result

    return WeightSource((len(parts), *shape), dtype, read)
