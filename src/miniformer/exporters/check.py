"""The check `export` of `miniformer doctor`."""

from __future__ import annotations

import tempfile
from pathlib import Path

from miniformer import registry
from miniformer.config import UserError
from miniformer.doctor.outcome import NotApplicable, Note
from miniformer.exporters.destination import DifferenceError, facts_of

# Destinations that compare what they write with the model, and take seconds.
DESTINATIONS = ("onnx",)


def check_export(directory: Path) -> list[str]:
    """Exported graphs give the outputs of the model.

    Raises:
        NotApplicable: no destination is installed, or none takes the model.
    """
    lines: list[str] = []
    reasons = []
    for name in DESTINATIONS:
        exporter = registry.get("exporter", name)
        facts = facts_of(exporter)
        if facts is not None and facts.missing():
            reasons.append(f"{name} needs {facts.install_command()}")
            continue
        with tempfile.TemporaryDirectory() as folder:
            try:
                text = exporter(directory, str(Path(folder) / name)) or ""
            except DifferenceError as error:
                lines.append(f"{name}: {error}")
            except UserError as error:
                reasons.append(f"{name} does not take this model: {error}")
            else:
                compared = [line for line in text.splitlines() if "difference" in line]
                lines.append(Note(f"{name}: {'; '.join(compared) or 'written'}"))
    if not lines:
        raise NotApplicable("; ".join(reasons))
    return lines
