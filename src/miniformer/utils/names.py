"""Validation of names that become files or folders."""

from __future__ import annotations

import unicodedata

MAX_NAME_BYTES = 200  # file systems allow 255; a suffix such as -2 or .part may follow


def name_problem(name: str) -> str | None:
    """Reason why a name cannot name one file or folder, or None."""
    if not name.strip():
        return "it is empty"
    if name in (".", ".."):
        return f"{name!r} is another folder"
    if "/" in name or "\\" in name:
        return "it contains a path separator"
    if any(unicodedata.category(character) in ("Cc", "Cs") for character in name):
        return "it contains a control character"
    if len(name.encode()) > MAX_NAME_BYTES:
        return f"it has {len(name.encode())} bytes, more than {MAX_NAME_BYTES}"
    return None
