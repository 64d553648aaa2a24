"""Adapters: small trained parts of a frozen model, by name, in the files of Hugging Face's peft.

from miniformer import adapters
adapters.add(model, "lora", r=8) -> train -> adapters.save -> adapters.load -> use, merge
"""

from miniformer.adapters.api import add, disable, load, merge, names, save, unmerge, use
from miniformer.adapters.by_input import generate, predict

__all__ = [
    "add", "disable", "generate", "load", "merge", "names", "predict", "save", "unmerge", "use",
]  # fmt: skip
