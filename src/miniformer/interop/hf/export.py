"""Export to a Hugging Face checkpoint, which the Auto classes of transformers load.

    TransformerConfig -> family -> config.json -> tensors, one at a time

A family fits if its `config.json` of the model, read again, gives the same config.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from torch import Tensor

from miniformer.checkpoint.artifacts import read_artifacts
from miniformer.checkpoint.directory import (
    CHAT_TEMPLATE,
    atomic_model_directory,
    read_hf_metadata,
    require_empty,
)
from miniformer.checkpoint.pipeline import Pipeline, load
from miniformer.config import GenerationConfig, TransformerConfig, UserError
from miniformer.data.tokenizers.tokenizer import Tokenizer
from miniformer.interop.hf import decoding, metadata
from miniformer.interop.hf.configs import Config, Family, effective_fields, write_config
from miniformer.interop.hf.families import ALL_FAMILIES
from miniformer.interop.hf.files import CheckpointDirectory, TensorSpec, read_tensor, write_tensors
from miniformer.interop.hf.load import Model
from miniformer.interop.hf.weights import TensorMapping, map_tensors
from miniformer.model.config_file import read_description
from miniformer.model.seq2seq import Seq2SeqTransformer
from miniformer.model.transforms import effective_state_dict
from miniformer.utils.atomic import write_json, write_text


@dataclasses.dataclass
class ExportSource:
    """A model in memory or in a directory, with its task, tokenizer and metadata."""

    config: TransformerConfig
    seq2seq: bool
    tensor_specs: Mapping[str, TensorSpec]  # by the names of the model
    load_tensor: Callable[[str], Tensor]
    task: Config  # as in task.json; empty: unknown
    tokenizer: Tokenizer | None
    generation: GenerationConfig
    hf_metadata: Config  # of an imported model
    directory: Path | None  # a model directory whose tokenizer files are copied


_WIDE_HEAD = "wide_head."  # prefix of tensors that no family has; the config names the problem


def to_hf(
    model: Model | Pipeline | str | Path, out: str | Path, *, family: str | None = None
) -> Path:
    """Writes a Hugging Face checkpoint, which `AutoModel...from_pretrained(out)` loads.

    Args:
        model: a model, a pipeline, or a model directory, which is read tensor by tensor.
        out: the directory to write; it must not exist, or be empty.
        family: the `model_type` to write, such as llama; None: that of the import, or the first
            that fits.

    Returns:
        The directory.

    Raises:
        UserError: no family fits the model; the message names the nearest family and the fields
            that differ. Or `out` is not empty.
    """
    out = Path(out)
    require_empty(out)
    source = export_source(model)
    model_type = family or source.hf_metadata.get("model_type")
    per_token = source.task.get("task") == "token_classification"
    target, name, hf_config = select_family(
        source.config, seq2seq=source.seq2seq, model_type=model_type, per_token=per_token
    )
    ids = metadata.make_special_token_ids(
        target,
        source.hf_metadata,
        source.tokenizer,
        vocab_size=source.config.vocab_size,
        decoder_start_id=source.task.get("start_id"),
    )
    dtypes = {str(spec.dtype).removeprefix("torch.") for spec in source.tensor_specs.values()}
    dtype = dtypes.pop() if len(dtypes) == 1 else "float32"
    hf_config = {
        **hf_config,
        **ids,
        **metadata.label_config(source.task, source.config.output_dim, source.hf_metadata),
        "dtype": dtype,
        "torch_dtype": dtype,  # its name before transformers 5
    }
    plan = map_tensors(
        target.weight_rules(name, source.config),
        {key: spec.shape for key, spec in source.tensor_specs.items()},
    )
    if not source.config.tie_embeddings:
        plan += _tied_embeddings(target, plan)
    prefix = target.prefix if target.model_classes[name].is_backbone else ""
    with atomic_model_directory(out) as folder:
        _write_weights(folder, source, plan, prefix)
        options = decoding.to_hf_generation_config(source.generation, ids, source.hf_metadata)
        write_json(folder / "config.json", hf_config, sort_keys=True)
        write_json(folder / "generation_config.json", options, sort_keys=True)
        task = str(source.task.get("task", ""))
        metadata.write_tokenizer(source.tokenizer, source.directory, folder, source.config, task)
        if (template := source.task.get("chat_template")) is not None:
            write_text(folder / CHAT_TEMPLATE, template)
        write_text(folder / "README.md", _model_card(name, source))
    return out


def select_family(
    config: TransformerConfig,
    *,
    seq2seq: bool,
    model_type: str | None = None,
    per_token: bool = False,
) -> tuple[Family, str, Config]:
    """Family, class name and `config.json` of a model.

    Args:
        config: of the model.
        seq2seq: true for an encoder-decoder model.
        model_type: family that is tried first.
        per_token: true if the model classifies tokens.

    Raises:
        UserError: no family fits.
    """
    known = sorted({family.model_type for family in ALL_FAMILIES})
    if model_type is not None and model_type not in known:
        raise UserError(f"family {model_type!r} is none of {', '.join(known)}")
    nearest: tuple[int, str, list[str]] | None = None
    for family in sorted(ALL_FAMILIES, key=lambda family: family.model_type != model_type):
        if family.seq2seq != seq2seq:
            continue
        for name, model_class in family.model_classes.items():
            is_classifier = config.output_dim is not None
            if (model_class.is_classifier, model_class.per_token) != (is_classifier, per_token):
                continue
            hf_config, blocked = write_config(family, name, config)
            if config.input_type != "tokens":
                blocked = ["input_dim" if config.input is None else "input", *blocked]
            if not blocked:
                return family, name, hf_config
            if nearest is None or len(blocked) < nearest[0]:
                nearest = len(blocked), name, blocked
    if nearest is None:
        raise UserError("no Hugging Face family has models of this kind")
    _, name, blocked = nearest
    values = {
        **effective_fields(config),
        **{k: v for k, v in config.to_dict().items() if v is not None},
    }
    problems = ", ".join(
        f"{field}={values[field]!r}" if field in values else field for field in blocked
    )
    raise UserError(
        f"no Hugging Face family fits this model; the nearest is {name}, which does not support "
        f"{problems}"
    )


def export_source(model: Model | Pipeline | str | Path) -> ExportSource:
    """The model that an export reads.

    Args:
        model: a model, a pipeline, a model directory, or the directory of a model alone.

    Raises:
        UserError: a file is missing or broken.
    """
    if isinstance(model, str | Path):
        return _source_from_directory(Path(model))
    pipeline, inner = (model, model.model) if isinstance(model, Pipeline) else (None, model)
    weights = effective_state_dict(inner)
    return ExportSource(
        config=inner.config,
        seq2seq=isinstance(inner, Seq2SeqTransformer),
        tensor_specs={name: TensorSpec(name, x.dtype, x.shape) for name, x in weights.items()},
        load_tensor=weights.__getitem__,
        task={} if pipeline is None else pipeline.task.settings(),
        tokenizer=None if pipeline is None else pipeline.tokenizer,
        generation=GenerationConfig() if pipeline is None else pipeline.generation,
        hf_metadata={} if pipeline is None else pipeline.hf_metadata,
        directory=None if pipeline is None or not pipeline.hf_metadata else pipeline.directory,
    )


def _source_from_directory(path: Path) -> ExportSource:
    description = read_description(path)
    if description.transforms or description.is_quantized:
        return export_source(load(path))
    architecture, config = description[:2]
    entries = CheckpointDirectory(path).tensor_entries()
    tokenizer, task, generation, hf_metadata = None, {}, GenerationConfig(), {}
    if (path / "task.json").exists():  # otherwise the directory of a model alone
        tokenizer, own_task, generation = read_artifacts(path, architecture, config)
        task, hf_metadata = own_task.settings(), read_hf_metadata(path)
    return ExportSource(
        config=config,
        seq2seq=architecture == "Seq2SeqTransformer",
        tensor_specs={
            name: entry.spec() for name, entry in entries.items() if not name.startswith(_WIDE_HEAD)
        },
        load_tensor=lambda name: read_tensor(entries[name]),
        task=task,
        tokenizer=tokenizer,
        generation=generation,
        hf_metadata=hf_metadata,
        directory=path if hf_metadata else None,
    )


def _tied_embeddings(family: Family, plan: list[TensorMapping]) -> list[TensorMapping]:
    """Embeddings of the stacks, which transformers does not tie if the head is untied."""
    known = {mapping.hf_name: mapping for mapping in plan}
    return [
        dataclasses.replace(known[original], hf_name=name)
        for name, originals in family.tied_weights.items()
        for original in originals[:1]
        if name not in known and original in known and name.endswith("embed_tokens.weight")
    ]


def _write_weights(
    folder: Path, source: ExportSource, plan: list[TensorMapping], prefix: str
) -> None:
    specs = []
    for mapping in plan:
        dtype = source.tensor_specs[mapping.names[0]].dtype
        specs.append(TensorSpec(mapping.hf_name.removeprefix(prefix), dtype, mapping.shape()))
    tensors = (
        mapping.layout.join([_denormalized_weight(source, name) for name in mapping.names])
        for mapping in plan
    )
    write_tensors(folder / "model.safetensors", specs, tensors)


def _denormalized_weight(source: ExportSource, name: str) -> Tensor:
    """A weight; the head of a regression is scaled to the units of the data."""
    tensor = source.load_tensor(name)
    mean, std = source.task.get("target_mean"), source.task.get("target_std")
    is_scaled = source.task.get("task") == "regression" and std is not None
    if not is_scaled or name not in ("head.weight", "head.bias"):
        return tensor
    means, stds = (torch.tensor(x, dtype=torch.float64).reshape(-1) for x in (mean, std))
    if name == "head.bias":
        scaled = tensor.double() * stds + means
    else:
        scaled = tensor.double() * stds[:, None]
    return scaled.to(tensor.dtype)


def _model_card(name: str, source: ExportSource) -> str:
    pairs = source.task.get("input_kind") == "pair" and source.config.token_types == 4
    marks = """
The model was trained with shared-token marks: `token_type_ids` are 2 and 3, instead of 0 and 1, at
tokens that both texts of a pair contain. The tokenizer does not set them.
"""
    return f"""---
library_name: transformers
---

# {name}

Exported by Miniformer. Load it with

```python
from transformers import AutoTokenizer, {name}

model = {name}.from_pretrained("path/to/this/directory")
```
{marks if pairs else ""}"""
