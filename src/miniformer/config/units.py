"""Sizes as people write them."""

from __future__ import annotations

import re

_SIZES = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "ki": 2**10, "mi": 2**20, "gi": 2**30}


def parse_bytes(text: str) -> int | None:
    """Bytes of "500MB", "1.5 GiB" or "4GB"; None where that is no size."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?) ?([kmg]i?)?b", text.strip().lower())
    return None if found is None else int(float(found[1]) * _SIZES[found[2] or ""]) or None
