"""Model size presets. Nothing here imports torch."""

from __future__ import annotations

from typing import Any

SIZE_PRESETS: dict[str, dict[str, Any]] = {
    "tiny": {"d_model": 64, "n_heads": 4, "n_layers": 2},
    "small": {"d_model": 128, "n_heads": 4, "n_layers": 2},
    "medium": {"d_model": 192, "n_heads": 6, "n_layers": 3},
    "base": {"d_model": 256, "n_heads": 8, "n_layers": 4},
}
# Setting any of these disables automatic sizing.
SHAPE_FIELDS = (
    "d_model",
    "n_heads",
    "n_layers",
    "d_ff",
    "n_kv_heads",
    "head_dim",
    "n_decoder_layers",
)
