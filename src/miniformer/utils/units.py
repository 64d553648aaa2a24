"""Memory sizes with units."""

from __future__ import annotations

import re

_UNITS = {
    "": 1,
    "b": 1,
    **{unit: 1000**power for power, unit in enumerate(("kb", "mb", "gb", "tb"), 1)},
    **{unit: 1024**power for power, unit in enumerate(("kib", "mib", "gib", "tib"), 1)},
}


def parse_bytes(text: str) -> int | None:
    """Bytes of a size such as 4GB, 1.5 GiB or 500MB; a number alone (2e9) is bytes.

    kB, MB, GB and TB are powers of 1000; KiB, MiB, GiB and TiB are powers of 1024. Case is
    ignored. None: the text is not a size of at least one byte.
    """
    match = re.fullmatch(r"\s*(\d+\.?\d*|\.\d+)(e\d{1,2})?\s*([a-z]*)\s*", text.lower(), re.ASCII)
    if match is None or match[3] not in _UNITS:
        return None
    return int(float(match[1] + (match[2] or "")) * _UNITS[match[3]]) or None


def format_bytes(count: float) -> str:
    """Human-readable size: 512 MB, 3.25 GB."""
    return f"{count / 1e9:.4g} GB" if count >= 1e9 else f"{count / 1e6:.4g} MB"
