"""Base class of tasks whose models generate text: texts to token ids and back."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any, ClassVar

from miniformer.config import GenerationConfig, UserError
from miniformer.data.tokenizers.tokenizer import Tokenizer
from miniformer.generation import api
from miniformer.generation.constrained import Constraint, Vocabulary
from miniformer.generation.detokenizer import StopStringChecker, StreamingDetokenizer
from miniformer.generation.logits_processors import Processor
from miniformer.generation.speculative import Speculation
from miniformer.tasks.base import Task

_BATCH_SIZE = 32  # texts that are generated at once


@dataclasses.dataclass(frozen=True)
class TextGenerationTask(Task):
    """Base class of tasks whose models generate text."""

    continues_prompts: ClassVar[bool] = True  # False: a text answers its source

    def generation_inputs(
        self,
        model: Any,
        tokenizer: Tokenizer,
        prompts: Sequence[str],
        *,
        truncate: bool = False,
        max_new_tokens: int = 0,
    ) -> list[api.GenerationInput]:
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
        processors: Sequence[Processor] = (),
        speculation: Speculation | None = None,
        batch_size: int = _BATCH_SIZE,
    ) -> list[tuple[str, api.GenerationOutput]]:
        """Generates text and tokens: `num_return_sequences` of the first prompt, and so on.

        Args:
            model: the model.
            tokenizer: its tokenizer.
            prompts: texts.
            options: decoding options.
            truncate: see `generation_inputs`.
            processors, speculation: see `miniformer.generation.api.generate`.
            batch_size: prompts at once.
        """
        inputs = self.generation_inputs(
            model, tokenizer, prompts, truncate=truncate, max_new_tokens=options.max_new_tokens
        )
        stop = StopStringChecker(tokenizer.decode, options.stop_strings or [])
        constraints = make_constraints(tokenizer, options)
        # Batches are of similar lengths.
        order = sorted(
            range(len(inputs)),
            key=lambda n: len(inputs[n].input_ids if (x := inputs[n].source) is None else x),
        )
        copies = options.num_return_sequences
        outputs: dict[int, list[api.GenerationOutput]] = {}
        for first in range(0, len(order), batch_size):
            indices = order[first : first + batch_size]
            batch = api.generate(
                model,
                [inputs[index] for index in indices],
                token_options(options),
                processors=[*processors, *constraints],
                stop_fn=stop if options.stop_strings else None,
                speculation=speculation,
                prompt_indices=indices,
            )
            for row, index in enumerate(indices):
                outputs[index] = batch[row * copies : (row + 1) * copies]
        results = [output for index in range(len(inputs)) for output in outputs[index]]
        for output in results:
            _check_complete(constraints, output.tokens, options)
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
        processors: Sequence[Processor] = (),
        speculation: Speculation | None = None,
    ) -> Iterator[str]:
        """Streams generated text; the chunks join to the text of `generate`."""
        (start,) = self.generation_inputs(
            model, tokenizer, [prompt], truncate=truncate, max_new_tokens=options.max_new_tokens
        )
        return self.stream_input(
            model, tokenizer, start, options, processors=processors, speculation=speculation
        )

    def stream_input(
        self,
        model: Any,
        tokenizer: Tokenizer,
        start: api.GenerationInput,
        options: GenerationConfig,
        *,
        processors: Sequence[Processor] = (),
        speculation: Speculation | None = None,
    ) -> Iterator[str]:
        """Streams the text that follows token ids; see `stream`."""
        constraints = make_constraints(tokenizer, options)
        detokenizer = StreamingDetokenizer(
            tokenizer.decode, options.stop_strings or [], tokenizer.stable_length
        )
        for token in api.stream(
            model,
            start,
            token_options(options),
            processors=[*processors, *constraints],
            stop_fn=detokenizer.stop_checker if options.stop_strings else None,
            speculation=speculation,
        ):
            if text := detokenizer.add_token(token):
                yield text
        if text := detokenizer.flush():
            yield text
        _check_complete(constraints, detokenizer.tokens, options)


def token_options(options: GenerationConfig) -> GenerationConfig:
    """Options without those that need a tokenizer."""
    return dataclasses.replace(
        options, stop_strings=None, regex=None, choices=None, json_schema=None
    )


def group_copies(texts: list[str], options: GenerationConfig) -> list[Any]:
    """Texts by prompt: one each, or, with several `num_return_sequences`, a list each."""
    copies = options.num_return_sequences
    groups = [texts[first : first + copies] for first in range(0, len(texts), copies)]
    return texts if copies == 1 else groups


def make_constraints(tokenizer: Tokenizer, options: GenerationConfig) -> list[Any]:
    """The constraint that the options ask for, if any."""
    if options.constraint is None:
        return []
    if options.stop_strings:
        raise UserError(
            f"{options.constraint} determines where an answer ends; leave stop_strings out"
        )
    return [Constraint(options, Vocabulary(*tokenizer.token_bytes(), tokenizer.encode))]


def _check_complete(
    constraints: Sequence[Constraint], tokens: list[int], options: GenerationConfig
) -> None:
    for constraint in constraints:
        if not constraint.is_complete(tokens):
            raise UserError(
                f"an answer did not complete {constraint.name} within "
                f"max_new_tokens={options.max_new_tokens}; raise max_new_tokens"
            )
