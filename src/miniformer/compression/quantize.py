"""`miniformer.quantize`: a model directory whose matrices are stored in fewer bits.

| `to` | matrices of the layers | embeddings of tokens, vocabulary heads, inputs of vectors |
|---|---|---|
| int8 | 8 bits, a scale for 32 weights of a row | 8 bits |
| int4 | 4 bits, a scale for 32 weights of a row | 8 bits |
| bf16, fp16 | bf16, fp16 | bf16, fp16 |

All else stays as it is: norms, biases, positions, types of tokens, heads with `output_dim`, wide
heads, and in int8 and int4 a matrix whose number of inputs is no multiple of 32.
"""

from __future__ import annotations

import copy
import dataclasses
import difflib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from miniformer.checkpoint.artifacts import MODEL_CLASSES, get_model_kind
from miniformer.checkpoint.directory import atomic_model_directory, require_empty
from miniformer.checkpoint.pipeline import Pipeline, load
from miniformer.checkpoint.stored_types import GROUP
from miniformer.config import UserError
from miniformer.config.command_line import resolve_model
from miniformer.model.config_file import read_config
from miniformer.model.matrices import WeightMatrix, named_components, weight_matrices

TYPES = ("int8", "int4", "bf16", "fp16")
_TABLES = ("embedding", "source_embedding")  # last part of the names of embeddings of tokens
_LARGEST_FP16 = 65504.0


@dataclasses.dataclass(frozen=True)
class Quantized:
    """Result of `quantize`.

    Args:
        directory: the written directory.
        num_matrices: matrices and embeddings that have fewer bits.
        num_weights: their weights, and all of the model.
        unchanged: names of matrices and embeddings that stay as they are.
        num_bytes: of the weights before and after, in `model.safetensors`.
        losses: on the data before and after; None: without data.
    """

    directory: Path
    num_matrices: int
    num_weights: tuple[int, int]
    unchanged: tuple[str, ...]
    num_bytes: tuple[int, int]
    losses: tuple[float, float] | None = None

    def __str__(self) -> str:
        before, after = self.num_bytes
        share = 100 * self.num_weights[0] / self.num_weights[1]
        lines = [
            f"written to {self.directory}: {before / 1e6:,.1f} MB before, {after / 1e6:,.1f} MB "
            f"after ({after / before:.3f} of it)",
            f"{self.num_matrices} matrices with {share:.1f} % of the weights have fewer bits",
        ]
        if self.unchanged:
            more = f" and {len(self.unchanged) - 3} more" if len(self.unchanged) > 3 else ""
            lines.append(f"as they were: {', '.join(self.unchanged[:3])}{more}")
        if self.losses is not None:
            first, second = self.losses
            change = 100 * (second / first - 1)
            lines.append(f"loss: {first:.5f} before, {second:.5f} after ({change:+.3f} %)")
        return "\n".join(lines)


def quantize(
    model: Any, out: str | Path, *, to: str, data: str | Path | Sequence[str] | None = None
) -> Quantized:
    """Writes a model directory whose matrices have fewer bits; `load` reads it as any other.

    Args:
        model: a `Pipeline`, a model, a model directory, or the folder of a run. It is not changed.
        out: the directory to write; it must not exist, or be empty.
        to: int8, int4, bf16 or fp16.
        data: labeled records; their loss is computed before and after.

    Raises:
        UserError: the type is unknown, the model is quantized already, has transforms or weights
            that are not finite or too large, or no matrix fits; or `out` is not empty.
    """
    check_type(to)
    out = Path(out)
    require_empty(out)
    source = _read(model)
    pipeline = source if isinstance(source, Pipeline) else None
    original = source.model if isinstance(source, Pipeline) else source
    if data is not None and pipeline is None:
        raise UserError("data needs a model with its task: a Pipeline or its directory")
    _check_model(original)
    types, unchanged = storage_types(original, to)
    first_loss = None if pipeline is None or data is None else _loss(pipeline, data)
    stored = _with_types(original, types, to)
    if pipeline is None:
        with atomic_model_directory(out) as folder:
            stored.save_pretrained(folder)
    else:
        result = Pipeline(stored, pipeline.tokenizer, pipeline.task, pipeline.generation)
        result.directory, result.hf_metadata = pipeline.directory, pipeline.hf_metadata
        result.data_settings = pipeline.data_settings
        result.save(out)
    losses = None
    if first_loss is not None and data is not None:
        losses = first_loss, _loss(load(out), data)
    sizes = {name: matrix.weight.numel() for name, matrix in _candidates(original).items()}
    return Quantized(
        directory=out,
        num_matrices=len(types),
        num_weights=(
            sum(sizes[name] for name in types), sum(x.numel() for x in original.parameters())
        ),
        unchanged=tuple(unchanged),
        num_bytes=(
            sum(x.nbytes for x in original.state_dict().values()),
            (out / "model.safetensors").stat().st_size,
        ),
        losses=losses,
    )  # fmt: skip


def check_type(to: str) -> None:
    """Checks a type of weights.

    Raises:
        UserError: it is unknown.
    """
    if to not in TYPES:
        closest = difflib.get_close_matches(to, TYPES, n=1)
        hint = f"; did you mean {closest[0]!r}?" if closest else ""
        raise UserError(f"to={to!r} is none of {', '.join(TYPES)}{hint}")


def storage_types(model: nn.Module, to: str) -> tuple[dict[str, dict[str, Any]], list[str]]:
    """The type of each matrix that gets fewer bits, and the names of the others.

    Raises:
        UserError: no matrix fits, or one has weights that the type cannot hold.
    """
    types: dict[str, dict[str, Any]] = {}
    unchanged = []
    for name, matrix in _candidates(model).items():
        _check_weight(name, matrix.weight.detach(), to)
        if not _is_stored(model, name, matrix, to):
            unchanged.append(name)
        elif to in ("bf16", "fp16"):
            types[name] = {"type": "short_float", "form": to}
        else:
            bits = 4 if to == "int4" and matrix.layer is not None else 8
            types[name] = {"type": "integers", "bits": bits}
    if not types:
        raise UserError(
            f"no matrix has a multiple of {GROUP} inputs, which {to} needs; use bf16 or fp16"
        )
    return types, unchanged


def _with_types(model: Any, types: dict[str, dict[str, Any]], to: str) -> Any:
    """A model with the same weights whose file has these types."""
    stored = copy.copy(model)  # shares all weights
    if to in ("int8", "int4") and next(model.parameters()).dtype != torch.float32:
        stored = copy.deepcopy(model).float()  # decoded weights are exact in float32 only
    stored.weight_storage = types
    return stored


def _check_weight(name: str, weight: Tensor, to: str) -> None:
    if not weight.isfinite().all():
        raise UserError(f"{name}: has weights that are not finite; train the model again")
    largest = float(weight.abs().max())
    if to == "fp16" and largest > _LARGEST_FP16:
        raise UserError(
            f"{name}: has the weight {largest:.4g}, and fp16 holds {_LARGEST_FP16:,.0f} at most; "
            "use bf16"
        )


def _is_stored(model: Any, name: str, matrix: WeightMatrix, to: str) -> bool:
    if matrix.parameter is None or name.split(".")[0] == "wide_head":
        return False
    if isinstance(matrix.module, nn.Embedding) and name.rpartition(".")[2] not in _TABLES:
        return False
    if name == "head" and model.config.output_dim is not None:
        return False
    return to in ("bf16", "fp16") or matrix.weight.shape[-1] % GROUP == 0


def _candidates(model: nn.Module) -> dict[str, WeightMatrix]:
    """Matrices and embeddings by name."""
    matrices = {matrix.name: matrix for matrix in weight_matrices(model)}
    for path, module in named_components(model):
        if isinstance(module, nn.Embedding):
            matrices[path] = WeightMatrix(
                path, module, module._parameters["weight"], f"{path}.weight"
            )
    return matrices


def _read(model: Any) -> Any:
    """A pipeline, or a model without a task."""
    if not isinstance(model, str | Path):
        if isinstance(model, Pipeline) or hasattr(model, "save_pretrained"):
            return model
        raise UserError(
            f"quantize takes a Pipeline, a model or a model directory, not a {type(model).__name__}"
        )
    directory = Path(resolve_model(str(model)))
    if (directory / "task.json").exists():
        return load(directory)
    architecture, _ = read_config(directory)
    return MODEL_CLASSES[get_model_kind(directory, architecture)].from_pretrained(directory)


def _check_model(model: Any) -> None:
    if model.weight_storage:
        kinds = sorted({str(item["type"]) for item in model.weight_storage.values()})
        raise UserError(
            f"the model is quantized already ({', '.join(kinds)}); weights are not rounded twice: "
            "quantize the model that it was made of"
        )
    if model.transforms:
        names = ", ".join(item["type"] for item in model.transforms)
        raise UserError(
            f"the model has transforms ({names}); merge them first: miniformer.merge_transforms"
        )


def _loss(pipeline: Pipeline, data: Any) -> float:
    return float(pipeline.evaluate(data, num_resamples=0).metrics["loss"])
