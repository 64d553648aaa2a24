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

from miniformer.checkpoint.companions import read_companions
from miniformer.checkpoint.directory import read_remembered, refuse_full, replacing
from miniformer.checkpoint.pipeline import Pipeline
from miniformer.config import GenerationConfig, TransformerConfig, UserError
from miniformer.data.tokenizer import Tokenizer
from miniformer.interop.hf import decoding, texts
from miniformer.interop.hf.configs import Config, Family, effective, write_config
from miniformer.interop.hf.families import ALL
from miniformer.interop.hf.files import Directory, Outline, read_tensor, write_tensors
from miniformer.interop.hf.reading import Model
from miniformer.interop.hf.weights import Piece, pieces
from miniformer.model.pretrained import read_config
from miniformer.model.seq2seq import Seq2SeqTransformer
from miniformer.utils.atomic import write_text


@dataclasses.dataclass
class Source:
    """What is to be written: a model in memory or in a directory, and what stands beside it."""

    config: TransformerConfig
    seq2seq: bool
    outlines: Mapping[str, Outline]  # our names
    read: Callable[[str], Tensor]
    task: Config  # as in task.json; empty: not known
    tokenizer: Tokenizer | None
    generation: GenerationConfig
    kept: Config  # what was remembered at import
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
    refuse_full(out)
    source = _source(model)
    wanted = family or source.kept.get("model_type")
    chosen, name, theirs = choose(source.config, seq2seq=source.seq2seq, wanted=wanted)
    ids = texts.special_ids(
        chosen,
        source.kept,
        source.tokenizer,
        vocab_size=source.config.vocab_size,
        start=source.task.get("start_id"),
    )
    kinds = {str(outline.kind).removeprefix("torch.") for outline in source.outlines.values()}
    kind = kinds.pop() if len(kinds) == 1 else "float32"
    theirs = {
        **theirs,
        **ids,
        **texts.labels(source.task.get("classes"), source.config.output_dim, source.kept),
        "dtype": kind,
        "torch_dtype": kind,  # what it was called before transformers 5
    }
    plan = pieces(
        chosen.table(name, source.config),
        {key: outline.shape for key, outline in source.outlines.items()},
    )
    if not source.config.tie_embeddings:
        plan += _copies(chosen, plan)
    prefix = chosen.prefix if chosen.kinds[name].bare else ""
    with replacing(out) as folder:
        _write_weights(folder, source, plan, prefix)
        _write_json(folder / "config.json", theirs)
        _write_json(
            folder / "generation_config.json",
            decoding.decoding(source.generation, ids, source.kept),
        )
        task = str(source.task.get("task", ""))
        texts.write_tokenizer(source.tokenizer, source.directory, folder, source.config, task)
        write_text(folder / "README.md", _card(name, source))
    return out


def choose(
    config: TransformerConfig, *, seq2seq: bool, wanted: str | None = None
) -> tuple[Family, str, Config]:
    """The family and the class that a model is, and its `config.json`.

    Args:
        config: the model's.
        seq2seq: whether it is a Seq2SeqTransformer.
        wanted: a `model_type` that goes before others; no other will do if it is a family's name.

    Raises:
        UserError: there is none.
    """
    known = sorted({family.model_type for family in ALL})
    if wanted is not None and wanted not in known:
        raise UserError(f"family {wanted!r} is none of {', '.join(known)}")
    nearest: tuple[int, str, list[str]] | None = None
    for family in sorted(ALL, key=lambda each: each.model_type != wanted):
        if family.seq2seq != seq2seq:
            continue
        for name, kind in family.kinds.items():
            if kind.classifies != (config.output_dim is not None):
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
    values = {**effective(config), **{k: v for k, v in config.to_dict().items() if v is not None}}
    ways = ", ".join(
        f"{field}={values[field]!r}" if field in values else field for field in blocked
    )
    raise UserError(
        f"no family of Hugging Face's has these parts; the nearest is {name}, "
        f"in whose way stands {ways}"
    )


def _source(model: Model | Pipeline | str | Path) -> Source:
    if isinstance(model, str | Path):
        return _of_directory(Path(model))
    pipeline, inner = (model, model.model) if isinstance(model, Pipeline) else (None, model)
    weights = inner.state_dict()
    return Source(
        config=inner.config,
        seq2seq=isinstance(inner, Seq2SeqTransformer),
        outlines={name: Outline(name, each.dtype, each.shape) for name, each in weights.items()},
        read=weights.__getitem__,
        task={} if pipeline is None else pipeline.task.settings(),
        tokenizer=None if pipeline is None else pipeline.tokenizer,
        generation=GenerationConfig() if pipeline is None else pipeline.generation,
        kept={} if pipeline is None else pipeline.remembered,
        directory=None if pipeline is None or not pipeline.remembered else pipeline.directory,
    )


def _of_directory(path: Path) -> Source:
    architecture, config = read_config(path)
    entries = Directory(path).tensors()
    tokenizer, task, generation = read_companions(path, architecture, config)
    kept = read_remembered(path)
    return Source(
        config=config,
        seq2seq=architecture == "Seq2SeqTransformer",
        outlines={name: entry.outline() for name, entry in entries.items()},
        read=lambda name: read_tensor(entries[name]),
        task=task.settings(),
        tokenizer=tokenizer,
        generation=generation,
        kept=kept,
        directory=path if kept else None,
    )


def _copies(family: Family, plan: list[Piece]) -> list[Piece]:
    """Tables that stacks share with the embedding, which transformers ties only with the head."""
    known = {piece.theirs: piece for piece in plan}
    return [
        dataclasses.replace(known[original], theirs=name)
        for name, originals in family.copies.items()
        for original in originals[:1]
        if name not in known and original in known and name.endswith("embed_tokens.weight")
    ]


def _write_weights(folder: Path, source: Source, plan: list[Piece], prefix: str) -> None:
    outlines = []
    for piece in plan:
        kind = source.outlines[piece.ours[0]].kind
        outlines.append(Outline(piece.theirs.removeprefix(prefix), kind, piece.shape()))

    def tensors() -> Iterator[Tensor]:
        for piece in plan:
            yield piece.layout.join([_in_units(source, name) for name in piece.ours])

    write_tensors(folder / "model.safetensors", outlines, tensors())


def _in_units(source: Source, name: str) -> Tensor:
    """A weight; that of a regression's head gives values in the units of the data."""
    tensor = source.read(name)
    mean, spread = source.task.get("mean"), source.task.get("spread")
    if source.task.get("task") != "regression" or not name.startswith("head.") or spread is None:
        return tensor
    if name == "head.weight":
        tensor = (tensor.double() * spread).to(tensor.dtype)
    if name == "head.bias":
        tensor = (tensor.double() * spread + mean).to(tensor.dtype)
    return tensor


def _write_json(path: Path, values: Config) -> None:
    write_text(path, json.dumps(values, indent=2, sort_keys=True) + "\n")


def _card(name: str, source: Source) -> str:
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
