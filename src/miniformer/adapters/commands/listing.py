"""Subcommands of `miniformer adapter` that read adapters: `list` and `merge`."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from miniformer.adapters.directory import read_adapter
from miniformer.adapters.files import load
from miniformer.checkpoint.directory import require_empty
from miniformer.checkpoint.pipeline import Pipeline
from miniformer.model.transforms import merge_transforms


def list_adapters(directories: Sequence[Path]) -> str:
    """A line for each adapter: its directory, method, size, base and options."""
    lines = []
    for directory in directories:
        files = read_adapter(directory)
        size = sum(tensor.numel() for tensor in files.tensors.values())
        base = files.info.get("base", "unknown")
        digest = str(files.info.get("base_sha256", ""))[:12]
        options = json.dumps(files.settings.to_options())
        if len(options) > 200:
            options = f"{options[:200]}..."
        lines.append(
            f"{directory}: {files.settings.method}, {size:,} numbers, base {base} {digest}, "
            f"{options}"
        )
    return "\n".join(lines)


def merge_directory(base: Path, adapter: Path, out: Path) -> None:
    """Writes a plain model directory: a base with an adapter in its weights.

    Raises:
        UserError: the adapter does not fit the base, or is a bottleneck; or `out` is not empty.
    """
    require_empty(out)
    pipeline = load(base, adapter)
    merged = Pipeline(
        merge_transforms(pipeline.model), pipeline.tokenizer, pipeline.task, pipeline.generation
    )
    merged.directory, merged.hf_metadata = pipeline.directory, pipeline.hf_metadata
    merged.data_settings = pipeline.data_settings
    merged.save(out)
