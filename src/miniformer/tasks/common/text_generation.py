"""What tasks share whose models write text: answers whole, and piece by piece."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any

from miniformer.config import GenerationConfig, UserError
from miniformer.data.tokenizers.tokenizer import Tokenizer
from miniformer.generation.api import GenerationInput, GenerationOutput, generate_batch, stream
from miniformer.generation.constrained import Constraint, Vocabulary
from miniformer.generation.detokenizer import StopStringChecker, StreamingDetokenizer
from miniformer.tasks.base import Task

_BATCH_SIZE = 32  # texts that are written at once


@dataclasses.dataclass(frozen=True)
class TextGenerationTask(Task):
    """Base of the tasks whose models write text."""

    def generation_inputs(
        self,
        model: Any,
        tokenizer: Tokenizer,
        prompts: Sequence[str],
        *,
        truncate: bool = False,
        max_new_tokens: int = 0,
    ) -> list[GenerationInput]:
        """What each answer begins with.

        Args:
            model, tokenizer: the model directory's own.
            prompts: texts.
            truncate: cut prompts that are too long: of a source the end, as training does; of a
                text to be continued the beginning.
            new_tokens: room that a text to be continued must leave.

        Raises:
            InputError: prompts are longer than the model reads.
        """
        raise NotImplementedError

    def generate(
        self,
        model: Any,
        tokenizer: Tokenizer,
        prompts: Sequence[str],
        options: GenerationConfig,
        *,
        truncate: bool = False,
        **generate_kwargs: Any,
    ) -> list[tuple[str, GenerationOutput]]:
        """Answers as text and as tokens: `num_return_sequences` of the first prompt, and so on.

        Args:
            model: the model.
            tokenizer: its tokenizer.
            prompts: texts.
            options: how.
            truncate: see `starts`.
            **how: more for `miniformer.generation.api.generate_batch`.
        """
        starts = self.generation_inputs(
            model, tokenizer, prompts, truncate=truncate, max_new_tokens=options.max_new_tokens
        )
        stop = StopStringChecker(tokenizer.decode, options.stop_strings or [])
        settings, generate_kwargs, form = _token_level_options(tokenizer, options, generate_kwargs)
        # Those of like length go together.
        order = sorted(
            range(len(starts)), key=lambda n: len(starts[n].source or starts[n].input_ids)
        )
        found: dict[int, list[GenerationOutput]] = {}
        for first in range(0, len(order), _BATCH_SIZE):
            some = order[first : first + _BATCH_SIZE]
            written = generate_batch(
                model,
                [starts[number] for number in some],
                settings,
                prompt_indices=some,
                **generate_kwargs,
            )
            copies = options.num_return_sequences
            for place, number in enumerate(some):
                found[number] = written[place * copies : (place + 1) * copies]
        for each in (each for number in found for each in found[number]):
            _check_complete(form, each.tokens, options)
        return [
            (stop.truncate(tokenizer.decode(each.tokens)), each)
            for number in range(len(starts))
            for each in found[number]
        ]

    def generate_text(
        self,
        model: Any,
        tokenizer: Tokenizer,
        prompts: Sequence[str],
        options: GenerationConfig,
        *,
        truncate: bool = False,
    ) -> list[str]:
        """The texts of `write`."""
        found = self.generate(model, tokenizer, prompts, options, truncate=truncate)
        return [text for text, _ in found]

    def stream(
        self,
        model: Any,
        tokenizer: Tokenizer,
        prompt: str,
        options: GenerationConfig,
        *,
        truncate: bool = False,
        **generate_kwargs: Any,
    ) -> Iterator[str]:
        """An answer in pieces as they come; together they are what `answer` gives."""
        (start,) = self.generation_inputs(
            model, tokenizer, [prompt], truncate=truncate, max_new_tokens=options.max_new_tokens
        )
        settings, generate_kwargs, form = _token_level_options(tokenizer, options, generate_kwargs)
        pieces = StreamingDetokenizer(
            tokenizer.decode, options.stop_strings or [], tokenizer.stable_length
        )
        for token in stream(model, start, settings, **generate_kwargs):
            if piece := pieces.add_token(token):
                yield piece
        if piece := pieces.flush():
            yield piece
        _check_complete(form, pieces.tokens, options)


def _token_level_options(
    tokenizer: Tokenizer, options: GenerationConfig, generate_kwargs: dict[str, Any]
) -> tuple[GenerationConfig, dict[str, Any], Constraint | None]:
    """What options say of text, as what a model that writes tokens can do."""
    if options.stop_strings:
        generate_kwargs = {
            **generate_kwargs,
            "stop_fn": StopStringChecker(tokenizer.decode, options.stop_strings),
        }
    form = None
    if options.constraint is not None:
        if options.stop_strings:
            raise UserError(f"{options.constraint} says where an answer ends; leave stop_strings out")
        form = Constraint(options, Vocabulary(*tokenizer.token_bytes(), tokenizer.encode))
        generate_kwargs = {
            **generate_kwargs,
            "processors": [*generate_kwargs.get("processors", ()), form],
        }
    plain = dataclasses.replace(
        options, stop_strings=None, regex=None, choices=None, json_schema=None
    )
    return plain, generate_kwargs, form


def _check_complete(
    constraint: Constraint | None, tokens: list[int], options: GenerationConfig
) -> None:
    if constraint is not None and not constraint.is_complete(tokens):
        raise UserError(
            f"an answer was not whole after max_new_tokens={options.max_new_tokens}, as "
            f"{constraint.name} has it; raise max_new_tokens"
        )
