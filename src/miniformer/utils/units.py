"""Sizes of memory as people write them."""

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

    kB, MB, GB and TB are powers of 1000, KiB, MiB, GiB and TiB of 1024, in any case of letters.
    None: it is no size, or none of a byte at least.
    """
    found = re.fullmatch(r"\s*(\d+\.?\d*|\.\d+)(e\d{1,2})?\s*([a-z]*)\s*", text.lower(), re.ASCII)
    if found is None or found[3] not in _UNITS:
        return None
    return int(float(found[1] + (found[2] or "")) * _UNITS[found[3]]) or None


def format_bytes(count: float) -> str:
    """A size to be read: 512 MB, 3.25 GB."""
    return f"{count / 1e9:.4g} GB" if count >= 1e9 else f"{count / 1e6:.4g} MB"
