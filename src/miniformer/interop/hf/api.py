"""What a user calls to bring a model of Hugging Face's here."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor

from miniformer.checkpoint.artifacts import read_artifacts
from miniformer.checkpoint.directory import HF_METADATA, atomic_model_directory, require_empty
from miniformer.checkpoint.pipeline import Pipeline
from miniformer.config import TransformerConfig
from miniformer.interop.hf import decoding, metadata
from miniformer.interop.hf.configs import Config
from miniformer.interop.hf.files import TensorSpec, write_tensors
from miniformer.interop.hf.load import Checkpoint, open_checkpoint
from miniformer.model.hub import resolve_directory
from miniformer.model.pretrained import write_config
from miniformer.utils.atomic import write_text


class ImportResult(NamedTuple):
    """What an import made, to be told to a user."""

    class_name: str  # their class
    config: TransformerConfig
    n_bytes: int
    notes: list[str]


def from_hf(
    source: str | Path,
    *,
    revision: str | None = None,
    custom_code: str = "refuse",
    **settings: Any,
) -> Pipeline:
    """A model of Hugging Face's, ready to use: `.model`, `.generate`, `.predict`, `.embed`.

    Args:
        source: a directory, or a name on the hub such as "user/name".
        revision: of a name on the hub: a branch, tag or commit.
        custom_code: where a config names code of its own: refuse the model, or ignore the code,
            which is never run.
        **settings: fields of `TransformerConfig` over what the files say: `max_seq_len`,
            `dropout`, `pooling`.

    Raises:
        UserError: a file is missing, broken or hostile, or the model has parts that we have not.
    """
    checkpoint = open_checkpoint(
        resolve_directory(source, revision), overrides=settings, custom_code=custom_code
    )
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        kept, _ = _write_artifacts(checkpoint, folder)
        tokenizer, task, generation = read_artifacts(
            folder, _architecture_name(checkpoint), checkpoint.config
        )
    pipeline = Pipeline(checkpoint.build_model(), tokenizer, task=task, generation=generation)
    pipeline.directory, pipeline.hf_metadata = checkpoint.directory.path, kept
    return pipeline


def import_hf(
    source: str | Path,
    out: str | Path,
    *,
    revision: str | None = None,
    custom_code: str = "refuse",
    **settings: Any,
) -> ImportResult:
    """Makes a model directory of one of Hugging Face's, tensor by tensor; see `from_hf`.

    Args:
        source, revision, custom_code, settings: see `from_hf`.
        out: the directory to make; it must not exist, or be empty.

    Raises:
        UserError: see `from_hf`, or `out` holds something.
    """
    out = Path(out)
    require_empty(out)
    checkpoint = open_checkpoint(
        resolve_directory(source, revision), overrides=settings, custom_code=custom_code
    )
    names = [name for piece in checkpoint.plan for name in piece.names]
    shapes = [shape for piece in checkpoint.plan for shape in piece.shapes]
    kinds = [
        entry.spec().dtype
        for piece, entry in zip(checkpoint.plan, checkpoint.entries, strict=True)
        for _ in piece.names
    ]
    outlines = [TensorSpec(*each) for each in zip(names, kinds, shapes, strict=True)]

    def tensors() -> Iterator[Tensor]:
        for _, tensor in checkpoint.tensors():
            yield tensor

    with atomic_model_directory(out) as folder:
        _, notes = _write_artifacts(checkpoint, folder)
        write_tensors(folder / "model.safetensors", outlines, tensors())
        write_text(folder / "README.md", _model_card(checkpoint))
    if checkpoint.unused_tensors:
        count = len(checkpoint.unused_tensors)
        notes.append(f"left out: {', '.join(checkpoint.unused_tensors[:4])}{', ...' * (count > 4)}")
    size = (out / "model.safetensors").stat().st_size
    return ImportResult(checkpoint.class_name, checkpoint.config, size, notes)


def _write_artifacts(checkpoint: Checkpoint, folder: Path) -> tuple[Config, list[str]]:
    """Writes all of a model directory but the weights; returns what is remembered, and notes."""
    kept, config = metadata.collect_hf_metadata(checkpoint), checkpoint.config
    write_config(folder, _architecture_name(checkpoint), config)
    note = metadata.copy_tokenizer(checkpoint.directory, folder, config.vocab_size)
    _write_json(folder / "task.json", metadata.infer_task(checkpoint))
    _write_json(
        folder / "generation_config.json", decoding.from_hf_generation_config(checkpoint).to_dict()
    )
    _write_json(folder / HF_METADATA, kept)
    return kept, [] if note is None else [note]


def _architecture_name(checkpoint: Checkpoint) -> str:
    return "Seq2SeqTransformer" if checkpoint.family.seq2seq else "Transformer"


def _write_json(path: Path, value: Any) -> None:
    write_text(path, json.dumps(value, indent=2) + "\n")


def _model_card(checkpoint: Checkpoint) -> str:
    config = checkpoint.config
    count = config.num_params(seq2seq=checkpoint.family.seq2seq)
    return f"""# {checkpoint.directory.path.name}

Imported from Hugging Face's files of a {checkpoint.class_name}: {count:,} parameters, {config.n_layers}
layers of width {config.d_model}.

```python
import miniformer

m = miniformer.load("path/to/this/directory")
```
"""
