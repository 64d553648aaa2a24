"""States of all random number generators as JSON."""

from __future__ import annotations

import base64
import random
from typing import Any

import numpy as np
import torch
from torch import Tensor


def get_rng_state() -> dict[str, Any]:
    """States of the random number generators of this process."""
    kind, keys, *rest = np.random.get_state()
    state = {
        "torch": _encode(torch.get_rng_state().numpy()),
        "numpy": [kind, _encode(keys), *rest],
        "python": random.getstate(),
    }
    if torch.cuda.is_available():
        state["cuda"] = _encode(torch.cuda.get_rng_state().numpy())
    return state


def set_rng_state(state: dict[str, Any]) -> None:
    """Restores the states."""
    torch.set_rng_state(_decode(state["torch"]))
    kind, keys, *rest = state["numpy"]
    np.random.set_state((kind, np.frombuffer(base64.b64decode(keys), np.uint32), *rest))
    version, numbers, gauss = state["python"]
    random.setstate((version, tuple(numbers), gauss))
    if "cuda" in state and torch.cuda.is_available():
        torch.cuda.set_rng_state(_decode(state["cuda"]))


def _encode(array: Any) -> str:
    return base64.b64encode(array.tobytes()).decode()


def _decode(text: str) -> Tensor:
    return torch.frombuffer(bytearray(base64.b64decode(text)), dtype=torch.uint8)
