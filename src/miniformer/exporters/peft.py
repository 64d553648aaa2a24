"""The destination `peft`: an adapter that peft adds to its base in transformers."""

from __future__ import annotations

from pathlib import Path

from miniformer import registry
from miniformer.exporters.destination import destination


@destination("LoRA, DoRA and IA3 adapters of models that `hf` takes", runtime="peft")
def export_peft(directory: Path, out: str, *, family: str | None = None) -> str:
    """Writes the adapter of a model for Hugging Face's peft."""
    text: str = registry.get("adapter_format", "peft").export(directory, Path(out), family=family)
    return text
