"""Drawings of docs/concepts.md: `python -m tests.kit.drawings` writes them into docs/drawings.

`tests/unit/inspection/test_drawing.py` compares the files with the code.
"""

from miniformer.config import TransformerConfig
from miniformer.config.architectures import SEQ2SEQ_ARCHITECTURES, architecture_config
from miniformer.inspection.drawing import draw_model
from tests.kit import ROOT

FOLDER = ROOT / "docs" / "drawings"
SIZES = {
    "gpt2": {"vocab_size": 50257, "d_model": 768, "n_heads": 12, "n_layers": 12},
    "llama": {
        "vocab_size": 128256, "d_model": 4096, "n_heads": 32, "n_kv_heads": 8, "n_layers": 32,
        "d_ff": 14336,
    },
    "bert": {"vocab_size": 30522, "d_model": 768, "n_heads": 12, "n_layers": 12},
    "t5": {"vocab_size": 32128, "d_model": 512, "n_heads": 8, "n_layers": 6, "d_ff": 2048},
}  # fmt: skip


def drawing(name):
    """The drawing of an architecture in a published size."""
    config = TransformerConfig.from_dict(architecture_config(name, **SIZES[name]))
    return draw_model(config, seq2seq=name in SEQ2SEQ_ARCHITECTURES)


if __name__ == "__main__":
    for name in SIZES:
        (FOLDER / f"{name}.svg").write_text(drawing(name), encoding="utf-8")
