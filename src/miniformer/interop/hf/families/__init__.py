"""Every family whose files are read and written.

Keys and names are those of transformers 5 and of the files on the hub, which are older.
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

# The order in which a model of ours is tried for one that it is.
ALL_FAMILIES: tuple[Family, ...] = (
    LLAMA,
    GPT2,
    GPT_NEOX,
    MISTRAL,
    QWEN2,
    QWEN3,
    OLMO2,
    GEMMA,
    GEMMA2,
    GEMMA3,
    PHI3,
    BERT,
    ROBERTA,
    DISTILBERT,
    MODERNBERT,
    XLM_ROBERTA,
    T5,
    T5_V1_1,
    BART,
    MARIAN,
    M2M_100,
)


def get_family(config: Config) -> Family:
    """The family that a `config.json` names.

    Raises:
        UserError: it names none, or none of ours.
    """
    kind = config.get("model_type")
    known = sorted({family.model_type for family in ALL_FAMILIES})
    found = [family for family in ALL_FAMILIES if family.model_type == kind]
    if not found:
        raise UserError(f"model_type={kind!r} is none of {', '.join(known)}")
    if kind == "t5":
        gated = str(config.get("feed_forward_proj", "relu")).startswith("gated-")
        return T5_V1_1 if gated else T5
    return found[0]
