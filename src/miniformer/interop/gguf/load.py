"""From a GGUF file to a model directory, tensor by tensor."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from miniformer.checkpoint.directory import HF_METADATA, atomic_model_directory, require_empty
from miniformer.config import GenerationConfig, TransformerConfig, UserError
from miniformer.interop.gguf import metadata as keys
from miniformer.interop.gguf.families import ARCHITECTURES, Architecture
from miniformer.interop.gguf.names import PLUS_ONE
from miniformer.interop.gguf.read import GgufFile
from miniformer.interop.gguf.types import READABLE, decode
from miniformer.interop.gguf.vocabulary import read_tokenizer
from miniformer.interop.gguf.write import REMAINDERS_KEY, SCALING_KEY
from miniformer.interop.hf.configs import to_config
from miniformer.interop.hf.files import TensorSpec, write_tensors
from miniformer.interop.hf.load import meta_model
from miniformer.interop.hf.weights import TensorMapping, map_tensors
from miniformer.model.config_file import write_config
from miniformer.utils.atomic import write_json, write_text

_FACTORS = ("rope_freqs.weight", "rope_factors_long.weight", "rope_factors_short.weight")
_MAX_SHOWN = 4  # missing tensors in a message


class GgufModel(NamedTuple):
    """A checked file, whose matrices are not read yet."""

    file: GgufFile
    architecture: Architecture
    config: TransformerConfig
    plan: list[TensorMapping]

    def tensor(self, name: str) -> Tensor:
        """A tensor of the file in float32."""
        return _read(self.file, name)

    def tensors(self) -> Iterator[Tensor]:
        """Yields the tensors of the model, in the order of `plan`."""
        remainders = self.file.metadata.get(REMAINDERS_KEY) or []
        position = 0
        for mapping in self.plan:
            parts = mapping.layout.split(self.tensor(mapping.hf_name), mapping.shapes)
            if mapping.layout is PLUS_ONE and remainders:
                end = position + parts[0].numel()
                parts[0] = parts[0] + torch.tensor(remainders[position:end])
                position = end
            yield from (part.contiguous() for part in parts)


class ImportResult(NamedTuple):
    """Summary of an import."""

    architecture: str
    config: TransformerConfig
    n_bytes: int
    notes: list[str]


def import_gguf(
    source: str | Path, out: str | Path, *, max_seq_len: int | None = None
) -> ImportResult:
    """Converts a GGUF file to a model directory with float32 weights.

    Args:
        source: a file whose tensors are f32, f16, bf16 or q8_0.
        out: the directory to write; it must not exist, or be empty.
        max_seq_len: context length; None: that of the file.

    Raises:
        UserError: the file is missing, damaged or not supported, or `out` is not empty.
    """
    out = Path(out)
    require_empty(out)
    model = open_gguf(source)
    config = model.config
    if max_seq_len is not None:
        if config.position == "learned" and max_seq_len != config.max_seq_len:
            raise UserError("max_seq_len is the length of the learned position table; leave it out")
        config = to_config({**config.to_dict(), "max_seq_len": max_seq_len})
    metadata = model.file.metadata
    kind = "seq2seq" if model.architecture.seq2seq else "decoder" if config.causal else "encoder"
    try:
        tokenizer, note = read_tokenizer(metadata, config.vocab_size, kind)
    except UserError as error:
        raise UserError(f"{model.file.path}: {error}") from None
    specs = [
        TensorSpec(name, torch.float32, shape)
        for mapping in model.plan
        for name, shape in zip(mapping.names, mapping.shapes, strict=True)
    ]
    with atomic_model_directory(out) as folder:
        architecture = "Seq2SeqTransformer" if kind == "seq2seq" else "Transformer"
        write_config(folder, architecture, config)
        write_json(folder / "task.json", _task(kind, metadata, model.architecture.name))
        eos = None if tokenizer is None else tokenizer.eos_id
        write_json(folder / "generation_config.json", GenerationConfig(eos_id=eos).to_dict())
        write_json(folder / HF_METADATA, _hf_metadata(model))
        if tokenizer is not None:
            tokenizer.save(folder / "tokenizer.json")
        template = metadata.get("tokenizer.chat_template")
        if isinstance(template, str):
            write_text(folder / "chat_template.jinja", template)
        write_tensors(folder / "model.safetensors", specs, model.tensors())
        write_text(folder / "README.md", _model_card(model))
    size = (out / "model.safetensors").stat().st_size
    return ImportResult(model.architecture.name, config, size, [note] if note else [])


def open_gguf(path: str | Path) -> GgufModel:
    """Reads and checks a file without its matrices.

    Raises:
        UserError: it is missing, damaged or not supported.
    """
    file = GgufFile(path)
    try:
        return _open(file)
    except UserError as error:
        raise UserError(f"{file.path}: {error}") from None


def _open(file: GgufFile) -> GgufModel:
    shapes = {name: info.shape for name, info in file.tensors.items()}
    item = _architecture(file.metadata, shapes)
    unread = {info.kind for info in file.tensors.values()} - {*READABLE}
    if unread:
        raise UserError(
            f"it has tensors of type {min(unread)}, which is not read, only {', '.join(READABLE)}"
        )
    embedding = shapes.get("token_embd.weight", ())
    if len(embedding) != 2:
        raise UserError("the tensor 'token_embd.weight' is missing")
    fields = keys.read_hyperparameters(item, file.metadata, shapes, embedding[0])
    layers = max(fields["n_layers"], fields.get("n_decoder_layers") or 0)
    if layers > len(shapes):
        raise UserError(f"{item.name}.block_count={layers} is more than there are tensors")
    fields |= _read_factors(item, file, fields) | _read_tie(file, fields)
    config = to_config(fields)
    if problems := [*item.problems(config)]:
        raise UserError(f"{', '.join(problems)} is not supported")
    seq2seq = item.seq2seq
    if config.num_params(seq2seq=seq2seq) > 2 * sum(map(math.prod, shapes.values())):
        raise UserError("its keys describe a larger model than its tensors")
    own = {
        key: value.shape for key, value in meta_model(config, seq2seq=seq2seq).state_dict().items()
    }
    plan = map_tensors(item.rules(config), own)
    _check_remainders(plan, file.metadata.get(REMAINDERS_KEY))
    _check_shapes(plan, shapes)
    return GgufModel(file, item, config, plan)


def _architecture(metadata: dict[str, Any], shapes: dict[str, tuple[int, ...]]) -> Architecture:
    name = metadata.get("general.architecture")
    matches = [item for item in ARCHITECTURES if item.name == name]
    if not matches:
        known = ", ".join(dict.fromkeys(item.name for item in ARCHITECTURES))
        raise UserError(f"general.architecture={name!r:.80} is none of {known}")
    if name == "t5":
        gated = "enc.blk.0.ffn_gate.weight" in shapes
        return next(
            item for item in matches if item.family.preset == ("t5_v1_1" if gated else "t5")
        )
    if name == "bert" and "token_types.weight" not in shapes:
        return next(item for item in matches if item.family.preset == "distilbert")
    return matches[0]


def _read_factors(item: Architecture, file: GgufFile, fields: dict[str, Any]) -> dict[str, Any]:
    """Reads a rotary scaling whose divisors are tensors."""
    present = [name for name in _FACTORS if name in file.tensors]
    if not present:
        return {}
    pairs = max(file.tensors[name].shape[-1] for name in present)
    if any(file.tensors[name].shape != (pairs,) for name in present) or pairs > 2**16:
        raise UserError(f"the tensor {present[0]!r} must have a number for each rotated pair")
    factors = {name: [float(x) for x in _read(file, name)] for name in present}
    text = file.metadata.get(SCALING_KEY)
    if isinstance(text, str):
        try:
            scaling = json.loads(text)
        except (ValueError, RecursionError):
            raise UserError(f"{SCALING_KEY} is not JSON") from None
        return {"rotary_scaling": scaling}
    if "rope_freqs.weight" in factors:  # Llama 3: the same divisors for all lengths
        same = factors["rope_freqs.weight"]
        scaling = {
            "type": "longrope",
            "factor": 1.0,
            "original_max_seq_len": fields["max_seq_len"],
            "short_factors": same,
            "long_factors": same,
            "attention_factor": 1.0,
        }
        return {"rotary_scaling": scaling}
    scaling = dict(fields.get("rotary_scaling") or {})
    for side in ("short", "long"):
        scaling[f"{side}_factors"] = factors.get(f"rope_factors_{side}.weight")
    return {"rotary_scaling": scaling}


def _read_tie(file: GgufFile, fields: dict[str, Any]) -> dict[str, Any]:
    """Compares the head with the embedding: a tied head may be written a second time."""
    if not fields.get("causal", True) and "n_decoder_layers" not in fields:
        return {}
    if "output.weight" not in file.tensors:
        return {"tie_embeddings": True}
    embedding, head = file.tensors["token_embd.weight"], file.tensors["output.weight"]
    if embedding.shape != head.shape:
        return {"tie_embeddings": False}
    if file.data("token_embd.weight") == file.data("output.weight"):
        return {"tie_embeddings": True}
    if "n_decoder_layers" in fields and head.kind == embedding.kind == "f32":
        scale = fields["d_model"] ** -0.5
        if torch.equal(_read(file, "token_embd.weight") * scale, _read(file, "output.weight")):
            return {"tie_embeddings": True, "logit_scale": scale}
    return {"tie_embeddings": False}


def _check_remainders(plan: list[TensorMapping], values: Any) -> None:
    if values is None:
        return
    count = sum(mapping.shape().numel() for mapping in plan if mapping.layout is PLUS_ONE)
    if not isinstance(values, list) or len(values) != count or not isinstance(values[0], float):
        raise UserError(f"{REMAINDERS_KEY} must have a number for each weight of a norm")


def _check_shapes(plan: list[TensorMapping], shapes: dict[str, tuple[int, ...]]) -> None:
    """Checks that all tensors of the model are there, and no others."""
    missing = [mapping.hf_name for mapping in plan if mapping.hf_name not in shapes]
    if missing:
        more = f" and {len(missing) - _MAX_SHOWN} more" if len(missing) > _MAX_SHOWN else ""
        raise UserError(f"it has no tensor {', '.join(missing[:_MAX_SHOWN])}{more}")
    for mapping in plan:
        if tuple(mapping.shape()) != shapes[mapping.hf_name]:
            raise UserError(
                f"tensor {mapping.hf_name!r} has shape {list(shapes[mapping.hf_name])}, but the "
                f"keys require {list(mapping.shape())}"
            )
    known = {mapping.hf_name for mapping in plan} | {*_FACTORS, "output.weight"}
    if unknown := sorted(shapes.keys() - known):
        raise UserError(f"tensor {unknown[0]!r:.100} is unknown")


def _read(file: GgufFile, name: str) -> Tensor:
    info = file.tensors[name]
    return decode(file.data(name), info.kind, info.shape)


def _task(kind: str, metadata: dict[str, Any], prefix: str) -> dict[str, Any]:
    if kind == "encoder":
        return {"task": "embedding", "input_kind": "text"}
    if kind == "seq2seq":
        start = metadata.get(f"{prefix}.decoder_start_token_id", 0)
        return {"task": "seq2seq", "start_id": start if isinstance(start, int) else 0}
    add_bos = metadata.get("tokenizer.ggml.add_bos_token", False)
    return {"task": "language_modeling", "prepend_bos": add_bos is True}


def _hf_metadata(model: GgufModel) -> dict[str, Any]:
    """Metadata that only an export to transformers needs."""
    names = {"bos": "bos", "eos": "eos", "padding": "pad", "unknown": "unk"}
    ids = {
        f"{short}_token_id": model.file.metadata[f"tokenizer.ggml.{name}_token_id"]
        for name, short in names.items()
        if isinstance(model.file.metadata.get(f"tokenizer.ggml.{name}_token_id"), int)
    }
    family = model.architecture.family
    return {
        "model_type": family.model_type,
        "architecture": next(iter(family.model_classes)),
        "config": ids,
    }


def _model_card(model: GgufModel) -> str:
    config = model.config
    count = config.num_params(seq2seq=model.architecture.seq2seq)
    return f"""# {model.file.path.stem}

Imported from a GGUF file of the architecture {model.architecture.name}: {count:,} parameters,
{config.n_layers} layers of width {config.d_model}.

```python
import miniformer

m = miniformer.load("path/to/this/directory")
```
"""
