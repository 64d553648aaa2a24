"""From a model of ours to a directory of Hugging Face's, which their Auto classes load.

    TransformerConfig -> the family that has its parts -> config.json -> tensors, one by one

Which family that is, is found by writing a family's config and reading it again: what comes back
must be what went in.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from torch import Tensor

from miniformer.checkpoint.artifacts import read_artifacts
from miniformer.checkpoint.directory import atomic_model_directory, read_hf_metadata, require_empty
from miniformer.checkpoint.pipeline import Pipeline
from miniformer.config import GenerationConfig, TransformerConfig, UserError
from miniformer.data.tokenizers.tokenizer import Tokenizer
from miniformer.interop.hf import decoding, metadata
from miniformer.interop.hf.configs import Config, Family, effective_fields, write_config
from miniformer.interop.hf.families import ALL_FAMILIES
from miniformer.interop.hf.files import CheckpointDirectory, TensorSpec, read_tensor, write_tensors
from miniformer.interop.hf.load import Model
from miniformer.interop.hf.weights import TensorMapping, map_tensors
from miniformer.model.pretrained import read_config
from miniformer.model.seq2seq import Seq2SeqTransformer
from miniformer.utils.atomic import write_text


@dataclasses.dataclass
class ExportSource:
    """What is to be written: a model in memory or in a directory, and what stands beside it."""

    config: TransformerConfig
    seq2seq: bool
    tensor_specs: Mapping[str, TensorSpec]  # our names
    load_tensor: Callable[[str], Tensor]
    task: Config  # as in task.json; empty: not known
    tokenizer: Tokenizer | None
    generation: GenerationConfig
    hf_metadata: Config  # what was remembered at import
    directory: Path | None  # a model directory whose tokenizer goes as it came


def to_hf(
    model: Model | Pipeline | str | Path, out: str | Path, *, family: str | None = None
) -> Path:
    """Writes a model as Hugging Face's files, which `AutoModel...from_pretrained(out)` loads.

    Args:
        model: a model, a pipeline, or a model directory, which is read tensor by tensor.
        out: the directory to make; it must not exist, or be empty.
        family: the `model_type` to write, such as llama; None: that which it was imported as, or
            else the first that has its parts.

    Returns:
        The directory.

    Raises:
        UserError: no family has the model's parts: it names the nearest, and what stands in its
            way; or `out` holds something.
    """
    out = Path(out)
    require_empty(out)
    source = _make_export_source(model)
    wanted = family or source.hf_metadata.get("model_type")
    chosen, name, theirs = select_family(source.config, seq2seq=source.seq2seq, model_type=wanted)
    ids = metadata.make_special_token_ids(
        chosen,
        source.hf_metadata,
        source.tokenizer,
        vocab_size=source.config.vocab_size,
        decoder_start_id=source.task.get("start_id"),
    )
    kinds = {str(outline.dtype).removeprefix("torch.") for outline in source.tensor_specs.values()}
    kind = kinds.pop() if len(kinds) == 1 else "float32"
    theirs = {
        **theirs,
        **ids,
        **metadata.label_config(
            source.task.get("classes"), source.config.output_dim, source.hf_metadata
        ),
        "dtype": kind,
        "torch_dtype": kind,  # what it was called before transformers 5
    }
    plan = map_tensors(
        chosen.weight_rules(name, source.config),
        {key: outline.shape for key, outline in source.tensor_specs.items()},
    )
    if not source.config.tie_embeddings:
        plan += _tied_embeddings(chosen, plan)
    prefix = chosen.prefix if chosen.model_classes[name].is_backbone else ""
    with atomic_model_directory(out) as folder:
        _write_weights(folder, source, plan, prefix)
        _write_json(folder / "config.json", theirs)
        _write_json(
            folder / "generation_config.json",
            decoding.to_hf_generation_config(source.generation, ids, source.hf_metadata),
        )
        task = str(source.task.get("task", ""))
        metadata.write_tokenizer(source.tokenizer, source.directory, folder, source.config, task)
        write_text(folder / "README.md", _model_card(name, source))
    return out


def select_family(
    config: TransformerConfig, *, seq2seq: bool, model_type: str | None = None
) -> tuple[Family, str, Config]:
    """The family and the class that a model is, and its `config.json`.

    Args:
        config: the model's.
        seq2seq: whether it is a Seq2SeqTransformer.
        wanted: a `model_type` that goes before others; no other will do if it is a family's name.

    Raises:
        UserError: there is none.
    """
    known = sorted({family.model_type for family in ALL_FAMILIES})
    if model_type is not None and model_type not in known:
        raise UserError(f"family {model_type!r} is none of {', '.join(known)}")
    nearest: tuple[int, str, list[str]] | None = None
    for family in sorted(ALL_FAMILIES, key=lambda each: each.model_type != model_type):
        if family.seq2seq != seq2seq:
            continue
        for name, kind in family.model_classes.items():
            if kind.is_classifier != (config.output_dim is not None):
                continue
            theirs, blocked = write_config(family, name, config)
            if config.input_dim is not None:
                blocked = ["input_dim", *blocked]
            if not blocked:
                return family, name, theirs
            if nearest is None or len(blocked) < nearest[0]:
                nearest = len(blocked), name, blocked
    if nearest is None:
        raise UserError("no family of Hugging Face's is a model of this kind")
    _, name, blocked = nearest
    values = {
        **effective_fields(config),
        **{k: v for k, v in config.to_dict().items() if v is not None},
    }
    ways = ", ".join(
        f"{field}={values[field]!r}" if field in values else field for field in blocked
    )
    raise UserError(
        f"no family of Hugging Face's has these parts; the nearest is {name}, "
        f"in whose way stands {ways}"
    )


def _make_export_source(model: Model | Pipeline | str | Path) -> ExportSource:
    if isinstance(model, str | Path):
        return _source_from_directory(Path(model))
    pipeline, inner = (model, model.model) if isinstance(model, Pipeline) else (None, model)
    weights = inner.state_dict()
    return ExportSource(
        config=inner.config,
        seq2seq=isinstance(inner, Seq2SeqTransformer),
        tensor_specs={
            name: TensorSpec(name, each.dtype, each.shape) for name, each in weights.items()
        },
        load_tensor=weights.__getitem__,
        task={} if pipeline is None else pipeline.task.settings(),
        tokenizer=None if pipeline is None else pipeline.tokenizer,
        generation=GenerationConfig() if pipeline is None else pipeline.generation,
        hf_metadata={} if pipeline is None else pipeline.hf_metadata,
        directory=None if pipeline is None or not pipeline.hf_metadata else pipeline.directory,
    )


def _source_from_directory(path: Path) -> ExportSource:
    architecture, config = read_config(path)
    entries = CheckpointDirectory(path).tensor_entries()
    tokenizer, task, generation = read_artifacts(path, architecture, config)
    kept = read_hf_metadata(path)
    return ExportSource(
        config=config,
        seq2seq=architecture == "Seq2SeqTransformer",
        tensor_specs={name: entry.spec() for name, entry in entries.items()},
        load_tensor=lambda name: read_tensor(entries[name]),
        task=task.settings(),
        tokenizer=tokenizer,
        generation=generation,
        hf_metadata=kept,
        directory=path if kept else None,
    )


def _tied_embeddings(family: Family, plan: list[TensorMapping]) -> list[TensorMapping]:
    """Tables that stacks share with the embedding, which transformers ties only with the head."""
    known = {piece.hf_name: piece for piece in plan}
    return [
        dataclasses.replace(known[original], hf_name=name)
        for name, originals in family.tied_weights.items()
        for original in originals[:1]
        if name not in known and original in known and name.endswith("embed_tokens.weight")
    ]


def _write_weights(
    folder: Path, source: ExportSource, plan: list[TensorMapping], prefix: str
) -> None:
    outlines = []
    for piece in plan:
        kind = source.tensor_specs[piece.names[0]].dtype
        outlines.append(TensorSpec(piece.hf_name.removeprefix(prefix), kind, piece.shape()))

    def tensors() -> Iterator[Tensor]:
        for piece in plan:
            yield piece.layout.join([_denormalized_weight(source, name) for name in piece.names])

    write_tensors(folder / "model.safetensors", outlines, tensors())


def _denormalized_weight(source: ExportSource, name: str) -> Tensor:
    """A weight; that of a regression's head gives values in the units of the data."""
    tensor = source.load_tensor(name)
    mean, spread = source.task.get("target_mean"), source.task.get("target_std")
    if source.task.get("task") != "regression" or not name.startswith("head.") or spread is None:
        return tensor
    if name == "head.weight":
        tensor = (tensor.double() * spread).to(tensor.dtype)
    if name == "head.bias":
        tensor = (tensor.double() * spread + mean).to(tensor.dtype)
    return tensor


def _write_json(path: Path, values: Config) -> None:
    write_text(path, json.dumps(values, indent=2, sort_keys=True) + "\n")


def _model_card(name: str, source: ExportSource) -> str:
    pairs = source.task.get("input_kind") == "pair" and source.config.token_types == 4
    marks = """
The model was trained with marks: `token_type_ids` are 2 and 3, instead of 0 and 1, at tokens that
both texts of a pair have. A tokenizer does not give them.
"""
    return f"""---
library_name: transformers
---

# {name}

Written by Miniformer. Load it with

```python
from transformers import AutoTokenizer, {name}

model = {name}.from_pretrained("path/to/this/directory")
```
{marks if pairs else ""}"""
