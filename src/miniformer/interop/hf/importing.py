"""What a user calls to bring a model of Hugging Face's here."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor

from miniformer.checkpoint.companions import read_companions
from miniformer.checkpoint.directory import REMEMBERED, refuse_full, replacing
from miniformer.checkpoint.pipeline import Pipeline
from miniformer.config import TransformerConfig
from miniformer.interop.hf import decoding, texts
from miniformer.interop.hf.configs import Config
from miniformer.interop.hf.files import Outline, write_tensors
from miniformer.interop.hf.reading import Checkpoint, understand
from miniformer.model.hub import local
from miniformer.model.pretrained import write_config
from miniformer.utils.atomic import write_text


class Imported(NamedTuple):
    """What an import made, to be told to a user."""

    model: str  # their class
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
    checkpoint = understand(local(source, revision), settings=settings, custom_code=custom_code)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        kept, _ = _write_companions(checkpoint, folder)
        tokenizer, task, generation = read_companions(
            folder, _architecture(checkpoint), checkpoint.config
        )
    pipeline = Pipeline(checkpoint.build(), tokenizer, task=task, generation=generation)
    pipeline.directory, pipeline.remembered = checkpoint.directory.path, kept
    return pipeline


def import_hf(
    source: str | Path,
    out: str | Path,
    *,
    revision: str | None = None,
    custom_code: str = "refuse",
    **settings: Any,
) -> Imported:
    """Makes a model directory of one of Hugging Face's, tensor by tensor; see `from_hf`.

    Args:
        source, revision, custom_code, settings: see `from_hf`.
        out: the directory to make; it must not exist, or be empty.

    Raises:
        UserError: see `from_hf`, or `out` holds something.
    """
    out = Path(out)
    refuse_full(out)
    checkpoint = understand(local(source, revision), settings=settings, custom_code=custom_code)
    names = [name for piece in checkpoint.plan for name in piece.ours]
    shapes = [shape for piece in checkpoint.plan for shape in piece.shapes]
    kinds = [
        entry.outline().kind
        for piece, entry in zip(checkpoint.plan, checkpoint.entries, strict=True)
        for _ in piece.ours
    ]
    outlines = [Outline(*each) for each in zip(names, kinds, shapes, strict=True)]

    def tensors() -> Iterator[Tensor]:
        for _, tensor in checkpoint.tensors():
            yield tensor

    with replacing(out) as folder:
        _, notes = _write_companions(checkpoint, folder)
        write_tensors(folder / "model.safetensors", outlines, tensors())
        write_text(folder / "README.md", _card(checkpoint))
    if checkpoint.left_out:
        count = len(checkpoint.left_out)
        notes.append(f"left out: {', '.join(checkpoint.left_out[:4])}{', ...' * (count > 4)}")
    size = (out / "model.safetensors").stat().st_size
    return Imported(checkpoint.name, checkpoint.config, size, notes)


def _write_companions(checkpoint: Checkpoint, folder: Path) -> tuple[Config, list[str]]:
    """Writes all of a model directory but the weights; returns what is remembered, and notes."""
    kept, config = texts.remembered(checkpoint), checkpoint.config
    write_config(folder, _architecture(checkpoint), config)
    note = texts.copy_tokenizer(checkpoint.directory, folder, config.vocab_size)
    _write_json(folder / "task.json", texts.task_of(checkpoint))
    _write_json(folder / "generation_config.json", decoding.decoding_of(checkpoint).to_dict())
    _write_json(folder / REMEMBERED, kept)
    return kept, [] if note is None else [note]


def _architecture(checkpoint: Checkpoint) -> str:
    return "Seq2SeqTransformer" if checkpoint.family.seq2seq else "Transformer"


def _write_json(path: Path, value: Any) -> None:
    write_text(path, json.dumps(value, indent=2) + "\n")


def _card(checkpoint: Checkpoint) -> str:
    config = checkpoint.config
    count = config.num_params(seq2seq=checkpoint.family.seq2seq)
    return f"""# {checkpoint.directory.path.name}

Imported from Hugging Face's files of a {checkpoint.name}: {count:,} parameters, {config.n_layers}
layers of width {config.d_model}.

```python
import miniformer

m = miniformer.load("path/to/this/directory")
```
"""
