"""All supported families.

Keys and names are those of transformers 5 and of older files on the hub.
"""

from __future__ import annotations

from miniformer.config import UserError
from miniformer.interop.hf.configs import Config, Family
from miniformer.interop.hf.families.encoders import (
    BERT,
    DISTILBERT,
    MODERNBERT,
    ROBERTA,
    XLM_ROBERTA,
)
from miniformer.interop.hf.families.gpt import GPT2, GPT_NEOX
from miniformer.interop.hf.families.llama import (
    GEMMA,
    GEMMA2,
    GEMMA3,
    LLAMA,
    MISTRAL,
    OLMO2,
    PHI3,
    QWEN2,
    QWEN3,
)
from miniformer.interop.hf.families.seq2seq import BART, M2M_100, MARIAN, T5, T5_V1_1

# In the order in which an export tries them.
ALL_FAMILIES: tuple[Family, ...] = (
    *(LLAMA, GPT2, GPT_NEOX, MISTRAL, QWEN2, QWEN3, OLMO2, GEMMA, GEMMA2, GEMMA3, PHI3),
    *(BERT, ROBERTA, DISTILBERT, MODERNBERT, XLM_ROBERTA),
    *(T5, T5_V1_1, BART, MARIAN, M2M_100),
)


def get_family(config: Config) -> Family:
    """Family of a `config.json`.

    Raises:
        UserError: `model_type` is missing or not supported.
    """
    model_type = config.get("model_type")
    known = sorted({family.model_type for family in ALL_FAMILIES})
    matches = [family for family in ALL_FAMILIES if family.model_type == model_type]
    if not matches:
        raise UserError(f"model_type={model_type!r} is none of {', '.join(known)}")
    if model_type == "t5":
        gated = str(config.get("feed_forward_proj", "relu")).startswith("gated-")
        return T5_V1_1 if gated else T5
    return matches[0]
