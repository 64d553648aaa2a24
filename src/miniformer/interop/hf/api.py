"""Entry points of the import: `from_hf` and `import_hf`."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any, NamedTuple

from miniformer.checkpoint.artifacts import read_artifacts
from miniformer.checkpoint.directory import HF_METADATA, atomic_model_directory, require_empty
from miniformer.checkpoint.pipeline import Pipeline
from miniformer.config import TransformerConfig
from miniformer.interop.hf import decoding, metadata
from miniformer.interop.hf.configs import Config
from miniformer.interop.hf.files import TensorSpec, write_tensors
from miniformer.interop.hf.load import Checkpoint, open_checkpoint
from miniformer.model.config_file import write_config
from miniformer.model.hub import resolve_directory
from miniformer.utils.atomic import write_json, write_text


class ImportResult(NamedTuple):
    """Summary of an import."""

    class_name: str  # of transformers
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
    """Loads a Hugging Face model: `.model`, `.generate`, `.predict`, `.embed`.

    Args:
        source: a directory, or a name on the hub such as "user/name".
        revision: branch, tag or commit of a name on the hub.
        custom_code: if the config names custom code: refuse the model, or ignore the code. It is
            never executed.
        **settings: fields of `TransformerConfig` that override the files: `max_seq_len`,
            `dropout`, `pooling`.

    Raises:
        UserError: a file is missing, broken or malicious, or the model is not supported.
    """
    checkpoint = open_checkpoint(
        resolve_directory(source, revision), overrides=settings, custom_code=custom_code
    )
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        hf_metadata, _ = _write_artifacts(checkpoint, folder)
        tokenizer, task, generation = read_artifacts(
            folder, _architecture_name(checkpoint), checkpoint.config
        )
    pipeline = Pipeline(checkpoint.build_model(), tokenizer, task=task, generation=generation)
    pipeline.directory, pipeline.hf_metadata = checkpoint.directory.path, hf_metadata
    return pipeline


def import_hf(
    source: str | Path,
    out: str | Path,
    *,
    revision: str | None = None,
    custom_code: str = "refuse",
    **settings: Any,
) -> ImportResult:
    """Converts a Hugging Face checkpoint to a model directory, tensor by tensor; see `from_hf`.

    Args:
        source, revision, custom_code, settings: see `from_hf`.
        out: the directory to write; it must not exist, or be empty.

    Raises:
        UserError: see `from_hf`, or `out` is not empty.
    """
    out = Path(out)
    require_empty(out)
    checkpoint = open_checkpoint(
        resolve_directory(source, revision), overrides=settings, custom_code=custom_code
    )
    specs = [
        TensorSpec(name, entry.spec().dtype, shape)
        for mapping, entry in zip(checkpoint.plan, checkpoint.entries, strict=True)
        for name, shape in zip(mapping.names, mapping.shapes, strict=True)
    ]
    with atomic_model_directory(out) as folder:
        _, notes = _write_artifacts(checkpoint, folder)
        write_tensors(folder / "model.safetensors", specs, checkpoint.tensors())
        write_text(folder / "README.md", _model_card(checkpoint))
    if checkpoint.unused_tensors:
        count = len(checkpoint.unused_tensors)
        notes.append(
            f"not imported: {', '.join(checkpoint.unused_tensors[:4])}{', ...' * (count > 4)}"
        )
    size = (out / "model.safetensors").stat().st_size
    return ImportResult(checkpoint.class_name, checkpoint.config, size, notes)


def _write_artifacts(checkpoint: Checkpoint, folder: Path) -> tuple[Config, list[str]]:
    """Writes all files of a model directory but the weights; returns metadata and notes."""
    hf_metadata, config = metadata.collect_hf_metadata(checkpoint), checkpoint.config
    write_config(folder, _architecture_name(checkpoint), config)
    note = metadata.copy_tokenizer(checkpoint.directory, folder, config.vocab_size)
    write_json(folder / "task.json", metadata.infer_task(checkpoint))
    write_json(
        folder / "generation_config.json", decoding.from_hf_generation_config(checkpoint).to_dict()
    )
    write_json(folder / HF_METADATA, hf_metadata)
    return hf_metadata, [] if note is None else [note]


def _architecture_name(checkpoint: Checkpoint) -> str:
    return "Seq2SeqTransformer" if checkpoint.family.seq2seq else "Transformer"


def _model_card(checkpoint: Checkpoint) -> str:
    config = checkpoint.config
    count = config.num_params(seq2seq=checkpoint.family.seq2seq)
    return f"""# {checkpoint.directory.path.name}

Imported from a Hugging Face {checkpoint.class_name}: {count:,} parameters,
{config.n_layers} layers of width {config.d_model}.

```python
import miniformer

m = miniformer.load("path/to/this/directory")
```
"""
