"""Tensors of an ONNX graph: reading, replacing, and writing a shared one once.

Letters: V vocabulary, D model width.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

_MAX_INLINE_BYTES = 2**30  # a protobuf message has at most 2 GiB


class Initializers:
    """The constant tensors of a graph by name.

    Args:
        model: the `onnx.ModelProto`, which is changed.
    """

    def __init__(self, model: Any) -> None:
        self.graph = model.graph
        self._tensors = {tensor.name: tensor for tensor in self.graph.initializer}

    def shape(self, name: str) -> tuple[int, ...] | None:
        """Shape of a tensor; None: it is no constant."""
        tensor = self._tensors.get(name)
        return None if tensor is None else tuple(tensor.dims)

    def read(self, name: str) -> np.ndarray:
        """Values of a tensor."""
        from onnx import numpy_helper

        array: np.ndarray = numpy_helper.to_array(self._tensors[name])
        return array

    def add(self, name: str, array: np.ndarray) -> str:
        """Adds a tensor; returns its name."""
        from onnx import numpy_helper

        tensor = numpy_helper.from_array(np.ascontiguousarray(array), name)
        self.graph.initializer.append(tensor)
        self._tensors[name] = self.graph.initializer[-1]
        return name

    def remove_unused(self) -> None:
        """Removes the tensors that no node reads."""
        used = {name for node in self.graph.node for name in node.input}
        for name in [name for name in self._tensors if name not in used]:
            self.graph.initializer.remove(self._tensors.pop(name))


def share_tied_head(model: Any) -> None:
    """Replaces the copy of an embedding that a tied head multiplies with by its transpose.

    `torch.onnx` writes the weight [V, D] of the embedding, and [D, V] for the product.

    Args:
        model: the `onnx.ModelProto`, which is changed.
    """
    from onnx import helper

    tensors, nodes = Initializers(model), model.graph.node
    tables = [node.input[0] for node in nodes if node.op_type == "Gather"]
    tables = [name for name in tables if len(tensors.shape(name) or ()) == 2]
    for index, node in reversed([*enumerate(nodes)]):
        shape = tensors.shape(node.input[1]) if node.op_type == "MatMul" else None
        for table in tables:
            if shape is None or tensors.shape(table) != shape[::-1]:
                continue
            if np.array_equal(tensors.read(table), tensors.read(node.input[1]).T):
                name = f"{table}.transposed"
                node.input[1] = name
                nodes.insert(index, helper.make_node("Transpose", [table], [name], perm=[1, 0]))
                break
    tensors.remove_unused()


def save_model(model: Any, path: Path) -> None:
    """Writes a graph; its tensors are in a second file if one file cannot hold them."""
    import onnx

    size = sum(len(tensor.raw_data) for tensor in model.graph.initializer)
    if size <= _MAX_INLINE_BYTES:
        onnx.save(model, str(path))
        return
    onnx.save(model, str(path), save_as_external_data=True, location=f"{path.name}.data")
