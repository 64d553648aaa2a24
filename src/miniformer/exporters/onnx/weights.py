"""Rounded weights of ONNX graphs.

| weights      | stored                                    | products                       |
|--------------|-------------------------------------------|--------------------------------|
| float32      | as in the model                           | in float32                     |
| int8         | 8 bits in blocks of 32 with a float scale | of int8 blocks                 |
| int4         | 4 bits; embeddings and a tied head 8 bits | of int8 blocks                 |
| int8_dynamic | matrices in 8 bits with a scale for each  | of int8, by `quantize_dynamic` |

Blocks lie along the inputs of a matrix. A matrix whose inputs are no multiple of 32, vectors, and
the tensors of a wide head stay as they are; with int8_dynamic, embeddings and a tied head, too.

Letters: K inputs and N outputs of a matrix, G = K / 32 blocks, V vocabulary, D model width.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from miniformer.exporters.onnx.initializers import Initializers, save_model

WEIGHTS = ("float32", "int8", "int4", "int8_dynamic")
BLOCK = 32
_DOMAIN = "com.microsoft"
_INT8_PRODUCTS = 4  # `accuracy_level` of MatMulNBits
_SHRINKAGES = np.linspace(1.0, 0.7, 13)  # of the scale of 4 bits: the best of these is taken


class Blocks(NamedTuple):
    """A matrix in blocks.

    Args:
        values: uint8 [N, G, 32 * bits / 8], two values a byte for 4 bits, the lower one first.
        scales: float32 [N, G].
    """

    values: np.ndarray
    scales: np.ndarray


def round_blocks(matrix: np.ndarray, bits: int) -> Blocks:
    """Rounds a matrix, float [N, K], in blocks with the zero point 2 ** (bits - 1).

    The scale of a block maps its largest magnitude to the largest integer; with 4 bits, it is the
    one of several smaller ones with the least squared error.
    """
    zero = 2 ** (bits - 1)
    blocks = matrix.astype(np.float32).reshape(len(matrix), -1, BLOCK)
    index = np.abs(blocks).argmax(-1, keepdims=True)
    extreme = np.take_along_axis(blocks, index, -1)
    # The extreme of a block becomes -zero, whose magnitude is one more than that of the largest.
    base = extreme / -zero if bits == 4 else np.abs(extreme) / (zero - 1)
    best: tuple[np.ndarray, np.ndarray] | None = None
    least = np.full(base.shape, np.inf, np.float32)
    for shrinkage in _SHRINKAGES if bits == 4 else (1.0,):
        scale = (base * shrinkage).astype(np.float32)
        divisor = np.where(scale == 0, 1, scale)
        codes = np.clip(np.rint(blocks / divisor), -zero, zero - 1)
        error = np.square(codes * scale - blocks).sum(-1, keepdims=True)
        if best is None:
            best = codes, scale
        is_better = error < least
        best = np.where(is_better, codes, best[0]), np.where(is_better, scale, best[1])
        least = np.minimum(error, least)
    assert best is not None
    codes = (best[0] + zero).astype(np.uint8)
    if bits == 4:
        codes = codes[..., ::2] | codes[..., 1::2] << 4
    return Blocks(codes, best[1][..., 0])


def round_graph(path: Path, weights: str) -> None:
    """Rounds the weights of a graph in its file.

    Args:
        path: the graph, of float32.
        weights: int8, int4 or int8_dynamic.
    """
    import onnx

    if weights == "int8_dynamic":
        _round_dynamically(path)
        return
    model = onnx.load(str(path))
    _round_in_blocks(model, bits=4 if weights == "int4" else 8)
    data = path.with_name(f"{path.name}.data")
    data.unlink(missing_ok=True)
    save_model(model, path)


def _round_in_blocks(model: Any, bits: int) -> None:
    from onnx import helper

    tensors, nodes = Initializers(model), model.graph.node
    producers = {node.output[0]: node for node in nodes}
    tables = _tables(tensors, nodes)
    new: list[Any] = []
    for node in nodes:
        if node.op_type == "Gather" and node.input[0] in tables:
            values, scales = _add_table(tensors, node.input[0])
            new.append(_make_node("GatherBlockQuantized", [values, node.input[1], scales], node))
            new[-1].attribute.extend(_attributes(bits=8, gather_axis=0, quantize_axis=1))
            continue
        product = _product_of(node, tensors, producers)
        if product is None:
            new.append(node)
            continue
        name, is_transposed = product
        if is_transposed and name in tables:
            table, scales = _add_table(tensors, name)
            outputs, groups = tensors.read(scales).shape
            shape, values = f"{name}.shape", f"{name}.blocks"
            tensors.add(shape, np.array([outputs, groups, BLOCK]))
            new.append(helper.make_node("Reshape", [table, shape], [values]))
            sizes = {"K": groups * BLOCK, "N": outputs, "bits": 8}
        else:
            values, scales, sizes = _add_matrix(tensors, name, bits, is_transposed)
        new.append(_make_node("MatMulNBits", [node.input[0], values, scales], node))
        new[-1].attribute.extend(_attributes(**sizes, accuracy_level=_INT8_PRODUCTS))
    del nodes[:]
    nodes.extend(_used_nodes(new, {output.name for output in model.graph.output}))
    tensors.remove_unused()
    model.opset_import.append(helper.make_opsetid(_DOMAIN, 1))


def _make_node(kind: str, inputs: list[str], replaced: Any) -> Any:
    from onnx import helper

    return helper.make_node(kind, inputs, replaced.output, name=replaced.name, domain=_DOMAIN)


def _attributes(**values: int) -> list[Any]:
    from onnx import helper

    named = {**values, "block_size": BLOCK}
    return [helper.make_attribute(name, value) for name, value in named.items()]


def _tables(tensors: Initializers, nodes: Any) -> set[str]:
    """Names of the embeddings that can be rounded, [V, D] each."""
    names = {node.input[0] for node in nodes if node.op_type == "Gather"}
    return {name for name in names if "embedding" in name and _can_round(tensors, name, 1)}


def _can_round(tensors: Initializers, name: str, inputs: int) -> bool:
    """True for a matrix whose dimension `inputs` is a multiple of the block."""
    shape = tensors.shape(name)
    is_matrix = shape is not None and len(shape) == 2 and shape[inputs] % BLOCK == 0
    return is_matrix and tensors.read(name).dtype == np.float32


def _product_of(node: Any, tensors: Initializers, producers: Any) -> tuple[str, bool] | None:
    """Matrix of a product that can be rounded, and True if it is [N, K]; None: it cannot be."""
    if node.op_type != "MatMul" or _is_of_wide_head(node):
        return None
    name, producer = node.input[1], producers.get(node.input[1])
    if producer is not None and producer.op_type == "Transpose":
        name = producer.input[0]
        return (name, True) if _can_round(tensors, name, 1) else None
    return (name, False) if _can_round(tensors, name, 0) else None


def _is_of_wide_head(node: Any) -> bool:
    """True for a node of a wide head, by the modules that `torch.onnx` notes at each node."""
    return any("wide_head" in item.value for item in node.metadata_props)


def _add_table(tensors: Initializers, table: str) -> tuple[str, str]:
    """Names of the rounded values of an embedding, uint8 [V, D], and of its scales [V, G]."""
    values, scales = f"{table}.values", f"{table}.scales"
    if tensors.shape(values) is None:
        blocks = round_blocks(tensors.read(table), 8)
        tensors.add(values, blocks.values.reshape(len(blocks.values), -1))
        tensors.add(scales, blocks.scales)
    return values, scales


def _add_matrix(
    tensors: Initializers, name: str, bits: int, is_transposed: bool
) -> tuple[str, str, dict[str, int]]:
    """Names of the rounded values and scales of a matrix, and its sizes.

    Layers may share a matrix, which is rounded once.
    """
    shape = tensors.shape(name) or (0, 0)
    outputs, inputs = shape if is_transposed else shape[::-1]
    side = "rows" if is_transposed else "columns"
    values, scales = f"{name}.{side}.values", f"{name}.{side}.scales"
    if tensors.shape(values) is None:
        matrix = tensors.read(name)
        blocks = round_blocks(matrix if is_transposed else matrix.T, bits)
        tensors.add(values, blocks.values)
        tensors.add(scales, blocks.scales)
    return values, scales, {"K": inputs, "N": outputs, "bits": bits}


def _used_nodes(nodes: list[Any], outputs: set[str]) -> list[Any]:
    """The nodes whose results are used, in their order."""
    used, needed = set(outputs), []
    for node in reversed(nodes):
        if used.intersection(node.output):
            needed.append(node)
            used.update(node.input)
    return needed[::-1]


def _round_dynamically(path: Path) -> None:
    import onnx
    from onnxruntime.quantization import QuantType, quantize_dynamic

    nodes = onnx.load(str(path), load_external_data=False).graph.node
    target = path.with_name(f"{path.name}.int8")
    quantize_dynamic(
        str(path),
        str(target),
        weight_type=QuantType.QInt8,
        op_types_to_quantize=["MatMul"],
        nodes_to_exclude=[node.name for node in nodes if _is_of_wide_head(node)],
        extra_options={"MatMulConstBOnly": True},
    )
    target.replace(path)
    path.with_name(f"{path.name}.data").unlink(missing_ok=True)
