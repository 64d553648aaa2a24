"""The destination `hf`: a directory that transformers loads."""

from __future__ import annotations

import shlex
from pathlib import Path

from miniformer.config.command_line import miniformer_command
from miniformer.exporters.destination import destination


@destination("models of the families in docs/families.md", runtime="transformers")
def export_hf(directory: Path, out: str, *, family: str | None = None) -> str:
    """Writes a model for Hugging Face's transformers."""
    from miniformer.interop.hf.export import to_hf  # imports take seconds

    to_hf(directory, out, family=family)
    return (
        f"written to {out} for transformers; see its README.md\n"
        f"convert back: {miniformer_command()} import {shlex.quote(out)} DIRECTORY"
    )
