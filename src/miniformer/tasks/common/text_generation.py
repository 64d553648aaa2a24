"""Base class of tasks whose models generate text, whole or streamed."""

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

_BATCH_SIZE = 32  # texts that are generated at once


@dataclasses.dataclass(frozen=True)
class TextGenerationTask(Task):
    """Base class of tasks whose models generate text."""

    def generation_inputs(
        self,
        model: Any,
        tokenizer: Tokenizer,
        prompts: Sequence[str],
        *,
        truncate: bool = False,
        max_new_tokens: int = 0,
    ) -> list[GenerationInput]:
        """Encodes prompts.

        Args:
            model, tokenizer: those of the model directory.
            prompts: texts.
            truncate: truncate prompts that are too long: a source at the end, as training does; a
                prompt of a causal model at the beginning.
            max_new_tokens: room that the prompt of a causal model must leave.

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
        """Generates text and tokens: `num_return_sequences` of the first prompt, and so on.

        Args:
            model: the model.
            tokenizer: its tokenizer.
            prompts: texts.
            options: decoding options.
            truncate: see `generation_inputs`.
            **generate_kwargs: further arguments of `miniformer.generation.api.generate_batch`.
        """
        inputs = self.generation_inputs(
            model, tokenizer, prompts, truncate=truncate, max_new_tokens=options.max_new_tokens
        )
        stop = StopStringChecker(tokenizer.decode, options.stop_strings or [])
        settings, generate_kwargs, constraint = _token_level_options(
            tokenizer, options, generate_kwargs
        )
        # Batches are of similar lengths.
        order = sorted(
            range(len(inputs)), key=lambda n: len(inputs[n].source or inputs[n].input_ids)
        )
        outputs: dict[int, list[GenerationOutput]] = {}
        for first in range(0, len(order), _BATCH_SIZE):
            indices = order[first : first + _BATCH_SIZE]
            batch = generate_batch(
                model,
                [inputs[index] for index in indices],
                settings,
                prompt_indices=indices,
                **generate_kwargs,
            )
            copies = options.num_return_sequences
            for row, index in enumerate(indices):
                outputs[index] = batch[row * copies : (row + 1) * copies]
        results = [output for index in range(len(inputs)) for output in outputs[index]]
        for output in results:
            _check_complete(constraint, output.tokens, options)
        return [(stop.truncate(tokenizer.decode(output.tokens)), output) for output in results]

    def generate_text(
        self,
        model: Any,
        tokenizer: Tokenizer,
        prompts: Sequence[str],
        options: GenerationConfig,
        *,
        truncate: bool = False,
    ) -> list[str]:
        """The texts of `generate`."""
        outputs = self.generate(model, tokenizer, prompts, options, truncate=truncate)
        return [text for text, _ in outputs]

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
        """Streams generated text; the chunks join to the text of `generate_text`."""
        (start,) = self.generation_inputs(
            model, tokenizer, [prompt], truncate=truncate, max_new_tokens=options.max_new_tokens
        )
        settings, generate_kwargs, constraint = _token_level_options(
            tokenizer, options, generate_kwargs
        )
        detokenizer = StreamingDetokenizer(
            tokenizer.decode, options.stop_strings or [], tokenizer.stable_length
        )
        for token in stream(model, start, settings, **generate_kwargs):
            if text := detokenizer.add_token(token):
                yield text
        if text := detokenizer.flush():
            yield text
        _check_complete(constraint, detokenizer.tokens, options)


def _token_level_options(
    tokenizer: Tokenizer, options: GenerationConfig, generate_kwargs: dict[str, Any]
) -> tuple[GenerationConfig, dict[str, Any], Constraint | None]:
    """Converts text-level options (stop strings, constraints) to token-level arguments."""
    if options.stop_strings:
        generate_kwargs = {
            **generate_kwargs,
            "stop_fn": StopStringChecker(tokenizer.decode, options.stop_strings),
        }
    constraint = None
    if options.constraint is not None:
        if options.stop_strings:
            raise UserError(
                f"{options.constraint} determines where an answer ends; leave stop_strings out"
            )
        constraint = Constraint(options, Vocabulary(*tokenizer.token_bytes(), tokenizer.encode))
        generate_kwargs = {
            **generate_kwargs,
            "processors": [*generate_kwargs.get("processors", ()), constraint],
        }
    plain = dataclasses.replace(
        options, stop_strings=None, regex=None, choices=None, json_schema=None
    )
    return plain, generate_kwargs, constraint


def _check_complete(
    constraint: Constraint | None, tokens: list[int], options: GenerationConfig
) -> None:
    if constraint is not None and not constraint.is_complete(tokens):
        raise UserError(
            f"an answer did not complete {constraint.name} within "
            f"max_new_tokens={options.max_new_tokens}; raise max_new_tokens"
        )
