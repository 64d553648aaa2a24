"""Constrained decoding: regular expressions, choices and JSON schemas.

llguidance (extra `constrain`) compiles the grammar. A logits processor masks every token after
which the text could no longer match.
"""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from miniformer.config import GenerationConfig, UserError


class Vocabulary:
    """Tokenizer interface of llguidance.

    Args:
        token_bytes: bytes of each token.
        special_token_ids: ids of tokens without text.
        encode: encodes a text.
    """

    bos_token_id = None

    def __init__(
        self,
        token_bytes: Sequence[bytes],
        special_token_ids: Sequence[int],
        encode: Callable[[str], list[int]],
    ) -> None:
        self.tokens, self.special_token_ids = list(token_bytes), list(special_token_ids)
        self.encode = encode
        self.eos_token_id = 0

    def __call__(self, text: str | bytes) -> list[int]:
        """Encodes a text, as llguidance requires."""
        return self.encode(text if isinstance(text, str) else text.decode(errors="replace"))


class Constraint:
    """Grammar that generated text must match.

    Args:
        options: `regex`, `choices` or `json_schema`, and the EOS ids.
        vocabulary: vocabulary of the model.

    Raises:
        UserError: the grammar is invalid, there is no EOS id, or llguidance is not installed.
    """

    def __init__(self, options: GenerationConfig, vocabulary: Vocabulary) -> None:
        if importlib.util.find_spec("llguidance") is None:
            raise UserError(
                f"{options.constraint} needs the package llguidance; "
                'pip install "miniformer[constrain]"'
            )
        if not options.eos_token_ids:
            raise UserError(f"{options.constraint} needs eos_id, the EOS token")
        from llguidance import LLMatcher, LLTokenizer
        from llguidance._tokenizer import TokenizerWrapper

        self.name, self.eos_token_ids = options.constraint, options.eos_token_ids
        self.vocab_size = len(vocabulary.tokens)
        vocabulary.eos_token_id = self.eos_token_ids[0]
        tokenizer = LLTokenizer(TokenizerWrapper(vocabulary))
        grammar = _grammar(options, LLMatcher)
        error = LLMatcher.validate_grammar(grammar, tokenizer)
        if error:
            raise UserError(f"{self.name}: {' '.join(error.split())}")
        self.initial_state = LLMatcher(tokenizer, grammar)

    def make_processor(self, prompt_length: int) -> Callable[[Tensor, Tensor], Tensor]:
        """Creates a logits processor for prompts of `prompt_length` columns."""
        previous: dict[tuple[int, ...], Any] = {}  # grammar states by new tokens

        def process(tokens: Tensor, logits: Tensor) -> Tensor:
            nonlocal previous
            states: dict[tuple[int, ...], Any] = {}
            allowed = torch.zeros(logits.shape, dtype=torch.bool)
            for row, text in enumerate(map(tuple, tokens[:, prompt_length:].tolist())):
                if any(token in self.eos_token_ids for token in text):  # finished
                    allowed[row] = True
                    continue
                state = states.get(text) or previous.get(text) or self._state_after(text, previous)
                states[text] = state
                allowed[row, : self.vocab_size] = torch.from_numpy(self._allowed_tokens(state))
            previous = states  # the next step extends these texts, in any row order
            return logits.masked_fill(~allowed.to(logits.device), -torch.inf)

        return process

    def is_complete(self, tokens: Sequence[int]) -> bool:
        """Returns True if the tokens match the grammar completely."""
        return bool(self._state_after(tuple(tokens), {}).is_accepting())

    def _state_after(self, text: tuple[int, ...], cache: dict[tuple[int, ...], Any]) -> Any:
        """Grammar state after the tokens."""
        previous = cache.get(text[:-1])
        state = (self.initial_state if previous is None else previous).deep_copy()
        for token in text if previous is None else text[-1:]:
            state.consume_token(token)
        return state

    def _allowed_tokens(self, state: Any) -> np.ndarray:
        """Mask of the allowed next tokens, bool [V]."""
        bits = np.frombuffer(state.compute_bitmask(), dtype=np.uint8)
        allowed = np.unpackbits(bits, count=self.vocab_size, bitorder="little").astype(bool)
        allowed[self.eos_token_ids] = allowed[self.eos_token_ids[0]]
        return allowed


def _grammar(options: GenerationConfig, matcher: Any) -> str:
    if options.regex is not None:
        return str(matcher.grammar_from_regex(options.regex))
    if options.choices is not None:
        alternatives = " | ".join(map(json.dumps, options.choices))
        return str(matcher.grammar_from_lark(f"start: {alternatives}"))
    # Flexible whitespace would allow endless output.
    compact = {"whitespace_flexible": False}
    return str(matcher.grammar_from_json_schema(json.dumps(options.json_schema), overrides=compact))
