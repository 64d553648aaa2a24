"""Text that keeps to a form: a regular expression, one of some choices, a JSON schema.

The grammar is llguidance's (the extra `constrain`); here it becomes a processor, which forbids
every token after which the text could no longer come to an end that fits.
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
    """The tokens that text is made of.

    Args:
        pieces: the bytes of each token.
        special: tokens that stand for no text.
        encode: the tokens of a text.
    """

    bos_token_id = None

    def __init__(
        self,
        token_bytes: Sequence[bytes],
        special_token_ids: Sequence[int],
        encode: Callable[[str], list[int]],
    ) -> None:
        self.tokens, self.special_token_ids, self.encode = (
            list(token_bytes),
            list(special_token_ids),
            encode,
        )
        self.eos_token_id = 0

    def __call__(self, text: str | bytes) -> list[int]:
        """The tokens of a text, as llguidance asks for them."""
        return self.encode(text if isinstance(text, str) else text.decode(errors="replace"))


class Constraint:
    """A form that text has to keep to.

    Args:
        options: `regex`, `choices` or `json_schema`, and what ends a text.
        vocabulary: of the model.

    Raises:
        UserError: the form is none, nothing ends a text, or llguidance is not installed.
    """

    def __init__(self, options: GenerationConfig, vocabulary: Vocabulary) -> None:
        if importlib.util.find_spec("llguidance") is None:
            raise UserError(
                f'{options.constraint} needs the package llguidance; pip install "miniformer[constrain]"'
            )
        if not options.eos_token_ids:
            raise UserError(f"{options.constraint} needs eos_id, the token that ends a text")
        from llguidance import LLMatcher, LLTokenizer
        from llguidance._tokenizer import TokenizerWrapper

        self.name, self.eos_token_ids = options.constraint, options.eos_token_ids
        self.vocab_size = len(vocabulary.tokens)
        vocabulary.eos_token_id = self.eos_token_ids[0]
        tokenizer = LLTokenizer(TokenizerWrapper(vocabulary))
        grammar = _grammar(options, LLMatcher)
        problem = LLMatcher.validate_grammar(grammar, tokenizer)
        if problem:
            raise UserError(f"{self.name}: {' '.join(problem.split())}")
        self.initial_state = LLMatcher(tokenizer, grammar)

    def make_processor(self, prompt_length: int) -> Callable[[Tensor, Tensor], Tensor]:
        """A processor of texts after prompts of so many tokens."""
        known: dict[tuple[int, ...], Any] = {}

        def process(tokens: Tensor, logits: Tensor) -> Tensor:
            nonlocal known
            found: dict[tuple[int, ...], Any] = {}
            allowed = torch.zeros(logits.shape, dtype=torch.bool)
            for row, text in enumerate(map(tuple, tokens[:, prompt_length:].tolist())):
                if any(token in self.eos_token_ids for token in text):  # it has ended
                    allowed[row] = True
                    continue
                state = found.get(text) or known.get(text) or self._state_after(text, known)
                found[text] = state
                allowed[row, : self.vocab_size] = torch.from_numpy(self._allowed_tokens(state))
            known = found  # rows go on from these, however they change places
            return logits.masked_fill(~allowed.to(logits.device), -torch.inf)

        return process

    def is_complete(self, tokens: Sequence[int]) -> bool:
        """Whether a text keeps to the form and is whole."""
        return bool(self._state_after(tuple(tokens), {}).is_accepting())

    def _state_after(self, text: tuple[int, ...], cache: dict[tuple[int, ...], Any]) -> Any:
        """The grammar's state after a text."""
        before = cache.get(text[:-1])
        state = (self.initial_state if before is None else before).deep_copy()
        for token in text if before is None else text[-1:]:
            state.consume_token(token)
        return state

    def _allowed_tokens(self, state: Any) -> np.ndarray:
        """Which tokens may come next, bool [V]."""
        bits = np.frombuffer(state.compute_bitmask(), dtype=np.uint8)
        allowed = np.unpackbits(bits, count=self.vocab_size, bitorder="little").astype(bool)
        allowed[self.eos_token_ids] = allowed[self.eos_token_ids[0]]
        return allowed


def _grammar(options: GenerationConfig, matcher: Any) -> str:
    if options.regex is not None:
        return str(matcher.grammar_from_regex(options.regex))
    if options.choices is not None:
        words = " | ".join(map(json.dumps, options.choices))
        return str(matcher.grammar_from_lark(f"start: {words}"))
    # Without spaces of the model's choosing, which it could write for ever.
    compact = {"whitespace_flexible": False}
    return str(matcher.grammar_from_json_schema(json.dumps(options.json_schema), overrides=compact))
