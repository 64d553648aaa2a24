"""The list of destinations for `miniformer export --list`."""

from __future__ import annotations

from miniformer import registry
from miniformer.exporters.destination import facts_of


def list_destinations() -> str:
    """All destinations: what each takes, its runtime, and the command that installs it."""
    lines = []
    for name, exporter in registry.load_all("exporter"):
        facts = facts_of(exporter)
        if facts is None:
            lines.append(f"{name:<12}{registry.first_doc_line(exporter)}")
            continue
        missing = facts.missing()
        state = f"needs {facts.install_command()}" if missing else "installed"
        lines += [f"{name:<12}{facts.takes}", f"{'':<12}for {facts.runtime}; {state}"]
    return "\n".join(lines)
