"""What tasks share whose models write text: answers whole, and piece by piece."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any

from miniformer.config import GenerationConfig, UserError
from miniformer.data.tokenizer import Tokenizer
from miniformer.generation.constraint import Constraint, Vocabulary
from miniformer.generation.generate import Start, Written, stream, write
from miniformer.generation.pieces import Pieces, StopAt
from miniformer.tasks.task import Task

_AT_ONCE = 32  # texts that are written at once


@dataclasses.dataclass(frozen=True)
class WritingTask(Task):
    """Base of the tasks whose models write text."""

    def starts(
        self,
        model: Any,
        tokenizer: Tokenizer,
        prompts: Sequence[str],
        *,
        truncate: bool = False,
        new_tokens: int = 0,
    ) -> list[Start]:
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

    def write(
        self,
        model: Any,
        tokenizer: Tokenizer,
        prompts: Sequence[str],
        options: GenerationConfig,
        *,
        truncate: bool = False,
        **how: Any,
    ) -> list[tuple[str, Written]]:
        """Answers as text and as tokens: `num_return_sequences` of the first prompt, and so on.

        Args:
            model: the model.
            tokenizer: its tokenizer.
            prompts: texts.
            options: how.
            truncate: see `starts`.
            **how: more for `miniformer.generation.generate.write`.
        """
        starts = self.starts(
            model, tokenizer, prompts, truncate=truncate, new_tokens=options.max_new_tokens
        )
        stop = StopAt(tokenizer.decode, options.stop or [])
        settings, how, form = _for_tokens(tokenizer, options, how)
        # Those of like length go together.
        order = sorted(range(len(starts)), key=lambda n: len(starts[n].source or starts[n].ids))
        found: dict[int, list[Written]] = {}
        for first in range(0, len(order), _AT_ONCE):
            some = order[first : first + _AT_ONCE]
            written = write(
                model, [starts[number] for number in some], settings, numbers=some, **how
            )
            copies = options.num_return_sequences
            for place, number in enumerate(some):
                found[number] = written[place * copies : (place + 1) * copies]
        for each in (each for number in found for each in found[number]):
            _check_form(form, each.tokens, options)
        return [
            (stop.cut(tokenizer.decode(each.tokens)), each)
            for number in range(len(starts))
            for each in found[number]
        ]

    def answer(
        self,
        model: Any,
        tokenizer: Tokenizer,
        prompts: Sequence[str],
        options: GenerationConfig,
        *,
        truncate: bool = False,
    ) -> list[str]:
        """The texts of `write`."""
        found = self.write(model, tokenizer, prompts, options, truncate=truncate)
        return [text for text, _ in found]

    def stream(
        self,
        model: Any,
        tokenizer: Tokenizer,
        prompt: str,
        options: GenerationConfig,
        *,
        truncate: bool = False,
        **how: Any,
    ) -> Iterator[str]:
        """An answer in pieces as they come; together they are what `answer` gives."""
        (start,) = self.starts(
            model, tokenizer, [prompt], truncate=truncate, new_tokens=options.max_new_tokens
        )
        settings, how, form = _for_tokens(tokenizer, options, how)
        pieces = Pieces(tokenizer.decode, options.stop or [], tokenizer.settled)
        for token in stream(model, start, settings, **how):
            if piece := pieces.add(token):
                yield piece
        if piece := pieces.end():
            yield piece
        _check_form(form, pieces.tokens, options)


def _for_tokens(
    tokenizer: Tokenizer, options: GenerationConfig, how: dict[str, Any]
) -> tuple[GenerationConfig, dict[str, Any], Constraint | None]:
    """What options say of text, as what a model that writes tokens can do."""
    if options.stop:
        how = {**how, "until": StopAt(tokenizer.decode, options.stop)}
    form = None
    if options.form is not None:
        if options.stop:
            raise UserError(f"{options.form} says where an answer ends; leave stop out")
        form = Constraint(options, Vocabulary(*tokenizer.pieces(), tokenizer.encode))
        how = {**how, "processors": [*how.get("processors", ()), form]}
    plain = dataclasses.replace(options, stop=None, regex=None, choices=None, json_schema=None)
    return plain, how, form


def _check_form(form: Constraint | None, tokens: list[int], options: GenerationConfig) -> None:
    if form is not None and not form.complete(tokens):
        raise UserError(
            f"an answer was not whole after max_new_tokens={options.max_new_tokens}, as "
            f"{form.name} has it; raise max_new_tokens"
        )
